"""The linear reference under permutations of the images: one factorisation serves all of them.

A ridge regression from patches P of A's feature (one row for each image and position) to B's feature Y solves
(PᵀP + λ) W = PᵀY. To pair the targets with other images' x leaves PᵀP as it is, so that its Cholesky factor is
computed once, and a permutation costs one pass of products PᵀY and PW. Where there are fewer rows than columns, the
same W comes from the dual form Pᵀ(PPᵀ + λ)⁻¹Y.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from utils.errors import InputError
from utils.measures.bootstrap import Interval
from utils.measures.calibration import (
    Null,
    consistency_interval,
    normalised_consistency,
    permutations,
    shuffled_within_class,
)

BLOCK_BYTES = 1 << 28  # of the solutions W that are in memory at one time
CHUNK_BYTES = 1 << 26  # of the rows that are, in float64


class Rows(Protocol):
    """Maps (N, C, H, W) that are read as they are asked for."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor: ...


Maps = Tensor | NDArray[np.floating] | Rows  # (N, C, H, W), in memory, memory-mapped or read


@dataclass(frozen=True)
class PermutedErrors:
    """Squared errors of regressions on held-out images, one sum for each target's image.

    Attributes:
        target: Σ |y − mean y|² over an image's positions and channels, float64 (N,).
        observed: Σ |y − ŷ − mean(y − ŷ)|² of the true pairs, (N,).
        draws: of the permuted pairs, (B, N).
    """

    target: NDArray[np.float64]
    observed: NDArray[np.float64]
    draws: NDArray[np.float64]

    def null(self) -> Null:
        """Give the instabilities Var(x_Δ)/Var(x*) of the true and of the permuted pairs."""
        total = self.target.sum()
        return Null(float(self.observed.sum() / total), self.draws.sum(1) / total)


def permuted_errors(
    x_fit: Maps, target_fit: Maps, x_held: Maps, target_held: Maps, fit_orders: Tensor, held_orders: Tensor,
    *, weight: float = 0.1, kernel_size: int = 1, device: str | torch.device = "cpu",
) -> PermutedErrors:  # fmt: skip
    """Fit the linear reference to the true and to permuted pairs of some images, and judge it on such pairs of others.

    x and x* are shifted by their channels' means over the fitting images; x is padded with zeros, as by a convolution.
    The ridge weight is the same for all pairings, and must not have been chosen by the true one: then a permutation
    would have a handicap, and p would be too small.

    Memory: the features, 8·p² bytes for the factor (p = C·kernel_size²; dual: 16·rows·p), and the two constants above
    (at least one W of 8·p·D bytes and one image). Time: 4·p·D multiplications a row and permutation.

    Args:
        x_fit: A's features of the images that are fitted to, (N, C, H, W).
        target_fit: B's of the same images, (N, D, H, W).
        x_held: A's of those that it is judged on, (N', C, H, W).
        target_held: B's, (N', D, H, W).
        fit_orders: (B, N), see `calibration`: the target of image i stands beside x of image order[i].
        held_orders: (B, N').
        weight: of the penalty, as a multiple of the mean of PᵀP's diagonal, above 0.
        kernel_size: of the convolution, odd.
        device: that computes, in float64.

    Raises:
        InputError: Maps of different sizes or numbers, or a constant target.
    """
    if not (x_fit.shape[2:] == target_fit.shape[2:] == x_held.shape[2:] == target_held.shape[2:]):
        raise InputError(f"x and x* must have one size, not {x_fit.shape[2:]} and {target_fit.shape[2:]}; resize x.")
    if len(x_fit) != len(target_fit) or len(x_held) != len(target_held):
        raise InputError("x and x* must be of the same images, but their numbers differ.")
    orders = [torch.cat([torch.arange(part.shape[1])[None], part]) for part in (fit_orders, held_orders)]
    inverses = [part.argsort(1) for part in orders]  # x of image j stands beside the target of inverse[j]
    x_mean, target_mean = (channel_means(part, device) for part in (x_fit, target_fit))
    reference = Reference(x_fit, x_mean, weight, kernel_size)
    targets_fit, targets_held = Targets(target_fit, target_mean), Targets(target_held, target_mean)
    total = targets_held.squares()
    if not total.sum() > 0:
        raise InputError("x* is constant on the held-out images, so that nothing can be explained; look at net B.")
    block = max(1, BLOCK_BYTES // (8 * reference.columns * target_fit.shape[1]))
    errors = [
        reference.errors(reference.solve(targets_fit, fit), x_held, targets_held, held)
        for fit, held in zip(inverses[0].split(block), inverses[1].split(block))
    ]
    found = torch.cat(errors).cpu().numpy()
    return PermutedErrors(total.cpu().numpy(), found[0], found[1:])


def untrue_errors(
    x_fit: Maps, target_fit: Maps, x_held: Maps, target_held: Maps, fit_orders: Tensor, labels: Tensor,
    *, weight: float = 0.1, kernel_size: int = 1, device: str | torch.device = "cpu",
) -> NDArray[np.float64]:  # fmt: skip
    """Fit the linear reference to shuffled pairs, and judge it on every two held-out images of a class.

    Memory: as `permuted_errors`, and sums of each class, 8·D·H·W bytes a class and pairing.

    Args:
        x_fit: as of `permuted_errors`, like all that is not `labels`.
        target_fit: B's features of the same images.
        x_held: A's of the images that it is judged on.
        target_held: B's.
        fit_orders: the pairings to fit to, (B, N).
        labels: the classes of the held-out images, integers (N',).
        weight: of the penalty.
        kernel_size: of the convolution.
        device: that computes.

    Returns:
        The images' parts of the squared errors, float64 (B, N'), see `Reference.untrue_errors`.

    Raises:
        InputError: No class has two held-out images.
    """
    if labels.unique(return_counts=True)[1].max() < 2:
        raise InputError("a null needs two held-out images of a class, but no class has them; take more images.")
    x_mean, target_mean = (channel_means(part, device) for part in (x_fit, target_fit))
    reference = Reference(x_fit, x_mean, weight, kernel_size)
    targets_fit, targets_held = Targets(target_fit, target_mean), Targets(target_held, target_mean)
    rows = max(reference.columns, len(labels.unique()) * reference.positions)
    block = max(1, BLOCK_BYTES // (8 * rows * target_fit.shape[1]))
    errors = [
        reference.untrue_errors(reference.solve(targets_fit, inverses), x_held, targets_held, labels)
        for inverses in fit_orders.argsort(1).split(block)
    ]
    return torch.cat(errors).cpu().numpy()


class LinearCalibration(NamedTuple):
    """What the linear reference's instability is worth.

    Attributes:
        null: it and those of permuted pairs: a test.
        intervals: "instability", "null" (the mean of shuffled pairs), "ceiling" (A → A) and the normalised
            "consistency"; they hold every regression as it was fitted.
    """

    null: Null
    intervals: dict[str, Interval]

    def report(self) -> dict[str, Any]:
        """Give the test and the intervals as plain values.

        "p" and "zero" are of the test; "above_zero" is the consistency with the zero in the null's place: a pair whose
        test does not reject has 0 or less.
        """
        zero, instability = self.null.zero(), self.null.observed
        above = normalised_consistency(instability, zero, self.intervals["ceiling"].value or 0.0)
        return {
            "permutations": len(self.null.draws), "p": self.null.p_value, "zero": zero, "above_zero": float(above),
            **{name: asdict(interval) for name, interval in self.intervals.items()},
        }  # fmt: skip


def calibrate_linear(
    x: Sequence[Maps], target: Sequence[Maps], labels: Sequence[Tensor], generator: torch.Generator,
    *, draws: int = 200, shuffles: int = 10, resamples: int = 1000, **options: Any,
) -> LinearCalibration:  # fmt: skip
    """Hold the linear reference against pairs that share nothing beyond their class, and against A → A.

    Args:
        x: A's features of fitting and of held-out images.
        target: B's of both.
        labels: the classes of both, integers (N,) and (N',); all equal: pairs are mixed over all images.
        generator: of permutations, shuffled pairs and resamples; of the CPU.
        draws: permutations for the test.
        shuffles: pairings without a true pair to fit to; what they leave on average of every two held-out images of a
            class is the consistency's null.
        resamples: of the held-out images, for the intervals.
        options: of `permuted_errors`.

    Raises:
        InputError: see `permuted_errors`, `untrue_errors` and `shuffled_within_class`.
    """
    orders = [permutations(part, draws, generator) for part in labels]
    shuffled = torch.stack([shuffled_within_class(labels[0], generator) for _ in range(shuffles)])
    sides = x[0], target[0], x[1], target[1]
    errors = permuted_errors(*sides, *orders, **options)
    null = untrue_errors(*sides, shuffled, labels[1], **options)
    least = permuted_errors(x[0], x[0], x[1], x[1], *(order[:0] for order in orders), **options)
    intervals = consistency_interval(
        lambda error, total: {"instability": error / total},
        [errors.observed, errors.target],
        [null.mean(0), errors.target],
        [least.observed, least.target],
        resamples=resamples,
        seed=int(torch.randint(1 << 31, (), generator=generator)),
    )
    return LinearCalibration(errors.null(), intervals)


class Targets:
    """B's features, of which images are taken in any order, shifted, as float64 rows."""

    def __init__(self, maps: Maps, mean: Tensor) -> None:
        self.maps, self.mean = maps, mean
        self.bytes_per_image = 8 * int(np.prod(maps.shape[1:]))

    def rows(self, images: Tensor) -> Tensor:
        """Give images (b, n) as rows (n·H·W, b·D)."""
        maps = take(self.maps, images.flatten().numpy()).flatten(2).unflatten(0, images.shape)  # (b, n, D, U)
        rows = self.mean.new_empty([maps.shape[axis] for axis in (1, 3, 0, 2)])
        rows.copy_(maps.permute(1, 3, 0, 2))  # to float64, to the device, into place
        return rows.sub_(self.mean).flatten(2).flatten(0, 1)

    def squares(self) -> Tensor:
        """Sum the squares about the channels' means over these images: (N,)."""
        mean = channel_means(self.maps, self.mean.device)
        size = max(1, CHUNK_BYTES // self.bytes_per_image)
        return torch.cat([
            (take(self.maps, slice(start, start + size)).to(mean).flatten(2) - mean[:, None]).square().sum((1, 2))
            for start in range(0, len(self.maps), size)
        ])  # fmt: skip


class Reference:
    """The regression from one feature, factorised."""

    def __init__(self, x: Maps, mean: Tensor, weight: float, kernel_size: int) -> None:
        self.x, self.mean, self.kernel_size = x, mean, kernel_size
        self.columns = x.shape[1] * kernel_size**2
        self.positions = int(np.prod(x.shape[2:]))
        self.dual = len(x) * self.positions < self.columns
        if self.dual:
            rows = torch.cat([part for _, part in self.patches(x, 0)])
            gram = rows @ rows.mT
        else:
            gram = mean.new_zeros(self.columns, self.columns)
            for _, rows in self.patches(x, 0):
                gram += rows.mT @ rows
        gram.diagonal().add_(weight * (float(gram.trace()) / self.columns or 1.0))  # a dead feature counts as ones
        self.factor = torch.linalg.cholesky(gram)
        self.solved = torch.cholesky_solve(rows, self.factor) if self.dual else rows[:0]

    def patches(self, x: Maps, bytes_beside: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield images and their rows (n·H·W, p), n so that they and `bytes_beside` an image fit a chunk."""
        size = max(1, CHUNK_BYTES // (8 * self.positions * self.columns + bytes_beside))
        for start in range(0, len(x), size):
            part = take(x, slice(start, start + size)).to(self.mean) - self.mean[:, None, None]
            rows = F.unfold(part, self.kernel_size, padding=self.kernel_size // 2)  # (n, p, U)
            yield slice(start, start + len(part)), rows.mT.flatten(0, 1)

    def solve(self, targets: Targets, inverses: Tensor) -> Tensor:
        """Give W of each pairing, (p, b·D)."""
        cross = self.mean.new_zeros(self.columns, len(inverses) * len(targets.mean))
        for images, patches in self.patches(self.x, targets.bytes_per_image * len(inverses)):
            places = slice(images.start * self.positions, images.stop * self.positions)
            rows = self.solved[places] if self.dual else patches
            cross += rows.mT @ targets.rows(inverses[:, images])
        return cross if self.dual else torch.cholesky_solve(cross, self.factor)

    def errors(self, solution: Tensor, x: Maps, targets: Targets, inverses: Tensor) -> Tensor:
        """Sum the squared errors of each target's image, (b, N); they add up to those about the channels' means."""
        pairings, images = inverses.shape
        found = solution.new_zeros(pairings, images)
        channel_sums = solution.new_zeros(pairings, len(targets.mean))
        for part, target, predicted in self.predictions(solution, x, targets, inverses):
            error = target - predicted
            found.scatter_(1, inverses[:, part].to(found.device), error.square().sum((1, 3)).mT)
            channel_sums += error.sum((0, 1))
        return found - channel_sums.square().sum(1, keepdim=True) / (images * self.positions) / images

    def untrue_errors(self, solution: Tensor, x: Maps, targets: Targets, labels: Tensor) -> Tensor:
        """Divide the mean squared error over all pairs of two images of a class among the images, (b, N).

        With means over the other images j of the class, and over its pairs j, k of two,

            |y_i|² + |ŷ_i|² − 2 mean y_i·ŷ_j − 2 mean y_j·ŷ_i + 2 mean y_j·ŷ_k

        is image i's part: it takes part as a target and as a source. So a resample of the images varies their sum as
        other images would, and an image's own squares cancel against those of its true pair. The only image of its
        class is paired with itself.
        """
        _, kinds, counts = (part.to(solution.device) for part in labels.unique(return_inverse=True, return_counts=True))
        size, identity = counts[kinds, None], torch.arange(len(labels))[None]
        target_sums, predicted_sums = (
            solution.new_zeros(len(counts), self.positions, columns // len(targets.mean), len(targets.mean))
            for columns in (len(targets.mean), solution.shape[1])
        )
        for part, target, predicted in self.predictions(solution, x, targets, identity):
            target_sums.index_add_(0, kinds[part], target)
            predicted_sums.index_add_(0, kinds[part], predicted)
        found, products = (solution.new_zeros(len(labels), predicted_sums.shape[2]) for _ in range(2))
        for part, target, predicted in self.predictions(solution, x, targets, identity):
            own = (target * predicted).sum((1, 3))
            both = (target * predicted_sums[kinds[part]], target_sums[kinds[part]] * predicted)
            others = (size[part] - 1).clamp(min=1)
            first, second = (torch.where(size[part] > 1, one.sum((1, 3)) - own, own) / others for one in both)
            found[part] = target.square().sum((1, 3)) + predicted.square().sum((1, 3)) - 2 * (first + second)
            products[part] = first
        means = solution.new_zeros(len(counts), products.shape[1]).index_add_(0, kinds, products) / counts[:, None]
        shift = (target_sums - predicted_sums).sum((0, 1)).square().sum(1) / (len(labels) * self.positions)
        return (found + 2 * means[kinds] - shift / len(labels)).mT

    def predictions(
        self, solution: Tensor, x: Maps, targets: Targets, inverses: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield images x, the targets beside them and the predictions, (n, U, b, D); one pairing may serve all."""
        channels = len(targets.mean)
        for part, rows in self.patches(x, targets.bytes_per_image * (solution.shape[1] // channels)):
            both = targets.rows(inverses[:, part]), rows @ solution
            target, predicted = (
                one.unflatten(1, (-1, channels)).unflatten(0, (-1, self.positions)) for one in both
            )  # fmt: skip
            yield part, target, predicted


def channel_means(maps: Maps, device: str | torch.device) -> Tensor:
    """Average each channel over images and positions, float64 (C,)."""
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(maps.shape[1:]))))
    total = torch.zeros(maps.shape[1], dtype=torch.float64, device=device)
    for start in range(0, len(maps), size):
        total += take(maps, slice(start, start + size)).to(total).mean((2, 3)).sum(0)
    return total / len(maps)


def take(maps: Maps, images: slice | NDArray[np.int64]) -> Tensor:
    """Read some images; those of a memory-mapped file are copied."""
    part = maps[images]
    return part if isinstance(part, Tensor) else torch.from_numpy(np.array(part))
