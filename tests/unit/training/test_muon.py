"""Muon: updates of matrices are orthogonal, and everything else is Adam's."""

import pytest
import torch
from torch import nn

from utils.training.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(6, 6), (4, 36), (40, 8)])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_every_direction_of_an_update_is_as_long(shape, scale):
    lengths = torch.linspace(1, 4, shape[0])[:, None]
    matrix = scale * lengths * torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape and found.dtype == matrix.dtype
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    assert values.max() > 2 * values.min()
    lengths = (left.T @ found @ right.T).diagonal()
    assert lengths.min() > 0.5 and lengths.max() < 1.3
    # Nothing but U Vᵀ
    assert torch.linalg.svdvals(found).sum() == pytest.approx(float(lengths.sum()), rel=0.02)


def test_no_gradient_is_no_update():
    assert not orthogonalised(torch.zeros(3, 5)).any()


def gradients(*shape):
    return torch.randn(5, *shape, generator=torch.Generator().manual_seed(1))


def test_a_matrix_steps_as_pytorchs_muon_does():
    ours, theirs = (
        nn.Parameter(torch.randn(6, 18, generator=torch.Generator().manual_seed(2)))
        for _ in range(2)
    )
    mine = Muon([ours], 0.02, momentum=0.9, weight_decay=0.1)
    plain = torch.optim.Muon(
        [theirs],
        0.02,
        momentum=0.9,
        weight_decay=0.1,
        adjust_lr_fn="match_rms_adamw",
        nesterov=True,
    )
    for gradient in gradients(6, 18):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)
    assert (ours - theirs).abs().max() < 0.02 * (ours - torch.zeros_like(ours)).abs().max()


def test_a_convolution_is_a_matrix_of_its_output_channels():
    weight = nn.Parameter(torch.zeros(4, 3, 3, 3))
    flat = nn.Parameter(torch.zeros(4, 27))
    for gradient in gradients(4, 3, 3, 3):
        weight.grad, flat.grad = gradient.clone(), gradient.flatten(1).clone()
        Muon([weight]).step()
        Muon([flat]).step()
    assert torch.equal(weight.flatten(1), flat)


def test_a_vector_steps_as_adam_does():
    ours, theirs = (nn.Parameter(torch.ones(7)) for _ in range(2))
    mine = Muon([ours], 0.02, adam_share=0.15, weight_decay=0.5)  # which is that of matrices alone
    plain = torch.optim.Adam([theirs], 0.003)
    for gradient in gradients(7):
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_what_has_no_gradient_stays():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([weight], weight_decay=0.5)
    assert optimizer.step(lambda: 3.0) == 3.0
    assert torch.equal(weight, torch.ones(2, 2))
