"""The feature cache: both networks' features of a data set on disk.

ConvOutput.py writes it once, every fit reads it. Format, version 1: one folder is one split, and
row i of every array belongs to `paths[i]`, in the order of the data set, unshuffled.

    index.json      {"format", "version", "complete", "count": N, "shape_a", "shape_b", "dtype",
                    "top_k", "target_shape", "record"}. `record` is the features' origin: data set,
                    split, architectures, layers, SHA-256 of both checkpoints, transform, classes.
                    "doubts", if there are any, has sentences about nets that seem untrained
    paths.json      N paths relative to the data set's root. Both JSON files are ASCII: a byte of a
                    path that is no UTF-8 is kept as the escape of `os.fsdecode`
    features_a.npy  (N, *shape_a) float32, float16, or bfloat16 stored as uint16
    features_b.npy  (N, *shape_b) the same type
    targets.npy     (N,) int64, or (N, *target_shape) float32 for several labels an image
    hits_a.npy      (N, len(top_k)) bool: net A has the label among its first k answers
    hits_b.npy      (N, len(top_k)) bool: net B likewise
    written.npy     (N,) bool: rows with both nets' features
    hashes.npy      (N, 16) uint8, the beginning of the SHA-256 of each image's file. Caches of
                    earlier versions have none; their images are not compared

`sums` in `index.json` has the SHA-256 of every 64 MB of the other files, and `sha256` that of the
rest of it; see `utils.sums`. `complete` is false from the first byte on. One atomic replacement
makes it true after every row is on the disk. The arrays are plain .npy files:
`numpy.load(path, mmap_mode="r")` reads them without this suite.
"""

import contextlib
import json
import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils import sums
from utils.arrays import map_array
from utils.data.contents import HASH_BYTES, Contents
from utils.errors import InputError
from utils.features.old_folder import OldFeatureFolder
from utils.files import read_json
from utils.presence import check_feature_folder
from utils.provenance import Provenance, same_arch

FORMAT = "knowledge-consistency features"
VERSION = 1
INDEX = "index.json"
PATHS = "paths.json"
HASHES = "hashes.npy"
# NumPy has no bfloat16: its bits are stored as uint16.
STORED_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def array_layout(index: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Give dtype and shape of every .npy file, by name without the ending, as `index.json` says."""
    count, hits = index["count"], (np.dtype(bool), (index["count"], len(index["top_k"])))
    features = np.dtype(STORED_TYPES[index["dtype"]])
    return {
        "features_a": (features, (count, *index["shape_a"])),
        "features_b": (features, (count, *index["shape_b"])),
        "targets": (
            np.dtype(np.float32 if index["target_shape"] else np.int64),
            (count, *index["target_shape"]),
        ),
        "hits_a": hits,
        "hits_b": hits,
        "written": (np.dtype(bool), (count,)),
    }


def open_features(
    folder: str | Path,
    *,
    split: str | None = None,
    reverse: bool = False,
    expected: Mapping[str, Any] | None = None,
) -> "FeatureCache | OldFeatureFolder":
    """Open stored features: a complete cache, or an old folder of one `.pkl` file an image.

    Args:
        folder: the folder itself, or its parent if `split` names the folder inside ("train" or
            "val").
        split: the wanted split; a cache of another one is refused.
        reverse: swap A and B everywhere: shapes, features, hits and the `_a`/`_b` entries of the
            record.
        expected: the expected values of some entries of the record (after `reverse`), or of
            `shape_a`, `shape_b`, `dtype`, `count`, `top_k`. An old folder records no origin: only
            its shapes and its count are compared.

    Raises:
        InputError: there are no features, they are incomplete or damaged, the folder has both
            formats or belongs to another program, or a value is not the expected one.
    """
    folder = _find(Path(folder), split)
    features: FeatureCache | OldFeatureFolder
    if (folder / INDEX).exists():
        features = FeatureCache(folder, reverse=reverse)
    else:
        features = OldFeatureFolder(folder, reverse=reverse)
    # The origin and the index's own facts as one flat dictionary
    facts = features.provenance.to_record() | features.facts
    wanted = dict(expected or {})
    if split is not None:
        wanted.setdefault("split", split)
    # The record came through JSON, which makes lists of tuples: compare in that form.
    for key, value in json.loads(json.dumps(wanted)).items():
        if key not in facts and isinstance(features, OldFeatureFolder):
            continue
        stored = facts.get(key)
        if key == "arch" and isinstance(stored, str) and same_arch(stored, value):
            continue
        if stored != value:
            raise InputError(
                f"the features in {folder} have {key} = {json.dumps(stored)}, expected"
                f" {json.dumps(value)}; name the folder that was stored with it, or store the"
                " features again with ConvOutput.py"
            )
    return features


def _find(folder: Path, split: str | None) -> Path:
    """Find the folder with features: `folder` or `folder/split`.

    Raises:
        InputError: neither has features, or one has them in both formats.
    """
    check_feature_folder(folder)
    # The name may be of the split's folder already.
    candidates = [folder] if split is None else [folder, folder / split]
    for candidate in candidates:
        has_cache, has_old = (candidate / INDEX).exists(), any(candidate.glob("*.pkl"))
        if has_cache and has_old:
            raise InputError(
                f"{candidate} mixes a feature cache and old .pkl files; move one of the two"
                " elsewhere"
            )
        if has_cache or has_old:
            return candidate
    inside = [name for name in ("train", "val") if (folder / name).is_dir()]
    hint = f"it has {' and '.join(inside)} inside" if inside else "it belongs to something else"
    raise InputError(
        f"no stored features in {' or '.join(map(str, candidates))} (neither {INDEX} nor"
        f" 000000.pkl; {hint}); name the folder that ConvOutput.py wrote"
    )


class FeatureCache(Dataset):
    """A complete cache; its batches are gathered from memory maps, one at a time in memory.

    Args:
        folder: of the cache.
        reverse: swap A and B.
        index: the content of `index.json`, where that is not written yet.

    Attributes:
        provenance: the features' origin; with `reverse`, of the direction B → A.
        facts: `shape_a`, `shape_b`, `dtype`, `top_k`, `count` as in `index.json`.
        shape_a: shape of one image's feature from net A.
        shape_b: shape of one image's feature from net B.
        paths: of the images, relative to the data set's root.
        targets: (N,) int64, or (N, C) float32 for several labels an image.
        hits_a: (N, len(top_k)) bool, of net A.
        hits_b: (N, len(top_k)) bool, of net B.
        contents: names, labels and hashes of the images, if they are recorded.

    Raises:
        InputError: the cache is incomplete or damaged, or of another version of the format.
    """

    def __init__(
        self, folder: Path, *, reverse: bool = False, index: Mapping[str, Any] | None = None
    ):
        self.folder = folder
        index = index or read_json(folder / INDEX)
        layout = _checked_layout(folder, index)
        written = folder / "written.npy"
        # An interrupted ConvOutput.py may not have come to `written.npy` yet.
        has_rows = written.exists() or index["complete"]
        stored = int(_load(written, *layout["written"]).sum()) if has_rows else 0
        if not index["complete"] or stored != index["count"]:
            raise InputError(
                f"{folder} is incomplete: {stored} of {index['count']} images were stored before"
                " ConvOutput.py stopped; run it again with the same options"
            )
        arrays = {
            name: _load(folder / f"{name}.npy", *expected) for name, expected in layout.items()
        }
        self.paths: list[str] = read_json(folder / PATHS)
        if not isinstance(self.paths, list) or len(self.paths) != index["count"]:
            raise InputError(
                f"{folder / PATHS} does not list {index['count']} images; run ConvOutput.py again"
            )
        # Exchanged are names; the files stay where they are.
        a, b = ("b", "a") if reverse else ("a", "b")
        provenance = Provenance.from_record(index["record"])
        self.provenance = provenance.reversed() if reverse else provenance
        self.shape_a, self.shape_b = tuple(index[f"shape_{a}"]), tuple(index[f"shape_{b}"])
        self.facts = {"shape_a": list(self.shape_a), "shape_b": list(self.shape_b)}
        self.facts |= {key: index[key] for key in ("dtype", "top_k", "count")}
        # A few bytes an image, copied into memory; features stay in their files.
        self.targets, self.hits_a, self.hits_b = (
            torch.from_numpy(np.array(arrays[name]))
            for name in ("targets", f"hits_{a}", f"hits_{b}")
        )
        self.contents: Contents | None = None
        if (folder / HASHES).exists():
            hashes = _load(folder / HASHES, np.dtype(np.uint8), (index["count"], HASH_BYTES))
            self.contents = Contents(self.paths, self.targets, torch.from_numpy(np.array(hashes)))
        # Last: what is of another kind or size is said by the lines above.
        sums.check(folder / INDEX, index, "run ConvOutput.py again")
        self._a, self._b = (
            _MappedRows(arrays[f"features_{net}"], index["dtype"]) for net in (a, b)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the rows of n images.

        Returns:
            Features of A, (n, *shape_a) float32; features of B, (n, *shape_b) float32; targets,
            (n, …); the indices, (n,) int64.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self._a.take(rows.numpy()), self._b.take(rows.numpy()), self.targets[rows], rows


class _MappedRows:
    """The rows of one .npy file, read through a memory map that every process makes for itself."""

    def __init__(self, array: np.memmap, dtype: str):
        self.path = Path(str(array.filename))
        self.offset, self.shape, self.stored_type = array.offset, array.shape, array.dtype
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._identity = _identity(self.path.stat())
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # a map cannot travel to a spawned worker

    def take(self, rows: np.ndarray) -> Tensor:
        """Copy rows out of the file.

        Args:
            rows: (n,) int64.

        Returns:
            (n, *shape) float32.

        Raises:
            InputError: the file is not the one that was checked: a new ConvOutput.py has begun.
        """
        if self._map is None:
            self._map = self._mapped()
        # Views of the map, by offset: no row is read yet.
        everything = np.frombuffer(
            self._map, self.stored_type, int(np.prod(self.shape)), self.offset
        )
        # The first axis counts the images.
        row_bytes = everything.nbytes // self.shape[0]
        # Announce whole rows: otherwise random access to a cold map reads the disk page by page.
        for row in np.sort(rows).tolist():
            start = self.offset + row * row_bytes
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + row_bytes - page)
        batch = torch.from_numpy(np.take(everything.reshape(self.shape), rows, axis=0))
        # Give the pages back: they stay in the system's cache, and this process stays small.
        self._map.madvise(mmap.MADV_DONTNEED)
        return batch.view(self.dtype).float()  # uint16 → bfloat16 keeps the bits

    def _mapped(self) -> mmap.mmap:
        """Map the file that was checked.

        Raises:
            InputError: it is gone, or another file has its name.
        """
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            if _identity(os.fstat(file.fileno())) == self._identity:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        raise InputError(
            f"{self.path} was replaced while it was in use; start again when ConvOutput.py is done"
        )


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """Inode, size and time of a file, of which one changes when it is replaced or written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _checked_layout(folder: Path, index: Any) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Give the layout of the arrays, after a check of `index.json`.

    Raises:
        InputError: it is damaged, or of another program or version.
    """
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise InputError(
            f"{folder / INDEX} is not of a feature cache; name the folder that ConvOutput.py wrote"
        )
    if index.get("version") != VERSION:
        raise InputError(
            f"{folder} has format version {index.get('version')}, this program reads {VERSION}; run"
            " ConvOutput.py again"
        )
    try:
        layout = array_layout(index)
        usable = (
            isinstance(index["complete"], bool)
            and isinstance(index["record"], dict)
            and index["count"] > 0
        )
    except (KeyError, TypeError):
        usable = False
    if not usable:
        raise InputError(f"{folder / INDEX} is damaged; run ConvOutput.py again")
    return layout


def _load(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.memmap:
    """Map one .npy file read-only, after a check of dtype, shape and length.

    Raises:
        InputError: the file is missing, damaged, or not as `index.json` says.
    """
    array = map_array(path, "run ConvOutput.py again")
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}, {INDEX} promises {dtype} {shape}; run"
            " ConvOutput.py again"
        )
    return array
