import functools
import itertools
import pickle

import numpy as np
import pytest
import scipy.stats
import torch
from calibrated_similarity import calibrate, calibrate_layers

from consistency.calibration import (
    KINDS,
    Null,
    best_of,
    consistency_interval,
    load_sums,
    normalised_consistency,
    permutations,
    save_sums,
    shuffled,
    shuffled_within_class,
)
from consistency.moments import ImageMoments
from tests.mistakes import refused

LABELS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 1, 2, 0])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def next_similarity(instabilities, x, y):
    """Stand for a similarity of x and y, whatever they are."""
    return 1 - next(instabilities)


def instability(error, target):
    return {"instability": error / target}


def test_no_image_keeps_its_partner():
    for seed in range(50):
        order = shuffled(7, generator(seed))
        assert sorted(order.tolist()) == list(range(7))
        assert (order != torch.arange(7)).all()
    assert shuffled(2, generator()).tolist() == [1, 0]


def test_every_partner_is_as_likely():
    partners = torch.stack([shuffled(5, generator(seed)) for seed in range(400)])
    counts = torch.stack([torch.bincount(partners[:, image], minlength=5) for image in range(5)])
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(5, dtype=torch.bool)]
    assert others.min() > 65 and others.max() < 140  # of 100 each


def test_within_a_class_only_the_class_is_shuffled():
    for seed in range(20):
        order = shuffled_within_class(LABELS, generator(seed))
        assert torch.equal(LABELS[order], LABELS)
        assert sorted(order.tolist()) == list(range(10))
        kept = order == torch.arange(10)
        assert kept.nonzero().flatten().tolist() == [6]  # the only image of its class


def test_shuffling_needs_a_class_of_two():
    for fails, images in (
        (lambda: shuffled_within_class(torch.arange(4), generator()), 4),
        (lambda: shuffled(1, generator()), 1),
    ):
        with refused(images):
            fails()


def test_all_permutations_that_keep_the_classes_are_as_likely():
    labels = torch.tensor([1, 0, 1, 0, 1])
    drawn = permutations(labels, 2400, generator())
    assert drawn.shape == (2400, 5)
    found, counts = drawn.unique(dim=0, return_counts=True)
    expected = {
        (odd[0], even[0], odd[1], even[1], odd[2])
        for odd, even in itertools.product(
            itertools.permutations([0, 2, 4]), itertools.permutations([1, 3])
        )
    }
    assert {tuple(order) for order in found.tolist()} == expected  # 12, the true order among them
    assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_add_one_p_value_and_the_zero_agree():
    draws = np.random.default_rng(0).permutation(np.linspace(0.5, 1, 200))
    for observed in (*np.sort(draws)[:12], 0.1, 0.4999, 2):
        null = Null(float(observed), draws)
        assert null.p_value == (1 + sum(draw <= observed for draw in draws)) / 201
        assert (observed < null.zero()) == (null.p_value <= 0.05)
    assert null.zero() == np.sort(draws)[9]
    assert Null(0.0, np.arange(1.0, 20)).zero() == 1  # 19 permutations are the fewest
    with refused("19", "18"):
        Null(0.0, np.arange(1.0, 19)).zero()


def test_p_and_zero_equal_the_oracle():
    """The oracle's similarity is 1 − instability; it is fed the same draws in the same order."""
    draws = np.random.default_rng(1).uniform(0.5, 1, 200)
    for observed in (0.51, 0.3):
        values = iter([observed, *draws])
        given = functools.partial(next_similarity, values)
        score, p_value, tau = calibrate(torch.zeros(9, 2), torch.zeros(9, 2), given, K=200)
        null = Null(observed, draws)
        assert null.p_value == pytest.approx(p_value.item(), abs=1e-6)
        assert null.zero() == pytest.approx(1 - tau.item(), abs=1e-6)
        assert normalised_consistency(observed, null.zero()) == pytest.approx(
            score.item(), abs=1e-6
        )


def test_the_best_of_layers_has_the_oracles_p():
    random = np.random.default_rng(2)
    values = random.uniform(0.5, 1, (201, 3))
    values[0] = 0.52
    means = values.mean(0)
    given = functools.partial(next_similarity, iter((values / means).ravel()))
    _, p_value, _ = calibrate_layers([torch.zeros(9, 2)] * 3, [torch.zeros(9, 2)], given, K=200)
    best = best_of([Null(column[0], column[1:]) for column in values.T])
    assert best.p_value == pytest.approx(p_value.item(), abs=1e-6)
    assert best.p_value > 3 / 201


def test_the_best_of_layers_pays_for_the_search():
    random = np.random.default_rng(0)
    single, best = [], []
    for _ in range(300):
        nulls = [
            Null(float(row[0]), row[1:])
            for row in random.normal(1, 0.01, (8, 40)) * random.uniform(0.5, 1, (8, 1))
        ]
        single.append(min(null.p_value for null in nulls) <= 0.05)
        best.append(best_of(nulls).p_value <= 0.05)
    assert np.mean(single) > 0.25
    assert np.mean(best) < 0.09


def test_the_best_layer_counts_relative_to_its_own_null():
    low = Null(0.2, np.linspace(0.19, 0.21, 99))  # reaches little, and no less than by chance
    high = Null(0.8, np.linspace(0.95, 1.05, 99))
    assert best_of([low, high]).p_value == pytest.approx(0.01)


def test_normalised_consistency_is_1_at_the_ceiling_and_0_at_the_null():
    assert normalised_consistency(0.1, null=0.6, ceiling=0.1) == 1
    assert normalised_consistency(0.6, null=0.6, ceiling=0.1) == 0
    assert normalised_consistency(0.7, null=0.6, ceiling=0.1) == pytest.approx(-0.2)
    assert normalised_consistency(0.3, null=0.6) == 0.5
    assert np.isnan(normalised_consistency(0.3, null=0.1, ceiling=0.1))
    np.testing.assert_allclose(normalised_consistency(np.array([0.5, 0.25]), null=1.0), [0.5, 0.75])


def test_score_null_and_ceiling_are_resampled_together():
    random = np.random.default_rng(0)
    target = random.gamma(1, size=200)  # images differ much in size
    error, null, least = (
        share * target * random.uniform(0.95, 1.05, 200) for share in (0.5, 0.9, 0.1)
    )
    found = consistency_interval(instability, [error, target], [null, target], [least, target])
    assert list(found) == ["instability", "null", "ceiling", "consistency"]
    for name, part in (("instability", error), ("null", null), ("ceiling", least)):
        assert found[name].value == pytest.approx(part.sum() / target.sum())
    score = found["consistency"]
    assert score.value == pytest.approx((null.sum() - error.sum()) / (null.sum() - least.sum()))
    assert score.low < 0.5 < score.high
    assert score.high - score.low < 0.02  # what images share cancels
    assert score.fits_fixed


def test_without_a_ceiling_the_least_is_zero():
    ones = np.ones(10)
    found = consistency_interval(instability, [0.3 * ones, ones], [0.6 * ones, ones])
    assert list(found) == ["instability", "null", "consistency"]
    assert found["consistency"].value == pytest.approx(0.5)


def test_a_null_that_is_no_worse_than_the_ceiling_gives_a_reason():
    ones = np.ones(10)
    found = consistency_interval(
        instability, [0.3 * ones, ones], [0.3 * ones, ones], [0.3 * ones, ones]
    )["consistency"]
    assert (found.value, found.low, found.high) == (None, None, None)
    assert "1000 of 1000" in found.reason


def test_sums_in_a_file_are_each_images_part_of_the_variances(tmp_path):
    pieces = torch.randn(3, 20, 4, 3, 3, generator=generator())
    results = {}
    for factor, kind in enumerate(KINDS, start=1):
        results[kind] = ImageMoments()
        results[kind].update(pieces[:2], factor * pieces[2], torch.arange(20).flip(0))
    save_sums(
        tmp_path / "sums.npz", *(moments.target_and_residual() for moments in results.values())
    )
    stored = load_sums(tmp_path / "sums.npz")
    assert tuple(stored) == KINDS
    for factor, kind in enumerate(KINDS, start=1):
        target = pieces[0] + pieces[1] + factor * pieces[2]
        expected = [
            float(vector.var((0, 2, 3), correction=0).mean())
            for vector in (target, factor * pieces[2])
        ]
        assert stored[kind].sum(0) == pytest.approx(expected, rel=1e-5)
        own = results[kind].statistic()(results[kind].arrays()[0][:7].sum(0))["instability"]
        variances = stored[kind][:7].sum(0)
        assert variances[1] / variances[0] == pytest.approx(own)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 and no more", pickle.dumps([1])])
def test_a_file_without_sums_is_refused(tmp_path, content):
    path = tmp_path / "sums.npz"
    path.write_bytes(content)
    with refused("sums.npz", "Calibrate.py", "--sums"):
        load_sums(path)
    np.savez(path, pairs=np.zeros(2))
    with refused("sums.npz"):
        load_sums(path)
