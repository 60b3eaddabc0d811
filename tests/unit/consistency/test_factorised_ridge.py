import numpy as np
import pytest
import torch

from consistency import factorised_ridge
from consistency.factorised_ridge import Reference, Targets, channel_means


def maps(images, channels, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, channels, 2, 2, generator=generator, dtype=torch.float64) + 1


def rows(part, mean):
    return (part - mean[:, None, None]).flatten(2).mT.flatten(0, 1)  # (N·U, C)


@pytest.mark.parametrize("images", [20, 3])  # 12 rows of 15 columns: the dual form
def test_one_factor_solves_every_pairing(images, monkeypatch):
    monkeypatch.setattr(factorised_ridge, "CHUNK_BYTES", 8 * 4 * 15 * 2)  # a few images
    x, target = maps(images, 15, 0), maps(images, 6, 1)
    x_mean, target_mean = (channel_means(part, "cpu") for part in (x, target))
    torch.testing.assert_close(x_mean, x.mean((0, 2, 3)))
    reference = Reference(x, x_mean, 0.2, 1)
    assert reference.dual == (images == 3)
    inverses = torch.stack([torch.arange(images), torch.arange(images).roll(1)])
    found = reference.solve(Targets(target, target_mean), inverses).coefficients
    gram = rows(x, x_mean).T @ rows(x, x_mean)
    penalised = gram + 0.2 * gram.trace() / 15 * torch.eye(15)
    for solution, inverse in zip(found.split(6, dim=1), inverses):
        expected = torch.linalg.solve(
            penalised, rows(x, x_mean).T @ rows(target[inverse], target_mean)
        )
        torch.testing.assert_close(solution, expected)


def test_rows_and_squares_are_of_the_images_asked_for(tmp_path):
    target = maps(5, 6, 1)
    np.save(tmp_path / "target.npy", target.numpy())
    mean = channel_means(target, "cpu")
    for kind in (target, np.load(tmp_path / "target.npy", mmap_mode="r")):
        targets = Targets(kind, mean)
        found = targets.rows(torch.tensor([[3, 0], [4, 4]]))
        torch.testing.assert_close(
            found,
            torch.cat([rows(target[[3, 0]], mean), rows(target[[4, 4]], mean)], dim=1),
            rtol=0,
            atol=1e-15,
        )
        torch.testing.assert_close(
            targets.squares(), rows(target, mean).square().sum(1).unflatten(0, (5, 4)).sum(1)
        )


@pytest.mark.parametrize("weight", [1e-8, None])
def test_channels_that_rounding_makes_negative_directions_are_fitted_all_the_same(weight):
    """In float32, sums of copied channels are not positive definite to 1e-6 of their mean."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 8, 4, 4, generator=generator).repeat(1, 12, 1, 1)
    x = x * torch.linspace(0.1, 1, 96)[:, None, None]
    mean = channel_means(x, "cpu")
    reference, targets = Reference(x, mean, weight, 3), Targets(x, mean)
    everything = torch.arange(len(x))[None]
    solutions = reference.solve(targets, everything)
    errors = reference.errors(solutions.coefficients, x, targets, everything)
    # A chosen weight is as large as the rounding asks for
    bound = 1e-6 if weight is None else 1e-2
    assert float(errors.sum() / targets.squares().sum()) < bound


@pytest.mark.parametrize("room", [0, 8 * 30 * 4 * 27, 1 << 29])  # of none, of x alone, of both
def test_patches_that_are_kept_give_what_unfolded_ones_give(room, monkeypatch):
    monkeypatch.setattr(factorised_ridge, "PATCH_BYTES", room)
    monkeypatch.setattr(factorised_ridge, "CHUNK_BYTES", 8 * 4 * 27 * 4)  # a few images
    x, held_out, target = maps(30, 3, 0), maps(20, 3, 1), maps(30, 2, 2)
    reference = Reference(x, channel_means(x, "cpu"), None, 3)
    targets = Targets(target, channel_means(target, "cpu"))
    for _ in range(2):
        solution = reference.solve(targets, torch.arange(30)[None]).coefficients
        blocks = [rows for _, rows in reference.patches(held_out, 0)]
    # By hand: columns of 3 × 3 neighbours, zeros around.
    unfolded = [
        torch.nn.functional.unfold(part - channel_means(x, "cpu")[:, None, None], 3, padding=1)
        for part in (x, held_out)
    ]
    columns, held_columns = (part.mT.flatten(0, 1) for part in unfolded)
    assert torch.equal(torch.cat(blocks), held_columns)
    # The weight leaves least of every fifth image, by a solution of the others.
    judges = torch.arange(30).repeat_interleave(4) % 5 == 4
    wanted = rows(target, targets.mean)

    def solve(chosen, weight, scale):
        gram = columns[chosen].T @ columns[chosen]
        return torch.linalg.solve(
            gram + weight * scale * torch.eye(27), columns[chosen].T @ wanted[chosen]
        )

    scale = float(columns[~judges].square().sum()) / 27
    left = {
        weight: float((wanted - columns @ solve(~judges, weight, scale))[judges].square().sum())
        for weight in factorised_ridge.WEIGHTS
    }
    chosen = min(left, key=left.get)
    whole = solve(torch.ones(120, dtype=bool), chosen, float(columns.square().sum()) / 27)
    torch.testing.assert_close(solution, whole)
