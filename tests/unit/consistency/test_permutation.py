import numpy as np
import pytest
import torch
from torch.nn import functional as F

from consistency import factorised_ridge, permutation
from consistency.calibration import permutations
from consistency.permutation import (
    Regression,
    calibrate_linear,
    calibrate_linear_ways,
    permuted_errors,
    untrue_errors,
)
from tests.mistakes import refused


def features(images=(30, 12), channels=4, seed=0):
    """x and a target that is partly a 3×3 convolution of x,
    for fitting and held-out images; float64.
    """
    generator = torch.Generator().manual_seed(seed)
    kernel = torch.randn(5, channels, 3, 3, generator=generator, dtype=torch.float64)
    found = []
    for count in images:
        x = torch.randn(count, channels, 3, 2, generator=generator, dtype=torch.float64) + 1
        noise = torch.randn(count, 5, 3, 2, generator=generator, dtype=torch.float64)
        found += [x, F.conv2d(x - 1, kernel, padding=1) + 2 * noise + 3]
    return found


def orders(draws=3, images=(30, 12), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [
        permutations(torch.zeros(count, dtype=torch.int64), draws, generator) for count in images
    ]


def by_definition(x_fit, target_fit, x_held, target_held, kernel_size, weight):
    """Squared errors of one pairing per held-out image, by a solver over all rows."""

    def rows(x):
        return F.unfold(
            x - x_fit.mean((0, 2, 3), keepdim=True), kernel_size, padding=kernel_size // 2
        ).mT.flatten(0, 1)

    mean = target_fit.mean((0, 2, 3))
    patches = rows(x_fit)
    penalty = weight * patches.square().sum() / patches.shape[1]
    gram = patches.T @ patches + penalty * torch.eye(patches.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(gram, patches.T @ (target_fit.flatten(2).mT.flatten(0, 1) - mean))
    error = target_held.flatten(2).mT.flatten(0, 1) - mean - rows(x_held) @ solution
    return error.unflatten(0, (len(x_held), -1))  # (N', U, D)


# The last is dual
@pytest.mark.parametrize(("kernel_size", "images"), [(1, (30, 12)), (3, (30, 12)), (3, (5, 12))])
def test_every_pairing_has_the_errors_of_its_own_regression(kernel_size, images):
    parts = features(images)
    pairings = orders(images=images)
    found = permuted_errors(*parts, *pairings, kernel_size=kernel_size, weight=0.3)
    x_fit, target_fit, x_held, target_held = parts
    pairs = [(torch.arange(images[0]), torch.arange(images[1])), *zip(*pairings)]
    for errors, (fit, held) in zip([found.observed, *found.draws], pairs):
        expected = by_definition(
            x_fit[fit], target_fit, x_held[held], target_held, kernel_size, 0.3
        )
        total = (expected - expected.mean((0, 1))).square().sum()
        assert errors.sum() == pytest.approx(total.item(), rel=1e-10)
        if errors.ndim == 0:  # of permuted pairs the sum alone
            continue
        by_image = expected.square().sum((1, 2)) - expected.mean((0, 1)).square().sum() * 6
        np.testing.assert_allclose(errors, by_image, rtol=1e-9)
    centred = target_held - target_held.mean((0, 2, 3), keepdim=True)
    np.testing.assert_allclose(found.target, centred.square().sum((1, 2, 3)), rtol=1e-10)
    null = found.null()
    assert null.observed == pytest.approx(found.observed.sum() / found.target.sum())
    assert null.draws.shape == (3,) and null.draws[1] == pytest.approx(
        found.draws[1] / found.target.sum()
    )


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_products_in_frequencies_are_those_of_patches(kernel_size, monkeypatch):
    """In float64 to 1e-9, in float32 to 1e-6 of the errors; and both directions from one product."""
    parts, pairings = features((40, 20)), orders(draws=4, images=(40, 20))
    options = {"kernel_size": kernel_size, "weight": 0.3}
    fast = permuted_errors(*parts, *pairings, **options)
    single = permuted_errors(*(part.float() for part in parts), *pairings, **options)
    sides = ((parts[0], parts[2]), (parts[1], parts[3]))
    labels = [torch.zeros(count, dtype=torch.int64) for count in (40, 20)]
    ways = [
        calibrate_linear_ways(*sides, labels, torch.Generator().manual_seed(0), draws=19, **options)
        for _ in range(2)
    ]
    monkeypatch.setattr(factorised_ridge.CrossProducts, "BYTES", 0)
    slow = permuted_errors(*parts, *pairings, **options)
    np.testing.assert_allclose(fast.draws, slow.draws, rtol=1e-9)
    np.testing.assert_allclose(single.draws, slow.draws, rtol=1e-6)
    by_patches = calibrate_linear_ways(
        *sides, labels, torch.Generator().manual_seed(0), draws=19, **options
    )
    for one, again, other in zip(*ways, by_patches):
        np.testing.assert_array_equal(one.null.draws, again.null.draws)
        np.testing.assert_allclose(one.null.draws, other.null.draws, rtol=1e-9)
        assert one.intervals["consistency"].value == other.intervals["consistency"].value


def test_both_forms_meet_where_rows_equal_columns(monkeypatch):
    parts, pairings = features((6, 12)), orders(images=(6, 12))  # 36 rows and 36 columns: primal
    primal = permuted_errors(*parts, *pairings, kernel_size=3)
    wider = [
        F.pad(parts[index], (0, 0, 0, 0, 0, 1)) if index in (0, 2) else parts[index]
        for index in range(4)
    ]
    # A dead channel: the same penalty
    dual = permuted_errors(*wider, *pairings, kernel_size=3, weight=0.1 * 45 / 36)
    np.testing.assert_allclose(dual.draws, primal.draws, rtol=1e-9)
    np.testing.assert_allclose(dual.observed, primal.observed, rtol=1e-9)


@pytest.mark.parametrize("images", [(30, 12), (5, 12)])
def test_chunks_and_memory_maps_change_nothing(monkeypatch, tmp_path, images):
    parts, pairings = features(images), orders(draws=5, images=images)
    whole = permuted_errors(*parts, *pairings, kernel_size=3)
    monkeypatch.setattr(factorised_ridge, "CHUNK_BYTES", 8 * 6 * 36 * 4)
    monkeypatch.setattr(permutation, "BLOCK_BYTES", 8 * 36 * 5 * 2)  # two pairings
    mapped = []
    for index, part in enumerate(parts):
        np.save(tmp_path / f"{index}.npy", part.numpy())
        mapped.append(np.load(tmp_path / f"{index}.npy", mmap_mode="r"))
    chunked = permuted_errors(*mapped, *pairings, kernel_size=3)
    for name in ("target", "observed", "draws"):
        np.testing.assert_allclose(getattr(chunked, name), getattr(whole, name), rtol=1e-10)


def test_the_true_pairs_of_a_planted_map_stand_out_of_their_null():
    null = permuted_errors(
        *features((200, 80)), *orders(draws=39, images=(200, 80)), kernel_size=3
    ).null()
    assert null.observed < 0.4
    assert null.draws.min() > 0.95
    assert null.p_value == 1 / 40


@pytest.mark.parametrize("images", [(30, 12), (6, 12)])
def test_pairs_without_a_connection_have_uniform_p_values(images):
    p_values = []
    for seed in range(60):
        x_fit, _, x_held, _ = features(images, seed=seed)
        _, target_fit, _, target_held = features(images, seed=1000 + seed)
        drawn = orders(draws=19, images=images, seed=seed)
        p_values.append(
            permuted_errors(x_fit, target_fit, x_held, target_held, *drawn).null().p_value
        )
    assert 0.35 < np.mean(p_values) < 0.65
    assert 5 <= sum(p <= 0.25 for p in p_values) <= 25


def test_a_feature_predicts_itself():
    x_fit, _, x_held, _ = features()
    none = torch.empty(0, 30, dtype=torch.int64), torch.empty(0, 12, dtype=torch.int64)
    found = permuted_errors(x_fit, x_fit, x_held, x_held, *none, weight=1e-9)
    assert found.draws.shape == (0,)
    assert found.observed.sum() < 1e-10 * found.target.sum()


def test_what_cannot_be_paired_is_refused():
    x_fit, target_fit, x_held, target_held = features()
    with refused((3, 1), (3, 2)):
        permuted_errors(x_fit[..., :1], target_fit, x_held, target_held, *orders())
    with refused([len(x_fit) - 1, len(x_held)], [len(x_fit), len(x_held)]):
        permuted_errors(x_fit[1:], target_fit, x_held, target_held, *orders())
    with refused("12"):
        one = Regression((x_fit, x_held), (target_fit, target_held))
        untrue_errors(one, orders()[0], torch.arange(12))
    with refused("x*"):
        permuted_errors(x_fit, target_fit, x_held, torch.ones_like(target_held), *orders())


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_an_image_is_held_against_every_other_one_of_its_class(kernel_size, monkeypatch):
    monkeypatch.setattr(factorised_ridge, "CHUNK_BYTES", 8 * 6 * 36 * 4)
    (x_fit, target_fit, x_held, target_held), (order, _) = features(), orders(draws=1)
    labels = torch.arange(12) % 3
    labels[-1] = 7  # the only one of its class
    one = Regression(
        (x_fit, x_held), (target_fit, target_held), kernel_size=kernel_size, weight=0.3
    )
    found = untrue_errors(one, order, labels)[0]
    error = by_definition(x_fit[order[0]], target_fit, x_held, target_held, kernel_size, 0.3)
    target = (target_held - target_fit.mean((0, 2, 3), keepdim=True)).flatten(2).mT  # (N', U, D)
    predicted, shift = target - error, error.mean((0, 1)).square().sum().item() * 6
    products = torch.einsum("iud,jud->ij", target, predicted)
    for kind in labels.unique():
        of = (labels == kind).nonzero().flatten()
        untrue = [(i, j) for i in of for j in of if i != j or len(of) == 1]
        errors = [(target[i] - predicted[j]).square().sum().item() for i, j in untrue]
        assert found[of].mean() == pytest.approx(np.mean(errors) - shift, rel=1e-9)
        between = np.mean([products[pair].item() for pair in untrue])
        for i in of:
            part = target[i].square().sum() + predicted[i].square().sum() + 2 * between - shift
            part -= 2 * np.mean([products[pair].item() for pair in untrue if pair[0] == i])
            part -= 2 * np.mean([products[pair].item() for pair in untrue if pair[1] == i])
            assert found[i] == pytest.approx(part.item(), rel=1e-9)


def planted(kind):
    """x and a target for fitting and held-out images: x itself,
    its channels in another order, or mixed and widened.
    """
    x_fit, _, x_held, _ = features((60, 30))
    rotation = torch.linalg.qr(torch.randn(9, 4, generator=torch.Generator().manual_seed(0)))[0]
    mixing = {"itself": torch.eye(4), "permuted": torch.eye(4)[[2, 0, 3, 1]], "mixed": rotation}[
        kind
    ]
    x = x_fit, x_held
    labels = [torch.arange(len(part)) % 3 for part in x]
    return x, [torch.einsum("nchw,dc->ndhw", part, 5 * mixing.double()) for part in x], labels


@pytest.mark.parametrize("kind", ["itself", "permuted", "mixed"])
def test_what_is_shared_whole_is_at_the_ceiling(kind):
    found = calibrate_linear(
        *planted(kind), torch.Generator().manual_seed(0), draws=39, resamples=100
    )
    consistency = found.intervals["consistency"]
    assert [consistency.value, consistency.low, consistency.high] == pytest.approx(
        [1, 1, 1], abs=1e-9
    )
    assert found.null.p_value == 1 / 40 and len(found.null.draws) == 39
    report = found.report()
    assert (report["permutations"], report["p"]) == (39, 1 / 40)
    assert report["above_zero"] == pytest.approx(1, abs=1e-6)
    assert report["zero"] == found.null.zero() < 1.1


def test_half_of_the_variance_from_other_images_is_half_of_the_consistency():
    x, target, labels = planted("mixed")
    foreign = [5 * part for part in features((60, 30), seed=5)[::2]]
    halves = [torch.cat(pair, dim=1) for pair in zip(target, foreign)]
    found = calibrate_linear(
        x, halves, labels, torch.Generator().manual_seed(0), draws=0, shuffles=20
    )
    consistency = found.intervals["consistency"]
    assert consistency.low < 0.5 < consistency.high
    assert consistency.value == pytest.approx(0.5, abs=0.05)


def test_the_null_of_the_consistency_keeps_the_class():
    x, target, labels = planted("itself")
    means = 3 * torch.randn(
        3, 4, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    x = target = [part + means[label] for part, label in zip(x, labels)]
    nulls = [
        calibrate_linear(x, target, kinds, torch.Generator().manual_seed(0), draws=0)
        .intervals["null"]
        .value
        for kinds in (labels, [torch.zeros_like(part) for part in labels])
    ]
    assert nulls[0] < 0.5 and nulls[1] > 0.9


def test_a_dead_feature_explains_nothing():
    x_fit, target_fit, x_held, target_held = features()
    found = permuted_errors(
        torch.zeros_like(x_fit), target_fit, torch.zeros_like(x_held), target_held, *orders()
    )
    assert found.null().observed == pytest.approx(1) and found.null().draws == pytest.approx(
        [1, 1, 1]
    )
