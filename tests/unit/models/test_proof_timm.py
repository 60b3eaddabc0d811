"""Nets of timm, whose norm layers activate too: what is stored is what a forward hook sees."""

import pytest
import torch
from torch import nn

from models.cut_net import CutNet
from utils import remarks
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.provenance import NetSource

timm = pytest.importorskip("timm")
CPU = torch.device("cpu")
NETS = {
    "test_efficientnet": [
        "conv_stem",
        "bn1",
        "blocks.1.0.bn1",
        "blocks.2.0.se",
        "conv_head",
        "bn2",
    ],
    "mobilenetv3_small_050": ["bn1", "blocks.1.0.bn2", "blocks.3.1", "act2"],
    "regnetx_002": ["stem.bn", "s2.b1", "s3.b2", "final_conv"],
    "test_byobnet": ["stem", "stages.1.0", "final_conv"],
}


def with_statistics(name):
    """A small net of random weights whose BatchNorms are no identities."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5).train()
    with torch.no_grad():
        for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.uniform_(-0.5, 0.5)
            norm.momentum = None
        for _ in range(2):
            model(torch.randn(8, 3, 64, 64))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("name", NETS)
def test_features_of_layers_that_activate_are_those_that_a_hook_sees(name, capsys):
    remarks.forget()
    model, seen, handles = with_statistics(name), [], []
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    normalisation = NORMALISATIONS["half"]
    for layer in NETS[name]:
        keep = lambda *args: seen.append(args[2].clone())  # noqa: E731
        handles.append(model.get_submodule(layer).register_forward_hook(keep))
    logits = model(normalise(pixels, *normalisation))
    for handle in handles:
        handle.remove()

    sources = [NetSource(name, layer, normalisation=normalisation) for layer in NETS[name]]
    net = CutNet(model, sources, {}, tapped=True)
    net.prove_fast(pixels)
    assert not capsys.readouterr().out, "the fast form is right"
    *features, answers = net.frozen(CPU)(pixels)
    for given, expected in zip((*features, answers), (*seen, logits), strict=True):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(answers.argmax(1), logits.argmax(1))
    assert all(
        torch.equal(*pair) for pair in zip(net.taps(normalise(pixels, *normalisation)), seen)
    )
