"""The features of the authors' release, one `.pkl` file an image; this suite only reads them.

`{i:06d}.pkl` is a dictionary of `torch.save` (PyTorch 1.0, not zip): `target`, `pred1`, `pred2`,
`convOut1` (net A's feature) and `convOut2` (net B's). Its values are tensors or NumPy arrays.
"""

import struct
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from utils import checkpoint
from utils.errors import InputError
from utils.provenance import Provenance


class OldFeatureFolder(Dataset):
    """One file an image, with the interface of `utils.features.cache.FeatureCache`.

    Attributes:
        provenance: empty; the files do not record their origin.
        facts: `shape_a`, `shape_b`, `count`.
        shape_a: shape of one image's feature from net A, as in file 0.
        shape_b: shape of one image's feature from net B, as in file 0.
        paths: the file names; names of the images were not kept.
        contents: None; the images were not kept.
        hits_a: (N, 0) bool, of net A: the files do not say for which k their hits are.
        hits_b: (N, 0) bool, of net B.

    Raises:
        InputError: a number of the sequence is missing, a file is not of it, or file 0 is damaged.
    """

    def __init__(self, folder: Path, *, reverse: bool = False):
        self.folder = folder
        self._keys = ("convOut2", "convOut1") if reverse else ("convOut1", "convOut2")
        names = {path.name for path in folder.glob("*.pkl")}
        self.paths = [f"{i:06d}.pkl" for i in range(len(names))]
        for name in self.paths:
            if name not in names:
                # As many files as numbers: one of another name stands for the missing one.
                other = min(names.difference(self.paths))
                raise InputError(
                    f"{folder} has no {name}, though {len(names)} files are numbered from 000000 on"
                    f" (one is {other}); restore it or store the features again with ConvOutput.py"
                )
        first_a, first_b, _ = self._read(0)
        self.shape_a, self.shape_b = tuple(first_a.shape), tuple(first_b.shape)
        self.provenance = Provenance()
        self.facts = {
            "shape_a": list(self.shape_a),
            "shape_b": list(self.shape_b),
            "count": len(self),
        }
        self.contents = None
        self.hits_a = self.hits_b = torch.empty(len(self), 0, dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def targets(self) -> Tensor:
        """(N,) int64, or (N, C) float32 for several labels; the first use reads every file."""
        return torch.stack([self._read(i)[2] for i in range(len(self))])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Read the files of n images.

        Returns:
            Features of A, (n, *shape_a) float32; features of B, (n, *shape_b) float32; targets,
            (n, …); the indices, (n,) int64.

        Raises:
            InputError: a file is damaged, carries code, lacks a key or has another shape than file
                0.
        """
        rows = [int(index) for index in indices]
        samples = [self._read(row) for row in rows]
        for row, (a, b, target) in zip(rows, samples):
            if (a.shape, b.shape) != (self.shape_a, self.shape_b):
                raise InputError(
                    f"{self.folder / self.paths[row]} has features of shape {tuple(a.shape)} and"
                    f" {tuple(b.shape)}, file 0 {self.shape_a} and {self.shape_b}; store the"
                    " features again with ConvOutput.py"
                )
            if target.shape != (first := samples[0][2]).shape:
                raise InputError(
                    f"{self.folder / self.paths[row]} has labels of shape {tuple(target.shape)},"
                    f" others {tuple(first.shape)}; store the features again with ConvOutput.py"
                )
        features_a, features_b, targets = (torch.stack(values) for values in zip(*samples))
        return features_a, features_b, targets, torch.tensor(rows)

    def _read(self, row: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read one file: feature of A, feature of B (float32), target.

        Raises:
            InputError: it is damaged, carries code or lacks a key.
        """
        path = self.folder / self.paths[row]
        try:
            sample = checkpoint.load(path)
            missing = [key for key in ("target", *self._keys) if key not in sample]
            if missing:
                raise InputError(
                    f"{path} has no {missing[0]}, only {', '.join(map(str, sample)) or 'nothing'}"
                )
            a, b, target = (_as_tensor(sample[key], path) for key in (*self._keys, "target"))
        except (LookupError, TypeError, AttributeError, struct.error):
            # A damaged pickle can fail in any of these
            raise InputError(
                f"{path} is damaged; restore it or store the features again with ConvOutput.py"
            ) from None
        if not target.numel():
            raise InputError(
                f"{path} has no label; restore it or store the features again with ConvOutput.py"
            )
        return (
            a.float(),
            b.float(),
            # One number is a label, several are 0 and 1 for each class.
            target.float() if target.numel() > 1 else target.reshape(()).long(),
        )


def _as_tensor(value: Any, path: Path) -> Tensor:
    """Give a stored tensor or number as a tensor.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, Tensor | int | float):
        return torch.as_tensor(value)
    raise InputError(
        f"{path} holds a {type(value).__name__} where a tensor, an array or a number was expected"
    )
