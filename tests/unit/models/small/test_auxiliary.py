import copy
from typing import Any

import pytest
import torch

from models import build_with_heads, split
from models.small.names import describe
from tests.mistakes import refused

HSAKD = {
    "wrn_10_1": 3,
    "resnet8": 3,
    "ShuffleV1": 3,
    "ShuffleV2": 3,
    "vgg13_bn": 4,
    "mobilenetV2_aux": 4,
}


@pytest.mark.parametrize(("arch", "branches"), HSAKD.items())
def test_hsakds_heads_stand_on_every_attach_point(arch, branches):
    net = build_with_heads(arch, 5, "hsakd").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        logits, heads = net(images)
        assert torch.equal(logits, net.backbone(images))
        assert [head.shape for head in heads] == [(2, 20)] * branches
        for (name, head), of_head in zip(net.heads.items(), heads):
            assert torch.equal(of_head, head(split(net.backbone, name)[0](images)))
    assert list(net.heads) == list(describe(net.backbone.arch).attach)


@pytest.mark.parametrize(
    "arch", ["wrn_40_2", "resnet32x4", "ResNet50", "ShuffleV1", "resnet34_imagenet"]
)
def test_a_branch_repeats_the_rest_of_its_net(arch):
    with torch.device("meta"):
        net = build_with_heads(arch, 10, "hsakd")
    children = [name for name, _ in net.backbone.named_children()]
    for attach, head in list(net.heads.items())[:-1]:
        rest = children[children.index(attach) + 1 :]
        own = {
            key: value.shape
            for key, value in net.backbone.state_dict().items()
            if key.split(".")[0] in rest
        }
        # 4 × 10 logits
        own |= {f"{rest[-1]}.weight": (40, own[f"{rest[-1]}.weight"][1]), f"{rest[-1]}.bias": (40,)}
        assert {key: value.shape for key, value in head.state_dict().items()} == own


def test_dcms_heads_stand_on_the_first_two_stages():
    net: Any = build_with_heads("wrn_16_1", 5, "dcm").eval()
    with torch.no_grad():
        logits, heads = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5) and [head.shape for head in heads] == [(2, 5)] * 2
    assert list(net.heads) == ["group0", "group1"]
    ep1, ep2 = net.heads.values()
    # Half of the last group's blocks
    assert [len(ep1.group1), len(ep1.group2), len(ep2.group2)] == [2, 1, 2]
    assert [ep1.fc.in_features, ep2.fc.in_features] == [64, 128]  # twice the last group's width


@pytest.mark.parametrize("arch", ["resnet8", "mobilenetV2"])
def test_other_nets_have_their_own_rest_as_dcms_heads(arch):
    with torch.device("meta"):
        dcm, hsakd = (build_with_heads(arch, 5, method) for method in ("dcm", "hsakd"))
    assert list(dcm.heads) == list(hsakd.heads)[:2]
    assert [list(head.state_dict()) for head in dcm.heads.values()] == [
        list(head.state_dict()) for head in list(hsakd.heads.values())[:2]
    ]
    assert [list(head.parameters())[-1].shape for head in dcm.heads.values()] == [(5,)] * 2


def test_without_heads_only_the_final_logits_come():
    net = build_with_heads("wrn_10_1", 5, "dcm", heads=False)
    logits, heads = net(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 5) and heads == []


def test_gradients_of_heads_reach_the_backbone_up_to_their_stage():
    net: Any = build_with_heads("wrn_10_1", 5, "hsakd")
    net(torch.randn(2, 3, 32, 32))[1][0].sum().backward()
    assert net.backbone.group0[0].conv1.weight.grad.abs().sum() > 0
    assert net.backbone.group1[0].conv1.weight.grad is None
    assert copy.deepcopy(net).backbone.arch == "wrn_10_1"


def test_too_shallow_for_dcm():
    with refused("wrn_10_1", "1", "16"):
        build_with_heads("wrn_10_1", 5, "dcm")


def test_other_methods_and_networks_are_refused():
    with refused("dcm", "hsakd", "dml"):
        build_with_heads("wrn_16_1", 5, "dml")
    with refused("resnet18", "resnet8"):
        build_with_heads("resnet18", 5, "hsakd")
