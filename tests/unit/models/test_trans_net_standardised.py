"""Trans-Nets of standardised features: the same equations,
the last layer's input, the linear reference.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.trans_net import TransNet
from tests.mistakes import refused
from tests.unit.models.lively import NORMS, lively, maps


@torch.no_grad()
@pytest.mark.parametrize("norm", NORMS)
def test_standardising_is_the_papers_equations_on_shifted_and_scaled_features(norm):
    net = lively(4, 3, norm=norm, standardise=True)
    x = maps(3, 4)
    torch.manual_seed(0)
    bare: Any = TransNet(4, 3, norm=norm).eval()
    bare.load_state_dict(net.state_dict(), strict=False)
    constant = torch.linspace(3, -1, 3) + 0.7 * torch.linspace(0, 0.5, 3)
    del bare.input_scale
    bare.input_scale = lambda _: 1.0
    mean = torch.linspace(-1, 2, 4)[:, None, None]
    inside, inside_components = bare.decompose((x - mean) / 2.5)
    output, components = net.decompose(x)
    torch.testing.assert_close(components, 0.7 * inside_components)
    torch.testing.assert_close(output, 0.7 * inside + constant[:, None, None])
    torch.testing.assert_close(net(x), output)
    torch.testing.assert_close(net.constant, constant)


@torch.no_grad()
@pytest.mark.parametrize(
    "options", [{}, {"layers": 1}, {"bn": True}, {"standardise": True}, {"out_size": (3, 4)}]
)
def test_the_last_layer_maps_its_input_onto_the_standard_target(options):
    net = lively(4, 3, **options)
    x = maps(3, 4)
    u = net.last_input(x)
    shift = torch.tensor([0.5, -1, 2]) if net.standardise else torch.zeros(3)
    weight = torch.randn(3, 4, 3, 3)
    net.set_last_weight(weight, shift)
    expected = F.conv2d(u, weight, shift, padding=1)
    torch.testing.assert_close(net.standard_target(net(x)), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(net.last_input(x), u)


@torch.no_grad()
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_deep_net_can_be_made_its_linear_reference(layers):
    net = lively(4, 3, layers, standardise=True)
    x, weight, shift = maps(3, 4), torch.randn(3, 4, 3, 3), torch.randn(3)
    reference = net.linear_reference()
    for one in (net, reference):
        one.set_linear(weight, shift)
    output, components = net.decompose(x)
    assert torch.equal(net(x), reference(x))
    assert not components[1:].any()
    assert net.p[:1].tolist() == [0] * min(1, net.order)
    torch.testing.assert_close(output, reference(x))


@torch.no_grad()
def test_one_layer_reads_the_standardised_input_itself():
    net = lively(4, 3, 1, standardise=True)
    x = maps(3, 4)
    assert torch.equal(net.last_input(x), (x - net.x_mean[:, None, None]) / 2.5)


def test_the_loss_in_own_units_divided_by_the_variance_is_the_standard_one():
    net = lively(4, 3, standardise=True)
    x, target = maps(3, 4), maps(3, 3, seed=1)
    own = F.mse_loss(net(x), target) / net.target_std.square()
    torch.testing.assert_close(
        own, F.mse_loss(net.standard_target(net(x)), net.standard_target(target))
    )


def test_standards_need_a_net_that_standardises():
    with refused("standardise=True", kind=ValueError):
        TransNet(2, 2).set_standards(torch.zeros(2), 1.0, torch.zeros(2), 1.0)


def test_a_dead_layer_has_no_deviation_to_divide_by():
    net = TransNet(2, 2, standardise=True)
    net.set_standards(torch.ones(2), 0.0, torch.ones(2), 0.0)
    assert net(torch.ones(1, 2, 3, 3)).isfinite().all()
    assert torch.equal(net.standard_target(torch.ones(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))
