import copy
import resource
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import models
from models.classifiers import build, classifier_record, fix_batch_norm, last_layer, load_classifier, read_classifier
from models.small.author_keys import authors_state
from models.small.stages import SmallNet
from utils import checkpoint
from utils.errors import InputError


def thin_state(arch, num_classes, value=None):
    """A state dict of the right shapes that is small on disk: every tensor repeats one number."""
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, num_classes=num_classes).state_dict()
    thin = {}
    for index, (key, tensor) in enumerate(state.items()):
        number = torch.full((), value if value is not None else 0.001 * index)
        thin[key] = number.to(tensor.dtype).expand(tensor.shape)
    return thin


def save(path, contents, zipped=True):
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """torchvision's weights as a person without a network has them: an empty cache."""

    def no_network(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "hub/checkpoints").mkdir(parents=True)
    return tmp_path / "hub/checkpoints"


@pytest.mark.parametrize("arch", ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5"])
def test_build_gives_the_number_of_classes(arch):
    model: Any = models.build(arch, 7)
    assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 7)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arch", "near"), [("vgg16bn", "vgg16_bn"), ("densenet12", "densenet121"), ("vgg16_bnft", "vgg16_bn")]
)
def test_an_unknown_architecture_names_the_nearest(arch, near):
    with pytest.raises(InputError, match=f"no architecture '{arch}'; the nearest name is {near}"):
        build(arch, 2)


# weights


def test_weights_of_another_class_count_keep_all_but_the_last_layer(tmp_path):
    state = thin_state("resnet18", 1000, value=0.5)
    model: Any = build("resnet18", 7, weights=save(tmp_path / "w.pth", state))
    assert model.fc.weight.shape == (7, 512)
    assert model.fc.weight.std() > 0 and (model.fc.weight != 0.5).all()
    assert (model.conv1.weight == 0.5).all() and (model.layer4[1].bn2.running_var == 0.5).all()


def test_weights_of_the_same_class_count_keep_the_last_layer(tmp_path):
    contents = {"arch": "resnet18", "state_dict": {f"module.{k}": v for k, v in thin_state("resnet18", 7, 0.5).items()}}
    model: Any = build("resnet18", 7, weights=save(tmp_path / "w.pth", contents))
    assert (model.fc.weight == 0.5).all()
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_weights_in_half_precision_make_a_float32_model(tmp_path):
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in thin_state("resnet18", 7).items()
    }
    path = save(tmp_path / "w.pth", state)
    for model in (build("resnet18", 7, weights=path), load_classifier(path, "resnet18")):
        assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}


def test_weights_that_do_not_fit_are_named(tmp_path):
    path = save(tmp_path / "w.pth", thin_state("resnet18", 7))
    with pytest.raises(
        InputError, match=r"w\.pth does not fit ResNet: layer1\.2\.conv1\.weight is missing, .* and \d+ more"
    ):
        build("resnet34", 7, weights=path)
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight is \(64, 64, 3, 3\) instead of \(64, 64, 1, 1\)"):
        build("resnet50", 7, weights=path)
    state = thin_state("resnet18", 7) | {"extra.weight": torch.ones(1)}
    with pytest.raises(InputError, match=r"extra\.weight is unexpected"):
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
    assert f"save {url} as {torch_home / 'resnet18-f37072fd.pth'}, or give a local file with --weights" in str(
        error.value
    )


def test_a_network_without_such_weights_says_so(torch_home, monkeypatch):
    monkeypatch.setattr("models.classifiers._structure", lambda *args: None)  # it has 600 million weights
    with pytest.raises(InputError, match="no IMAGENET1K_V1 weights of vit_h_14; give a local file with --weights"):
        build("vit_h_14", 7, pretrained=True)


# fine-tuning forms


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
    assert {name for name, _ in model.named_parameters() if name.startswith("classifier")} <= trained(model)
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
def test_the_default_train_layer_trains_the_last_block_of_a_vgg(tmp_path, arch, train_layer, layers):
    record = classifier_record(f"{arch}_ft", 3, train_layer)
    path = save(tmp_path / "c.pth.tar", {"model": record, "state_dict": thin_state(arch, 3)})
    names = {name.split(".")[1] for name in trained(load_classifier(path)) if name.startswith("features")}
    assert names == {str(layer) for layer in layers}


def test_the_default_train_layer_freezes_all_of_alexnets_features(tmp_path):
    model: Any = build("alexnet_ft", 1000, weights=save(tmp_path / "w.pth", thin_state("alexnet", 1000, 0.5)))
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
    assert trained(model) == {name for name in trained(model) if name.startswith(("layer3.", "layer4.", "fc."))}
    assert "layer3.0.bn1.weight" in trained(model)


def test_other_families_have_no_fine_tuning_form():
    with pytest.raises(InputError, match="only VGG, AlexNet and ResNets have a fine-tuning form"):
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


# checkpoints


def test_our_checkpoint_rebuilds_its_classifier_without_flags(tmp_path):
    model: Any = build("resnet18", 7).eval()
    path = tmp_path / "c.pth.tar"
    record = classifier_record("resnet18", 7)
    checkpoint.save(path, {"epoch": 3, "model": record, "state_dict": model.state_dict(), "classes": ["a", "b"]})
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from Linux's /proc")
def test_an_optimisers_state_takes_no_memory_until_it_is_used(tmp_path):
    momentum = torch.rand(1 << 24)  # 64 MiB, which no earlier test can have left free
    contents = {"arch": "resnet18", "state_dict": thin_state("resnet18", 7), "optimizer": {"state": {0: momentum}}}
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
    checkpoint.save(path, {"model": classifier_record("vgg11_bn_ft", 7, train_layer=18), "state_dict": state})
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
    with pytest.raises(InputError, match=r"w\.pth does not say its architecture; give it with --arch"):
        load_classifier(path)
    model: Any
    model, rest = read_classifier(path, "resnet18")
    assert model.fc.out_features == 7 and rest == {"model": classifier_record("resnet18", 7)}


def test_batch_counters_may_be_missing_as_in_old_files(tmp_path):
    state = {key: value for key, value in thin_state("resnet18", 7).items() if "num_batches" not in key}
    model: Any = load_classifier(save(tmp_path / "w.pth", state), "resnet18")
    assert model.bn1.num_batches_tracked == 0 and model.bn1.num_batches_tracked.device.type == "cpu"


def test_a_regnet_loads(tmp_path):
    model: Any = build("regnet_x_400mf", 3)
    path = save(tmp_path / "w.pth", model.state_dict())
    loaded = load_classifier(path, "regnet_x_400mf")
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_what_is_not_expected_is_refused(tmp_path):
    path = save(tmp_path / "c.pth.tar", {"arch": "resnet18", "state_dict": thin_state("resnet18", 200)})
    with pytest.raises(InputError, match=r"checkpoint .*c\.pth\.tar holds a resnet18, --arch says alexnet"):
        load_classifier(path, "alexnet")
    with pytest.raises(InputError, match="holds a classifier of 200 classes, 20 are expected"):
        load_classifier(path, num_classes=20)
    with pytest.raises(InputError, match=r"does not fit alexnet: it has no classifier\.6\.weight"):
        load_classifier(save(tmp_path / "w.pth", thin_state("resnet18", 7)), "alexnet")
    with pytest.raises(InputError, match=r"does not fit ResNet: layer1\.2\.conv1\.weight is missing"):
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
    with pytest.raises(InputError, match="holds a Trans-Net, a classifier is expected"):
        load_classifier(save(tmp_path / "g.pth", contents), "resnet18")


def test_a_file_with_neither_says_what_it_holds(tmp_path):
    path = save(tmp_path / "odd.pth", {"optimizer": {}, "epoch": 3})
    with pytest.raises(InputError, match="neither a state_dict nor weights alone, but optimizer, epoch"):
        load_classifier(path, "resnet18")


# small networks


@pytest.mark.parametrize(
    ("arch", "parameters"), [("wrn_28_10", 36_536_884), ("resnet8x4", 1_233_540), ("mobilenet", 3_309_476)]
)
def test_small_networks_are_built_by_name(arch, parameters):
    with torch.device("meta"):
        model: Any = models.build(arch, 100)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert last_layer(model) in ("fc", "linear") and all(parameter.requires_grad for parameter in model.parameters())


def test_names_that_torchvision_has_stay_torchvisions():
    with torch.device("meta"):
        assert isinstance(build("vgg13_bn", 10), torchvision.models.VGG)
        assert isinstance(build("resnet18_imagenet", 10), torchvision.models.ResNet)
        assert isinstance(build("vgg13_bn_32", 10), SmallNet) and isinstance(build("ResNet50", 10), SmallNet)


@pytest.mark.parametrize(
    ("arch", "near"), [("wrn_28_x", "wrn_28_10"), ("resnet9x4", "resnet8x4"), ("mobilenetV3", "mobilenetV2")]
)
def test_small_networks_are_among_the_nearest_names(arch, near):
    with pytest.raises(InputError, match=f"no architecture '{arch}'; the nearest name is {near}"):
        build(arch, 2)


def test_small_networks_have_no_imagenet_weights_and_no_fine_tuning_form():
    with pytest.raises(InputError, match="no ImageNet weights of resnet8; give a local file with --weights FILE"):
        build("resnet8", 7, pretrained=True)
    with pytest.raises(InputError, match=r"only VGG, AlexNet and ResNets have a fine-tuning form \(_ft\)"):
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
    with pytest.raises(InputError, match="does not fit SmallNet: "):
        load_classifier(path, "resnet8")
    with pytest.raises(InputError, match="does not say its architecture"):
        load_classifier(path)


@pytest.mark.parametrize("key", ["state_dict", "model", "net"])
def test_hsakds_backbone_files_load(tmp_path, key):
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in authors_state(models.build_with_heads("resnet8", 7, "hsakd", heads=False)).items()
    }
    model: Any = load_classifier(save(tmp_path / "b.pth", {key: backbone, "epoch": 3, "acc": 0.7}), "resnet8")
    assert torch.equal(model.fc.weight, backbone["fc.weight"])


def test_our_checkpoint_of_a_small_network_needs_no_flags(tmp_path):
    model = build("wrn_10_0.5", 7).eval()
    path = tmp_path / "c.pth.tar"
    checkpoint.save(path, {"model": classifier_record("wrn_10_0.5", 7), "state_dict": model.state_dict()})
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(load_classifier(path)(images), model(images))
