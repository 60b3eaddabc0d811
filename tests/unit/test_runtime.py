import errno
import os
import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

from tests.mistakes import check_line, refused
from utils.command import command
from utils.errors import InputError
from utils.runtime import Runtime, seed_everything, start


def ends(error):
    """How a command ends whose main raises this."""

    @command
    def main(argv=None):
        raise error

    with pytest.raises(SystemExit) as exit_:
        main([])
    return exit_.value.code


def test_bad_input_is_one_sentence_and_no_traceback():
    assert ends(InputError("no checkpoint at x")) == "test_runtime.py: no checkpoint at x"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EACCES, errno.EROFS])
def test_a_full_or_forbidden_disk_is_one_sentence(number):
    message = ends(OSError(number, os.strerror(number), "/data/x"))
    assert "/data/x" in message and os.strerror(number) in message
    assert len(message.splitlines()) == 1


def test_an_interruption_says_what_is_safe(capsys):
    assert ends(KeyboardInterrupt()) == 130
    check_line(capsys.readouterr().err, "test_runtime.py")


def test_a_clusters_signal_is_an_interruption(capsys):
    @command
    def main(_):
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    check_line(capsys.readouterr().err, "test_runtime.py")


@pytest.mark.parametrize(
    "error", [ValueError("a mistake of ours"), OSError(errno.EIO, "broken disk")]
)
def test_a_mistake_of_the_program_keeps_its_traceback(error):
    @command
    def main(argv=None):
        raise error

    with pytest.raises(type(error)):
        main([])


def test_a_command_gives_what_its_main_gives():
    @command
    def main(argv=None):
        """Run the step."""
        return argv

    assert main(["a"]) == ["a"]
    assert main() is None
    assert main.__doc__ == "Run the step."


def test_without_a_gpu_one_line_says_so_and_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = start([0, 1], None, 7)
    assert found == Runtime(torch.device("cpu"), (), 0, 1, None, False, 7)
    assert found.is_main
    output = capsys.readouterr().out
    check_line(output, "CUDA", "0 and 1", "CPU", "seed 7", torch.__version__)
    assert start([], 3, 0, "bf16").amp_dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("device_ids", "gpu", "expected"),
    [
        ([], None, ()),
        ([9], None, (9,)),
        ([0], None, (0,)),
        ([0, 0], None, (0,)),
        ([0, 1], 2, (2,)),
    ],
)
def test_devices_that_were_asked_for_in_vain_are_named(
    monkeypatch, capsys, device_ids, gpu, expected
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    start(device_ids, gpu, 0)
    # The line ends with the threads, the seed and the version, which are numbers too.
    line = capsys.readouterr().out.partition("CPU")[0]
    check_line(line, "CUDA", *expected)
    assert any(character.isdigit() for character in line) == bool(expected)


def test_fp16_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with refused("--amp fp16", "bf16"):
        start([], None, 0, "fp16")


@pytest.fixture
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as choosing them goes."""
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(
    ("device_ids", "gpu", "expected"),
    [
        ([], None, (0,)),
        ([0, 1], None, (0, 1)),
        ([1, 0], None, (1, 0)),
        ([0, 0], None, (0,)),
        ([0, 1], 1, (1,)),
    ],
)
def test_the_devices_that_are_named(two_gpus, capsys, device_ids, gpu, expected):
    found = start(device_ids, gpu, 0)
    assert found.device == torch.device("cuda", expected[0])
    assert found.device_ids == expected
    shown = ", ".join(f"cuda:{index} (GPU {index})" for index in expected)
    assert capsys.readouterr().out.startswith(f"running on {shown}, seed 0")


@pytest.mark.parametrize("tf32", [False, True])
def test_float32_means_float32_unless_tf32_is_asked_for(two_gpus, tf32):
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = not tf32
    start([], None, 0, tf32=tf32)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == (tf32, tf32)


@pytest.mark.parametrize(
    ("device_ids", "gpu", "missing"), [([0, 2], None, 2), ([], 2, 2), ([], -1, -1)]
)
def test_a_device_that_is_not_there(two_gpus, device_ids, gpu, missing):
    with refused(missing, "0", "1"):
        start(device_ids, gpu, 0)


def drawn():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.parametrize("seed", [0, 7, 2**40])
def test_a_seed_is_for_all_generators(seed):
    seed_everything(seed)
    first = drawn()
    seed_everything(seed)
    assert drawn() == first
    seed_everything(seed + 1)
    assert all(a != b for a, b in zip(drawn(), first))


def test_epochs_and_processes_draw_differently_and_repeatably():
    def numbers(seed, epoch, rank):
        Runtime(torch.device("cpu"), (), rank, 2, None, False, seed).seed_epoch(epoch)
        return drawn()

    cases = [(seed, epoch, rank) for seed in (0, 5) for epoch in (0, 1, 2) for rank in (0, 1)]
    results = [numbers(*case) for case in cases]
    assert results == [numbers(*case) for case in cases]
    assert len(set(results)) == len(cases)


def test_alone_nothing_is_wrapped_summed_or_waited_for(cpu, capsys):
    model = nn.Linear(2, 2)
    assert cpu.parallel(model) is model
    assert cpu.sum(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]
    assert cpu.gather({"a": 1}) == [{"a": 1}]
    cpu.barrier()
    cpu.broadcast(model.parameters())
    cpu.say("once")
    Runtime(torch.device("cpu"), (), 1, 2, None, False, 0).say("not again")
    assert capsys.readouterr().out == "once\n"


def test_the_main_process_does_not_wait_for_itself(cpu):
    order = []
    with cpu.main_first():
        order.append("block")
    assert order == ["block"]


def test_precision(cpu):
    model, x = nn.Linear(2, 2), torch.ones(1, 2)
    with cpu.autocast():
        assert model(x).dtype == torch.float32
    bf16 = Runtime(torch.device("cpu"), (), 0, 1, torch.bfloat16, False, 0)
    with bf16.autocast():
        assert model(x).dtype == torch.bfloat16
    scalers = [
        Runtime(torch.device("cpu"), (), 0, 1, dtype, False, 0).grad_scaler()
        for dtype in (None, torch.bfloat16)
    ]
    assert not any(scaler.is_enabled() for scaler in scalers)
