import itertools

import pytest
import tqdm.std

from utils import progress
from utils.progress import Meter, Progress


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


@pytest.fixture
def terminal(capsys, monkeypatch):
    """A terminal, for whose bar every reading of the clock is a second later:
    it is drawn anew with every item.
    """
    seconds = itertools.count()
    # Capsys changes streams, not types
    monkeypatch.setattr(type(progress.sys.stderr), "isatty", lambda _stream: True)
    monkeypatch.setattr(tqdm.std, "time", lambda: float(next(seconds)))


def test_a_terminal_gets_a_bar_with_the_last_note(capsys, terminal):
    bar = Progress([1, 2, 3], "epoch 9")
    for item in bar:
        bar.note = f"loss {item / 4}"
    output = capsys.readouterr()
    states = output.err.split("\r")
    assert [state.split("|")[0] for state in states if "|" in state] == [
        "epoch 9:   0%",
        "epoch 9:  33%",
        "epoch 9:  67%",
        "epoch 9: 100%",
    ]
    notes = [state.split("loss ")[1].strip() for state in states if "loss" in state]
    assert notes == ["0.25]", "0.5]", "0.75]"]
    assert states[-2].strip() == ""  # wiped: what is said next stands on a clean line
    assert output.out == ""


def test_quiet_processes_say_nothing_on_a_terminal(capsys, terminal):
    assert list(Progress([1, 2, 3], "epoch", quiet=True)) == [1, 2, 3]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("on", ["clock", "terminal"])
def test_who_stops_early_has_taken_no_item_too_many(request, on):
    request.getfixturevalue(on)
    items = iter(range(100))
    for item in Progress(items, "epoch", total=100):
        if item == 4:
            break
    assert next(items) == 5


def test_a_meter_says_no_time_before_anything_was_worked(capsys, clock):
    meter = Meter("compare")
    meter.expect(100)
    # A line every third call: 30 s later by this clock.
    for amounts, work in (((25, 0, 0), meter.skip), ((25, 0, 0), meter.add)):
        for amount in amounts:
            work(amount)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "compare: 25 %"
    assert second == "compare: 50 %, 120 s left"  # 60 s for the 25 that were worked
