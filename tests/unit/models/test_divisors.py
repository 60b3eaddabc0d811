import pytest
import torch

from models.divisors import EPS, BatchScale, InstanceScale


def maps(images, channels, size=(6, 6), seed=0):
    """Feature maps (N, C, H, W) whose channels differ in magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linspace(0.5, 3, channels)[:, None, None] * torch.randn(
        images, channels, *size, generator=generator
    )


def test_the_instance_divisor_is_each_maps_unbiased_deviation():
    h = maps(3, 4, (2, 5))
    divisor = InstanceScale()(h)
    assert divisor.shape == (3, 4, 1, 1)
    one = h[1, 2].double()
    expected = ((one - one.mean()).square().sum() / 9).sqrt() + 1e-5
    assert float(divisor[1, 2]) == pytest.approx(float(expected), rel=1e-6)
    assert InstanceScale()(h.bfloat16()).dtype == torch.float32


def test_the_instance_divisor_of_a_single_value_is_one():
    assert torch.equal(
        InstanceScale()(torch.tensor([[[[5.0]]], [[[-3.0]]]])), torch.ones(2, 1, 1, 1)
    )


def test_batch_statistics_begin_with_the_first_batch_and_then_follow_slowly():
    scale, first, second = BatchScale(4), maps(5, 4, seed=1), 3 * maps(5, 4, seed=2)
    std = [batch.std((0, 2, 3)) for batch in (first, second)]
    torch.testing.assert_close(scale.train()(first)[0, :, 0, 0], std[0] + EPS)
    torch.testing.assert_close(scale.running_std, std[0])
    torch.testing.assert_close(scale(second)[0, :, 0, 0], std[1] + EPS)
    torch.testing.assert_close(scale.running_std, 0.9 * std[0] + 0.1 * std[1])
    assert int(scale.batches) == 2
    running = scale.running_std.clone()
    torch.testing.assert_close(scale.eval()(first)[0, :, 0, 0], running, rtol=0, atol=0)
    assert torch.equal(scale.running_std, running)
