"""What is compared: nets with their features at some layers, and the images that they saw."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from consistency.factorised_ridge import Maps, take
from consistency.permutation import PermutedErrors, Regression
from models.tail import FrozenTail

Size = tuple[int, int]
# Of what rounding to bfloat16 changes of a weight, relative; and to float16 of a tiny one
ROUNDING, TINY = 2.0**-8, 2.0**-24


class Resized:
    """Maps (N, C, H, W) of which those that are asked for are brought to another size.

    Args:
        maps: of all images.
        size: h and w. One position stands for the mean over all; else it is interpolated.
    """

    def __init__(self, maps: Maps, size: Size) -> None:
        self.maps, self.size = maps, size
        self.shape = (*maps.shape[:2], *size)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor:
        """Give the maps of some images, (n, C, h, w)."""
        maps = take(self.maps, images).float()
        if self.size == (1, 1):
            return maps.mean((2, 3), keepdim=True)
        return F.interpolate(maps, self.size, mode="bilinear", align_corners=False)


def of_size(maps: Maps, size: Size) -> Maps:
    """Give maps at a size, as they are where they have it."""
    return maps if tuple(maps.shape[2:]) == size else Resized(maps, size)


@dataclass
class ComparedLayer:
    """One layer of a net, and its features.

    Attributes:
        name: of the cut, or as a module is called that ends there.
        stage: the number of the stage that ends there, from 1; None: none does.
        depth: the share of the net's cuts up to it, in (0, 1].
        shape: of one image's feature, (C, H, W), (T, C) or (C,).
        fitted: maps of the images that regressions are fitted to, (N, C, h, w).
        held_out: maps of those that they are judged on, (N', C, h, w).
        identity: what these features were made of.
        tail: opens what follows the layer; None: the net's end is not at hand.
    """

    name: str
    stage: int | None
    depth: float
    shape: tuple[int, ...]
    fitted: Maps
    held_out: Maps
    identity: str
    tail: Callable[[], FrozenTail] | None = None

    @property
    def size(self) -> Size:
        """How many positions the maps have, down and across."""
        return tuple(self.held_out.shape[2:])

    @property
    def is_averaged(self) -> bool:
        """Whether the maps have fewer positions than the layer gives."""
        positions = int(np.prod(self.held_out.shape[2:]))
        # (C, H, W), (T, C) or (C,)
        # Positions are H × W, T or none: all axes but the channels, which tokens have last.
        whole = self.shape[:-1] if len(self.shape) == 2 else self.shape[1:]
        return positions < int(np.prod(whole))

    def record(self) -> dict[str, Any]:
        """Give what a report says of it."""
        return {
            "layer": self.name,
            "stage": self.stage,
            "shape": list(self.shape),
            "depth": self.depth,
            "averaged_to": list(self.size) if self.is_averaged else None,
        }


@dataclass
class ComparedNet:
    """A net, its answers and its layers.

    Attributes:
        label: "A", "B", or "N1", "N2", … of more.
        name: short, for sentences, another for each net.
        facts: what a report says of it besides.
        logits: of the held-out images, (N', K).
        layers: that are compared, in order of depth.
        all_layers: of the matrix, whose maps have fewer positions; none: there is no matrix.
        knows_classes: its answers are these images' classes.
        state: gives its weights, to see whether two nets are equal.
    """

    label: str
    name: str
    facts: Mapping[str, Any]
    logits: Tensor
    layers: Sequence[ComparedLayer]
    all_layers: Sequence[ComparedLayer] = ()
    knows_classes: bool = True
    state: Callable[[], Mapping[str, Tensor]] | None = None


@dataclass
class ComparedImages:
    """The images that both nets saw.

    Attributes:
        fitted: classes of the images that regressions are fitted to, int64 (N,).
        held_out: classes of those that they are judged on, (N',).
        classes: their names.
        folder: where they are.
        paths: of the held-out images.
        identity: of their contents.
        notes: sentences about what is left out, and why.
    """

    fitted: Tensor
    held_out: Tensor
    classes: Sequence[str]
    folder: str = ""
    paths: Sequence[str] = ()
    identity: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def labels(self) -> tuple[Tensor, Tensor]:
        """The classes of the fitted and of the held-out images."""
        return self.fitted, self.held_out

    @property
    def has_classes(self) -> bool:
        """Whether there are two classes, and two held-out images of one."""
        counts = self.held_out.unique(return_counts=True)[1]
        return len(counts) > 1 and int(counts.max()) > 1

    def record(self) -> dict[str, Any]:
        """Give what a report says of them."""
        counts = self.held_out.bincount(minlength=len(self.classes))
        return {
            "folder": self.folder,
            "fitted": len(self.fitted),
            "held_out": len(self.held_out),
            "classes": list(self.classes),
            "per_class_min": int(counts.min()),
            "notes": list(self.notes),
        }


class LinearSource:
    """A layer as x of linear references: factorised once for all targets of one size.

    Args:
        layer: of net A.
        size: of the targets' maps.
        kernel_size: of the convolution.
    """

    def __init__(self, layer: ComparedLayer, size: Size, kernel_size: int) -> None:
        self.layer, self.size, self.kernel_size = layer, size, kernel_size
        self.fitted, self.held_out = (
            of_size(maps, size) for maps in (layer.fitted, layer.held_out)
        )

    @cached_property
    def itself(self) -> Regression:
        """A → A, whose factor serves all targets; each of these chooses its ridge weight."""
        both = self.fitted, self.held_out
        return Regression(both, both, weight=None, kernel_size=self.kernel_size)

    @cached_property
    def ceiling(self) -> PermutedErrors:
        """What A → A leaves."""
        return self.itself.observed()

    def to(self, target: ComparedLayer) -> Regression:
        """Give the regression to a layer of net B."""
        both = [of_size(maps, self.size) for maps in (target.fitted, target.held_out)]
        return Regression((self.fitted, self.held_out), both, like=self.itself)


def kernel_of(first: ComparedLayer, second: ComparedLayer) -> int:
    """Say the kernel of a linear reference: 3 between maps, 1 between all else."""
    return 3 if len(first.shape) == len(second.shape) == 3 else 1


def common_size(x: ComparedLayer, target: ComparedLayer) -> Size:
    """Say the size at which x and the target are compared.

    The target's, to which x is brought. Maps beside tokens or vectors are averaged over all
    positions.
    """
    return target.size if len(x.shape) == len(target.shape) else (1, 1)


def equality(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> str:
    """Say whether the weights of two nets are "equal", "equal but for rounding" or "different".

    Rounding is what storing in float16 or bfloat16 changes.
    """
    # By name: another order of the same tensors is the same net.
    shapes = [{name: value.shape for name, value in state.items()} for state in (first, second)]
    if shapes[0] != shapes[1]:
        return "different"
    worst = "equal"
    for name, value in first.items():
        other = second[name]
        if torch.equal(value, other):
            continue
        one, two = value.double(), other.double()
        # Relative, as bfloat16 rounds; absolute, as float16 rounds tiny numbers.
        allowed = ROUNDING * torch.maximum(one.abs(), two.abs()) + TINY
        if not bool(((one - two).abs() <= allowed).all()):
            return "different"
        worst = "equal but for rounding"
    return worst


def parameters_of(model: nn.Module) -> int:
    """Count the numbers that training changes."""
    return sum(parameter.numel() for parameter in model.parameters())
