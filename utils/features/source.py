"""The pairs of features that a step reads: stored ones,
or ones that are computed of images as they are read.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.data.images import ImageData
from utils.features.pairing import Features
from utils.files import in_words
from utils.provenance import Provenance

Shape = tuple[int, ...]


class Source(NamedTuple):
    """Pairs of features, and what they are.

    Attributes:
        data: what a batch is made of: images, or stored features.
        read: a batch on the device → x and the target as maps.
        shapes: of x and the target of one image.
        provenance: what the features are.
        nets: of features that are computed, both whole networks, pixels → logits.
    """

    data: ImageData | Features
    read: Callable[..., tuple[Tensor, Tensor]]
    shapes: tuple[Shape, Shape]
    provenance: Provenance
    nets: tuple[nn.Module, nn.Module] | None = None

    @property
    def folder(self) -> Path | None:
        """Where the features are stored, if they are."""
        return None if isinstance(self.data, ImageData) else self.data.folder

    def reversed(self) -> "Source":
        """Exchange A and B: x is then B's feature, and the target A's."""
        of_x, of_target = self.shapes
        read = partial(_read_reversed, read=self.read)
        nets = self.nets and (self.nets[1], self.nets[0])
        return Source(self.data, read, (of_target, of_x), self.provenance.reversed(), nets)


def costs(shapes: tuple[Shape, Shape], images: int, flops: int | None) -> str:
    """Say the two numbers by which to choose between stored
    features and such that are computed as they are read.

    Args:
        shapes: of one image's features.
        images: how many are fitted.
        flops: of computing both features of one image; None: that is not known.
    """
    stored = 4 * images * sum(math.prod(shape) for shape in shapes)
    computed = (
        "an unknown number of FLOPs" if flops is None else f"{images * flops / 1e9:,.1f} GFLOP"
    )
    return (
        f"these features take {in_words(stored)} on disk as float32, or {computed} to compute in"
        " every epoch"
    )


def _read_reversed(
    *batch: Tensor, read: Callable[..., tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    x, target = read(*batch)
    return target, x


def hold_out(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Set every so many-th of `count` images aside.

    Args:
        count: of all images.
        share: of them that is set aside, in [0, 1); at most every second one is.

    Returns:
        Which images are fitted and which are measured, int64, in order.
    """
    every = max(2, round(1 / share)) if share else count + 1
    held = torch.arange(count) % every == every - 1
    return (~held).nonzero()[:, 0], held.nonzero()[:, 0]
