"""The linear reference under permutations of the images.

It stands beside pairs that share nothing beyond their class, too.

To pair the targets with other images' x leaves PᵀP as it is, so that one factorisation serves all
pairings, see `factorised_ridge`.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
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
from consistency.factorised_ridge import CrossProducts, Maps, Reference, Targets, channel_means
from utils.errors import InputError
from utils.progress import Progress

BLOCK_BYTES = 1 << 26  # of the solutions W that are in memory at one time
# Held-out images, their targets and the predictions about the targets' mean, (n, U, D) each
Watch = Callable[[slice, Tensor, Tensor], None]


@dataclass(frozen=True)
class PermutedErrors:
    """Squared errors of regressions on held-out images.

    Attributes:
        target: Σ |y − mean y|² over an image's positions and channels, float64 (N,).
        observed: Σ |y − ŷ − mean(y − ŷ)|² of the true pairs, (N,).
        draws: the sum of these over the images, of each permuted pairing, (B,).
        weight: of the penalty, of the true pairs.
    """

    target: NDArray[np.float64]
    observed: NDArray[np.float64]
    draws: NDArray[np.float64]
    weight: float = float("nan")

    def null(self) -> Null:
        """Give the instabilities Var(x_Δ)/Var(x*) of the true and of the permuted pairs."""
        total = self.target.sum()
        return Null(float(self.observed.sum() / total), self.draws / total)


class Regression:
    """The linear reference from A's features to B's, in any pairing.

    It is fitted on some images, and judged on others.

    x and x* are shifted by their channels' means over the fitting images; x is padded with zeros,
    as by a convolution. The ridge weight is the same for all pairings, or each chooses its own by
    images that it is not fitted to. It must not have been chosen by the true pairing for all: then a
    permutation would have a handicap, and p would be too small.

    Memory: the features, 16·p² bytes (p = C·kernel_size²; dual: 16·rows·p), `BLOCK_BYTES`,
    `factorised_ridge.PATCH_BYTES` if all patches of x fit in, and `factorised_ridge.CHUNK_BYTES` (at
    least one W of 8·p·D bytes and one image).

    Args:
        x: A's features of the images that are fitted to, (N, C, H, W), and of those that it is
            judged on, (N', C, H, W).
        target: B's of the same images, (N, D, H, W) and (N', D, H, W).
        weight: of the penalty, as a multiple of the mean of PᵀP's diagonal, above 0; None: each
            pairing chooses its own.
        kernel_size: of the convolution, odd.
        device: that computes; products are in the precision of the features, sums in float64.
        like: another regression from the same x, whose factor serves here too.

    Raises:
        InputError: Maps of different sizes or numbers, or a constant target.
    """

    def __init__(
        self,
        x: Sequence[Maps],
        target: Sequence[Maps],
        *,
        weight: float | None = 0.1,
        kernel_size: int = 1,
        device: str | torch.device = "cpu",
        like: "Regression | None" = None,
    ) -> None:
        # A convolution keeps the size: x must have been brought to that of x*.
        sizes = [tuple(maps.shape[2:]) for maps in (*x, *target)]
        if len(set(sizes)) > 1:
            raise InputError(
                f"x and x* must have one size, not {sizes[0]} and {sizes[2]}; resize x."
            )
        if [*map(len, x)] != [*map(len, target)]:
            raise InputError(
                f"x and x* must be of the same images, but {[*map(len, x)]} and"
                f" {[*map(len, target)]} came, fitted and held out."
            )
        self.x, self.target = x, target
        self.reference: Reference = (
            Reference(x[0], channel_means(x[0], device), weight, kernel_size)
            if like is None
            else like.reference
        )
        mean = channel_means(target[0], self.reference.mean.device)
        # Held-out targets, too, are shifted by the fitted images' means: a prediction knows no
        # others.
        self.fitted, self.held_out = Targets(target[0], mean), Targets(target[1], mean)
        # But their variance is about their own means, as Var(x*) is.
        self.total = self.held_out.squares()
        if not self.total.sum() > 0:
            raise InputError(
                "x* is constant on the held-out images, so that nothing can be explained; look at"
                " net B."
            )

    def errors(self, fit_orders: Tensor, held_orders: Tensor) -> NDArray[np.float64]:
        """Fit to some pairings and judge on such ones: squared errors of each target's image.

        Time: 4·p·D multiplications a row and pairing.

        Args:
            fit_orders: (b, N), see `calibration`: the target of image i stands beside x of image
                order[i].
            held_orders: (b, N').

        Returns:
            float64 (b, N').
        """
        # X of image j stands beside the target of inverse[j]
        inverses = [order.argsort(1) for order in (fit_orders, held_orders)]
        # So many pairings at one time as have room for their W.
        block = max(1, BLOCK_BYTES // (8 * self.reference.columns * len(self.fitted.mean)))
        errors = [
            self.reference.errors(
                self.reference.solve(self.fitted, fit).coefficients,
                self.x[1],
                self.held_out,
                held_out,
            )
            for fit, held_out in zip(inverses[0].split(block), inverses[1].split(block))
        ]
        return torch.cat(errors).cpu().numpy()

    def observed(self, watch: Watch | None = None) -> PermutedErrors:
        """Judge the true pairs.

        Args:
            watch: is shown what they predict of the held-out images, batch by batch.
        """
        # The identity: every image stands beside itself.
        fitted, held_out = (torch.arange(len(maps))[None] for maps in self.x)
        solutions = self.reference.solve(self.fitted, fitted)
        errors = self.reference.errors(
            solutions.coefficients, self.x[1], self.held_out, held_out, watch=watch
        )
        none = np.empty(0)
        total = self.total.cpu().numpy()
        return PermutedErrors(total, errors[0].cpu().numpy(), none, solutions.weights[0])

    def sum_of_errors(self, fitted: Tensor, held_out: Tensor) -> float:
        """Give the sum of the squared errors of one pairing from its products PᵀY alone.

        With G = PᵀP of the held-out images, and W of the fitted ones,

            Σ |y − ŷ|² = Σ |y|² − 2 tr(Wᵀ PᵀY) + tr(Wᵀ G W)

        less what the channels' means take away.

        Args:
            fitted: PᵀY of the fitted images, float64 (p, D).
            held_out: of the held-out ones.
        """
        gram, sums, energy, total = self._judges
        solution = torch.cholesky_solve(fitted, self.reference.factor)
        # Σ (y − ŷ) of each channel, (D,), since Σ ŷ = Wᵀ Σ u
        means = total - solution.mT @ sums
        # tr Wᵀ (G W − 2 PᵀY), entry by entry
        error = energy + (solution * (gram @ solution - 2 * held_out)).sum()
        rows = len(self.x[1]) * self.reference.positions
        return float(error - means.square().sum() / rows)

    @cached_property
    def _judges(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """PᵀP and Σ P of the held-out images, Σ |y|² and Σ y about the fitted images' means."""
        gram, sums = self.reference.moments(self.x[1])
        mean, rows = self.held_out.mean, len(self.x[1]) * self.reference.positions
        # Of each channel, whose mean over the held-out images differs from that of the fitted ones
        total = rows * (channel_means(self.target[1], mean.device) - mean)
        # About the fitted images' means m: Σ |y − m|² = Σ |y − ȳ|² + |Σ (y − m)|² / rows
        return gram, sums, self.total.sum() + total.square().sum() / rows, total


def permuted_sums(
    forth: Regression,
    back: Regression | None,
    fit_orders: Tensor,
    held_orders: Tensor,
    *,
    quiet: bool = True,
) -> list[NDArray[np.float64]]:
    """Fit to permuted pairs of some images, and judge on such pairs of others.

    What a regression needs of a pairing is PᵀY alone, see `CrossProducts`, and the direction B → A
    needs the same numbers in another order: both cost what one costs.

    Args:
        forth: from x to x*.
        back: from x* to x, of the same maps; None: this direction is not asked for.
        fit_orders: (B, N), see `Regression.errors`.
        held_orders: (B, N').
        quiet: show no progress.

    Returns:
        Sums of the squared errors, (B,), of each direction.
    """
    both = [one for one in (forth, back) if one is not None]
    sides = [(forth.x[split], forth.target[split]) for split in (0, 1)]
    reference, target_mean = forth.reference, forth.fitted.mean
    means, kernel_size = (reference.mean, target_mean), reference.kernel_size
    # A choice of weights needs the products of the images that choose, apart from the others
    by_rows = any(one.reference.dual or one.reference.chooses for one in both)
    if by_rows or not CrossProducts.fit(sides, kernel_size):
        # B → A pairs the same images the other way round, by the inverse orders.
        orders = [(fit_orders, held_orders), (fit_orders.argsort(1), held_orders.argsort(1))]
        return [one.errors(*of).sum(1) for one, of in zip(both, orders)]
    # Transforms of fitted and of held-out images, once for all pairings.
    crosses = [CrossProducts(*side, *means, kernel_size) for side in sides]
    sums = np.empty((len(both), len(fit_orders)))
    pairings = Progress(
        list(zip(fit_orders.argsort(1), held_orders.argsort(1))), "permutations", quiet=quiet
    )
    for number, inverses in enumerate(pairings):
        products = [cross.of(inverse) for cross, inverse in zip(crosses, inverses)]
        # (C, k, k, D) → (p, D)
        sums[0, number] = forth.sum_of_errors(*(product.flatten(0, 2) for product in products))
        if back is not None:
            # B → A has the transpose: lags the other way round, and C and D exchanged.
            turned = (product.flip(1, 2).permute(3, 1, 2, 0).flatten(0, 2) for product in products)
            sums[1, number] = back.sum_of_errors(*turned)
    return list(sums)


def permuted_errors(
    x_fit: Maps,
    target_fit: Maps,
    x_held: Maps,
    target_held: Maps,
    fit_orders: Tensor,
    held_orders: Tensor,
    **options: Any,
) -> PermutedErrors:
    """Fit the linear reference to the true pairs of some images, and to permuted ones.

    It is judged on such pairs of other images.

    Args:
        x_fit: A's features of the images that are fitted to, (N, C, H, W).
        target_fit: B's of the same images, (N, D, H, W).
        x_held: A's of those that it is judged on, (N', C, H, W).
        target_held: B's, (N', D, H, W).
        fit_orders: (B, N), see `Regression.errors`.
        held_orders: (B, N').
        options: of `Regression`.

    Raises:
        InputError: see `Regression`.
    """
    one = Regression((x_fit, x_held), (target_fit, target_held), **options)
    (draws,) = permuted_sums(one, None, fit_orders, held_orders)
    return replace(one.observed(), draws=draws)


def untrue_errors(
    regression: Regression, fit_orders: Tensor, labels: Tensor
) -> NDArray[np.float64]:
    """Fit the linear reference to shuffled pairs.

    It is judged on every two held-out images of a class.

    Memory: sums of each class, 8·D·H·W bytes a class and pairing.

    Args:
        regression: of the true pairs.
        fit_orders: the pairings to fit to, (B, N).
        labels: the classes of the held-out images, integers (N',).

    Returns:
        The images' parts of the squared errors, float64 (B, N'), see `errors_of_untrue_pairs`.

    Raises:
        InputError: No class has two held-out images.
    """
    check_pairs(labels)
    reference, channels = regression.reference, len(regression.fitted.mean)
    # W of a pairing is (p, D), its sums of the classes (classes·U, D): the larger decides.
    rows = max(reference.columns, len(labels.unique()) * reference.positions)
    block = max(1, BLOCK_BYTES // (8 * rows * channels))
    # Held-out images keep their order: every two of a class are paired in the sums.
    identity, errors = torch.arange(len(labels))[None], []
    for inverses in fit_orders.argsort(1).split(block):
        solution = reference.solve(regression.fitted, inverses).coefficients
        predictions = partial(
            reference.predictions, solution, regression.x[1], regression.held_out, identity
        )
        shape = (reference.positions, len(inverses), channels)
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
        weight: of the penalty, of the true pairs.
    """

    null: Null
    intervals: dict[str, Interval]
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
    weight: float = float("nan")

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
    **options: Any,
) -> LinearCalibration:
    """Compare the linear reference with pairs that share nothing, and with A → A.

    Those pairs share nothing beyond their class.

    Args:
        x: A's features of fitting and of held-out images.
        target: B's of both.
        labels: the classes of both, integers (N,) and (N',); all equal: pairs are mixed over all
            images.
        generator: of permutations, shuffled pairs and resamples; of the CPU.
        options: of `calibrate_linear_ways`.

    Raises:
        InputError: see `Regression`, `untrue_errors` and `shuffled_within_class`.
    """
    (calibration,) = calibrate_linear_ways(x, target, labels, generator, both=False, **options)
    return calibration


def calibrate_linear_ways(
    x: Sequence[Maps],
    target: Sequence[Maps],
    labels: Sequence[Tensor],
    generator: torch.Generator,
    *,
    both: bool = True,
    draws: int = 200,
    shuffles: int = 10,
    resamples: int = 1000,
    quiet: bool = True,
    **options: Any,
) -> list[LinearCalibration]:
    """Hold the linear reference of each direction against its null and its ceiling.

    Args:
        x: see `calibrate_linear`, like `target`, `labels` and `generator`.
        target: B's features.
        labels: the classes.
        generator: that draws.
        both: B → A too, with the same permutations.
        draws: permutations for the test.
        shuffles: pairings without a true pair to fit to; what they leave on average of every two
            held-out images of a class is the consistency's null.
        resamples: of the held-out images, for the intervals.
        quiet: show no progress.
        options: of `Regression`.
    """
    orders = [permutations(of_images, draws, generator) for of_images in labels]
    ways = [Regression(x, target, **options)]
    ways += [Regression(target, x, **options)] if both else []
    sums = permuted_sums(ways[0], ways[1] if both else None, orders[0], orders[1], quiet=quiet)
    return [
        calibrated(way, replace(way.observed(), draws=of), labels, generator, shuffles, resamples)
        for way, of in zip(ways, sums)
    ]


def calibrated(
    way: Regression,
    errors: PermutedErrors,
    labels: Sequence[Tensor],
    generator: torch.Generator,
    shuffles: int,
    resamples: int,
    ceiling: PermutedErrors | None = None,
) -> LinearCalibration:
    """Hold one direction against its null and its ceiling.

    Args:
        way: the direction.
        errors: of its true and of its permuted pairs.
        labels: see `calibrate_linear`.
        generator: that draws.
        shuffles: see `calibrate_linear_ways`.
        resamples: of the held-out images.
        ceiling: what A → A leaves; None: it is measured.
    """
    shuffled = torch.stack([shuffled_within_class(labels[0], generator) for _ in range(shuffles)])
    null = untrue_errors(way, shuffled, labels[1])
    # A → A regresses on the same x, whose factor is at hand.
    least = ceiling or Regression(way.x, way.x, like=way).observed()
    # Of each image its part of Var(x*) and Var(x_Δ): true pairs, null, ceiling.
    sums = (
        np.stack([errors.target, errors.observed], axis=1),
        np.stack([errors.target, null.mean(0)], axis=1),
        np.stack([least.target, least.observed], axis=1),
    )
    # All three from the same images in each resample.
    intervals = consistency_interval(
        instability_of,
        *([array] for array in sums),
        resamples=resamples,
        seed=int(torch.randint(1 << 31, (), generator=generator)),
    )
    return LinearCalibration(errors.null(), intervals, sums, errors.weight)
