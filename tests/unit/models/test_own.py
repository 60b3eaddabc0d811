import sys

import pytest
import torch

from models.classifiers import build, classifier_record, load_classifier, read_classifier
from models.own import build_foreign, is_own, named_arch
from tests.mistakes import refused
from utils import checkpoint

CODE = """
import pathlib
import torch
from torch import nn

pathlib.Path(__file__).with_name("was_run").touch()


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.fc = nn.Linear(8, num_classes)  # the layer that gives the logits is not the last one here
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images):
        return self.fc(self.conv(images).relu().mean((2, 3)))


def small(num_classes):
    return Small(num_classes)


def number(num_classes):
    return num_classes


constant = 3
"""
ARCH = "mine.nets:small"


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A package of the user's own on PYTHONPATH; its folder."""
    package = tmp_path / "here" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}/nowhere:{package.parent}")
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


@pytest.fixture
def saved(mine, tmp_path):
    """A checkpoint of such a net; its code has not been run since."""
    torch.manual_seed(0)
    model = build(ARCH, 4)
    path = tmp_path / "net.pth.tar"
    checkpoint.save(
        path, {"arch": ARCH, "model": classifier_record(ARCH, 4), "state_dict": model.state_dict()}
    )
    for name in ("mine", "mine.nets"):
        del sys.modules[name]
    (mine / "was_run").unlink()
    return path, model


def test_a_factory_on_pythonpath_is_called(mine):
    model = build(ARCH, 5)
    assert (
        model(torch.zeros(2, 3, 8, 8)).shape == (2, 5) and is_own(ARCH) and not is_own("resnet18")
    )


def test_a_checkpoint_alone_runs_no_code(saved, mine):
    path, model = saved
    for named in (None, "mine.nets:number"):
        with refused("--arch"):
            load_classifier(path, named)
    assert not (mine / "was_run").exists()
    loaded, rest = read_classifier(path, ARCH)
    assert (mine / "was_run").exists()
    assert torch.equal(loaded.fc.weight, model.fc.weight) and rest["model"]["num_classes"] == 4


def test_only_the_named_code_may_run():
    assert named_arch("resnet18", None, "net.pth.tar") == "resnet18"
    assert named_arch("timm:test_vit", None, "net.pth.tar") == "timm:test_vit"
    assert named_arch(ARCH, ARCH, "net.pth.tar") == ARCH
    with refused("net.pth.tar", f"--arch {ARCH}"):
        named_arch(ARCH, None, "net.pth.tar")


def test_a_file_that_was_moved_is_built_where_the_option_says():
    assert named_arch("zoo/nets.py:small", "../nets.py:small", "net.pth.tar") == "../nets.py:small"
    for other in ("zoo/nets.py:large", "zoo/layers.py:small", None):
        with refused("net.pth.tar", "--arch zoo/nets.py:small"):
            named_arch("zoo/nets.py:small", other, "net.pth.tar")


@pytest.mark.parametrize(
    ("arch", "facts"),
    [
        ("mine.nets:large", ("'large'", "small", "number")),
        ("mine.nets:constant", ("'constant'", "small", "number")),
        ("mine.layers:small", ("mine.layers", "mine/__init__.py")),
        ("yours.nets:small", ("'yours'", "PYTHONPATH", "--arch")),
        (":small", ("''", "PYTHONPATH", "--arch")),
        ("mine.nets:number", ("int", "torch.nn.Module")),
    ],
)
def test_what_is_not_there_is_named(mine, arch, facts):
    with refused(arch, *facts):
        build_foreign(arch, 3)


def test_an_installed_package_may_be_named(mine):
    model = build("torchvision.models:resnet18", 3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_another_package_of_that_name_is_not_taken(mine):
    utils = mine.parent / "utils"
    utils.mkdir()
    (utils / "__init__.py").write_text("def small(num_classes): ...")
    with refused("utils", "--arch", "utils.py:factory"):
        build_foreign("utils:small", 3)


def test_there_are_no_imagenet_weights_of_own_nets(mine):
    with refused("mine.nets:small", "--weights"):
        build(ARCH, 3, pretrained=True)
