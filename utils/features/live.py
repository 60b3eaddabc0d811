"""Live features: both networks compute them when they are read, and nothing is stored."""

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
    images: ImageData, nets: tuple[NetSource, NetSource], **facts: Any
) -> Provenance:
    """Give the origin of live features; arguments are those of `live_source`."""
    return Provenance(
        *nets,
        split=images.split,
        classes=images.classes,
        transform=images.decoding_record,
        files_sha256=images.contents.sha256 if images.contents else None,
        **facts,
    )


def live_source(
    images: ImageData,
    nets: tuple[NetSource, NetSource],
    heads: Sequence[nn.Module],
    shapes: tuple[Shape, Shape],
    runtime: Runtime,
    whole: tuple[nn.Module, nn.Module] | None = None,
    **facts: Any,
) -> Source:
    """Make a source of live features.

    Args:
        images: of one split.
        nets: the records of A and B.
        heads: of A and B, pixels → maps, on the device (`utils.pixels.FromPixels`).
        shapes: of one image's features.
        runtime: device, processes, precision.
        whole: A and B, pixels → logits, by which their accuracies are measured.
        facts: further fields of the features' `Provenance`.
    """
    provenance = live_provenance(images, nets, **facts)
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
        head_a: pixels → x as maps (N, C, H, W).
        head_b: pixels → the target as maps.
        runtime: its autocast holds for the heads alone, not for what reads the features.

    Returns:
        x and the target, float32 maps.
    """
    with runtime.autocast():
        return head_a(pixels).float(), head_b(pixels).float()
