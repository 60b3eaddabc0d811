"""Sub-samplers: named lists of indices that choose some of the training images."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.arrays import map_array
from utils.data.datasets import ImageList, printable
from utils.errors import InputError
from utils.files import read_json, write_json

_HALF = re.compile(r"(\d{1,2})par_([AB])")


def read_sub_sampler(
    dataset: str,
    name: str,
    images: ImageList,
    *,
    data_root: str | Path,
    split: str | None = None,
    seed: int = 0,
) -> Tensor:
    """Read `sub_sampler_{dataset}_{name}.{pt,npy,json}` from `data_root` or its folder `dataset`.

    If there is none and `name` is `{percent}par_A` or `{percent}par_B`, both halves are made and
    saved in `data_root`. So every later step takes the same images.

    Args:
        dataset: name of the data set.
        name: name of the sub-sampler.
        images: the whole list that the indices point into.
        data_root: folder that is searched and written.
        split: the way to make halves. "first" puts the first percent of each class into A (rounded
            down, as in the authors' lists) and the rest into B; "random" draws them. None: the way
            of an existing file, else "first".
        seed: of the "random" split.

    Returns:
        Positions in `images`, int64, without duplicates.

    Raises:
        InputError: there is no such file; its record says another split than `split` (a file
            without a record is taken); or it is no list of different indices below
            len(images.files).
    """
    path = _find(Path(data_root), dataset, name)
    if path is not None:
        indices, origin = _read(path, images)
        _check_origin(path, origin, split, seed)
        return indices
    half = _HALF.fullmatch(name)
    if half is None or int(half[1]) == 0:
        raise InputError(
            f"there is no sub_sampler_{dataset}_{name}.pt, .npy or .json in {printable(data_root)}"
            f" or {printable(Path(data_root, dataset))}; put it there, or use a name such as"
            " 50par_A, which is made"
        )
    return _make_halves(dataset, int(half[1]), half[2], images, Path(data_root), split, seed)


def _make_halves(
    dataset: str,
    percent: int,
    letter: str,
    images: ImageList,
    data_root: Path,
    split: str | None,
    seed: int,
) -> Tensor:
    """Make and save the halves `{percent}par_A` and `_B`, and give the one that `letter` names.

    Arguments and errors are those of `read_sub_sampler`.
    """
    other = "B" if letter == "A" else "A"
    other_path = _find(data_root, dataset, f"{percent}par_{other}")
    if other_path is not None:  # one half exists: take its rest, so that the two do not overlap
        other_indices, origin = _read(other_path, images)
        _check_origin(other_path, origin, split, seed)
        halves = {letter: _without(other_indices, len(images.files))}
    else:
        origin = {"split": split or "first", "seed": seed}
        # A is the chosen share, B all the rest, so that together they are all images.
        first = split_classes(images.targets, percent, origin["split"], seed)
        halves = {"A": first, "B": _without(first, len(images.files))}
    for key, indices in halves.items():
        if len(indices) == 0:
            raise InputError(
                f"{percent}par_{key} of {dataset} would have no images; its classes are too small"
            )
    # With the names' hash a list that was made of other images is noticed.
    record = {"images": len(images.files), "files_sha256": _fingerprint(images), **origin}
    for key, indices in halves.items():
        path = data_root / f"sub_sampler_{dataset}_{percent}par_{key}.json"
        write_json(path, record | {"indices": indices.tolist()})
    return halves[letter]


def split_classes(targets: Tensor, percent: int, split: str, seed: int) -> Tensor:
    """Choose `percent` % of each class, rounded down.

    Args:
        targets: int64 (n,). Multi-label targets (n, classes) count as one class: an image has no
            single one.
        percent: 1 … 99.
        split: "first" images of each class, or "random" ones.
        seed: of "random".

    Returns:
        Sorted positions, int64.
    """
    if split not in ("first", "random"):
        raise InputError(f"a sub-sampler is split by 'first' or 'random', not {split!r}")
    generator = torch.Generator().manual_seed(seed % 2**64)
    labels = targets if targets.ndim == 1 else torch.zeros(len(targets), dtype=torch.int64)
    chosen = []
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        if split == "random":
            members = members[torch.randperm(len(members), generator=generator)]
        chosen.append(members[: len(members) * percent // 100])
    return torch.cat(chosen).sort().values


def _find(data_root: Path, dataset: str, name: str) -> Path | None:
    """Return the first file of a sub-sampler, or None."""
    stem = f"sub_sampler_{dataset}_{name}"
    # The folder of all data sets goes before the data set's own.
    candidates = (
        folder / f"{stem}{end}" for folder in (data_root, data_root / dataset) for end in _READERS
    )
    return next((path for path in candidates if path.is_file()), None)


def _read(path: Path, images: ImageList) -> tuple[Tensor, dict[str, Any]]:
    """Read and check one file.

    Returns:
        Its indices, int64 (n,), and its origin: `split` and `seed`, if it records them.

    Raises:
        InputError: it is no list of different indices, or was made for other images.
    """
    value, origin = _READERS[path.suffix](path), {}
    if isinstance(value, dict):  # a file of this suite records the images that it was made for
        if value.get("files_sha256") != _fingerprint(images):
            raise InputError(
                f"{printable(path)} was made for another list of images; remove it to make it anew"
            )
        origin = {key: value[key] for key in ("split", "seed") if key in value}
        value = value.get("indices")
    if isinstance(value, list):
        if not all(type(index) is int and abs(index) < 2**63 for index in value):
            raise InputError(f"{printable(path)} is not a list of whole numbers")
        value = np.array(value, dtype=np.int64)
    if not isinstance(value, (np.ndarray, Tensor)) or value.ndim != 1:
        raise InputError(f"{printable(path)} is not a list of indices")
    value = np.asarray(value)
    if value.dtype.kind not in "iu":
        raise InputError(f"{printable(path)} is not a list of whole numbers but of {value.dtype}")
    return _checked(torch.from_numpy(value.astype(np.int64)), len(images.files), path), origin


def _check_origin(path: Path, origin: dict[str, Any], split: str | None, seed: int) -> None:
    """Refuse a file whose record has another split, or another seed of a random one.

    Raises:
        InputError: it is so.
    """
    if split is None or "split" not in origin:
        return
    wanted = {"split": split, "seed": seed} if split == "random" else {"split": split}
    for key, value in wanted.items():
        if origin.get(key) != value:
            raise InputError(
                f"{printable(path)} was made with --{key} {origin.get(key)}, not {value}; leave out"
                " --split to take it as it is, or remove it and its other half to make both anew"
            )


def _checked(indices: Tensor, images: int, path: Path) -> Tensor:
    """Return indices that choose at least one image, each once.

    Raises:
        InputError: there are none, one is out of range, or one appears twice.
    """
    if len(indices) == 0:
        raise InputError(f"{printable(path)} is empty")
    outside = indices[(indices < 0) | (indices >= images)]
    if len(outside):
        raise InputError(
            f"{printable(path)} has index {int(outside[0])}, but the training folder has {images}"
            f" images (0 … {images - 1}); it belongs to another data set"
        )
    if len(indices.unique()) < len(indices):
        raise InputError(
            f"{printable(path)} has {len(indices) - len(indices.unique())} indices twice"
        )
    return indices


def _read_pt(path: Path) -> Any:
    """Read a file of `torch.save`: tensors and plain values, never code."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # PyTorch's readers raise nearly anything on broken bytes
        raise InputError(
            f"{printable(path)} is truncated or holds more than a list of numbers and is refused,"
            " because loading it could run code; save the indices with torch.save(list, file)"
        ) from None


def _read_npy(path: Path) -> Any:
    """Read a NumPy array of numbers."""
    return np.array(map_array(path, "save the indices as an integer array"))


_READERS = {".pt": _read_pt, ".npy": _read_npy, ".json": read_json}


def _without(indices: Tensor, images: int) -> Tensor:
    """Return the positions 0 … images − 1 that are not in `indices`, sorted."""
    rest = torch.ones(images, dtype=torch.bool)
    rest[indices] = False
    return rest.nonzero().flatten()


def _fingerprint(images: ImageList) -> str:
    """The hexadecimal SHA-256 of the files' names in their order."""
    return hashlib.sha256(json.dumps(images.files).encode()).hexdigest()
