import numpy as np
import pytest
import scipy.stats

from consistency import bootstrap as bootstraps
from consistency.bootstrap import (
    Interval,
    accuracy,
    bootstrap,
    count,
    difference,
    mean_over_fits,
    verdict,
    weighted,
)
from tests.mistakes import refused


def ratio(error, target):
    return {"instability": error / target}


def sums(images=60, seed=0):
    random = np.random.default_rng(seed)
    target = random.gamma(2, size=images)
    return [0.3 * target * random.uniform(0.5, 1.5, images), target]


def interval(low, high, value=0.0):
    return Interval(value, low, high, 0.95, "percentile", 1000, ("images",), True)


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_interval_is_scipys(method):
    parts = sums()
    expected = scipy.stats.bootstrap(
        parts,
        lambda error, target, axis: error.sum(axis) / target.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=500,
        confidence_level=0.9,
        method=method,
        rng=np.random.default_rng(3),
    ).confidence_interval
    found = bootstrap(ratio, parts, resamples=500, confidence=0.9, method=method, seed=3)[
        "instability"
    ]
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-9)
    assert found.value == pytest.approx(parts[0].sum() / parts[1].sum())
    assert (found.confidence, found.method, found.resamples) == (0.9, method, 500)
    assert (found.resampled, found.fits_fixed, found.reason) == (("images",), True, "")


def test_counts_and_weights_are_what_was_drawn():
    drawn = np.array([[0, 2, 2], [1, 1, 1]])
    weights = count(drawn, 4)
    np.testing.assert_array_equal(weights, [[1, 0, 2, 0], [0, 3, 0, 0]])
    part = np.random.default_rng(0).normal(size=(4, 2, 3))
    np.testing.assert_allclose(weighted(part, weights), part[drawn].sum(1))
    crossed = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    fits = np.array([[2.0, 0.0], [1.0, 1.0]])
    expected = [crossed[0, drawn[0]].sum(0), crossed[:, drawn[1]].sum((0, 1)) / 2]
    np.testing.assert_allclose(weighted(crossed, weights, fits), expected)
    assert weighted(part.astype("f4"), weights).dtype == "f4"


def test_batches_change_nothing(monkeypatch):
    parts = sums()
    whole = bootstrap(ratio, parts, seed=1)["instability"]
    monkeypatch.setattr(bootstraps, "BATCH_BYTES", 24 * 60 * 7)
    found = bootstrap(ratio, parts, seed=1)["instability"]
    assert (found.low, found.high) == pytest.approx((whole.low, whole.high), rel=1e-9)


def test_the_interval_covers_the_truth():
    """300 intervals of a ratio of sums over images that differ in size;
    the bounds are five standard errors wide.
    """
    found = [bootstrap(ratio, sums(seed=seed), resamples=300)["instability"] for seed in range(300)]
    assert 0.88 < np.mean([interval.low < 0.3 < interval.high for interval in found]) < 0.99


def test_fits_widen_the_interval():
    random = np.random.default_rng(0)
    error, target = sums(200)
    errors = error * random.normal(1, 0.2, (8, 1))  # eight fits that differ
    targets = np.broadcast_to(target, errors.shape)
    crossed = bootstrap(ratio, [errors, targets], crossed="fits")["instability"]
    fixed = bootstrap(ratio, [errors.mean(0), target])["instability"]
    assert crossed.value == pytest.approx(fixed.value)
    assert (crossed.resampled, crossed.fits_fixed) == (("images", "fits"), False)
    means = errors.sum(1) / target.sum()
    spread = np.hypot(means.std() / 8**0.5, (fixed.high - fixed.low) / 3.92)
    assert (crossed.high - crossed.low) / 3.92 == pytest.approx(spread, rel=0.15)
    assert bootstrap(ratio, [errors, targets], crossed="pairs")["instability"].resampled == (
        "images",
        "pairs",
    )


def test_fits_that_agree_leave_the_interval_as_it_is():
    parts = sums(200)
    crossed = bootstrap(ratio, [np.stack([part] * 3) for part in parts], crossed="fits")[
        "instability"
    ]
    fixed = bootstrap(ratio, parts)["instability"]
    assert (crossed.low, crossed.high) == pytest.approx((fixed.low, fixed.high), rel=0.03)


def test_a_difference_is_paired_by_image():
    error, target = sums(200)
    other = 1.02 * error * np.random.default_rng(1).uniform(0.99, 1.01, 200)
    found = difference(ratio, [other, target], [error, target])["instability"]
    assert found.value == pytest.approx((other.sum() - error.sum()) / target.sum())
    single = bootstrap(ratio, [error, target])["instability"]
    assert found.high - found.low < 0.2 * (single.high - single.low)
    assert verdict(found) == "shows"


def test_accuracies_and_their_differences_are_in_percent():
    random = np.random.default_rng(0)
    hits = random.random(400) < 0.7
    found = accuracy(hits)
    assert found.value == pytest.approx(100 * hits.mean())
    binomial = 392 * np.sqrt(hits.mean() * (1 - hits.mean()) / 400)
    assert found.high - found.low == pytest.approx(binomial, rel=0.1)
    better = hits | (random.random(400) < 0.1)
    gain = accuracy(better, hits)
    assert gain.value == pytest.approx(100 * (better.mean() - hits.mean()))
    assert gain.low > 0 and gain.high - gain.low < 0.5 * (found.high - found.low)
    several = accuracy(np.stack([hits, better, hits]), crossed="fits")
    assert several.value == pytest.approx((2 * found.value + 100 * better.mean()) / 3)


def test_what_never_varies_has_an_interval_of_one_number():
    ones = np.ones(20)
    for method in ("percentile", "BCa"):
        found = bootstrap(ratio, [0.0 * ones, ones], method=method)["instability"]
        assert (found.value, found.low, found.high, found.reason) == (0, 0, 0, "")


def test_what_is_undefined_has_a_reason():
    alone = np.zeros(5)
    alone[0] = 1
    # A third of the resamples lack image 0
    found = bootstrap(ratio, [alone, alone], resamples=100)["instability"]
    assert (found.value, found.low, found.high) == (1, None, None)
    assert found.reason.endswith("of 100 resamples have no such number")
    nothing = bootstrap(ratio, [np.zeros(5), np.zeros(5)])["instability"]
    assert nothing.value is None and nothing.reason
    assert verdict(nothing) == "cannot be said"


def test_sums_that_do_not_fit_are_refused():
    with refused((5,), (4,)):
        bootstrap(ratio, [np.ones(5), np.ones(4)])
    with refused((1,)):
        bootstrap(ratio, [np.ones(1), np.ones(1)])
    for shape in ((1, 5), (5,)):
        with refused(shape):
            bootstrap(ratio, [np.ones(shape)] * 2, crossed="fits")


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.1, 0.2, 0, "shows"),
        (-0.2, -0.1, 0, "does not show"),
        (-0.1, 0.1, 0, "cannot be said"),
        (0.0, 0.0, 0, "does not show"),
        (0.1, 0.2, 0.15, "cannot be said"),
        (0.1, 0.2, 0.3, "does not show"),
    ],
)
def test_verdicts(low, high, margin, expected):
    assert verdict(interval(low, high), margin) == expected


def test_the_mean_over_fits_is_the_crossed_bootstrap_of_a_mean():
    """Of numbers that are linear in the sums,
    the crossed bootstrap and this one give the same intervals.
    """
    random = np.random.default_rng(0)
    hits = (random.random((6, 400)) < random.uniform(0.5, 0.7, (6, 1))).astype(float)
    crossed = accuracy(hits, crossed="fits", resamples=4000)
    drawn = count(random.integers(400, size=(4000, 400)), 400)
    found = mean_over_fits(100 * hits.mean(1), 100 * (hits @ drawn.T) / 400)
    assert found.value == pytest.approx(crossed.value)
    assert (found.low, found.high) == pytest.approx((crossed.low, crossed.high), abs=0.35)
    assert (
        (found.resampled, found.fits_fixed)
        == (crossed.resampled, crossed.fits_fixed)
        == (("images", "fits"), False)
    )


def test_the_mean_of_one_fit_holds_it_fixed():
    draws = np.linspace(0, 1, 101)[None]
    found = mean_over_fits(np.array([0.4]), draws, confidence=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((0.4, 0.05, 0.95))
    assert (found.resampled, found.fits_fixed) == (("images",), True)


def test_a_mean_over_fits_that_is_not_always_defined_has_no_interval():
    draws = np.ones((1, 100))
    draws[0, :3] = np.nan
    found = mean_over_fits(np.array([1.0]), draws)
    assert (found.low, found.high, found.reason) == (
        None,
        None,
        "3 of 100 resamples have no such number",
    )
    assert verdict(found) == "cannot be said"
