"""The official layouts of small images in miniature:
CIFAR as Python 2 pickled it, STL-10's bytes, TinyImageNet.
"""

import io
import pickle
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.unit.photos import CIFAR10, make_photo

FINE = ["apple", "aquarium_fish", "baby", "bear"]
WNIDS = ["n01443537", "n01629819", "n02094433"]


class _AsPython2(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings and bytes both as the strings of Python 2,
    which name no function as Python 3's bytes do.
    """

    dispatch = pickle._Pickler.dispatch.copy()  # type: ignore[attr-defined]

    def save_text(self, value):
        content = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_text


def python2_pickle(value: Any) -> bytes:
    """Pickle as Python 2 and its NumPy did."""
    buffer = io.BytesIO()
    _AsPython2(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def pixels(count: int, size: int, seed: int) -> np.ndarray:
    """Random uint8 (n, 3, size, size)."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, size, size), dtype=np.uint8)


def make_cifar100(
    root: Path, train: Sequence[int] = (3, 0, 1, 2, 0, 3), test: Sequence[int] = (2, 1, 0, 3)
) -> Path:
    """cifar-100-python: meta, train and test with these labels."""
    root.mkdir(parents=True)
    coarse = {"coarse_label_names": ["fruit", "animals"], "fine_label_names": FINE}
    (root / "meta").write_bytes(python2_pickle(coarse))
    for seed, (split, labels) in enumerate({"train": train, "test": test}.items()):
        content = {
            "filenames": [f"{split}_s_{number:06d}.png" for number in range(len(labels))],
            "batch_label": f"{split} batch 1 of 1",
            "fine_labels": list(labels),
            "coarse_labels": [0] * len(labels),
            "data": pixels(len(labels), 32, seed).reshape(len(labels), 3072),
        }
        (root / split).write_bytes(python2_pickle(content))
    return root


def make_cifar10(root: Path) -> Path:
    """cifar-10-batches-py: batches.meta,
    five training batches of two images and a test batch of three.
    """
    root.mkdir(parents=True)
    (root / "batches.meta").write_bytes(
        python2_pickle({"num_cases_per_batch": 2, "label_names": CIFAR10, "num_vis": 3072})
    )
    batches = {f"data_batch_{n}": [n - 1, 10 - n] for n in range(1, 6)} | {"test_batch": [9, 0, 4]}
    for seed, (name, labels) in enumerate(batches.items()):
        data = pixels(len(labels), 32, seed).reshape(len(labels), 3072)
        content = {
            "batch_label": name,
            "labels": labels,
            "data": data,
            "filenames": [f"{n}.png" for n in labels],
        }
        (root / name).write_bytes(python2_pickle(content))
    return root


def make_stl10(root: Path) -> Path:
    """stl10_binary: labels count from 1, pixels stand column by column."""
    root.mkdir(parents=True)
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    (root / "class_names.txt").write_text("\n".join(names) + "\n")
    for seed, (split, labels) in enumerate({"train": [2, 10, 1, 2], "test": [1, 10]}.items()):
        (root / f"{split}_X.bin").write_bytes(
            pixels(len(labels), 96, seed).transpose(0, 1, 3, 2).tobytes()
        )
        (root / f"{split}_y.bin").write_bytes(bytes(labels))
    return root


def make_tiny_imagenet(root: Path) -> Path:
    """tiny-imagenet-200 of three classes: two training photos each,
    three for validation, one without a label.
    """
    for number, wnid in enumerate(WNIDS):
        for photo in range(2):
            make_photo(
                root / "train" / wnid / "images" / f"{wnid}_{photo}.JPEG",
                10 * number + photo,
                (64, 64),
            )
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t62\t62\n")
        make_photo(root / "val" / "images" / f"val_{number}.JPEG", 50 + number, (64, 64))
    lines = [f"val_{number}.JPEG\t{WNIDS[2 - number]}\t0\t32\t44\t62\n" for number in range(3)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(reversed(WNIDS)) + "\n")
    (root / "words.txt").write_text(f"{WNIDS[0]}\tgoldfish\n")
    make_photo(root / "test" / "images" / "test_0.JPEG", 60, (64, 64))
    return root
