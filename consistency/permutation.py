"""The linear reference under permutations of the images,
and beside pairs that share nothing beyond their class.

To pair the targets with other images' x leaves PᵀP as it is, so that one factorisation serves all
pairings, see `factorised_ridge`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistency.bootstrap import Interval
from consistency.calibration import (
    Null,
    check_pairs,
    consistency_interval,
    errors_of_untrue_pairs,
    instability_of,
    normalised_consistency,
    permutations,
    shuffled_within_class,
)
from consistency.factorised_ridge import Maps, Reference, Targets, channel_means
from utils.errors import InputError

BLOCK_BYTES = 1 << 26  # of the solutions W that are in memory at one time


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
    x_fit: Maps,
    target_fit: Maps,
    x_held: Maps,
    target_held: Maps,
    fit_orders: Tensor,
    held_orders: Tensor,
    *,
    weight: float = 0.1,
    kernel_size: int = 1,
    device: str | torch.device = "cpu",
) -> PermutedErrors:
    """Fit the linear reference to the true and to permuted pairs of some images,
    and judge it on such pairs of others.

    x and x* are shifted by their channels' means over the fitting images; x is padded with zeros,
    as by a convolution. The ridge weight is the same for all pairings, and must not have been
    chosen by the true one: then a permutation would have a handicap, and p would be too small.

    Memory: the features, 8·p² bytes for the factor (p = C·kernel_size²; dual: 16·rows·p),
        `BLOCK_BYTES` and
    `factorised_ridge.CHUNK_BYTES` (at least one W of 8·p·D bytes and one image).
    Time: 4·p·D multiplications a row and permutation.

    Args:
        x_fit: A's features of the images that are fitted to, (N, C, H, W).
        target_fit: B's of the same images, (N, D, H, W).
        x_held: A's of those that it is judged on, (N', C, H, W).
        target_held: B's, (N', D, H, W).
        fit_orders: (B, N), see `calibration`: the target of image i stands beside x of image
            order[i].
        held_orders: (B, N').
        weight: of the penalty, as a multiple of the mean of PᵀP's diagonal, above 0.
        kernel_size: of the convolution, odd.
        device: that computes; products are in the precision of the features, sums in float64.

    Raises:
        InputError: Maps of different sizes or numbers, or a constant target.
    """
    if not (x_fit.shape[2:] == target_fit.shape[2:] == x_held.shape[2:] == target_held.shape[2:]):
        raise InputError(
            f"x and x* must have one size, not {x_fit.shape[2:]} and {target_fit.shape[2:]};"
            " resize x."
        )
    if len(x_fit) != len(target_fit) or len(x_held) != len(target_held):
        raise InputError("x and x* must be of the same images, but their numbers differ.")
    orders = [
        torch.cat([torch.arange(part.shape[1])[None], part]) for part in (fit_orders, held_orders)
    ]
    # X of image j stands beside the target of inverse[j]
    inverses = [part.argsort(1) for part in orders]
    x_mean, target_mean = (channel_means(part, device) for part in (x_fit, target_fit))
    reference = Reference(x_fit, x_mean, weight, kernel_size)
    targets_fit, targets_held = Targets(target_fit, target_mean), Targets(target_held, target_mean)
    total = targets_held.squares()
    if not total.sum() > 0:
        raise InputError(
            "x* is constant on the held-out images, so that nothing can be explained; look at"
            " net B."
        )
    block = max(1, BLOCK_BYTES // (8 * reference.columns * target_fit.shape[1]))
    errors = [
        reference.errors(reference.solve(targets_fit, fit), x_held, targets_held, held)
        for fit, held in zip(inverses[0].split(block), inverses[1].split(block))
    ]
    found = torch.cat(errors).cpu().numpy()
    return PermutedErrors(total.cpu().numpy(), found[0], found[1:])


def untrue_errors(
    x_fit: Maps,
    target_fit: Maps,
    x_held: Maps,
    target_held: Maps,
    fit_orders: Tensor,
    labels: Tensor,
    *,
    weight: float = 0.1,
    kernel_size: int = 1,
    device: str | torch.device = "cpu",
) -> NDArray[np.float64]:
    """Fit the linear reference to shuffled pairs,
    and judge it on every two held-out images of a class.

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
        The images' parts of the squared errors, float64 (B, N'), see `errors_of_untrue_pairs`.

    Raises:
        InputError: No class has two held-out images.
    """
    check_pairs(labels)
    x_mean, target_mean = (channel_means(part, device) for part in (x_fit, target_fit))
    reference = Reference(x_fit, x_mean, weight, kernel_size)
    targets_fit, targets_held = Targets(target_fit, target_mean), Targets(target_held, target_mean)
    rows = max(reference.columns, len(labels.unique()) * reference.positions)
    block = max(1, BLOCK_BYTES // (8 * rows * target_fit.shape[1]))
    identity, errors = torch.arange(len(labels))[None], []
    for inverses in fit_orders.argsort(1).split(block):
        solution = reference.solve(targets_fit, inverses)
        predictions = partial(reference.predictions, solution, x_held, targets_held, identity)
        shape = (reference.positions, len(inverses), len(target_mean))
        errors.append(errors_of_untrue_pairs(predictions, labels, shape, solution))
    return torch.cat(errors, dim=1).mT.cpu().numpy()


class LinearCalibration(NamedTuple):
    """What the linear reference's instability is worth.

    Attributes:
        null: it and those of permuted pairs: a test.
        intervals: "instability", "null" (the mean of shuffled pairs), "ceiling" (A → A) and the
            normalised "consistency"; they hold every regression as it was fitted.
        sums: every held-out image's part of Var(x*) and Var(x_Δ), (N, 2), of the true pairs, the
            null and the ceiling.
    """

    null: Null
    intervals: dict[str, Interval]
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

    def report(self) -> dict[str, Any]:
        """Give the test and the intervals as plain values.

        "p" and "zero" are of the test; "above_zero" is the consistency with the zero in the null's
        place: a pair whose test does not reject has 0 or less.
        """
        zero, instability = self.null.zero(), self.null.observed
        above = normalised_consistency(instability, zero, self.intervals["ceiling"].value or 0.0)
        return {
            "permutations": len(self.null.draws),
            "p": self.null.p_value,
            "zero": zero,
            "above_zero": float(above),
            **{name: asdict(interval) for name, interval in self.intervals.items()},
        }


def calibrate_linear(
    x: Sequence[Maps],
    target: Sequence[Maps],
    labels: Sequence[Tensor],
    generator: torch.Generator,
    *,
    draws: int = 200,
    shuffles: int = 10,
    resamples: int = 1000,
    **options: Any,
) -> LinearCalibration:
    """Hold the linear reference against pairs that share
    nothing beyond their class, and against A → A.

    Args:
        x: A's features of fitting and of held-out images.
        target: B's of both.
        labels: the classes of both, integers (N,) and (N',); all equal: pairs are mixed over all
            images.
        generator: of permutations, shuffled pairs and resamples; of the CPU.
        draws: permutations for the test.
        shuffles: pairings without a true pair to fit to; what they leave on average of every two
            held-out images of a class is the consistency's null.
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
    sums = (
        np.stack([errors.target, errors.observed], axis=1),
        np.stack([errors.target, null.mean(0)], axis=1),
        np.stack([least.target, least.observed], axis=1),
    )
    intervals = consistency_interval(
        instability_of,
        *([part] for part in sums),
        resamples=resamples,
        seed=int(torch.randint(1 << 31, (), generator=generator)),
    )
    return LinearCalibration(errors.null(), intervals, sums)
