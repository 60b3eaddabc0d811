"""Distributions of new weights, by family and by network and branch, as the authors draw them."""

import math

import pytest
import torch
from torch import nn

from models import build, build_with_heads
from models.small import initialise
from models.small.names import describe

ENOUGH = 2000  # weights, for a deviation within 10 %


def net_with_heads(arch, method="hsakd"):
    torch.manual_seed(0)
    return build_with_heads(arch, 100, method)


def of(module, kind):
    return [layer for layer in module.modules() if isinstance(layer, kind)]


def is_normal(weight, std):
    sigmas = weight.abs().max().item() / std
    return (
        abs(weight.std().item() / std - 1) < 0.1
        and abs(weight.mean().item()) < 0.1 * std
        and 3 < sigmas < 7
    )


def is_uniform(weight, bound, few=False):
    """In ±bound, up to rounding;
    of a few numbers the largest is less near it and the deviation less sure.
    """
    deviation = weight.std().item() * math.sqrt(3) / bound
    return (
        abs(deviation - 1) < (0.2 if few else 0.1)
        and (0.9 if few else 0.98) < weight.abs().max() / bound < 1 + 1e-6
    )


def convolutions_by_fan_out(module):
    layers = [layer for layer in of(module, nn.Conv2d) if layer.weight.numel() > ENOUGH]
    area = [layer.kernel_size[0] ** 2 for layer in layers]
    return bool(layers) and all(
        is_normal(layer.weight, math.sqrt(2 / (k * layer.out_channels)))
        for k, layer in zip(area, layers)
    )


def convolutions_by_default(module):
    layers = [layer for layer in of(module, nn.Conv2d) if layer.weight.numel() > ENOUGH]
    return bool(layers) and all(
        is_uniform(layer.weight, layer.weight[0].numel() ** -0.5) for layer in layers
    )


def linear_by_default(module, zero_bias):
    layers = of(module, nn.Linear)
    bounds = [layer.in_features**-0.5 for layer in layers]
    biases = [
        not layer.bias.any() if zero_bias else is_uniform(layer.bias, b, few=True)
        for b, layer in zip(bounds, layers)
    ]
    return (
        bool(layers)
        and all(biases)
        and all(is_uniform(layer.weight, b) for b, layer in zip(bounds, layers))
    )


def linear_normal(module):
    layers = of(module, nn.Linear)
    return bool(layers) and all(
        is_normal(layer.weight, 0.01) and not layer.bias.any() for layer in layers
    )


def norms_by_default(module):
    return all(
        (layer.weight == 1).all() and (layer.bias == 0).all()
        for layer in of(module, nn.BatchNorm2d)
    )


@pytest.mark.parametrize(
    ("arch", "linear", "linear_of_branches"),
    [
        ("wrn_16_2", {"zero_bias": True}, {"zero_bias": True}),
        ("resnet20", {"zero_bias": False}, {"zero_bias": True}),
        ("resnet8x4", {"zero_bias": False}, {"zero_bias": True}),
    ],
)
def test_convolutions_by_fan_out_and_linear_layers_by_default(arch, linear, linear_of_branches):
    net = net_with_heads(arch)
    assert convolutions_by_fan_out(net.backbone) and convolutions_by_fan_out(net.heads)
    assert linear_by_default(net.backbone, **linear)
    assert linear_by_default(net.heads, **linear_of_branches)
    assert norms_by_default(net)


@pytest.mark.parametrize("arch", ["ResNet50", "resnet18_imagenet"])
def test_large_resnets_keep_the_default_bias_in_branches_too(arch):
    description = describe(arch)
    assert (
        description.initialisers
        == description.head_initialisers
        == (initialise.convolutions_by_fan_out,)
    )


def test_mobilenet_v2():
    net = net_with_heads("mobilenetV2")
    for part in (net.backbone, net.heads):
        assert convolutions_by_fan_out(part) and linear_normal(part) and norms_by_default(part)


def test_vgg_initialises_its_backbone_alone():
    net = net_with_heads("vgg13_bn")
    assert convolutions_by_fan_out(net.backbone) and linear_normal(net.backbone)
    assert not any(layer.bias.any() for layer in of(net.backbone, nn.Conv2d))
    assert convolutions_by_default(net.heads) and linear_by_default(net.heads, zero_bias=False)


def test_shufflenet_v1_initialises_its_branches_alone():
    net = net_with_heads("ShuffleV1")
    assert convolutions_by_default(net.backbone) and linear_by_default(
        net.backbone, zero_bias=False
    )
    assert convolutions_by_fan_out(net.heads) and linear_by_default(net.heads, zero_bias=True)


@pytest.mark.parametrize(("arch", "method"), [("ShuffleV2", "hsakd"), ("mobilenet", "dcm")])
def test_pytorchs_defaults(arch, method):
    net = net_with_heads(arch, method)
    assert (
        convolutions_by_default(net)
        and linear_by_default(net, zero_bias=False)
        and norms_by_default(net)
    )


def test_dcms_wrn():
    net = net_with_heads("wrn_16_2", "dcm")
    for layer in of(net, nn.Conv2d | nn.Linear):
        if layer.weight.numel() > ENOUGH:
            assert is_normal(layer.weight, math.sqrt(2 / layer.weight[0].numel()))
    assert not any(layer.bias.any() for layer in of(net, nn.Linear | nn.BatchNorm2d))
    scales = torch.cat([layer.weight for layer in of(net, nn.BatchNorm2d)])
    assert scales.min() >= 0 and scales.max() < 1 and is_uniform(2 * scales - 1, 1)
    alone = build_with_heads("wrn_16_2", 100, "dcm", heads=False)
    assert is_uniform(2 * torch.cat([layer.weight for layer in of(alone, nn.BatchNorm2d)]) - 1, 1)


@pytest.mark.parametrize("arch", ["wrn_16_1", "resnet8", "mobilenetV2", "mobilenet8"])
def test_a_bare_net_begins_as_the_backbone_with_branches(arch):
    backbone = net_with_heads(arch).backbone.state_dict()
    torch.manual_seed(0)
    bare = build(arch, 100).state_dict()
    assert bare.keys() == backbone.keys()
    assert all(torch.equal(value, backbone[key]) for key, value in bare.items())
