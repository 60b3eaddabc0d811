"""Accuracies of planted nets, and what they have more than the same nets trained alone."""

import csv

import numpy as np
import pytest
import torch

from experiments import accuracies
from models.classifiers import build, classifier_record
from tests.mistakes import refused
from tests.unit.photos import make_folder
from utils import checkpoint

DATA = {"dataset": "CIFAR100", "classes": ["ape", "bat"], "image_size": 32, "normalisation": None}


def save(run, method, seed, answer, **changes):
    """A net that gives every image the same class."""
    net = build("resnet8", 2)
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.tensor([1.0, 0.0] if answer == 0 else [0.0, 1.0]))
    state = {
        "model": classifier_record("resnet8", 2),
        "state_dict": net.state_dict(),
        "data": DATA | changes,
    }
    checkpoint.save(run / "results/accuracy" / method / "small" / f"sd{seed}.pth.tar", state)


@pytest.fixture
def data_root(tmp_path):
    """Twelve test images of the first class and four of the second."""
    for split in ("train", "test"):
        make_folder(tmp_path / "CIFAR100" / split, {"ape": 12, "bat": 4})
    return tmp_path


def test_the_accuracies_are_of_the_test_images_and_differences_of_the_same_seeds(
    data_root, tmp_path, capsys
):
    for seed in (0, 1):
        save(tmp_path, "alone", seed, 1)
        save(tmp_path, "dcm", seed, 0)
    save(tmp_path, "dcm", 7, 1)  # has no partner
    save(tmp_path, "teacher", 1, 0)
    options = [str(tmp_path), "--data_root", str(data_root), "--csv", str(tmp_path / "a.csv")]
    teacher, alone, dcm = accuracies.main([*options, "--markdown", str(tmp_path / "a.md")])
    assert (alone.net, alone.method, alone.seeds, alone.images, alone.gain) == (
        "small",
        "alone",
        2,
        16,
        None,
    )
    assert (teacher.method, teacher.accuracy.value, teacher.gain) == ("teacher", 75, None)
    assert alone.accuracy.value == 25 and dcm.accuracy.value == pytest.approx((75 + 75 + 25) / 3)
    assert dcm.gain.value == 50 and dcm.gain.low < 50 < dcm.gain.high
    assert (dcm.seeds, dcm.accuracy.resampled, dcm.gain.resampled) == (
        3,
        ("images", "fits"),
        ("images", "fits"),
    )
    text = (tmp_path / "a.md").read_text()
    assert (
        text in capsys.readouterr().out
        and "| small | alone | 2 | 25.0 [" in text
        and "16 test images" in text
    )
    rows = list(csv.reader((tmp_path / "a.csv").open()))
    assert rows[2][:5] == ["small", "alone", "2", "16", "25.0"] and rows[2][7:] == ["", "", ""]
    assert float(rows[3][7]) == 50


def test_one_seed_is_held_fixed(data_root, tmp_path):
    save(tmp_path, "alone", 0, 1)
    save(tmp_path, "kd", 0, 1)
    alone, kd = accuracies.rows_of(accuracies.read_hits(tmp_path, str(data_root)))
    assert alone.accuracy.resampled == ("images",)
    assert (kd.gain.low, kd.gain.value, kd.gain.high) == (0, 0, 0)
    assert accuracies.judged(kd.gain) == "+0.0 [+0.0, +0.0]: does not show"


def test_nets_of_other_classes_and_runs_without_nets_are_refused(data_root, tmp_path, capsys):
    save(tmp_path, "alone", 0, 1, classes=["ape", "cow"])
    for words, facts in (
        ([tmp_path], ("sd0.pth.tar", "1", "bat", "cow")),
        ([tmp_path / "x"], (tmp_path / "x", "experiments/small_distil.sh")),
    ):
        with refused("accuracies.py", *facts, kind=SystemExit):
            accuracies.main([*map(str, words), "--data_root", str(data_root)])


def test_hits_are_in_the_order_of_the_images(data_root, tmp_path):
    save(tmp_path, "alone", 0, 1)
    hits = accuracies.read_hits(tmp_path, str(data_root))["small"]["alone"]["sd0.pth.tar"]
    np.testing.assert_array_equal(hits, [False] * 12 + [True] * 4)
