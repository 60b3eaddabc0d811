"""What diverged is neither saved nor read, and an optimiser takes no moments of other shapes."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from models.trans_net import TransNet, load_trans_net
from tests.mistakes import refused
from utils import checkpoint
from utils.data.loaders import Part, make_loader
from utils.errors import DivergedError
from utils.runs import RunLog
from utils.runtime import Runtime
from utils.training.engine import Fit, make_optimizer, train_one_epoch

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
    with refused("weight", "1", "--lr"):
        fit.state(1)


@pytest.mark.parametrize("moment", [torch.zeros(7), torch.full((2, 3), torch.inf), None, 3, "x"])
def test_moments_of_another_shape_or_value_are_refused(moment):
    fit = fit_of(nn.Linear(3, 2))
    state = fit.state(1)
    assert fit.restore(state, "net.pth.tar") == 1
    state["optimizer"]["state"][0]["exp_avg"] = moment
    with refused("net.pth.tar", "Adam"):
        fit.restore(state, "net.pth.tar")


@pytest.mark.parametrize("moments", [7, {"step": torch.ones(())}, {"exp_avg": torch.ones(2, 3)}])
def test_moments_that_are_missing_are_refused(moments):
    """A step would look for them."""
    fit = fit_of(nn.Linear(3, 2))
    state = fit.state(1)
    state["optimizer"]["state"][0] = moments
    with refused("net.pth.tar", "Adam"):
        fit.restore(state, "net.pth.tar")


def test_one_momentum_that_is_missing_is_refused():
    """A fused step takes all of them or none."""
    net = nn.Linear(3, 2)
    fit = replace(fit_of(net), optimizer=torch.optim.SGD(net.parameters(), 0.1, momentum=0.9))
    net(torch.ones(1, 3)).sum().backward()
    fit.optimizer.step()
    state = fit.state(1)
    assert fit.restore(state, "net.pth.tar") == 1
    state["optimizer"]["state"][0]["momentum_buffer"] = None
    with refused("net.pth.tar", "SGD"):
        fit.restore(state, "net.pth.tar")


@pytest.mark.parametrize(
    ("key", "value", "size"),
    [("layers", 10**6, 10**6), ("in_channels", 10**9, 10**9), ("hidden", 5, 4 + 5)],
)
def test_a_trans_net_of_other_sizes_than_its_weights_is_refused_before_it_is_built(
    tmp_path, key, value, size
):
    net = TransNet(4, 4, 2)
    state = {"trans_net": net.config, "state_dict": net.state_dict()}
    checkpoint.save(tmp_path / "g.pth.tar", state)
    load_trans_net(tmp_path / "g.pth.tar")
    checkpoint.save(tmp_path / "g.pth.tar", state | {"trans_net": net.config | {key: value}})
    with refused("g.pth.tar", size):
        load_trans_net(tmp_path / "g.pth.tar")


def test_a_trans_net_that_diverged_is_refused(tmp_path):
    net = TransNet(4, 4, 2)
    net.linear[0].weight.data.fill_(torch.nan)
    state = {"trans_net": net.config, "state_dict": net.state_dict()}
    checkpoint.save(tmp_path / "g.pth.tar", state)
    with refused("g.pth.tar", "linear.0.weight"):
        load_trans_net(tmp_path / "g.pth.tar")


class Rows(Dataset):
    """Rows of which one has a value that is not finite; each is named by a file."""

    def __init__(self, bad=7):
        self.paths = [f"{number}.jpg" for number in range(12)]
        self.values = torch.ones(12, 3)
        self.values[bad] = torch.inf

    def __len__(self):
        return 12

    def __getitems__(self, indices):
        return self.values[indices], torch.tensor(indices)


def mean_square(net, x, _):
    loss = net(x).square().mean()
    return loss, {"Square": loss}


@pytest.mark.parametrize("print_freq", [1, 10])
def test_the_first_step_that_diverged_is_named_with_its_files(print_freq):
    fit = replace(fit_of(nn.Linear(3, 2)), print_freq=print_freq)
    loader = make_loader(Part(Rows(bad=7), range(2, 12)), 2)  # rows 2 … 11: 7 is in the third step
    with refused("epoch 1", "step 3", "6.jpg", "7.jpg", "--skip_nonfinite", kind=DivergedError):
        train_one_epoch(fit, loader, mean_square, 0)


def test_steps_that_are_not_finite_are_left_out_where_that_is_allowed(capsys):
    fit, other = fit_of(nn.Linear(3, 2)), fit_of(nn.Linear(3, 2))
    other.model.load_state_dict(fit.model.state_dict())
    loader = make_loader(Rows(bad=11), 4)
    metrics = train_one_epoch(replace(fit, skip_nonfinite=1), loader, mean_square, 0)
    assert "11.jpg" in capsys.readouterr().out
    # As if the last step were not there; Adam's count of steps too
    assert metrics == train_one_epoch(other, make_loader(Rows(bad=11), 4), mean_square, 0, steps=2)
    assert torch.equal(fit.model.weight, other.model.weight)
    with refused("--skip_nonfinite", 1, kind=DivergedError):
        train_one_epoch(replace(fit, skip_nonfinite=1), make_loader(Rows(), 1), nan_loss, 1)


def nan_loss(net, x, _):
    loss = net(x).sum() * torch.nan
    return loss, {"Square": loss}


def test_the_log_says_which_checkpoint_is_the_last_good_one(tmp_path):
    log = RunLog(tmp_path / "log", 3)
    with refused(tmp_path / "a.pth.tar", "2 of 3", kind=DivergedError), log:
        log.saved(tmp_path / "a.pth.tar", 2)
        raise DivergedError("the loss became nan")


@pytest.mark.parametrize("weights", [None, [], {}, {"linear.0.weight": 1}])
def test_a_trans_net_without_its_weights_is_refused(tmp_path, weights):
    state = {"trans_net": TransNet(4, 4, 2).config}
    checkpoint.save(
        tmp_path / "g.pth.tar", state if weights is None else state | {"state_dict": weights}
    )
    with refused(tmp_path / "g.pth.tar"):
        load_trans_net(tmp_path / "g.pth.tar")
