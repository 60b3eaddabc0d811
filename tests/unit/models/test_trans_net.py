from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import models
from models.divisors import EPS, BatchScale
from models.trans_net import TransNet, load_trans_net
from utils import checkpoint
from utils.errors import InputError
from utils.measures.moments import ImageMoments
from utils.measures.variances import variance_report
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
        if net.standardise:
            net.set_standards(torch.linspace(-1, 2, shape[0]), 2.5, torch.linspace(3, -1, shape[1]), 0.7)
            net.shift.copy_(torch.linspace(0, 0.5, shape[1]))
        if net.input_norm is not None and options.get("affine"):
            net.input_norm.weight.uniform_(0.5, 2)
            net.input_norm.bias.uniform_(-1, 1)
        net.train()(maps(5, shape[0], seed=8))
        net(maps(5, shape[0], seed=9))
    return net.eval()


@torch.no_grad()
def report(net, x, target):
    output, components = net.decompose(x)
    moments = ImageMoments()
    moments.update(components, target - output, torch.arange(len(target)))
    return variance_report([(len(components), moments)])


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
@pytest.mark.parametrize(
    "options", [{}, {"bn": True}, {"bn": True, "affine": True}, {"fix_p": True}, {"standardise": True}]
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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layer"}, "'layer'"),
        ({"layers": 0}, "at least one"),
        ({"bn": True, "standardise": True}, "choose one"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
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


# --- standardised features


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
@pytest.mark.parametrize("options", [{}, {"layers": 1}, {"bn": True}, {"standardise": True}, {"out_size": (3, 4)}])
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
    torch.testing.assert_close(own, F.mse_loss(net.standard_target(net(x)), net.standard_target(target)))


def test_standards_need_a_net_that_standardises():
    with pytest.raises(ValueError, match="standardise=True"):
        TransNet(2, 2).set_standards(torch.zeros(2), 1.0, torch.zeros(2), 1.0)


def test_a_dead_layer_has_no_deviation_to_divide_by():
    net = TransNet(2, 2, standardise=True)
    net.set_standards(torch.ones(2), 0.0, torch.ones(2), 0.0)
    assert net(torch.ones(1, 2, 3, 3)).isfinite().all()
    assert torch.equal(net.standard_target(torch.ones(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))


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
    [
        {},
        {"layers": 1},
        {"norm": "batch", "bn": True, "affine": True},
        {"out_size": (3, 5), "fix_p": True},
        {"standardise": True},
        {"standardise": True, "norm": "batch"},
    ],
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


def test_a_checkpoint_from_before_there_were_standards_loads(tmp_path):
    net = lively(4, 6)
    config = {name: value for name, value in net.config.items() if name != "standardise"}
    checkpoint.save(tmp_path / "g.pth.tar", {"trans_net": config, "state_dict": net.state_dict()})
    loaded = load_trans_net(tmp_path / "g.pth.tar")
    assert loaded.config == net.config
    assert not any(name.endswith(("_mean", "_std")) for name in net.state_dict())
    assert torch.equal(loaded.constant, torch.zeros(6))


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
