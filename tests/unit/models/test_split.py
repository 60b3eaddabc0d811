import pytest
import torch
import torchvision

from models.split import (
    as_maps,
    before_last,
    cuts,
    feature_shape,
    feature_shapes,
    from_maps,
    split,
    tap,
)
from tests.mistakes import refused
from tests.unit.models.cheap import untrained

CUTS = [
    ("vgg11_bn", "features.15", 64),  # a raw convolution
    ("alexnet", "features.8", 64),  # a convolution that an in-place ReLU follows
    ("alexnet", "classifier.1", 64),
    ("resnet18", "layer3.1.add", 64),  # an in-place ReLU follows
    ("resnet34", "layer4.2.add", 64),
    ("densenet121", "features.denseblock3.cat", 64),
    # A convolution inside one of torchvision's sequences of layers
    ("mobilenet_v2", "features.0.0", 64),
    ("swin_t", "features.3", 64),
    ("vit_b_16", "encoder.layers.encoder_layer_5.add_1", 224),
]


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
    handle = resnet18.layer3[1].bn2.register_forward_hook(
        lambda module, inputs, output: caught.append(output.clone())
    )
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        feature = split(resnet18, "layer3.1.add")[0](images)
        handle.remove()
        identity = split(resnet18, "layer3.0")[0](images)
    assert torch.equal(feature, caught[-1] + identity)  # the recording calls hooks too
    assert (feature < 0).any()


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
    with refused("layer3.1.bn2", "layer3.0.relu_1", "layer3.1.add"):
        split(resnet18, "layer3.1.bn2")


class WithUnused(torch.nn.Sequential):
    def forward(self, x):
        self[0](x)
        return self[1](x)


def test_a_node_that_the_logits_do_not_need_is_refused():
    model = WithUnused(torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3))
    with refused("0", "--layer"):
        split(model, "0")


def test_all_values_that_flow_around_are_named():
    model = torchvision.models.get_model(
        "googlenet", num_classes=2, aux_logits=False, init_weights=False
    )
    with refused(
        "inception3a.branch4.1.conv", "inception3a.branch1.relu", "inception3a.branch2.1.relu"
    ) as error:
        split(model, "inception3a.branch4.1.conv")
    assert str(error.value).endswith("inception3a.cat")


@pytest.mark.parametrize("name", ["layer3.1.ad", "layer3.1.add_2"])
def test_an_unknown_layer_names_the_nearest(resnet18, name):
    with refused("ResNet", name, "layer3.1.add"):
        split(resnet18, name)


def test_the_images_are_no_layer(resnet18):
    with refused("ResNet", "'x'"):
        split(resnet18, "x")


def test_a_tapped_model_gives_every_feature_and_the_logits(resnet18):
    layers = ["layer3.1.add", "layer1", "layer3.1.add", "conv1"]
    tapped = tap(resnet18, layers)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        *features, logits = tapped(images)
        for layer, feature in zip(layers, features, strict=True):
            assert torch.equal(feature, split(resnet18, layer)[0](images))
        assert torch.equal(logits, resnet18(images))
        # What DataParallel does on each device.
        replica = tapped._replicate_for_data_parallel()
        assert torch.equal(replica(images)[0], features[0])
    assert feature_shapes(tapped, 64) == [tuple(feature.shape[1:]) for feature in features]


@pytest.mark.parametrize("layer", ["layer3.1.conv1", "layer9"])
def test_a_tap_is_a_cut(resnet18, layer):
    with refused(layer):
        tap(resnet18, ["layer1", layer])


def test_feature_shape_refuses_what_is_no_size_or_no_feature():
    head, _ = split(untrained("alexnet"), "features.8")
    assert feature_shape(head, 224) == (256, 13, 13)
    with refused("16×16", "--image_size"):
        feature_shape(head, 16)
    with refused("stage2.1.chunk", "--layer"):
        split(untrained("shufflenet_v2_x0_5"), "stage2.1.chunk")


class Shifted(torch.nn.Module):
    """Holds a tensor that is neither a parameter nor a buffer,
    which no form without values replaces.
    """

    def __init__(self):
        super().__init__()
        self.conv, self.shift = torch.nn.Conv2d(3, 4, 3, stride=2), torch.ones(1, 4, 1, 1)

    def forward(self, images):
        return self.conv(images) + self.shift


def test_shapes_are_measured_without_weights_where_they_can_be(resnet18):
    assert feature_shape(Shifted(), 9) == (4, 4, 4)
    read = []
    handle = resnet18.conv1.register_forward_pre_hook(
        lambda module, _: read.append(module.weight.device.type)
    )
    assert feature_shape(resnet18, 64) == (5,)
    handle.remove()
    assert read == ["meta"] and resnet18.conv1.weight.device.type == "cpu"


def test_the_layers_that_are_listed_are_the_cuts(resnet18):
    listed = cuts(resnet18, 64)
    assert listed["layer3.1.add"] == (256, 4, 4) and listed["fc"] == (5,)
    assert list(listed).index("layer1.0.add") < list(listed).index("layer3.1.add")
    assert "layer3.1.conv1" not in listed  # the shortcut flows around it
    for layer in ("maxpool", "layer2.0.relu_1", "avgpool"):
        head, tail = split(resnet18, layer)
        images = torch.randn(2, 3, 64, 64)
        assert tuple(head(images).shape[1:]) == listed[layer]
        torch.testing.assert_close(tail(head(images)), resnet18(images))


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
    with refused((1, 2, 3, 4, 5), "--layer"):
        as_maps(torch.zeros(1, 2, 3, 4, 5))


def test_a_tail_can_be_cut_before_its_last_layer(resnet18):
    head, tail = split(resnet18, "layer3.1.add")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        penultimate = before_last(tail, "fc")(head(images))
        assert penultimate.shape == (2, 512)
        assert torch.equal(resnet18.fc(penultimate), resnet18(images))
    for behind in ("fc", "flatten"):
        _, rest = split(resnet18, behind)
        if behind == "fc":
            with refused("fc", "--layer"):
                before_last(rest, "fc")
        else:
            assert torch.equal(before_last(rest, "fc")(penultimate), penultimate)
