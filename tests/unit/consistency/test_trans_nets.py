from typing import Any

import pytest
import torch

from consistency.trans_nets import between, check_fit, fill_trans_net
from models.split import as_maps
from models.trans_net import TransNet
from tests.mistakes import refused


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
    with refused(*shapes):
        between(*shapes, layers=3)


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1)])
def test_single_values_have_no_mean_to_remove(shape):
    with refused("--bn", "--norm"):
        between(shape, shape, layers=3, bn=True, norm="instance")
    between(shape, shape, layers=3, bn=True, norm="batch")
    between((9, 4), (9, 4), layers=3, bn=True, norm="instance")


def test_a_trans_net_is_filled_from_one_that_is_built_alike():
    stored, net = (between((4, 6, 5), (7, 3, 2), layers=3, norm="batch") for _ in range(2))
    state = {"trans_net": stored.config, "state_dict": stored.state_dict()}
    assert not torch.equal(net.linear[0].weight, stored.linear[0].weight)
    fill_trans_net(net.train(), state, "g.pth.tar")
    assert all(
        torch.equal(value, stored.state_dict()[key]) for key, value in net.state_dict().items()
    )
    assert net.training


@pytest.mark.parametrize(
    ("changes", "facts"),
    [
        ({"layers": 2}, ("layers", 3, 2)),
        ({"norm": "batch"}, ("norm", "instance", "batch")),
        ({"fix_p": True}, ("fix_p", False, True)),
        ({"shape_b": (4, 3, 3)}, ("out_size", (6, 5), (3, 3))),
        ({"shape_a": (5, 6, 5)}, ("in_channels", 4, 5)),
    ],
)
def test_a_trans_net_is_not_filled_from_one_that_is_built_otherwise(changes, facts):
    usual: dict[str, Any] = {
        "shape_a": (4, 6, 5),
        "shape_b": (4, 6, 5),
        "layers": 3,
        "norm": "instance",
    }
    stored, net = between(**usual), between(**usual | changes)
    state = {"trans_net": stored.config, "state_dict": stored.state_dict()}
    before = net.logit_p.clone(), net.linear[0].weight.clone()
    with refused("g.pth.tar", *facts):
        fill_trans_net(net, state, "g.pth.tar")
    assert torch.equal(net.logit_p, before[0]) and torch.equal(net.linear[0].weight, before[1])


@pytest.mark.parametrize(
    ("config", "target", "fits"),
    [
        ({}, (7, 6, 5), True),
        ({}, (7, 3, 2), False),
        ({"out_size": (3, 2)}, (7, 3, 2), True),
        ({"out_size": (3, 2)}, (7, 6, 5), False),
        ({}, (4, 6, 5), False),
    ],
)
def test_a_trans_net_is_held_against_the_features(config, target, fits):
    net, x = TransNet(4, 7, 2, **config), torch.randn(2, 4, 6, 5)
    if fits:
        check_fit(net, (4, 6, 5), target)
        assert net(x).shape == (2, *target)
        return
    with refused("4", "7", "6", "5"):
        check_fit(net, (4, 6, 5), target)
    with refused("channels", "4"):
        check_fit(net, (3, 6, 5), (7, 6, 5))


def test_a_trans_net_of_tokens_or_vectors_is_held_against_them():
    check_fit(TransNet(4, 7, 2, 1), (9, 4), (9, 7))
    check_fit(TransNet(4, 7, 2, 1), (4,), (7,))
    with refused("4", "7", "9", "1"):
        check_fit(TransNet(4, 7, 2, 1), (9, 4), (5, 7))
