import json
import pickle

import numpy as np
import pytest
import torch

from utils.measures import moments
from utils.measures.moments import ComponentMoments, FeatureMoments

RAGGED = [5, 1, 7, 3]
NAMES = ["target", "order0", "order1", "order2", "output", "residual"]


def pieces(images=16, dtype=torch.float32, offset=0.0, spread=1.0, seed=0):
    """Components (3, N, C, H, W) and a residual that depend on each other, whose channels differ in mean and size."""
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randn(4, images, 5, 4, 3, generator=generator, dtype=torch.float64)
    mixed = torch.einsum("ij,jnchw->inchw", torch.randn(4, 4, generator=generator, dtype=torch.float64), raw)
    sizes = torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None, None]
    means = torch.randn(4, 1, 5, 1, 1, generator=generator, dtype=torch.float64)
    mixed = (offset + spread * (mixed * sizes + means)).to(dtype)
    return mixed[:3], mixed[3]


def accumulated(components, residual, sizes=RAGGED):
    moments = ComponentMoments()
    for part, rest in zip(components.split(sizes, dim=1), residual.split(sizes)):
        moments.update(part, rest)
    return moments


def by_definition(components, residual, mean):
    """Covariances of all six vectors from the concatenated arrays, in float64."""
    orders, rest = components.double().numpy(), residual.double().numpy()
    output = orders.sum(0)
    vectors = np.stack([output + rest, *orders, output, rest])
    axes = (1, 3, 4) if mean == "channel" else (1, 2, 3, 4)
    centred = vectors - vectors.mean(axes, keepdims=True)
    covariance = np.einsum("inchw,jnchw->ij", centred, centred) / vectors[0].size
    return covariance, (vectors - vectors.mean((1, 3, 4), keepdims=True)).var((1, 3, 4))


@pytest.mark.parametrize("mean", ["channel", "global"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_ragged_batches_equal_one_computation_over_everything(mean, dtype):
    components, residual = pieces(dtype=dtype)
    covariance, by_channel = by_definition(components, residual, mean)
    moments = accumulated(components, residual)
    found = moments.report(mean)
    assert found["images"] == 16
    assert found["mean"] == mean
    assert list(found["var"]) == found["covariance"]["names"] == NAMES
    np.testing.assert_allclose(list(found["var"].values()), covariance.diagonal(), rtol=1e-10)
    matrix = np.array(found["covariance"]["matrix"])
    np.testing.assert_allclose(matrix, covariance, rtol=1e-10, atol=1e-10 * np.abs(covariance).max())
    np.testing.assert_allclose(moments.channel_variances().numpy(), by_channel, rtol=1e-10)
    assert found["instability"] == pytest.approx(covariance[5, 5] / covariance[0, 0], rel=1e-10)
    assert json.loads(json.dumps(found)) == found


def test_the_two_conventions_differ_by_the_spread_of_the_channel_means():
    components, residual = pieces()
    moments = accumulated(components, residual)
    target = (components.sum(0) + residual).double()
    spread = target.mean((0, 2, 3)).var(unbiased=False)
    difference = moments.covariance("global")[0, 0] - moments.covariance("channel")[0, 0]
    torch.testing.assert_close(difference, spread, rtol=1e-6, atol=0)
    assert spread > 0.1


@pytest.mark.parametrize("mean", ["channel", "global"])
def test_the_table_adds_up(mean):
    table = accumulated(*pieces()).covariance(mean)
    parts = [1, 2, 3, 5]  # the orders and the residual
    torch.testing.assert_close(table[parts][:, parts].sum(), table[0, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(table[1:4, 1:4].sum(), table[4, 4], rtol=1e-12, atol=0)
    torch.testing.assert_close(table, table.T, rtol=0, atol=1e-14)


def test_a_constant_counts_where_the_mean_is_global_and_only_there():
    """g(x) = Σ x(k) + constant: as if the constant were one more component."""
    components, residual = pieces(dtype=torch.float64)
    constant = torch.tensor([3.0, -1.0, 0.5, 0.0, 2.0], dtype=torch.float64)
    moments = ComponentMoments(constant)
    for part, rest in zip(components.split(RAGGED, dim=1), residual.split(RAGGED)):
        moments.update(part, rest)
    without = accumulated(components, residual)
    assert moments.report("channel") == without.report("channel")
    assert torch.equal(moments.channel_variances(), without.channel_variances())

    as_component = torch.cat([components, constant[:, None, None].expand(1, *residual.shape)])
    covariance, _ = by_definition(as_component, residual, "global")
    order = [0, 1, 2, 3, 5, 6, 4]  # the constant's row comes last
    np.testing.assert_allclose(moments.covariance("global"), covariance[order][:, order], rtol=1e-10, atol=1e-12)
    assert moments.report("global")["covariance"]["names"] == [*NAMES, "constant"]
    assert moments.report("global")["var"]["constant"] == pytest.approx(float(constant.var(unbiased=False)))
    assert pickle.loads(pickle.dumps(moments.cpu())).report("global") == moments.report("global")


def test_a_constant_of_zeros_is_no_row():
    components, residual = pieces()
    moments = ComponentMoments(torch.zeros(5))
    moments.update(components, residual)
    assert moments.report("global") == accumulated(components, residual, 16).report("global")


def test_a_large_mean_does_not_cancel():
    components, residual = pieces(offset=1e4, spread=1.0)
    covariance, by_channel = by_definition(components, residual, "channel")
    moments = accumulated(components, residual)
    np.testing.assert_allclose(moments.covariance().diagonal(), covariance.diagonal(), rtol=1e-8)
    np.testing.assert_allclose(moments.channel_variances().numpy(), by_channel, rtol=1e-8)


def test_batches_are_taken_in_slices_of_bounded_size(monkeypatch):
    components, residual = pieces()
    whole = accumulated(components, residual).covariance()
    sizes = []
    merge = ComponentMoments._merge

    def watched(self, count, *rest):
        sizes.append(count)
        merge(self, count, *rest)

    monkeypatch.setattr(ComponentMoments, "_merge", watched)
    monkeypatch.setattr(moments, "CHUNK_BYTES", 8 * 4 * residual[0].numel() * 2 + 1)  # two images
    sliced = accumulated(components, residual)
    assert max(sizes) == 2 * 4 * 3
    assert sum(sizes) == sliced.count == 16 * 4 * 3
    torch.testing.assert_close(sliced.covariance(), whole, rtol=1e-12, atol=1e-12)


def test_two_accumulators_merge_into_one():
    components, residual = pieces()
    one = accumulated(components, residual)
    first = accumulated(components[:, :6], residual[:6], [6])
    second = accumulated(components[:, 6:], residual[6:], [9, 1])
    merged = ComponentMoments()
    merged.merge(pickle.loads(pickle.dumps(first.cpu())))  # as from another process
    merged.merge(second)
    merged.merge(ComponentMoments())  # a process that saw nothing
    assert (merged.images, merged.count) == (one.images, one.count) == (16, 16 * 12)
    torch.testing.assert_close(merged.covariance("global"), one.covariance("global"), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged.channel_variances(), one.channel_variances(), rtol=1e-12, atol=1e-12)


def test_memory_does_not_grow_with_the_images():
    components, residual = pieces(images=64)
    sizes = {len(pickle.dumps(accumulated(components[:, :n], residual[:n], n))) for n in (16, 64)}
    assert max(sizes) - min(sizes) < 8


def test_a_constant_target_has_no_instability():
    zeros = torch.zeros(2, 3, 4, 2, 2)
    found = accumulated(zeros, zeros[0], 3).report()
    assert found["instability"] is None
    assert set(found["var"].values()) == {0}


def test_channels_are_ranked_and_dead_ones_left_out():
    torch.manual_seed(0)
    residual = torch.randn(16, 5, 3, 3) * torch.tensor([0.9, 0.1, 0.5, 0.001, 0])[:, None, None]
    components = (torch.randn(1, 16, 5, 3, 3)) * torch.tensor([1.0, 1.0, 1.0, 1e-3, 0])[:, None, None]
    moments = accumulated(components, residual, 16)
    channels, instability = moments.rank_channels()
    assert channels.tolist() == [1, 2, 0]
    for ends, kept in ((1, [0, 2]), (2, [0, 1, 2]), (9, [0, 1, 2])):
        some, their_instability = moments.rank_channels(ends)
        assert torch.equal(some, channels[kept]) and torch.equal(their_instability, instability[kept])
    variances = [residual[:, c].var() / (residual[:, c] + components[0, :, c]).var() for c in channels]
    torch.testing.assert_close(instability, torch.stack(variances).double(), rtol=1e-5, atol=0)


def test_an_unknown_mean_is_refused():
    with pytest.raises(ValueError, match="'pixel'"):
        accumulated(*pieces()).covariance("pixel")


# --- one feature


def features(images=16, offset=0.0):
    """Maps (N, C, H, W), float64, whose channels differ in mean and size."""
    generator = torch.Generator().manual_seed(3)
    sizes = torch.linspace(0.5, 2, 5, dtype=torch.float64)[:, None, None]
    return offset + sizes * (1 + torch.randn(images, 5, 4, 3, generator=generator, dtype=torch.float64))


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
