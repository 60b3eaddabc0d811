import copy
import pickle

import numpy as np
import pytest
import torch

from consistency import moments
from consistency.bootstrap import bootstrap, weighted
from consistency.moments import FeatureMoments, ImageMoments
from tests.mistakes import refused

RAGGED = [5, 1, 7, 3]
NAMES = ["target", "order0", "order1", "order2", "output", "residual"]
CLOSE = 1e-7  # of sums per channel that are kept as float32


def pieces(images=16, dtype=torch.float32, offset=0.0, spread=1.0):
    """Components (3, N, 5, 4, 3) and a residual that depend on each other;
    images and channels differ.
    """
    generator = torch.Generator().manual_seed(0)
    raw = torch.randn(4, images, 5, 4, 3, generator=generator, dtype=torch.float64)
    raw = raw + torch.randn(4, images, 5, 1, 1, generator=generator, dtype=torch.float64)
    mixed = torch.einsum(
        "ij,jnchw->inchw", torch.randn(4, 4, generator=generator, dtype=torch.float64), raw
    )
    sizes = torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None, None]
    means = torch.randn(4, 1, 5, 1, 1, generator=generator, dtype=torch.float64)
    mixed = (offset * (1 + means) + spread * (mixed * sizes + means)).to(dtype)
    return mixed[:3], mixed[3]


def accumulated(components, residual, sizes=RAGGED, numbers=None, constant=None, **options):
    found = ImageMoments(constant, **options)
    numbers = torch.arange(len(residual)) if numbers is None else numbers
    for part, rest, some in zip(
        components.split(sizes, dim=1), residual.split(sizes), numbers.split(sizes)
    ):
        found.update(part, rest, some)
    return found


def by_definition(components, residual, mean):
    """Covariances of all named vectors from the concatenated arrays,
    in float64, and variances in each channel.
    """
    orders, rest = components.double().numpy(), residual.double().numpy()
    output = orders.sum(0)
    vectors = np.stack([output + rest, *orders, output, rest])
    axes = (1, 3, 4) if mean == "channel" else (1, 2, 3, 4)
    centred = vectors - vectors.mean(axes, keepdims=True)
    covariance = np.einsum("inchw,jnchw->ij", centred, centred) / vectors[0].size
    return covariance, (vectors - vectors.mean((1, 3, 4), keepdims=True)).var((1, 3, 4))[[0, -1]]


def covariance(found, mean="channel"):
    return found.products(mean).mean(0)


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("mean", ["channel", "global"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_ragged_batches_equal_one_computation_over_everything(mean, dtype, per_image):
    components, residual = pieces(dtype=dtype)
    expected, by_channel = by_definition(components, residual, mean)
    found = accumulated(components, residual, per_image=per_image)
    assert (found.images, found.positions, found.names(mean)) == (16, 12, NAMES)
    np.testing.assert_allclose(
        covariance(found, mean), expected, rtol=CLOSE, atol=CLOSE * np.abs(expected).max()
    )
    np.testing.assert_allclose(found.channel_squares().mean(0), by_channel, rtol=CLOSE)
    numbers = found.statistic(mean)(*(part.sum(0) for part in found.arrays(mean)))
    assert numbers["instability"] == pytest.approx(expected[5, 5] / expected[0, 0], rel=CLOSE)
    assert numbers["share_order1"] == pytest.approx(expected[2, 2] / expected[0, 0], rel=CLOSE)
    assert [numbers[f"var_{name}"] for name in NAMES] == pytest.approx(
        expected.diagonal().tolist(), rel=CLOSE
    )
    assert len(numbers) == 2 * len(NAMES) - 1


@pytest.mark.parametrize("mean", ["channel", "global"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_every_image_has_its_part_of_the_variances(mean, offset):
    components, residual = pieces(offset=offset)
    output = components.double().sum(0)
    target = output + residual
    axes = (0, 2, 3) if mean == "channel" else (0, 1, 2, 3)
    found = accumulated(components, residual).products(mean)
    for row, vector in (
        (0, target),
        (2, components[1].double()),
        (4, output),
        (5, residual.double()),
    ):
        expected = (vector - vector.mean(axes, keepdim=True)).square().mean((1, 2, 3))
        np.testing.assert_allclose(found[:, row, row], expected, rtol=1e-5)


def test_a_resample_has_the_parts_of_its_images():
    components, residual = pieces()
    found = accumulated(components, residual)
    drawn = np.random.default_rng(0).multinomial(16, np.full(16, 1 / 16), size=5).astype(float)
    numbers = found.statistic()(*(weighted(part, drawn) for part in found.arrays()))
    target = (components.sum(0) + residual).double()
    centred = (part - part.mean((0, 2, 3), keepdim=True) for part in (target, residual.double()))
    whole, left = (drawn @ part.square().mean((1, 2, 3)).numpy() for part in centred)
    np.testing.assert_allclose(numbers["instability"], left / whole, rtol=1e-5)


def test_images_are_ordered_by_their_numbers_whoever_saw_them():
    components, residual = pieces()
    one = accumulated(components, residual)
    shares = [torch.arange(rank, 16, 2) for rank in range(2)]  # as two processes read them
    for per_image in (True, False):
        merged = ImageMoments(per_image=per_image)
        for share in (shares[1], shares[0]):
            part = accumulated(components[:, share], residual[share], 7, share, per_image=per_image)
            merged.merge(pickle.loads(pickle.dumps(part)))
        merged.merge(ImageMoments(per_image=per_image))  # a process that saw nothing
        assert merged.images == 16
        for mean in ("channel", "global"):
            rows, expected = merged.products(mean), one.products(mean)
            expected = expected if per_image else expected.mean(0, keepdims=True)
            np.testing.assert_allclose(rows, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(
            merged.channel_squares().mean(0), one.channel_squares().mean(0), rtol=1e-6
        )


def test_a_class_is_measured_as_if_its_images_were_all():
    components, residual = pieces()
    labels = torch.arange(16) % 3
    found = ImageMoments()
    for part in torch.arange(15, -1, -1).split(RAGGED):
        found.update(components[:, part], residual[part], part, labels[part])
    assert [label for label, _ in found.classes()] == [0, 1, 2]
    for label, part in found.classes():
        chosen = labels == label
        expected, by_channel = by_definition(components[:, chosen], residual[chosen], "channel")
        assert part.images == chosen.sum()
        np.testing.assert_allclose(covariance(part), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(part.channel_squares().mean(0), by_channel, rtol=1e-5)
    assert found.images == 16
    several = ImageMoments()
    several.update(components, residual, torch.arange(16), torch.ones(16, 4))
    assert list(several.classes()) == list(accumulated(components, residual).classes()) == []


def test_the_two_conventions_differ_by_the_spread_of_the_channel_means():
    components, residual = pieces()
    found = accumulated(components, residual)
    target = (components.sum(0) + residual).double()
    spread = float(target.mean((0, 2, 3)).var(unbiased=False))
    assert covariance(found, "global")[0, 0] - covariance(found)[0, 0] == pytest.approx(
        spread, rel=1e-6
    )
    assert spread > 0.1


@pytest.mark.parametrize("mean", ["channel", "global"])
def test_the_table_adds_up(mean):
    table = covariance(accumulated(*pieces()), mean)
    parts = [1, 2, 3, 5]  # the orders and the residual
    assert table[np.ix_(parts, parts)].sum() == pytest.approx(table[0, 0], rel=1e-12)
    assert table[1:4, 1:4].sum() == pytest.approx(table[4, 4], rel=1e-12)
    np.testing.assert_allclose(table, table.T, rtol=0, atol=1e-14)


def test_a_constant_counts_where_the_mean_is_global_and_only_there():
    """g(x) = Σ x(k) + constant: as if the constant were one more component."""
    components, residual = pieces(dtype=torch.float64)
    constant = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    as_component = torch.cat([components, constant[:, None, None].expand(1, *residual.shape)])
    expected, _ = by_definition(as_component, residual, "global")
    order = [0, 1, 2, 3, 5, 6, 4]  # the constant's row comes last
    for per_image in (True, False):
        found = accumulated(components, residual, constant=constant, per_image=per_image)
        without = accumulated(components, residual, per_image=per_image)
        np.testing.assert_array_equal(found.products(), without.products())
        np.testing.assert_array_equal(found.channel_squares(), without.channel_squares())
        np.testing.assert_allclose(
            covariance(found, "global"), expected[order][:, order], rtol=1e-6, atol=1e-7
        )
        assert found.names("global") == [*NAMES, "constant"] and found.names() == NAMES


def test_a_constant_of_zeros_is_no_row():
    found = accumulated(*pieces(), constant=torch.zeros(5))
    assert found.names("global") == NAMES and found.products("global").shape == (16, 6, 6)


def test_a_large_mean_does_not_cancel():
    components, residual = pieces(offset=1e4)
    expected, by_channel = by_definition(components, residual, "channel")
    for per_image in (True, False):
        found = accumulated(components, residual, per_image=per_image)
        np.testing.assert_allclose(covariance(found).diagonal(), expected.diagonal(), rtol=CLOSE)
        np.testing.assert_allclose(found.channel_squares().mean(0), by_channel, rtol=CLOSE)


def test_the_memory_is_what_the_docstring_says():
    found = accumulated(*pieces())
    sizes = [
        part.numel() * part.element_size() for column in found._columns for part in column.parts
    ]
    assert sum(sizes) == 16 * (4 * 5 * (4 + 2) + 8 * 4 * 4)
    components, residual = pieces(images=64)
    few, many = (
        accumulated(components[:, :n], residual[:n], 16, per_image=False) for n in (16, 64)
    )
    shapes = [
        [part.shape for column in found._columns for part in column.parts] for found in (few, many)
    ]
    assert shapes[0] == shapes[1] and len(shapes[0]) == 3 and not many._numbers


def test_batches_are_kept_in_few_tensors():
    components, residual = pieces(images=61)
    found = accumulated(components, residual, 1)
    for column in (found._numbers, *found._columns):
        assert [len(part) for part in column.parts] == [32, 16, 8, 4, 1]
    np.testing.assert_allclose(
        found.products(), accumulated(components, residual, 61).products(), atol=1e-5
    )


def test_batches_are_taken_in_slices_of_bounded_size(monkeypatch):
    components, residual = pieces(dtype=torch.float16)
    whole = accumulated(components, residual, 16)
    monkeypatch.setattr(moments, "CHUNK_BYTES", 8 * 4 * residual[0].numel() * 2)
    keep, kept = ImageMoments._keep, []
    monkeypatch.setattr(
        ImageMoments, "_keep", lambda self, *parts: (kept.append(len(parts[0])), keep(self, *parts))
    )
    sliced = accumulated(components, residual, 16)
    assert kept == [2] * 8
    np.testing.assert_allclose(sliced.products(), whole.products(), rtol=1e-5, atol=1e-6)


def test_intervals_hold_their_values():
    found = accumulated(*pieces())
    intervals = bootstrap(found.statistic(), found.arrays(), resamples=200)
    assert (
        list(intervals)[:2] == ["var_target", "var_order0"] and list(intervals)[-1] == "instability"
    )
    for interval in intervals.values():
        assert interval.low < interval.value < interval.high


def test_a_constant_target_has_no_instability():
    zeros = torch.zeros(2, 3, 4, 2, 2)
    found = accumulated(zeros, zeros[0], 3)
    intervals = bootstrap(found.statistic(), found.arrays(), resamples=50)
    assert intervals["var_target"].value == intervals["var_target"].high == 0
    assert intervals["instability"].value is None
    assert intervals["instability"].reason == "50 of 50 resamples have no such number"


def test_what_does_not_belong_together_is_refused():
    components, residual = pieces()
    found = accumulated(components, residual)
    with refused("3", "5", "12", "4"):
        found.update(components[1:], residual, torch.arange(16))
    with refused("pixel", kind=ValueError):
        copy.copy(found).products("pixel")


# --- one feature


def features(images=16, offset=0.0):
    """Maps (N, C, H, W), float64, whose channels differ in mean and size."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None, None]
    return offset + sizes * (
        1 + torch.randn(images, 5, 4, 3, generator=generator, dtype=torch.float64)
    )


@pytest.mark.parametrize("offset", [0, 1e5])
def test_a_layer_has_a_mean_of_each_channel_and_one_deviation(offset, monkeypatch):
    x = features(offset=offset)
    monkeypatch.setattr(moments, "CHUNK_BYTES", 8 * x[0].numel() * 2)  # two images
    found = FeatureMoments()
    for part in x.split(RAGGED):
        found.update(part)
    values = x.numpy()
    assert found.count == 16 * 12
    np.testing.assert_allclose(found.mean, values.mean((0, 2, 3)), rtol=1e-12)
    assert found.std == pytest.approx(np.sqrt(values.var((0, 2, 3)).mean()), rel=1e-9)


def test_the_moments_of_a_layer_merge():
    x = features()
    one, merged = FeatureMoments(), FeatureMoments()
    one.update(x)
    for part in x.split([9, 7]):
        other = FeatureMoments()
        other.update(part)
        merged.merge(pickle.loads(pickle.dumps(other.cpu())))  # as from another process
        merged.merge(FeatureMoments())  # a process that saw nothing
    assert merged.count == one.count
    torch.testing.assert_close(merged.mean, one.mean, rtol=1e-12, atol=0)
    assert merged.std == pytest.approx(one.std, rel=1e-12)


def test_a_dead_layer_has_no_deviation():
    found = FeatureMoments()
    found.update(torch.ones(3, 2, 4, 4).half())
    assert found.mean.tolist() == [1, 1]
    assert found.std == 0
