import dataclasses

import pytest
import torch

from models.trans_net import TransNet
from utils import checkpoint
from utils.errors import InputError
from utils.training.engine import Fit
from utils.training.family import Family, Member, of_member, part_of, restore


def family_of(*depths, seed=0):
    torch.manual_seed(seed)
    return [TransNet(4, 4, layers) for layers in depths]


def fit_of(nets, cpu, kind=torch.optim.Adam):
    family = Family(nets)
    optimizer = kind([p for p in family.parameters() if p.requires_grad], lr=0.01)
    return Fit(family, family, optimizer, cpu.grad_scaler(), cpu)


def take_steps(fit, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(3, 4, 5, 5, generator=generator)
        fit.optimizer.zero_grad()
        outputs = fit.net(x)
        sum((output - x.roll(1, 1)).square().mean() for output in outputs).backward()
        fit.optimizer.step()


def member(net, path, state=None, resumed=None):
    return Member(net, path, {"layers": len(net.linear)}, torch.zeros(net.order), resumed, state or {})


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_together_is_as_alone(cpu, kind):
    """The gradient of one member knows nothing of the others, and the optimisers work element by element."""
    together, alone = family_of(1, 3), family_of(1, 3)
    take_steps(fit_of(together, cpu, kind), 4)
    for net in alone:
        take_steps(fit_of([net], cpu, kind), 4)
    for first, second in zip(together, alone):
        for ours, theirs in zip(first.parameters(), second.parameters()):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_saved_member_goes_on_alone_and_together(cpu, tmp_path):
    nets = family_of(2, 3)
    fit = fit_of(nets, cpu)
    members = [member(net, tmp_path / f"checkpoint_L3_layers{len(net.linear)}.pth.tar") for net in nets]
    take_steps(fit, 3)
    for one in members:
        one.save(fit, 3, keep=True, mse=0.5)
    take_steps(fit, 2, seed=9)

    again = family_of(2, 3, seed=5)
    resumed = []
    for net, one in zip(again, members):
        state = checkpoint.load(one.path)
        net.load_state_dict(state["state_dict"])
        resumed.append(member(net, one.path, state, one.path))
    fit_again = fit_of(again, cpu)
    assert restore(resumed, fit_again) == 3
    take_steps(fit_again, 2, seed=9)
    for first, second in zip(nets, again):
        assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values()))
    state = checkpoint.load(tmp_path / "checkpoint_L3_layers3_epoch3.pth.tar")
    assert (state["epoch"], state["mse"], state["settings"], state["history"]) == (3, 0.5, {"layers": 3}, [])
    assert state["trans_net"] == nets[1].config


def test_members_of_different_epochs_do_not_go_on_together(cpu, tmp_path):
    nets = family_of(1, 2)
    fit = fit_of(nets, cpu)
    take_steps(fit, 1)
    states = [part_of(fit, net).state(epoch) for epoch, net in enumerate(nets, start=1)]
    members = [member(net, tmp_path / "g", state, tmp_path / "g") for net, state in zip(nets, states)]
    with pytest.raises(InputError, match=r"after different epochs \(\[1, 2\]\)"):
        restore(members, fit)
    assert restore([member(net, tmp_path / "g") for net in nets], fit) == 0


def test_other_processes_save_nothing(cpu, tmp_path):
    (net,) = family_of(2)
    fit = fit_of([net], dataclasses.replace(cpu, rank=1))
    member(net, tmp_path / "g.pth.tar").save(fit, 1)
    assert not list(tmp_path.iterdir())


def test_the_metrics_of_one_member():
    metrics = {"Loss": 3.0, "0.MSE": 1.0, "1.MSE": 2.0, "1.p1": 0.5, "11.MSE": 9.0}
    assert of_member(metrics, 1) == {"MSE": 2.0, "p1": 0.5}
