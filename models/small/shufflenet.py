"""HSAKD's ShuffleNets for 32×32 images: V1 of 3 groups (Zhang et al. 2018), V2 (Ma et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.small.initialise import convolutions_by_fan_out, linear_bias_zero
from models.small.stages import Description, Stage, conv1x1, conv3x3, pooled_classifier


class GroupedUnit(nn.Module):
    """V1's unit: 1×1 by groups, shuffle, depthwise 3×3, 1×1 by groups, and a shortcut.

    At stride 1 the input is added, at stride 2 the pooled input is concatenated.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        # At stride 2 the pooled input gives the other `channels` of the output.
        branch = width - channels if stride == 2 else width
        inner = branch // 4
        first_groups = 1 if channels == 24 else 3  # the stem's few channels are not grouped
        self.conv1 = conv1x1(channels, inner, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(inner)
        self.shuffle = nn.ChannelShuffle(first_groups)
        self.conv2 = conv3x3(inner, inner, stride, groups=inner)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = conv1x1(inner, branch, groups=3)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride)."""
        branch = self.shuffle(F.relu(self.bn1(self.conv1(x))))
        branch = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(branch)))))
        return F.relu(branch + x if self.pool is None else torch.cat([branch, self.pool(x)], 1))


class SplitUnit(nn.Module):
    """V2's unit: 1×1, depthwise 3×3, 1×1 on the second half of the channels, then shuffle.

    The first half of the channels passes unchanged.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv1x1(half, half)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv3x3(half, half, stride, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(half, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, width, H, W) to (N, width, H, W)."""
        passed, branch = x.chunk(2, 1)  # each (N, width / 2, H, W)
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(branch)))))
        return self.shuffle(torch.cat([passed, F.relu(self.bn3(self.conv3(branch)))], 1))


class DownUnit(nn.Module):
    """V2's first unit of a stage: both halves are computed from the whole input, then shuffled."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        half = width // 2
        self.conv1 = conv3x3(channels, channels, stride, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv1x1(channels, half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv1x1(channels, half)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv3x3(half, half, stride, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv1x1(half, half)
        self.bn5 = nn.BatchNorm2d(half)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride)."""
        first = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))
        second = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(x)))))
        return self.shuffle(torch.cat([first, F.relu(self.bn5(self.conv5(second)))], 1))


def describe_shufflenet_v1() -> Description:
    """Describe ShuffleNet V1 of 3 groups."""
    return Description(
        stem=_stem,
        stem_channels=24,
        stages=tuple(
            Stage(f"layer{index}", GroupedUnit, (width,) * units, stride=2)
            for index, (width, units) in enumerate(((240, 4), (480, 8), (960, 4)), start=1)
        ),
        end=lambda channels, outputs: pooled_classifier(channels, outputs, "linear"),
        attach=("layer1", "layer2", "layer3"),
        head_initialisers=(convolutions_by_fan_out, linear_bias_zero),
    )


def describe_shufflenet_v2() -> Description:
    """Describe ShuffleNet V2 of width 1."""
    return Description(
        stem=_stem,
        stem_channels=24,
        stages=tuple(
            Stage(f"layer{index}", SplitUnit, (width,) * units, stride=2, first=DownUnit)
            for index, (width, units) in enumerate(((116, 4), (232, 8), (464, 4)), start=1)
        ),
        end=lambda channels, outputs: {
            "conv2": conv1x1(channels, 1024),
            "bn2": nn.BatchNorm2d(1024),
            "relu2": nn.ReLU(),
            **pooled_classifier(1024, outputs, "linear"),
        },
        attach=("layer1", "layer2", "layer3"),
    )


def _stem() -> dict[str, nn.Module]:
    return {"conv1": conv1x1(3, 24), "bn1": nn.BatchNorm2d(24), "relu": nn.ReLU()}
