"""A process of several that is gone, or refuses: all end, soon, and say it once."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.chaos.apart import Apart
from tests.mistakes import check_line
from utils import peers, runtime
from utils.command import command
from utils.errors import InputError

ROOT = Path(runtime.__file__).parents[1]


@command
def main(argv=None):
    """Add numbers up with the others, until something happens to one process."""
    what, who = argv
    here = runtime.start([], None, 0)
    for step in range(30):
        is_it = here.rank == int(who) and step == 3
        if what == "dies" and is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "dies alone" and step == 3:  # the other is not in a collective, and for long
            os.kill(os.getpid(), signal.SIGKILL) if is_it else time.sleep(600)
        if (what == "refuses" and is_it) or what == "all refuse":
            raise InputError("no such number as 7")
        if what == "errs" and is_it:
            raise RuntimeError("a mistake of ours")
        if what == "takes long" and is_it:
            time.sleep(7)
        here.sum(torch.ones(3))
        time.sleep(0.02)
    here.say("done")


def start_two(tmp_path, *words, silent=2.0):
    """Start two processes by RANK and WORLD_SIZE; give how they ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def arm(rank):
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        peers.SECONDS_BETWEEN = 0.1
        peers.SECONDS_SILENT, peers.SECONDS_SILENT_IN_DOUBT = silent, silent / 2

    both = [
        Apart(partial(main, words), tmp_path, partial(arm, rank), f"rank{rank}") for rank in (0, 1)
    ]
    return [one.end() for one in both]


def check_sentence(printed, *facts):
    """Of a store that ends just when it is asked PyTorch itself writes frames of C++ besides."""
    assert "Traceback" not in printed
    (sentence,) = [line for line in printed.splitlines() if ".py: " in line]
    check_line(sentence, *facts)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_all_end_within_a_minute():
    assert peers.SECONDS_SILENT_IN_DOUBT < peers.SECONDS_SILENT
    assert peers.SECONDS_SILENT + 2 * peers.SECONDS_BETWEEN + peers.SECONDS_TO_HEAR < 60


@pytest.mark.parametrize("what", ["dies", "dies alone"])
@pytest.mark.parametrize("who", [0, 1])
def test_the_other_ends_with_a_sentence_where_one_is_gone(tmp_path, what, who):
    ends = start_two(tmp_path, what, who)
    assert ends[who].code == -signal.SIGKILL and ends[1 - who].code == 1
    check_sentence(ends[1 - who].err, f"process {who}")


@pytest.mark.parametrize("what", ["refuses", "all refuse"])
@pytest.mark.parametrize("who", [0, 1])
def test_what_one_refuses_is_said_once_and_all_end(tmp_path, what, who):
    ends = start_two(tmp_path, what, who)
    assert [end.code for end in ends] == [1, 1]
    check_sentence("".join(end.err for end in ends), 7)
    if what == "refuses":
        assert "7" in ends[who].err


def test_a_mistake_of_ours_keeps_its_traceback_and_ends_the_other(tmp_path):
    ends = start_two(tmp_path, "errs", 1)
    assert "a mistake of ours" in ends[1].err and "Traceback" in ends[1].err
    assert ends[0].code == 1
    check_sentence(ends[0].err, "process 1")


def test_nobody_ends_who_only_takes_long(tmp_path):
    """A collective takes longer here than a process may be silent."""
    ends = start_two(tmp_path, "takes long", 0, silent=3.0)
    assert [end.code for end in ends] == [0, 0]
    assert ends[0].out.count("done\n") == 1 and not ends[0].err + ends[1].err


PROGRAM = """
import os, signal, sys, torch
from utils.command import command
from utils.runtime import start

@command
def main(argv=None):
    here = start([], None, 0)
    while True:
        here.sum(torch.ones(3))
        if here.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

main()
"""


def test_under_torchrun_all_end_with_one_sentence(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    command_line = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*command_line, "--nproc_per_node", "2", "program.py"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode
    sentences = [line for line in done.stderr.splitlines() if line.startswith("program.py:")]
    assert len(sentences) == 1, done.stderr
