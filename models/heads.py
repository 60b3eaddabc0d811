"""The heads of two nets as features are read of them: folded for inference, maps out; and what they cost."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.frozen import freeze_for_inference
from models.pair import Net, untrained_head
from models.split import as_maps, feature_shape
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


def freeze_heads(net_a: Net, net_b: Net, image_size: int, device: torch.device) -> Heads:
    """Fold the heads of cut classifiers for inference on pixels of `image_size` to a side; each has its constants."""
    a, b = (MapHead(net.from_pixels(freeze_for_inference(net.head, device))) for net in (net_a, net_b))
    shapes = (feature_shape(net_a.head, image_size), feature_shape(net_b.head, image_size))
    return Heads((net_a.source, net_b.source), (a, b), shapes)


def head_flops(known: Provenance, named: tuple[str | None, str | None] = (None, None)) -> int | None:
    """Count what both features of one image take: convolutions and matrix products, in FLOPs.

    A product and its sum are two. The nets are built from their record alone, without weights.

    Args:
        known: of which nets, layers and images the features are.
        named: the architectures that options say; see `untrained_head`.

    Returns:
        None where the record does not say it: the authors' features, or a user's own architecture that is not named.
    """
    image = torch.empty(1, 3, known.image_size, known.image_size, device="meta")
    try:
        with torch.device("meta"), flop_counter.FlopCounterMode(display=False) as counter:
            for source, arch in zip((known.a, known.b), named):
                untrained_head(source, len(known.classes or ()), arch)(image)
    except InputError:
        return None
    return counter.get_total_flops()
