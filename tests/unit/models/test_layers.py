import pytest
import torch
import torchvision
from torch import nn

from models.layers import Layer, layer_name, note_of_depths, paired_stages, usual_layer
from models.split import feature_shape, split
from tests.mistakes import refused
from utils.provenance import NetSource


@pytest.mark.parametrize(
    ("arch", "conv_layer", "fc", "name", "kind"),
    [
        ("vgg16_bn", 24, False, "features.24", nn.Conv2d),
        ("vgg16_bn", 27, False, "features.27", nn.Conv2d),
        ("vgg16_bn", 30, False, "features.30", nn.Conv2d),
        ("vgg16_bn", 34, False, "features.34", nn.Conv2d),
        ("vgg16_bn", 37, False, "features.37", nn.Conv2d),
        ("vgg16_bn", 40, False, "features.40", nn.Conv2d),
        ("vgg16_bn", 0, True, "classifier.0", nn.Linear),
        ("vgg16", 3, True, "classifier.3", nn.Linear),
        ("alexnet", 8, False, "features.8", nn.Conv2d),
        ("alexnet", 10, False, "features.10", nn.Conv2d),
        ("alexnet", 1, True, "classifier.1", nn.Linear),
        ("alexnet", 4, True, "classifier.4", nn.Linear),
    ],
)
def test_conv_layer_of_vgg_and_alexnet_counts_modules(arch, conv_layer, fc, name, kind):
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    assert layer_name(model, conv_layer, fc) == name
    assert isinstance(model.get_submodule(name), kind)


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("resnet18", "layer3.1.add", (256, 14, 14)),
        ("resnet34", "layer3.5.add", (256, 14, 14)),
        ("resnet50", "layer3.5.add", (1024, 14, 14)),
        ("resnext50_32x4d", "layer3.5.add", (1024, 14, 14)),
    ],
)
def test_conv_layer_3_of_a_resnet_is_its_last_14x14_map(arch, name, shape):
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
        assert layer_name(model, 3) == name
        head, _ = split(model, name)
        assert feature_shape(head, 224) == shape
        assert layer_name(model, 4).startswith("layer4.")


@pytest.mark.parametrize(
    ("arch", "conv_layer", "fc", "facts"),
    [
        ("alexnet", 40, False, ("features", "AlexNet", "0", "12", "40")),
        ("vgg11", 7, True, ("classifier", "VGG", "0", "6", "7")),
        ("resnet18", 30, False, ("ResNet", "1", "4", "30")),
        ("resnet18", 3, True, ("--fc", "ResNet", "--layer")),
        ("squeezenet1_1", 3, False, ("--conv_layer", "SqueezeNet", "--layer")),
    ],
)
def test_a_conv_layer_that_there_is_not(arch, conv_layer, fc, facts):
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    with refused(*facts):
        layer_name(model, conv_layer, fc)


def test_a_layers_own_name_goes_before_its_number():
    with torch.device("meta"):
        resnet18 = torchvision.models.get_model("resnet18")
    assert Layer(None, 3).node(resnet18) == "layer3.1.add"
    assert Layer("layer2.0.add", 3).node(resnet18) == "layer2.0.add"


@pytest.mark.parametrize(
    ("layer", "label"),
    [
        (Layer(None, 30), "30"),
        (Layer(None, 0), "0"),
        (Layer(None, 3, fc=True), "fc3"),
        (Layer("layer3.5.add", 30), "layer3.5.add"),
        (Layer("classifier.3", 3, fc=True), "classifier.3"),
        (Layer(), "30"),
        (Layer(default=40), "40"),
        (Layer(fc=True, default=3), "fc3"),
        (Layer(None, 0, default=40), "0"),
    ],
)
def test_a_layers_label_is_its_name_or_number(layer, label):
    assert layer.label == label


def test_without_an_option_only_a_vgg_has_a_layer():
    with torch.device("meta"):
        vgg, alexnet, resnet18 = map(
            torchvision.models.get_model, ("vgg16_bn", "alexnet", "resnet18")
        )
    assert Layer().node(vgg) == "features.30"
    assert Layer(default=40).node(vgg) == "features.40"
    assert Layer(fc=True, default=3).node(vgg) == "classifier.3"
    assert Layer(None, 0, default=40).node(vgg) == "features.0"
    for model, kind in ((alexnet, "AlexNet"), (resnet18, "ResNet")):
        with refused(kind, "--conv_layer", "--layer", "--list_layers"):
            Layer().node(model)


@pytest.mark.parametrize(
    ("arch", "words", "node"),
    [
        ("vgg16_bn", ["--conv_layer", "40"], "features.40"),  # conv5_3
        ("vgg11", ["--conv_layer", "18"], "features.18"),
        ("alexnet", ["--conv_layer", "10"], "features.10"),  # conv5
        ("resnet18", ["--conv_layer", "3"], "layer3.1.add"),
        ("squeezenet1_1", ["--layers", "stages"], None),
    ],
)
def test_a_usual_layer_can_be_pasted(arch, words, node):
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    assert usual_layer(model) == words
    if node:
        assert Layer(conv_layer=int(words[1])).node(model) == node


def test_a_files_layer_stands_where_no_option_says_another():
    assert Layer().or_source(NetSource(layer="layer2.1.add")) == Layer("layer2.1.add")
    assert Layer(fc=True).or_source(NetSource(layer="layer2.1.add")).label == "layer2.1.add"
    assert Layer(None, 0).or_source(NetSource(layer="layer2.1.add")) == Layer(None, 0)
    assert Layer("layer1").or_source(NetSource(layer="layer2.1.add")) == Layer("layer1")
    assert Layer(default=40).or_source(NetSource()) == Layer(default=40)
    swin = NetSource(layer="features.3", channels_last=True)
    assert (
        Layer().or_source(swin).channels_last and Layer("features.3").or_source(swin).channels_last
    )
    assert not Layer(channels_last=False).or_source(swin).channels_last
    assert [layer.is_named for layer in (Layer(), Layer(fc=True), Layer(None, 0), Layer("a"))] == [
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("number", "node"), [(1, "relu"), (3, "layer2"), (5, "layer4"), (-1, "layer4"), (-5, "relu")]
)
def test_a_stage_is_counted_from_either_end(number, node):
    assert Layer(f"stage:{number}").node(resnet((1, 1, 1, 1)), 32) == node


def test_a_stage_is_counted_at_the_size_that_an_option_says():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, 8, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, 2, 1), nn.ReLU())
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)])
    assert Layer("stage:1").node(net, 32) == Layer("stage:1", image_size=64).node(net, 8) == "1"
    assert Layer("stage:2").node(net, 32) == "3"


@pytest.mark.parametrize("number", [0, 6, -6])
def test_a_stage_that_there_is_not(number):
    with refused("ResNet", "1", "5", "32", number, "relu", "layer4"):
        Layer(f"stage:{number}").node(resnet((1, 1, 1, 1)), 32)


@pytest.mark.parametrize(
    ("first", "second", "pairs"),
    [
        ("abc", "xyz", ["ax", "by", "cz"]),
        ("abcde", "xyz", ["cx", "dy", "ez"]),
        ("c", "xyz", ["cz"]),
    ],
)
def test_stages_are_matched_from_the_last(first, second, pairs):
    assert paired_stages(first, second) == [tuple(pair) for pair in pairs]


@pytest.mark.parametrize(
    ("blocks", "layer", "said"),
    [
        ((2, 2, 2, 2), "layer1.1.add", None),
        ((2, 2, 2, 2), "layer1", None),
        ((2, 2, 6, 2), "layer3", None),  # its end, whatever the depth
        (
            (2, 2, 6, 2),
            "layer3.1.add",
            "layer3.1.add lies 75% through stage 4 of 5 in net A but 25% ",
        ),
        ((2, 2, 6, 2), "fc", None),  # behind all stages
    ],
)
def test_the_same_name_at_another_depth_is_said(blocks, layer, said):
    note = note_of_depths([resnet((2, 2, 2, 2)), resnet(blocks)], layer, 32)
    assert note is None if said is None else said in str(note)
    assert said is None or str(note).endswith(
        "takes the same depth of both: relu, layer1, layer2, layer3, layer4"
    )


def resnet(blocks):
    return torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, blocks, num_classes=2)
