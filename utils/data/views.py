"""The way from a decoded photo to S×S pixels: which cut of it is shown, and what resizes it.

Both ways to resize are bilinear with antialiasing. "pillow" is torchvision's transforms of a Pillow
image, to the bit. "torch" resizes tensors of uint8 as torchvision's v2 transforms of a tensor do, in
half of the time. It differs by one level of 255, in 2 to 3 of 100 values at 224 pixels and in 1 of
800 at 64.

Pillow decodes either way. torchvision decodes JPEG in two thirds of the time, but its decoders are
deprecated, and its import takes as long as they save on thousands of photos.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn


class Frame(NamedTuple):
    """What a view shows of a photo: a cut of it, resized, of which the middle S×S is taken.

    Attributes:
        top, left: the first row and column of the cut.
        height, width: its size, pixels.
        resized: (height, width) that the cut gets.
        flipped: whether left and right change places.
    """

    top: int
    left: int
    height: int
    width: int
    resized: tuple[int, int]
    flipped: bool = False

    def middle(self, size: int) -> tuple[int, int]:
        """Give the first row and column of the middle S×S, rounded as torchvision's CenterCrop."""
        height, width = self.resized
        return round((height - size) / 2), round((width - size) / 2)


# height, width, S and a source of random numbers → what is shown
View = Callable[[int, int, int, np.random.Generator], Frame]


def whole(height: int, width: int, size: int, _: np.random.Generator) -> Frame:
    """Show all of a photo, which changes its proportions."""
    return Frame(0, 0, height, width, (size, size))


def random_crop(height: int, width: int, size: int, generator: np.random.Generator) -> Frame:
    """Crop at random, resize to S×S and flip half of the images, as torchvision does.

    This is torchvision's RandomResizedCrop and RandomHorizontalFlip. The crop has 8 to 100 % of the
    image's area; its width is 3/4 to 4/3 of its height, uniform in the logarithm. Where ten draws
    do not fit, the largest crop of such a shape is taken from the centre.

    Args:
        height: of the photo, pixels.
        width: of the photo, pixels.
        size: S, pixels.
        generator: source of all random numbers. torch's would depend on the number of workers.
    """
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        # width · height = area and width / height = ratio of the crop
        area = width * height * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(narrowest), math.log(widest)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            first_column = int(generator.integers(width - across + 1))
            first_row = int(generator.integers(height - down + 1))
            break
    else:
        # As wide or as high as the photo, and the other side by the nearest allowed ratio
        across = min(width, round(height * widest))
        down = min(height, round(width / narrowest))
        first_column, first_row = (width - across) // 2, (height - down) // 2
    flipped = bool(generator.random() < 0.5)
    return Frame(first_row, first_column, down, across, (size, size), flipped)


def center_crop(height: int, width: int, size: int, _: np.random.Generator) -> Frame:
    """Resize the shorter side to S · 256/224, whose middle is shown: torchvision's two transforms."""
    # 224 of 256 pixels is ImageNet's usual share, kept at any size.
    short = round(size * 256 / 224)
    long = short * max(height, width) // min(height, width)
    resized = (long, short) if height > width else (short, long)
    return Frame(0, 0, height, width, resized)


# The paper's plain resize, and ImageNet's usual pair for training and validation
VIEWS: dict[str, View] = {
    "resize": whole,
    "random_crop": random_crop,
    "center_crop": center_crop,
}


def shown_by_torch(photo: Image.Image, frame: Frame, size: int) -> np.ndarray:
    """Show a frame of an RGB photo by PyTorch's resize of uint8.

    Returns:
        uint8 (3, S, S).
    """
    # (H, W, 3) in memory is the order that PyTorch resizes fastest.
    pixels = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    cut = pixels[:, frame.top : frame.top + frame.height, frame.left : frame.left + frame.width]
    if cut.shape[1:] != frame.resized:
        (cut,) = nn.functional.interpolate(
            cut[None], frame.resized, mode="bilinear", antialias=True
        )
    top, left = frame.middle(size)
    square = cut.numpy()[:, top : top + size, left : left + size]
    return square[:, :, ::-1] if frame.flipped else square


def shown_by_pillow(photo: Image.Image, frame: Frame, size: int) -> np.ndarray:
    """Show a frame of an RGB photo by Pillow.

    Returns:
        uint8 (3, S, S), to the bit those of torchvision's transforms of a Pillow image.
    """
    box = (frame.left, frame.top, frame.left + frame.width, frame.top + frame.height)
    resized = photo.crop(box).resize(frame.resized[::-1], Image.Resampling.BILINEAR)
    top, left = frame.middle(size)
    square = np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)
    return square[:, :, ::-1] if frame.flipped else square


# By the names of --resize
RESIZES: dict[str, Callable[[Image.Image, Frame, int], np.ndarray]] = {
    "torch": shown_by_torch,
    "pillow": shown_by_pillow,
}
