import dataclasses
import functools

import pytest
import torch

from consistency.calibration import instability_of
from consistency.family import Family
from consistency.pair_sums import PairSums
from consistency.reconstruction import (
    image_errors,
    instabilities,
    merged,
    pair_sums,
    reconstruct,
    set_standards,
)
from models.pair import read_stored
from models.trans_net import TransNet
from tests.unit.training.pairs import loader_of, maps
from utils.features.live import read_live
from utils.normalisation import NORMALISATIONS
from utils.pixels import FromPixels
from utils.runtime import Runtime
from utils.training import engine
from utils.training.engine import Averages, Fit, make_optimizer


def test_instability_is_the_variance_left_about_each_channels_mean(cpu):
    x, target = maps(40), maps(40, seed=1)
    net = TransNet(6, 6, 2).eval()
    with torch.no_grad():
        residual = (target - net(x)).double()
    axes = (0, 2, 3)
    expected = (
        residual.var(axes, correction=0).mean() / target.double().var(axes, correction=0).mean()
    )
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


def test_the_errors_of_every_image_give_the_instability(cpu):
    x, target = maps(40), maps(40, seed=1)
    net = TransNet(6, 6, 2)
    errors = image_errors(net.train(), loader_of(x, target), read_stored, cpu)
    assert errors.shape == (40, 2) and not net.training
    left = instabilities([net], loader_of(x, target), read_stored, cpu)[0]
    assert instability_of(errors.sum(0))["instability"] == pytest.approx(left)


def test_untrue_pairs_are_every_two_images_of_a_class(cpu):
    x, target, classes = maps(40), maps(40, seed=1), torch.arange(40) % 3
    net = TransNet(6, 6, 2).eval()
    errors = image_errors(net, loader_of(x, target), read_stored, cpu, classes)
    first, second = torch.cartesian_prod(torch.arange(40), torch.arange(40)).T
    untrue = (classes[first] == classes[second]) & (first != second)
    # Each class counts as often as it has images
    counts = classes.bincount()[classes[first[untrue]]]
    with torch.no_grad():
        error = (target[first[untrue]] - net(x)[second[untrue]]).double()
    weight = (1 / (counts - 1.0)).double()
    mean = (weight[:, None] * error.mean((2, 3))).sum(0) / 40
    expected = (weight * (error - mean[:, None, None]).square().mean((1, 2, 3))).sum() / 40
    assert errors[:, 1].sum() == pytest.approx(float(expected), rel=1e-5)
    assert errors[:, 0] == pytest.approx(
        image_errors(net, loader_of(x, target), read_stored, cpu)[:, 0]
    )


def test_similarities_see_every_pair(cpu):
    x, target = maps(40), maps(40, seed=1)
    whole = PairSums()
    whole.update(x, target)
    found = pair_sums(loader_of(x, target), read_stored, cpu)
    assert found.images == 40
    torch.testing.assert_close(found.centred().xy, whole.centred().xy)


def test_what_other_processes_saw_is_added(cpu, monkeypatch):
    first, second = PairSums(), PairSums()
    for sums, seed in ((first, 0), (second, 1)):
        sums.update(maps(10, seed=seed), maps(10, seed=seed + 2))
    monkeypatch.setattr(Runtime, "gather", lambda _, value: [value, second])
    assert merged(first, cpu).images == 20


def test_what_follows_can_be_matched_in_place_of_the_feature(cpu):
    x, target = maps(8), maps(8, seed=1)
    net, through = (
        TransNet(6, 6, 1),
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(4)).eval(),
    )
    through(target)
    step = functools.partial(
        reconstruct, family=Family([net]), alphas=[torch.zeros(0)], read=read_stored
    )
    loss, metrics = step(
        Family([net]), x, target, torch.zeros(8), torch.arange(8), throughs={False: through}
    )
    wanted, found = through(target), through(net(x))
    torch.testing.assert_close(metrics["0.MSE"], ((found - wanted) ** 2).mean())
    torch.testing.assert_close(loss, metrics["0.MSE"] / wanted.var())
    loss.backward()
    assert net.linear[0].weight.grad.abs().sum() > 0


def test_a_family_of_both_directions_counts_each_error_in_its_own_targets_units(cpu):
    x, target = maps(8), 10 * maps(8, seed=1)
    there, back = (TransNet(6, 6, 1, standardise=True) for _ in range(2))
    for net, first, second in ((there, x, target), (back, target, x)):
        set_standards([net], loader_of(first, second), read_stored, cpu)
    family = Family([there, back], [False, True])
    step = functools.partial(
        reconstruct, family=family, alphas=[torch.zeros(0)] * 2, read=read_stored
    )
    loss, metrics = step(family, x, target, torch.zeros(8), torch.arange(8))
    errors = ((there(x) - target) ** 2).mean(), ((back(target) - x) ** 2).mean()
    torch.testing.assert_close((metrics["0.MSE"], metrics["1.MSE"]), errors)
    torch.testing.assert_close(
        loss, errors[0] / there.target_std**2 + errors[1] / back.target_std**2
    )

    behind_b, behind_a = torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(5)
    loss, metrics = step(
        family,
        x,
        target,
        torch.zeros(8),
        torch.arange(8),
        throughs={False: behind_b, True: behind_a},
    )
    wanted, found = behind_a(x), behind_a(back(target))
    torch.testing.assert_close(metrics["1.MSE"], ((found - wanted) ** 2).mean())
    torch.testing.assert_close(metrics["1.Loss"], metrics["1.MSE"] / wanted.var())


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("config", [{}, {"norm": "batch", "bn": True}, {"standardise": True}])
def test_an_epoch_waits_for_its_device_only_where_it_reads_the_averages(
    cpu, monkeypatch, config, live
):
    """On the meta device no value can be read: whatever asks for one fails."""
    meta, reads = torch.device("meta"), []
    runtime = dataclasses.replace(cpu, device=meta)
    monkeypatch.setattr(Averages, "read", lambda *_: reads.append(1) or {"Loss": 1.0})
    # Behind the last step the sums are read, too, for a run that is ended before it saves.
    monkeypatch.setattr(engine.Midway, "note", lambda *_: reads.append("note"))
    with meta:
        half = NORMALISATIONS["half"]
        heads = {name: FromPixels(torch.nn.Conv2d(3, 6, 3), half) for name in ("head_a", "head_b")}
        family = Family([TransNet(6, 6, layers, **config) for layers in (1, 3)], [False, True])
    read = functools.partial(read_live, **heads, runtime=runtime) if live else read_stored
    x = torch.zeros(64, 3, 8, 8, dtype=torch.uint8) if live else maps(64)
    alphas = [torch.zeros(0, device=meta), torch.zeros(2, device=meta)]
    step = functools.partial(reconstruct, family=family, alphas=alphas, read=read)
    optimizer = make_optimizer("Adam", family.parameters(), lr=0.1, momentum=0, weight_decay=0)
    fit = Fit(family, family, optimizer, cpu.grad_scaler(), runtime, print_freq=3)
    engine.train_one_epoch(fit, loader_of(x, maps(64)), step, 0)
    assert reads == [1, "note", 1]  # of four batches after the third, and at the end
