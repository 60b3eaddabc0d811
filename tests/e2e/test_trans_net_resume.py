"""Training_TransNet.py --resume and --restart:
a fit goes on only if every option that changes the result agrees.
"""

import json
import shutil

import pytest

import Training_TransNet
from tests.e2e.road import FIT, assert_same, run, truncate
from tests.mistakes import refused
from utils import checkpoint, runs, sums
from utils.files import earlier, sha256

pytestmark = pytest.mark.e2e


def other_features(road, tmp_path):
    """The same numbers, as another net B's."""
    shutil.copytree(road.features, tmp_path / "features")
    path = tmp_path / "features/train/index.json"
    index = json.loads(path.read_text())
    index["record"]["checkpoint_b"] = "0" * 64
    del index[sums.OWN]
    path.write_text(json.dumps(sums.signed(index)))
    return tmp_path / "features"


@pytest.mark.parametrize("resume", ["", "--resume auto"])
@pytest.mark.parametrize(
    ("others", "facts"),
    [
        ("--alpha [0.2,0.1]", ("alpha", [0.1, 0.1], [0.2, 0.1])),
        ("--L2", ("L2", False, True)),
        ("--norm batch", ("norm", "instance", "batch")),
        ("--epochs 3", ("epochs", 2, 3)),
        ("--reverse", ("--reverse",)),
        ("features", ("net B", "checkpoint_folder_resnet18_sd5.pth.tar", "00000000")),
    ],
)
def test_a_finished_fit_of_other_options_is_left_alone(
    road, tmp_path, epochs, resume, others, facts
):
    folder = road.features if others.startswith("--") else other_features(road, tmp_path)
    options = others if others.startswith("--") else ""
    before = sha256(road.trans_net)
    with refused(road.trans_net, *facts, "--suffix", "--restart", kind=SystemExit):
        run(
            Training_TransNet,
            f"{FIT} --suffix a0.1 {options} {resume}",
            "--convOut_path",
            folder,
            "--out",
            road.out,
        )
    assert epochs.trained == [] and sha256(road.trans_net) == before


@pytest.mark.parametrize(("seconds", "left"), [(0.0, 1), (600.0, None)])
def test_a_fit_is_saved_by_time_too(road, tmp_path, monkeypatch, seconds, left):
    """Not only every 100 epochs: what a killed run costs is minutes."""

    class Killed(BaseException):
        """Nothing is saved on its way, as where a process is killed."""

    def write(log, epoch, metrics, words=None):
        if epoch == 1:
            raise Killed
        original(log, epoch, metrics, words)

    original = runs.RunLog.write
    monkeypatch.setattr(runs.RunLog, "write", write)
    monkeypatch.setattr(runs, "SECONDS_BETWEEN_SAVES", seconds)
    with pytest.raises(Killed):
        run(Training_TransNet, FIT, "--convOut_path", road.features, "--out", tmp_path)
    own = tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert (checkpoint.load(own)["epoch"] if own.exists() else None) == left


def test_a_fit_of_steps_goes_on_and_a_damaged_one_is_replaced(road, tmp_path, epochs):
    words = ("--convOut_path", road.features, "--out", tmp_path)
    own = tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    run(Training_TransNet, f"{FIT} --logspace 0 --epochs 1", *words)
    run(Training_TransNet, f"{FIT} --logspace 0 --resume auto", *words)
    assert epochs.trained == [0, 1]
    whole = checkpoint.load(own)
    truncate(own)
    earlier(own).unlink()
    with refused(own, "--restart", kind=SystemExit):
        run(Training_TransNet, f"{FIT} --logspace 0 --resume auto", *words)
    run(Training_TransNet, f"{FIT} --logspace 0 --resume auto --restart", *words)
    assert epochs.trained == [0, 1, 0, 1]
    assert_same(checkpoint.load(own)["state_dict"], whole["state_dict"])
