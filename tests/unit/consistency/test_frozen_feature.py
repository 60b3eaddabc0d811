import copy

import pytest
import torch
from torch import nn

from consistency.frozen_feature import FrozenFeature, freeze
from models.cut_net import CutNet
from models.trans_net import TransNet
from tests.mistakes import refused
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.provenance import NetSource

MAPS = (4, 3, 3)
PIXELS = torch.arange(2 * 3 * 8 * 8).remainder(256).view(2, 3, 8, 8).to(torch.uint8)


class Planted(nn.Module):
    """Gives every image the feature that was planted for it:
    the image's first pixel is its number.
    """

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)

    def forward(self, images):
        return self.features[images[:, 0, 0, 0].long()]


def numbered(count):
    return torch.arange(count).float()[:, None, None, None].expand(-1, 3, 8, 8)


@pytest.fixture
def planted():
    """Features x_A, x_B of five images, heads that give them, and a Trans-Net of three layers."""
    torch.manual_seed(0)
    x_a, x_b = torch.randn(2, 5, *MAPS)
    trans_net = TransNet(4, 4, 3, norm="batch").train()
    trans_net(x_a)  # so that its running statistics are some
    return x_a, x_b, {"A": Planted(x_a), "B": Planted(x_b)}, trans_net.eval()


@torch.no_grad()
def feature(name, heads, trans_net, orders=(), tail_shape=MAPS):
    return FrozenFeature(name, heads, trans_net, orders, tail_shape)(numbered(5))


@pytest.mark.parametrize("name, index", [("raw_A", 0), ("raw_B", 1)])
def test_a_raw_feature_is_its_own_nets_and_needs_nothing_else(planted, name, index):
    net = "AB"[index]
    assert torch.equal(feature(name, {net: planted[2][net]}, None), planted[index])


@pytest.mark.parametrize("orders", [[0], [1], [2], [0, 1], [0, 2], [0, 1, 2]])
def test_components_are_those_of_the_chosen_orders(planted, orders):
    x_a, _, heads, trans_net = planted
    _, components = trans_net.decompose(x_a)
    assert min(component.std() for component in components) > 0.01
    expected = sum(components[k] for k in orders)
    torch.testing.assert_close(feature("components", heads, trans_net, orders), expected)


def test_all_components_are_the_reconstruction(planted):
    x_a, _, heads, trans_net = planted
    torch.testing.assert_close(feature("components", heads, trans_net, [0, 1, 2]), trans_net(x_a))


def test_all_components_with_the_residual_are_the_other_nets_feature(planted):
    _, x_b, heads, trans_net = planted
    torch.testing.assert_close(feature("residual_added", heads, trans_net, [0, 1, 2]), x_b)


def test_noise_is_as_large_as_the_residual_and_drawn_again_alike():
    torch.manual_seed(0)
    x_a, x_b = torch.randn(2, 5, 4, 60, 60)
    x_b = x_b * torch.linspace(0.1, 3, 20).reshape(5, 4, 1, 1)
    trans_net = TransNet(4, 4, 1).eval()
    heads = {"A": Planted(x_a), "B": Planted(x_b)}
    first, second = (feature("noise_added", heads, trans_net, [0]) for _ in range(2))
    assert torch.equal(first, second)
    noise, residual = first - x_b, x_b - trans_net(x_a)
    sizes = [part.square().mean((2, 3)) for part in (noise, residual)]
    torch.testing.assert_close(*sizes, rtol=0.12, atol=0)  # five standard errors
    assert abs((noise * residual).mean() / (noise.std() * residual.std())) < 0.04


def test_the_residual_is_added_to_the_chosen_components(planted):
    x_a, x_b, heads, trans_net = planted
    output, components = trans_net.decompose(x_a)
    expected = components[0] + x_b - output
    torch.testing.assert_close(feature("residual_added", heads, trans_net, [0]), expected)


@pytest.mark.parametrize("tail_shape, expected", [((4,), (36,)), ((4, 4), None), (MAPS, MAPS)])
def test_the_feature_takes_the_form_of_the_tails(planted, tail_shape, expected):
    if expected is None:
        tokens = torch.randn(5, 7, 4)
        got = feature("raw_A", {"A": Planted(tokens)}, None, tail_shape=tail_shape)
        assert torch.equal(got, tokens)
    else:
        assert feature("raw_A", planted[2], None, tail_shape=tail_shape).shape[1:] == expected


def test_the_frozen_part_stays_as_it_is(planted):
    *_, heads, trans_net = planted
    heads["A"] = nn.Sequential(heads["A"], nn.BatchNorm2d(4), nn.Dropout(0.5))
    frozen = FrozenFeature("residual_added", heads, trans_net, [0, 1, 2], MAPS)
    before = copy.deepcopy(frozen.state_dict())
    first = frozen.train()(numbered(5))
    assert not first.requires_grad
    assert torch.equal(frozen(numbered(5)), first)  # no dropout
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_half_precision_features_arrive_in_float32(planted):
    heads = {"A": Planted(planted[0].half())}
    assert feature("raw_A", heads, None).dtype == torch.float32


def net(channels, size, classes=2):
    """A strided convolution, cut before a tail for maps of any size."""
    layers = [nn.Conv2d(3, channels, 1, stride=8 // size), nn.BatchNorm2d(channels)]
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    source = NetSource("planted", "0", normalisation=NORMALISATIONS["half"])
    return CutNet(nn.Sequential(*layers).eval(), [source], {})


def test_freezing_takes_tails_of_another_map_size():
    nets = {"A": net(4, 2), "B": net(4, 4)}
    trans_net = TransNet(4, 4, out_size=(4, 4)).eval()
    frozen, shape = freeze("components", nets, trans_net, [1, 0, 1], "A", PIXELS)
    assert shape == (4, 4, 4)
    assert frozen.orders == [0, 2]
    assert frozen(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 4, 4, 4)


def test_each_frozen_net_reads_pixels_by_its_own_constants():
    nets = {"A": net(4, 4), "B": net(4, 4).normalised_by(NORMALISATIONS["cifar10"])}
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    for name, constants in (("A", NORMALISATIONS["half"]), ("B", NORMALISATIONS["cifar10"])):
        frozen, _ = freeze(f"raw_{name}", nets, None, [], name, PIXELS)
        torch.testing.assert_close(frozen(pixels), nets[name].head(normalise(pixels, *constants)))


def test_a_tail_of_other_channels_is_refused():
    nets = {"A": net(4, 4), "B": net(6, 4)}
    with refused("components", (6, 4, 4), "net A", (4, 4, 4), "--tail"):
        freeze("components", nets, TransNet(4, 6).eval(), [1, 1, 1], "A", PIXELS)
    freeze("components", nets, TransNet(4, 6).eval(), [1, 1, 1], "B", PIXELS)


@pytest.mark.parametrize(
    "channels", [(4, 4), (6, 6), (6, 4)], ids=["other output", "other input", "the other direction"]
)
def test_a_trans_net_that_does_not_fit_is_refused(channels):
    nets = {"A": net(4, 4), "B": net(6, 4)}
    with refused(channels[0], channels[1], "4"):
        freeze("components", nets, TransNet(*channels).eval(), [1, 1, 1], "B", PIXELS)
