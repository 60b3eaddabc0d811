"""Both networks' features of a whole data set on disk:
written once by ConvOutput.py, read by every fit.

Format, version 1. One folder holds one split; row i of every array belongs to `paths[i]`, in the
order of the data set, unshuffled:

    index.json      {"format", "version", "complete", "count": N, "shape_a", "shape_b", "dtype", "top_k",
                    "target_shape", "record"}. `record` says where the features come from: data set,
                    split, architectures, layers, SHA-256 of both checkpoints, transform, classes.
                    "doubts", where there are any, has sentences about nets that seem untrained
    paths.json      N paths relative to the data set's root. Both JSON files are ASCII: a byte of a path that
                    is no UTF-8 is kept as the escape that `os.fsdecode` makes of it
    features_a.npy  (N, *shape_a) float32, float16, or bfloat16 stored as uint16
    features_b.npy  (N, *shape_b) the same type
    targets.npy     (N,) int64, or (N, *target_shape) float32 for several labels an image
    hits_a.npy      (N, len(top_k)) bool: whether net A has the label among its first k answers
    hits_b.npy      the same of net B
    written.npy     (N,) bool: rows of which both nets' features are there
    hashes.npy      (N, 16) uint8, the beginning of the SHA-256 of each image's file; caches of earlier versions have
                    none, and their images are then compared with nothing

`complete` is false from the first byte on and becomes true, in one atomic replacement, only after
every row is on the disk. The arrays are plain .npy files: `numpy.load(path, mmap_mode="r")` reads
them without us.
"""

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
# numpy has no bfloat16: its bits are stored as uint16
STORED_TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16}


def array_layout(index: Mapping[str, Any]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Type and shape of every .npy file,
    by its name without the ending, as `index.json` implies them.
    """
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
    """Open stored features: a complete cache, or a folder of one old `.pkl` file an image.

    Args:
        folder: the folder itself, or its parent when `split` names the folder inside ("train" or
            "val").
        split: the split that is wanted; a cache that records another one is refused.
        reverse: swap A and B everywhere: shapes, features, hits and the `_a`/`_b` entries of the
            record.
        expected: entries of the record (after `reverse`), or `shape_a`, `shape_b`, `dtype`,
            `count`, `top_k`, and the values that they must have. An old folder records no origin:
            of it, only the shapes and the count are compared.

    Raises:
        InputError: nothing there, an incomplete or damaged cache, another program's folder, both
            formats in one folder, or a value that is not the expected one.
    """
    folder = _find(Path(folder), split)
    features: FeatureCache | OldFeatureFolder
    if (folder / INDEX).exists():
        features = FeatureCache(folder, reverse=reverse)
    else:
        features = OldFeatureFolder(folder, reverse=reverse)
    facts = features.provenance.to_record() | features.facts
    wanted = dict(expected or {})
    if split is not None:
        wanted.setdefault("split", split)
    # As JSON gives it back: lists for tuples
    for key, value in json.loads(json.dumps(wanted)).items():
        if key not in facts and isinstance(features, OldFeatureFolder):
            continue
        if key == "arch" and isinstance(held := facts.get(key), str) and same_arch(held, value):
            continue
        if facts.get(key) != value:
            raise InputError(
                f"the features in {folder} have {key} = {json.dumps(facts.get(key))}, expected"
                f" {json.dumps(value)}; name the folder that was stored with it, or store the"
                " features again with ConvOutput.py"
            )
    return features


def _find(folder: Path, split: str | None) -> Path:
    """The folder that holds features: `folder` or `folder/split`."""
    check_feature_folder(folder)
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
    """A complete cache; batches are gathered from memory maps, so memory stays at one batch.

    Attributes:
        provenance: where the features come from; with `reverse`, as the direction B → A sees it.
        facts: `shape_a`, `shape_b`, `dtype`, `top_k`, `count` as in `index.json`.
        shape_a: shape of one image's feature from net A; `shape_b` from net B.
        paths: the images, relative to the data set's root.
        targets: (N,) int64, or (N, C) float32 for several labels an image.
        hits_a: (N, len(top_k)) bool, `hits_b` of net B.
        contents: names, labels and hashes of the images, if they are recorded.

    Raises:
        InputError: the cache is incomplete or damaged, or of another version of the format.
    """

    def __init__(self, folder: Path, *, reverse: bool = False):
        self.folder = folder
        index = read_json(folder / INDEX)
        layout = _checked_layout(folder, index)
        written = folder / "written.npy"
        stored = (
            int(_load(written, *layout["written"]).sum())
            if written.exists() or index["complete"]
            else 0
        )
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
        a, b = ("b", "a") if reverse else ("a", "b")
        provenance = Provenance.from_record(index["record"])
        self.provenance = provenance.reversed() if reverse else provenance
        self.shape_a, self.shape_b = tuple(index[f"shape_{a}"]), tuple(index[f"shape_{b}"])
        self.facts = {"shape_a": list(self.shape_a), "shape_b": list(self.shape_b)}
        self.facts |= {key: index[key] for key in ("dtype", "top_k", "count")}
        self.targets, self.hits_a, self.hits_b = (
            torch.from_numpy(np.array(arrays[name]))
            for name in ("targets", f"hits_{a}", f"hits_{b}")
        )
        self.contents: Contents | None = None
        if (folder / HASHES).exists():
            hashes = _load(folder / HASHES, np.dtype(np.uint8), (index["count"], HASH_BYTES))
            self.contents = Contents(self.paths, self.targets, torch.from_numpy(np.array(hashes)))
        self._a, self._b = (
            _MappedRows(arrays[f"features_{net}"], index["dtype"]) for net in (a, b)
        )

    def __len__(self) -> int:
        return len(self.paths)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Rows `indices` as (n, *shape_a) float32, (n,
        *shape_b) float32, (n, …) targets, (n,) int64 indices.
        """
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return self._a.take(rows.numpy()), self._b.take(rows.numpy()), self.targets[rows], rows


class _MappedRows:
    """The rows of one .npy file,
    through a read-only memory map that every process makes for itself.
    """

    def __init__(self, array: np.memmap, dtype: str):
        self.path = Path(str(array.filename))
        self.offset, self.shape, self.stored_type = array.offset, array.shape, array.dtype
        self.dtype: torch.dtype = getattr(torch, dtype)
        self._identity = _identity(self.path.stat())
        self._map: mmap.mmap | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_map": None}  # a map cannot travel to a spawned worker

    def take(self, rows: np.ndarray) -> Tensor:
        """Copy `rows` (n,) int64 out of the file: (n, *shape) float32.

        Raises:
            InputError: the file is not the one that was checked: a new ConvOutput.py has begun.
        """
        if self._map is None:
            try:
                with self.path.open("rb") as file:
                    same = _identity(os.fstat(file.fileno())) == self._identity
                    self._map = (
                        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if same else None
                    )
            except FileNotFoundError:
                pass
        if self._map is None:
            raise InputError(
                f"{self.path} was replaced while it was in use; start again when ConvOutput.py is"
                " done"
            )
        everything = np.frombuffer(
            self._map, self.stored_type, int(np.prod(self.shape)), self.offset
        )
        row_bytes = everything.nbytes // self.shape[0]
        # Announce whole rows: left alone, random access to a cold map reads the disk page by page.
        for row in np.sort(rows).tolist():
            start = self.offset + row * row_bytes
            page = start - start % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, start + row_bytes - page)
        batch = torch.from_numpy(np.take(everything.reshape(self.shape), rows, axis=0))
        # Pages read stay in the system's cache, not in this process
        self._map.madvise(mmap.MADV_DONTNEED)
        return batch.view(self.dtype).float()


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    """What changes when a file is replaced or written to."""
    return status.st_ino, status.st_size, status.st_mtime_ns


def _checked_layout(folder: Path, index: Any) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """The layout that `index` describes, once it is known to be an index of this version."""
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
    """Map one .npy file read-only after checking that it is what the index says, to the byte."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError:
        raise InputError(f"{path} is missing; run ConvOutput.py again") from None
    except (ValueError, EOFError, OSError) as error:
        raise InputError(
            f"{path} is truncated or damaged ({error}); run ConvOutput.py again"
        ) from None
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"{path} holds {array.dtype} {array.shape}, {INDEX} promises {dtype} {shape}; run"
            " ConvOutput.py again"
        )
    expected_bytes = array.offset + array.nbytes
    if path.stat().st_size != expected_bytes:
        raise InputError(
            f"{path} has {path.stat().st_size} bytes instead of {expected_bytes}; run ConvOutput.py"
            " again"
        )
    return array
