"""MobileNets for 32×32 images.

DCM's is that of Howard et al. (2017), HSAKD's is V2 of half width (Sandler et al. 2018).
"""

import functools
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from models.small.initialise import convolutions_by_fan_out, linear_normal
from models.small.stages import Description, Stage, conv1x1, conv3x3, pooled_classifier
from utils.errors import InputError


class SeparableBlock(nn.Module):
    """A depthwise 3×3 and a 1×1 convolution, each with BatchNorm and ReLU."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, stride, groups=channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv1x1(channels, width)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride)."""
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class InvertedResidual(nn.Module):
    """1×1 to `expansion` · channels, depthwise 3×3, 1×1 to `width`; plus the input if it fits."""

    def __init__(self, channels: int, width: int, stride: int, expansion: int = 6) -> None:
        super().__init__()
        wide = expansion * channels
        self.conv = nn.Sequential(  # the first 1×1 convolution is there at expansion 1, too
            *_conv_bn_relu(conv1x1(channels, wide)),
            *_conv_bn_relu(conv3x3(wide, wide, stride, groups=wide)),
            conv1x1(wide, width),
            nn.BatchNorm2d(width),
        )
        self.adds_input = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, channels, H, W) to (N, width, H / stride, W / stride)."""
        return x + self.conv(x) if self.adds_input else self.conv(x)


def describe_mobilenet(divisor: int = 1) -> Description:
    """Describe DCM's MobileNet with every number of channels divided by `divisor`.

    Raises:
        InputError: 32, the smallest number of channels, is no multiple of `divisor`.
    """
    if divisor < 1 or 32 % divisor:
        raise InputError(
            f"MobileNet's channels can be divided by 1, 2, 4, 8, 16 or 32, not by {divisor}"
        )

    def stage(name: str, widths: tuple[int, ...], stride: int) -> Stage:
        return Stage(name, SeparableBlock, tuple(width // divisor for width in widths), stride)

    # Maps of 32×32 images have 32×32, 16×16 and 8×8 positions in these three.
    layer1 = stage("layer1", (64, 128, 128, 256, 256), 1)
    layer2 = stage("layer2", (512,) * 6, 2)
    layer3 = stage("layer3", (1024,) * 2, 2)
    return Description(
        stem=lambda: dict(zip(("conv1", "bn1", "relu"), _conv_bn_relu(conv3x3(3, 32 // divisor)))),
        stem_channels=32 // divisor,
        stages=(layer1, layer2, layer3),
        end=lambda channels, outputs: pooled_classifier(channels, outputs, "linear"),
        attach=("layer1", "layer2", "layer3"),
        # DCM's first head has four blocks of layer2 instead of six, its second twice the width.
        dcm_heads=(
            (replace(layer2, widths=layer2.widths[:4]), layer3),
            (stage("layer3", (2048,) * 2, 2),),
        ),
    )


def describe_mobilenet_v2() -> Description:
    """Describe HSAKD's MobileNetV2 of width 0.5, with ReLU instead of ReLU6."""
    # Width, blocks, stride
    rows = ((8, 1, 1), (12, 2, 1), (16, 3, 2), (32, 4, 2), (48, 3, 1), (80, 3, 2), (160, 1, 1))
    unexpanded = functools.partial(InvertedResidual, expansion=1)
    return Description(
        stem=lambda: {"conv1": nn.Sequential(*_conv_bn_relu(conv3x3(3, 16)))},
        stem_channels=16,
        stages=tuple(
            Stage(
                f"row{index}",
                unexpanded if index == 1 else InvertedResidual,
                (width,) * blocks,
                stride,
            )
            for index, (width, blocks, stride) in enumerate(rows, start=1)
        ),
        end=lambda channels, outputs: {
            "conv2": nn.Sequential(*_conv_bn_relu(conv1x1(channels, 1280))),
            **pooled_classifier(1280, outputs, "classifier"),
        },
        attach=("row2", "row3", "row5", "row7"),
        initialisers=(convolutions_by_fan_out, linear_normal),
        head_initialisers=(convolutions_by_fan_out, linear_normal),
    )


def _conv_bn_relu(convolution: nn.Conv2d) -> tuple[nn.Module, nn.Module, nn.Module]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
