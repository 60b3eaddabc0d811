"""Which tensors of a file are a net's: wrappers,
dictionaries of training scripts, old names, ties, buffers.
"""

import argparse
import re
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from models.classifiers import (
    build,
    check_reloads,
    classifier_record,
    load_classifier,
    read_classifier,
)
from tests.mistakes import check_some_line, refused
from tests.unit.models import foreign
from tests.unit.models.cheap import save, thin_state
from utils import checkpoint, remarks

HERE = "tests.unit.models.test_state_dicts"
PLAIN = "tests.unit.models.foreign:plain"


class Odd(nn.Module):
    """A net whose own names look like wrappers and masks,
    with a tied weight and a buffer that no file has.
    """

    def __init__(self, num_classes):
        super().__init__()
        self.module = nn.Conv2d(3, 8, 1, bias=False)
        self.model = nn.Conv2d(8, 8, 1, bias=False)
        self.model.register_buffer("mask", torch.ones(8, 8, 1, 1).tril())
        self.register_buffer("index", torch.arange(8).flip(0), persistent=False)
        self.encode, self.decode = nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False)
        self.decode.weight = self.encode.weight
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        maps = nn.functional.conv2d(self.module(images), self.model.weight * self.model.mask).mean(
            (2, 3)
        )
        return self.fc(self.decode(self.encode(maps[:, self.index])))


class Restless(foreign.Plain):
    """Another width each time."""

    width = 8

    def __init__(self, num_classes):
        super().__init__(num_classes)
        Restless.width += 1
        self.more = nn.Linear(1, Restless.width)


class Talkative(foreign.Plain):
    """Keeps more than tensors in its state dict."""

    def get_extra_state(self):
        return {"epoch": 3}

    def set_extra_state(self, state):
        pass


@pytest.fixture(autouse=True)
def _new_run():
    remarks.forget()


@pytest.fixture
def odd():
    torch.manual_seed(0)
    return build(f"{HERE}:Odd", 4).eval()


@pytest.mark.parametrize(
    "before", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "net.model.module."]
)
def test_wrappers_go_and_a_nets_own_names_stay(tmp_path, odd, before):
    path = save(
        tmp_path / "net.pth", {f"{before}{key}": value for key, value in odd.state_dict().items()}
    )
    loaded = load_classifier(path, f"{HERE}:Odd", 4)
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(loaded(images), odd(images))
    assert torch.equal(loaded.model.mask, odd.model.mask) and torch.equal(loaded.index, odd.index)
    assert loaded.decode.weight is loaded.encode.weight


def test_a_wrapper_with_others_beside_it_is_taken_alone(tmp_path):
    net = build(PLAIN, 4)
    state = {f"student.{key}": value for key, value in net.state_dict().items()}
    state |= {f"teacher.{key}": value + 1 for key, value in net.state_dict().items()} | {
        "center": torch.ones(3)
    }
    loaded = load_classifier(save(tmp_path / "net.pth", state), PLAIN)
    assert torch.equal(loaded.fc.weight, net.fc.weight)


def test_one_name_of_a_tied_weight_is_enough_and_two_values_are_refused(tmp_path, odd):
    state = odd.state_dict()
    del state["decode.weight"]
    loaded = load_classifier(save(tmp_path / "one.pth", state), f"{HERE}:Odd")
    assert torch.equal(loaded.decode.weight, odd.decode.weight)
    state["decode.weight"] = torch.zeros(8, 8)
    with refused("two.pth", "Odd", "encode.weight", "decode.weight"):
        load_classifier(save(tmp_path / "two.pth", state), f"{HERE}:Odd")


def test_masks_of_a_compressed_foreign_net_are_folded(tmp_path):
    net = build(PLAIN, 4)
    mask = torch.zeros(4, 8)
    state = {f"module.{key}": value for key, value in net.state_dict().items()} | {
        "module.fc.mask": mask
    }
    assert not load_classifier(save(tmp_path / "net.pth", state), PLAIN).fc.weight.any()


@pytest.mark.parametrize(
    "key",
    [
        "state_dict",
        "model_state_dict",
        "model_state",
        "model",
        "net",
        "params",
        "weights",
        "my_net",
    ],
)
def test_dictionaries_of_training_scripts(tmp_path, key, capsys):
    net = build(PLAIN, 4)
    options = argparse.Namespace(
        lr=0.1, momentum=np.float64(0.9), betas=(0.9, 0.999), root=tmp_path
    )
    contents = {
        key: {f"module.{name}": value for name, value in net.state_dict().items()},
        "optimizer": torch.optim.SGD(net.parameters(), 0.1, momentum=0.9).state_dict(),
        "args": options,
        "arch": "resnet20",
        "epoch": 3,
        "best_acc": np.float32(57.5),
        "hits": torch.ones(3),
    }
    loaded, rest = read_classifier(save(tmp_path / "net.pth", contents), PLAIN, 4)
    assert torch.equal(loaded.fc.weight, net.fc.weight)
    assert (
        rest["epoch"] == 3
        and rest["args"].lr == 0.1
        and rest["best_acc"] == 57.5
        and key not in {*rest} - {"model"}
    )
    assert rest["model"] == classifier_record(PLAIN, 4) and capsys.readouterr().out == ""


def test_of_several_dictionaries_one_is_taken_and_named(tmp_path, capsys):
    net, average = build(PLAIN, 4), build(PLAIN, 4)
    contents = {
        "state_dict_ema": average.state_dict(),
        "model": {"state_dict": net.state_dict(), "epoch": 3},
    }
    loaded = load_classifier(save(tmp_path / "net.pth", contents), PLAIN)
    assert torch.equal(loaded.fc.weight, net.fc.weight)
    assert (
        "net.pth holds model.state_dict, state_dict_ema; model.state_dict is taken"
        in capsys.readouterr().out
    )
    contents = {"discriminator": nn.Linear(2, 2).state_dict(), "generator": net.state_dict()}
    loaded = load_classifier(save(tmp_path / "net.pth", contents), PLAIN)
    assert torch.equal(loaded.fc.weight, net.fc.weight)


def test_what_does_not_fit_is_one_line_with_the_first_name(tmp_path):
    state = build(PLAIN, 4).state_dict()
    state["extra"] = state.pop("conv.weight")
    with refused("net.pth", "Plain", "conv.weight", "extra"):
        load_classifier(save(tmp_path / "net.pth", state), PLAIN)


def test_weights_of_other_classes_say_what_is_new(tmp_path, capsys):
    net = build(PLAIN, 7)
    path = save(
        tmp_path / "net.pth", {f"module.{key}": value for key, value in net.state_dict().items()}
    )
    started = build(PLAIN, 4, weights=path)
    assert torch.equal(started.conv.weight, net.conv.weight) and started.fc.weight.shape == (4, 8)
    check_some_line(capsys.readouterr().out, path, "7", "4", "fc")


def test_safetensors_are_read_and_written(tmp_path, odd):
    path = tmp_path / "net.safetensors"
    record = classifier_record(f"{HERE}:Odd", 4)
    checkpoint.save_safetensors(path, odd.state_dict(), {"model": record, "epoch": 3})
    loaded, rest = read_classifier(path, f"{HERE}:Odd")
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(loaded(images), odd(images)) and rest == {"model": record, "epoch": 3}
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(build(PLAIN, 4).state_dict(), tmp_path / "theirs.safetensors")
    assert load_classifier(tmp_path / "theirs.safetensors", PLAIN).fc.out_features == 4


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_official_files_with_auxiliary_classifiers_are_taken(tmp_path, arch):
    state = thin_state(arch, 1000, 0.5)
    assert any(key.lower().startswith("aux") for key in state)
    net: Any = build(arch, 7, weights=save(tmp_path / "w.pth", state))
    assert (
        net.fc.weight.shape[0] == 7
        and (load_classifier(tmp_path / "w.pth", arch).fc.weight == 0.5).all()
    )


def test_official_files_with_old_names_are_taken(tmp_path):
    state = thin_state("densenet121", 1000, 0.5)
    old = {
        re.sub(r"(denselayer\d+)\.(norm|conv)([12])", r"\1.\2.\3", key): value
        for key, value in state.items()
        if "num_batches" not in key
    }
    assert old.keys().isdisjoint({"features.denseblock1.denselayer1.norm1.weight"})
    net: Any = load_classifier(save(tmp_path / "densenet121-a639ec97.pth", old), "densenet121")
    assert (net.features.denseblock4.denselayer16.conv2.weight == 0.5).all()
    vit = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in thin_state("vit_b_32", 5, 0.5).items()
    }
    net = load_classifier(save(tmp_path / "vit_b_32.pth", vit), "vit_b_32")
    assert (net.encoder.layers[11].mlp[3].weight == 0.5).all()


def test_a_net_that_asks_for_the_version_of_its_file(tmp_path):
    state = torchvision.models.mnasnet0_5(num_classes=3).state_dict()
    path = save(tmp_path / "c.pth.tar", {"arch": "mnasnet0_5", "state_dict": dict(state)})
    net = load_classifier(path)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_a_net_whose_checkpoint_could_not_be_read_is_refused_before_training():
    for factory, facts in (
        ("Restless", ("more.weight", (9, 1), (10, 1))),
        ("Talkative", ("_extra_state", "dict")),
    ):
        net = build(f"{HERE}:{factory}", 4)
        with refused(factory, *facts):
            check_reloads(net, classifier_record(f"{HERE}:{factory}", 4), 16)
    check_reloads(build(f"{HERE}:Odd", 4), classifier_record(f"{HERE}:Odd", 4), 16)
