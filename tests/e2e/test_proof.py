"""A net with layers that nobody foresaw, through ConvOutput.py:
stored is what a hook sees, or nothing.
"""

import sys

import pytest
import torch

import ConvOutput
import Training
from models import cut_net
from models.classifiers import load_classifier
from tests.e2e.road import data, run
from tests.mistakes import refused
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.pixels import normalise

pytestmark = pytest.mark.e2e
ARCH = "foreign.nets:unforeseen"
CODE = '''
"""Layers that look like a convolution and a BatchNorm, and do more."""

import torch
from torch import nn
from torch.nn import functional


class NormAct(nn.BatchNorm2d):
    def forward(self, x):
        return functional.silu(super().forward(x))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm1 = NormAct(8)
        self.conv2 = nn.utils.weight_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm2 = nn.BatchNorm2d(8)
        self.conv3 = nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, padding=1))
        self.norm3 = nn.BatchNorm2d(8)
        self.norm2.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
        self.conv3.register_forward_hook(lambda module, inputs, output: output + 1)
        self.fc = nn.Linear(8, num_classes)

    def forward(self, x):
        x = functional.relu(self.norm2(self.conv2(self.norm1(self.conv1(x)))))
        x = functional.relu(self.norm3(self.conv3(x)))
        return self.fc(x.mean((2, 3)))


def unforeseen(num_classes):
    return Net(num_classes)
'''


@pytest.fixture
def trained(tmp_path, photos, monkeypatch):
    """A net of the foreign package, trained for an epoch: the run's folder and the checkpoint."""
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/nets.py").write_text(CODE)
    (tmp_path / "foreign/__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    out = tmp_path / "out"
    run(
        Training,
        f"--arch {ARCH} --image_size 16 --epochs 1 -b 12 --lr 0.1",
        *data(photos),
        "--out",
        out,
    )
    yield out, out / "model_checkpoints/checkpoint_folder_foreign.nets.unforeseen.pth.tar"
    for name in ("foreign", "foreign.nets"):
        sys.modules.pop(name, None)


def store(trained, photos, layers):
    out, net = trained
    words = ("--resume1", net, "--resume2", net, *data(photos), "--out", out)
    run(ConvOutput, f"--arch {ARCH} --layers {layers} --t_or_v val --topk [1]", *words)


@torch.no_grad()
def test_features_and_accuracy_are_those_of_the_net_itself(trained, photos, capsys):
    store(trained, photos, "norm1,norm2,norm3")
    assert "plain form" not in capsys.readouterr().out
    out, net = trained
    model = load_classifier(net, ARCH)
    images = load_images("folder", "val", data_root=".", path=photos / "val", image_size=16)
    pixels, targets, _ = images.__getitems__(range(len(images)))
    for layer in ("norm1", "norm2", "norm3"):
        seen = []
        handle = model.get_submodule(layer).register_forward_hook(
            lambda *args: seen.append(args[2].clone())  # noqa: B023
        )
        logits = model(normalise(pixels, *images.normalisation))
        handle.remove()
        stored = open_features(out / f"convOuts/folder_foreign.nets.unforeseen/folder_L{layer}/val")
        feature = stored.__getitems__(range(len(images)))[0]
        torch.testing.assert_close(feature, seen[0], rtol=0, atol=1e-5 * seen[0].abs().max().item())
        assert torch.equal(stored.hits_a[:, 0].bool(), logits.argmax(1) == targets)


def test_a_net_that_is_cut_into_something_else_is_refused_before_anything_is_written(
    trained, photos, monkeypatch, capsys
):
    original = cut_net.tap

    def lossy(*words, **options):
        tapped = original(*words, **options)
        node = [node for node in tapped.graph.nodes if "relu" in node.name][-1]
        node.replace_all_uses_with(node.args[0])
        tapped.graph.erase_node(node)
        tapped.recompile()
        return tapped

    monkeypatch.setattr(cut_net, "tap", lossy)
    with refused("checkpoint_folder_foreign.nets.unforeseen.pth.tar", "norm1", kind=SystemExit):
        store(trained, photos, "norm1")
    assert not (trained[0] / "convOuts").exists()
