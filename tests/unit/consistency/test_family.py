import dataclasses

import pytest
import torch

from consistency.family import Family, Member, of_member, part_of, restore, save
from models.trans_net import TransNet
from utils import checkpoint
from utils.provenance import Provenance
from utils.training.engine import Fit, make_optimizer


def family_of(*depths, seed=0):
    torch.manual_seed(seed)
    return [TransNet(4, 4, layers) for layers in depths]


def fit_of(nets, cpu, kind="Adam", backwards=None):
    family = Family(nets, backwards)
    optimizer = make_optimizer(kind, family.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    return Fit(family, family, optimizer, cpu.grad_scaler(), cpu)


def take_steps(fit, count, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(3, 4, 5, 5, generator=generator)
        fit.optimizer.zero_grad()
        target = x.roll(1, 1)
        goals = [x if back else target for back in fit.model.backwards]
        outputs = fit.net(x, target)
        sum((output - goal).square().mean() for output, goal in zip(outputs, goals)).backward()
        fit.optimizer.step()


def member(net, path, state=None, resumed=None):
    settings, source = {"layers": len(net.linear)}, Provenance(dataset="digits", arch="resnet18")
    return Member(net, path, settings, torch.zeros(net.order), resumed, state or {}, False, source)


@pytest.mark.parametrize("kind", ["Adam", "SGD", "Muon"])
def test_together_is_as_alone(cpu, kind):
    """The gradient of one member knows nothing of the others,
    nor does the step of one weight of other weights.
    """
    together, alone = family_of(1, 3, 3), family_of(1, 3, 3)
    backwards = [False, True, False]
    take_steps(fit_of(together, cpu, kind, backwards), 4)
    for net, back in zip(alone, backwards):
        take_steps(fit_of([net], cpu, kind, [back]), 4)
    for first, second in zip(together, alone):
        assert all(
            torch.equal(ours, theirs)
            for ours, theirs in zip(first.parameters(), second.parameters())
        )


def test_a_member_that_goes_backwards_reads_the_target():
    there, back = family_of(1, 2)
    x, target = torch.randn(2, 3, 4, 5, 5)
    assert all(
        torch.equal(*pair)
        for pair in zip(Family([there, back], [False, True])(x, target), (there(x), back(target)))
    )


def test_a_saved_member_goes_on_alone_and_together(cpu, tmp_path):
    nets = family_of(2, 3)
    fit = fit_of(nets, cpu)
    members = [
        member(net, tmp_path / f"checkpoint_L3_layers{len(net.linear)}.pth.tar") for net in nets
    ]
    take_steps(fit, 3)
    save(members, fit, 3, [{"mse": 0.5}] * 2, copies=True)
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
        assert all(
            torch.equal(a, b)
            for a, b in zip(first.state_dict().values(), second.state_dict().values())
        )
    state = checkpoint.load(tmp_path / "checkpoint_L3_layers3_epoch3.pth.tar")
    assert (state["epoch"], state["mse"], state["settings"], state["history"]) == (
        3,
        0.5,
        {"layers": 3},
        [],
    )
    assert state["trans_net"] == nets[1].config
    assert (state["arch"], state["source"]) == ("resnet18", resumed[1].source.to_record())


def test_a_share_of_an_optimiser_steps_as_the_whole_does(cpu):
    nets = family_of(1, 2)
    fit = fit_of(nets, cpu)
    take_steps(fit, 1)
    part = part_of(fit, nets[1])
    (whole_group,), (group,) = fit.optimizer.param_groups, part.optimizer.param_groups
    assert group["fused"] is True
    assert {**group, "params": None} == {**whole_group, "params": None}
    assert all(part.optimizer.state[p] is fit.optimizer.state[p] for p in nets[1].parameters())


def test_other_processes_save_nothing(cpu, tmp_path):
    (net,) = family_of(2)
    fit = fit_of([net], dataclasses.replace(cpu, rank=1))
    save([member(net, tmp_path / "g.pth.tar")], fit, 1, [{}])
    assert not list(tmp_path.iterdir())


def test_the_metrics_of_one_member():
    metrics = {"Loss": 3.0, "0.MSE": 1.0, "1.MSE": 2.0, "1.p1": 0.5, "11.MSE": 9.0}
    assert of_member(metrics, 1) == {"MSE": 2.0, "p1": 0.5}
