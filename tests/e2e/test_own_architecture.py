"""--arch package.module:factory: a network of the user's own through the steps."""

import os
import re
import subprocess
import sys

import pytest
import torch

import ConvOutput
import Training
from tests.e2e.road import ROOT, data, run
from tests.mistakes import check_some_line, refused
from tests.unit.models.test_own import ARCH, CODE
from utils import checkpoint
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
    with refused(net, f"--arch {ARCH}", kind=SystemExit):
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
    with refused(net, f"--arch {ARCH}", kind=SystemExit):
        run(Training, "-e", "--resume", net, *data(photos), "--out", out)
    assert not (mine / "mine/was_run").exists()
    run(Training, f"-e --arch {ARCH}", "--resume", net, *data(photos), "--out", out)
    assert (mine / "mine/was_run").exists()


REPOSITORY = """
import torch
from models.layers import width
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Conv2d(3, width, 3, padding=1)
        self.fc, self.auxiliary = nn.Linear(width, 10), nn.Linear(width, 10)

    def forward(self, x):
        feature = self.module(x).relu().mean((2, 3))
        return (self.fc(feature), self.auxiliary(feature)) if self.training else self.fc(feature)


def net():
    return Net()
"""


def test_a_file_of_somebodys_repository_goes_through_the_steps(tmp_path, photos, capsys):
    """Its folder is called `models` as ours is,
    it takes no number of classes and gives two outputs in training.
    """
    repository, out = tmp_path / "theirs", tmp_path / "out"
    (repository / "models").mkdir(parents=True)
    (repository / "models/nets.py").write_text(REPOSITORY)
    (repository / "models/layers.py").write_text("width = 8\n")
    arch = f"{repository}/models/nets.py:net"
    nets = []
    for seed in (0, 1):
        run(
            Training,
            f"{NET} --seed {seed} --suffix s{seed}",
            "--arch",
            arch,
            *data(photos),
            "--out",
            out,
        )
        nets.append(out / f"model_checkpoints/checkpoint_folder_nets.net_s{seed}.pth.tar")
    printed = capsys.readouterr().out
    check_some_line(printed, "fc", "10 →")
    check_some_line(printed, "training", "entry 0")
    assert f"--resume1 {nets[0]} --resume2 {nets[1]} --arch {arch}" in printed

    moved = repository.rename(tmp_path / "moved")
    arch = f"{moved}/models/nets.py:net"
    again = "--image_size 16 --epochs 2 --batch_size 12 --resume auto --suffix s0"
    run(Training, again, "--arch", arch, *data(photos), "--out", out)
    assert checkpoint.load(nets[0])["epoch"] == 2
    features = (
        "--resume1",
        nets[0],
        "--resume2",
        nets[1],
        *data(photos),
        "--out",
        out,
        "--arch",
        arch,
    )
    run(ConvOutput, "--layer module --t_or_v val", *features)
    stored = open_features(out / "convOuts/folder_nets.net/folder_Lmodule/val")
    assert stored.shape_a == (8, 16, 16)
    with refused(nets[0], f"--arch {arch}", kind=SystemExit):
        run(ConvOutput, "--layer module --t_or_v val --restart", *features[:-2])


def test_weights_are_exported_for_other_programs(mine, photos, capsys):
    out, file = mine / "out", mine / "net.safetensors"
    run(Training, f"{NET} --arch {ARCH} --suffix s", *data(photos), "--out", out, "--export", file)
    accuracy = re.findall(r"val_top1_prec ([\d.]+)", capsys.readouterr().out)[-1]
    run(Training, f"-e --arch {ARCH}", "--resume", file, *data(photos), "--out", out)
    assert f"val_top1_prec {accuracy}" in capsys.readouterr().out


def test_two_processes_train_a_net_whose_parameters_are_not_all_used(tmp_path, photos):
    """As one process does, to rounding: each step's gradient is that of the whole batch."""
    (tmp_path / "layers.py").write_text("width = 8\n")
    (tmp_path / "nets.py").write_text(REPOSITORY.replace("models.layers", "layers"))
    line = [
        str(ROOT / "Training.py"),
        *f"{NET} -j 0 --lr 0.1 --arch {tmp_path}/nets.py:net".split(),
    ]
    line += [*map(str, data(photos)), "--out"]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    weights = []
    for name, launcher in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [sys.executable, *launcher, *line, str(tmp_path / name)],
            env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        path = tmp_path / name / "model_checkpoints/checkpoint_folder_nets.net.pth.tar"
        weights.append(checkpoint.load(path)["state_dict"])
    check_some_line(done.stdout, "auxiliary.weight", "auxiliary.bias")
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
