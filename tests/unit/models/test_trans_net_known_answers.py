"""Known answers of fitted Trans-Nets: identity, permutation, shuffled pairs, planted maps."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from consistency.moments import ImageMoments
from consistency.variance_report import variance_report
from models.divisors import EPS
from models.trans_net import TransNet
from tests.mistakes import refused
from tests.unit.models.lively import NORMS, lively, maps
from utils.training.losses import order_penalty


def unit_maps(images, channels, size=6, seed=0):
    """Maps that already have the standard deviation 1:
    dividing by it is then nearly the identity.
    """
    x = torch.randn(images, channels, size, size, generator=torch.Generator().manual_seed(seed))
    return x / x.std((2, 3), keepdim=True)


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
        loss = F.mse_loss(net(x[chosen]), target[chosen]) + order_penalty(
            net.p, torch.full((net.order,), alpha)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


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
    """A teacher whose output is its order-`order` component alone,
    with that output computed by hand.

    x is zero but in its first two channels; every layer reads only the channels that the layer
    before wrote.
    """
    torch.manual_seed(3)
    net: Any = TransNet(8, 2, 3, 1, norm).train()
    x = torch.zeros(24, 8, 6, 6)
    x[:, :2] = unit_maps(24, 2)
    with torch.no_grad():
        net.logit_p.copy_(torch.tensor([-1.0, 1.0]))
        for layer in net.linear:
            layer.weight.zero_()
        # From order k's channels to the next ones
        maps_into = [torch.randn(2, 2) for _ in range(order + 1)]
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


# --- spare channels


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"norm": "batch"}, {"bn": True}, {"standardise": True}])
@pytest.mark.parametrize("hidden", [1, 5])
def test_spare_channels_that_nothing_flows_through_change_nothing(options, hidden):
    """The wide net has the narrow one's weights, and zeros where a spare channel takes part."""
    narrow, wide = lively(4, 3, **options), lively(4, 3, hidden=hidden, **options)
    state = narrow.state_dict()
    for name, value in wide.state_dict().items():
        value.zero_() if value.is_floating_point() else value.fill_(1)
        of_narrow = state[name]
        value[tuple(slice(size) for size in of_narrow.shape)] = of_narrow
    x = maps(3, 4)
    for ours, theirs in zip((wide(x), *wide.decompose(x)), (narrow(x), *narrow.decompose(x))):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("norm", ["instance", "batch"])
@pytest.mark.parametrize("layers", [2, 3, 4])
def test_orders_of_a_net_with_spare_channels_add_up(norm, layers):
    net = lively(4, 3, layers, norm=norm, hidden=6, standardise=True)
    x = maps(3, 4)
    output, components = net.decompose(x)
    torch.testing.assert_close(output, net(x))
    torch.testing.assert_close(components.sum(0) + net.constant[:, None, None], net(x))
    assert (
        components.shape == (layers, 3, 3, 6, 6)
        and components[1:].abs().amax((1, 2, 3, 4)).min() > 0.01
    )
    # Order 0 is linear in x: a spare channel is empty there.
    torch.testing.assert_close(
        components[0],
        net.target_std
        * F.conv2d(
            (x - net.x_mean[:, None, None]) / net.x_std, net.linear[0].weight[:, :4], padding=1
        ),
    )


@torch.no_grad()
def test_spare_channels_have_what_the_paper_has_no_room_for():
    """An even map |z|, and z as well: with x's channels alone, ReLU(±z) is added to z itself."""
    net = TransNet(1, 2, 2, kernel_size=1, hidden=2, fix_p=True).eval()
    net.linear[1].weight.copy_(torch.tensor([[0.0, 0, 0], [1, 0, 0], [-1, 0, 0]])[..., None, None])
    net.linear[0].weight.copy_(torch.tensor([[1.0, 0, 0], [0, 2, 2]])[..., None, None])
    z = torch.linspace(-1, 1, 9)[:, None, None, None]  # one position: both divisors are 1
    torch.testing.assert_close(net(z), torch.cat([z, z.abs()], dim=1))


def test_spare_channels_travel(tmp_path):
    net = lively(4, 3, hidden=2)
    assert net.config["hidden"] == 2 and TransNet(4, 3).config["hidden"] == 0
    again = TransNet(**net.config)
    again.load_state_dict(net.state_dict())
    assert again.linear[0].weight.shape == (3, 6, 3, 3) and again.linear[2].weight.shape == (
        6,
        6,
        3,
        3,
    )
    assert net.linear_reference().linear[0].weight.shape == (3, 4, 3, 3)
    with refused("-1", "hidden", kind=ValueError):
        TransNet(4, 3, hidden=-1)
