from typing import Any

import pytest
import torch

from models import build, split
from models.small.names import NAMES, bare_name, describe, is_small, online_pair, torchvision_name
from models.small.stages import build_net
from tests.mistakes import refused

FAMILIES = [
    "wrn_16_1",
    "mobilenet8",
    "resnet8",
    "ResNet50",
    "vgg13_bn_32",
    "mobilenetV2",
    "ShuffleV1",
    "ShuffleV2",
]


@pytest.mark.parametrize("arch", NAMES)
def test_every_name_is_a_classifier_whose_last_attach_point_is_its_last_stage(arch):
    description = describe(arch)
    assert is_small(arch)
    with torch.device("meta"):
        net = build_net(arch, description, 7)
    assert list(net.parameters())[-1].shape == (7,)
    assert description.attach[-1] == description.stages[-1].name
    assert set(description.attach) <= {stage.name for stage in description.stages}


@pytest.mark.parametrize("arch", FAMILIES)
def test_features_can_be_cut_at_every_attach_point(arch):
    model = build(arch, 5).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(images)
        feature = images
        for name, stage in model.named_children():
            feature = stage(feature)
            if name not in describe(arch).attach:
                continue
            head, tail = split(model, name)
            assert torch.equal(head(images), feature), name
            assert torch.equal(tail(feature), logits), name


def test_features_can_be_cut_between_blocks():
    model: Any = build("wrn_16_1", 5).eval()
    images = torch.randn(1, 3, 32, 32)
    head, tail = split(model, "group1.0")
    with torch.no_grad():
        assert torch.equal(tail(head(images)), model(images))
        assert torch.equal(head(images), model.group1[0](model.group0(model.conv1(images))))


def test_fractional_widths_and_divided_mobilenets():
    assert describe("wrn_16_0.5").stages[0].widths == (8, 8)
    assert describe("mobilenet8").stages[0].widths[0] == 8
    assert is_small("wrn_16_0.5") and is_small("mobilenet16")
    assert not is_small("wrn_16_") and not is_small("wrn_16_.5") and not is_small("mobilenet_v2")


def test_names_that_torchvision_has_too():
    assert bare_name("vgg13_bn") == bare_name("vgg13_bn_aux") == "vgg13_bn_32"
    assert bare_name("resnet8x4_aux") == "resnet8x4"
    assert not is_small("vgg13_bn") and not is_small("resnet18") and not is_small("resnet50")
    assert torchvision_name("resnet34_imagenet") == "resnet34"
    assert (
        torchvision_name("vgg13_bn") == "vgg13_bn"
        and torchvision_name("made_up_imagenet") == "made_up_imagenet"
    )


def test_an_unknown_name_names_the_nearest():
    with refused("resnet8x5", "resnet8x4"):
        describe("resnet8x5")


def test_online_pairs():
    assert online_pair("WRN_40_2_WRN_40_2") == ("wrn_40_2", "wrn_40_2")
    assert online_pair("mbv2_mbv2") == ("mobilenetV2", "mobilenetV2")
    assert online_pair("vgg13_vgg13") == ("vgg13_bn_32", "vgg13_bn_32")
    assert online_pair("resnet18_resnet18") == ("resnet18_imagenet", "resnet18_imagenet")
    with refused("wrn_40_2", "WRN_40_2_WRN_40_2"):
        online_pair("wrn_40_2")
