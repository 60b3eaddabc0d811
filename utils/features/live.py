"""Features computed as they are read, where nothing is stored."""

import torch
from torch import Tensor, nn

from utils.data.batches import Preprocessing
from utils.runtime import Runtime


@torch.no_grad()
def read_live(
    pixels: Tensor, *_: Tensor, head_a: nn.Module, head_b: nn.Module, preprocess: Preprocessing, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Give x and the target of a batch of photos.

    Args:
        pixels: uint8 (N, 3, S, S), on the device.
        head_a: normalised images → maps (N, C, H, W).
        head_b: the same of the target.
        preprocess: pixels → images.
        runtime: precision of the heads; what reads the features is outside of its autocast.

    Returns:
        Two maps, float32.
    """
    with runtime.autocast():
        images = preprocess(pixels)
        return head_a(images).float(), head_b(images).float()
