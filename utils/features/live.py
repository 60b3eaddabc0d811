"""Features computed as they are read, where nothing is stored."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from utils.data.images import ImageData
from utils.features.source import Shape, Source
from utils.provenance import NetSource, Provenance
from utils.runtime import Runtime


def live_provenance(
    images: ImageData, nets: tuple[NetSource, NetSource], **known: Any
) -> Provenance:
    """Say where features come from that two nets compute of images; arguments as `live_source`'s."""
    return Provenance(
        *nets,
        split=images.split,
        classes=images.classes,
        transform=images.decoding_record,
        files_sha256=images.contents.sha256 if images.contents else None,
        **known,
    )


def live_source(
    images: ImageData,
    nets: tuple[NetSource, NetSource],
    heads: Sequence[nn.Module],
    shapes: tuple[Shape, Shape],
    runtime: Runtime,
    whole: tuple[nn.Module, nn.Module] | None = None,
    **known: Any,
) -> Source:
    """Give the features that two nets compute of images whenever they are read.

    Args:
        images: of one split.
        nets: what A and B are.
        heads: of A and B, pixels → maps, on the device (`utils.pixels.FromPixels`).
        shapes: of one image's features.
        runtime: device, processes, precision.
        whole: A and B from pixels to logits, which say whether they are right at all.
        known: what else is recorded of where the features come from, by the names of `Provenance`.
    """
    provenance = live_provenance(images, nets, **known)
    head_a, head_b = (runtime.parallel(head) for head in heads)
    read = partial(read_live, head_a=head_a, head_b=head_b, runtime=runtime)
    return Source(images, read, shapes, provenance, whole)


@torch.no_grad()
def read_live(
    pixels: Tensor, *_: Tensor, head_a: nn.Module, head_b: nn.Module, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Give x and the target of a batch of photos.

    Args:
        pixels: uint8 (N, 3, S, S), on the device.
        head_a: pixels → maps (N, C, H, W).
        head_b: the same of the target.
        runtime: precision of the heads; what reads the features is outside of its autocast.

    Returns:
        Two maps, float32.
    """
    with runtime.autocast():
        return head_a(pixels).float(), head_b(pixels).float()
