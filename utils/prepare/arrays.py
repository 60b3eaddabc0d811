"""Data sets that come as arrays of pixels: CIFAR-10, CIFAR-100, STL-10, scikit-learn's digits."""

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import InputError
from utils.later import sklearn
from utils.prepare.cropping import Listing
from utils.prepare.restricted_pickle import load_arrays
from utils.prepare.unpacking import find
from utils.prepare.voc import lines_of
from utils.prepare.writing import png

# What each data set's source must hold, and the official archive of it.
CIFAR100_PARTS = {"meta": "cifar-100-python.tar.gz"}
CIFAR10_PARTS = {"batches.meta": "cifar-10-python.tar.gz"}
STL10_PARTS = {"train_X.bin": "stl10_binary.tar.gz"}
CIFAR_BYTES = 3 * 32 * 32
STL_SHAPE = (3, 96, 96)
Images = tuple[np.ndarray, Sequence[int]]  # uint8 (n, H, W, 3) and the labels, 0 … classes − 1


def read_cifar100(folders: list[Path], limit: int | None = None) -> Listing:
    """CIFAR-100 in the official python layout: `train`, `test` and `meta`, with the fine labels.

    Args:
        folders: where the files are.
        limit: only the first so many classes that there are.

    Raises:
        InputError: a file is missing, damaged, of another layout, or asks for code.
    """
    meta = find(folders, "meta", CIFAR100_PARTS["meta"])
    names = _class_names(load_arrays(meta).get("fine_label_names"), meta)
    splits = {
        split: _cifar_file(meta.with_name(split), "fine_labels", len(names))
        for split in ("train", "test")
    }
    return _listing(names, splits, limit)


def read_cifar10(folders: list[Path], limit: int | None = None) -> Listing:
    """CIFAR-10 in the official python layout: `data_batch_1` … `_5`, `test_batch`, `batches.meta`.

    Args:
        folders: where the files are.
        limit: only the first so many classes that there are.

    Raises:
        InputError: a file is missing, damaged, of another layout, or asks for code.
    """
    meta = find(folders, "batches.meta", CIFAR10_PARTS["batches.meta"])
    names = _class_names(load_arrays(meta).get("label_names"), meta)
    batches = [
        _cifar_file(meta.with_name(f"data_batch_{n}"), "labels", len(names)) for n in range(1, 6)
    ]
    images, labels = zip(*batches)
    # The five batches in their order: file numbers then count through the archive.
    train = np.concatenate(images), [label for of_batch in labels for label in of_batch]
    return _listing(
        names,
        {"train": train, "test": _cifar_file(meta.with_name("test_batch"), "labels", 10)},
        limit,
    )


def read_stl10(folders: list[Path], limit: int | None = None) -> Listing:
    """STL-10 in the official binary layout: `{train,test}_{X,y}.bin` and `class_names.txt`.

    An image is 3 × 96 × 96 bytes, each channel column by column; labels count from 1.

    Args:
        folders: where the files are.
        limit: only the first so many classes that there are.

    Raises:
        InputError: a file is missing, or its length or a label does not fit.
    """
    root = find(folders, "train_X.bin", STL10_PARTS["train_X.bin"]).parent
    names = _class_names(lines_of(root / "class_names.txt"), root / "class_names.txt")
    splits: dict[str, Images] = {}
    for split in ("train", "test"):
        pixels, labels = (_bytes_of(root / f"{split}_{kind}.bin") for kind in "Xy")
        if pixels.size != labels.size * np.prod(STL_SHAPE):
            raise InputError(
                f"{root / f'{split}_X.bin'} should hold {labels.size:,} images of 3 × 96 × 96"
                f" bytes, as {split}_y.bin has labels, but holds {pixels.size:,} bytes; download it"
                " again"
            )
        # (n, 3, column, row) → (n, row, column, 3)
        images = pixels.reshape(-1, *STL_SHAPE).transpose(0, 3, 2, 1)
        ids = labels.astype(np.int64) - 1
        splits[split] = images, _checked_labels(ids.tolist(), len(names), root / f"{split}_y.bin")
    return _listing(names, splits, limit)


def read_digits(limit: int | None = None) -> Listing:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels: of each class every fifth in test.

    Args:
        limit: only the first so many digits.
    """
    digits = sklearn.datasets.load_digits()
    grey = (digits.images * 255 / 16).round().astype(np.uint8)  # 0 to 16 levels become 0 to 255
    listing = Listing([str(digit) for digit in range(10)][:limit])
    seen: Counter[str] = Counter()
    for number, (pixels, digit) in enumerate(zip(grey, map(str, digits.target.tolist()))):
        split = "test" if seen[digit] % 5 == 4 else "train"
        seen[digit] += 1
        if digit in listing.classes:
            listing.files[f"{split}/{digit}/{number:04d}.png"] = functools.partial(png, pixels)
    return listing


def _listing(names: list[str], splits: dict[str, Images], limit: int | None) -> Listing:
    """List the images as `{split}/{label:02d}_{name}/{number:05d}.png`.

    Class folders sort by official label. The number counts over all classes of a split, so that
    sorted file names give the archive's order.

    Args:
        names: of all classes, by label.
        splits: "train" and "test".
        limit: only the first so many classes that have images.
    """
    # A part of an archive may have no images of some classes.
    present = sorted({label for _, labels in splits.values() for label in labels})[:limit]
    folders = {label: f"{label:02d}_{names[label]}" for label in present}
    listing = Listing(list(folders.values()))
    if limit is None and len(present) < len(names):
        listing.notes.append(
            f"{len(names) - len(present)} of the {len(names)} classes have no images"
        )
    for split, (images, labels) in splits.items():
        for number, label in enumerate(labels):
            if label in folders:
                listing.files[f"{split}/{folders[label]}/{number:05d}.png"] = functools.partial(
                    png, images[number]
                )
    return listing


def _cifar_file(path: Path, key: str, classes: int) -> Images:
    """Read one pickled file of CIFAR: `data` uint8 (N, 3072) and N labels under `key`.

    An image is its red, then its green, then its blue values, each row by row.

    Returns:
        Images (N, 32, 32, 3), and the labels.

    Raises:
        InputError: the file is missing, damaged or of another layout.
    """
    content = load_arrays(path)
    data, labels = content.get("data"), content.get(key)
    array = data if isinstance(data, np.ndarray) else np.empty(0)
    if array.dtype != np.uint8 or array.shape[1:] != (CIFAR_BYTES,):
        given = f"{array.dtype} {array.shape}" if data is array else "none"
        raise InputError(
            f"{path} should have an array 'data' uint8 (N, {CIFAR_BYTES}), but has {given}"
        )
    if not isinstance(labels, list) or len(labels) != len(array):
        given = f"{len(labels)} of them" if isinstance(labels, list) else "none"
        raise InputError(
            f"{path} should have a list '{key}' of {len(array)} labels, but has {given}"
        )
    images = array.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, 3, H, W) → (N, H, W, 3)
    return images, _checked_labels(labels, classes, path)


def _checked_labels(labels: list[Any], classes: int, path: Path) -> list[int]:
    """Return labels that are all in 0 … classes − 1.

    Raises:
        InputError: one is not.
    """
    for number, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise InputError(
                f"{path} has the label {label!r} for image {number}, but there are {classes}"
                f" classes (0 … {classes - 1}); download it again"
            )
    return labels


def _class_names(names: Any, path: Path) -> list[str]:
    """Read the class names of an archive, which become names of folders.

    Raises:
        InputError: there are none, or one has other characters than letters, digits, _ and -.
    """
    entries = names if isinstance(names, list) else []
    words = [name.decode("latin1") if isinstance(name, bytes) else name for name in entries]
    if not words or not all(
        isinstance(word, str) and re.fullmatch(r"[\w-]+", word, re.ASCII) for word in words
    ):
        raise InputError(
            f"{path} should list the names of the classes, plain words, but has {str(words)[:60]}"
        )
    return words


def _bytes_of(path: Path) -> np.ndarray:
    """Read all bytes of a file, uint8 (n,).

    Raises:
        InputError: it cannot be read.
    """
    try:
        return np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); take the whole official archive"
        ) from None
