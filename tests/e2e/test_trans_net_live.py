"""Training_TransNet.py on features that are computed whenever they are read."""

import pytest
import torch

import Calibrate
import ConvOutput
import Training_TransNet
import Variance
from tests.e2e.road import BOTH, FIT, assert_same, data, files, run
from tests.mistakes import check_some_line
from utils import checkpoint, opening

pytestmark = pytest.mark.e2e
LIVE = "--conv_layer 1 -j 0"


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ("--standardise --solve --layers 1,2 --alpha 0.1", ""),
        ("--match penultimate --draw --layers 1 --alpha []", "--cache_images off"),
    ],
)
def test_a_live_fit_is_a_stored_one_to_the_bit(
    road, photos, tmp_path, epochs, capsys, options, images
):
    """And whichever it was, the other would go on with it."""
    line = f"{BOTH} --save_epoch 1 {options}"
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out", tmp_path / "live")
    run(Training_TransNet, f"{line} {LIVE} {images}", *nets)
    said = capsys.readouterr().out
    assert (
        "these features take 3.15 MB on disk as float32, or 4.5 GFLOP to compute in every epoch\n"
        in said
    )
    assert ("24 train images of folder ready in memory" in said) != bool(images)
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path / "stored")
    assert "these features take" not in capsys.readouterr().out
    names = files(tmp_path / "stored/model_checkpoints")
    assert files(tmp_path / "live/model_checkpoints") == names
    for name in names:
        ours, theirs = (
            checkpoint.load(tmp_path / kind / "model_checkpoints" / name)
            for kind in ("live", "stored")
        )
        assert_same(ours, theirs)
    epochs.trained.clear()
    run(
        Training_TransNet,
        f"{line} --resume auto",
        "--convOut_path",
        road.features,
        "--out",
        tmp_path / "live",
    )
    assert epochs.trained == []
    check_some_line(capsys.readouterr().out, tmp_path / "live", "2")


def test_large_images_come_few_at_a_time_and_give_the_same_fit(road, photos, tmp_path, monkeypatch):
    """Sums over images in order are then of other batches,
    and rounded otherwise: equal to 1e-6 of the largest.
    """
    line = f"{FIT} --standardise --solve --hidden 0"  # few images leave W(0) of spare channels open
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path / "stored")
    monkeypatch.setattr(opening, "PIXELS_AT_ONCE", 3 * 64**2)
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out", tmp_path / "live")
    run(Training_TransNet, f"{line} {LIVE}", *nets)
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    ours, theirs = (checkpoint.load(tmp_path / kind / path) for kind in ("live", "stored"))
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(
            ours["state_dict"][name], weight, rtol=0, atol=1e-6 * float(weight.abs().max())
        )
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-6)


def test_a_live_fit_holds_images_out_and_names_the_nets_to_measure_it(
    road, photos, tmp_path, capsys
):
    line, out = f"{BOTH} {LIVE} --hold_out 0.25", ("--out", tmp_path)
    images = ("--dataset", "folder", "--train_path", photos / "train")
    run(
        Training_TransNet,
        line,
        "--net_A",
        road.a,
        "--net_B",
        road.b,
        "--name",
        "folder",
        *images,
        *out,
    )
    said = capsys.readouterr().out
    assert "18 images: " in said
    words = [
        line.removeprefix("next: python Variance.py ")
        for line in said.splitlines()
        if line.startswith("next: ")
    ]
    (command,) = words  # it finds the other direction beside the one that it names
    path = tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    live = run(Variance, command)
    stored = ("--transnet", path, "--convOut_path", road.features)
    assert live["var"] == pytest.approx(run(Variance, "--t_or_v train", *stored)["var"], rel=1e-5)
    assert live["back"]["var"]["target"] > 0
    held = checkpoint.load(tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar")[
        "held_out"
    ]
    stored = ("--convOut_path", road.features / "train", "--out", tmp_path / "stored")
    run(Training_TransNet, f"{FIT} --hold_out 0.25", *stored)
    path = tmp_path / "stored/model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert checkpoint.load(path)["held_out"] == held


def test_an_interrupted_live_fit_goes_on(road, photos, tmp_path, interrupt):
    line = f"{FIT} {LIVE} --save_epoch 1 --cache_images off"
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out")
    run(Training_TransNet, line, *nets, tmp_path / "whole")
    interrupt(Training_TransNet, line, *nets, tmp_path / "torn")
    run(Training_TransNet, f"{line} --resume auto", *nets, tmp_path / "torn")
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert_same(
        checkpoint.load(tmp_path / "torn" / path), checkpoint.load(tmp_path / "whole" / path)
    )


def test_a_live_fit_is_calibrated_on_features_of_a_part_of_the_images(road, photos, tmp_path):
    out = ("--data_root", tmp_path, "--out", tmp_path)
    run(
        Training_TransNet,
        f"{FIT} {LIVE} --standardise --solve",
        "--net_A",
        road.a,
        "--net_B",
        road.b,
        *data(photos),
        *out,
    )
    part = f"{LIVE} --sample_num 50par_A --t_or_v both"
    run(ConvOutput, part, "--resume1", road.a, "--resume2", road.b, *data(photos), *out)
    trans_net = tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    features = tmp_path / "convOuts/folder_50par_A_resnet18/folder_L1"
    report = run(Calibrate, "--permutations 0", "--convOut_path", features, "--transnet", trans_net)
    values = {row["pairs"]: row["value"] for row in report["rows"]}
    assert values["this Trans-Net"] == pytest.approx(
        checkpoint.load(trans_net)["held_out"], rel=1e-5
    )
    # Which saw half of its images
    assert values["this Trans-Net"] < values["the same pairs, another seed"]
