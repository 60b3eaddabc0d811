"""Optimisers, and fits that are saved and go on."""

import functools
import math

import pytest
import torch
from torch import nn

from tests.mistakes import refused
from utils import checkpoint
from utils.training.engine import Fit, make_optimizer
from utils.training.muon import Muon


def test_optimisers_take_what_is_trained():
    net = nn.Linear(2, 3)
    net.bias.requires_grad_(False)
    sgd = make_optimizer("SGD", net.parameters(), lr=0.1, momentum=0.7, weight_decay=0.2)
    adam = make_optimizer("Adam", net.parameters(), lr=0.3, momentum=0.7, weight_decay=0.4)
    for optimizer in (sgd, adam):
        assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == [
            id(net.weight)
        ]
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adam, torch.optim.Adam)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.1,
        "momentum": 0.7,
        "weight_decay": 0.2,
    }
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.3, 0.4)
    with refused("LION", "SGD", "Adam", "Muon", kind=ValueError):
        make_optimizer("LION", net.parameters(), lr=1, momentum=0, weight_decay=0)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(4, 5, 3)


def take_steps(net, optimizer, gradients):
    for gradient in gradients:
        net.weight.grad, net.bias.grad = gradient.clone(), gradient.sum((1, 2, 3))
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("SGD", functools.partial(torch.optim.SGD, momentum=0.9)),
        ("Adam", torch.optim.Adam),
    ],
)
def test_a_fused_step_is_the_plain_one(name, plain):
    ours, theirs = convolution(), convolution()
    optimizer = make_optimizer(name, ours.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-2)
    assert optimizer.param_groups[0]["fused"] is True
    gradients = torch.randn(5, *ours.weight.shape)
    take_steps(ours, optimizer, gradients)
    take_steps(theirs, plain(theirs.parameters(), lr=0.01, weight_decay=1e-2), gradients)
    for first, second in zip(ours.parameters(), theirs.parameters()):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_no_step_is_fused_on_a_device_that_may_not_know_it():
    (group,) = make_optimizer(
        "Adam", nn.Linear(2, 3, device="meta").parameters(), lr=1, momentum=0, weight_decay=0
    ).param_groups
    assert group["fused"] is False


# --- going on


def fit_of(net, optimizer, cpu, *, amp="off"):
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, enabled=amp == "fp16")
    return Fit(net, net, optimizer, scaler, cpu)


def trained(cpu, optim=torch.optim.SGD, **options):
    """A small network after two steps, and what moved it."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = optim(net.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    return fit_of(net, optimizer, cpu)


@pytest.mark.parametrize(
    ("optim", "options"),
    [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {}), (Muon, {"weight_decay": 0.1})],
)
def test_training_goes_on_where_it_stopped(tmp_path, cpu, optim, options):
    fit = trained(cpu, optim, **options)
    state = fit.state(7, arch="linear", acc1=3.5)
    assert (state["epoch"], state["arch"], state["acc1"]) == (7, "linear", 3.5)
    checkpoint.save(tmp_path / "c.pth.tar", state)
    loaded = checkpoint.load(tmp_path / "c.pth.tar")
    model = nn.Linear(3, 2)
    model.load_state_dict(loaded["state_dict"])
    again = fit_of(model, optim(model.parameters(), lr=9.0, **options), cpu)
    assert again.restore(loaded, "c.pth.tar") == 7
    for used in (fit, again):
        used.optimizer.zero_grad()
        used.net(torch.arange(3.0)[None]).sum().backward()
        used.optimizer.step()
    assert torch.equal(again.model.weight, fit.model.weight)


def test_what_is_saved_is_the_network_and_not_its_wrapper(cpu):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = Fit(nn.Sequential(model), model, optimizer, cpu.grad_scaler(), cpu).state(1)
    assert list(state["state_dict"]) == ["weight", "bias"]


def test_the_loss_scale_of_fp16_comes_back(cpu):
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    fit = fit_of(net, optimizer, cpu, amp="fp16")
    state = fit.state(1)
    assert state["scaler"]["scale"] == 64
    fit.restore(state | {"scaler": state["scaler"] | {"scale": 8.0}}, "c.pth.tar")
    assert fit.scaler.get_scale() == 8


def test_weights_alone_and_other_parameters_cannot_be_resumed(cpu):
    fit = trained(cpu, momentum=0.9)
    state = fit.state(1)
    other = torch.optim.SGD([*fit.model.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
    with refused("w.pth", "SGD", "--weights"):
        fit_of(fit.model, other, cpu).restore(state, "w.pth")
    for missing in ("optimizer", "epoch"):
        rest = {key: value for key, value in state.items() if key != missing}
        with refused("w.pth", "--weights"):
            fit.restore(rest, "w.pth")


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("adam_first", [True, False])
def test_another_kind_of_optimiser_cannot_be_resumed(cpu, adam_first, momentum):
    sgd, adam = functools.partial(torch.optim.SGD, momentum=momentum), torch.optim.Adam
    first, second = (adam, sgd) if adam_first else (sgd, adam)
    assert_refused(cpu, first, second)


@pytest.mark.parametrize("other", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize("muon_first", [True, False])
def test_muon_is_another_kind_too(cpu, muon_first, other):
    assert_refused(cpu, *((Muon, other) if muon_first else (other, Muon)))


def assert_refused(cpu, first, second):
    fit = trained(cpu, first)
    other = fit_of(fit.model, second(fit.model.parameters(), lr=0.1), cpu)
    with refused("w.pth", type(other.optimizer).__name__, "--optim"):
        other.restore(fit.state(1), "w.pth")


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_the_optimiser_of_an_older_pytorch_is_resumed(cpu, optim):
    fit = trained(cpu, optim)
    state = fit.state(4)
    known = {
        "params",
        "lr",
        "betas",
        "eps",
        "weight_decay",
        "amsgrad",
        "momentum",
        "dampening",
        "nesterov",
    }
    state["optimizer"]["param_groups"] = [
        {key: value for key, value in group.items() if key in known}
        for group in state["optimizer"]["param_groups"]
    ]
    fresh = fit_of(fit.model, optim(fit.model.parameters(), lr=0.5), cpu)
    assert fresh.restore({**state, "scaler": None}, "w.pth") == 4
    fresh.net(torch.ones(1, 3)).sum().backward()
    fresh.optimizer.step()


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {})])
@pytest.mark.parametrize("fused_first", [True, False])
def test_a_run_goes_on_fused_and_plain_whatever_its_checkpoint_was(
    tmp_path, cpu, name, options, fused_first
):
    net, gradients = convolution(), torch.randn(4, 5, 4, 3, 3)
    kind, path = getattr(torch.optim, name), tmp_path / "c.pth.tar"
    fit = fit_of(net, kind(net.parameters(), lr=0.01, fused=fused_first, **options), cpu)
    take_steps(net, fit.optimizer, gradients[:2])
    checkpoint.save(path, fit.state(2))
    again = convolution()
    again.load_state_dict(checkpoint.load(path)["state_dict"])
    other = fit_of(again, kind(again.parameters(), lr=9.0, fused=not fused_first, **options), cpu)
    assert other.restore(checkpoint.load(path), path) == 2
    assert other.optimizer.param_groups[0]["fused"] is not fused_first
    take_steps(net, fit.optimizer, gradients[2:])
    take_steps(again, other.optimizer, gradients[2:])
    torch.testing.assert_close(again.weight, net.weight, rtol=1e-6, atol=1e-7)


def test_a_first_step_that_the_scaler_leaves_out_leaves_no_trace(cpu):
    """PyTorch's fused SGD leaves its momentum unset there, whatever memory held."""
    weights = []
    for fused in (True, False):
        net = nn.Linear(40, 25, bias=False)
        nn.init.ones_(net.weight)
        optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
        fit = Fit(net, net, optimizer, scaler, cpu)
        # Freed memory of the weights' size, which an unset tensor would be given
        junk = [torch.full((25, 40), math.nan) for _ in range(50)]
        del junk
        for gradient in (math.inf, 1.0, 1.0):
            optimizer.zero_grad()
            fit.scaler.scale((net.weight * gradient).sum()).backward()
            fit.scaler.step(optimizer)
            fit.scaler.update()
        weights.append(net.weight.detach())
    assert torch.equal(*weights)
    # w − 0.1 (1 + 1.9)
    torch.testing.assert_close(weights[0], torch.full((25, 40), 0.71))
