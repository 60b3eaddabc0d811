"""Checkpoints of classifiers, ours and released ones: what is read, and what is refused."""

import copy
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

import models
from models.classifiers import build, classifier_record, load_classifier, read_classifier
from tests.mistakes import refused
from tests.unit.models.cheap import save, thin_state
from utils import checkpoint


def test_our_checkpoint_rebuilds_its_classifier_without_flags(tmp_path):
    model: Any = build("resnet18", 7).eval()
    path = tmp_path / "c.pth.tar"
    record = classifier_record("resnet18", 7)
    checkpoint.save(
        path, {"epoch": 3, "model": record, "state_dict": model.state_dict(), "classes": ["a", "b"]}
    )
    random_state = torch.get_rng_state()
    loaded: Any
    loaded, rest = read_classifier(path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not loaded.training
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded(images), model(images))
    assert rest == {"epoch": 3, "model": record, "classes": ["a", "b"]}
    as_expected: Any = models.load_classifier(path, "resnet18", 7)
    assert as_expected.fc.out_features == 7


def test_a_loaded_classifier_and_its_file_leave_each_other_alone(tmp_path):
    path = tmp_path / "c.pth.tar"
    checkpoint.save(path, {"arch": "resnet18", "state_dict": build("resnet18", 7).state_dict()})
    model: Any = load_classifier(path)
    stored = path.read_bytes()
    with torch.no_grad():
        model.fc.weight.fill_(0.5)
    assert path.read_bytes() == stored
    before = copy.deepcopy(model.state_dict())
    checkpoint.save(path, {"arch": "resnet18", "state_dict": build("resnet18", 7).state_dict()})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc"
)
def test_an_optimisers_state_takes_no_memory_until_it_is_used(tmp_path):
    momentum = torch.rand(1 << 24)  # 64 MiB, which no earlier test can have left free
    contents = {
        "arch": "resnet18",
        "state_dict": thin_state("resnet18", 7),
        "optimizer": {"state": {0: momentum}},
    }
    path = save(tmp_path / "c.pth.tar", contents)

    def resident_bytes():
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    read_classifier(path)  # whatever is built the first time
    before = resident_bytes()
    _, rest = read_classifier(path)
    assert resident_bytes() - before < momentum.nbytes / 4
    assert torch.equal(rest["optimizer"]["state"][0], momentum)
    assert resident_bytes() - before > momentum.nbytes / 2


def test_a_fine_tuning_form_is_rebuilt_frozen_and_without_imagenet_weights(tmp_path, torch_home):
    state = thin_state("vgg11_bn", 7, 0.5)
    path = tmp_path / "c.pth.tar"
    checkpoint.save(
        path, {"model": classifier_record("vgg11_bn_ft", 7, train_layer=18), "state_dict": state}
    )
    model: Any = load_classifier(path, "vgg11_bn")
    assert not model.features[15].weight.requires_grad and model.features[18].weight.requires_grad


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    ("arch", "released"),
    [
        ("alexnet", lambda key: key.replace("features.", "features.module.")),
        ("vgg16_bn", lambda key: key.replace("features.", "features.module.")),
        ("resnet18", lambda key: f"module.{key}"),
        ("resnet34", lambda key: key),
    ],
)
def test_released_checkpoints_load(tmp_path, arch, released, zipped):
    state = thin_state(arch, 9)
    contents = {
        "epoch": 300,
        "arch": arch,
        "state_dict": {released(key): value for key, value in state.items()},
        "best_acc1": torch.tensor(71.5),
        "acc1": torch.tensor(70.0),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-4, "params": [0]}]},
    }
    model: Any
    model, rest = read_classifier(save(tmp_path / "c.pth.tar", contents, zipped))
    assert set(model.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert rest["best_acc1"].item() == 71.5 and "state_dict" not in rest


def test_masks_of_a_compressed_net_are_folded(tmp_path):
    state = thin_state("resnet18", 7)
    mask = torch.zeros(7, 512)
    mask[2] = 1
    contents = {"arch": "resnet18", "state_dict": {**state, "fc.mask": mask}}
    model: Any = load_classifier(save(tmp_path / "c.pth.tar", contents, zipped=False))
    assert torch.equal(model.fc.weight, state["fc.weight"] * mask)


def test_a_bare_state_dict_needs_its_architecture(tmp_path):
    path = save(tmp_path / "w.pth", thin_state("resnet18", 7))
    with refused("w.pth", "--arch"):
        load_classifier(path)
    model: Any
    model, rest = read_classifier(path, "resnet18")
    assert model.fc.out_features == 7 and rest == {"model": classifier_record("resnet18", 7)}


def test_batch_counters_may_be_missing_as_in_old_files(tmp_path):
    state = {
        key: value for key, value in thin_state("resnet18", 7).items() if "num_batches" not in key
    }
    model: Any = load_classifier(save(tmp_path / "w.pth", state), "resnet18")
    assert model.bn1.num_batches_tracked == 0 and model.bn1.num_batches_tracked.device.type == "cpu"


def test_a_regnet_loads(tmp_path):
    model: Any = build("regnet_x_400mf", 3)
    path = save(tmp_path / "w.pth", model.state_dict())
    loaded = load_classifier(path, "regnet_x_400mf")
    assert all(
        torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items()
    )


def test_what_is_not_expected_is_refused(tmp_path):
    path = save(
        tmp_path / "c.pth.tar", {"arch": "resnet18", "state_dict": thin_state("resnet18", 200)}
    )
    with refused("c.pth.tar", "resnet18", "--arch", "alexnet"):
        load_classifier(path, "alexnet")
    with refused("c.pth.tar", "200", "20"):
        load_classifier(path, num_classes=20)
    with refused("w.pth", "AlexNet", "features.0.weight"):
        load_classifier(save(tmp_path / "w.pth", thin_state("resnet18", 7)), "alexnet")
    with refused("w.pth", "ResNet", "layer1.2.conv1.weight"):
        load_classifier(tmp_path / "w.pth", "resnet34")


@pytest.mark.parametrize(
    "contents",
    [
        {"state_dict": {"nonLinearLayers_p_pre": torch.zeros(2)}},
        {"nonLinearLayers_p_pre": torch.zeros(2)},
        {"trans_net": {"layers": 3}, "state_dict": {"logit_p": torch.zeros(2)}},
    ],
)
def test_a_trans_net_is_no_classifier(tmp_path, contents):
    with refused("g.pth", "Trans-Net"):
        load_classifier(save(tmp_path / "g.pth", contents), "resnet18")


def test_a_file_with_neither_says_what_it_holds(tmp_path):
    path = save(tmp_path / "odd.pth", {"optimizer": {}, "epoch": 3})
    with refused("odd.pth", "optimizer", "epoch"):
        load_classifier(path, "resnet18")
