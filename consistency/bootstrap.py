"""Confidence intervals by resampling images, from sums per image.

Fits, or pairs of nets, are resampled with the images where there are several.

Whatever is a function of sums over images (variances, shares, instability, consistency, accuracies) needs no second
pass: a resample takes image i w_i times, its sums are Σ w_i s_i, and all resamples together are one product of a
matrix of weights with the sums per image. Differences of results on the same images are resampled in pairs.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from utils.errors import InputError
from utils.later import scipy

BATCH_BYTES = 1 << 24  # of the resamples' indices, weights and sums that are in memory at one time

Array = NDArray[Any]
# Sums over images (…, trailing axes) → named numbers (…)
Statistic = Callable[..., Mapping[str, Array]]
Verdict = Literal["shows", "does not show", "cannot be said"]


@dataclass(frozen=True)
class Interval:
    """A number and its confidence interval.

    Attributes:
        value: on all images; None where it is not defined.
        low, high: the interval's ends; None where there is none.
        confidence: how often such intervals hold the truth, in (0, 1).
        method: "percentile" or "BCa", of the bootstrap; "jackknife".
        resamples: how many were drawn.
        resampled: what was drawn: ("images",), or ("images", "fits") or ("images", "pairs")
            crossed.
        fits_fixed: the interval holds g (or the classifier) as it was fitted: it says what other
            images would give, not what another fit would.
        reason: why there is no value or no interval.
    """

    value: float | None
    low: float | None
    high: float | None
    confidence: float
    method: str
    resamples: int
    resampled: tuple[str, ...]
    fits_fixed: bool
    reason: str = ""


def bootstrap(
    statistic: Statistic,
    sums: Sequence[Array],
    *,
    crossed: Literal["fits", "pairs"] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    method: Literal["percentile", "BCa"] = "percentile",
    seed: int = 0,
) -> dict[str, Interval]:
    """Give intervals of numbers that are functions of sums over the images.

    Fits (or pairs of nets) are a second factor, drawn independently of the images: every fit was
    seen on every image. Of F fits the bootstrap sees (F − 1)/F of their variance, so that fewer
    than about five give too narrow an interval.

    Memory: the sums, and `BATCH_BYTES` (or one resample) for all that is drawn. Time: resamples ×
    the sums' size; BCa leaves out every image in turn besides, images × the sums' size.

    Args:
        statistic: called with one array of sums over images for each of `sums`, without its axis of
            images (nor of fits, over which is averaged), but with a leading axis of resamples or
            none; gives named numbers. What is not finite counts as undefined.
        sums: per image, each (N, …), or (F, N, …) if crossed, of any trailing shapes, float32 or
            float64.
        crossed: what F is.
        resamples: how many are drawn; 0: none, so that there are values without intervals.
        confidence: in (0, 1).
        method: percentiles of the resamples, or those corrected for bias and skewness (Efron 1987).
        seed: of the draws: the same seed draws the same images, whatever the sums are.

    Returns:
        An interval for each of the statistic's numbers.

    Raises:
        InputError: Sums of different images, or fewer than two images or fits.
    """
    axes = 2 if crossed else 1
    drawn = ("images", crossed) if crossed else ("images",)
    shape = sums[0].shape[:axes]
    if any(array.shape[:axes] != shape for array in sums):
        raise InputError(
            "sums must be of the same images, but their shapes are"
            f" {[array.shape for array in sums]}."
        )
    if resamples and (len(shape) < axes or min(shape) < 2):
        both = f"images and {crossed}" if crossed else "images"
        raise InputError(
            f"intervals need at least two {both}, but {shape} came; take more, or ask for no"
            " resamples."
        )
    with np.errstate(all="ignore"):
        # On all images: sums over them, averaged over fits.
        values = statistic(
            *(array.sum(axes - 1).mean(0) if crossed else array.sum(0) for array in sums)
        )
    if not resamples:
        why = "no resamples were asked for"
        return {
            name: Interval(
                _finite(value), None, None, confidence, method, 0, drawn, crossed is None, why
            )
            for name, value in values.items()
        }
    # SciPy resamples indices; each factor has its axis, and the fits are the outer one of the sums.
    factors = shape[::-1]  # images, then fits

    def of_resamples(*drawn: Array, axis: int) -> Array:
        weights = [count(indices, size) for indices, size in zip(drawn, factors)]
        # (numbers, B): SciPy reduces and joins along the last axis.
        return np.stack(list(statistic(*(weighted(array, *weights) for array in sums)).values()))

    # A resample takes its indices, its counts and weights, and its share of the products.
    bytes_each = 24 * sum(shape) + sum(2 * array.nbytes // math.prod(shape) for array in sums)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        # A constant gets its interval below
        warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
        resampled = scipy.stats.bootstrap(
            [np.arange(size) for size in factors],
            of_resamples,
            n_resamples=resamples,
            batch=max(1, BATCH_BYTES // bytes_each),
            vectorized=True,
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        )
    limits = resampled.confidence_interval

    def interval(value: Array, draws: Array, low: float, high: float) -> Interval:
        defined = np.isfinite(draws).sum()
        # Percentiles need every resample: one undefined ratio leaves the interval out.
        reason = (
            ""
            if defined == resamples
            else f"{resamples - defined} of {resamples} resamples have no such number"
        )
        # Where all draws are equal BCa gives NaN: the interval is that point.
        if not reason and np.ptp(draws) == 0:
            low = high = draws[0]
        ends = (None, None) if reason else (float(low), float(high))
        return Interval(
            _finite(value),
            ends[0],
            ends[1],
            confidence,
            method,
            resamples,
            drawn,
            crossed is None,
            reason,
        )

    rows = zip(values.values(), resampled.bootstrap_distribution, limits.low, limits.high)
    return dict(zip(values, (interval(*row) for row in rows)))


def _finite(value: Array) -> float | None:
    return float(value) if np.isfinite(value) else None


def count(indices: Array, size: int) -> Array:
    """Count how often each of `size` things was drawn.

    Indices (…, any) → counts (…, size), float64.
    """
    # One `bincount` for all resamples: each has its range of numbers.
    flat = indices.reshape(-1, indices.shape[-1])
    # Draw j counts in places j·size … (j + 1)·size − 1.
    places = flat + size * np.arange(len(flat))[:, None]
    return (
        np.bincount(places.ravel(), minlength=size * len(flat))
        .reshape(*indices.shape[:-1], size)
        .astype(float)
    )


def weighted(sums: Array, images: Array, fits: Array | None = None) -> Array:
    """Sum over images by their weights, and average over fits by theirs.

    Args:
        sums: (N, …), or (F, N, …) with fits.
        images: (N,) or (B, N).
        fits: (F,) or (B, F).

    Returns:
        (…) or (B, …), of the dtype of `sums`.
    """
    if fits is None:
        # (B, N) times (N, …) → (B, …): all resamples in one product.
        return np.tensordot(images.astype(sums.dtype), sums, axes=1)
    # (F, B): each fit's share of the mean, by how often it was drawn.
    shares = np.moveaxis(fits / fits.sum(-1, keepdims=True), -1, 0).astype(sums.dtype)
    trailing = (1,) * (sums.ndim - 2)
    parts = (
        share.reshape(*share.shape, *trailing) * weighted(array, images)
        for array, share in zip(sums, shares)
    )
    return np.sum(list(parts), axis=0)


def difference(
    statistic: Statistic, first: Sequence[Array], second: Sequence[Array], **options: Any
) -> dict[str, Interval]:
    """Give intervals of statistic(first) − statistic(second).

    Both are of the same images, which are drawn in pairs.

    Args:
        statistic: see `bootstrap`.
        first: sums per image of one result.
        second: of the other, image i in the same place.
        options: of `bootstrap`.
    """
    size = len(first)

    def both(*totals: Array) -> dict[str, Array]:
        of_first, of_second = statistic(*totals[:size]), statistic(*totals[size:])
        return {name: of_first[name] - of_second[name] for name in of_first}

    return bootstrap(both, [*first, *second], **options)


def accuracy(hits: Array, second: Array | None = None, **options: Any) -> Interval:
    """Give the interval of an accuracy, or of the difference between two on the same images.

    Args:
        hits: (N,) of 0 and 1 or False and True, or (F, N).
        second: of the net that is subtracted, image i in the same place.
        options: of `bootstrap`.

    Returns:
        In percent, or percentage points.
    """
    images = hits.shape[-1]
    # A sum over images is then the accuracy itself.
    parts = [100.0 / images * array for array in (hits, second) if array is not None]
    if second is None:
        return bootstrap(lambda total: {"accuracy_percent": total}, parts, **options)[
            "accuracy_percent"
        ]
    return difference(lambda total: {"points": total}, parts[:1], parts[1:], **options)["points"]


def mean_over_fits(
    values: Array, draws: Array, *, confidence: float = 0.95, seed: int = 0
) -> Interval:
    """Give the interval of the mean of a number over fits, or over nets.

    It is for numbers that averaged sums do not give, such as ratios.

    Fits are drawn beside the images as by `bootstrap`, with too narrow intervals for few. One fit
    is held fixed.

    Args:
        values: of every fit, on all images, (F,).
        draws: of every fit, on the same B resamples of the images, (F, B).
        confidence: in (0, 1).
        seed: of the draws of fits: the same seed draws the same fits.
    """
    fits, resamples = draws.shape
    chosen = np.random.default_rng(seed).integers(fits, size=draws.shape)
    # Resample j draws F of the fits, each as it is on resample j's images: (F, B).
    means = np.take_along_axis(draws, chosen, 0).mean(0)
    drawn = ("images", "fits") if fits > 1 else ("images",)
    value = float(np.mean(values))
    undefined = resamples - int(np.isfinite(means).sum())
    low, high = (
        (None, None)
        if undefined
        else map(float, np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2]))
    )
    reason = f"{undefined} of {resamples} resamples have no such number" if undefined else ""
    finite = value if np.isfinite(value) else None
    return Interval(
        finite, low, high, confidence, "percentile", resamples, drawn, fits == 1, reason
    )


def verdict(difference: Interval, margin: float = 0.0) -> Verdict:
    """Say whether a difference is larger than a margin, by its interval.

    Args:
        difference: of two results on the same images, the one that is claimed to be larger first.
        margin: the difference that the claim needs.

    Returns:
        "shows": the whole interval is above the margin; "does not show": none of it is; "cannot be
        said": the margin is inside, or there is no interval.
    """
    if difference.low is None or difference.high is None:
        return "cannot be said"
    if difference.low > margin:
        return "shows"
    return "does not show" if difference.high <= margin else "cannot be said"
