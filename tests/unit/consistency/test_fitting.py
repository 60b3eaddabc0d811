"""One fit from its first pass to its last."""

import dataclasses

import pytest
import torch
from torch.utils.data import Subset

from consistency import fitting
from consistency.budget import Budget
from consistency.convergence import AT_END
from consistency.fitting import Fitting, Pairs, converge
from models.pair import read_stored
from models.trans_net import TransNet
from tests.unit.training.pairs import Pairs as Features
from tests.unit.training.pairs import maps
from utils.data.loaders import make_loader

SOLVED = Budget(optim="Adam", steps=None, epochs=0)


def pairs_of(x, target, fitted):
    """Pairs of which the first `fitted` images are fitted and the others are not."""
    features = Features(x, target)

    def load(part, shuffle):
        return make_loader(Subset(features, part.tolist()), 16, shuffle=shuffle)

    images = torch.arange(len(x))
    return Pairs(
        load,
        read_stored,
        images[:fitted],
        load(images[fitted:], False) if fitted < len(x) else None,
    )


@pytest.fixture
def mixed():
    """Channels permuted and mixed: a linear map that one layer has to find;
    120 pairs to fit, 40 held out.
    """
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0]
    x = maps(160)
    return pairs_of(x, torch.einsum("dc,nchw->ndhw", mixing, x)[:, torch.randperm(6)] + 5, 120)


def nets(*depths, seed=0, **options):
    torch.manual_seed(seed)
    return [TransNet(6, 6, layers, standardise=True, **options) for layers in depths]


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("budget", [SOLVED, Budget(steps=6, batch_size=16)])
def test_a_linear_map_is_found_at_any_depth_and_width(mixed, cpu, budget, hidden):
    """Branches add noise to x that W(0) cannot take out;
    the linear layer takes their place, and says so.
    """
    one = Fitting(nets(2, 3, hidden=hidden), mixed, budget, cpu).run()
    assert max(one.instabilities()) < 1e-6
    for i, net in enumerate(one.trans_nets):
        record = one.record(i)
        assert (
            net.p[0] == 0
            and record["linear"]["taken"]
            and record["linear"]["linear"] < record["linear"]["deep"]
        )
        assert record["linear"]["unseen"] == (budget.steps is not None)
        assert (record["steps"], record["hidden"], record["state"]) == (
            budget.steps or 0,
            hidden,
            "not tried",
        )


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_net_explains_itself(cpu, hidden):
    x = maps(160)
    one = Fitting(nets(3, hidden=hidden), pairs_of(x, x, 120), Budget(steps=4), cpu).run()
    assert one.instabilities()[0] < 1e-9


def test_the_linear_layer_takes_no_place_between_epochs_and_none_that_is_not_wanted(mixed, cpu):
    one = Fitting(nets(3), mixed, dataclasses.replace(SOLVED, epochs=1, lr=0.0), cpu)
    one.begin()
    assert (one.trans_nets[0].p > 0.4).all() and one.compared == [None]
    assert one.instabilities()[0] > 100 * one.beside[False].reference.instability
    kept = Fitting(nets(3), mixed, SOLVED, cpu, fallback=False).run()
    assert (kept.trans_nets[0].p > 0.4).all() and kept.compared[0]["taken"] is False


def test_each_direction_is_solved_against_its_own_target(mixed, cpu):
    """A rotation has an inverse: both ways one layer finds all, and by another matrix."""
    one = Fitting(nets(2, 1, 2, 1), mixed, SOLVED, cpu, backwards=[False, False, True, True]).run()
    assert one.directions == {False: [0, 1], True: [2, 3]}
    assert max(one.instabilities()) < 1e-6
    there, back = (one.trans_nets[i].linear[0].weight[:, :, 1, 1] for i in (1, 3))
    assert not torch.allclose(there, back, atol=0.1)
    assert one.beside[True].record()["instability"] < 1e-6


def test_one_layer_is_solved_once(mixed, cpu, monkeypatch):
    """It is the linear reference: its system is solved there."""
    solved = []
    monkeypatch.setattr(fitting, "solve", lambda members, *_: solved.extend(members) or [])
    one = Fitting(nets(1), mixed, SOLVED, cpu).run()
    assert solved == [] and one.instabilities()[0] < 1e-6
    Fitting(nets(1), mixed, SOLVED, cpu, reference=False).run()
    assert len(solved) == 1


def test_a_fit_that_goes_on_keeps_its_standards(mixed, cpu):
    one = Fitting(nets(1), mixed, SOLVED, cpu, reference=False)
    one.begin(start_epoch=1)
    assert not one.trans_nets[0].x_mean.any() and one.beside[False].linear.x_mean.any()
    assert one.beside[False].record() is None


def test_fits_to_the_same_images_share_what_stands_beside_them(mixed, cpu):
    first = Fitting(nets(2), mixed, SOLVED, cpu).run()
    second = Fitting(nets(3), mixed, SOLVED, cpu, beside=first.beside)
    second.begin()
    assert second.beside is first.beside
    assert torch.equal(second.trans_nets[0].x_mean, first.trans_nets[0].x_mean)


def planted(images=200):
    """An even map beside x itself: |z| has no room in x's own channels."""
    x = maps(images) - 2
    centred = x - x.mean((0, 2, 3))[:, None, None]
    return pairs_of(x, x + 2 * centred.roll(1, 1).abs(), images - 40)


def test_steps_and_spare_channels_find_what_is_not_linear(cpu):
    one = Fitting(nets(2, hidden=6), planted(), Budget(steps=60, batch_size=32), cpu).run()
    assert one.instabilities()[0] < 0.7 * one.beside[False].reference.instability
    assert one.compared[0]["taken"] is False and (one.trans_nets[0].p > 0.1).all()


def test_a_budget_in_steps_goes_on_where_it_stopped(cpu):
    """To the bit, in the middle of the schedule,
    and its last epoch is as short as the budget says.
    """
    budget, pairs = Budget(steps=25, batch_size=16), planted(160)
    whole = Fitting(nets(3, hidden=3), pairs, budget, cpu).run()
    assert [len(rates) for rates in whole.rates] == [7, 7, 7, 4]
    torn = Fitting(nets(3, hidden=3), pairs, budget, cpu)
    torn.begin()
    for epoch, _ in torn.epochs():
        if epoch == 1:
            break
    state = torn.fit.state(2)
    again = Fitting(nets(3, hidden=3, seed=9), pairs, budget, cpu)
    again.trans_nets[0].load_state_dict(torn.trans_nets[0].state_dict())
    assert again.fit.restore(state, "g.pth.tar") == 2
    again.begin(start_epoch=2)
    assert [epoch for epoch, _ in again.epochs(2)] == [2, 3]
    for name, value in whole.trans_nets[0].state_dict().items():
        assert torch.equal(value, again.trans_nets[0].state_dict()[name]), name


def test_the_judges_train_nothing_but_the_last_layer(cpu):
    pairs = planted(160)
    one = Fitting(nets(3), pairs, Budget(steps=5), cpu)
    assert len(one.trained) == 108 and len(one.judges.dataset) == 12
    for others in (SOLVED, Budget(steps=5, solve=None), Budget(steps=0)):
        assert Fitting(nets(3), pairs, others, cpu).judges is None


def test_errors_of_an_epoch_are_shares_of_the_targets_variance(cpu):
    one = Fitting(nets(2), planted(), Budget(steps=3), cpu)
    one.begin()
    ((_, metrics),) = one.epochs()
    of_one = {name.removeprefix("0."): value for name, value in metrics.items()}
    share = of_one["MSE"] / float(one.trans_nets[0].target_std) ** 2
    assert f"fitted images {share:.4f}" in one.words(0, of_one)
    assert "held-out 0.5000" in one.words(0, of_one | {"val_instability": 0.5})


def test_the_end_of_a_fit_is_looked_for_among_the_fitted_images(cpu, capsys):
    pairs = planted()

    def make(hidden):
        (net,) = nets(2, hidden=hidden)
        return net

    found = converge(make, pairs, Budget(steps=4, batch_size=32), cpu, hidden=3, tolerance=10.0)
    assert (found.steps, found.hidden, found.state) == (4, 3, AT_END)
    assert [(trial.steps, trial.hidden) for trial in found.trials] == [(4, 3), (8, 3), (4, 6)]
    assert all(trial.low < trial.error < trial.high for trial in found.trials)
    inside = pairs.inside()
    assert len(inside.fitted) == 128 and len(inside.unseen.dataset) == 32
    assert not set(inside.fitted.tolist()) & set(inside.unseen.dataset.indices)
    assert capsys.readouterr().out.count("of the variance of the others is left") == 3
