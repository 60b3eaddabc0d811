import itertools
import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from tests.mistakes import refused
from utils.data.loaders import make_loader
from utils.errors import DivergedError
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
    return train_one_epoch(
        Fit(net, net, optimizer, cpu.grad_scaler(), cpu, **options), loader, step, epoch
    )


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
        seen.append(
            (net.training, net.dropout.training, net.norm.training, torch.is_grad_enabled())
        )
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

    with refused("epoch 8", "step 4", "sample 3", "--lr", "--amp", kind=DivergedError):
        train(Scale(), make_loader(Numbers(values), 1), cpu, epoch=7, step=step, print_freq=5)
    assert len(taken) == 5  # at the first reading after it
    with refused("1", "--lr", "--amp"):
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
    with refused(f"epoch {epoch + 1}", "step 1"):
        train(Scale(), make_loader(Numbers([math.nan]), 1), cpu, epoch=epoch)


def test_an_evaluation_that_missed_samples_is_an_error(cpu):
    loader = make_loader(Numbers([1.0, 2.0, 3.0]), 2)
    loader.batch_sampler.length = 2  # type: ignore[union-attr]
    with refused("2", "3", kind=RuntimeError):
        evaluate(Scale(), loader, mean_output, cpu)


def test_an_epoch_repeats_whatever_came_before(cpu):
    """Order and dropout of an epoch depend on (seed,
    epoch) alone, so a resumed run goes on as if never stopped.
    """

    def run(epochs):
        net, loader = (
            Scale(dropout=0.5),
            make_loader(Numbers([*map(float, range(16))]), 4, shuffle=True),
        )
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
