"""What the tests share: a quiet process on one thread, and a small folder of photos."""

import os
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.unit.photos import make_photo
from utils.runtime import Runtime

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
IMAGES_PER_CLASS = 8


def pytest_configure():
    """One thread here and in what the tests start, so that sums are repeatable; no data set of the developer's own."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    for name in ("KC_DATA", "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """`{train,val}/{blue,green,red}/*.jpg`: eight 40×40 photos of each class, mostly of its colour."""
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
