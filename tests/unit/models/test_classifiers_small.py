"""Small networks among the classifiers: their names, and the files of DCM and HSAKD."""

from typing import Any

import pytest
import torch
import torchvision

import models
from models.classifiers import (
    build,
    classifier_record,
    last_layer,
    load_classifier,
    read_classifier,
)
from models.small.author_keys import authors_state
from models.small.stages import SmallNet
from tests.mistakes import refused
from tests.unit.models.cheap import save, thin_state
from utils import checkpoint


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("wrn_28_10", 36_536_884), ("resnet8x4", 1_233_540), ("mobilenet", 3_309_476)],
)
def test_small_networks_are_built_by_name(arch, parameters):
    with torch.device("meta"):
        model: Any = models.build(arch, 100)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert last_layer(model) in ("fc", "linear") and all(
        parameter.requires_grad for parameter in model.parameters()
    )


def test_names_that_torchvision_has_stay_torchvisions():
    with torch.device("meta"):
        assert isinstance(build("vgg13_bn", 10), torchvision.models.VGG)
        assert isinstance(build("resnet18_imagenet", 10), torchvision.models.ResNet)
        assert isinstance(build("vgg13_bn_32", 10), SmallNet) and isinstance(
            build("ResNet50", 10), SmallNet
        )


@pytest.mark.parametrize(
    ("arch", "near"),
    [("wrn_28_x", "wrn_28_10"), ("resnet9x4", "resnet8x4"), ("mobilenetV3", "mobilenetV2")],
)
def test_small_networks_are_among_the_nearest_names(arch, near):
    with refused(arch, near):
        build(arch, 2)


def test_small_networks_have_no_imagenet_weights_and_no_fine_tuning_form():
    with refused("resnet8", "--weights"):
        build("resnet8", 7, pretrained=True)
    with refused("_ft", "SmallNet"):
        build("resnet8_ft", 7)


def test_an_imagenet_form_takes_torchvisions_weights(torch_home):
    save(torch_home / "resnet18-f37072fd.pth", thin_state("resnet18", 1000, 0.5))
    model: Any = build("resnet18_imagenet", 7, pretrained=True)
    assert (model.layer4[1].conv2.weight == 0.5).all()


@pytest.mark.parametrize("method", ["dcm", "hsakd"])
def test_files_of_dcm_and_hsakd_load_as_the_bare_net(tmp_path, method):
    net: Any = models.build_with_heads("wrn_16_1", 7, method)
    state = authors_state(net)
    contents: dict[str, Any] = (
        {"params": state, "epoch": 3, "optimizer": {"state": {}}}
        if method == "dcm"
        else {"net": state, "acc": 0.5, "epoch": 3, "optimizer": {"state": {}}}
    )
    path = save(tmp_path / "model.pt7", contents, zipped=method == "hsakd")
    model, rest = read_classifier(path, "wrn_16_1", 7)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), net.eval().backbone(images))
    assert rest["epoch"] == 3 and rest["model"] == classifier_record("wrn_16_1", 7)
    other: Any = build("wrn_16_1", 9, weights=path)  # the last layer anew
    assert torch.equal(other.group2[1].conv2.weight, net.backbone.group2[1].conv2.weight)
    assert other.fc.out_features == 9
    with refused(path, "SmallNet"):
        load_classifier(path, "resnet8")
    with refused(path, "--arch"):
        load_classifier(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "net"])
def test_hsakds_backbone_files_load(tmp_path, key):
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in authors_state(
            models.build_with_heads("resnet8", 7, "hsakd", heads=False)
        ).items()
    }
    model: Any = load_classifier(
        save(tmp_path / "b.pth", {key: backbone, "epoch": 3, "acc": 0.7}), "resnet8"
    )
    assert torch.equal(model.fc.weight, backbone["fc.weight"])


def test_our_checkpoint_of_a_small_network_needs_no_flags(tmp_path):
    model = build("wrn_10_0.5", 7).eval()
    path = tmp_path / "c.pth.tar"
    checkpoint.save(
        path, {"model": classifier_record("wrn_10_0.5", 7), "state_dict": model.state_dict()}
    )
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_classifier(path)(images), model(images))
