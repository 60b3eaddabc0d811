from typing import Any

import pytest
import torch

from models.small.mobilenet import InvertedResidual, SeparableBlock, describe_mobilenet
from tests.mistakes import refused


def test_a_separable_block_mixes_channels_only_at_the_end():
    block = SeparableBlock(3, 5, 2).eval()
    x = torch.randn(1, 3, 8, 8)
    moved = x.clone()
    moved[:, 1] += 1
    inner, inner_moved = block.bn1(block.conv1(x)), block.bn1(block.conv1(moved))
    assert (inner != inner_moved).any((0, 2, 3)).tolist() == [False, True, False]
    assert torch.equal(block(x), block.bn2(block.conv2(inner.relu())).relu())
    assert block(x).shape == (1, 5, 4, 4)


@pytest.mark.parametrize(
    ("channels", "width", "stride", "adds"), [(4, 4, 1, True), (4, 6, 1, False), (4, 4, 2, False)]
)
def test_an_inverted_residual_adds_its_input_where_shapes_agree(channels, width, stride, adds):
    block: Any = InvertedResidual(channels, width, stride, expansion=1).eval()
    x = torch.randn(1, channels, 8, 8)
    block.conv[7].weight.data.zero_()  # the last BatchNorm: nothing comes from the convolutions
    assert torch.equal(block(x), x if adds else torch.zeros(1, width, 8 // stride, 8 // stride))
    # Expansion 1 keeps its convolution
    assert len(block.conv) == 8 and block.conv[0].out_channels == channels


def test_every_number_of_channels_is_divided():
    description: Any = describe_mobilenet(8)
    assert description.stem_channels == 4
    assert [stage.widths for stage in description.stages] == [
        (8, 16, 16, 32, 32),
        (64,) * 6,
        (128,) * 2,
    ]
    first, second = description.dcm_heads
    assert [stage.widths for stage in first] == [(64,) * 4, (128,) * 2]
    assert [stage.widths for stage in second] == [(256,) * 2]


@pytest.mark.parametrize("divisor", [0, 3, 64])
def test_other_divisors_are_refused(divisor):
    with refused(divisor):
        describe_mobilenet(divisor)
