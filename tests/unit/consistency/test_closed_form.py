import pytest
import torch

from consistency import closed_form
from consistency.closed_form import linear_reference, solve
from consistency.reconstruction import instabilities, set_standards
from models.pair import read_stored
from models.trans_net import TransNet
from tests.unit.training.pairs import loader_of, maps


@pytest.fixture
def mixed():
    """Channels permuted and mixed: a linear map that one layer has to find;
    120 pairs to fit, 40 held out.
    """
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(3)))[0]
    x = maps(160)
    target = torch.einsum("dc,nchw->ndhw", mixing, x)[:, torch.randperm(6)] + 5
    return loader_of(x[:120], target[:120]), loader_of(x[120:], target[120:])


def linear(channels=6):
    return TransNet(channels, channels, 1, standardise=True)


def test_a_linear_map_is_found_by_one_layer(mixed, cpu):
    fitted, unseen = mixed
    net = linear()
    set_standards([net], fitted, read_stored, cpu)
    reference = linear_reference(net, fitted, unseen, read_stored, cpu)
    assert reference.instability < 1e-6 and reference.measured_on == "held-out images"


@pytest.mark.parametrize("free", [1e12, 0])
def test_judges_choose_the_ridge_weight_and_are_fitted_too(cpu, monkeypatch, free):
    """Pure noise: the images that are fitted ask for no ridge where they judge themselves;
    others ask for all of it.
    """
    monkeypatch.setattr(closed_form, "free_bytes", lambda _: free)
    x, target = maps(40), maps(40, seed=3)
    net = linear()
    set_standards([net], loader_of(x, target), read_stored, cpu)
    (found,) = solve(
        [net], loader_of(x[:30], target[:30]), read_stored, cpu, loader_of(x[30:], target[30:])
    )
    assert found.ridge == max(found.errors) and found.error > 0.9
    weight = net.linear[0].weight.clone()
    (alone,) = solve([net], loader_of(x[:30], target[:30]), read_stored, cpu)
    assert alone.ridge != found.ridge or not torch.equal(net.linear[0].weight, weight)


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
