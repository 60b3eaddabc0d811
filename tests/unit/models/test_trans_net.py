from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.divisors import EPS, BatchScale
from models.trans_net import TransNet
from tests.mistakes import refused
from tests.unit.models.lively import NORMS, lively, maps
from utils.training.engine import make_optimizer
from utils.training.losses import order_penalty

# --- the equations


@torch.no_grad()
def by_definition(net, x):
    """g(x) and every x(k) as Eq. 1 and 3 write them,
    in float64 and one component after the other.
    """

    def divisor(scale, h):
        if isinstance(scale, BatchScale):
            return scale.running_std.double()[None, :, None, None]
        if h[0, 0].numel() == 1:
            return torch.ones_like(h)
        centred = h - h.mean((2, 3), keepdim=True)
        variance = centred.square().sum((2, 3), keepdim=True) / (h[0, 0].numel() - 1)
        return variance.sqrt() + EPS

    weights = [layer.weight.double() for layer in net.linear]
    padding = weights[0].shape[-1] // 2
    p = [1 / (1 + torch.exp(-logit.double())) for logit in net.logit_p]

    def linear(k, v):
        return F.conv2d(v, weights[k], padding=padding)

    x = x.double() / divisor(net.input_scale, x.double())
    h, gates = linear(net.order, x), {}
    for k in range(net.order, 0, -1):
        gates[k] = p[k - 1] * (h > 0) / divisor(net.scale[k - 1], h)
        h = linear(k - 1, x + gates[k] * h)
    components = []
    for order in range(net.order + 1):
        v = linear(order, x)
        for k in range(order, 0, -1):
            v = linear(k - 1, gates[k] * v)
        components.append(v)
    return h, torch.stack(components)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("shape", "size", "kernel_size"),
    [
        ((5, 5, 1), 6, 3),
        ((5, 3, 3), 6, 3),
        ((4, 6, 4), (5, 7), 3),
        ((6, 4, 3), 1, 1),
        ((4, 4, 3), (9, 1), 1),
    ],
)
def test_forward_and_every_component_are_the_papers_equations(norm, shape, size, kernel_size):
    net = lively(*shape, kernel_size=kernel_size, norm=norm)
    x = maps(3, shape[0], size)
    expected, expected_components = by_definition(net, x)
    with torch.no_grad():
        output, components = net.decompose(x)
        forward = net(x)
    assert components.shape == (shape[2], 3, shape[1], *x.shape[2:])
    scale = expected_components.abs().max()
    torch.testing.assert_close(forward.double(), expected, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(components.double(), expected_components, rtol=0, atol=1e-5 * scale)


@pytest.mark.parametrize("layers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "options",
    [{}, {"bn": True}, {"bn": True, "affine": True}, {"fix_p": True}, {"standardise": True}],
)
@pytest.mark.parametrize(
    ("channels", "size", "changes"),
    [
        ((6, 6), 6, {}),
        ((4, 7), (6, 5), {}),
        ((7, 4), (3, 8), {"out_size": (7, 5)}),
        ((5, 3), (4, 4), {"out_size": (2, 2)}),
    ],
)
def test_components_sum_to_the_forward_pass(layers, norm, options, channels, size, changes):
    net = lively(*channels, layers, norm=norm, **options, **changes)
    with torch.no_grad():
        x = maps(3, channels[0], size, seed=1)
        forward = net(x)
        output, components = net.decompose(x)
    assert forward.shape == (3, channels[1], *changes.get("out_size", x.shape[2:]))
    assert components.shape == (layers, *forward.shape)
    assert (output - forward).abs().max() <= 1e-5 * forward.abs().max()
    summed = components.sum(0) + net.constant[:, None, None]
    assert (summed - forward).abs().max() <= 1e-5 * forward.abs().max()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_vectors_are_maps_of_one_pixel(norm, layers):
    net = lively(8, 5, layers, kernel_size=1, norm=norm)
    x = maps(4, 8, 1)
    with torch.no_grad():
        forward, (output, components) = net(x), net.decompose(x)
    assert components.shape == (layers, 4, 5, 1, 1)
    assert (components.sum(0) - forward).abs().max() <= 1e-5 * forward.abs().max()
    assert (output - forward).abs().max() <= 1e-5 * forward.abs().max()


@pytest.mark.parametrize("layers", [1, 2, 3, 5])
def test_decomposing_needs_a_triangle_of_convolutions(layers):
    """(K+1)(K+2)/2 convolutions of the batch, each layer called once."""
    net = lively(4, 4, layers)
    samples: dict[int, list[int]] = {k: [] for k in range(layers)}
    for k, layer in enumerate(net.linear):
        layer.register_forward_hook(
            lambda _layer, inputs, _output, k=k: samples[k].append(len(inputs[0]))
        )
    images = 3
    with torch.no_grad():
        net.decompose(maps(images, 4))
    assert samples == {k: [(layers - k) * images] for k in range(layers)}
    assert sum(calls[0] for calls in samples.values()) == images * layers * (layers + 1) // 2


def test_p_is_indexed_by_order():
    net = lively(4, 4, 3)
    x = maps(2, 4)
    with torch.no_grad():
        before = net.decompose(x)[1]
        net.logit_p[0] = -40  # p(1) = 0: nothing comes from above order 0
        without_first = net.decompose(x)[1]
        net.logit_p[:] = torch.tensor([1.0, -40.0])  # p(2) = 0 leaves order 1
        without_second = net.decompose(x)[1]
    assert torch.equal(net.p, net.logit_p.sigmoid())
    assert torch.equal(without_first[0], before[0])
    assert without_first[1:].abs().max() < 1e-6
    assert without_second[2].abs().max() < 1e-6 < without_second[1].abs().max()


@pytest.mark.parametrize(
    ("options", "facts"),
    [
        ({"norm": "layer"}, ("'instance'", "'batch'", "'layer'")),
        ({"layers": 0}, ("linear", "0")),
        ({"bn": True, "standardise": True}, ("bn", "standardise")),
    ],
)
def test_impossible_options_are_refused(options, facts):
    with refused(*facts, kind=ValueError):
        TransNet(3, 3, **options)


# --- the divisors


def test_a_constant_map_does_not_explode():
    net = lively(3, 3)
    x = maps(2, 3)
    x[:, 1] = 0
    with torch.no_grad():
        output, components = net.decompose(x)
    assert output.isfinite().all() and components.isfinite().all()


def test_no_gradient_flows_through_instance_divisors():
    """With constant divisors g is positively homogeneous in x,
    so ⟨∇g, x⟩ = g; a gradient through Σ would give 0.
    """
    net = lively(4, 3)
    x = maps(2, 4).requires_grad_()
    total = net(x).sum()
    (gradient,) = torch.autograd.grad(total, x)
    assert (gradient * x).sum().item() == pytest.approx(total.item(), rel=1e-4)
    assert abs(total.item()) > 1


def test_batch_statistics_know_the_gradient_in_training():
    net = lively(4, 3, norm="batch").train()
    x = maps(6, 4).requires_grad_()
    total = net(x).sum()
    (gradient,) = torch.autograd.grad(total, x)
    assert abs((gradient * x).sum().item()) < 1e-2 * abs(total.item())


def test_a_batch_of_one_vector_leaves_batch_statistics_alone():
    """The ragged last batch of fully-connected features may have one value a channel,
    which has no deviation.
    """
    net = lively(4, 3, kernel_size=1, norm="batch").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net(maps(1, 4, 1)).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize(
    "options", [{}, {"norm": "batch"}, {"norm": "batch", "bn": True, "affine": True}]
)
def test_evaluation_changes_nothing(options):
    net = lively(4, 4, **options)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with torch.no_grad():
        net(maps(3, 4))
        net.decompose(maps(3, 4))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_bn_replaces_the_scaling_of_the_input_alone():
    x = maps(3, 4) + 5
    torch.manual_seed(0)
    nets: list[Any] = [TransNet(4, 4, 1, 1), TransNet(4, 4, 1, 1, bn=True)]
    plain, bn = nets
    for net in nets:
        nn.init.dirac_(net.linear[0].weight)
    std = x.std((2, 3), keepdim=True)
    torch.testing.assert_close(plain(x), x / std, rtol=1e-4, atol=1e-4)
    biased = x.std((2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(
        bn(x), (x - x.mean((2, 3), keepdim=True)) / biased, rtol=1e-4, atol=1e-4
    )


def test_other_sizes_are_resized_bilinearly_first():
    torch.manual_seed(0)
    x = maps(2, 3, (4, 6))
    resized = F.interpolate(x, (7, 5), mode="bilinear", align_corners=False)
    net = TransNet(3, 2, out_size=(7, 5)).eval()
    assert torch.equal(net(x), net(resized))
    assert net(x).shape == (2, 2, 7, 5)


# --- p


def test_fix_p_takes_no_part_in_training():
    x, target = maps(4, 3), maps(4, 3, seed=1)
    for fixed in (True, False):
        torch.manual_seed(0)
        net = TransNet(3, 3, fix_p=fixed)
        optimizer = make_optimizer("SGD", net.parameters(), lr=0.1, momentum=0, weight_decay=0)
        (F.mse_loss(net(x), target) + order_penalty(net.p, torch.ones(2))).backward()
        assert (net.logit_p.grad is None) == fixed
        optimizer.step()
        assert (net.p.tolist() == [0.5, 0.5]) == fixed
