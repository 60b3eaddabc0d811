"""Small photos for the tests of what reads images."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def make_photo(
    path: Path, seed: int = 0, size: tuple[int, int] = (40, 30), mode: str = "RGB"
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size).convert(mode).save(path)


def make_folder(root: Path, counts: dict[str, int], first_seed: int = 0) -> Path:
    """Write `{root}/{class}/{number}.jpg`, so many for each class; sizes and pixels differ."""
    seed = first_seed
    for name, count in counts.items():
        for number in range(count):
            make_photo(
                root / name / f"{number:02d}.jpg", seed, size=(30 + seed % 17, 45 - seed % 13)
            )
            seed += 1
    return root


CIFAR10 = [
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
]


def make_cifar(root: Path, images: int) -> Path:
    """Write `{root}/{class}/{number}.png` of CIFAR-10's classes, so many of each, 32×32."""
    for label, name in enumerate(CIFAR10):
        for number in range(images):
            make_photo(root / name / f"{number:02d}.png", images * label + number, size=(32, 32))
    return root


def real_data() -> Path:
    """Folder of real photos, or skip."""
    if not (folder := os.environ.get("KC_REAL_DATA")) or not Path(folder).is_dir():
        pytest.skip("KC_REAL_DATA names no folder of real photos")
    return Path(folder)
