"""Networks of timm, of families with layers of their own:
a cut one is the plain one. And where channels are last.
"""

import pytest
import torch
import torchvision
from torch import nn

from models.split import cuts, module_cuts, split
from models.untrained import set_statistics
from tests.mistakes import refused

timm = pytest.importorskip("timm")
# Of each the layer and the shape of its feature at 64 pixels. Norms that activate too, statements
# in place, sizes that flow around the cut, windows, attention with tables of positions, several
# stems, channels last.
FAMILIES = [
    ("mobilenetv3_small_050", "blocks.3", (24, 4, 4)),
    ("regnetx_002", "s3", (152, 4, 4)),
    ("resnetv2_18", "stages.2", (256, 4, 4)),
    ("lcnet_050", "blocks.4.1", (128, 4, 4)),
    ("deit_tiny_patch16_224", "blocks.5", (17, 192)),
    ("swin_tiny_patch4_window7_224", "layers.1", (192, 8, 8)),
    ("xcit_nano_12_p16_224", "blocks.5", (16, 128)),
    ("ghostnet_100", "blocks.4", (40, 8, 8)),
]


@pytest.mark.parametrize(("arch", "layer", "shape"), FAMILIES, ids=[arch for arch, *_ in FAMILIES])
def test_a_cut_network_of_timm_is_the_plain_one(arch, layer, shape):
    torch.manual_seed(0)
    sized = {"img_size": 64} if "patch" in arch else {}
    net = timm.create_model(arch, num_classes=5, **sized)
    images = torch.randn(2, 3, 64, 64)
    set_statistics(net, [images])
    head, tail = split(net, layer, 64)
    seen = []
    hook = net.get_submodule(layer).register_forward_hook(
        lambda *given: seen.append(given[2].clone())
    )
    with torch.no_grad():
        expected = net(images)
        hook.remove()
        feature = head(images)
        assert torch.equal(
            feature, seen[0].permute(0, 3, 1, 2) if head.meta["channels_last"] else seen[0]
        )
        assert tuple(feature.shape[1:]) == shape
        assert torch.equal(tail(feature), expected)
        assert torch.equal(tail(feature[:1]), tail(feature)[:1]) or torch.allclose(
            tail(feature[:1]), expected[:1], 1e-4
        )
    assert layer in module_cuts(net, 64)


class Last(nn.Module):
    """Maps whose channels are last, (N, H, W, C),
    between two convolutions; both sides of a map are as long as C.
    """

    def __init__(self, image_size=None):
        super().__init__()
        self.image_size = image_size
        self.patches, self.norm, self.act = nn.Conv2d(3, 8, 4, 4), nn.LayerNorm(8), nn.GELU()
        self.mix, self.fc = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x):
        assert self.image_size in (None, x.shape[-1]), "another size"
        x = self.act(self.patches(x).permute(0, 2, 3, 1))
        return self.fc(self.mix(self.norm(x)).mean((1, 2)))


@pytest.mark.parametrize("image_size", [None, 32])
@pytest.mark.parametrize(
    ("layer", "is_last"), [("patches", False), ("act", True), ("norm", True), ("mix", True)]
)
def test_the_axis_of_the_channels_is_the_one_that_keeps_its_length(image_size, layer, is_last):
    """Where the net takes one size alone, 32 here, it is the axis that the next layer reads."""
    model = Last(image_size).eval()
    images = torch.randn(2, 3, 32, 32)
    head, tail = split(model, layer, 32)
    assert head.meta["channels_last"] == is_last
    with torch.no_grad():
        assert head(images).is_contiguous() and torch.equal(tail(head(images)), model(images))
        plain = model.patches(images)
        if layer == "act":
            torch.testing.assert_close(head(images), model.act(plain))


def test_a_user_may_say_where_the_channels_are():
    model = Last().eval()
    images = torch.randn(2, 3, 32, 64)
    shapes = {}
    for channels_last in (None, False, True):
        head, tail = split(model, "norm", 32, channels_last=channels_last)
        with torch.no_grad():
            shapes[channels_last] = tuple(head(images).shape[1:])
            assert torch.equal(tail(head(images)), model(images))
    assert shapes == {None: (8, 8, 16), True: (8, 8, 16), False: (8, 16, 8)}


def test_a_shape_that_is_listed_says_channels_first():
    assert cuts(torchvision.models.swin_t(num_classes=5), 64)["features.0.2"] == (96, 16, 16)


def test_a_network_whose_branches_meet_at_the_logits_alone_is_refused():
    net = timm.create_model("crossvit_tiny_240", num_classes=5)
    with refused("blocks.1", "--layer"):
        split(net, "blocks.1")
