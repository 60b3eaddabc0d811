"""The file that keeps decoded photos: a memory-mapped array,
and a record of what it was made of.
"""

import contextlib
import fcntl
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.data.contents import read_contents
from utils.data.datasets import printable
from utils.data.images import ImageData
from utils.data.storage import TensorStore
from utils.errors import InputError
from utils.files import in_words, read_json, replacing, write_json

FORMAT = 3  # of the record


def open_image_file(
    path: Path, data: ImageData, fill: Callable[[np.ndarray], None], say: Callable[[str], object]
) -> TensorStore:
    """Map the .npy file at `path`; build it first where it is missing,
    incomplete or of other images.

    Beside it lies a .json record, written last: name, label and content of every image as one hash,
    and how they are decoded. Of processes that start together one builds and the others wait.

    Args:
        path: the .npy file.
        data: the images.
        fill: decodes all of them into an array (n, 3, S, S) uint8.
        say: is told why the file is built.

    Raises:
        InputError: the file cannot be written, or what `fill` raises.
    """
    with _locked(path):
        if complaint := _complaint(path, data):
            say(complaint)
            _build(path, data, fill)
        return TensorStore.mapped(path)


def _build(path: Path, data: ImageData, fill: Callable[[np.ndarray], None]) -> None:
    """Write the images to `path` and then the record that makes them complete."""
    # Before decoding: an image that changes meanwhile is noticed by the next run
    record = _record(data, path.parent)
    _record_path(path).unlink(missing_ok=True)
    # Of builds that were killed; the lock is ours
    for orphan in path.parent.glob(f".{path.name}.*"):
        orphan.unlink()
    try:
        with replacing(path) as temporary:
            array = np.lib.format.open_memmap(
                temporary, mode="w+", dtype=np.uint8, shape=_shape(data)
            )
            # A mapped file that meets a full disk kills the process
            if hasattr(os, "posix_fallocate"):
                with temporary.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            fill(array)
            array.flush()
        write_json(_record_path(path), record)
    except OSError as error:
        raise InputError(
            f"{printable(path)} cannot be written ({error.strerror or error}; it takes"
            f" {in_words(math.prod(_shape(data)))}); free some space or use --cache_images off"
        ) from None


def _complaint(path: Path, data: ImageData) -> str | None:
    """Say why the file has to be built, or None where it is complete and of these images."""
    if not path.is_file():
        return f"decoding the {data.split} images of {data.name} once, into {printable(path)}"
    try:
        found = read_json(_record_path(path))
        pixels = TensorStore.mapped(path).values
    except (InputError, ValueError, OSError, EOFError, TypeError):
        return f"{printable(path)} is incomplete; decoding the images again"
    record = _record(data, path.parent)
    if not isinstance(found, dict) or found.get("format") != record["format"]:
        return f"{printable(path)} is of another version of the suite; decoding the images again"
    if found != record:
        return (
            f"the images in {printable(data.root)} changed since {printable(path)} was made;"
            " decoding them again"
        )
    if pixels.shape != _shape(data) or pixels.dtype != torch.uint8:
        return (
            f"{printable(path)} has other contents than its record says; decoding the images again"
        )
    return None


def _record(data: ImageData, folder: Path) -> dict[str, Any]:
    """What the pixels were made of: every file's name,
    label and content as one hash, and how they were decoded.
    """
    return {
        "format": FORMAT,
        "images": len(data),
        "root": printable(data.root),
        "decoding": data.decoding_record,
        "files_sha256": read_contents(data, cache_dir=folder).sha256,
    }


def _shape(data: ImageData) -> tuple[int, int, int, int]:
    return len(data), 3, data.image_size, data.image_size


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process build; those that wait find the file complete."""
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
