"""Training_TransNet.py: several fits in one reading, each as it is alone."""

import pytest
import torch

import Calibrate
import Training_TransNet
import Variance
from tests.e2e.road import BOTH, assert_same, files, lines_of, run
from tests.mistakes import check_some_line, refused
from utils import checkpoint
from utils.runs import RunLog

pytestmark = pytest.mark.e2e
FAMILY = (
    "--standardise --solve --alpha 0.1 --lr 0.001 --epochs 2 -b 10 --val_epoch 1 --save_epoch 1"
)
NAMES = [
    f"layers{n}{way}_seed{seed}" for way in ("", "_reverse") for n in (1, 2) for seed in (3, 4)
]


@pytest.fixture(scope="module")
def family(road, tmp_path_factory):
    """Trans-Nets of two depths, both directions and two seeds,
    from one reading; only to be read.
    """
    out = tmp_path_factory.mktemp("family")
    words = ("--convOut_path", road.features, "--out", out)
    run(Training_TransNet, f"{FAMILY} --layers 1,2 --both_directions --seeds 3,4", *words)
    return out


def of_family(out, name):
    return checkpoint.load(out / f"model_checkpoints/folder_resnet18/checkpoint_L1_{name}.pth.tar")


def test_each_of_a_family_has_its_own_files(family):
    assert files(family / "model_checkpoints") == sorted(
        f"folder_resnet18/checkpoint_L1_{name}.pth.tar{age}" for name in NAMES for age in ("", ".1")
    )
    assert files(family / "logs") == sorted(
        f"folder_resnet18/L1_{name}/{file}"
        for name in NAMES
        for file in ("events.out.tfevents", "metrics.jsonl")
    )
    weights = [
        of_family(family, name)["state_dict"]["linear.1.weight"]
        for name in NAMES
        if "layers2" in name
    ]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers2_reverse_seed4", "--layers 2 --reverse --seeds 4"),
        ("layers2_seed3", "--layers 2 --one_direction --seeds 3"),
        ("layers1_reverse_seed3", "--layers 1 --alpha [] --reverse --seeds 3"),
    ],
)
def test_one_of_a_family_is_what_it_is_alone(road, family, tmp_path, name, words, epochs, capsys):
    """To the bit: weights, optimiser, settings, provenance,
    linear reference, log; so the single command knows it.
    """
    line = f"{FAMILY} {words} --suffix {name}"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    assert_same(of_family(tmp_path, name), of_family(family, name))
    log = f"logs/folder_resnet18/L1_{name}"
    assert lines_of(tmp_path / log) == lines_of(family / log)
    epochs.trained.clear()
    run(
        Training_TransNet, f"{line} --resume auto", "--convOut_path", road.features, "--out", family
    )
    assert epochs.trained == []
    check_some_line(capsys.readouterr().out, f"checkpoint_L1_{name}.pth.tar", "2")
    for others, facts in (
        ("--seeds 9", ("initial_seed", words.split()[-1], 9)),
        ("--seed 9", ("seed", 0, 9)),
    ):
        with refused(*facts, kind=SystemExit):
            run(
                Training_TransNet,
                f"{line} --resume auto {others}",
                "--convOut_path",
                road.features,
                "--out",
                family,
            )


def test_a_family_is_measured_like_single_fits(road, family, capsys):
    folder = family / "model_checkpoints/folder_resnet18"
    there, back = (folder / f"checkpoint_L1_layers2{way}_seed3.pth.tar" for way in ("", "_reverse"))
    for path, direction in ((there, ""), (back, "--reverse")):
        report = run(Variance, direction, "--convOut_path", road.features, "--transnet", path)
        instability = report["var"]["residual"] / report["var"]["target"]
        assert checkpoint.load(path)["held_out"] == pytest.approx(instability, rel=1e-5)
        budget = "--brief --permutations 0 --bootstrap 100"
        rows = run(
            Calibrate, f"{budget} {direction}", "--convOut_path", road.features, "--transnet", path
        )["rows"]
        assert rows[0]["value"] == pytest.approx(instability, rel=1e-4)
    with refused(back, "--reverse", kind=SystemExit):
        run(Variance, "", "--convOut_path", road.features, "--transnet", back)


def test_an_interrupted_family_goes_on(road, family, tmp_path, epochs, capsys, monkeypatch):
    """The logs of eight are written in turns:
    the run ends in the second epoch, before its fourth.
    """
    words = ("--convOut_path", road.features, "--out", tmp_path)
    line = f"{FAMILY} --layers 1,2 --seeds 3,4"
    epochs.stop_at[:] = [8]
    with pytest.raises(SystemExit):
        run(Training_TransNet, line, *words)
    epochs.stop_at.clear()
    assert {of_family(tmp_path, name)["epoch"] for name in NAMES} == {1}
    capsys.readouterr()
    run(Training_TransNet, f"{line} --resume auto", *words)
    for name in NAMES:
        assert_same(of_family(tmp_path, name)["state_dict"], of_family(family, name)["state_dict"])
        assert_same(of_family(tmp_path, name)["optimizer"], of_family(family, name)["optimizer"])
        log = f"logs/folder_resnet18/L1_{name}"
        assert lines_of(tmp_path / log) == lines_of(family / log)
    said = capsys.readouterr().out
    assert sum(line.startswith("saved ") for line in said.splitlines()) == len(NAMES)
    folder = tmp_path / "model_checkpoints/folder_resnet18"
    (command,) = [line.split() for line in said.splitlines() if line.startswith("next: ")]
    assert "--reverse" not in command
    assert command[-2:] == [str(folder / f"checkpoint_L1_layers{n}_seed3.pth.tar") for n in (1, 2)]


@pytest.mark.parametrize("options", ["", "--standardise --solve 1"])
def test_both_directions_are_fitted_each_as_alone_and_are_saved_together(
    road, tmp_path, epochs, options
):
    """The run ends within an epoch: neither direction is saved of it."""
    line = f"{BOTH} --epochs 3 --save_epoch 1 {options}"
    words = ("--convOut_path", road.features, "--out")
    run(Training_TransNet, line, *words, tmp_path / "whole")
    names = ["checkpoint_L1.pth.tar", "checkpoint_L1_reverse.pth.tar"]
    folder = "model_checkpoints/folder_resnet18"
    before = [f"{name}.1" for name in names]
    assert files(tmp_path / "whole" / folder) == sorted(names + before)
    whole = [checkpoint.load(tmp_path / "whole" / folder / name) for name in names]

    for way, suffix in (("--one_direction", ""), ("--reverse", "--suffix reverse")):
        run(Training_TransNet, f"{line} {way} {suffix}", *words, tmp_path / "alone")
    for name, state in zip(names, whole):
        assert_same(checkpoint.load(tmp_path / "alone" / folder / name), state)

    epochs.trained.clear()
    epochs.stop_at[:] = [3]
    with pytest.raises(SystemExit):
        run(Training_TransNet, line, *words, tmp_path / "torn")
    epochs.stop_at.clear()
    torn = [checkpoint.load(tmp_path / "torn" / folder / name) for name in names]
    assert [state["epoch"] for state in torn] == [1, 1]
    run(Training_TransNet, f"{line} --resume auto", *words, tmp_path / "torn")
    assert epochs.trained == [0, 0, 1, 1, 1, 2, 2]
    for name, state in zip(names, whole):
        assert_same(checkpoint.load(tmp_path / "torn" / folder / name), state)
        log = f"logs/folder_resnet18/{name.removeprefix('checkpoint_').removesuffix('.pth.tar')}"
        assert lines_of(tmp_path / "torn" / log) == lines_of(tmp_path / "whole" / log)


def test_a_named_checkpoint_goes_on_in_its_one_direction(road, tmp_path):
    """And a run that was fitted A → B alone gets the other direction from --resume auto."""
    words = ("--convOut_path", road.features, "--out", tmp_path)
    folder = tmp_path / "model_checkpoints/folder_resnet18"
    line = f"{BOTH} --logspace 0"
    run(Training_TransNet, f"{line} --epochs 1 --one_direction", *words)
    there = folder / "checkpoint_L1.pth.tar"
    run(Training_TransNet, f"{line} --suffix more", "--resume", there, *words)
    assert files(folder) == ["checkpoint_L1.pth.tar", "checkpoint_L1_more.pth.tar"]
    run(Training_TransNet, f"{line} --resume auto", *words)
    forth, back, more = (
        checkpoint.load(folder / f"checkpoint_L1{name}.pth.tar")
        for name in ("", "_reverse", "_more")
    )
    assert forth["epoch"] == back["epoch"] == 2
    assert_same(forth["state_dict"], more["state_dict"])


def test_all_of_a_family_are_saved_at_once_where_time_is_up(road, tmp_path, monkeypatch):
    """One that is saved an epoch after the others could not go on with them."""
    overdue = iter([False, True] + [False] * 9)
    monkeypatch.setattr(RunLog, "overdue", property(lambda _: next(overdue)))
    saved = []
    monkeypatch.setattr(RunLog, "saved", lambda log, path, epoch, _: saved.append(epoch))
    line = "--layers 1,2,3 --one_direction --alpha 0.1 --epochs 2 -b 12 --no_reference"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    assert saved == [1, 1, 1, 2, 2, 2]


def test_the_penultimate_features_of_both_nets_can_be_matched(road, tmp_path):
    line = "--layers 1 --lr 0.001 --epochs 1 -b 10 --match penultimate --draw --hold_out 0.25"
    words = ("--convOut_path", road.features / "train", "--out")
    run(Training_TransNet, f"{line} --both_directions", *words, tmp_path / "both")
    run(Training_TransNet, f"{line} --reverse --suffix reverse", *words, tmp_path / "alone")
    both, alone = (of_family(tmp_path / name, "reverse") for name in ("both", "alone"))
    assert_same(both, alone)
    assert both["held_out"] is not None
