"""Store both networks' features batch by batch;
the format is described in `utils.features.cache`.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.data.contents import Contents
from utils.errors import InputError
from utils.features.cache import (
    FORMAT,
    HASHES,
    INDEX,
    PATHS,
    STORED_TYPES,
    VERSION,
    array_layout,
    open_features,
)
from utils.files import claim, in_words, read_json, write_json
from utils.provenance import Provenance


def is_stored(
    folder: Path,
    provenance: Provenance,
    facts: Mapping[str, Any],
    paths: Sequence[str],
    images: Contents | None = None,
) -> bool:
    """Say whether a complete cache of exactly these features is there already.

    Contents are compared where `images` gives them and the cache records them.
    """
    try:
        stored = open_features(folder, expected=facts)
    except InputError:
        return False
    same = stored.provenance == provenance and stored.paths == list(paths)
    return same and not (images and stored.contents and stored.contents.changes(images))


def check_images(folder: Path, images: Contents) -> None:
    """Refuse to replace complete features that were made of other images.

    Args:
        folder: where they would be written.
        images: of this run.

    Raises:
        InputError: images were edited, removed, added, renamed or moved to another class; the
            message names some.
    """
    try:
        recorded = open_features(folder).contents
    except InputError:  # nothing is there, or what is there is not whole
        return
    if recorded and (changes := recorded.changes(images)):
        raise InputError(
            f"the features in {folder} were made of other images; since then {changes}; put them"
            " back, choose another --suffix or --out, or --restart to replace them"
        )


class FeatureWriter:
    """Fills a feature cache at given rows; memory does not grow with the number of images.

    Several processes of one machine may fill one cache: the first makes it (`create=True`), the
    others attach after that (`create=False`) and write rows of their own; all `close`, and when all
    have, one calls `finish`. As a context manager it lets the folder go at the end, which no other
    run may write to meanwhile.

    Args:
        folder: the cache's folder. An earlier cache in it is replaced; other files in it are an
            error.
        provenance: where the features come from.
        paths: one relative path an image, in the order of the rows.
        shape_a: shape of one image's feature from net A; `shape_b` from net B.
        dtype: how features are stored: torch.float32, float16 or bfloat16.
        top_k: the k of the hits' columns.
        target_shape: () for one int64 label an image, (C,) for C float32 labels.
        hashes: of the images' files, uint8 (N, 16), as `utils.data.contents` has them; None:
            nothing is recorded.
        create: make the cache, or attach to one that another process made with the same arguments.

    Raises:
        InputError: no image, a type that cannot be stored, other files in the folder, a disk
            without room, or (attaching) no such cache.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        provenance: Provenance,
        paths: Sequence[str],
        shape_a: Sequence[int],
        shape_b: Sequence[int],
        dtype: torch.dtype,
        top_k: Sequence[int],
        target_shape: Sequence[int] = (),
        hashes: Tensor | None = None,
        create: bool = True,
    ):
        self.folder = Path(folder)
        self._dtype = dtype
        index = {
            "format": FORMAT,
            "version": VERSION,
            "complete": False,
            "count": len(paths),
            "shape_a": list(shape_a),
            "shape_b": list(shape_b),
            "dtype": str(dtype).removeprefix("torch."),
            "top_k": list(top_k),
            "target_shape": list(target_shape),
            "record": provenance.to_record(),
        }
        self._index = json.loads(json.dumps(index))  # tuples become lists, as a reader sees them
        if not paths or index["dtype"] not in STORED_TYPES:
            raise InputError(
                f"cannot store {len(paths)} images as {index['dtype']}; give at least one image and"
                " one of the types " + ", ".join(STORED_TYPES)
            )
        self._layout = array_layout(self._index)
        self._open = contextlib.ExitStack()
        if create:
            self._open.enter_context(claim(self.folder))
            try:
                self._create(paths, hashes)
            except BaseException:
                self._open.close()
                raise
        elif read_json(self.folder / INDEX) != self._index:
            raise InputError(
                f"{self.folder} was made for other features; all processes need the same options"
            )
        self._files: dict[str, BinaryIO] = {
            name: self._path(name).open("r+b") for name in self._layout
        }
        self._has = {net: np.zeros(len(paths), dtype=bool) for net in "ab"}
        self._offsets = {
            name: np.lib.format.open_memmap(self._path(name), "r").offset for name in self._layout
        }

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._open.close()

    def write(
        self, net: str, indices: Sequence[int], features: Tensor, targets: Tensor, hits: Tensor
    ) -> None:
        """Store one net's batch at rows `indices` (n,),
        in any order; a row counts once both nets' are there.

        Args:
            net: "a" or "b".
            indices: row numbers, 0 to N − 1.
            features: (n, *shape_a), or *shape_b; floating point, on any device.
            targets: (n,) integers, or (n, *target_shape) floating point.
            hits: (n, len(top_k)) bool: is the label among the net's first k answers?

        Raises:
            InputError: a feature is not finite in the stored type.
            ValueError: shapes or rows that are not the cache's.
        """
        rows = [int(index) for index in indices]
        if rows and not 0 <= min(rows) <= max(rows) < self._index["count"]:
            raise ValueError(
                f"rows {min(rows)} to {max(rows)} of a cache of {self._index['count']} images"
            )
        batch = {
            f"features_{net}": self._encode(features, net),
            "targets": targets,
            f"hits_{net}": hits,
        }
        for name, values in batch.items():
            self._put(name, rows, values.detach().cpu().numpy())
        self._has[net][rows] = True  # last: a row counts once the rest is out
        self._put("written", rows, self._has["a"][rows] & self._has["b"][rows])

    def close(self) -> None:
        """Bring everything that this process wrote to the disk; it writes no more."""
        for file in self._files.values():
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def finish(self) -> None:
        """Close, and mark the cache complete after checking that every row was written.

        Raises:
            InputError: rows are missing; the cache stays incomplete.
        """
        self.close()
        stored = int(np.load(self._path("written")).sum())
        if stored != self._index["count"]:
            raise InputError(
                f"{self.folder} has {stored} of {self._index['count']} images; run ConvOutput.py"
                " again"
            )
        self.record()

    def record(self, **facts: Any) -> None:
        """Mark the cache complete,
        and add what its features show to `index.json`, for who reads that.
        """
        write_json(self.folder / INDEX, self._index | {"complete": True} | facts)

    def _put(self, name: str, rows: list[int], values: np.ndarray) -> None:
        """Write rows of one file."""
        dtype, shape = self._layout[name]
        array = np.ascontiguousarray(values, dtype=dtype)
        if array.shape != (len(rows), *shape[1:]):
            raise ValueError(
                f"{name} of a batch has shape {array.shape}, expected {(len(rows), *shape[1:])}"
            )
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        # Plain writes, not a writable map: a full disk is then an error and not a crash of the
        # process.
        for position, row, length in _runs(rows):
            self._files[name].seek(self._offsets[name] + row * row_bytes)
            self._files[name].write(array[position : position + length].data)
        self._files[name].flush()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _create(self, paths: Sequence[str], hashes: Tensor | None) -> None:
        """Replace what an earlier run left by an incomplete cache of empty rows."""
        own = [INDEX, PATHS, HASHES, *(f"{name}.npy" for name in self._layout)]
        self.folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.name not in own and entry.name[0] != "."
        )
        if foreign:
            raise InputError(
                f"{self.folder} holds other files ({', '.join(foreign[:3])}); choose an empty"
                " folder for the features"
            )
        # Removed, the index first, rather than overwritten: who still reads the old cache keeps its
        # old files.
        for name in own:
            (self.folder / name).unlink(missing_ok=True)
        needed = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self._layout.values())
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise InputError(
                f"the features need {in_words(needed)} and the disk of {self.folder} has"
                f" {in_words(free)} free; make room or store them as float16"
            )
        write_json(self.folder / INDEX, self._index)
        write_json(self.folder / PATHS, list(paths))
        if hashes is not None:
            np.save(self.folder / HASHES, hashes.numpy())
        for name, (dtype, shape) in self._layout.items():
            np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=shape)

    def _encode(self, features: Tensor, net: str) -> Tensor:
        """Features in the stored type, bfloat16 as its bits."""
        stored = features.detach().to(self._dtype)
        if not bool(stored.isfinite().all()):
            raise InputError(
                f"a feature of net {net.upper()} is not finite as {self._index['dtype']}; if the"
                " network is sound, store the features as float32 or bfloat16"
            )
        return stored.view(torch.uint16) if self._dtype is torch.bfloat16 else stored


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Split `rows` into stretches of consecutive numbers:
    (position of the first, its row, length).
    """
    start = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or rows[position] != rows[position - 1] + 1:
            yield start, rows[start], position - start
            start = position
