from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models.small.wrn import WideBlock, describe_wrn
from tests.mistakes import refused


@pytest.mark.parametrize(("channels", "width", "stride"), [(4, 4, 1), (4, 6, 2), (4, 6, 1)])
def test_a_wide_block_adds_its_input_or_maps_what_is_activated(channels, width, stride):
    block: Any = WideBlock(channels, width, stride).eval()
    block.bn1.running_mean.uniform_(-1, 1)
    x = torch.randn(2, channels, 8, 8)
    active = block.bn1(x).relu()
    inner = F.conv2d(active, block.conv1.weight, stride=stride, padding=1)
    residual = F.conv2d(block.bn2(inner).relu(), block.conv2.weight, padding=1)
    shortcut = x if channels == width else F.conv2d(active, block.shortcut.weight, stride=stride)
    torch.testing.assert_close(block(x), residual + shortcut)


def test_widths_and_depths():
    widths = [stage.widths for stage in describe_wrn(28, 10).stages]
    assert widths == [(160,) * 4, (320,) * 4, (640,) * 4]
    # Int of 20.8, 41.6, 83.2
    assert [stage.widths for stage in describe_wrn(10, 1.3).stages] == [(20,), (41,), (83,)]


@pytest.mark.parametrize("depth", [4, 15, 27, 0])
def test_impossible_depths_are_refused(depth):
    with refused("WRN", "10", "16", depth):
        describe_wrn(depth, 1)


def test_a_factor_that_leaves_no_channel_is_refused():
    with refused("1/16", "0.05"):
        describe_wrn(16, 0.05)
