"""What diverged is neither saved nor read, and an optimiser takes no moments of other shapes."""

import pytest
import torch
from torch import nn

from models.trans_net import TransNet, load_trans_net
from utils import checkpoint
from utils.errors import InputError
from utils.runtime import Runtime
from utils.training.engine import Fit, make_optimizer

CPU = Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)


def fit_of(net):
    """A fit after one step of Adam."""
    optimizer = make_optimizer("Adam", net.parameters(), lr=0.01, momentum=0.9, weight_decay=0.0)
    fit = Fit(net, net, optimizer, CPU.grad_scaler(), CPU)
    net(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    return fit


def test_weights_that_diverged_are_not_saved():
    fit = fit_of(nn.Linear(3, 2))
    assert fit.state(1)["epoch"] == 1
    fit.model.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match="weight"):
        fit.state(1)


@pytest.mark.parametrize("moment", [torch.zeros(7), torch.full((2, 3), torch.inf)])
def test_moments_of_another_shape_or_value_are_refused(moment):
    fit = fit_of(nn.Linear(3, 2))
    state = fit.state(1)
    assert fit.restore(state, "net.pth.tar") == 1
    state["optimizer"]["state"][0]["exp_avg"] = moment
    with pytest.raises(InputError, match=r"net\.pth\.tar"):
        fit.restore(state, "net.pth.tar")


@pytest.mark.parametrize(
    ("key", "value"), [("layers", 10**6), ("in_channels", 10**9), ("hidden", 5)]
)
def test_a_trans_net_of_other_sizes_than_its_weights_is_refused_before_it_is_built(
    tmp_path, key, value
):
    net = TransNet(4, 4, 2)
    state = {"trans_net": net.config, "state_dict": net.state_dict()}
    checkpoint.save(tmp_path / "g.pth.tar", state)
    load_trans_net(tmp_path / "g.pth.tar")
    checkpoint.save(tmp_path / "g.pth.tar", state | {"trans_net": net.config | {key: value}})
    with pytest.raises(InputError, match=r"g\.pth\.tar"):
        load_trans_net(tmp_path / "g.pth.tar")


def test_a_trans_net_that_diverged_is_refused(tmp_path):
    net = TransNet(4, 4, 2)
    net.linear[0].weight.data.fill_(torch.nan)
    state = {"trans_net": net.config, "state_dict": net.state_dict()}
    checkpoint.save(tmp_path / "g.pth.tar", state)
    with pytest.raises(InputError, match="not finite"):
        load_trans_net(tmp_path / "g.pth.tar")
