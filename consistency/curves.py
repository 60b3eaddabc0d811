"""Areas under the curve of scores on the same images, with DeLong's intervals.

The area is the probability that an image of one kind scores above one of the other. Its variance, and
that of the difference of two areas, follows from how each image scores against all of the other kind
(DeLong, DeLong, Clarke-Pearson 1988); nothing is resampled.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistency.bootstrap import Interval
from utils.later import scipy

LEAST = 5  # images of each kind

Array = NDArray[Any]


def areas_under_curves(
    scores: Mapping[str, Array], is_positive: Array, confidence: float = 0.95
) -> dict[str, Interval]:
    """Give the area under the curve of each score, and of the first one beyond each other.

    Args:
        scores: by name, each (N,); higher says positive.
        is_positive: the kind of each image, bool (N,).
        confidence: of the intervals.

    Returns:
        An interval by each score's name, and by "FIRST − OTHER" the difference of two areas. Fewer
        than `LEAST` images of a kind have no interval, and none have no area.
    """
    names = list(scores)
    counts = int(is_positive.sum()), int((~is_positive).sum())
    values = np.stack([np.asarray(of, dtype=np.float64) for of in scores.values()])
    # One row for each score, then for each difference from the first
    contrasts = np.eye(len(names))
    contrasts = np.concatenate([contrasts, contrasts[0] - contrasts[1:]])
    labels = [*names, *(f"{names[0]} − {name}" for name in names[1:])]
    if min(counts) == 0:
        reason = "all images are of one kind"
        return {label: _interval(None, None, confidence, reason) for label in labels}
    # The share of the other kind's images below each positive, and above each negative
    ranks = scipy.stats.rankdata
    # A rank among all less the rank among its kind counts the others below; a tie counts half.
    both, within = ranks(values, axis=1), np.empty_like(values)
    for kind in (is_positive, ~is_positive):
        within[:, kind] = ranks(values[:, kind], axis=1)
    below = (both - within)[:, is_positive] / counts[1]
    above = 1 - (both - within)[:, ~is_positive] / counts[0]
    areas = contrasts @ below.mean(1)
    if min(counts) < LEAST:
        reason = f"fewer than {LEAST} images of a kind"
        return {
            label: _interval(area, None, confidence, reason) for label, area in zip(labels, areas)
        }
    # (scores, scores): the covariance of the areas is that of both kinds' shares, each over its
    # images.
    covariance = np.cov(below).reshape(len(names), -1) / counts[0]
    covariance = covariance + np.cov(above).reshape(len(names), -1) / counts[1]
    # cᵀ S c of each contrast c: a score's own variance, or that of a difference
    variances = np.einsum("ks,st,kt->k", contrasts, covariance, contrasts)
    half = scipy.stats.norm.ppf((1 + confidence) / 2) * np.sqrt(np.maximum(variances, 0))
    return {
        label: _interval(area, reach, confidence) for label, area, reach in zip(labels, areas, half)
    }


def _interval(
    value: float | None, half: float | None, confidence: float, reason: str = ""
) -> Interval:
    ends = (None, None) if value is None or half is None else (value - half, value + half)
    low, high = (None if end is None else float(end) for end in ends)
    number = None if value is None else float(value)
    return Interval(number, low, high, confidence, "DeLong", 0, ("images",), True, reason)
