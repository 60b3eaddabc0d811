import pytest
import torch

from utils.training.schedules import (
    by_epoch,
    due,
    each_step,
    geometric,
    learning_rates,
    multistep,
    set_learning_rate,
    warm_restarts,
    warm_up,
    warm_up_and_cosine,
)


def test_steps_by_default():
    rates = learning_rates(0.01, 7, epoch_step=3, decay_factor=0.3)
    assert rates == pytest.approx([0.01] * 3 + [0.003] * 3 + [0.0009])


def test_decades_include_the_first_and_the_last_epoch():
    rates = learning_rates(1e-4, 5, logspace=2, epoch_step=1, decay_factor=0.1)
    assert rates == pytest.approx([1e-4, 1e-4 * 10**-0.5, 1e-5, 1e-5 * 10**-0.5, 1e-6])


def test_a_rate_rises_and_falls_by_half_a_cosine():
    rates = warm_up_and_cosine(0.02, 100)
    assert len(rates) == 100 and min(rates) > 0 and max(rates) == 0.02
    assert rates[:5] == pytest.approx([0.004, 0.008, 0.012, 0.016, 0.02])
    assert rates[5:] == sorted(rates[5:], reverse=True)
    # Half way down at half the time
    assert rates[5 + 47] + rates[5 + 48] == pytest.approx(0.02, rel=0.02)
    assert rates[-1] < 2e-5
    assert [len(warm_up_and_cosine(1, steps)) for steps in (0, 1, 2)] == [0, 1, 2]


def test_one_cycle_spans_all_epochs():
    cycle = by_epoch([0.4, 0.1, 0.1], 5, one_cycle=0.2)
    assert [len(rates) for rates in cycle] == [5, 5, 5]
    assert cycle[0] + cycle[1] + cycle[2] == warm_up_and_cosine(0.4, 15, 0.2)
    assert max(map(max, cycle)) == cycle[0][2] == pytest.approx(0.4)
    assert by_epoch([0.4, 0.1], 3) == [[0.4] * 3, [0.1] * 3]


@pytest.mark.parametrize("logspace", [0, 2])
@pytest.mark.parametrize("epochs", [0, 1])
def test_few_epochs_have_as_many_rates(logspace, epochs):
    assert learning_rates(0.5, epochs, logspace=logspace) == [0.5] * epochs


def test_geometric_goes_by_one_factor():
    assert geometric(1, 16, 5) == pytest.approx([1, 2, 4, 8, 16])
    assert geometric(0.5, 0.5, 3) == [0.5, 0.5, 0.5]
    assert geometric(0, 0, 2) == [0, 0]
    assert geometric(1, 16, 1) == [1]
    assert geometric(1, 16, 0) == []


def test_what_is_due_after_which_epoch():
    assert [epoch for epoch in range(10) if due(epoch, 4, 10)] == [3, 7, 9]
    assert [epoch for epoch in range(3) if due(epoch, 1, 3)] == [0, 1, 2]
    assert [epoch for epoch in range(3) if due(epoch, 100, 3)] == [2]


def test_every_group_gets_the_rate_or_its_own():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([weights[0]], lr=1.0)
    optimizer.add_param_group({"params": [weights[1]], "lr": 3.0})
    set_learning_rate(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    set_learning_rate(optimizer, 0.5, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.125]
    with pytest.raises(ValueError):
        set_learning_rate(optimizer, 1, 2, 3)


def test_multistep_falls_at_its_milestones():
    assert multistep(0.5, 6, [1, 4]) == pytest.approx([0.5, 0.05, 0.05, 0.05, 0.005, 0.005])
    assert multistep(0.5, 2, [7]) == [0.5, 0.5]


def test_warm_restarts_double_their_cycles():
    rates = warm_restarts(0.2, 7, 2)
    assert rates == pytest.approx(
        [0.2, 0.1, 0.2, 0.1 * (1 + 0.5**0.5), 0.1, 0.1 * (1 - 0.5**0.5), 0.2]
    )


def test_a_warm_up_rises_from_step_to_step():
    assert warm_up(0.8, 0, 2, 4) == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert warm_up(0.8, 1, 2, 4) == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert warm_up(0.8, 2, 2, 4) == []


def test_each_step_has_its_rate():
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(1)
    with each_step(optimizer, [0.25, 0.5]):
        optimizer.step()
        assert weight.item() == -0.25
        optimizer.step()
        assert weight.item() == -0.75
    optimizer.step()
    assert weight.item() == -1.25  # the last rate stays, the hook does not
    with each_step(optimizer, []):
        optimizer.step()
    assert weight.item() == -1.75
