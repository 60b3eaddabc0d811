import pickle

import pytest
import torch

from consistency import pair_sums
from consistency.pair_sums import PairSums
from tests.mistakes import refused


def features(images=40, offset=0.0, seed=0):
    """Two maps (N, 6, 3, 2) and (N, 4, 3, 2) that share two channels, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 6, 3, 2, generator=generator, dtype=torch.float64) + offset
    own = torch.randn(images, 4, 3, 2, generator=generator, dtype=torch.float64) - offset
    own[:, :2] += x[:, 1:3] - offset
    return x, own * torch.linspace(0.5, 2, 4, dtype=torch.float64)[:, None, None]


def accumulated(x, target, sizes=(7, 1, 20, 12)):
    sums = PairSums()
    for pair in zip(x.split(list(sizes)), target.split(list(sizes))):
        sums.update(*pair)
    return sums


def as_rows(feature):
    return feature.flatten(2).mT.flatten(0, 1)


def assert_same(found, expected, **tolerance):
    assert found.rows == expected.rows
    for name in ("mean", "xx", "xy", "yy", "squares"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **tolerance)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_sums_are_those_of_all_centred_rows_whatever_the_batches(offset):
    x, target = features(offset=offset)
    found = accumulated(x, target).centred()
    rows = [as_rows(feature) for feature in (x, target)]
    xs, ys = (feature - feature.mean(0) for feature in rows)
    squares = torch.stack([part.square().sum(1) for part in (xs, ys)])
    tolerance = {"rtol": 1e-9, "atol": 1e-6 if offset else 1e-10}
    assert found.rows == 40 * 6
    torch.testing.assert_close(found.mean, torch.cat([feature.mean(0) for feature in rows]))
    for block, expected in ((found.xx, xs.T @ xs), (found.xy, xs.T @ ys), (found.yy, ys.T @ ys)):
        torch.testing.assert_close(block, expected, **tolerance)
    torch.testing.assert_close(found.squares, squares @ squares.T, **tolerance)


def test_two_accumulators_merge_into_one():
    x, target = features()
    x[20:] += 3  # the second process begins elsewhere
    one = accumulated(x, target)
    first, second = (
        accumulated(x[:20], target[:20], (11, 9)),
        accumulated(x[20:], target[20:], (20,)),
    )
    merged = PairSums()
    for part in (PairSums(), first, second):
        merged.merge(pickle.loads(pickle.dumps(part.cpu())))  # as from another process
    assert merged.images == one.images == 40
    assert_same(merged.centred(), one.centred(), rtol=1e-10, atol=1e-9)


def test_batches_are_taken_in_slices_of_bounded_size(monkeypatch):
    x, target = features()
    whole = accumulated(x, target).centred()
    monkeypatch.setattr(pair_sums, "CHUNK_BYTES", 8 * 60 * 3 + 1)  # three images
    assert_same(accumulated(x, target).centred(), whole, rtol=1e-10, atol=1e-10)


def test_maps_of_different_sizes_are_compared_by_their_averages():
    x, target = features()
    pooled = accumulated(x, target[..., :1])
    assert pooled.rows == "pooled"
    expected = accumulated(x.mean((2, 3)), target[..., :1].mean((2, 3)))  # vectors
    assert_same(pooled.centred(), expected.centred(), rtol=1e-10, atol=1e-10)
    assert expected.rows == "positions" and expected.centred().rows == 40


def test_memory_does_not_grow_with_the_images():
    sizes = {len(pickle.dumps(accumulated(*features(images=n), (n,)))) for n in (16, 64)}
    assert max(sizes) - min(sizes) < 8


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_floating_dtype_is_summed_in_float64(dtype):
    x, target = (feature.to(dtype) for feature in features())
    assert_same(
        accumulated(x, target).centred(),
        accumulated(x.double(), target.double()).centred(),
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(value):
    x, target = features()
    target[3, 1, 0, 0] = value
    with refused("NaN", "infinity"):
        accumulated(x, target)


def test_what_does_not_belong_together_is_refused():
    x, target = features()
    sums = accumulated(x, target)
    with refused("6", "4", "5"):
        sums.update(x[:, :5], target)
    with refused("6", "4", "pooled"):
        sums.update(x, target[..., :1])
    with refused("40", "39"):
        sums.update(x, target[1:])
    with refused("6", "4", "3"):
        sums.merge(accumulated(x, target[:, :3]))
    with refused("0"):
        PairSums().centred()
