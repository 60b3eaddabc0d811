import pytest
import torch
import torch.nn.functional as F

from consistency.conjugate_gradients import PassesOverData
from consistency.ridge import NormalEquations
from tests.mistakes import refused


def maps(images, channels, seed=0):
    """Maps (N, C, 5, 4) of channels that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator)
    return torch.einsum(
        "oc,nchw->nohw", mixing, torch.randn(images, channels, 5, 4, generator=generator)
    )


def passes(inputs, targets, kernel_size=3, seen=None, **options):
    shape = (targets.shape[1], inputs.shape[1], kernel_size, kernel_size)

    def batches():
        if seen is not None:
            seen.append(len(inputs))
        for part in torch.arange(len(inputs)).split(4):
            yield inputs[part], targets[part], part

    return PassesOverData(batches, shape, **options)


def by_cholesky(inputs, targets, kernel_size=3, **options):
    equations = NormalEquations(inputs.shape[1], targets.shape[1], kernel_size, **options)
    equations.add(inputs, targets, torch.arange(len(inputs)))
    return equations


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
@pytest.mark.parametrize("constant", [False, True])
def test_the_weights_are_those_of_the_normal_equations(kernel_size, ridge, constant):
    inputs, targets = 1 + maps(20, 3), 2 + maps(20, 2, seed=1)
    found = passes(inputs, targets, kernel_size).solve([ridge], constant=constant, tolerance=1e-12)
    expected = by_cholesky(inputs, targets, kernel_size).solve([ridge], constant=constant)
    assert (found.weight - expected.weight).abs().max() <= 1e-8 * expected.weight.abs().max()
    assert (found.constant - expected.constant).abs().max() <= 1e-8 * expected.constant.abs().max()
    assert bool(found.constant.any()) == constant


def test_the_ridge_is_chosen_on_the_images_that_are_held_out():
    inputs = maps(24, 3)
    targets = F.conv2d(inputs, maps(2, 3, seed=4)[..., :3, :3], padding=1) + 6 * maps(24, 2, seed=1)
    ridges = [1e-3, 1e-1, 1e1]
    found = passes(inputs, targets, folds=4).solve(ridges)
    held = torch.arange(24) % 4 == 0
    for ridge, error in found.errors.items():
        weight = by_cholesky(inputs[~held], targets[~held]).solve([ridge]).weight
        left = targets[held].double() - F.conv2d(inputs[held].double(), weight, padding=1)
        assert error == pytest.approx(
            float(left.square().sum() / targets[held].double().square().sum()), rel=1e-8
        )
    assert found.ridge == min(found.errors, key=lambda ridge: found.errors[ridge])
    expected = by_cholesky(inputs, targets).solve([found.ridge]).weight
    assert (found.weight - expected).abs().max() <= 1e-8 * expected.abs().max()


def test_with_a_constant_the_error_is_that_about_the_mean():
    inputs, targets = maps(24, 3), 5 + maps(24, 2, seed=1)
    found = passes(inputs, targets).solve([1e-1], constant=True)
    held = torch.arange(24) % 5 == 0
    fitted = by_cholesky(inputs[~held], targets[~held]).solve([1e-1], constant=True)
    output = F.conv2d(inputs[held].double(), fitted.weight, fitted.constant, padding=1)
    wanted = targets[held].double()
    expected = (wanted - output).square().mean() / wanted.var((0, 2, 3), correction=0).mean()
    assert found.error == pytest.approx(float(expected), rel=1e-8)


def test_processes_add_their_sums_up():
    """Two processes that see the same: the weights are those of one, and every sum was shared."""
    inputs, targets = maps(20, 3), maps(20, 2, seed=1)
    seen: list[int] = []
    shared: list[torch.Size] = []

    def all_reduce(total):
        shared.append(total.shape)
        total *= 2

    both = passes(inputs, targets, seen=seen, all_reduce=all_reduce).solve([1e-2])
    alone = passes(inputs, targets).solve([1e-2])
    assert (both.weight - alone.weight).abs().max() <= 1e-8 * alone.weight.abs().max()
    assert both.error == pytest.approx(alone.error)
    assert len(seen) == len(shared)


def test_steps_are_bounded():
    seen: list[int] = []
    passes(maps(20, 3), maps(20, 2, seed=1), seen=seen).solve([1e-8], max_steps=3)
    # Two fits: right-hand side, diagonal, first residual, steps; what is held out
    assert len(seen) == 2 * (3 + 3) + 3


@pytest.mark.parametrize("dead", ["inputs", "targets", "both"])
def test_dead_features_get_no_weight(dead):
    inputs, targets = maps(10, 3), maps(10, 2, seed=1)
    inputs *= dead == "targets"
    targets *= dead == "inputs"
    found = passes(inputs, targets).solve()
    assert torch.equal(found.weight, torch.zeros(2, 3, 3, 3, dtype=torch.float64))
    assert found.error == pytest.approx(float(dead == "inputs"))


def test_what_is_not_finite_is_refused():
    inputs = maps(6, 3)
    inputs[2, 1, 0, 0] = torch.inf
    with refused("infinity"):
        passes(inputs, maps(6, 2)).solve()
