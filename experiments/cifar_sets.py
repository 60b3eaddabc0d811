"""Make the image sets of the findings on CIFAR-10, as links to its files; nothing is copied.

    python -m experiments.cifar_sets data          # data/CIFAR10/{train,test}/CLASS/*.png

- `CIFAR10_random`: every training image stands in a class that was drawn for it, all classes equally
  often; the test images keep theirs. What a net learns of it, it learns by heart.
- `CIFAR10_first5`: the first five classes.
- `CIFAR10_two`: animals and vehicles, two classes of all images.
- `CIFAR10_some`: of each class the first 500 training and 300 test images.

What is there already is made anew.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.command import command
from utils.errors import InputError
from utils.parser import Parser, some_path

VEHICLES = ("airplane", "automobile", "ship", "truck")
GROUPS = ("animal", "vehicle")
CLASSES, SPLITS = 10, {"train": 50_000, "test": 10_000}
SOME = {"train": 500, "test": 300}  # of each class
SEED = 0  # of the random labels


def main(argv: Sequence[str] | None = None) -> None:
    """Check that CIFAR-10 is there and whole, and link the sets beside it."""
    parser = Parser(__doc__, "python -m experiments.cifar_sets data")
    parser.add_argument("data_root", type=some_path, help="folder that holds CIFAR10")
    root = Path(parser.parse_args(argv).data_root)
    images = {split: listed(root / "CIFAR10" / split, count) for split, count in SPLITS.items()}
    for name, link in (
        ("random", random_labels),
        ("first5", first_five),
        ("two", two_groups),
        ("some", some_images),
    ):
        folder = root / f"CIFAR10_{name}"
        shutil.rmtree(folder, ignore_errors=True)
        for split, paths in images.items():
            link(folder / split, paths)
        print(f"{folder}: linked")


def listed(folder: Path, count: int) -> list[Path]:
    """List the images of one split, sorted.

    Raises:
        InputError: it is not the whole of CIFAR-10 as PNG files, a folder a class.
    """
    paths = sorted(folder.glob("*/*.png"))
    classes = {path.parent.name for path in paths}
    if len(paths) != count or len(classes) != CLASSES:
        raise InputError(
            f"{folder} has {len(paths):,} PNG images of {len(classes)} classes, not {count:,} of"
            f" {CLASSES}: take the PNG edition of CIFAR-10, or PrepareData.py CIFAR10"
        )
    return paths


def random_labels(folder: Path, paths: list[Path]) -> None:
    """Link training images into classes drawn at random, equally many into each."""
    if folder.name != "train":
        first_classes(folder, paths, CLASSES)
        return
    names = np.array([path.parent.name for path in paths])
    for path, name in zip(paths, np.random.default_rng(SEED).permutation(names), strict=True):
        link_to(path, folder / name / f"{path.parent.name}_{path.name}")


def first_five(folder: Path, paths: list[Path]) -> None:
    """Link the first five class folders."""
    first_classes(folder, paths, 5)


def first_classes(folder: Path, paths: list[Path], count: int) -> None:
    """Link the first class folders."""
    for source in sorted({path.parent for path in paths})[:count]:
        link_to(source, folder / source.name)


def two_groups(folder: Path, paths: list[Path]) -> None:
    """Link the class folders into those of animals and of vehicles."""
    for source in sorted({path.parent for path in paths}):
        link_to(source, folder / group_of(source.name) / source.name)


def group_of(name: str) -> str:
    """Give the group of a class, one of `GROUPS`."""
    return GROUPS[name in VEHICLES]


def some_images(folder: Path, paths: list[Path]) -> None:
    """Link the first images of each class."""
    for source in sorted({path.parent for path in paths}):
        for path in sorted(source.glob("*.png"))[: SOME[folder.name]]:
            link_to(path, folder / source.name / path.name)


def link_to(source: Path, link: Path) -> None:
    """Make a relative link, so that the whole folder can be moved."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(os.path.relpath(source, link.parent), target_is_directory=source.is_dir())


if __name__ == "__main__":
    command(main)()
