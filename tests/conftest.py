"""What the tests share: a quiet process on one thread, and a small folder of photos."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.accelerator import simulated
from tests.unit.photos import make_photo
from utils.runtime import Runtime

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
IMAGES_PER_CLASS = 8


def pytest_configure():
    """One thread here and in what the tests start,
    so that sums are repeatable; no data set of the developer's own; the simulated accelerator.
    """
    torch.set_num_threads(1)
    if not torch.cuda.is_available():  # a device type of ours would hide CUDA's
        simulated.register()
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("KC_DATA", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """`{train,val}/{blue,green,red}/*.jpg`:
    eight 40×40 photos of each class, mostly of its colour.
    """
    root = tmp_path_factory.mktemp("photos")
    seed = 0
    for split in ("train", "val"):
        for name, colour in COLOURS.items():
            for number in range(IMAGES_PER_CLASS):
                path = root / split / name / f"{number:02d}.jpg"
                make_photo(path, seed, size=(40, 40))
                with Image.open(path) as photo:
                    tinted = Image.blend(photo.copy(), Image.new("RGB", photo.size, colour), 0.4)
                tinted.save(path, quality=95)
                seed += 1
    return root


@pytest.fixture
def cpu() -> Runtime:
    """This process alone, on the CPU in float32."""
    return Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)


@pytest.fixture(scope="session")
def fitted(photos, tmp_path_factory) -> Path:
    """A whole run on `photos`, known as digits:
    two ResNet-18 of 32×32 pixels, Trans-Nets A → B and B → A.
    """
    import ConvOutput
    import Training
    import Training_TransNet

    out = tmp_path_factory.mktemp("fitted")
    for split, folder in (("train", "train"), ("val", "test")):
        link = out / "data" / "digits" / folder
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(photos / split)
    common = ["--data_root", str(out / "data"), "--out", str(out)]
    for seed in ("0", "5"):
        words = (
            f"--dataset digits --arch resnet18 --image_size 32 --epochs 1 -b 12 --seed {seed}"
            f" --suffix sd{seed}"
        )
        Training.main([*words.split(), *common])
    nets = [
        str(out / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar")
        for seed in (0, 5)
    ]
    ConvOutput.main(["--resume1", nets[0], "--resume2", nets[1], "--conv_layer", "2", *common])
    features = str(out / "convOuts/digits_resnet18/digits_L2")
    for direction in ("--images", "--reverse --suffix reverse"):
        words = f"--alpha [0.1,0.1] --lr 0.001 --epochs 2 -b 12 --val_epoch 1 {direction}"
        Training_TransNet.main(["--convOut_path", features, *words.split(), "--out", str(out)])
    return out
