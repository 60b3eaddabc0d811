"""Residual networks of torchvision's blocks, for 32×32 images and for ImageNet."""

from torch import nn

from models.small.initialise import convolutions_by_fan_out, linear_bias_zero
from models.small.stages import Block, Description, Stage, conv1x1, conv3x3, pooled_classifier
from utils.later import torchvision


def basic(channels: int, width: int, stride: int) -> nn.Module:
    """Two 3×3 convolutions with a shortcut."""
    return torchvision.models.resnet.BasicBlock(
        channels, width, stride, _projection(channels, width, stride)
    )


def bottleneck(channels: int, width: int, stride: int) -> nn.Module:
    """1×1, 3×3 (width / 4 channels, with the stride) and 1×1 convolutions with a shortcut."""
    # torchvision counts a bottleneck's inner channels, and multiplies them by `expansion`, 4.
    block = torchvision.models.resnet.Bottleneck
    return block(channels, width // block.expansion, stride, _projection(channels, width, stride))


def describe_resnet(depth: int, filters: tuple[int, int, int, int]) -> Description:
    """Describe the ResNet of `depth` = 6n + 2 layers for 32×32 images.

    Args:
        depth: layers; n blocks of two convolutions in each of three stages, stem and last layer.
        filters: channels of the stem and of the three stages.
    """
    # Two convolutions a block, three stages; the stem and the last layer are the 2.
    blocks = (depth - 2) // 6
    return Description(
        stem=lambda: _stem(conv3x3(3, filters[0])),
        stem_channels=filters[0],
        stages=_stages(basic, filters[1:], (blocks,) * 3),
        end=pooled_classifier,
        attach=("layer1", "layer2", "layer3"),
        initialisers=(convolutions_by_fan_out,),
        head_initialisers=(convolutions_by_fan_out, linear_bias_zero),
    )


def describe_resnet50() -> Description:
    """Describe ResNet-50 for 32×32 images: a 3×3 stem at stride 1, no pooling after it."""
    return Description(
        stem=lambda: _stem(conv3x3(3, 64)),
        stem_channels=64,
        stages=_stages(bottleneck, (256, 512, 1024, 2048), (3, 4, 6, 3)),
        end=lambda channels, outputs: pooled_classifier(channels, outputs, "linear"),
        attach=("layer1", "layer2", "layer3", "layer4"),
        initialisers=(convolutions_by_fan_out,),
        head_initialisers=(convolutions_by_fan_out,),
    )


def describe_imagenet_resnet(
    block: Block, widths: tuple[int, ...], depths: tuple[int, ...]
) -> Description:
    """Describe a ResNet of torchvision: the same modules by the same names."""
    return Description(
        stem=lambda: {
            **_stem(nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)),
            "maxpool": nn.MaxPool2d(3, 2, padding=1),
        },
        stem_channels=64,
        stages=_stages(block, widths, depths),
        end=pooled_classifier,
        attach=("layer1", "layer2", "layer3", "layer4"),
        initialisers=(convolutions_by_fan_out,),
        head_initialisers=(convolutions_by_fan_out,),
    )


def _projection(channels: int, width: int, stride: int) -> nn.Module | None:
    """A 1×1 convolution and BatchNorm on the shortcut, where the shape changes."""
    if stride == 1 and channels == width:
        return None
    return nn.Sequential(conv1x1(channels, width, stride), nn.BatchNorm2d(width))


def _stem(convolution: nn.Conv2d) -> dict[str, nn.Module]:
    return {
        "conv1": convolution,
        "bn1": nn.BatchNorm2d(convolution.out_channels),
        "relu": nn.ReLU(),
    }


def _stages(block: Block, widths: tuple[int, ...], depths: tuple[int, ...]) -> tuple[Stage, ...]:
    """Stages layer1, layer2, …: the first at stride 1, the others at 2."""
    return tuple(
        Stage(f"layer{index}", block, (width,) * depth, stride=1 if index == 1 else 2)
        for index, (width, depth) in enumerate(zip(widths, depths), start=1)
    )
