"""The file of decoded photos: a memory-mapped array, and a record of the images in it."""

import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import sums
from utils.data.contents import read_contents
from utils.data.datasets import printable
from utils.data.images import ImageData
from utils.data.storage import TensorStore
from utils.errors import InputError
from utils.files import in_words, read_json, replacing, reserve, write_json

FORMAT = 3  # of the record


def open_image_file(
    path: Path, data: ImageData, fill: Callable[[np.ndarray], None], say: Callable[[str], object]
) -> TensorStore:
    """Map the file of decoded images; build it first if it is missing, incomplete or of others.

    A .json record of the same name is written last. It has one hash over name, label and content
    of all images, and the way they are decoded. Of processes that start together one builds, and
    the others wait.

    Args:
        path: the .npy file.
        data: the images.
        fill: decodes all of them into an array, uint8 (n, 3, S, S).
        say: takes a sentence on why the file is built.

    Raises:
        InputError: the file cannot be written, or `fill` cannot read images.
    """
    with _locked(path):
        if complaint := _complaint(path, data):
            say(complaint)
            _build(path, data, fill)
        return TensorStore.mapped(path)


def _build(path: Path, data: ImageData, fill: Callable[[np.ndarray], None]) -> None:
    """Write the images, and then the record that declares them complete."""
    # Hash before decoding: the next run then notices an image that changes meanwhile.
    record = _record(data, path.parent)
    _record_path(path).unlink(missing_ok=True)
    # Remove what killed builds left. Nobody else builds: this process has the lock.
    for orphan in path.parent.glob(f".{path.name}.*"):
        orphan.unlink()
    try:
        with replacing(path) as temporary:
            array = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=_shape(data)
            )
            reserve(temporary)
            fill(array)
            array.flush()
        write_json(
            _record_path(path),
            sums.signed({**record, sums.SUMS: sums.sums_of(path.parent, [path.name])}),
        )
    except OSError as error:
        raise InputError(
            f"{printable(path)} cannot be written ({error.strerror or error}; it takes"
            f" {in_words(math.prod(_shape(data)))}); free some space or use --cache_images off"
        ) from None


def _complaint(path: Path, data: ImageData) -> str | None:
    """Say why the file must be built; None where it is complete and of these images."""
    if not path.is_file():
        return f"decoding the {data.split} images of {data.name} once, into {printable(path)}"
    try:
        stored = read_json(_record_path(path))
        pixels = TensorStore.mapped(path).values
    except InputError:
        return f"{printable(path)} is incomplete; decoding the images again"
    record = _record(data, path.parent)
    if not isinstance(stored, dict) or stored.get("format") != record["format"]:
        return f"{printable(path)} is of another version of the suite; decoding the images again"
    if {name: stored.get(name) for name in record} != record:
        return (
            f"the images in {printable(data.root)} changed since {printable(path)} was made;"
            " decoding them again"
        )
    is_of_shape = pixels.shape == _shape(data) and pixels.dtype == torch.uint8
    if not is_of_shape or not _is_as_written(path, stored):
        return (
            f"{printable(path)} has other contents than its record says; decoding the images again"
        )
    return None


def _is_as_written(path: Path, record: dict[str, Any]) -> bool:
    try:
        sums.check(_record_path(path), record, "it is made anew")
    except InputError:
        return False
    return True


def _record(data: ImageData, folder: Path) -> dict[str, Any]:
    """Give the record of the pixels: the images as one hash, and the way they are decoded."""
    return {
        "format": FORMAT,
        "images": len(data),
        "root": printable(data.root),
        "decoding": data.decoding_record,
        "files_sha256": read_contents(data, cache_dir=folder).sha256,
    }


def _shape(data: ImageData) -> tuple[int, int, int, int]:
    """The shape of the array, (n, 3, S, S)."""
    return len(data), 3, data.image_size, data.image_size


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other processes waiting meanwhile; the operating system frees a killed one's lock."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise InputError(
            f"the image cache {printable(path)} cannot be written ({error.strerror}); use"
            " --cache_images off"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
