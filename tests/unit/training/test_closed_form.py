import pytest
import torch

from models.pair import read_stored
from models.trans_net import TransNet
from tests.unit.training.pairs import loader_of, maps
from utils.training import closed_form
from utils.training.closed_form import (
    Direction,
    instabilities_of,
    linear_reference,
    solve,
    solve_all,
    solve_or_linear,
)
from utils.training.reconstruction import instabilities, set_standards


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
    solve_or_linear(nets[1:], reference, fitted, read_stored, cpu, last=True)
    assert max(instabilities(nets, unseen, read_stored, cpu)) < 1e-6


def test_the_linear_layer_ends_a_fit_only_where_it_is_better(mixed, cpu):
    """Random branches add noise to x that W(0) cannot take out; between epochs they stay, to be trained."""
    fitted, unseen = mixed
    torch.manual_seed(0)
    net = TransNet(6, 6, 3, standardise=True)
    reference_net = linear()
    set_standards([net, reference_net], fitted, read_stored, cpu)
    reference = linear_reference(reference_net, fitted, unseen, read_stored, cpu)
    solve_or_linear([net], reference, fitted, read_stored, cpu, last=False)
    (between,) = instabilities([net], unseen, read_stored, cpu)
    assert between > 10 * reference.instability and (net.p > 0.4).all()
    solve_or_linear([net], reference, fitted, read_stored, cpu, last=True)
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
    monkeypatch.setattr(closed_form, "free_bytes", lambda _: 0)
    (by_passes,) = solve(nets[1:], fitted, read_stored, cpu)
    assert "conjugate gradients" in capsys.readouterr().out
    torch.testing.assert_close(by_passes.weight, by_sums.weight, rtol=1e-4, atol=1e-5)


def test_each_direction_is_solved_against_its_own_target(mixed, cpu):
    """A rotation has an inverse: both ways one layer finds all, and by another matrix."""
    fitted, unseen = mixed
    directions = [
        Direction([TransNet(6, 6, 2, standardise=True), linear()], fitted, unseen, read, cpu)
        for read in (read_stored, lambda *batch: read_stored(*batch)[::-1])
    ]
    assert directions[0].record is None
    for direction in directions:
        direction.begin(new=True, reference=True)
    before = instabilities_of(directions)
    assert len(before) == 4 and min(before) > 0.1
    solve_all(directions, last=True)
    assert max(instabilities_of(directions)) < 1e-6
    there, back = (direction.members[1].linear[0].weight[:, :, 1, 1] for direction in directions)
    assert not torch.allclose(there, back, atol=0.1)
    assert directions[1].record == directions[1].reference.record()
    assert directions[1].record["instability"] < 1e-6


def test_a_fit_that_goes_on_keeps_its_standards(mixed, cpu):
    fitted, _ = mixed
    direction = Direction([linear()], fitted, None, read_stored, cpu)
    direction.begin(new=False, reference=False)
    assert not direction.members[0].x_mean.any() and direction.linear.x_mean.any()
    assert direction.record is None and instabilities_of([direction]) == []
