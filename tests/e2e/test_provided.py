"""Two provided checkpoints through Compare.py, as the README says."""

import json
from pathlib import Path

import pytest

import Compare
from experiments import provided
from tests.e2e.road import run
from tests.unit.photos import CIFAR10, make_cifar

pytestmark = pytest.mark.e2e
NETS = Path(provided.__file__).parents[1] / "model_checkpoints" / provided.PLACE
IMAGES = 4  # of a class


def test_two_provided_nets_are_compared_by_one_command(tmp_path):
    images = make_cifar(tmp_path / "images", IMAGES)
    nets = [NETS / f"{name}.pth.tar" for name in ("half_A", "half_B")]
    line = "-j 0 --bootstrap 100 --side 4"
    run(Compare, line, *nets, "--images", images, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out/compare.json").read_text())
    assert [net["name"] for net in report["nets"]] == ["half_A", "half_B"]
    assert report["images"]["held_out"] == IMAGES * len(CIFAR10) // 2
    assert [pair["a"]["stage"] for pair in report["pairs"]] == [1, 2, 3]
    assert report["weights"] == "different"
    assert (tmp_path / "out/page.html").exists()
