import copy

import pytest
import torch
import torchvision
from torch import nn

from models.classifiers import fix_batch_norm
from models.layers import Layer, layer_name
from models.split import HeadTail, as_maps, feature_shape, from_maps, split
from utils.errors import InputError

CUTS = [
    ("vgg11_bn", "features.15", 64),  # a raw convolution
    ("alexnet", "features.8", 64),  # a convolution that an in-place ReLU follows
    ("alexnet", "classifier.1", 64),
    ("resnet18", "layer3.1.add", 64),  # an in-place ReLU follows
    ("resnet34", "layer4.2.add", 64),
    ("densenet121", "features.denseblock3.cat", 64),
    ("mobilenet_v2", "features.0.0", 64),  # a convolution inside one of torchvision's sequences of layers
    ("swin_t", "features.3", 64),
    ("vit_b_16", "encoder.layers.encoder_layer_5.add_1", 224),
]


def untrained(arch, num_classes=5):
    """The network with cheap random weights: torchvision's own initialisation of a VGG takes seconds."""
    if arch.startswith("swin"):  # its integer buffers are tables
        return torchvision.models.get_model(arch, num_classes=num_classes)
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, num_classes=num_classes)
    for key, value in model.to_empty(device="cpu").state_dict().items():
        if "running_var" in key:
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.uniform_(-0.05, 0.05)
        else:
            value.zero_()
    return model


@pytest.fixture(scope="module")
def resnet18():
    return untrained("resnet18").eval()


def identities(module):
    return {id(parameter) for parameter in module.parameters()}


@pytest.mark.parametrize(("arch", "layer", "size"), CUTS)
def test_tail_after_head_is_the_model(arch, layer, size):
    model = untrained(arch).eval()
    head, tail = split(model, layer)
    images = torch.randn(2 if size < 100 else 1, 3, size, size)
    with torch.no_grad():
        expected = model(images)
        feature = head(images)
        before = feature.clone()
        logits = tail(feature)
    assert torch.equal(logits, expected)
    assert logits.std() > 0
    assert torch.equal(feature, before)
    assert feature.shape[1:] == feature_shape(head, size)
    assert not identities(head) & identities(tail)
    assert identities(head) | identities(tail) == identities(model)


def test_the_feature_is_the_value_of_the_named_layer(resnet18):
    caught = []
    handle = resnet18.layer3[1].bn2.register_forward_hook(lambda module, inputs, output: caught.append(output.clone()))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        feature = split(resnet18, "layer3.1.add")[0](images)
        handle.remove()
        identity = split(resnet18, "layer3.0")[0](images)
    assert torch.equal(feature, caught[0] + identity)
    assert (feature < 0).any()


def test_the_halves_share_the_models_weights():
    model = untrained("resnet18").eval()
    head, tail = split(model, "layer3.1.add")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tail(head(images))
        model.conv1.weight.mul_(2)
        model.fc.bias.add_(1)
        after = tail(head(images))
        assert torch.equal(after, model(images))
    assert not torch.equal(after, before)
    assert set(tail.state_dict()) <= set(model.state_dict())


def test_a_module_means_its_last_node(resnet18):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        feature = split(resnet18, "layer3")[0](images)
        assert torch.equal(feature, split(resnet18, "layer3.1.add")[0](images).relu())


def test_the_last_node_gives_the_logits_and_a_tail_without_parameters(resnet18):
    head, tail = split(resnet18, "fc")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(head(images), resnet18(images))
        assert torch.equal(tail(head(images)), resnet18(images))
    assert not list(tail.parameters())


def test_a_node_that_values_flow_around_is_refused_by_their_names(resnet18):
    with pytest.raises(
        InputError, match=r"layer3\.1\.bn2 is no cut: layer3\.0\.relu_1 flows around it; .* layer3\.1\.add"
    ):
        split(resnet18, "layer3.1.bn2")


def test_a_node_that_the_logits_do_not_need_is_refused():
    with pytest.raises(InputError, match=r"_assert is no cut: heads\.head flows around it; .* is reshape"):
        split(untrained("vit_b_16"), "_assert")


def test_all_values_that_flow_around_are_named():
    model = torchvision.models.get_model("googlenet", num_classes=2, aux_logits=False, init_weights=False)
    with pytest.raises(
        InputError, match=r"inception3a\.branch1\.relu, inception3a\.branch2\.1\.relu.* flow around"
    ) as error:
        split(model, "inception3a.branch4.1.conv")
    assert str(error.value).endswith("inception3a.cat")


@pytest.mark.parametrize("name", ["layer3.1.ad", "layer3.1.add_2"])
def test_an_unknown_layer_names_the_nearest(resnet18, name):
    with pytest.raises(InputError, match=rf"ResNet has no layer '{name}'; the nearest names are layer3\.1\.add, "):
        split(resnet18, name)


def test_the_images_are_no_layer(resnet18):
    with pytest.raises(InputError, match="no layer 'x'"):
        split(resnet18, "x")


def test_tracing_leaves_every_modules_mode():
    model = untrained("alexnet")
    model.train()
    model.classifier.eval()
    before = {name: module.training for name, module in model.named_modules()}
    head, _ = split(model, "features.8")
    assert feature_shape(head, 64) == (256, 3, 3)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert head.training


def test_train_and_eval_of_a_half_reach_its_dropout_and_batch_norm():
    model = untrained("mobilenet_v2").eval()
    head, tail = split(model, "features.7")
    with torch.no_grad():
        feature = head(torch.randn(2, 3, 64, 64))
        assert torch.equal(tail(feature), tail(feature))
        tail.train()
        assert not torch.equal(tail(feature), tail(feature))
    assert model.classifier[0].training and model.features[18][1].training
    assert not model.features[0][1].training
    tail.eval()
    assert not model.classifier[0].training


def test_functional_dropout_is_never_active_in_a_half():
    model = torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, drop_rate=0.5, num_classes=5).train()
    head, tail = split(model, "features.transition2")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(tail.eval()(head.eval()(images)), model.eval()(images))


class Shifted(nn.Module):
    """Adds twice its buffer to the images."""

    shift: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(1))
        self.flatten = nn.Flatten()

    def forward(self, x):
        return self.flatten(x + self.shift * 2)


def test_buffers_are_read_when_a_half_runs():
    model = Shifted()
    head, _ = split(model, "flatten")
    model.shift.fill_(5)
    assert torch.equal(head(torch.zeros(1, 3, 2, 2)), torch.full((1, 12), 10.0))
    assert list(vars(model)) == list(vars(Shifted()))


def test_only_the_tail_gets_gradients(resnet18):
    model = copy.deepcopy(resnet18)
    head, tail = split(model, "layer4.1.add")
    with torch.no_grad():
        feature = head(torch.randn(2, 3, 64, 64))
    tail(feature.requires_grad_()).sum().backward()
    assert feature.grad is not None and feature.grad.shape == feature.shape
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "fc.weight",
        "fc.bias",
    }


def test_a_model_with_fixed_batch_norm_splits(resnet18):
    model = copy.deepcopy(resnet18)
    fix_batch_norm(model)
    head, tail = split(model, "layer3.1.add")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        head.train()
        assert torch.equal(tail(head(images)), expected)


def test_head_tail_gives_both(resnet18):
    both = HeadTail(*split(resnet18, "layer3.1.add"))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        feature, logits = both(images)
        assert torch.equal(feature, both.head(images))
        assert torch.equal(logits, resnet18(images))
        # What DataParallel does on each device.
        replica = both.head._replicate_for_data_parallel()
        assert torch.equal(replica(images), feature)


def test_measuring_a_shape_leaves_running_statistics():
    model = untrained("resnet18").train()
    before = copy.deepcopy(model.state_dict())
    assert feature_shape(split(model, "layer4.1.add")[0], 32) == (512, 1, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_feature_shape_refuses_what_is_no_size_or_no_feature():
    head, _ = split(untrained("alexnet"), "features.8")
    assert feature_shape(head, 224) == (256, 13, 13)
    with pytest.raises(InputError, match=r"does not take 16×16 images \(.+\); choose another --image_size"):
        feature_shape(head, 16)
    halves, _ = split(untrained("shufflenet_v2_x0_5"), "stage2.1.chunk")
    with pytest.raises(InputError, match="gives a tuple, not a feature; choose another --layer"):
        feature_shape(halves, 64)


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
    ("arch", "conv_layer", "fc", "message"),
    [
        ("alexnet", 40, False, "features of this AlexNet has layers 0 to 12, not 40"),
        ("vgg11", 7, True, "classifier of this VGG has layers 0 to 6, not 7"),
        ("resnet18", 30, False, "layers of a ResNet are 1 to 4 .*, not 30"),
        ("resnet18", 3, True, "--fc has no meaning for a ResNet; name the layer with --layer NAME"),
        ("squeezenet1_1", 3, False, "--conv_layer has no meaning for a SqueezeNet; name the layer with --layer NAME"),
    ],
)
def test_a_conv_layer_that_there_is_not(arch, conv_layer, fc, message):
    with torch.device("meta"):
        model = torchvision.models.get_model(arch)
    with pytest.raises(InputError, match=message):
        layer_name(model, conv_layer, fc)


def test_a_layers_own_name_goes_before_its_number(resnet18):
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


def test_without_an_option_only_a_vgg_has_a_layer(resnet18):
    with torch.device("meta"):
        vgg, alexnet = (torchvision.models.get_model(arch) for arch in ("vgg16_bn", "alexnet"))
    assert Layer().node(vgg) == "features.30"
    assert Layer(default=40).node(vgg) == "features.40"
    assert Layer(fc=True, default=3).node(vgg) == "classifier.3"
    assert Layer(None, 0, default=40).node(vgg) == "features.0"
    for model, kind in ((alexnet, "AlexNet"), (resnet18, "ResNet")):
        with pytest.raises(InputError, match=f"no option says at which layer of this {kind}: name it by --conv_layer"):
            Layer().node(model)


def test_a_files_layer_stands_where_no_option_says_another():
    assert Layer().or_node("layer2.1.add") == Layer("layer2.1.add")
    assert Layer(fc=True).or_node("layer2.1.add").label == "layer2.1.add"
    assert Layer(None, 0).or_node("layer2.1.add") == Layer(None, 0)
    assert Layer("layer1").or_node("layer2.1.add") == Layer("layer1")
    assert Layer(default=40).or_node(None) == Layer(default=40)
    assert [layer.is_named for layer in (Layer(), Layer(fc=True), Layer(None, 0), Layer("a"))] == [
        False, False, True, True,
    ]  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 5, 3, 4)])
def test_maps_and_back(shape):
    feature = torch.randn(shape)
    maps = as_maps(feature)
    assert maps.ndim == 4 and maps.shape[:2] == (2, 5)
    assert torch.equal(from_maps(maps, shape[1:]), feature)


def test_tokens_become_positions_of_a_map():
    tokens = torch.randn(2, 7, 5)
    assert torch.equal(as_maps(tokens)[1, 3, 6, 0], tokens[1, 6, 3])


def test_five_axes_are_no_feature():
    with pytest.raises(InputError, match=r"2, 3 or 4 axes, not \(1, 2, 3, 4, 5\)"):
        as_maps(torch.zeros(1, 2, 3, 4, 5))
