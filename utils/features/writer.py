"""The writer of feature caches, batch by batch; `utils.features.cache` describes the format."""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    FeatureCache,
    array_layout,
    open_features,
)
from utils.files import check_room, claim, read_json, reserve, write_json
from utils.provenance import Provenance
from utils.sums import SUMS, signed, sums_of


def is_stored(
    folder: Path,
    provenance: Provenance,
    facts: Mapping[str, Any],
    paths: Sequence[str],
    images: Contents | None = None,
) -> bool:
    """Whether a folder has a complete cache of exactly these features.

    Args:
        folder: of the cache.
        provenance: of the features.
        facts: entries of `index.json` that must agree.
        paths: of the images.
        images: their contents, compared if the cache records its own; None: not compared.
    """
    try:
        stored = open_features(folder, expected=facts)
    except InputError:
        return False
    same = stored.provenance == provenance and stored.paths == list(paths)
    return same and not (images and stored.contents and stored.contents.changes(images))


def check_images(folder: Path, images: Contents) -> None:
    """Refuse to replace complete features of other images.

    Args:
        folder: of the features.
        images: of this run.

    Raises:
        InputError: images were edited, removed, added, renamed or moved to another class; the
            message names some.
    """
    try:
        recorded = open_features(folder).contents
    except InputError:  # there are no complete features to lose
        return
    if recorded and (changes := recorded.changes(images)):
        raise InputError(
            f"the features in {folder} were made of other images; since then {changes}; put them"
            " back, choose another --suffix or --out, or --restart to replace them"
        )


class FeatureWriter:
    """Fills a feature cache by rows; memory does not grow with the number of images.

    Several processes of one machine may fill one cache. The first makes it (`create=True`). The
    others attach after that (`create=False`) and write other rows. All call `close`; then one calls
    `finish`. Until its end as a context manager, no other run may write to the folder.

    Attributes:
        dtype: of stored features.

    Args:
        folder: the cache's folder. An earlier cache in it is replaced; other files are an error.
        provenance: the features' origin.
        paths: one relative path an image, in the order of the rows.
        shape_a: shape of one image's feature from net A.
        shape_b: shape of one image's feature from net B.
        dtype: of stored features: torch.float32, float16 or bfloat16.
        top_k: the k of the hits' columns.
        target_shape: () for one int64 label an image, (C,) for C float32 labels.
        hashes: of the images' files, uint8 (N, 16), as of `utils.data.contents`; None: not
            recorded.
        create: make the cache; False: attach to a cache that another process made with the same
            arguments.

    Raises:
        InputError: there is no image, the dtype cannot be stored, the folder has other files, the
            disk has no room, or (attaching) there is no such cache.
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
        self.dtype = dtype
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
        # Attached: the index of the process that made the cache must be this one's.
        elif read_json(self.folder / INDEX) != self._index:
            raise InputError(
                f"{self.folder} was made for other features; all processes need the same options"
            )
        self._files: dict[str, BinaryIO] = {
            name: self._path(name).open("r+b") for name in self._layout
        }
        # Of this process alone, which writes both nets' features of its rows.
        self._has = {net: np.zeros(len(paths), dtype=bool) for net in "ab"}
        self._offsets = {
            # Where the numbers begin, behind the .npy header
            name: np.lib.format.open_memmap(self._path(name), "r").offset
            for name in self._layout
        }

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._open.close()

    def write(
        self, net: str, indices: Sequence[int], features: Tensor, targets: Tensor, hits: Tensor
    ) -> None:
        """Store one net's batch; a row counts as written when it has both nets' features.

        Args:
            net: "a" or "b".
            indices: n row numbers, 0 to N − 1, in any order.
            features: (n, *shape_a) or (n, *shape_b); floating point, on any device.
            targets: (n,) integers, or (n, *target_shape) floating point.
            hits: (n, len(top_k)) bool: the label is among the net's first k answers.

        Raises:
            InputError: a feature is not finite in the stored dtype.
            ValueError: shapes or rows are not the cache's.
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
        # Last: a row counts as written only after its features are in the file.
        self._has[net][rows] = True
        self._put("written", rows, self._has["a"][rows] & self._has["b"][rows])

    def close(self) -> None:
        """Flush everything that this process wrote to the disk, and end its writing."""
        for file in self._files.values():
            if not file.closed:
                file.flush()
                os.fsync(file.fileno())
                file.close()

    def finish(
        self, note: Callable[[FeatureCache], Mapping[str, Any]] = lambda _: {}
    ) -> FeatureCache:
        """Close, check that every row was written, and mark the cache complete.

        Args:
            note: gives facts about the features, which `index.json` gets with the mark.

        Returns:
            The features.

        Raises:
            InputError: rows are missing; the cache stays incomplete.
        """
        self.close()
        # Rows of all processes, which have flushed their files by now
        stored = int(np.load(self._path("written")).sum())
        if stored != self._index["count"]:
            raise InputError(
                f"{self.folder} has {stored} of {self._index['count']} images; run ConvOutput.py"
                " again"
            )
        names = [PATHS, *(f"{name}.npy" for name in self._layout)]
        names += [HASHES] * (self.folder / HASHES).exists()
        index = self._index | {"complete": True, SUMS: sums_of(self.folder, names)}
        features = FeatureCache(self.folder, index=signed(index))
        write_json(self.folder / INDEX, signed(index | dict(note(features))))
        return features

    def _put(self, name: str, rows: list[int], values: np.ndarray) -> None:
        """Write rows of one file.

        Raises:
            ValueError: their shape is not the file's.
        """
        dtype, shape = self._layout[name]
        array = np.ascontiguousarray(values, dtype=dtype)
        if array.shape != (len(rows), *shape[1:]):
            raise ValueError(
                f"{name} of a batch has shape {array.shape}, expected {(len(rows), *shape[1:])}"
            )
        row_bytes = dtype.itemsize * math.prod(shape[1:])
        # Plain writes, not a writable map: a full disk is then an error, and not a SIGBUS that
        # kills the process.
        for position, row, length in _runs(rows):
            self._files[name].seek(self._offsets[name] + row * row_bytes)
            self._files[name].write(array[position : position + length].data)
        self._files[name].flush()

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _create(self, paths: Sequence[str], hashes: Tensor | None) -> None:
        """Make an incomplete cache of empty rows, in the place of an earlier one.

        Raises:
            InputError: the folder has other files, or the disk has no room.
        """
        cache_files = [INDEX, PATHS, HASHES, *(f"{name}.npy" for name in self._layout)]
        self.folder.mkdir(parents=True, exist_ok=True)
        foreign = sorted(
            entry.name
            for entry in self.folder.iterdir()
            if entry.name not in cache_files and entry.name[0] != "."
        )
        if foreign:
            raise InputError(
                f"{self.folder} holds other files ({', '.join(foreign[:3])}); choose an empty"
                " folder for the features"
            )
        # Remove files instead of overwriting them, the index first: a process that reads the old
        # cache keeps its old files.
        for name in cache_files:
            (self.folder / name).unlink(missing_ok=True)
        needed = sum(dtype.itemsize * math.prod(shape) for dtype, shape in self._layout.values())
        check_room(self.folder, needed, "the features", "make room or store them as float16")
        write_json(self.folder / INDEX, self._index)
        write_json(self.folder / PATHS, list(paths))
        if hashes is not None:
            np.save(self.folder / HASHES, hashes.numpy())
        for name, (dtype, shape) in self._layout.items():
            np.lib.format.open_memmap(self._path(name), mode="w+", dtype=dtype, shape=shape)
            # Of several layers the next one sees what is left
            reserve(self._path(name))

    def _encode(self, features: Tensor, net: str) -> Tensor:
        """Give features in the stored dtype, bfloat16 as its bits in uint16.

        Raises:
            InputError: one is not finite in it.
        """
        stored = features.detach().to("cpu", self.dtype)
        if not bool(stored.isfinite().all()):
            raise InputError(
                f"a feature of net {net.upper()} is not finite as {self._index['dtype']}; if the"
                " network is sound, store the features as float32 or bfloat16"
            )
        return stored.view(torch.uint16) if self.dtype is torch.bfloat16 else stored


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Split rows into runs of consecutive numbers, each of which is one write.

    Yields:
        The position of a run's first row, its row number, and the run's length.
    """
    start = 0
    for position in range(1, len(rows) + 1):
        if position == len(rows) or rows[position] != rows[position - 1] + 1:
            yield start, rows[start], position - start
            start = position
