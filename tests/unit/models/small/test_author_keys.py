from typing import Any

import numpy as np
import pytest
import torch

from models import build, build_with_heads, load_authors_state
from models.small.author_keys import authors_keys, authors_state, bare_state
from tests.mistakes import refused

NETS = [
    ("wrn_16_1", "dcm"),
    ("mobilenet8", "dcm"),
    ("wrn_10_1", "hsakd"),
    ("resnet8", "hsakd"),
    ("mobilenetV2", "hsakd"),
]


def random_net(arch, method):
    """With statistics that are not the initial ones, so that each tensor counts."""
    net = build_with_heads(arch, 5, method).eval()
    for key, value in net.state_dict().items():
        if "running" in key or "bn" in key:
            (
                value.copy_(value + torch.rand(value.shape))
                if value.is_floating_point()
                else value.fill_(3)
            )
    return net


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32)


@pytest.mark.parametrize(("arch", "method"), NETS)
def test_a_state_goes_out_and_comes_back_by_the_authors_names(arch, method, images):
    net, other = random_net(arch, method), build_with_heads(arch, 5, method).eval()
    state = authors_state(net)
    assert len(state) == len(set(authors_keys(net).values())) == len(authors_keys(net))
    parameters = list(other.parameters())
    load_authors_state(
        other, {f"module.{key}": value.half().float() for key, value in state.items()}
    )
    # An optimiser still holds them
    assert all(a is b for a, b in zip(other.parameters(), parameters))
    load_authors_state(other, {key: value.numpy() for key, value in state.items()})
    with torch.no_grad():
        (logits, heads), (expected, expected_heads) = other(images), net(images)
    assert torch.equal(logits, expected)
    assert all(torch.equal(a, b) for a, b in zip(heads, expected_heads))


@pytest.mark.parametrize(("arch", "method"), NETS)
def test_a_bare_net_takes_the_backbone(arch, method, images):
    net, bare = random_net(arch, method), build(arch, 5).eval()
    load_authors_state(bare, authors_state(net))
    with torch.no_grad():
        assert torch.equal(bare(images), net(images)[0])
    own = bare_state(arch, net.state_dict())  # ours, with heads
    assert own.keys() == bare.state_dict().keys()
    assert bare_state(arch, own).keys() == own.keys()


def test_torchvisions_resnet_takes_the_backbone():
    net: Any = build_with_heads("resnet18_imagenet", 5, "hsakd", heads=False)
    bare: Any = build("resnet18_imagenet", 5)
    load_authors_state(
        bare, authors_state(net) | {"auxiliary_classifier.fc1.bias": torch.zeros(20)}
    )
    assert torch.equal(bare.layer4[1].conv2.weight, net.backbone.layer4[1].conv2.weight)


def test_of_an_online_pair_net_1_is_taken():
    nets: list[Any] = [build_with_heads("wrn_10_1", 5, "hsakd") for _ in range(2)]
    pair = {
        f"net{number}.{key}": value
        for number, net in enumerate(nets, 1)
        for key, value in authors_state(net).items()
    }
    bare: Any = build("wrn_10_1", 5)
    load_authors_state(bare, pair)
    assert torch.equal(bare.fc.weight, nets[0].backbone.fc.weight)


def test_half_precision_and_missing_counters():
    net: Any = random_net("resnet8", "hsakd")
    other: Any = build_with_heads("resnet8", 5, "hsakd")
    state = {
        key: value.half() for key, value in authors_state(net).items() if "num_batches" not in key
    }
    load_authors_state(other, {key: value.numpy() for key, value in state.items()})
    assert other.backbone.fc.weight.dtype == torch.float32
    assert torch.equal(
        other.heads["layer3"].fc.weight, net.heads["layer3"].fc.weight.half().float()
    )
    assert other.backbone.bn1.num_batches_tracked == 0


def test_some_names():
    names = authors_keys(build_with_heads("wrn_16_1", 5, "dcm"))
    assert names["backbone.conv1.weight"] == "conv0"
    assert names["backbone.group2.0.shortcut.weight"] == "group2.block0.convdim"
    assert names["heads.group0.group1.1.conv2.weight"] == "ep1_group1.block1.conv1"
    assert names["heads.group1.group2.0.bn1.weight"] == "ep2_group2.block0.bn0.weight"
    names = authors_keys(build_with_heads("wrn_16_1", 5, "hsakd"))
    assert (
        names["backbone.group2.0.shortcut.weight"] == "backbone.block3.layer.0.convShortcut.weight"
    )
    assert (
        names["heads.group0.group2.1.bn2.bias"]
        == "auxiliary_classifier.block_extractor1.1.layer.1.bn2.bias"
    )
    assert names["heads.group2.bn.weight"] == "auxiliary_classifier.bn3.weight"


@pytest.mark.parametrize("bare", [False, True])
def test_what_does_not_fit_is_refused_and_named(bare):
    net = build_with_heads("resnet8", 5, "hsakd")
    state = authors_state(net)
    filled = net.backbone if bare else net
    before = {key: value.clone() for key, value in filled.state_dict().items()}
    missing = {key: value for key, value in state.items() if key != "backbone.fc.weight"}
    for wrong, named in (
        (missing, "fc.weight"),
        (state | {"backbone.extra": torch.zeros(1)}, "extra"),
        (state | {"backbone.conv1.weight": torch.zeros(1)}, "conv1.weight"),
        (authors_state(build_with_heads("wrn_10_1", 5, "hsakd")), "layer1"),
    ):
        with refused(named):
            load_authors_state(filled, wrong)
    assert all(torch.equal(value, before[key]) for key, value in filled.state_dict().items())
    load_authors_state(filled, {key: np.asarray(value) for key, value in state.items()})
