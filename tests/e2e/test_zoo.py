"""Nets that others trained, through --arch file.py:factory:
each is as right as a plain forward pass finds it.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import Training
from tests.e2e import zoo_nets
from tests.e2e.road import run

pytestmark = pytest.mark.e2e
FACTORIES = Path(__file__).with_name("zoo_nets.py")
NETS = {f"tiny10/seed{seed}.pt": "tiny10" for seed in range(10)}
NETS |= {
    f"resnet_cifar/resnet{name}.th": f"resnet{name.partition('-')[0]}"
    for name in ("20-12fca82f", "32-d509ac18", "44-014dd654", "56-4bfd9763")
}
CONSTANTS = {
    "tiny10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "resnet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
IMAGES_OF_A_CLASS = 30


@pytest.fixture(scope="module")
def real():
    folder = Path(os.environ.get("KC_REAL_DATA", ""))
    if not (folder / "zoo").is_dir():
        pytest.skip("KC_REAL_DATA names no folder with trained nets")
    return folder


@pytest.fixture(scope="module")
def images(real, tmp_path_factory):
    """A few hundred test images, every tenth of each class: the folder, the pixels, the classes."""
    folder, pixels, targets = tmp_path_factory.mktemp("images"), [], []
    for label, source in enumerate(
        sorted(path for path in (real / "CIFAR10_mini/test").iterdir() if path.is_dir())
    ):
        (folder / source.name).mkdir()
        for file in sorted(source.iterdir())[::10][:IMAGES_OF_A_CLASS]:
            shutil.copy(file, folder / source.name)
            pixels.append(np.asarray(Image.open(file).convert("RGB")))
            targets.append(label)
    return (
        folder,
        torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255,
        torch.tensor(targets),
    )


@torch.no_grad()
def plain_accuracy_percent(path, factory, images, targets):
    """Load the weights as their author says and ask the net,
    with nothing of this project but the factory.
    """
    stored = torch.load(path, map_location="cpu", weights_only=True)
    state = {
        key.removeprefix("module."): value
        for key, value in stored.get("state_dict", stored).items()
    }
    net = getattr(zoo_nets, factory)().eval()
    net.load_state_dict(state)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in CONSTANTS[factory[:6]])
    return 100 * (net((images - mean) / std).argmax(1) == targets).double().mean().item()


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_as_right_as_its_plain_forward_pass(name, real, images, capsys):
    folder, pixels, targets = images
    path, factory = real / "zoo" / name, NETS[name]
    expected = plain_accuracy_percent(path, factory, pixels, targets)
    constants = ",".join(str(value) for values in CONSTANTS[factory[:6]] for value in values)
    line = (
        "--evaluate --dataset folder --image_size 32 --cache_images off -j 0 --normalisation"
        f" {constants}"
    )
    run(Training, line, "--resume", path, "--arch", f"{FACTORIES}:{factory}", "--val_path", folder)
    measured = float(re.search(r"val_top1_prec ([\d.]+)", capsys.readouterr().out)[1])
    assert measured == pytest.approx(expected, abs=0.01) and expected > 75
