import pytest
import torch

from models.classifiers import build, classifier_record, last_layer
from models.cut_net import open_net
from models.layers import Layer
from models.split import as_maps, feature_shape, split
from models.tail import FrozenTail, open_tail, tail_of
from tests.mistakes import refused
from utils import checkpoint
from utils.provenance import NetSource

CUTS = [
    ("resnet18", "layer2"),
    ("vgg11", "features.8"),
    ("vgg11", "classifier.0"),
    ("vit_b_16", "encoder.layers.encoder_layer_2"),
]


@pytest.mark.parametrize(("arch", "layer"), CUTS)
def test_a_tail_gives_the_nets_logits_and_what_its_last_layer_reads(arch, layer):
    torch.manual_seed(0)
    model = build(arch, 5).eval()
    head, tail = split(model, layer)
    size = 224 if arch == "vit_b_16" else 64
    images = torch.randn(2, 3, size, size)
    frozen = FrozenTail(tail, last_layer(model), feature_shape(head, size))
    with torch.no_grad():
        penultimate, logits = frozen(as_maps(head(images)))
        torch.testing.assert_close(logits, model(images))
        torch.testing.assert_close(model.get_submodule(last_layer(model))(penultimate), logits)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def test_behind_the_last_layer_there_is_no_penultimate_feature():
    model = build("resnet18", 5).eval()
    head, tail = split(model, "fc")
    images = torch.randn(2, 3, 32, 32)
    penultimate, logits = FrozenTail(tail, "fc", feature_shape(head, 32))(as_maps(head(images)))
    assert penultimate is None and torch.equal(logits, model(images))


def test_the_tail_of_an_open_net_shares_its_weights_and_leaves_it_where_it_is(tmp_path):
    model = build("resnet18", 5)
    record = {"model": classifier_record("resnet18", 5), "state_dict": model.state_dict()}
    checkpoint.save(tmp_path / "net.pth.tar", record)
    net = open_net(tmp_path / "net.pth.tar", None, Layer("layer2"))
    tail, maps = tail_of(net, (128, 4, 4)), torch.randn(2, 128, 4, 4)
    expected = open_tail(net.source, None, (128, 4, 4))(maps)
    assert all(torch.equal(one, other) for one, other in zip(tail(maps), expected))
    owned = {weights.data_ptr() for weights in net.model.parameters()}
    assert {weights.data_ptr() for weights in tail.parameters()} <= owned
    tail.to("meta")
    assert not any(weights.is_meta for weights in net.model.parameters())


def test_features_that_do_not_say_their_net_have_no_tail():
    with refused("path None"):
        open_tail(NetSource("resnet18"), None, (8, 4, 4))
