"""Fine-tuning forms of classifiers: which layers train, and what their BatchNorm does."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from models.classifiers import build, classifier_record, fix_batch_norm, load_classifier
from tests.mistakes import refused
from tests.unit.models.cheap import save, thin_state


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_fine_tuned_vgg_trains_from_train_layer_on(tmp_path):
    path = save(tmp_path / "w.pth", thin_state("vgg11_bn", 1000, 0.5))
    model: Any = build("vgg11_bn_ft", 7, weights=path, train_layer=18)
    assert model.classifier[6].out_features == 7
    assert {name.split(".")[1] for name in trained(model) if name.startswith("features")} == {
        "18",
        "19",
        "22",
        "23",
        "25",
        "26",
    }
    assert {
        name for name, _ in model.named_parameters() if name.startswith("classifier")
    } <= trained(model)
    for name, value in model.state_dict().items():
        frozen = name.startswith("features") and int(name.split(".")[1]) < 18
        if name.endswith("weight"):
            assert (value == 0.5).all() == frozen, name  # the rest is initialised anew


@pytest.mark.parametrize(
    ("arch", "train_layer", "layers"),
    [
        ("vgg16_bn", 34, [34, 35, 37, 38, 40, 41]),
        ("vgg16", 34, [24, 26, 28]),  # it has no layer 34
        ("vgg16", 28, [28]),
        ("vgg16", 30, []),
        ("vgg11", 34, [16, 18]),
    ],
)
def test_the_default_train_layer_trains_the_last_block_of_a_vgg(
    tmp_path, arch, train_layer, layers
):
    record = classifier_record(f"{arch}_ft", 3, train_layer)
    path = save(tmp_path / "c.pth.tar", {"model": record, "state_dict": thin_state(arch, 3)})
    names = {
        name.split(".")[1] for name in trained(load_classifier(path)) if name.startswith("features")
    }
    assert names == {str(layer) for layer in layers}


def test_the_default_train_layer_freezes_all_of_alexnets_features(tmp_path):
    model: Any = build(
        "alexnet_ft", 1000, weights=save(tmp_path / "w.pth", thin_state("alexnet", 1000, 0.5))
    )
    assert {name.split(".")[0] for name in trained(model)} == {"classifier"}
    assert model.classifier[6].weight.std() > 0  # anew, though the class count agrees


def test_a_fine_tuned_resnet_trains_from_layer3_on_and_fetches_imagenet_weights(torch_home):
    save(torch_home / "resnet18-f37072fd.pth", thin_state("resnet18", 1000, 0.5))
    model: Any = build("resnet18_ft", 7)
    assert {name.split(".")[0] for name in trained(model)} == {"layer3", "layer4", "fc"}
    assert (model.layer2[1].conv2.weight == 0.5).all()
    assert model.layer3[0].conv1.weight.std() > 0


def test_frozen_batch_norm_follows_the_mode_of_the_network(torch_home):
    save(torch_home / "resnet18-f37072fd.pth", thin_state("resnet18", 1000, 0.5))
    model: Any = build("resnet18_ft", 7).train()
    assert not model.bn1.weight.requires_grad and not model.layer2[1].bn2.bias.requires_grad
    model(torch.randn(2, 3, 64, 64))
    for norm in (model.bn1, model.layer2[1].bn2, model.layer3[0].bn1):
        assert norm.training and norm.num_batches_tracked == 1
    fix_batch_norm(model)
    model.train()(torch.randn(2, 3, 64, 64))
    for norm in (model.bn1, model.layer2[1].bn2, model.layer3[0].bn1):
        assert not norm.training and norm.num_batches_tracked == 1
    assert trained(model) == {
        name for name in trained(model) if name.startswith(("layer3.", "layer4.", "fc."))
    }
    assert "layer3.0.bn1.weight" in trained(model)


def test_other_families_have_no_fine_tuning_form():
    with refused("_ft", "SqueezeNet"):
        build("squeezenet1_1_ft", 2)


def test_fixed_batch_norm_keeps_its_statistics_and_survives_train_and_copies():
    model: Any = build("resnet18", 2)
    keys = list(model.state_dict())
    fix_batch_norm(model)
    assert list(model.state_dict()) == keys
    before = copy.deepcopy(model.state_dict())
    for net in (model.train(), copy.deepcopy(model).train()):
        assert net.training and net.layer1.training
        net(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 20
        assert not any(norm.training for norm in norms)
        assert all(norm.weight.grad is not None and norm.bias.grad is not None for norm in norms)
