import pytest
import torch

from models.cut_net import open_net
from models.heads import MapHead, freeze_heads, head_flops
from models.layers import Layer
from models.split import as_maps
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.provenance import NetSource, Provenance


def test_both_heads_give_maps_of_pixels_that_each_normalises_as_its_net_does(fitted, cpu):
    paths = [
        fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar" for seed in (0, 5)
    ]
    nets = [
        open_net(path, None, Layer(layer))
        for path, layer in zip(paths, ("layer2.1.add", "flatten"))
    ]
    constants = [NORMALISATIONS["imagenet"], NORMALISATIONS["half"]]
    nets = [net.normalised_by(of_net) for net, of_net in zip(nets, constants)]
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    heads = freeze_heads(*nets, pixels, cpu.device)
    assert heads.sources == (nets[0].source, nets[1].source)
    assert heads.shapes == ((128, 4, 4), (512,))
    for net, head, of_net in zip(nets, heads.modules, constants):
        expected = as_maps(net.head.eval()(normalise(pixels, *of_net)))
        torch.testing.assert_close(head(pixels), expected, rtol=1e-4, atol=1e-5)
        assert not head(pixels).requires_grad
    assert heads.modules[1](pixels).shape == (2, 512, 1, 1)


def test_a_head_is_held_in_evaluation_mode():
    head = MapHead(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Dropout(0.9)).train())
    x = torch.ones(2, 3, 2, 2)
    assert torch.equal(head(x), x.reshape(2, 12, 1, 1))


CLASSES = ["red", "green"]


def test_flops_are_those_of_the_convolutions_up_to_the_layer():
    """resnet18's first convolution:
    3 · 7² products and sums for each of 64 · 32² values, at 64 pixels.
    """
    first = NetSource("resnet18", "conv1")
    known = Provenance(first, first, classes=CLASSES, transform={"image_size": 64})
    assert head_flops(known) == 2 * (2 * 3 * 7**2 * 64 * 32**2)
    deeper = Provenance(
        first, NetSource("resnet18", "layer1.0.add"), classes=CLASSES, transform={"image_size": 64}
    )
    assert head_flops(deeper) == head_flops(known) + 2 * (2 * 64 * 3**2 * 64 * 16**2)


@pytest.mark.parametrize("source", [NetSource(), NetSource("package.module:factory", "layer")])
def test_the_flops_of_a_net_that_nobody_names_are_not_known(source):
    assert head_flops(Provenance(source, source, classes=CLASSES)) is None
