import numpy as np
import pytest
import torch

from consistency.compared import ComparedImages, ComparedLayer, ComparedNet
from consistency.comparison import Effort, Work
from consistency.comparison_tables import alike_order, measure_atlas, measure_matrix, odd_pairs
from tests.mistakes import refused
from utils.kept import Kept

IMAGES, CHANNELS = 120, 4
EFFORT = Effort(shuffles=1, resamples=100)


@pytest.fixture
def images():
    labels = torch.arange(2 * IMAGES) % 3
    return ComparedImages(labels[:IMAGES], labels[IMAGES:], ["a", "b", "c"])


def layer(name, maps):
    return ComparedLayer(name, None, 1.0, tuple(maps.shape[1:]), maps[:IMAGES], maps[IMAGES:], name)


def net(label, *layers):
    return ComparedNet(label, label, {}, torch.zeros(IMAGES, 3), layers, layers)


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2 * IMAGES, CHANNELS, 3, 3, generator=generator)


def mixed(maps, seed):
    """The same maps, of which each channel is a mixture."""
    mixture = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(seed))
    return torch.einsum("dc,nchw->ndhw", mixture, maps)


def test_a_matrix_finds_the_layers_that_are_mixtures_of_each_other(images):
    first, second = noise(0), noise(1)
    net_a = net("A", layer("one", first), layer("two", second))
    net_b = net("B", layer("zwei", mixed(second, 2)), layer("eins", mixed(first, 3)))
    matrix = measure_matrix(net_a, net_b, images, EFFORT, Work())
    assert (matrix["rows"], matrix["columns"]) == (["one", "two"], ["zwei", "eins"])
    expected = np.array([[0, 1], [1, 0]])
    for name in ("shared", "forth", "back"):
        assert np.array(matrix[name]) == pytest.approx(expected, abs=0.15)
    assert np.array(matrix["cka"]).argmax(1).tolist() == [1, 0]


def test_an_atlas_of_which_one_net_is_another_one(images):
    common = noise(0)
    nets = [net(f"N{i}", layer(f"layer of {i}", mixed(common, i + 1))) for i in range(3)]
    nets.append(net("N3", layer("of its own", noise(9))))
    atlas = measure_atlas(nets, images, EFFORT, Work())
    shared = np.array(atlas["shared"][0], dtype=float)
    assert np.isnan(np.diag(shared)).all() and np.allclose(shared, shared.T, equal_nan=True)
    assert shared[0, 1] > 0.95 and shared[0, 2] > 0.95 and abs(shared[0, 3]) < 0.15
    interval = atlas["intervals"][0]["images_and_nets"]["shared"]
    assert interval["low"] < interval["value"] < interval["high"]
    assert interval["value"] == pytest.approx(np.nanmean(shared))
    assert atlas["order"][0][0] == 3 or atlas["order"][0][-1] == 3


def test_an_atlas_is_kept_by_source(images, tmp_path):
    nets = [net(f"N{i}", layer(f"layer {i}", mixed(noise(0), i + 1))) for i in range(3)]
    work = Work(Kept(tmp_path))
    before = measure_atlas(nets, images, EFFORT, work)
    assert len(list(tmp_path.glob("atlas_*"))) == 3
    next(tmp_path.glob("atlas_*")).unlink()
    assert measure_atlas(nets, images, EFFORT, work) == before
    assert len(list(tmp_path.glob("atlas_*"))) == 3


def test_nets_of_an_atlas_have_as_many_layers(images):
    nets = [net("N1", layer("a", noise(0))), net("N2"), net("N3", layer("b", noise(1)))]
    with refused([0, 1]):
        measure_atlas(nets, images, EFFORT, Work())


def test_odd_pairs_are_far_from_the_median():
    shared = np.full((5, 5), 0.5) + 0.01 * np.arange(25).reshape(5, 5) / 25
    shared[0, 4] = shared[4, 0] = 0.1
    (pair,) = odd_pairs(shared, list("abcde"))
    assert pair["nets"] == ["a", "e"] and pair["deviations"] < -3.5
    assert odd_pairs(np.full((3, 3), 0.5), list("abc")) == []


def test_alike_nets_stand_beside_each_other():
    groups = np.array([0, 1, 0, 1, 0])
    shared = np.where(groups[:, None] == groups, 0.9, 0.1)
    order = groups[alike_order(shared)]
    assert (np.diff(order) != 0).sum() == 1
