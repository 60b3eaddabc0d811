"""Both nets' heads in their frozen form, pixels → maps, and the operations that they take."""

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
    """A head whose feature is viewed as maps, float32 (N, C, H, W); see `as_maps`.

    Args:
        head: pixels or images (N, 3, S, S) → feature (N, *shape).
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor) -> Tensor:
        """Give the images' feature as maps."""
        return as_maps(self.head(images)).float()


class Heads(NamedTuple):
    """The frozen heads of nets A and B.

    Attributes:
        sources: the records of both nets, with their layers.
        modules: pixels → maps, on the device.
        shapes: of one image's features, before they are viewed as maps.
    """

    sources: tuple[NetSource, NetSource]
    modules: tuple[MapHead, MapHead]
    shapes: tuple[Shape, Shape]


def freeze_heads(net_a: CutNet, net_b: CutNet, pixels: Tensor, device: torch.device) -> Heads:
    """Prove both nets' heads on a few images, and freeze them in their fast form.

    Args:
        net_a: A, cut at its layer.
        net_b: B, cut at its layer.
        pixels: uint8 (n, 3, S, S) on the CPU; each net normalises them by its own constants.
        device: where the heads compute.
    """
    # `frozen` below refuses a net that was not proven.
    for net in (net_a, net_b):
        net.prove_fast(pixels)
    a, b = (MapHead(net.frozen(device)) for net in (net_a, net_b))
    shape_a, shape_b = (net.shapes(pixels.shape[-1])[0] for net in (net_a, net_b))
    return Heads((net_a.source, net_b.source), (a, b), (shape_a, shape_b))


def head_flops(
    features: Provenance, named: tuple[str | None, str | None] = (None, None)
) -> int | None:
    """Count the FLOPs of both features of one image, in convolutions and matrix products.

    A multiplication and its addition are two operations. The nets are built from their records
    alone, without weights.

    Args:
        features: the record of the features: nets, layers, images.
        named: the architectures that options name, of A and B; see `untrained_net`.

    Returns:
        None where the record is incomplete (the authors' features), or no option names a user's
        own architecture.
    """
    # Tensors on "meta" have shapes alone: the operations are counted, and none is computed.
    image = torch.empty(1, 3, features.image_size, features.image_size, device="meta")
    classes = len(features.classes or ())
    sources = zip((features.a, features.b), named)
    try:
        with torch.device("meta"):
            heads = [untrained_net(source, classes, arch).head for source, arch in sources]
    except InputError:
        return None
    with flop_counter.FlopCounterMode(display=False) as counter:
        for head in heads:
            head(image)
    return counter.get_total_flops()
