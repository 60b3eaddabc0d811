import functools

import pytest
import torch
from torch.utils.data import Dataset

from models.pair import read_stored
from models.trans_net import TransNet
from utils.data.loaders import make_loader
from utils.training import reconstruction
from utils.training.family import Family
from utils.training.reconstruction import (
    closed_form,
    closing_words,
    instabilities,
    linear_reference,
    reconstruct,
    set_standards,
    solve,
)


class Pairs(Dataset):
    """Features x and targets in memory, as batches of the feature cache."""

    def __init__(self, x, target):
        self.x, self.target = x, target

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        rows = torch.as_tensor(indices)
        return self.x[rows], self.target[rows], rows % 3, rows


def loader_of(x, target):
    return make_loader(Pairs(x, target), 16)


def maps(count, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, channels, 1, 1, generator=generator)
    return 2 + 3 * (base + torch.randn(count, channels, 5, 5, generator=generator))


@pytest.fixture
def mixed():
    """Channels permuted and mixed: a linear map that one layer has to find; 120 pairs to fit, 40 held out."""
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0]
    x = maps(160)
    target = torch.einsum("dc,nchw->ndhw", mixing, x)[:, torch.randperm(6)] + 5
    return loader_of(x[:120], target[:120]), loader_of(x[120:], target[120:])


def linear(channels=6):
    return TransNet(channels, channels, 1, standardise=True)


def test_permuted_and_mixed_channels_are_found_without_an_epoch(mixed, cpu):
    fitted, unseen = mixed
    nets = [linear(), TransNet(6, 6, 3, standardise=True)]
    set_standards(nets, fitted, read_stored, cpu)
    reference = linear_reference(nets[0], fitted, unseen, read_stored, cpu)
    assert reference.instability < 1e-6 and reference.measured_on == "held-out images"
    closed_form(nets[1:], reference, fitted, read_stored, cpu, last=True)
    assert max(instabilities(nets, unseen, read_stored, cpu)) < 1e-6


def test_the_linear_layer_ends_a_fit_only_where_it_is_better(mixed, cpu):
    """Random branches add noise to x that W(0) cannot take out; between epochs they stay, to be trained."""
    fitted, unseen = mixed
    torch.manual_seed(0)
    net = TransNet(6, 6, 3, standardise=True)
    reference_net = linear()
    set_standards([net, reference_net], fitted, read_stored, cpu)
    reference = linear_reference(reference_net, fitted, unseen, read_stored, cpu)
    closed_form([net], reference, fitted, read_stored, cpu, last=False)
    (between,) = instabilities([net], unseen, read_stored, cpu)
    assert between > 10 * reference.instability and (net.p > 0.4).all()
    closed_form([net], reference, fitted, read_stored, cpu, last=True)
    assert net.p[0] == 0


def test_the_scale_of_a_target_changes_nothing(cpu):
    x, noise = maps(160), maps(160, seed=7)
    found = []
    for scale in (1, 0.03, 20):
        target = scale * (x.roll(1, 1) + 0.3 * noise)
        net, fitted = linear(), loader_of(x[:120], target[:120])
        set_standards([net], fitted, read_stored, cpu)
        solve([net], fitted, read_stored, cpu)
        found += instabilities([net], loader_of(x[120:], target[120:]), read_stored, cpu)
    assert found[0] == pytest.approx(0.09 / 1.09, abs=0.01)  # the noise's share
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-5)


def test_few_memory_is_answered_by_many_passes(mixed, cpu, monkeypatch, capsys):
    fitted, _ = mixed
    nets = [linear(), linear()]
    set_standards(nets, fitted, read_stored, cpu)
    (by_sums,) = solve(nets[:1], fitted, read_stored, cpu)
    monkeypatch.setattr(reconstruction, "free_bytes", lambda _: 0)
    (by_passes,) = solve(nets[1:], fitted, read_stored, cpu)
    assert "conjugate gradients" in capsys.readouterr().out
    torch.testing.assert_close(by_passes.weight, by_sums.weight, rtol=1e-4, atol=1e-5)


def test_instability_is_the_variance_left_about_each_channels_mean(cpu):
    x, target = maps(40), maps(40, seed=1)
    net = TransNet(6, 6, 2).eval()
    with torch.no_grad():
        residual = (target - net(x)).double()
    axes = (0, 2, 3)
    expected = residual.var(axes, correction=0).mean() / target.double().var(axes, correction=0).mean()
    (left,) = instabilities([net.train()], loader_of(x, target), read_stored, cpu)
    assert left == pytest.approx(float(expected), rel=1e-6)
    assert instabilities([net], None, read_stored, cpu) == []


@pytest.mark.parametrize("standardise", [False, True])
def test_the_loss_is_the_sum_of_the_members(standardise, cpu):
    x, target = maps(8), 10 * maps(8, seed=1)
    nets = [TransNet(6, 6, layers, standardise=standardise) for layers in (1, 3)]
    set_standards(nets, loader_of(x, target), read_stored, cpu)
    alphas = [torch.zeros(0), torch.tensor([0.1, 0.3])]
    family = Family(nets)
    step = functools.partial(reconstruct, family=family, alphas=alphas, read=read_stored)
    loss, metrics = step(family, x, target, torch.zeros(8), torch.arange(8))
    unit = nets[0].target_std ** 2 if standardise else 1.0
    by_hand = [((net(x) - target) ** 2).mean() for net in nets]
    penalty = 0.1 * 0.25 + 0.3 * 0.25
    torch.testing.assert_close(loss, by_hand[0] / unit + by_hand[1] / unit + penalty)
    torch.testing.assert_close(metrics["1.MSE"], by_hand[1])
    assert metrics["1.L2_loss"].item() == pytest.approx(penalty)
    assert {name for name in metrics if name.startswith("0.")} == {"0.Loss", "0.MSE", "0.L2_loss"}
    assert {"1.p1", "1.p2"} <= set(metrics)


REFERENCE = {"instability": 0.1, "ridge": 0.1, "measured_on": "held-out images"}


@pytest.mark.parametrize(
    ("errors", "instability", "said"),
    [
        ([1.0, 0.5], 0.2, ["50 % lower", "not flat yet", "WORSE than one linear layer"]),
        ([1.0] * 20 + [0.999], 0.1004, ["flat", "0.1004 on held-out images, of the linear reference 0.1000"]),
        ([], None, ["linear reference 0.1000 by cross-validation"]),
    ],
)
def test_a_fit_says_how_far_it_got(errors, instability, said):
    words = closing_words(errors, instability, REFERENCE)
    assert all(part in words for part in said)
    assert ("WORSE" in words) == ("WORSE than one linear layer" in said)
