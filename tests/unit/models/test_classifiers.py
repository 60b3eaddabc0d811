from typing import Any

import pytest
import torch

import models
from models.classifiers import build, load_classifier
from tests.mistakes import refused
from tests.unit.models.cheap import save, thin_state
from utils.errors import InputError


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_build_gives_the_number_of_classes(arch):
    model: Any = models.build(arch, 7)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "near"),
    [("vgg16bn", "vgg16_bn"), ("densenet12", "densenet121"), ("vgg16_bnft", "vgg16_bn")],
)
def test_an_unknown_architecture_names_the_nearest(arch, near):
    with refused(arch, near):
        build(arch, 2)


# weights


def test_weights_of_another_class_count_keep_all_but_the_last_layer(tmp_path):
    state = thin_state("resnet18", 1000, value=0.5)
    model: Any = build("resnet18", 7, weights=save(tmp_path / "w.pth", state))
    assert model.fc.weight.shape == (7, 512)
    assert model.fc.weight.std() > 0 and (model.fc.weight != 0.5).all()
    assert (model.conv1.weight == 0.5).all() and (model.layer4[1].bn2.running_var == 0.5).all()


def test_weights_of_the_same_class_count_keep_the_last_layer(tmp_path):
    contents = {
        "arch": "resnet18",
        "state_dict": {f"module.{k}": v for k, v in thin_state("resnet18", 7, 0.5).items()},
    }
    model: Any = build("resnet18", 7, weights=save(tmp_path / "w.pth", contents))
    assert (model.fc.weight == 0.5).all()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_in_half_precision_make_a_float32_model(tmp_path):
    state = {
        key: value.half() if value.is_floating_point() else value
        for key, value in thin_state("resnet18", 7).items()
    }
    path = save(tmp_path / "w.pth", state)
    for model in (build("resnet18", 7, weights=path), load_classifier(path, "resnet18")):
        assert {value.dtype for value in model.state_dict().values()} == {
            torch.float32,
            torch.int64,
        }


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = save(tmp_path / "w.pth", thin_state("resnet18", 7))
    with refused("w.pth", "ResNet", "layer1.2.conv1.weight"):
        build("resnet34", 7, weights=path)
    with refused("layer1.0.conv1.weight", (64, 64, 3, 3), (64, 64, 1, 1)):
        build("resnet50", 7, weights=path)
    state = thin_state("resnet18", 7) | {"extra.weight": torch.ones(1)}
    with refused("extra.weight"):
        build("resnet18", 7, weights=save(tmp_path / "w.pth", state))


def test_pretrained_takes_torchvisions_cache(torch_home):
    save(torch_home / "resnet18-f37072fd.pth", thin_state("resnet18", 1000, 0.5))
    model: Any = build("resnet18", 7, pretrained=True)
    assert (model.layer2[0].conv1.weight == 0.5).all()
    assert model.fc.weight.shape == (7, 512) and model.fc.weight.std() > 0


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_pretrained_inception_drops_the_auxiliary_classifier(torch_home):
    save(torch_home / "inception_v3_google-0cc3c7bd.pth", thin_state("inception_v3", 1000, 0.5))
    model: Any = build("inception_v3", 7, pretrained=True)
    assert (model.Mixed_6e.branch_pool.conv.weight == 0.5).all()
    assert model.AuxLogits is None and model.transform_input


def test_a_failing_download_says_what_to_do(torch_home):
    url = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    with pytest.raises(InputError) as error:
        build("resnet18", 7, pretrained=True)
    assert (
        f"save {url} as {torch_home / 'resnet18-f37072fd.pth'}, or give a local file with --weights"
        in str(error.value)
    )


def test_a_network_without_such_weights_says_so(torch_home, monkeypatch):
    # It has 600 million weights
    monkeypatch.setattr("models.classifiers._structure", lambda *args, **more: None)
    with refused("IMAGENET1K_V1", "vit_h_14", "--weights"):
        build("vit_h_14", 7, pretrained=True)
