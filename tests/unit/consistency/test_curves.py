import numpy as np
import pytest

from consistency.curves import areas_under_curves


def test_areas_are_shares_of_ordered_pairs_and_ties_count_half():
    is_positive = np.array([True, True, False, False, False])
    scores = {"up": np.array([3.0, 2, 1, 2, 0]), "down": np.array([-3.0, -2, -1, -2, 0])}
    areas = areas_under_curves(scores, is_positive)
    assert areas["up"].value == pytest.approx((3 + 2.5) / 6)
    assert areas["down"].value == pytest.approx(1 - (3 + 2.5) / 6)
    assert areas["up − down"].value == pytest.approx(2 * (3 + 2.5) / 6 - 1)
    assert areas["up"].low is None and "fewer than 5" in areas["up"].reason


def drawn(generator, count=60, gain=1.0):
    is_positive = np.arange(count) < count // 3
    signal = gain * is_positive
    return is_positive, {
        "one": signal + generator.normal(size=count),
        "other": signal + generator.normal(size=count),
    }


def test_intervals_hold_the_area_as_often_as_they_say():
    # Two normals, one deviation apart: Φ(1 / √2)
    generator, area = np.random.default_rng(0), 0.7602499389065233
    held = []
    for _ in range(400):
        is_positive, scores = drawn(generator)
        areas = areas_under_curves(scores, is_positive)
        one, difference = areas["one"], areas["one − other"]
        held.append((one.low <= area <= one.high, difference.low <= 0 <= difference.high))
    assert np.mean(held, axis=0) == pytest.approx([0.95, 0.95], abs=0.035)


def test_a_score_is_no_better_than_itself_and_one_kind_has_no_area():
    is_positive, scores = drawn(np.random.default_rng(1))
    same = areas_under_curves({"one": scores["one"], "again": scores["one"]}, is_positive)
    assert (same["one − again"].low, same["one − again"].high) == pytest.approx((0, 0), abs=1e-12)
    none = areas_under_curves(scores, np.zeros(60, dtype=bool))
    assert none["one"].value is None and none["one"].reason
