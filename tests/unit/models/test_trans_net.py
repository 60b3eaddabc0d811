from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.split import as_maps
from models.trans_net import (
    EPS,
    BatchScale,
    InstanceScale,
    TransNet,
    between,
    fill_trans_net,
    load_trans_net,
)
from utils import checkpoint
from utils.errors import InputError
from utils.measures.moments import ComponentMoments
from utils.training.engine import make_optimizer
from utils.training.losses import order_penalty

NORMS = ["instance", "batch"]


def maps(images, channels, size=6, seed=0):
    """Feature maps (N, C, H, W) whose channels differ in mean and magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else size
    magnitude = torch.linspace(0.5, 3, channels)[:, None, None]
    return magnitude * (torch.randn(images, channels, *size, generator=generator) + 0.3)


def unit_maps(images, channels, size=6, seed=0):
    """Maps that already have the standard deviation 1: dividing by it is then nearly the identity."""
    x = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return x / x.std((2, 3), keepdim=True)


def lively(*shape, seed=0, **options) -> Any:
    """A Trans-Net in evaluation mode with different p, learned norms and running statistics that are not initial."""
    torch.manual_seed(seed)
    net: Any = TransNet(*shape, **options)
    with torch.no_grad():
        net.logit_p.copy_(torch.linspace(-1, 2, net.order))
        if net.input_norm is not None and options.get("affine"):
            net.input_norm.weight.uniform_(0.5, 2)
            net.input_norm.bias.uniform_(-1, 1)
        net.train()(maps(5, shape[0], seed=8))
        net(maps(5, shape[0], seed=9))
    return net.eval()


@torch.no_grad()
def report(net, x, target):
    output, components = net.decompose(x)
    moments = ComponentMoments()
    moments.update(components, target - output)
    return moments.report()


def fit(net, x, target, steps=300, lr=5e-2, alpha=0.1):
    """Adam on Eq. 2, the learning rate falling by two decades."""
    optimizer = torch.optim.Adam(net.parameters(), lr)
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * 0.01 ** (step / steps)
        chosen = torch.randperm(len(x), generator=generator)[:32]
        loss = F.mse_loss(net(x[chosen]), target[chosen]) + order_penalty(net.p, torch.full((net.order,), alpha))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


# --- the equations


@torch.no_grad()
def by_definition(net, x):
    """g(x) and every x(k) as Eq. 1 and 3 write them, in float64 and one component after the other."""

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
    [((5, 5, 1), 6, 3), ((5, 3, 3), 6, 3), ((4, 6, 4), (5, 7), 3), ((6, 4, 3), 1, 1), ((4, 4, 3), (9, 1), 1)],
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
@pytest.mark.parametrize("options", [{}, {"bn": True}, {"bn": True, "affine": True}, {"fix_p": True}])
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
    assert (components.sum(0) - forward).abs().max() <= 1e-5 * forward.abs().max()


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
        layer.register_forward_hook(lambda _layer, inputs, _output, k=k: samples[k].append(len(inputs[0])))
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


def test_weights_begin_with_kaimings_fan_out():
    torch.manual_seed(0)
    net: Any = TransNet(32, 64, 2)
    for layer, out_channels in zip(net.linear, (64, 32)):
        expected = (2 / (out_channels * 9)) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(expected, rel=0.03)
        assert layer.bias is None
    assert net.p.tolist() == [0.5]


@pytest.mark.parametrize(("options", "message"), [({"norm": "layer"}, "'layer'"), ({"layers": 0}, "at least one")])
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TransNet(3, 3, **options)


# --- the divisors


def test_the_instance_divisor_is_each_maps_unbiased_deviation():
    h = maps(3, 4, (2, 5))
    divisor = InstanceScale()(h)
    assert divisor.shape == (3, 4, 1, 1)
    one = h[1, 2].double()
    expected = ((one - one.mean()).square().sum() / 9).sqrt() + 1e-5
    assert float(divisor[1, 2]) == pytest.approx(float(expected), rel=1e-6)
    assert InstanceScale()(h.bfloat16()).dtype == torch.float32


def test_the_instance_divisor_of_a_single_value_is_one():
    assert torch.equal(InstanceScale()(torch.tensor([[[[5.0]]], [[[-3.0]]]])), torch.ones(2, 1, 1, 1))


def test_a_constant_map_does_not_explode():
    net = lively(3, 3)
    x = maps(2, 3)
    x[:, 1] = 0
    with torch.no_grad():
        output, components = net.decompose(x)
    assert output.isfinite().all() and components.isfinite().all()


def test_no_gradient_flows_through_instance_divisors():
    """With constant divisors g is positively homogeneous in x, so ⟨∇g, x⟩ = g; a gradient through Σ would give 0."""
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


def test_batch_statistics_begin_with_the_first_batch_and_then_follow_slowly():
    scale, first, second = BatchScale(4), maps(5, 4, seed=1), 3 * maps(5, 4, seed=2)
    std = [batch.std((0, 2, 3)) for batch in (first, second)]
    torch.testing.assert_close(scale.train()(first)[0, :, 0, 0], std[0] + EPS)
    torch.testing.assert_close(scale.running_std, std[0])
    torch.testing.assert_close(scale(second)[0, :, 0, 0], std[1] + EPS)
    torch.testing.assert_close(scale.running_std, 0.9 * std[0] + 0.1 * std[1])
    assert int(scale.batches) == 2
    running = scale.running_std.clone()
    torch.testing.assert_close(scale.eval()(first)[0, :, 0, 0], running, rtol=0, atol=0)
    assert torch.equal(scale.running_std, running)


def test_a_batch_of_one_vector_leaves_batch_statistics_alone():
    """The ragged last batch of fully-connected features may have one value a channel, which has no deviation."""
    net = lively(4, 3, kernel_size=1, norm="batch").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net(maps(1, 4, 1)).isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"norm": "batch", "bn": True, "affine": True}])
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
    torch.testing.assert_close(bn(x), (x - x.mean((2, 3), keepdim=True)) / biased, rtol=1e-4, atol=1e-4)


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


# --- known answers


def test_a_net_against_itself_leaves_nothing():
    """B = A: W(0) that undoes the scaling of the input gives the target back, as order 0 alone."""
    net: Any = TransNet(4, 4, norm="batch").train()
    x = maps(32, 4)
    with torch.no_grad():
        net(x)
        for layer in net.linear:
            layer.weight.zero_()
        nn.init.dirac_(net.linear[0].weight)
        net.linear[0].weight *= net.input_scale.running_std[:, None, None, None]
    found = report(net.eval(), x, x)
    assert found["instability"] < 1e-10
    assert found["var"]["order0"] == pytest.approx(found["var"]["target"], rel=1e-5)
    assert found["var"]["order1"] == found["var"]["order2"] == 0


@pytest.mark.parametrize("norm", NORMS)
def test_permuted_channels_are_order_0(norm):
    torch.manual_seed(0)
    x = unit_maps(64, 4)
    target = x[:, [2, 0, 3, 1]]
    net: Any = TransNet(4, 4, norm=norm)
    before = report(net.eval(), x, target)
    found = report(fit(net.train(), x, target), x, target)
    assert before["instability"] > 1
    assert found["instability"] < 1e-2
    assert found["var"]["order0"] == pytest.approx(found["var"]["target"], rel=0.1)
    assert found["var"]["order1"] + found["var"]["order2"] < 0.03 * found["var"]["target"]
    largest = net.linear[0].weight[:, :, 1, 1].detach().abs().argmax(1)
    assert largest.tolist() == [2, 0, 3, 1]


def test_shuffled_pairs_leave_everything():
    torch.manual_seed(0)
    x, target = unit_maps(256, 4), unit_maps(256, 4, seed=9)
    net = fit(TransNet(4, 4), x[:128], target[:128], 200, 2e-2)
    for part in (slice(128), slice(128, 256)):
        assert 0.97 < report(net, x[part], target[part])["instability"] < 1.1


def planted(order, norm):
    """A teacher whose output is its order-`order` component alone, with that output computed by hand.

    x is zero but in its first two channels; every layer reads only the channels that the layer before wrote.
    """
    torch.manual_seed(3)
    net: Any = TransNet(8, 2, 3, 1, norm).train()
    x = torch.zeros(24, 8, 6, 6)
    x[:, :2] = unit_maps(24, 2)
    with torch.no_grad():
        net.logit_p.copy_(torch.tensor([-1.0, 1.0]))
        for layer in net.linear:
            layer.weight.zero_()
        maps_into = [torch.randn(2, 2) for _ in range(order + 1)]  # from order k's channels to the next ones
        for k in range(order, -1, -1):
            read = 2 * (order - k)
            write = read + 2 if k else 0
            net.linear[k].weight[write : write + 2, read : read + 2, 0, 0] = maps_into[k]
        net(x)
    dims = (0, 2, 3) if norm == "batch" else (2, 3)
    eps = 0 if norm == "batch" else EPS  # evaluation divides by the bare running deviation
    v = x[:, :2] / (x[:, :2].std(dims, keepdim=True) + eps)
    p = torch.tensor([-1.0, 1.0]).sigmoid()
    for k in range(order, 0, -1):
        h = torch.einsum("oc,nchw->nohw", maps_into[k], v)
        v = p[k - 1] * h.relu() / (h.std(dims, keepdim=True) + eps)
    return net.eval(), x, torch.einsum("oc,nchw->nohw", maps_into[0], v)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_planted_map_is_found_at_its_order(order, norm):
    net, x, target = planted(order, norm)
    found = report(net, x, target)
    assert found["instability"] < 1e-8
    assert found["var"][f"order{order}"] == pytest.approx(found["var"]["target"], rel=1e-4)
    assert all(found["var"][f"order{other}"] == 0 for other in {0, 1, 2} - {order})


def test_an_even_function_is_beyond_order_0_and_found_at_order_1():
    """|Wx| has no linear part: one linear layer explains nothing, one ReLU everything."""
    torch.manual_seed(1)
    x = torch.zeros(96, 6, 6, 6)
    x[:, :2] = unit_maps(96, 2)
    mix = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    target = torch.einsum("oc,nchw->nohw", mix, x[:, :2]).abs()
    linear = report(fit(TransNet(6, 2, 1, 1, "batch"), x, target, 100, alpha=0), x, target)
    found = report(fit(TransNet(6, 2, 2, 1, "batch"), x, target, 300, alpha=0.01), x, target)
    assert linear["instability"] > 0.95
    assert found["instability"] < 0.05
    assert found["var"]["order1"] > found["var"]["order0"]


# --- files


@pytest.mark.parametrize(
    "options",
    [{}, {"layers": 1}, {"norm": "batch", "bn": True, "affine": True}, {"out_size": (3, 5), "fix_p": True}],
)
def test_a_checkpoint_rebuilds_the_same_net(tmp_path, options):
    net = lively(4, 6, **options)
    checkpoint.save(tmp_path / "g.pth.tar", {"trans_net": net.config, "state_dict": net.state_dict()})
    loaded = models.load_trans_net(tmp_path / "g.pth.tar")
    assert loaded.config == net.config
    assert not loaded.training
    assert loaded.logit_p.requires_grad == net.logit_p.requires_grad
    with torch.no_grad():
        x = maps(2, 4)
        assert torch.equal(loaded(x), net(x))


def test_what_is_no_whole_trans_net_is_refused(tmp_path):
    net = lively(4, 4)
    path = tmp_path / "g.pth.tar"
    states = [
        {"trans_net": net.config, "state_dict": {"logit_p": net.logit_p}},
        {"trans_net": net.config | {"in_channels": 5}, "state_dict": net.state_dict()},
        {"trans_net": net.config | {"wings": 2}, "state_dict": net.state_dict()},
    ]
    for state in states:
        checkpoint.save(path, state)
        with pytest.raises(InputError, match=r"g\.pth\.tar does not hold a whole Trans-Net: ."):
            load_trans_net(path)
    checkpoint.save(path, {"state_dict": {"fc.weight": torch.ones(2)}})
    with pytest.raises(InputError, match=r"g\.pth\.tar holds no Trans-Net"):
        load_trans_net(path)


# --- between features


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "options", "kernel_size", "mapped"),
    [
        ((4, 6, 5), (7, 3, 2), {}, 3, (7, 3, 2)),
        ((4, 6, 5), (7, 6, 5), {"fc": True}, 1, (7, 6, 5)),
        ((9, 4), (5, 7), {}, 1, (7, 5, 1)),  # tokens (T, C) are maps (C, T, 1)
        ((4,), (7,), {}, 1, (7, 1, 1)),
    ],
)
def test_a_trans_net_is_made_between_features(shape_a, shape_b, options, kernel_size, mapped):
    net = between(shape_a, shape_b, layers=2, norm="batch", affine=True, bn=True, **options)
    assert net.order == 1
    assert (net.config["kernel_size"], net.config["norm"]) == (kernel_size, "batch")
    assert net.config["bn"] and net.config["affine"] and not net.config["fix_p"]
    x, target = (as_maps(torch.randn(2, *shape)) for shape in (shape_a, shape_b))
    assert net(x).shape == target.shape == (2, *mapped)


@pytest.mark.parametrize("shapes", [((4, 6, 6), (7,)), ((9, 4), (4, 3, 3)), ((4,), (9, 4))])
def test_features_of_different_kinds_have_no_trans_net(shapes):
    with pytest.raises(
        InputError, match=r"A's features have shape \(.*\) and B's \(.*\): a Trans-Net maps feature maps"
    ):
        between(*shapes, layers=3)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)])
def test_single_values_have_no_mean_to_remove(shape):
    with pytest.raises(InputError, match="--bn removes the mean of each map, .* single values; add --norm batch"):
        between(shape, shape, layers=3, bn=True, norm="instance")
    between(shape, shape, layers=3, bn=True, norm="batch")
    between((9, 4), (9, 4), layers=3, bn=True, norm="instance")


def test_a_trans_net_is_filled_from_one_that_is_built_alike():
    stored, net = (between((4, 6, 5), (7, 3, 2), layers=3, norm="batch") for _ in range(2))
    state = {"trans_net": stored.config, "state_dict": stored.state_dict()}
    assert not torch.equal(net.linear[0].weight, stored.linear[0].weight)
    fill_trans_net(net.train(), state, "g.pth.tar")
    assert all(torch.equal(value, stored.state_dict()[key]) for key, value in net.state_dict().items())
    assert net.training


@pytest.mark.parametrize(
    "changes", [{"layers": 2}, {"norm": "batch"}, {"fix_p": True}, {"shape_b": (4, 3, 3)}, {"shape_a": (5, 6, 5)}]
)
def test_a_trans_net_is_not_filled_from_one_that_is_built_otherwise(changes):
    usual: dict[str, Any] = {"shape_a": (4, 6, 5), "shape_b": (4, 6, 5), "layers": 3, "norm": "instance"}
    stored, net = between(**usual), between(**usual | changes)
    state = {"trans_net": stored.config, "state_dict": stored.state_dict()}
    before = net.logit_p.clone(), net.linear[0].weight.clone()
    with pytest.raises(InputError, match=r"g\.pth\.tar holds a Trans-Net of other options or shapes: .*, now {"):
        fill_trans_net(net, state, "g.pth.tar")
    assert torch.equal(net.logit_p, before[0]) and torch.equal(net.linear[0].weight, before[1])
