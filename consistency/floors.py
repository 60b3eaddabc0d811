"""Floors that need no fit: what the class alone explains of B's features, and of what A's leave.

About the mean map m_c of each class, over the n_c images of class c, position by position, with U
positions and C channels:

    Var_w = 1/(N U C) Σ_i n_c/(n_c − 1) |x_i − m_c|²                within, an unbiased estimate
    Var_b = 1/(N U C) Σ_c n_c |m_c − m|² − what chance adds        between, m the mean map of all

Class means of few images differ by chance: Σ_c n_c |m_c − m|² expects Σ_c s_c² (1 − n_c/N) too
much, s_c² being the variance of one image in its class. Uncorrected, a net that gives the true
class means seems to lack 0.70 of what lies between classes of 5 images, and 0.31 of 24.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import InputError

CHUNK_BYTES = 1 << 26  # of float64 copies of a batch


@dataclass(frozen=True)
class ClassVariances:
    """Variances of features within and between classes, a unit's mean of squares.

    Attributes:
        images: that were counted: those of classes of two images or more.
        within, between: see above; `between` can be below 0 by chance.
        about_channels: Var(x), from each channel's mean, over all images.
        small_classes: classes of one image, which are left out.
    """

    images: int
    within: float
    between: float
    about_channels: float
    small_classes: int

    @property
    def floor(self) -> float:
        """I_0 = Var_w / Var(x): the instability of a sender that knows the class means alone.

        Var_w is the variance within the classes.
        """
        return self.within / self.about_channels if self.about_channels else float("nan")


class ClassMoments:
    """Accumulate the sums that `ClassVariances` follow from, in one pass.

    Memory: the mean maps of the classes, 8·U·C bytes each.
    """

    def __init__(self) -> None:
        self.images = 0
        self._origin = torch.zeros(0)  # (C, 1), about which nothing cancels
        self._maps: dict[int, Tensor] = {}  # Σ x of each class, (C, U)
        self._squares: dict[int, float] = {}  # Σ |x|²
        self._counts: dict[int, int] = {}

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add a batch.

        Args:
            features: maps (N, C, H, W), or any (N, C, …), floating.
            labels: the images' classes, integers (N,).

        Raises:
            InputError: other shapes than before, several labels an image, or values that are not
                finite.
        """
        if labels.ndim != 1:
            raise InputError(
                "the variance within classes needs one class for each image, and these labels have"
                f" shape {tuple(labels.shape)}"
            )
        size = max(1, CHUNK_BYTES // (8 * features[0].numel()))
        for chunk, kinds in zip(features.split(size), labels.split(size)):
            # (n, C, U); a vector has one position
            maps = chunk.double().flatten(2) if chunk.ndim > 2 else chunk.double()[..., None]
            # The first batch's channel means are the origin of all sums.
            if not self.images:
                self._origin = maps.mean((0, 2))[:, None]
            if maps.shape[1] != len(self._origin):
                raise InputError(
                    f"all batches must have {len(self._origin)} channels, not {maps.shape[1]}"
                )
            # About it |x|² is of the size of the variance, and nothing cancels.
            maps = maps - self._origin
            if not maps.isfinite().all():
                raise InputError(
                    "features must be finite, but NaN or infinity came; look at the nets"
                )
            for label in kinds.unique().tolist():
                members = maps[kinds == label]
                # Sums of maps, not of positions: a class mean is a map.
                self._maps[label] = self._maps.get(label, 0) + members.sum(0)
                self._squares[label] = self._squares.get(label, 0) + members.square().sum().item()
                self._counts[label] = self._counts.get(label, 0) + len(members)
            self.images += len(maps)

    def variances(self) -> ClassVariances:
        """Give the variances.

        Raises:
            InputError: no class has two images.
        """
        labels = [label for label, count in self._counts.items() if count > 1]
        if not labels:
            raise InputError(
                f"variances within classes need two images of a class, but the {len(self._counts)}"
                " images are of as many classes; take more images"
            )
        # The symbols are those of the module's docstring: m_c are `means`, m is maps.sum(0) /
        # total.
        counts = torch.tensor([self._counts[label] for label in labels], dtype=torch.float64)
        maps = torch.stack([self._maps[label] for label in labels]).cpu()  # Σ x, (K, C, U)
        units, total = maps[0].numel(), counts.sum()
        squares = torch.tensor([self._squares[label] for label in labels], dtype=torch.float64)
        means = maps / counts[:, None, None]
        spread = squares - counts * means.square().sum((1, 2))  # Σ_i |x_i − m_c|²
        of_one = spread / (counts - 1)  # s_c²
        # n_c |m_c − m|²
        apart = counts * (means - maps.sum(0) / total).square().sum((1, 2))
        chance = of_one * (1 - counts / total)
        return ClassVariances(
            int(total),
            max(0.0, ((counts * of_one).sum() / (total * units)).item()),
            ((apart - chance).sum() / (total * units)).item(),
            self._about_channels(units),
            len(self._counts) - len(labels),
        )

    def _about_channels(self, units: int) -> float:
        """Give Var(x) about the means of the channels, of all images."""
        # (K, C, U) → (C,)
        mean = torch.stack(list(self._maps.values())).sum((0, 2)) / (self.images * units)
        mean = mean * len(self._origin)  # units are U·C, a channel's mean is over U
        squares = sum(self._squares.values()) / (self.images * units)
        return max(0.0, squares - mean.square().mean().item())


@dataclass(frozen=True)
class ClassShares:
    """What A's features explain of B's between the classes and within them.

    Attributes:
        within: 1 − Var_w(x_Δ) / Var_w(x*), 1: all that images of one class differ in.
        between: 1 − Var_b(x_Δ) / Var_b(x*). NaN where x* does not vary so.
        floor: I_0, which the class means of B alone leave.
        above_class_means: 1 − I / I_0, 0 for a sender of the class means.
    """

    within: float
    between: float
    floor: float
    above_class_means: float


def class_shares(target: ClassVariances, residual: ClassVariances) -> ClassShares:
    """Compare the variances of x* and of x_Δ, of the same images."""

    def explained(rest: float, whole: float) -> float:
        return 1 - rest / whole if whole > 0 else float("nan")

    floor = target.floor
    share = explained(residual.about_channels, target.about_channels)  # 1 − I
    return ClassShares(
        explained(residual.within, target.within),
        explained(residual.between, target.between),
        floor,
        1 - (1 - share) / floor if floor > 0 else float("nan"),
    )


def class_variances(batches: Sequence[tuple[Tensor, Tensor]]) -> ClassVariances:
    """Measure features that come in batches: (features, labels) each; see `ClassMoments.update`."""
    moments = ClassMoments()
    for features, labels in batches:
        moments.update(features, labels)
    return moments.variances()
