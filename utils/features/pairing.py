"""Stored features in other pairs than they were stored in:
with other images' targets, x itself, other nets'.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.storage import TensorStore
from utils.features.cache import FeatureCache
from utils.features.old_folder import OldFeatureFolder

Features = FeatureCache | OldFeatureFolder


class Pairing(Dataset[Any]):
    """Stored features with x of image i beside the target of image order[i],
    beside x itself, or beside another target.

    Args:
        features: of both nets.
        order: int64 (N,); None: the true pairs.
        itself: the target is x: A → A.
        target: takes the place of B's features, row i of image i.
        x: takes the place of A's.
    """

    def __init__(
        self,
        features: Features,
        order: Tensor | None = None,
        *,
        itself: bool = False,
        target: TensorStore | None = None,
        x: TensorStore | None = None,
    ) -> None:
        self.features, self.order, self.itself, self.target, self.x = (
            features,
            order,
            itself,
            target,
            x,
        )

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Give x, target, labels, and the numbers of the targets' images."""
        x, target, labels, rows = self.features.__getitems__(indices)
        if self.x is not None:
            x = self.x.gather(rows)
        if self.order is not None:
            rows = self.order[rows]
            _, target, labels, _ = self.features.__getitems__(rows.tolist())
        if self.target is not None:
            target = self.target.gather(rows)
        return x, x if self.itself else target, labels, rows


class Parts(NamedTuple):
    """Pairs to fit and held-out ones, (N,) images;
    with their `classes` these stand for all pairs of two of a class.
    """

    train: Pairing
    val: Pairing
    classes: Tensor | None = None


class Side:
    """One net's features of all images as an array of maps (N,
    C, H, W), of which the rows that are asked for are read.

    Args:
        features: of both nets.
        which: 0: x, 1: the target.
        view: a batch of features (n, …) → maps (n, C, H, W).
    """

    def __init__(self, features: Features, which: int, view: Callable[[Tensor], Tensor]) -> None:
        self.features, self.which, self.view = features, which, view
        self.shape = (len(features), *self[:1].shape[1:])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor:
        """Give the maps of some images, (n, C, H, W) float32."""
        rows = range(len(self))[images] if isinstance(images, slice) else images.tolist()
        return self.view(self.features.__getitems__(rows)[self.which])


def classes_of(features: Features) -> Tensor:
    """Give the images' classes, int64 (N,); all are one where an image has several labels."""
    return (
        features.targets
        if features.targets.ndim == 1
        else torch.zeros(len(features), dtype=torch.int64)
    )
