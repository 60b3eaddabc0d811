import pytest

from consistency.budget import Budget


def test_a_budget_in_steps_is_cut_into_epochs():
    rates = Budget(steps=10, lr=1.0).rates(4)
    assert [len(of_epoch) for of_epoch in rates] == [4, 4, 2]
    assert Budget(steps=0).rates(4) == []
    assert Budget(steps=10).steps_of(640) == 10


def test_a_budget_in_epochs_has_a_rate_for_each():
    budget = Budget(optim="Adam", lr=1.0, steps=None, epochs=3, logspace=2)
    assert budget.rates(4) == [[pytest.approx(10.0**-k)] for k in range(3)]
    assert budget.steps_of(130) == 9
    assert Budget(steps=None, epochs=None).rates(4) == []


@pytest.mark.parametrize(
    ("images", "processes", "batches"), [(128, 1, 2), (129, 1, 3), (129, 2, 3), (7, 64, 1)]
)
def test_batches_are_counted_as_the_loader_makes_them(images, processes, batches):
    assert Budget(batch_size=64).batches(images, processes) == batches


def test_what_a_checkpoint_records_is_a_budget_again():
    settings = {
        "optim": "Adam",
        "lr": 0.1,
        "momentum": 0.9,
        "epochs": 5,
        "solve": None,
        "alpha": [1],
        "layers": 2,
    }
    found = Budget.of(settings, print_freq=3)
    assert (found.optim, found.lr, found.epochs, found.steps, found.solve, found.print_freq) == (
        "Adam",
        0.1,
        5,
        None,
        None,
        3,
    )
    assert Budget.of(settings | {"steps": 7}, steps=9).steps == 9
