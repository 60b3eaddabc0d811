"""Both directions, and several nets: what is shared, and intervals that say something of a recipe.

Of two nets, an interval over images says what other images would give of *these two nets*. Of
several nets of one recipe, nets are drawn as well as images, and the interval is about the recipe.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consistency.bootstrap import Interval, bootstrap, count
from consistency.calibration import instability_of, normalised_consistency
from utils.errors import InputError

Array = NDArray[Any]
# Of the observed pairs, their null and their ceiling, (N, 2)
Direction = tuple[Array, Array, Array]

BATCH_BYTES = 1 << 26  # of resamples' sums that are in memory at one time


def shared(forth: Direction, back: Direction, **options: Any) -> dict[str, Interval]:
    """Give the consistency of both directions and the smaller one, "shared", resampled together.

    One direction alone is high where one net's features are simple. Each is normalised by the null
    and the ceiling of its direction, and the smaller one is taken inside each resample.

    Args:
        forth: of A → B every image's part of Var(x*) and Var(x_Δ), (N, 2): of the true pairs, of
            pairs within the class, and of A → A.
        back: the same of B → A, image i in the same place.
        options: of `bootstrap`.

    Returns:
        "forth", "back", "shared".

    Raises:
        InputError: the directions are of different images.
    """
    if len({len(array) for array in (*forth, *back)}) > 1:
        raise InputError(
            f"both directions must be measured on the same images, but {len(forth[0])} and "
            f"{len(back[0])} came; give both the same features"
        )

    def numbers(*totals: Array) -> dict[str, Array]:
        of = [instability_of(total)["instability"] for total in totals]
        # Of each direction: observed, null, ceiling
        ways = {"forth": normalised_consistency(*of[:3]), "back": normalised_consistency(*of[3:])}
        return ways | {"shared": np.minimum(*ways.values())}

    return bootstrap(numbers, [*forth, *back], **options)


def without_null(observed: Array) -> Direction:
    """Give a direction whose consistency is 1 − its instability.

    Its null is all of the variance, its ceiling nothing.
    """
    target = observed[:, :1]
    # Var(x_Δ) is Var(x*) for the null, and 0 for the ceiling.
    return observed, np.hstack([target, target]), np.hstack([target, np.zeros_like(target)])


def calibrated(observed: Array, sums: Mapping[str, Array], path: str) -> Direction:
    """Give a direction with the null and the ceiling of a calibration.

    Args:
        observed: every image's part of Var(x*) and Var(x_Δ), (N, 2).
        sums: of `calibration.load_sums`.
        path: of their file.

    Raises:
        InputError: the calibration's own sums of the true pairs are others.
    """
    stored = sums["observed"]
    if stored.shape != observed.shape or not np.allclose(
        stored, observed, 1e-3, 1e-3 * observed.max()
    ):
        raise InputError(
            f"{path} is of other images, another Trans-Net or another --mean; make it anew by"
            " Calibrate.py --sums"
        )
    return observed, sums["null"], sums["ceiling"]


def over_nets(
    statistic: Callable[..., Mapping[str, Array]],
    sums: Sequence[Array],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    drawn_from: int | None = None,
    images_only: bool = False,
    seed: int = 0,
) -> dict[str, Interval]:
    """Give the mean over all ordered pairs of M nets, with intervals over images and nets.

    Each resample draws images and nets with replacement; pair (a, b) counts as often as a and b
    were drawn together, and a net beside itself is left out. Percentiles of what this gives are the
    interval. Where the question is about a few nets more, such as the mean over the ten nets that
    these four came from, the nets' part of a resample's deviation shrinks by √(1 − M / drawn_from).

    Args:
        statistic: sums over images (…, P) of all pairs, one array for each of `sums` → named
            numbers of each pair, (…, P).
        sums: every ordered pair's sums per image, (M, M, N, …) each; the diagonal is not read.
        resamples: how many are drawn.
        confidence: in (0, 1).
        drawn_from: how many nets there are in all; None: the recipe's, any number.
        images_only: hold the nets: the interval that says nothing of other nets.
        seed: of the draws.

    Returns:
        An interval for each of the statistic's numbers.

    Raises:
        InputError: fewer than two nets or images, or fewer nets than were drawn from.
    """
    nets, images = sums[0].shape[1:3]
    if min(nets, images) < 2 or any(array.shape[:3] != (nets, nets, images) for array in sums):
        raise InputError(
            "intervals over nets need sums of all pairs of two nets or more on two images or more,"
            f" but shapes are {[array.shape for array in sums]}"
        )
    if drawn_from is not None and drawn_from < nets:
        raise InputError(f"{nets} nets cannot have been drawn from {drawn_from}")
    # The P = M (M − 1) ordered pairs of two different nets.
    rows, columns = np.nonzero(~np.eye(nets, dtype=bool))
    # Images first, as sums are products with weights of images.
    pairs = [np.moveaxis(array[rows, columns], 0, 1) for array in sums]  # (N, P, …)
    generator = np.random.default_rng(seed)
    with np.errstate(all="ignore"):
        values = _of_pairs(statistic, pairs, np.ones((1, images)))
    mean = {name: value.mean() for name, value in values.items()}
    # Images are drawn once for all pairs: every net saw the same ones.
    weights = count(generator.integers(images, size=(resamples, images)), images)
    counts = _draw_nets(nets, resamples, generator)
    # How often both nets of a pair were drawn, as shares of a resample's pairs.
    of_pairs = counts[:, rows] * counts[:, columns]
    of_pairs = of_pairs / of_pairs.sum(1, keepdims=True)
    # The finite population's factor: all of its nets leave nothing to draw.
    kept = 1.0 if drawn_from is None else (1 - nets / drawn_from) ** 0.5
    size = max(1, BATCH_BYTES // sum(array[0].nbytes for array in pairs))
    draws = dict[str, list[Array]]()
    for block in range(0, resamples, size):
        with np.errstate(all="ignore"):
            block_values = _of_pairs(statistic, pairs, weights[block : block + size])
        for name, of_each in block_values.items():
            all_nets = of_each.mean(1)
            # A resample's deviation is the images' part and the nets'; only the second one shrinks.
            some = (of_each * of_pairs[block : block + size]).sum(1)
            drawn = all_nets if images_only else all_nets + kept * (some - all_nets)
            draws.setdefault(name, []).append(drawn)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    factors = ("images",) if images_only else ("images", "nets")

    def interval(name: str) -> Interval:
        drawn = np.concatenate(draws[name])
        undefined = int((~np.isfinite(drawn)).sum())
        low, high = (None, None) if undefined else map(float, np.quantile(drawn, ends))
        value = float(mean[name]) if np.isfinite(mean[name]) else None
        why = f"{undefined} of {resamples} resamples have no such number" if undefined else ""
        return Interval(value, low, high, confidence, "percentile", resamples, factors, True, why)

    return {name: interval(name) for name in mean}


def _draw_nets(nets: int, resamples: int, generator: np.random.Generator) -> Array:
    """Draw nets with replacement until two different ones are there: counts (resamples, nets)."""
    drawn = generator.integers(nets, size=(resamples, nets))
    while (alike := (drawn == drawn[:, :1]).all(1)).any():
        drawn[alike] = generator.integers(nets, size=(int(alike.sum()), nets))
    return count(drawn, nets)


def _of_pairs(
    statistic: Callable[..., Mapping[str, Array]], pairs: Sequence[Array], weights: Array
) -> dict[str, Array]:
    """Give every number of every pair on every resample of the images, (B, P)."""
    # (B, N) times (N, P, …) → (B, P, …)
    totals = [np.tensordot(weights.astype(array.dtype), array, axes=1) for array in pairs]
    return {name: np.asarray(value) for name, value in statistic(*totals).items()}
