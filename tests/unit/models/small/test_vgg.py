from typing import Any

import torch
import torch.nn.functional as F

from models.small.stages import build_net
from models.small.vgg import convolution, describe_vgg13


def test_pooling_comes_first():
    layer: Any = convolution(3, 5, 2).eval()
    x = torch.randn(1, 3, 8, 8)
    inner = F.conv2d(F.max_pool2d(x, 2), layer.conv.weight, layer.conv.bias, padding=1)
    torch.testing.assert_close(layer(x), layer.bn(inner).relu())
    assert not hasattr(convolution(3, 5, 1), "pool")


def test_sizes_of_the_attach_points():
    description = describe_vgg13()
    net = build_net("vgg", description, 10).eval()
    feature, sizes = torch.randn(1, 3, 32, 32), {}
    for name, stage in net.named_children():
        feature = stage(feature)
        if name in description.attach:
            sizes[name] = tuple(feature.shape[1:])
    assert sizes == {
        "block0": (64, 32, 32),
        "block1": (128, 16, 16),
        "block2": (256, 8, 8),
        "block4": (512, 4, 4),
    }
