import csv
import hashlib
import json
import os
import socket
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mistakes import check_some_line, refused
from utils import files, remarks
from utils.files import (
    check_unclaimed,
    claim,
    earlier,
    in_words,
    is_stream,
    put_back,
    read_json,
    replacing,
    replacing_together,
    results_alone,
    settle,
    sha256,
    write_csv,
    write_json,
)

ROOT = Path(__file__).parents[2]


def test_a_whole_file_replaces_the_one_before(tmp_path):
    path = tmp_path / "new" / "deep" / "figure.png"
    for content in ("one", "two"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".png"
            assert not path.exists() or path.read_text() == "one"
            temporary.write_text(content)
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "there" / "real.json")
    write_json(tmp_path / "link.json", 1)
    assert (tmp_path / "link.json").is_symlink()
    assert read_json(tmp_path / "there" / "real.json") == 1


def test_a_pipe_is_written_to_and_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    with ThreadPoolExecutor(1) as other:
        read = other.submit((tmp_path / "pipe.json").read_text)
        write_json(tmp_path / "pipe.json", {"a": 1})
        assert json.loads(read.result()) == {"a": 1}
    assert stat.S_ISFIFO((tmp_path / "pipe.json").stat().st_mode)
    assert [entry.name for entry in tmp_path.iterdir()] == ["pipe.json"]


KILLED = """
import os, sys
from pathlib import Path
from utils import files
moves = 0
def replace(self, target, whole=Path.replace):
    global moves
    if moves == int(sys.argv[2]):
        os._exit(9)  # as SIGKILL does: nothing is tidied up
    moves += 1
    return whole(self, target)
Path.replace = replace
places = [Path(sys.argv[1], name) for name in "abc"]
with files.replacing_together(places) as temporaries:
    for temporary in temporaries:
        temporary.write_text("new")
"""


@pytest.mark.parametrize("moves", range(5))
def test_what_belongs_together_is_old_or_new_whenever_it_is_killed(tmp_path, moves):
    """Move 0 is the journal's; with the last one all is done."""
    for name in "abc":
        (tmp_path / name).write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(moves)]
    subprocess.run(command, cwd=ROOT, check=False)
    settle(tmp_path)
    assert {(tmp_path / name).read_text() for name in "abc"} == {"new" if moves else "old"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a", "b", "c"]


KEPT = """
import os, sys
from pathlib import Path
from utils import files
left = int(sys.argv[2])
def counted(whole):
    def call(*args, **options):
        global left
        if not left:
            os._exit(9)
        left -= 1
        return whole(*args, **options)
    return call
for module, name in ((Path, "replace"), (Path, "unlink"), (os, "link"), (os, "fsync")):
    setattr(module, name, counted(getattr(module, name)))
places = [Path(sys.argv[1], name) for name in sys.argv[3]]
keep = dict.fromkeys(places, 3)
with files.replacing_together(places, keep=keep) as temporaries:
    for temporary in temporaries:
        temporary.write_text("new")
"""


@pytest.mark.parametrize("names", ["a", "ab"])
def test_the_states_before_are_kept_whenever_it_is_killed(tmp_path, names):
    """Before every link, move, removal and flush: the newest whole state is old or new."""
    for calls in range(40):
        folder = tmp_path / str(calls)
        folder.mkdir()
        for name in names:
            (folder / name).write_text("old")
            (folder / f"{name}.1").write_text("older")
            (folder / f"{name}.2").write_text("oldest")
        command = [sys.executable, "-c", KEPT, str(folder), str(calls), names]
        is_done = subprocess.run(command, cwd=ROOT, check=False).returncode == 0
        settle(folder)
        entries = {entry.name: entry.read_text() for entry in folder.iterdir()}
        assert {entries.pop(name) for name in names} in ({"old"}, {"new"})
        assert set(entries.values()) <= {"old", "older", "oldest"}
        assert {name.partition(".")[0] for name in entries} == set(names)
        if is_done:
            break
    assert is_done and calls > 5
    kept = {f"{name}.{age}": text for name in names for age, text in ((1, "old"), (2, "older"))}
    assert entries == kept


def test_so_many_states_are_kept_and_put_back(tmp_path):
    path = tmp_path / "net.pth.tar"

    def write(text, count):
        with replacing_together([path], keep={path: count}) as (temporary,):
            temporary.write_text(text)
        return [entry.read_text() for entry in sorted(tmp_path.iterdir())]

    for number in range(4):
        write(str(number), 3)
    assert write("4", 3) == ["4", "3", "2"]
    put_back({path: 1})
    assert path.read_text() == "3"
    assert write("5", 3) == ["5", "3", "3"]  # as before it, under both names
    assert write("6", 2) == ["6", "5"]
    assert write("7", 1) == ["7"]


def test_states_are_kept_where_a_file_has_one_name_alone(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(1, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "a"
    for text in "123":
        with replacing_together([path], keep={path: 2}) as (temporary,):
            temporary.write_text(text)
    assert [entry.read_text() for entry in sorted(tmp_path.iterdir())] == ["3", "2"]


def test_the_state_before_a_link_lies_beside_its_target(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "real")
    for text in "12":
        with replacing_together([tmp_path / "link"], keep={tmp_path / "link": 2}) as (temporary,):
            temporary.write_text(text)
    assert (tmp_path / "link").is_symlink() and earlier(tmp_path / "link").read_text() == "1"
    assert sorted(entry.name for entry in (tmp_path / "there").iterdir()) == ["real", "real.1"]


def test_a_folder_that_was_moved_is_put_right_too(tmp_path):
    (tmp_path / "before").mkdir()
    for name in "abc":
        (tmp_path / "before" / name).write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path / "before"), "2"]
    subprocess.run(command, cwd=ROOT, check=False)
    (tmp_path / "before").rename(tmp_path / "after")
    settle(tmp_path / "after")
    assert [entry.read_text() for entry in (tmp_path / "after").iterdir()] == ["new"] * 3


def test_the_first_file_that_is_written_sweeps_what_a_killed_process_left(tmp_path):
    (tmp_path / "b.json").write_text("1")
    command = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    host = files._host()
    left = [f".b.json.{host}-{int(dead.stdout)}-0123abcd.part.json"]
    kept = [
        f".b.json.{host}-{os.getpid()}-0123abcd.part.json",
        f".b.json.elsewhere-{int(dead.stdout)}-0123abcd.part.json",
        ".b.json.part",
    ]
    for name in left + kept:
        (tmp_path / name).write_text("half")
    write_json(tmp_path / "a.json", 1)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.json", "b.json", *kept}


def test_the_lock_of_a_run_that_is_gone_is_freed_and_said(tmp_path, capsys):
    remarks.forget()
    dead = claimant(tmp_path, "os.kill(os.getpid(), 9)")
    dead.communicate()
    (tmp_path / ".strange.lock").touch()
    settle(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".strange.lock"]
    check_some_line(capsys.readouterr().out, dead.pid, tmp_path)


@pytest.mark.parametrize("text", ["[", "[1]", '[["{0}/a", "{0}/b"]]', '[["/etc/x", "{0}/b"]]'])
def test_a_journal_of_a_stranger_moves_nothing(tmp_path, text):
    (tmp_path / "a").write_text("a")
    (tmp_path / ".x.journal").write_text(text.format(tmp_path))
    settle(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_files_that_a_living_process_writes_stay(tmp_path):
    with replacing(tmp_path / "a.json") as temporary:
        temporary.write_text("1")
        settle(tmp_path)
    assert read_json(tmp_path / "a.json") == 1


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError()])
def test_nothing_changes_when_writing_fails(tmp_path, error):
    path = tmp_path / "state.bin"
    path.write_text("before")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.bin"]


def test_files_are_as_readable_as_any_other(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b.json").write_text("1")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.json")]
    assert modes[0] == modes[1]


def test_json_comes_back(tmp_path):
    value = {
        "var": {"order0": 1.25},
        "path": os.fsdecode(b"K\xffh.jpg"),
        "name": "Kühe",
        "none": None,
    }
    write_json(str(tmp_path / "v.json"), value)
    assert read_json(tmp_path / "v.json") == value
    assert (tmp_path / "v.json").read_bytes().isascii()
    assert json.loads((tmp_path / "v.json").read_text()) == value


def test_json_that_cannot_be_read(tmp_path):
    with refused("v.json"):
        read_json(tmp_path / "v.json")
    for content in (b'{"var": 1', b"\xff\xfe", b""):
        (tmp_path / "v.json").write_bytes(content)
        with refused(tmp_path / "v.json"):
            read_json(tmp_path / "v.json")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_the_hash_is_of_all_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()


# --- tables


def test_rows_come_back(tmp_path):
    write_csv(
        tmp_path / "new" / "t.csv",
        [("component", "variance"), ("x(0), x(1)", 0.25), ("Kühe", None)],
    )
    with (tmp_path / "new" / "t.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["component", "variance"],
            ["x(0), x(1)", "0.25"],
            ["Kühe", ""],
        ]


def test_half_a_table_replaces_nothing(tmp_path):
    def rows():
        yield "head", "of"
        raise KeyError

    write_csv(tmp_path / "t.csv", [["before"]])
    with pytest.raises(KeyError):
        write_csv(tmp_path / "t.csv", rows())
    assert (tmp_path / "t.csv").read_text().strip() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.csv"]


# --- one run a folder


def claimant(folder, then):
    """A process that claims a folder, says so, and does something."""
    program = f"import os, sys\nfrom utils.files import claim\nwith claim({str(folder)!r}):\n"
    program += f"    print('mine', flush=True)\n    {then}\n"
    pipes = {
        "stdin": subprocess.PIPE,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "mine\n", process.stderr.read()
    return process


def test_a_folder_is_claimed_and_let_go(tmp_path):
    folder = tmp_path / "new" / "run"
    for _ in range(2):
        with claim(folder):
            (folder / "written").touch()
        assert [entry.name for entry in folder.iterdir()] == ["written"]


def test_a_second_run_is_refused_and_the_first_is_named(tmp_path):
    other = claimant(tmp_path, "sys.stdin.read()")
    for _ in range(2):  # who is refused takes nothing away
        with refused(other.pid, socket.gethostname(), tmp_path, "--suffix"):
            claim(tmp_path).__enter__()
    other.communicate("done")
    assert other.returncode == 0
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path):
        pass


def test_one_process_does_not_claim_a_folder_twice(tmp_path):
    with claim(tmp_path):
        with refused(os.getpid(), tmp_path):
            claim(tmp_path).__enter__()
        with claim(tmp_path / "below"):
            pass


def test_a_folder_is_asked_whether_it_is_claimed_and_left_as_it_is(tmp_path):
    check_unclaimed(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with claim(tmp_path):
        before = (tmp_path / ".lock").read_text()
        with refused(os.getpid(), tmp_path, "--save"):
            check_unclaimed(tmp_path, elsewhere="--save")
        assert (tmp_path / ".lock").read_text() == before
        with (
            refused("--save"),
            claim(tmp_path, elsewhere="--save"),
        ):
            pass
    (tmp_path / ".lock").write_text("pid 1 on elsewhere, since yesterday")  # of a run that crashed
    check_unclaimed(tmp_path)


def test_a_file_is_claimed_whatever_folder_the_log_is_in(tmp_path):
    file = tmp_path / "nets" / "resnet8.pth.tar"
    with claim(file, is_file=True, elsewhere="--checkpoint_dir"):
        with refused(file, "--checkpoint_dir"):
            check_unclaimed(file, is_file=True, elsewhere="--checkpoint_dir")
        with claim(file.with_name("other.pth.tar"), is_file=True):
            pass
    check_unclaimed(file, is_file=True)
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_lets_its_folder_go(tmp_path, error):
    with pytest.raises(error), claim(tmp_path):
        raise error
    assert list(tmp_path.iterdir()) == []
    with claim(tmp_path):
        pass


def test_a_lock_that_a_crash_left_behind_holds_nobody_up(tmp_path):
    dead = claimant(tmp_path, "os.kill(os.getpid(), 9)")
    dead.communicate()
    assert f"pid {dead.pid} on" in (tmp_path / ".lock").read_text()
    with claim(tmp_path):
        assert f"pid {os.getpid()} on" in (tmp_path / ".lock").read_text()
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_goes_where_a_place_is_only_asked_after(tmp_path):
    dead = claimant(tmp_path, "os.kill(os.getpid(), 9)")
    dead.communicate()
    check_unclaimed(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 bytes"), (9_999, "9999 bytes"), (10_000, "0.01 MB"), (12_039_999_999, "12.04 GB")],
)
def test_bytes_are_said_in_the_unit_that_leaves_digits(count, said):
    assert in_words(count) == said


def test_json_that_is_too_deep_too_large_or_no_file_is_refused(tmp_path, monkeypatch):
    texts = {
        "deep.json": "[" * 100_000,
        "digits.json": "9" * 5000,
        "bytes.json": "\udcff",
        "cut.json": '{"a": ',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    os.mkfifo(tmp_path / "pipe.json")
    for name in (*texts, "pipe.json", "nowhere.json", "."):
        with refused(tmp_path / name):
            read_json(tmp_path / name)
    (tmp_path / "large.json").write_text("[1, 2, 3]")
    monkeypatch.setattr(files, "MOST_TEXT_BYTES", 8)
    with refused(tmp_path / "large.json", "9 bytes", "8 bytes"):
        read_json(tmp_path / "large.json")


def test_a_dash_is_standard_output_and_other_lines_go_elsewhere(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with results_alone():
        print("a line")
        write_json("-", {"a": 1})
        write_csv("-", [["x"], [2]])
    print("after")
    printed = capsys.readouterr()
    assert printed.out.split() == ["{", '"a":', "1", "}", "x", "2", "after"]
    assert printed.err == "a line\n"
    assert list(tmp_path.iterdir()) == []


def test_a_file_may_be_called_a_dash(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_json("./-", 1)
    assert read_json(tmp_path / "-") == 1
    assert [is_stream(path) for path in ("-", "./-", "/dev/null", "new")] == [
        True,
        False,
        True,
        False,
    ]
