"""HSAKD's VGG-13 with BatchNorm for 32×32 images: one linear layer after global pooling."""

from collections import OrderedDict

from torch import nn

from models.small.initialise import convolutions_by_fan_out, linear_normal
from models.small.stages import Description, Stage, pooled_classifier


def convolution(channels: int, width: int, stride: int) -> nn.Sequential:
    """A 3×3 convolution with bias, BatchNorm and ReLU, at stride 2 after a 2×2 max pooling."""
    layers: dict[str, nn.Module] = {"pool": nn.MaxPool2d(2)} if stride == 2 else {}
    layers |= {
        "conv": nn.Conv2d(channels, width, 3, padding=1),
        "bn": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
    }
    return nn.Sequential(OrderedDict(layers))


def describe_vgg13() -> Description:
    """Describe VGG-13: five blocks of two convolutions; pooling comes before blocks 1, 2 and 3.

    The authors' code pools once more for 64×64 images; here the global pooling takes any size.
    """
    blocks = ((64, 1), (128, 2), (256, 2), (512, 2), (512, 1))  # width, stride
    return Description(
        stem=dict,
        stem_channels=3,
        stages=tuple(
            Stage(f"block{index}", convolution, (width, width), stride)
            for index, (width, stride) in enumerate(blocks)
        ),
        end=lambda channels, outputs: pooled_classifier(channels, outputs, "classifier"),
        attach=("block0", "block1", "block2", "block4"),
        initialisers=(convolutions_by_fan_out, linear_normal),
    )
