"""Long commands that a signal ends within an epoch, a trial or a fit, and that go on to equal files."""

import os
import signal
from pathlib import Path

import pytest

import Calibrate
from consistency.fitting import Fitting
from tests.chaos import saving
from tests.e2e.road import run
from tests.e2e.test_calibrate import planted, trans_net_of
from utils.files import read_json
from utils.training.engine import Averages

pytestmark = pytest.mark.e2e
UNTIL = "Training_TransNet until converged"
# By step: before the end of which steps of training a signal comes, each in a run that goes on
LEFT = [
    ("Pruning", (1, 4)),
    ("Pruning", (7, 5)),  # in the first epoch of the shared weights
    ("BornAgain", (5, 3)),
    ("transClassifier", (2, 4)),
    (UNTIL, (2,)),
    (UNTIL, (8, 3)),
]


@pytest.fixture
def place(photos, tmp_path):
    """Two folders with what the steps read, one to be left undisturbed."""
    before = Path.cwd()
    for name in ("whole", "left"):
        saving.begin(tmp_path / name, photos)
    yield tmp_path
    os.chdir(before)


@pytest.fixture
def steps(monkeypatch):
    """Count steps of training; `steps.signal_at = n` lets SIGTERM come in the n-th."""

    class Steps:
        count, signal_at = 0, 0

    def add(averages, metrics, samples):
        original(averages, metrics, samples)
        if metrics["Loss"].requires_grad:  # of training
            Steps.count += 1
            if Steps.count == Steps.signal_at:
                signal.raise_signal(signal.SIGTERM)

    original = Averages.add
    monkeypatch.setattr(Averages, "add", add)
    return Steps


def interrupted(steps, number, step):
    """Run a step until a signal comes in its n-th step of training."""
    steps.count, steps.signal_at = 0, number
    with pytest.raises(SystemExit) as ended:
        step()
    assert ended.value.code == 128 + signal.SIGTERM and steps.count == number
    steps.signal_at = 0


def last_states(folder):
    """SHA-256 of the checkpoints; the state before the last one may be one within an epoch."""
    shas = {
        file: sha for file, sha in saving.checkpoints(folder).items() if not file.endswith(".1")
    }
    assert shas
    return shas


@pytest.mark.parametrize(("name", "numbers"), LEFT)
def test_a_step_goes_on_within_an_epoch_to_equal_files(name, numbers, place, steps):
    os.chdir(place / "whole")
    saving.run(name)
    whole, steps.count = steps.count, 0
    os.chdir(place / "left")
    for turn, number in enumerate(numbers):
        interrupted(steps, number, lambda: saving.run(name, again=turn > 0))  # noqa: B023
    steps.count = 0
    saving.run(name, again=True)
    assert steps.count == whole - sum(numbers)  # no step is taken twice
    assert last_states(place / "left") == last_states(place / "whole")
    assert saving.logs(place / "left") == saving.logs(place / "whole")
    assert not list((place / "left").rglob("*.trials*"))


def test_the_last_closed_form_of_a_trial_costs_no_step(place, steps, monkeypatch):
    """A signal that comes while it is solved leaves all steps of the trial."""
    os.chdir(place / "whole")
    saving.run(UNTIL)
    whole, steps.count = steps.count, 0
    os.chdir(place / "left")
    solve = Fitting.solve

    def ended(fitting, *, last, first=False):
        if last:
            signal.raise_signal(signal.SIGINT)
        solve(fitting, last=last, first=first)

    with monkeypatch.context() as patch:
        patch.setattr(Fitting, "solve", ended)
        with pytest.raises(SystemExit) as exit_:
            saving.run(UNTIL)
    assert exit_.value.code == 130
    saving.run(UNTIL, again=True)
    assert steps.count == whole
    assert last_states(place / "left") == last_states(place / "whole")


def test_a_calibration_goes_on_within_a_fit(tmp_path, steps):
    features = planted(tmp_path / "features", "mixed")
    trans_net = trans_net_of(features, tmp_path, "--standardise --solve --layers 2 --steps 6")
    line = f"--permutations 19 --convOut_path {features} --transnet {trans_net} --json"

    def calibrate(name):
        return run(Calibrate, line, tmp_path / name)

    steps.count = 0
    calibrate("whole.json")
    whole = steps.count
    for number in (whole // 3, whole // 3):
        interrupted(steps, number, lambda: calibrate("left.json"))
    steps.count = 0
    calibrate("left.json")
    assert steps.count == whole - 2 * (whole // 3)
    assert read_json(tmp_path / "left.json") == read_json(tmp_path / "whole.json")
    assert not list(tmp_path.glob("*.fits*"))
