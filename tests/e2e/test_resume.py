"""--resume means one thing in every step, here in Training.py;
the others have theirs beside their other tests.
"""

import math
import os
import shutil
import signal
from importlib import metadata
from pathlib import Path

import pytest
import torch

import Training
import Training_TransNet
from tests.e2e.road import assert_same, change, contents, data, lines_of, run, truncate
from tests.mistakes import check_line, check_some_line, refused
from utils import checkpoint
from utils.files import claim, earlier, sha256
from utils.runs import RunLog

pytestmark = pytest.mark.e2e
ARCH = "mobilenet_v3_small"
LINE = f"--arch {ARCH} --image_size 32 --epochs 2 -b 12 --lr 0.01 --val_epoch 1 -j 0"
OWN = f"model_checkpoints/checkpoint_folder_{ARCH}.pth.tar"


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A net that was trained for two epochs; only to be read."""
    out = tmp_path_factory.mktemp("finished")
    run(Training, LINE, *data(photos), "--out", out)
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.mark.parametrize("resume", ["", "--resume auto"])
@pytest.mark.parametrize(
    ("others", "name", "values"),
    [
        ("--lr 0.9 --wd 0.1", "lr", (0.01, 0.9)),
        ("--wd 0.1", "weight_decay", (0.0001, 0.1)),
        ("--momentum 0.5", "momentum", (0.9, 0.5)),
        ("--optim Adam", "optim", ("SGD", "Adam")),
        ("--epoch_step 7", "epoch_step", (60, 7)),
        ("--decay_factor 0.9", "decay_factor", (0.3, 0.9)),
        ("--logspace 1", "logspace", (0, 1.0)),
        ("--one_cycle", "one_cycle", (0, 0.2)),
        ("--label_smoothing 0.1", "label_smoothing", (0, 0.1)),
        ("--batch_size 6", "batch_size", (12, 6)),
        ("--seed 1", "seed", (0, 1)),
        ("--amp bf16", "amp", ("off", "bf16")),
        ("--fix_bn", "fix_bn", (False, True)),
    ],
)
def test_a_finished_training_of_other_options_is_left_alone(
    finished, photos, epochs, resume, others, name, values
):
    before = contents(finished)
    facts = "Training.py", finished / OWN, name, *values, "--suffix", "--restart"
    with refused(*facts, kind=SystemExit):
        run(Training, f"{LINE} {others} {resume}", *data(photos), "--out", finished)
    assert epochs.trained == [] and contents(finished) == before


def test_another_image_size_is_refused(finished, photos, epochs):
    words = (*data(photos), "--out", finished)
    with refused(
        finished / OWN, "image_size", "32", "48", "--suffix", "--restart", kind=SystemExit
    ):
        run(Training, f"{LINE} --image_size 48", *words)
    for resume in ("auto", finished / OWN):
        with refused("32", "--image_size", "48", kind=SystemExit):
            run(Training, f"{LINE} --epochs 3 --image_size 48", *words, "--resume", resume)
    assert epochs.trained == []


def test_other_first_weights_are_another_run(finished, photos, tmp_path):
    weights = finished / OWN
    run(Training, f"{LINE} --epochs 1", *data(photos), "--weights", weights, "--out", tmp_path)
    assert checkpoint.load(tmp_path / OWN)["settings"]["weights"] == sha256(weights)
    with refused("weights", sha256(weights), "None", kind=SystemExit):
        run(Training, f"{LINE} --epochs 1 --resume auto", *data(photos), "--out", tmp_path)


@pytest.mark.parametrize("resume", ["", "--resume auto"])
def test_restart_replaces_another_run(copied, photos, epochs, resume):
    run(Training, f"{LINE} --lr 0.02 --epochs 1 --restart {resume}", *data(photos), "--out", copied)
    state = checkpoint.load(copied / OWN)
    assert epochs.trained == [0]
    assert (state["epoch"], state["settings"]["lr"], state["history"]) == (1, 0.02, [])
    assert [line["lr"] for line in lines_of(copied / f"logs/folder_{ARCH}")] == [0.02]


def test_what_changes_no_result_may_change(finished, photos, epochs, capsys):
    line = f"{LINE} --val_epoch 2 --save_epoch 2 -p 3 -j 1 --cache_images ram --resume auto"
    run(Training, line, *data(photos), "--out", finished)
    check_some_line(capsys.readouterr().out, finished / OWN, "2")
    assert epochs.trained == []


def test_the_image_size_of_ones_own_checkpoint_needs_no_option(finished, photos, capsys):
    line = f"--arch {ARCH} --epochs 2 -b 12 --lr 0.01 --resume auto"
    run(Training, line, *data(photos), "--out", finished)
    check_some_line(capsys.readouterr().out, "checkpoint_folder_mobilenet_v3_small.pth.tar", "2")


@pytest.mark.parametrize("resume", ["", "--resume auto"])
def test_a_damaged_checkpoint_need_not_be_deleted_by_hand(copied, photos, epochs, resume):
    """Where no state before it is kept."""
    earlier(copied / OWN).unlink()
    left, words = truncate(copied / OWN), (*data(photos), "--out", copied)
    with refused("Training.py", copied / OWN, "--restart", kind=SystemExit):
        run(Training, f"{LINE} {resume}", *words)
    assert (copied / OWN).read_bytes() == left and epochs.trained == []
    run(Training, f"{LINE} --restart {resume}", *words)
    assert checkpoint.load(copied / OWN)["epoch"] == 2 and epochs.trained == [0, 1]


def test_more_epochs_of_a_schedule_of_steps_go_on(copied, photos, tmp_path, epochs, capsys):
    """The rates of the epochs so far are the same,
    so the net is the one that three epochs in one go would give.
    """
    line = f"{LINE} --epochs 3"
    run(Training, f"{line} --resume auto", *data(photos), "--out", copied)
    assert epochs.trained == [2]
    assert (
        f"going on after epoch 2 of 3: {copied / OWN}, which was to end after 2\n"
        in capsys.readouterr().out
    )
    run(Training, line, *data(photos), "--out", tmp_path)
    longer, whole = (checkpoint.load(out / OWN) for out in (copied, tmp_path))
    assert_same(longer["state_dict"], whole["state_dict"])
    assert_same(longer["settings"], whole["settings"])
    assert [(stretch["epoch"], stretch["settings"]["epochs"]) for stretch in longer["history"]] == [
        (2, 2)
    ]


def test_more_epochs_of_rates_that_fall_over_all_of_them_are_refused(photos, tmp_path, epochs):
    line, words = f"{LINE} --logspace 1", (*data(photos), "--out", tmp_path)
    run(Training, f"{line} --epochs 1", *words)
    with refused("epochs", "1", "2", "--suffix", "--restart", kind=SystemExit):
        run(Training, f"{line} --epochs 2 --resume auto", *words)
    assert epochs.trained == [0]


def test_going_on_from_another_file_records_how_it_was_trained(finished, photos, tmp_path, epochs):
    """What no option says, the file does: architecture, kind of data set and image size."""
    paths = (
        "--train_path",
        photos / "train",
        "--val_path",
        photos / "val",
        "--resume",
        finished / OWN,
    )
    line = "--name folder --lr 0.02 --seed 7 --epochs 3 -b 12 --val_epoch 1"
    run(Training, line, *paths, "--out", tmp_path)
    before, state = checkpoint.load(finished / OWN), checkpoint.load(tmp_path / OWN)
    assert epochs.trained == [2]
    assert (before["settings"]["lr"], before["history"]) == (0.01, [])
    assert (state["settings"]["lr"], state["settings"]["seed"], state["epoch"]) == (0.02, 7, 3)
    assert state["history"] == [{"epoch": 2, "settings": before["settings"]}]
    assert state["data"] == before["data"] and state["data"]["image_size"] == 32


def test_versions_are_recorded_and_not_compared(copied, photos, epochs, capsys):
    versions = checkpoint.load(copied / OWN)["versions"]
    assert versions == {"torch": torch.__version__, "torchvision": metadata.version("torchvision")}
    change(copied / OWN, versions={"torch": "1.0.0", "torchvision": "0.2.1"})
    run(Training, f"{LINE} --resume auto", *data(photos), "--out", copied)
    check_some_line(capsys.readouterr().out, "checkpoint_folder_mobilenet_v3_small.pth.tar", "2")


@pytest.mark.parametrize("resume", ["", "--resume auto", f"--resume {{}}/{OWN}"])
def test_a_first_epoch_beyond_the_last_is_refused(finished, photos, tmp_path, resume, capsys):
    """And no file called None is said to be trained."""
    line = f"{LINE} --start_epoch 2 {resume.format(finished)}"
    with refused("--start_epoch 2", "--epochs 2", kind=SystemExit):
        run(Training, line, *data(photos), "--out", tmp_path)
    assert "None" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Training, "expected a whole number of at least 1, got '0'"),
        (Training_TransNet, "--epochs 0 leaves the Trans-Net as it is initialised, unless --solve"),
    ],
)
def test_no_epochs_are_no_training(road, photos, tmp_path, script, why, capsys):
    words = data(photos) if script is Training else ("--convOut_path", road.features)
    with pytest.raises(SystemExit) as exit_:
        run(script, "--epochs 0", *words, "--out", tmp_path)
    said = capsys.readouterr()
    assert exit_.value.code == 2 and why in said.err
    assert "None" not in said.out


def test_the_words_of_an_interrupted_run_go_on_with_it(photos, tmp_path, interrupt, epochs, capsys):
    words = (*data(photos), "--out", tmp_path)
    interrupt(Training, LINE, *words)
    said = capsys.readouterr()
    check_line(said.out.splitlines()[-1], tmp_path / OWN, "1 of 2 epochs", "--resume auto")
    assert said.err == "Training.py: interrupted; what was saved is whole\n"
    run(Training, f"{LINE} --resume auto", *words)
    assert epochs.trained == [0, 1]
    assert f"going on after epoch 1 of 2: {tmp_path / OWN}\n" in capsys.readouterr().out


def test_a_clusters_signal_leaves_what_was_saved(photos, tmp_path, capsys, monkeypatch):
    """SIGTERM in the second epoch, as it reaches the process itself."""

    def write(log, epoch, metrics):
        original(log, epoch, metrics)
        if epoch == 1:
            signal.raise_signal(signal.SIGTERM)

    original = RunLog.write
    monkeypatch.setattr(RunLog, "write", write)
    with pytest.raises(SystemExit) as exit_:
        run(Training, f"{LINE} --epochs 3", *data(photos), "--out", tmp_path)
    assert exit_.value.code == 143
    last = capsys.readouterr().out.splitlines()[-1]
    check_line(last, tmp_path / OWN, "1 of 3 epochs", "--resume auto")
    state = checkpoint.load(tmp_path / OWN)
    # All steps of the second epoch were taken, and nothing of it was saved before the signal.
    steps = math.ceil(len(list((photos / "train").rglob("*.*"))) / 12)
    assert (state["epoch"], state["midway"]["epoch"], state["midway"]["step"]) == (1, 1, steps)


def test_two_runs_of_one_name_do_not_write_at_once(photos, tmp_path, epochs):
    words = (*data(photos), "--out", tmp_path)
    log_folder = tmp_path / f"logs/folder_{ARCH}"
    with claim(log_folder), refused(os.getpid(), log_folder, "--suffix", kind=SystemExit):
        run(Training, f"{LINE} --epochs 1", *words)
    assert contents(tmp_path) == {} and epochs.trained == []
    run(Training, f"{LINE} --epochs 1", *words)
    assert epochs.trained == [0]
