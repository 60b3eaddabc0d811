import itertools
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge

from consistency.ridge import RIDGES, NormalEquations, bytes_needed, descend
from tests.mistakes import refused


def maps(images, channels, size=(6, 5), seed=0):
    """Maps (N, C, H, W) of channels that depend on each other and differ in size;
    neighbours resemble each other.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(channels, channels, generator=generator) * torch.linspace(0.2, 2, channels)
    x = torch.einsum(
        "oc,nchw->nohw", mixing, torch.randn(images, channels, *size, generator=generator)
    )
    return x + 0.5 * F.avg_pool2d(x, 3, 1, 1)


def accumulated(inputs, targets, kernel_size=3, folds=5, sizes=7):
    equations = NormalEquations(inputs.shape[1], targets.shape[1], kernel_size, folds)
    for part in torch.arange(len(inputs)).split(sizes):
        equations.add(inputs[part], targets[part], part)
    return equations


def patches(inputs, kernel_size):
    """Rows of an image's patches, float64 (N, H·W, C·k²)."""
    return F.unfold(inputs.double(), kernel_size, padding=kernel_size // 2).transpose(1, 2)


def by_scikit_learn(inputs, targets, kernel_size, share, constant=False):
    """The weights (C', C, k,
    k) and constants (C',) of scikit-learn's Ridge on all unfolded patches.
    """
    rows = patches(inputs, kernel_size).flatten(0, 1).numpy()
    wanted = targets.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    fitted = Ridge(
        alpha=share * (rows**2).sum(0).mean(), fit_intercept=constant, solver="cholesky"
    ).fit(rows, wanted)
    weight = fitted.coef_.reshape(targets.shape[1], inputs.shape[1], kernel_size, kernel_size)
    return weight, fitted.intercept_ * np.ones(targets.shape[1])


def same(found, expected, tolerance=1e-8):
    assert (
        np.abs(np.asarray(found) - np.asarray(expected)).max()
        <= tolerance * np.abs(np.asarray(expected)).max()
    )


# --- the sums


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("size", [(6, 5), (3, 8), (2, 2), (1, 4), (1, 1)])
def test_the_sums_are_those_of_unfolded_patches(kernel_size, size):
    """Correlations less border strips: to 1e-12, on maps that are smaller than the kernel too."""
    inputs, targets = maps(11, 3, size), maps(11, 2, size, seed=1)
    equations = accumulated(inputs, targets, kernel_size, folds=3)
    chosen = torch.tensor([1.0, 0, 1], dtype=torch.float64)
    kept = [image for image in range(11) if image % 3 != 1]
    rows = patches(inputs[kept], kernel_size).flatten(0, 1)
    rows = rows.unflatten(1, (3, -1)).transpose(1, 2).flatten(1)  # offsets first
    wanted = targets[kept].double().permute(0, 2, 3, 1).flatten(0, 2)
    same(equations._gram(chosen, False), rows.T @ rows, 1e-12)
    same(equations._cross(chosen, False), rows.T @ wanted, 1e-12)
    rows = F.pad(rows, (0, 1), value=1)
    same(equations._gram(chosen, True), rows.T @ rows, 1e-12)
    same(equations._cross(chosen, True), rows.T @ wanted, 1e-12)
    same(chosen @ equations.energy, wanted.square().sum(), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_taken_in_float64(dtype):
    """Products of the stored numbers lose nothing:
    the sums are those of the same numbers as float64.
    """
    inputs = maps(4, 3).to(dtype)
    found = accumulated(inputs, inputs)
    exact = accumulated(inputs.double(), inputs.double())
    assert all(torch.equal(one, other) for one, other in zip(found.sums(), exact.sums()))
    assert {total.dtype for total in found.sums()} == {torch.float64}


def test_batches_and_accumulators_add_up():
    inputs, targets = maps(23, 3), maps(23, 2, seed=1)
    whole = accumulated(inputs, targets, sizes=23)
    merged = NormalEquations(3, 2, 3)
    for images in (torch.arange(0, 23, 2), torch.arange(1, 23, 2)):
        part = NormalEquations(3, 2, 3)
        for batch in images.split(4):
            part.add(inputs[batch], targets[batch], batch)
        merged.merge(pickle.loads(pickle.dumps(part)))
    for one, other in zip(merged.sums(), whole.sums()):
        same(one, other, 1e-13)
    same(whole.energy[3], targets[3::5].double().square().sum(), 1e-13)


def test_sums_of_all_processes_are_added_in_place():
    inputs, targets = maps(10, 3), maps(10, 2, seed=1)
    equations = accumulated(inputs, targets)
    for total in equations.sums():
        total.mul_(2)  # as an all-reduce of two processes that saw the same
    assert equations.energy.sum() == pytest.approx(2 * float(targets.double().square().sum()))
    same(equations.solve().weight, accumulated(inputs, targets).solve().weight, 1e-10)


# --- the weights


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("share", [1e-6, 1e-2, 1.0])
@pytest.mark.parametrize("constant", [False, True])
def test_the_weights_are_scikit_learns(kernel_size, share, constant):
    inputs, targets = 0.3 + maps(40, 4), 2 + maps(40, 3, seed=1)
    solution = accumulated(inputs, targets, kernel_size).solve([share], constant=constant)
    assert solution.weight.shape == (3, 4, kernel_size, kernel_size)
    assert solution.weight.dtype == torch.float64
    assert solution.ridge == share
    weight, intercept = by_scikit_learn(inputs, targets, kernel_size, share, constant)
    same(solution.weight, weight)
    same(solution.constant, intercept)


@pytest.mark.parametrize("constant", [False, True])
def test_the_held_out_error_is_that_of_refitting_without_the_fold(constant):
    inputs = 0.3 + maps(21, 3)
    targets = 2 + F.conv2d(inputs, maps(2, 3, (3, 3), seed=4), padding=1) + 2 * maps(21, 2, seed=1)
    shares = [1e-3, 1e-1, 1e1]
    left = dict.fromkeys(shares, 0.0)
    images = torch.arange(21)
    for fold in range(4):
        held, rest = images % 4 == fold, images % 4 != fold
        for share in shares:
            fitted = by_scikit_learn(inputs[rest], targets[rest], 3, share, constant)
            weight, intercept = map(torch.from_numpy, fitted)
            output = F.conv2d(inputs[held].double(), weight, intercept, padding=1)
            left[share] += float((targets[held].double() - output).square().sum())
    centred = targets.double() - constant * targets.double().mean((0, 2, 3), keepdim=True)
    expected = {share: value / float(centred.square().sum()) for share, value in left.items()}
    solution = accumulated(inputs, targets, folds=4).solve(shares, constant=constant)
    assert solution.errors == pytest.approx(expected, rel=1e-9)
    assert solution.ridge == min(expected, key=lambda share: expected[share])
    assert solution.error == solution.errors[solution.ridge]


def test_a_convolution_is_found():
    inputs, weight = maps(60, 4), maps(3, 4, (3, 3), seed=2)
    solution = accumulated(inputs, F.conv2d(inputs.double(), weight.double(), padding=1)).solve()
    assert solution.error < 1e-12
    same(solution.weight, weight, 1e-5)


def test_noise_asks_for_a_large_ridge():
    """Few images of pure noise have nothing to predict: the best weights are nearly none."""
    inputs, targets = (
        maps(10, 6, (3, 3)),
        torch.randn(10, 2, 3, 3, generator=torch.Generator().manual_seed(3)),
    )
    solution = accumulated(inputs, targets).solve()
    assert solution.ridge >= 10
    assert 0.9 < solution.error < 1.1
    assert solution.errors[1e-2] > solution.error


# --- what is nearly singular


def test_dead_channels_get_no_weight():
    inputs, targets = maps(20, 4), maps(20, 3, seed=1)
    inputs[:, 1], targets[:, 2] = 0, 0
    solution = accumulated(inputs, targets).solve()
    assert solution.weight.isfinite().all()
    assert solution.weight[:, 1].abs().max() == solution.weight[2].abs().max() == 0
    assert solution.weight[0].abs().max() > 0


def test_copies_of_a_channel_and_more_unknowns_than_data_are_solved():
    inputs, targets = maps(5, 8, (2, 2)), maps(5, 2, (2, 2), seed=1)
    inputs[:, 4:] = inputs[:, :4]
    solution = accumulated(inputs, targets).solve(RIDGES[:1])  # the smallest of all
    assert solution.weight.isfinite().all()
    same(solution.weight[:, 4:], solution.weight[:, :4], 1e-4)


@pytest.mark.parametrize("images", [0, 1, 6])
@pytest.mark.parametrize("constant", [False, True])
def test_features_of_zeros_are_no_trouble(images, constant):
    solution = accumulated(torch.zeros(images, 3, 4, 4), torch.zeros(images, 2, 4, 4)).solve(
        constant=constant
    )
    assert not solution.constant.any()
    assert torch.equal(solution.weight, torch.zeros(2, 3, 3, 3, dtype=torch.float64))
    assert solution.error == 0


def test_what_is_not_finite_is_refused():
    inputs = maps(6, 3)
    inputs[2, 1, 0, 0] = torch.nan
    with refused("NaN"):
        accumulated(inputs, maps(6, 2)).solve()


@pytest.mark.parametrize(("kernel_size", "folds"), [(2, 5), (3, 1)])
def test_even_kernels_and_single_folds_are_refused(kernel_size, folds):
    with refused(kernel_size, folds, kind=ValueError):
        NormalEquations(2, 2, kernel_size, folds)


# --- the walk over λ


@pytest.mark.parametrize("best", RIDGES)
def test_the_walk_ends_in_the_valley(best):
    tried = []

    def error_of(share):
        tried.append(share)
        return abs(np.log10(share / best))

    found, errors = descend(error_of, RIDGES)
    assert found == best
    assert len(tried) == len(set(tried)) == len(errors)
    assert len(tried) <= 3 + abs(round(np.log10(best / RIDGES[len(RIDGES) // 2])))


def test_a_plain_is_not_walked_over():
    found, errors = descend(lambda _: 0.5, RIDGES)
    assert found == RIDGES[len(RIDGES) // 2]
    assert len(errors) == 3
    assert descend(lambda _: 0.5, [0.1]) == (0.1, {0.1: 0.5})


# --- memory


def peak_bytes(function):
    """The most bytes of tensors that are alive at one time while a function runs,
    as PyTorch counts them.
    """
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        function()
    events = [
        event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return max(
        itertools.accumulate(
            event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())
        )
    )


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "kernel_size"), [(24, 24, 3), (24, 4, 3), (24, 96, 1)]
)
def test_memory_is_said_before_it_is_taken(in_channels, out_channels, kernel_size):
    """At most so much, and not much less."""
    equations = accumulated(maps(6, in_channels), maps(6, out_channels), kernel_size)
    sums = sum(total.nbytes for total in equations.sums())
    said = bytes_needed(in_channels, out_channels, kernel_size)
    assert 0.8 * said < sums + peak_bytes(lambda: equations.solve([1e-2], constant=True)) <= said
