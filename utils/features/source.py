"""The pairs of features that a step reads, stored or live."""

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
    """Pairs of features with their origin.

    Attributes:
        data: images, or stored features: the content of a batch.
        read: a batch on the device → x and the target as maps.
        shapes: of x and the target of one image.
        provenance: the features' origin.
        nets: of live features both whole networks, pixels → logits.
    """

    data: ImageData | Features
    read: Callable[..., tuple[Tensor, Tensor]]
    shapes: tuple[Shape, Shape]
    provenance: Provenance
    nets: tuple[nn.Module, nn.Module] | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of stored features; None for live ones."""
        return None if isinstance(self.data, ImageData) else self.data.folder

    def reversed(self) -> "Source":
        """Exchange A and B: x is then B's feature, and the target A's."""
        of_x, of_target = self.shapes
        read = partial(_read_reversed, read=self.read)
        nets = self.nets and (self.nets[1], self.nets[0])
        return Source(self.data, read, (of_target, of_x), self.provenance.reversed(), nets)


def costs(shapes: tuple[Shape, Shape], images: int, flops: int | None) -> str:
    """Write the two costs to choose by: disk space of stored features, operations of live ones.

    Args:
        shapes: of one image's features.
        images: the number of fitted images.
        flops: operations for both features of one image; None: unknown.
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
    """Read a batch with x and target exchanged; a named function, which workers can receive."""
    x, target = read(*batch)
    return target, x


def hold_out(count: int, share: float) -> tuple[Tensor, Tensor]:
    """Hold images out at equal distances.

    Args:
        count: the number of all images.
        share: of held-out images, in [0, 1); at most every second image is held out.

    Returns:
        The numbers of the fitted and of the held-out images, int64, in order.
    """
    # count + 1 is reached by no number: nothing is held out.
    every = max(2, round(1 / share)) if share else count + 1
    is_held_out = torch.arange(count) % every == every - 1
    return (~is_held_out).nonzero()[:, 0], is_held_out.nonzero()[:, 0]
