import pytest

from utils import progress
from utils.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Every reading is ten seconds later."""
    now = iter(range(0, 10_000, 10))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))


def test_a_log_gets_a_line_now_and_then(capsys, clock):
    bar = Progress([1, 2, 3, 4, 5, 6, 7], "epoch 3")
    bar.note = "loss 0.5"
    assert list(bar) == [1, 2, 3, 4, 5, 6, 7]
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["epoch 3: 3/7, 40 s left, loss 0.5", "epoch 3: 6/7, 10 s left, loss 0.5"]


def test_without_a_length_there_is_no_time_left(capsys, clock):
    assert list(Progress(iter("abc"), "reading")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "reading: 3/?\n"
    assert len(list(Progress(iter("abc"), "reading", total=3))) == 3
    assert capsys.readouterr().err == "reading: 3/3, 0 s left\n"


def test_a_short_run_says_nothing(capsys):
    assert list(Progress([1, 2], "epoch")) == [1, 2]
    assert list(Progress([], "epoch")) == []
    assert capsys.readouterr().err == ""


def test_quiet_processes_say_nothing(capsys, clock):
    assert list(Progress(range(30), "epoch", quiet=True)) == list(range(30))
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    bar = Progress([1, 2, 3], "epoch 9")
    seen = []
    for item in bar:
        seen.append(item)
        bar.note = "loss 1"
    assert seen == [1, 2, 3]
    output = capsys.readouterr()
    assert "epoch 9" in output.err
    assert output.out == ""


def test_what_iterates_may_stop_early(capsys, clock):
    for item in Progress(range(100), "epoch"):
        if item == 4:
            break
    assert item == 4
