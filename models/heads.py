"""The heads of two nets as features are read of them:
folded for inference, maps out; and what they cost.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.cut_net import CutNet, untrained_net
from models.split import as_maps
from utils.errors import InputError
from utils.later import flop_counter
from utils.provenance import NetSource, Provenance

Shape = tuple[int, ...]


class MapHead(nn.Module):
    """A head whose feature comes as maps, float32 (N, C, H, W), whatever its kind.

    Args:
        head: pixels or images (N, 3, S, S) → feature (N, *shape).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Give the feature of what the head reads."""
        return as_maps(self.head(images)).float()


class Heads(NamedTuple):
    """Both nets' heads, ready to be asked for features of images.

    Attributes:
        sources: which nets, cut where.
        modules: pixels → maps, on the device.
        shapes: of one image's features, as the nets give them.
    """

    sources: tuple[NetSource, NetSource]
    modules: tuple[MapHead, MapHead]
    shapes: tuple[Shape, Shape]


def freeze_heads(net_a: CutNet, net_b: CutNet, pixels: Tensor, device: torch.device) -> Heads:
    """Prove both nets' heads on a few images, and give them in their fast form.

    Args:
        net_a: A, cut at its layer.
        net_b: B.
        pixels: of the images, uint8 (n, 3, S, S) on the CPU; each net has its own constants.
        device: where the heads compute.
    """
    for net in (net_a, net_b):
        net.prove_fast(pixels)
    a, b = (MapHead(net.frozen(device)) for net in (net_a, net_b))
    shape_a, shape_b = (net.shapes(pixels.shape[-1])[0] for net in (net_a, net_b))
    return Heads((net_a.source, net_b.source), (a, b), (shape_a, shape_b))


def head_flops(
    known: Provenance, named: tuple[str | None, str | None] = (None, None)
) -> int | None:
    """Count what both features of one image take: convolutions and matrix products, in FLOPs.

    A product and its sum are two. The nets are built from their record alone, without weights.

    Args:
        known: of which nets, layers and images the features are.
        named: the architectures that options say; see `untrained_net`.

    Returns:
        None where the record does not say it: the authors' features, or a user's own architecture
        that is not named.
    """
    image = torch.empty(1, 3, known.image_size, known.image_size, device="meta")
    sources = zip((known.a, known.b), named)
    try:
        with torch.device("meta"):
            heads = [
                untrained_net(source, len(known.classes or ()), arch).head
                for source, arch in sources
            ]
    except InputError:
        return None
    with flop_counter.FlopCounterMode(display=False) as counter:
        for head in heads:
            head(image)
    return counter.get_total_flops()
