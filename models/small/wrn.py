"""Wide residual networks, WRN-d-k (Zagoruyko and Komodakis 2016); k may be a fraction."""

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from models.small.initialise import as_dcm_wrn, convolutions_by_fan_out, linear_bias_zero
from models.small.stages import Description, Stage, conv1x1, conv3x3, pooled_classifier
from utils.errors import InputError


class WideBlock(nn.Module):
    """A pre-activation block: conv(ReLU(BN(conv a))) + x, where a = ReLU(BN x).

    Where the width changes, conv1×1 a takes the place of x.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv3x3(channels, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv3x3(width, width)
        self.shortcut = conv1x1(channels, width, stride) if channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride)."""
        active = F.relu(self.bn1(x))
        residual = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


def describe_wrn(depth: int, factor: float) -> Description:
    """Describe WRN-`depth`-`factor`; depth = 6n + 4, widths int(16k), int(32k), int(64k).

    Raises:
        InputError: no such depth, or a factor that leaves no channel.
    """
    # n blocks of two convolutions in each of three groups
    blocks, remainder = divmod(depth - 4, 6)
    if blocks < 1 or remainder:
        raise InputError(f"the depth of a WRN is 6n + 4 (10, 16, 22, 28, 34, 40, …), not {depth}")
    # int(), as the authors round down a fractional factor's widths.
    first, second, third = (int(width * factor) for width in (16, 32, 64))
    if first < 1:
        raise InputError(
            f"the width factor of a WRN is at least 1/16 (one channel), not {factor:g}"
        )
    # Each group is wider than the one before: stride 2 never meets a plain shortcut.
    group0, group1, group2 = groups = (
        Stage("group0", WideBlock, (first,) * blocks),
        Stage("group1", WideBlock, (second,) * blocks, stride=2),
        Stage("group2", WideBlock, (third,) * blocks, stride=2),
    )
    return Description(
        stem=lambda: {"conv1": conv3x3(3, 16)},
        stem_channels=16,
        stages=groups,
        end=lambda channels, outputs: {
            "bn": nn.BatchNorm2d(channels),
            "relu": nn.ReLU(),
            **pooled_classifier(channels, outputs),
        },
        attach=(group0.name, group1.name, group2.name),
        initialisers=(convolutions_by_fan_out, linear_bias_zero),
        head_initialisers=(convolutions_by_fan_out, linear_bias_zero),
        # DCM's first head has half of the last group, its second head twice the width.
        dcm_heads=(
            (group1, replace(group2, widths=group2.widths[: blocks // 2])),
            (replace(group2, widths=(2 * third,) * blocks),),
        ),
        dcm_initialisers=(as_dcm_wrn,),
    )
