"""--arch package.module:factory: a network of the user's own through the steps."""

import sys

import pytest

import ConvOutput
import Training
from tests.e2e.road import data, run
from tests.unit.models.test_own import ARCH, CODE
from utils.features.cache import open_features

pytestmark = pytest.mark.e2e
NET = "--image_size 16 --epochs 1 --batch_size 12"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/nets.py").write_text(CODE)
    (tmp_path / "mine/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("mine", "mine.nets"):
        sys.modules.pop(name, None)


def test_a_net_of_ones_own_is_trained_and_its_features_are_stored(mine, photos):
    out = mine / "out"
    run(Training, f"{NET} --arch {ARCH} --suffix s", *data(photos), "--out", out)
    net = out / "model_checkpoints/checkpoint_folder_mine.nets.small_s.pth.tar"
    features = ("--resume1", net, "--resume2", net, *data(photos), "--out", out)
    with pytest.raises(SystemExit, match=rf"holds a {ARCH}, .* add --arch {ARCH}"):
        run(ConvOutput, "--layer conv --t_or_v val", *features)
    run(ConvOutput, f"--layer conv --t_or_v val --arch {ARCH}", *features)
    stored = open_features(out / "convOuts/folder_mine.nets.small/folder_Lconv/val")
    assert stored.shape_a == (8, 16, 16) and stored.provenance.a.arch == ARCH


def test_a_checkpoint_does_not_name_the_code_of_a_resumed_run(mine, photos):
    out = mine / "out"
    run(Training, f"{NET} --arch {ARCH} --suffix s", *data(photos), "--out", out)
    net = out / "model_checkpoints/checkpoint_folder_mine.nets.small_s.pth.tar"
    for name in ("mine", "mine.nets"):
        del sys.modules[name]
    (mine / "mine/was_run").unlink()
    with pytest.raises(SystemExit, match=f"add --arch {ARCH}"):
        run(Training, "-e", "--resume", net, *data(photos), "--out", out)
    assert not (mine / "mine/was_run").exists()
    run(Training, f"-e --arch {ARCH}", "--resume", net, *data(photos), "--out", out)
    assert (mine / "mine/was_run").exists()
