"""Factories of other people's nets: how they are called, and what they return."""

import pytest
import torch
from torch import nn

from models.classifiers import build, classifier_record, last_layer, read_classifier
from models.logits import check_logits, has_unused_parameters
from models.own import build_foreign
from models.split import split
from tests.mistakes import check_line, refused
from tests.unit.models import foreign
from utils import checkpoint, remarks

HERE = "tests.unit.models.foreign"
IMAGES = torch.randn(2, 3, 16, 16)


@pytest.fixture(autouse=True)
def _new_run():
    remarks.forget()


def plain(num_classes=4, factory="plain"):
    torch.manual_seed(0)
    return build(f"{HERE}:{factory}", num_classes)


@pytest.mark.parametrize(
    "factory",
    [
        "plain",
        "Plain",
        "nclass",
        "n_classes_only",
        "positional",
        "keywords",
        "class_num_and_more",
        "short",
    ],
)
def test_the_number_of_classes_goes_by_the_signatures_name(factory):
    assert build_foreign(f"{HERE}:{factory}", 7)(IMAGES).shape == (2, 7)


@pytest.mark.parametrize("factory", ["ten", "ten_keywords", "Many"])
def test_a_net_of_another_number_of_logits_gets_a_new_last_layer(factory, capsys):
    net = plain(4, factory)
    assert net(IMAGES).shape == (2, 4)
    check_line(capsys.readouterr().out, f"{HERE}:{factory}", "10", "4", "fc")
    assert plain(10, factory)(IMAGES).shape == (2, 10)
    assert capsys.readouterr().out == ""


def test_a_last_layer_that_is_not_plain_is_not_replaced():
    for factory in ("convolution_of_ten", "tied_to_its_input"):
        with refused(f"{HERE}:{factory}", "10", "4", "num_classes"):
            plain(4, factory)


@pytest.mark.parametrize("factory", ["wrapped", "compiled"])
def test_wrappers_around_a_net_are_taken_off(factory):
    assert "fc.weight" in plain(4, factory).state_dict()


@pytest.mark.parametrize(
    ("factory", "facts"),
    [
        ("tuple_in_training", ("tuple", 2, "training", "entry 0")),
        ("always_tuple", ("tuple", 2, "entry 0")),
        ("features_first", ("tuple", 2, "entry 1")),
        ("dictionary", ("dict", "features", "entry 'logits'")),
        ("named_tuple", ("Outputs", 2, "entry 'logits'")),
        ("nested", ("list", 1, "entry 'out', 0")),
        ("as_maps", ("(N, 4, 1, 1)",)),
    ],
)
def test_logits_are_taken_out_of_what_a_net_returns(factory, facts, capsys):
    net = plain(factory=factory)
    check_line(capsys.readouterr().out, f"{HERE}:{factory}", *facts)
    torch.manual_seed(0)
    expected = foreign.Plain(4)
    expected.load_state_dict(net.state_dict(), strict=False)
    for mode in (True, False):
        assert torch.equal(net.train(mode)(IMAGES), expected(IMAGES))
    head, tail = split(net.eval(), "conv")
    assert torch.equal(tail(head(IMAGES)), expected(IMAGES))
    check_logits(net, f"{HERE}:{factory}", 4, 16)
    assert capsys.readouterr().out == ""  # once


def test_other_shapes_are_refused_in_one_line_before_training():
    net = plain(factory="maps_of_logits")
    with refused("maps_of_logits", (2, 4, 16, 16), (2, 4)):
        check_logits(net, f"{HERE}:maps_of_logits", 4, 16)
    with refused("16×16", "3"):
        check_logits(plain(factory="grey"), f"{HERE}:grey", 4, 16)
    with refused("8×8", "--image_size"):
        check_logits(plain(factory="large"), f"{HERE}:large", 4, 8)


def test_looking_changes_neither_statistics_nor_random_numbers():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(), foreign.NoMeta(), nn.Flatten(1)
    )
    before = {key: value.clone() for key, value in net.state_dict().items()}
    state = torch.get_rng_state()
    check_logits(net, f"{HERE}:net", 4, 1)
    assert torch.equal(state, torch.get_rng_state()) and net.training
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_net_is_looked_at_as_it_is():
    net = plain(factory="scripted")
    before = {key: value.clone() for key, value in net.state_dict().items()}
    check_logits(net, f"{HERE}:scripted", 4, 16)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_parameters_without_a_part_in_the_logits_are_named(capsys):
    assert not has_unused_parameters(foreign.Plain(4), 16)
    assert has_unused_parameters(plain(factory="tuple_in_training"), 16)
    assert (
        "the logits do not depend on auxiliary.weight, auxiliary.bias: not trained"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "factory", ["plain", "ten", "Many", "head_first", "tuple_in_training", "as_maps", "lazy"]
)
def test_a_checkpoint_brings_the_net_back(tmp_path, factory):
    torch.manual_seed(0)
    arch = f"{HERE}:{factory}"
    net = build(arch, 4, image_size=16).eval()
    record = classifier_record(arch, 4)
    checkpoint.save(
        tmp_path / "net.pth.tar", {"arch": arch, "model": record, "state_dict": net.state_dict()}
    )
    for file in ("net.pth.tar", "bare.pth"):
        state = torch.get_rng_state()
        loaded, rest = (
            read_classifier(tmp_path / file, arch)
            if file == "net.pth.tar"
            else bare(tmp_path, net, arch)
        )
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(loaded(IMAGES), net(IMAGES)) and rest["model"] == record


def bare(folder, net, arch):
    """Read a file of the weights alone, which does not say of how many classes it is."""
    torch.save(net.state_dict(), folder / "bare.pth")
    return read_classifier(folder / "bare.pth", arch)


def test_the_layer_that_gives_the_logits_is_known_wherever_it_stands():
    assert last_layer(plain(factory="head_first")) == "fc"


def test_timms_nets_are_built_by_name(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    net = build("timm:test_vit", 5).eval()
    images = torch.randn(1, 3, 160, 160)
    path = tmp_path / "net.pth.tar"
    checkpoint.save(
        path, {"model": classifier_record("timm:test_vit", 5), "state_dict": net.state_dict()}
    )
    assert torch.equal(read_classifier(path)[0](images), net(images)) and net(images).shape == (
        1,
        5,
    )
    with refused("timm", "resnet19", "resnet18"):
        build("timm:resnet19", 5)
    with refused("hf-hub:someone/net", "timm.list_models()"):
        build("timm:hf-hub:someone/net", 5)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with refused("timm:test_vit", "pip install timm"):
        build("timm:test_vit", 5)
