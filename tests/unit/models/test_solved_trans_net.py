"""Known answers of standardised Trans-Nets whose last layer is solved:
what a number means without a fit in the way.
"""

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from consistency.moments import FeatureMoments, ImageMoments
from consistency.ridge import NormalEquations
from consistency.variance_report import variance_report
from models.trans_net import TransNet

TRAIN, HELD_OUT = slice(240), slice(240, 300)


def maps(channels, size=6, seed=0):
    """Maps (300, C, H, W) whose channels differ in mean and magnitude and depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.eye(channels) + 0.4 * torch.randn(channels, channels, generator=generator)
    values = torch.einsum(
        "oc,nchw->nohw", mixing, torch.randn(300, channels, size, size, generator=generator)
    )
    return torch.linspace(0.3, 4, channels)[:, None, None] * (values + 0.7)


def standardised(x, target, **options) -> Any:
    """An untrained Trans-Net that knows the standards of the training images."""
    torch.manual_seed(0)
    size = tuple(target.shape[2:])
    net = TransNet(x.shape[1], target.shape[1], out_size=size, standardise=True, **options)
    moments = FeatureMoments(), FeatureMoments()
    moments[0].update(net.resize(x[TRAIN]))
    moments[1].update(target[TRAIN])
    net.set_standards(moments[0].mean, moments[0].std, moments[1].mean, moments[1].std)
    return net.eval()


@torch.no_grad()
def solution_of(net, x, target):
    """Solve for W(0) and the constant on the training images."""
    equations = NormalEquations(x.shape[1], target.shape[1], net.config["kernel_size"])
    for part in torch.arange(len(x))[TRAIN].split(64):
        equations.add(net.last_input(x[part]), net.standard_target(target[part]), part)
    return equations.solve(constant=True)


def solve(net, x, target, linear=True):
    """Set what is solved; where the linear map alone leaves less,
    that. Returns the error on held-out folds.
    """
    solution = solution_of(net, x, target)
    if linear:
        reference = solution_of(net.linear_reference(), x, target)
        if reference.error < solution.error:
            net.set_linear(reference.weight, reference.constant)
            return reference.error
    net.set_last_weight(solution.weight, solution.constant)
    return solution.error


def fit(net, x, target, epochs=60, lr=5e-2):
    """Solve, train by Adam on the standardised MSE,
    the learning rate falling by two decades, and solve again.
    """
    solve(net, x, target, linear=False)
    optimizer = torch.optim.Adam(net.train().parameters(), lr)
    generator = torch.Generator().manual_seed(1)
    for epoch in range(epochs):
        optimizer.param_groups[0]["lr"] = lr * 0.01 ** (epoch / epochs)
        for part in torch.randperm(TRAIN.stop, generator=generator).split(48):
            loss = F.mse_loss(net(x[part]), target[part]) / net.target_std.square()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    solve(net.eval(), x, target)


@torch.no_grad()
def report(net, x, target, images=HELD_OUT, mean="channel"):
    output, components = net.decompose(x[images])
    moments = ImageMoments(net.constant)
    moments.update(components, target[images] - output, torch.arange(len(output)))
    return variance_report([(len(components), moments)], mean)


NETS: list[dict[str, Any]] = [{"layers": 1}, {"layers": 3}, {"layers": 3, "norm": "batch"}]


@pytest.mark.parametrize("options", NETS)
def test_a_net_against_itself_leaves_nothing(options):
    x = maps(5)
    net = standardised(x, x, **options)
    assert solve(net, x, x) < 1e-10
    assert report(net, x, x)["instability"] < 1e-10


@pytest.mark.parametrize("options", NETS)
@pytest.mark.parametrize("mixing", ["permuted", "linear", "other means"])
def test_channels_that_are_permuted_or_mixed_linearly_are_reconstructed_without_training(
    options, mixing
):
    x = maps(5)
    target = x[:, [3, 0, 4, 2, 1]]
    if mixing == "linear":
        weight = torch.randn(7, 5, 3, 3, generator=torch.Generator().manual_seed(5))
        target = F.conv2d(x - x[TRAIN].mean((0, 2, 3), keepdim=True), weight, padding=1)
    if mixing == "other means":
        target = target + torch.tensor([100.0, -20, 3, 0, 5])[:, None, None]
    net = standardised(x, target, **options)
    held_out = solve(net, x, target)
    found = report(net, x, target)
    assert held_out < 1e-6
    assert found["instability"] < 1e-6
    if net.order == 0:
        assert found["var"]["order0"] == pytest.approx(found["var"]["target"], rel=1e-3)


def test_an_even_function_of_order_1_is_gained_at_depth_2():
    """|z| has no linear part, one ReLU gives all of it,
    a second one nothing more: gains of held-out R² by depth.
    """
    generator = torch.Generator().manual_seed(2)
    z = torch.randn(300, 2, 6, 6, generator=generator)
    basis = torch.linalg.qr(torch.randn(8, 2, generator=generator)).Q
    x = torch.einsum("oc,nchw->nohw", basis, z)
    target = torch.einsum("oc,nchw->nohw", torch.tensor([[0.8, 0.6], [-0.6, 0.8]]), z).abs()
    explained = [0.0]
    for layers in (1, 2, 3):
        net = standardised(x, target, layers=layers, kernel_size=1, norm="batch")
        if layers == 1:
            solve(net, x, target)
        else:
            fit(net, x, target)
        explained.append(1 - report(net, x, target)["instability"])
    gains = [deeper - shallower for shallower, deeper in pairwise(explained)]
    assert gains[0] < 0.01
    assert gains[1] > 0.95
    assert abs(gains[2]) < 0.05
    # What the components lack of the target's mean
    assert (net.constant.mean() - target.mean()).abs() > 0.1


def test_shuffled_pairs_leave_everything():
    x, target = maps(5), maps(4, seed=9)
    net = standardised(x, target)
    assert 0.99 < solve(net, x, target) < 1.05
    assert 0.99 < report(net, x, target)["instability"] < 1.05


@pytest.mark.parametrize("layers", [1, 3])
def test_the_targets_scale_is_no_knowledge(layers):
    """Without standards the same target times 0.03 … 20 gives anything;
    solved with them, one number.
    """
    x = maps(5)
    target = x[:, :3].relu() + 0.3 * maps(3, seed=4)
    found = []
    for scale in (1, 0.03, 0.3, 3, 20):
        net = standardised(x, scale * target, layers=layers)
        solve(net, x, scale * target)
        found.append(report(net, x, scale * target)["instability"])
    assert 0.05 < found[0] < 0.9
    assert found[1:] == pytest.approx([found[0]] * 4, rel=1e-5)


def test_the_linear_reference_is_the_solved_net_of_one_layer():
    """Its error is what the best linear map leaves;
    a deep net with the same standards starts from no worse.
    """
    x = maps(5)
    weight = torch.randn(4, 5, 3, 3, generator=torch.Generator().manual_seed(5))
    target = F.conv2d(x, weight, padding=1) + 0.5 * F.conv2d(x, weight, padding=1).relu()
    noise = maps(4, seed=7)
    target += noise * (0.5 * target.std() / noise.std())
    net = standardised(x, target)
    reference = net.linear_reference()
    assert reference.config == net.config | {"layers": 1}
    assert torch.equal(reference.constant, net.constant)
    linear, deep = solve(reference, x, target), solve(net, x, target)
    assert report(reference, x, target)["instability"] == pytest.approx(linear, rel=0.1)
    assert deep < 1.05 * linear
    rows = F.unfold(reference.last_input(x), 3, padding=1).transpose(1, 2).double()
    wanted = reference.standard_target(target).double().flatten(2).transpose(1, 2)
    best = torch.linalg.lstsq(rows[TRAIN].flatten(0, 1), wanted[TRAIN].flatten(0, 1)).solution
    left = wanted[HELD_OUT] - rows[HELD_OUT] @ best
    expected = (
        left.var((0, 1), correction=0).sum() / wanted[HELD_OUT].var((0, 1), correction=0).sum()
    )
    assert report(reference, x, target)["instability"] == pytest.approx(float(expected), rel=1e-2)


def test_the_reference_of_a_net_without_standards_is_standardised():
    reference = TransNet(3, 2, bn=True, kernel_size=1, out_size=(4, 4)).linear_reference()
    assert reference.standardise and reference.order == 0
    assert reference.input_norm is None
    assert (reference.config["kernel_size"], reference.config["out_size"]) == (1, (4, 4))


def test_other_sizes_are_standardised_as_they_are_resized():
    x = maps(4, size=8)
    target = F.interpolate(x, (5, 5), mode="bilinear", align_corners=False)[:, [1, 0, 3, 2]]
    net = standardised(x, target)
    inside = net._prepare(x[TRAIN])
    torch.testing.assert_close(inside.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    assert float(inside.square().mean()) == pytest.approx(1, rel=1e-5)
    assert solve(net, x, target) < 1e-6


def test_the_parts_of_a_standardised_net_add_up_with_a_global_mean():
    x = maps(5)
    target = x[:, :3].relu() + torch.tensor([9.0, -5, 2])[:, None, None]
    net = standardised(x, target)
    solve(net, x, target)
    found = report(net, x, target, mean="global")
    matrix = torch.tensor(found["covariance"]["matrix"])
    parts = [
        found["covariance"]["names"].index(name)
        for name in ("order0", "order1", "order2", "constant", "residual")
    ]
    values = target[HELD_OUT].double()
    assert float(matrix[parts][:, parts].sum()) == pytest.approx(
        float(values.var(correction=0)), rel=1e-5
    )
    assert found["var"]["target"] == pytest.approx(float(values.var(correction=0)), rel=1e-5)
    output = net(x[HELD_OUT]).detach().double()
    assert found["var"]["output"] == pytest.approx(float(output.var(correction=0)), rel=1e-5)
