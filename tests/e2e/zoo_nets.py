"""Factories of published nets as a user would write them, from a description of their layers alone.

python Training.py --evaluate --resume seed0.pt --arch tests/e2e/zoo_nets.py:tiny10 …
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tiny10(nn.Module):
    """Eight convolutions without padding,
    each followed by BatchNorm and ReLU; the mean over positions; a layer.
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, 16, 16, 32, 32, 32, 64, 64, 64)
        strides = (1, 1, 2, 1, 1, 2, 1, 1)
        for number, stride in enumerate(strides, start=1):
            kernel = 1 if number == 8 else 3
            setattr(
                self, f"conv{number}", nn.Conv2d(widths[number - 1], widths[number], kernel, stride)
            )
            setattr(self, f"bn{number}", nn.BatchNorm2d(widths[number]))
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for number in range(1, 9):
            x = F.relu(getattr(self, f"bn{number}")(getattr(self, f"conv{number}")(x)))
        return self.fc(x.mean((2, 3)))


def tiny10(num_classes: int = 10) -> nn.Module:
    return Tiny10(num_classes)


class Block(nn.Module):
    """A basic block, whose shortcut drops every second position and adds channels of zeros."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.added = stride, (width - channels) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added, self.added))
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """Three stages of basic blocks, after He et al."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    def _stage(self, channels: int, width: int, stride: int, blocks: int) -> nn.Sequential:
        first = Block(channels, width, stride)
        return nn.Sequential(first, *(Block(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(torch.flatten(x, 1))


def resnet20() -> nn.Module:
    return CifarResNet(3)


def resnet32() -> nn.Module:
    return CifarResNet(5)


def resnet44() -> nn.Module:
    return CifarResNet(7)


def resnet56() -> nn.Module:
    return CifarResNet(9)
