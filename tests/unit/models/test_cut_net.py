import dataclasses

import pytest
import torch

from models.classifiers import build, load_classifier
from models.cut_net import open_net, reopen_net, untrained_net
from models.layers import Layer
from models.split import split
from tests.mistakes import refused
from utils.files import sha256
from utils.provenance import NetSource, Provenance

LAYER = "layer2.1.add"


@pytest.fixture
def nets(fitted):
    return [
        fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar" for seed in (0, 5)
    ]


def test_a_net_opens_cut_at_its_layer_with_what_it_is(nets, tmp_path):
    net = open_net(nets[0], None, Layer(None, 2))
    assert net.source == NetSource("resnet18", LAYER, str(nets[0]), sha256(nets[0]))
    assert net.source.path == str(nets[0])
    assert net.state["model"]["arch"] == "resnet18" and "state_dict" not in net.state
    model, images = load_classifier(nets[0]), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(net.tail.eval()(net.head.eval()(images)), model(images))
    with refused("ResNet", "1", "4", "30"):
        open_net(nets[0], None, Layer(None, 30))
    with refused("ResNet", "--conv_layer", "--layer", "--list_layers"):
        open_net(nets[0], None, Layer())
    with refused("resnet18", "--arch", "vgg16"):
        open_net(nets[0], "vgg16", Layer(None, 2))


def test_an_untrained_head_is_the_net_as_it_is_initialised():
    source = NetSource("resnet18", LAYER)
    torch.manual_seed(3)
    head = untrained_net(source, 5).head
    torch.manual_seed(3)
    expected, _ = split(build("resnet18", 5).eval(), LAYER)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(head(images), expected(images))
    assert not head.training and not head(images).requires_grad
    untrained_net(NetSource("resnet18_ft", LAYER), 5)  # asks for no ImageNet weights


@pytest.mark.parametrize(
    ("source", "facts"),
    [
        (NetSource(None, LAYER), ("None", LAYER, 5)),
        (NetSource("resnet18"), ("resnet18", "None", 5)),
    ],
)
def test_a_net_that_nobody_recorded_cannot_be_built_anew(source, facts):
    with refused(*facts):
        untrained_net(source, 5)


def test_the_penultimate_feature_is_what_follows_the_cut_up_to_the_last_layer(nets):
    model = load_classifier(nets[1])
    head, _ = split(model, LAYER)
    source = open_net(nets[1], None, Layer(LAYER)).source
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        feature = head(images)
        through = reopen_net(source, None).penultimate(tuple(feature.shape[1:]))
        torch.testing.assert_close(model.fc(through(feature)), model(images))
    assert (
        not any(parameter.requires_grad for parameter in through.parameters())
        and not through.training
    )


def test_the_net_must_be_the_one_that_was_stored(nets):
    source = open_net(nets[1], None, Layer(LAYER)).source
    with refused(nets[1], "00000000"):
        reopen_net(dataclasses.replace(source, sha256="0" * 64), None)
    with refused("path None", "layer None"):
        reopen_net(NetSource(), None)


def test_a_tapped_net_knows_its_layers(nets):
    tapped = open_net(nets[0], None, [Layer(conv_layer=1), Layer(LAYER)])
    assert [source.layer for source in tapped.sources] == ["layer1.1.add", LAYER]
    assert {source.sha256 for source in tapped.sources} == {sha256(nets[0])}
    with torch.no_grad():
        shapes = [part.shape[1:] for part in tapped.taps(torch.zeros(1, 3, 32, 32))]
    assert [len(shape) for shape in shapes] == [3, 3, 1]
    with refused("ResNet", "layer9", "layer4", "--list_layers"):
        open_net(nets[0], None, [Layer("layer9")], "; say more")


def test_what_an_option_says_of_the_axes_holds_wherever_the_net_is_opened(nets):
    """Read as (N, H, W, C), maps (N, 4, 8,
    8) have 8 channels of 4 × 8; the record of the net says so.
    """
    plain, moved = (
        open_net(nets[0], None, Layer(LAYER, channels_last=last)) for last in (None, True)
    )
    ((channels, height, width),) = plain.shapes(32)
    assert moved.shapes(32) == [(width, channels, height)]
    kept = Provenance.from_record(Provenance(moved.source).to_record()).a
    assert kept.channels_last and reopen_net(kept, None).shapes(32) == moved.shapes(32)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(moved.tail(moved.head(images)), plain.tail(plain.head(images)))
