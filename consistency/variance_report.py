"""What Variance.py reports of accumulated moments.

It is variances and instabilities, with their intervals over images.

Every interval holds the Trans-Net as it was fitted, and the means that deviations are from: it says
what other images would give.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistency.bootstrap import Interval, Statistic, bootstrap
from consistency.moments import ImageMoments

DIGITS = 7  # of the record per image

Array = NDArray[Any]
Record = dict[str, Any]


def variance_report(
    by_depth: Sequence[tuple[int, ImageMoments]],
    mean: str = "channel",
    resamples: int = 0,
    classes: Sequence[str] | None = None,
) -> Record:
    """Summarise as plain numbers.

    Args:
        by_depth: for each Trans-Net its number of layers and the moments of the same images. All
            but the spectrum is about the first one.
        mean: see `ImageMoments.products`.
        resamples: of the images; 0: no intervals.
        classes: names by label; None: the labels are the names.

    Returns:
        `images`, `mean`, `var`, `instability`, `covariance`, `channels`, and of several Trans-Nets
        the `spectrum`. With resamples `intervals`, an `Interval` for each of `component_numbers`;
        `classes`; and `per_image`, of each vector the images' mean squared deviations, whose mean
        over the images is its variance.
    """
    moments = by_depth[0][1]
    # (N, R, R): the mean over images is the covariance of all named vectors.
    names, products = moments.names(mean), moments.products(mean)
    matrix = products.mean(0)
    variance = dict(zip(names, matrix.diagonal().tolist()))
    report: Record = {
        "images": moments.images,
        "mean": mean,
        "var": variance,
        # A constant target has nothing to reconstruct; NaN would not be JSON.
        "instability": (
            variance["residual"] / variance["target"] if variance["target"] > 0 else None
        ),
        "covariance": {"names": names, "matrix": matrix.tolist()},
    }
    if len(by_depth) > 1:
        report["spectrum"] = spectrum(by_depth, resamples)
    report["channels"] = channel_report(moments, resamples)
    if resamples:
        intervals = bootstrap(moments.statistic(mean), moments.arrays(mean), resamples=resamples)
        report["intervals"] = {name: asdict(interval) for name, interval in intervals.items()}
        report["classes"] = class_report(moments, mean, resamples, classes)
        # (R, N): each image's part, so that others can resample without the features.
        squares = np.diagonal(products, axis1=1, axis2=2).T.tolist()
        report["per_image"] = {
            name: [_rounded(value) for value in row] for name, row in zip(names, squares)
        }
    return report


def channel_report(moments: ImageMoments, resamples: int = 0) -> list[Record]:
    """Give for each channel of x* its number, Var(x*) and its instability.

    The instability has its interval's ends.
    """
    # (N, 2, C), of x* and x_Δ.
    squares = moments.channel_squares()
    # float32: of N × 2 × C numbers, which are resampled `resamples` times
    ratios = bootstrap(_ratios, [(squares / len(squares)).astype(np.float32)], resamples=resamples)
    variances = squares.mean(0)[0].tolist()
    return [
        {"channel": channel, "variance": variance, **_ends(interval)}
        for channel, (variance, interval) in enumerate(zip(variances, ratios.values()))
    ]


def class_report(
    moments: ImageMoments,
    mean: str = "channel",
    resamples: int = 0,
    classes: Sequence[str] | None = None,
) -> list[Record]:
    """Give the same for each class.

    A class is measured as if its images were all there are: from its mean.

    Args:
        moments: with labels; see `ImageMoments.update`.
        mean: see `ImageMoments.products`.
        resamples: of the class's images; one image alone has no interval.
        classes: names by label; None: the labels are the names.
    """
    rows = []
    for label, of_class in moments.classes():
        intervals = bootstrap(
            of_class.statistic(mean),
            of_class.arrays(mean),
            resamples=resamples if of_class.images > 1 else 0,
        )
        row = {"class": classes[label] if classes else str(label), "images": of_class.images}
        rows.append(
            row | {"variance": intervals["var_target"].value, **_ends(intervals["instability"])}
        )
    return rows


def spectrum(by_depth: Sequence[tuple[int, ImageMoments]], resamples: int = 0) -> list[Record]:
    """Give R² = 1 − instability of every depth, and its gain over the depth before.

    Gains are paired by image.

    Args:
        by_depth: for each Trans-Net its number of layers and the moments of the same images.
        resamples: of the images; 0: no intervals.

    Returns:
        A row a depth, the shallowest first: `layers`, `r2`, `gain`, and with resamples the
        `intervals` of both.
    """
    ordered = sorted(by_depth, key=lambda pair: pair[0])
    return depth_rows(
        [layers for layers, _ in ordered],
        [moments.statistic() for _, moments in ordered],
        [array for _, moments in ordered for array in moments.arrays()],
        resamples=resamples,
    )


def depth_rows(
    layers: Sequence[int],
    statistics: Sequence[Statistic],
    sums: Sequence[Array],
    *,
    resamples: int = 0,
    seed: int = 0,
) -> list[Record]:
    """Give the rows of `spectrum` from sums per image.

    Args:
        layers: of every depth, the shallowest first.
        statistics: of every depth: sums over images → numbers, among them "instability".
        sums: of every depth, per image, see `bootstrap`.
        resamples: of the images; 0: no intervals.
        seed: of the resamples.
    """

    def numbers(*totals: Array) -> dict[str, Array]:
        r2 = [1 - statistic(total)["instability"] for statistic, total in zip(statistics, totals)]
        # The first depth gains over predicting the mean, whose R² is 0.
        gains = [r2[0], *(after - before for before, after in pairwise(r2))]
        both = {"r2": r2, "gain": gains}
        return {
            f"{name} {i}": value for name, values in both.items() for i, value in enumerate(values)
        }

    resampled = bootstrap(numbers, sums, resamples=resamples, seed=seed)
    rows = []
    for i, of_depth in enumerate(layers):
        intervals = {name: resampled[f"{name} {i}"] for name in ("r2", "gain")}
        values = {name: interval.value for name, interval in intervals.items()}
        row: Record = {"layers": of_depth, **values}
        if resamples:
            row["intervals"] = {name: asdict(interval) for name, interval in intervals.items()}
        rows.append(row)
    return rows


def rank_channels(
    channels: Sequence[Mapping[str, Any]], ends: int | None = None
) -> list[Mapping[str, Any]]:
    """Order the channels of x* by their instability, the most consistent first.

    Channels whose variance is below a tenth of the mean are left out: they are nearly dead, and
    their ratio says little about what the nets know.

    Args:
        channels: from `channel_report`.
        ends: only so many most consistent and so many least consistent channels.
    """
    least = 0.1 * float(np.mean([row["variance"] for row in channels]))
    alive = [row for row in channels if row["variance"] >= least and row["instability"] is not None]
    ordered = sorted(alive, key=lambda row: row["instability"])
    return (
        ordered if ends is None or 2 * ends >= len(ordered) else [*ordered[:ends], *ordered[-ends:]]
    )


def _ratios(squares: Array) -> dict[str, Array]:
    """Give the instability of every channel from variances of x* and x_Δ (…, 2, C)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        # (…, 2, C): x_Δ over x*
        ratios = squares[..., 1, :] / squares[..., 0, :]
    return {str(channel): ratios[..., channel] for channel in range(ratios.shape[-1])}


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _ends(interval: Interval) -> Record:
    return {"instability": interval.value, "low": interval.low, "high": interval.high}
