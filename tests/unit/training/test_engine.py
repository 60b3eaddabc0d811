import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from utils import checkpoint
from utils.data.loaders import make_loader
from utils.errors import InputError
from utils.runs import RunLog
from utils.training import engine
from utils.training.engine import Fit, evaluate, make_optimizer, train_one_epoch


class Numbers(Dataset):
    """Samples (value, index): batches (values (n, 1), indices (n,))."""

    def __init__(self, values):
        self.values = torch.tensor(values)[:, None]

    def __len__(self):
        return len(self.values)

    def __getitems__(self, indices):
        return self.values[indices], torch.tensor(indices)


class Scale(nn.Module):
    """y = w·x, after a dropout that does nothing in evaluation."""

    def __init__(self, w=1.0, dropout=0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.BatchNorm1d(1)

    def forward(self, x):
        return self.w * self.dropout(x)


def mean_output(net, x, _indices):
    y = net(x)
    return y.mean(), {"square": y.square().mean(), "largest": y.max()}


def train(net, loader, cpu, *, lr=0.0, epoch=0, step=mean_output, **options):
    optimizer = make_optimizer("SGD", net.parameters(), lr=lr, momentum=0, weight_decay=0)
    return train_one_epoch(Fit(net, net, optimizer, cpu.grad_scaler(), cpu, **options), loader, step, epoch)


def test_means_are_over_samples_and_not_over_batches(cpu):
    """Batches [1, 2, 3] and [10]: the mean is 4, the mean of means would be 6."""
    loader = make_loader(Numbers([1.0, 2.0, 3.0, 10.0]), 3)
    expected = {"Loss": 4.0, "square": (1 + 4 + 9 + 100) / 4, "largest": (3 * 3 + 10) / 4}
    assert evaluate(Scale(), loader, mean_output, cpu) == pytest.approx(expected)
    assert train(Scale(), loader, cpu) == pytest.approx(expected)


def test_training_takes_one_step_of_the_optimiser_a_batch(cpu):
    """d mean(w·x)/dw = mean(x): w falls by lr·2, then by lr·10."""
    net = Scale(1.0)
    means = train(net, make_loader(Numbers([1.0, 2.0, 3.0, 10.0]), 3), cpu, lr=0.1)
    assert net.w.item() == pytest.approx(1 - 0.2 - 1.0)
    assert means["Loss"] == pytest.approx((3 * 2 * 1.0 + 10 * 0.8) / 4)


def test_modes_and_gradients(cpu):
    net, loader = Scale(), make_loader(Numbers([1.0, 2.0]), 1)
    seen = []

    def step(net, x, _indices):
        seen.append((net.training, net.dropout.training, net.norm.training, torch.is_grad_enabled()))
        return net(x).mean(), {}

    train(net, loader, cpu, step=step)
    evaluate(net, loader, step, cpu)
    assert seen == [(True, True, True, True)] * 2 + [(False, False, False, False)] * 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_epoch(cpu, bad):
    values = [1.0] * 20
    values[3] = bad
    taken = []

    def step(net, x, indices):
        taken.extend(indices.tolist())
        return mean_output(net, x, indices)

    with pytest.raises(InputError, match=r"the loss became (nan|inf) in epoch 8: lower --lr or switch --amp off"):
        train(Scale(), make_loader(Numbers(values), 1), cpu, epoch=7, step=step, print_freq=5)
    assert len(taken) == 5  # at the first reading after it
    with pytest.raises(InputError, match="in epoch 1"):
        train(Scale(), make_loader(Numbers(values), 1), cpu, print_freq=1000)


@pytest.mark.parametrize("epoch", [0, 7])
def test_an_epoch_has_one_number_wherever_it_is_named(cpu, epoch, monkeypatch, tmp_path, capsys):
    """On the bar, in the log's line, and where it fails: counted from 1."""
    labels = []

    class Watched(engine.Progress):
        def __init__(self, items, label, **options):
            labels.append(label)
            super().__init__(items, label, **options)

    monkeypatch.setattr(engine, "Progress", Watched)
    with RunLog(tmp_path, 9, start_epoch=epoch) as log:
        log.write(epoch, train(Scale(), make_loader(Numbers([1.0, 2.0]), 1), cpu, epoch=epoch))
    assert labels == [f"epoch {epoch + 1}"]
    assert capsys.readouterr().out.startswith(f"epoch {epoch + 1}/9 · ")
    with pytest.raises(InputError, match=f"the loss became nan in epoch {epoch + 1}:"):
        train(Scale(), make_loader(Numbers([math.nan]), 1), cpu, epoch=epoch)


def test_an_evaluation_that_missed_samples_is_an_error(cpu):
    loader = make_loader(Numbers([1.0, 2.0, 3.0]), 2)
    loader.batch_sampler.length = 2  # type: ignore[union-attr]
    with pytest.raises(RuntimeError, match="evaluated 2 samples of a set of 3"):
        evaluate(Scale(), loader, mean_output, cpu)


def test_an_epoch_repeats_whatever_came_before(cpu):
    """Order and dropout of an epoch depend on (seed, epoch) alone, so a resumed run goes on as if never stopped."""

    def run(epochs):
        net, loader = Scale(dropout=0.5), make_loader(Numbers([*map(float, range(16))]), 4, shuffle=True)
        order: dict[int, list[int]] = {epoch: [] for epoch in epochs}
        kept: dict[int, list[bool]] = {epoch: [] for epoch in epochs}

        def step(net, x, indices):
            y = net(x)
            order[epoch] += indices.tolist()
            kept[epoch] += (y > 0).flatten().tolist()
            return y.mean(), {}

        for epoch in epochs:
            torch.rand(epoch + 3)  # what else happens to be drawn
            train(net, loader, cpu, epoch=epoch, step=step)
        return order, kept

    uninterrupted, resumed = run([0, 1, 2]), run([2])
    for drawn, again in zip(uninterrupted, resumed):
        assert drawn[2] == again[2]
        assert all(drawn[a] != drawn[b] for a, b in itertools.combinations(range(3), 2))


def test_optimisers_take_what_is_trained():
    net = nn.Linear(2, 3)
    net.bias.requires_grad_(False)
    sgd = make_optimizer("SGD", net.parameters(), lr=0.1, momentum=0.7, weight_decay=0.2)
    adam = make_optimizer("Adam", net.parameters(), lr=0.3, momentum=0.7, weight_decay=0.4)
    for optimizer in (sgd, adam):
        assert [id(parameter) for parameter in optimizer.param_groups[0]["params"]] == [id(net.weight)]
    assert isinstance(sgd, torch.optim.SGD) and isinstance(adam, torch.optim.Adam)
    assert {key: sgd.defaults[key] for key in ("lr", "momentum", "weight_decay")} == {
        "lr": 0.1,
        "momentum": 0.7,
        "weight_decay": 0.2,
    }
    assert (adam.defaults["lr"], adam.defaults["weight_decay"]) == (0.3, 0.4)
    with pytest.raises(ValueError, match="'LION' is neither"):
        make_optimizer("LION", net.parameters(), lr=1, momentum=0, weight_decay=0)


def convolution():
    torch.manual_seed(0)
    return nn.Conv2d(4, 5, 3)


def take_steps(net, optimizer, gradients):
    for gradient in gradients:
        net.weight.grad, net.bias.grad = gradient.clone(), gradient.sum((1, 2, 3))
        optimizer.step()


@pytest.mark.parametrize(("name", "plain"), [
    ("SGD", functools.partial(torch.optim.SGD, momentum=0.9)), ("Adam", torch.optim.Adam),
])  # fmt: skip
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


@pytest.mark.parametrize(("optim", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})])
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
    with pytest.raises(InputError, match=r"w\.pth was trained with another optimiser or other"):
        fit_of(fit.model, other, cpu).restore(state, "w.pth")
    for missing in ("optimizer", "epoch"):
        rest = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(InputError, match=r"w\.pth holds weights but no training state.*use it as --weights"):
            fit.restore(rest, "w.pth")


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("adam_first", [True, False])
def test_another_kind_of_optimiser_cannot_be_resumed(cpu, adam_first, momentum):
    sgd, adam = functools.partial(torch.optim.SGD, momentum=momentum), torch.optim.Adam
    first, second = (adam, sgd) if adam_first else (sgd, adam)
    fit = trained(cpu, first)
    other = fit_of(fit.model, second(fit.model.parameters(), lr=0.1), cpu)
    with pytest.raises(InputError, match="was trained with another optimiser"):
        other.restore(fit.state(1), "w.pth")


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_the_optimiser_of_an_older_pytorch_is_resumed(cpu, optim):
    fit = trained(cpu, optim)
    state = fit.state(4)
    known = {"params", "lr", "betas", "eps", "weight_decay", "amsgrad", "momentum", "dampening", "nesterov"}
    state["optimizer"]["param_groups"] = [
        {key: value for key, value in group.items() if key in known} for group in state["optimizer"]["param_groups"]
    ]
    fresh = fit_of(fit.model, optim(fit.model.parameters(), lr=0.5), cpu)
    assert fresh.restore({**state, "scaler": None}, "w.pth") == 4
    fresh.net(torch.ones(1, 3)).sum().backward()
    fresh.optimizer.step()


@pytest.mark.parametrize(("name", "options"), [("SGD", {"momentum": 0.9}), ("Adam", {})])
@pytest.mark.parametrize("fused_first", [True, False])
def test_a_run_goes_on_fused_and_plain_whatever_its_checkpoint_was(tmp_path, cpu, name, options, fused_first):
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
