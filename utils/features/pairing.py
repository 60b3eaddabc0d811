"""Stored features in other pairs: with targets of other images, with x itself, or of other nets."""

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
    """Pairs of x of image i and the target of image order[i], or another target.

    Args:
        features: of both nets.
        order: int64 (N,); None: the true pairs.
        itself: the target is x: A → A.
        target: replaces B's features; row i is image i's.
        x: replaces A's features; row i is image i's.
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
        self.features, self.order, self.itself = features, order, itself
        self.target, self.x = target, x

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Give x, the target, the target's labels, and the numbers of the targets' images."""
        x, target, labels, rows = self.features.__getitems__(indices)
        if self.x is not None:
            x = self.x.gather(rows)
        if self.order is not None:
            # The pair's numbers and labels are those of the target's image.
            rows = self.order[rows]
            _, target, labels, _ = self.features.__getitems__(rows.tolist())
        if self.target is not None:
            target = self.target.gather(rows)
        return x, x if self.itself else target, labels, rows


class Parts(NamedTuple):
    """Pairs to fit, and held-out pairs of N images.

    With the images' `classes`, int64 (N,), the held-out pairs stand for all pairs of two images of
    one class.
    """

    train: Pairing
    val: Pairing
    classes: Tensor | None = None


class Side:
    """One net's features of all images, an array of maps (N, C, H, W) that is read by rows.

    Args:
        features: of both nets.
        which: 0: x, 1: the target.
        view: a batch of features (n, …) → maps (n, C, H, W).
    """

    def __init__(self, features: Features, which: int, view: Callable[[Tensor], Tensor]) -> None:
        self.features, self.which, self.view = features, which, view
        # One image is read for the shape.
        self.shape = (len(features), *self[:1].shape[1:])

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor:
        """Give the maps of some images, (n, C, H, W) float32."""
        rows = range(len(self))[images] if isinstance(images, slice) else images.tolist()
        return self.view(self.features.__getitems__(rows)[self.which])


def classes_of(features: Features) -> Tensor:
    """Give the images' classes, int64 (N,); images with several labels are all of class 0."""
    if features.targets.ndim == 1:
        return features.targets
    return torch.zeros(len(features), dtype=torch.int64)
