import numpy as np
import pytest

from consistency.bootstrap import bootstrap
from consistency.calibration import consistency_interval, instability_of
from consistency.several import over_nets, shared
from tests.mistakes import refused


def direction(instability, null=0.8, ceiling=0.0, images=200, seed=0):
    """Every image's parts of Var(x*) and Var(x_Δ) of observed pairs, of a null, of a ceiling."""
    generator = np.random.default_rng(seed)
    target = generator.gamma(5, size=images)
    noise = generator.gamma(20, 1 / 20, size=(3, images))
    sizes = (instability, null, ceiling)
    return tuple(np.stack([target, size * target * one], 1) for size, one in zip(sizes, noise))


def test_shared_is_the_smaller_direction_inside_each_resample():
    forth, back = direction(0.2), direction(0.21, seed=1)
    found = shared(forth, back, resamples=500)
    one_way = [
        consistency_interval(instability_of, *([part] for part in one))["consistency"]
        for one in (forth, back)
    ]
    assert found["forth"].value == pytest.approx(one_way[0].value)
    assert found["back"].value == pytest.approx(one_way[1].value)
    assert found["shared"].value == min(found["forth"].value, found["back"].value)
    assert found["shared"].high <= min(found["forth"].high, found["back"].high)
    assert found["shared"].low <= min(found["forth"].low, found["back"].low)


def test_each_direction_has_its_null():
    found = shared(direction(0.2, null=0.4), direction(0.2, null=0.8, seed=1), resamples=0)
    assert found["forth"].value == pytest.approx(0.5, abs=0.02)
    assert found["back"].value == pytest.approx(0.75, abs=0.02)


def test_a_direction_without_a_scale_leaves_nothing_defined():
    found = shared(direction(0.2, null=0.1, ceiling=0.3), direction(0.2, seed=1), resamples=50)
    assert (found["forth"].value, found["shared"].value) == (None, None)
    assert found["back"].value is not None


def test_directions_of_other_images_are_refused():
    with refused("200", "199"):
        shared(direction(0.2), direction(0.2, images=199))


def errors(nets=6, images=300, seed=0, of_nets=0.05):
    """Sums (M, M, N, 2) of pairs whose instabilities differ by net:
    the mean over a recipe is 0.4.
    """
    generator = np.random.default_rng(seed)
    levels = 0.2 + of_nets * generator.normal(size=(2, nets))
    target = np.broadcast_to(generator.gamma(5, size=images), (nets, nets, images))
    noise = generator.gamma(20, 1 / 20, size=images)
    rest = (levels[0][:, None, None] + levels[1][None, :, None]) * target * noise
    sums = np.stack([target, rest], 3)
    sums[np.arange(nets), np.arange(nets)] = np.nan  # a net beside itself is never read
    return sums


def test_the_value_is_the_mean_over_all_pairs_of_two():
    sums = errors()
    found = over_nets(instability_of, [sums], resamples=200)["instability"]
    each = sums.sum(2)
    rows, columns = np.nonzero(~np.eye(6, dtype=bool))
    assert found.value == pytest.approx((each[..., 1] / each[..., 0])[rows, columns].mean())
    assert found.low < found.value < found.high
    assert found.resampled == ("images", "nets")


def test_images_alone_give_the_interval_over_images():
    sums = errors(nets=2, of_nets=0.0)
    ours = over_nets(instability_of, [sums], images_only=True)["instability"]
    beside = bootstrap(instability_of, [sums[0, 1]])["instability"]
    assert (ours.low, ours.high) == pytest.approx((beside.low, beside.high), abs=3e-3)
    assert ours.resampled == ("images",)


def test_nets_that_differ_widen_the_interval_and_it_covers_the_recipe():
    covered, alone = [], []
    for seed in range(60):
        sums = errors(nets=12, seed=seed)
        for hits, only in ((covered, False), (alone, True)):
            found = over_nets(instability_of, [sums], resamples=200, images_only=only)[
                "instability"
            ]
            hits.append(found.low <= 0.4 <= found.high)
    assert np.mean(covered) >= 0.85
    assert np.mean(alone) <= 0.6


def test_nets_drawn_from_few_have_a_narrower_interval():
    sums = errors(nets=4)
    few, any_number = (
        over_nets(instability_of, [sums], drawn_from=count)["instability"] for count in (10, None)
    )
    assert few.high - few.low < any_number.high - any_number.low
    all_of_them = over_nets(instability_of, [sums], drawn_from=4)["instability"]
    images = over_nets(instability_of, [sums], images_only=True)["instability"]
    assert (all_of_them.low, all_of_them.high) == (images.low, images.high)


def test_too_few_nets_are_refused():
    with refused((1, 1, 300, 2)):
        over_nets(instability_of, [errors()[:1, :1]])
    with refused("6", "3"):
        over_nets(instability_of, [errors()], drawn_from=3)
