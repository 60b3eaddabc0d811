"""Augmentation and normalisation of a batch of images, on its device.

Both run behind the store of decoded images. So every image is decoded once, even where it is
augmented anew in every epoch. A script takes a `Preprocessing` from its images and calls it on each
batch:

    preprocess = train_images.preprocessing(seed)
    preprocess(images)                       # evaluation: normalised
    preprocess(images, indices, epoch)       # training: augmented by (seed, epoch, index), normalised
    step = partial(classify, preprocess=partial(preprocess, epoch=epoch))
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import InputError
from utils.normalisation import Constants
from utils.pixels import normalise

# The constants of SplitMix64 (Steele, Lea, Flood 2014); torch's 64-bit integers are signed.
_STEP, _MIX_1, _MIX_2 = (
    x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@dataclass(frozen=True)
class Augmentation:
    """Pad an image, crop it back to its size at a random place, and flip half of the images.

    Attributes:
        padding: pixels on each side.
        mode: "reflect" mirrors the image at its border pixels; "zero" pads with black.
    """

    padding: int
    mode: str


AUGMENTATIONS = {"reflect4": Augmentation(4, "reflect"), "zero4": Augmentation(4, "zero")}


@dataclass(frozen=True)
class Preprocessing:
    """The way from stored pixels to a network's input.

    Attributes:
        mean: of each channel, in units of 0 … 1.
        std: standard deviation of each channel, same units.
        augmentation: of training images; None: they are the same in every epoch.
        seed: of the augmentation.
    """

    mean: Constants
    std: Constants
    augmentation: Augmentation | None = None
    seed: int = 0

    def __call__(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None
    ) -> Tensor:
        """Augment a batch in training, and normalise it.

        Args:
            images: uint8 (n, 3, S, S), RGB.
            indices: int64 (n,), each image's place in its data set; evaluation needs none.
            epoch: counted from 0; None: evaluation, without augmentation.

        Returns:
            float32 (n, 3, S, S) on the images' device.

        Raises:
            InputError: the images are too small for the padding.
        """
        return normalise(self.augmented(images, indices, epoch), self.mean, self.std)

    def augmented(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None
    ) -> Tensor:
        """Augment a batch without normalising it, for networks that normalise pixels themselves.

        Arguments and errors are those of `__call__`.

        Returns:
            uint8 (n, 3, S, S) on the images' device.
        """
        if self.augmentation is None or epoch is None:
            return images
        assert indices is not None, "an augmentation needs to know which images these are"
        padding, mode = self.augmentation.padding, self.augmentation.mode
        return augment(images, indices, epoch=epoch, seed=self.seed, padding=padding, mode=mode)


def augment(
    images: Tensor, indices: Tensor, *, epoch: int, seed: int, padding: int, mode: str
) -> Tensor:
    """Pad, crop at a random place and flip half of the images, on their device.

    The result depends on (seed, epoch, index) of an image alone. It does not depend on its batch,
    the device, the number of processes or earlier random numbers. So a resumed run repeats an
    uninterrupted one.

    Args:
        images: uint8 (n, 3, S, S).
        indices: int64 (n,), each image's place in its data set, on any device.
        epoch: counted from 0.
        seed: of the run.
        padding: p, pixels on each side. The crop begins at (0 … 2p, 0 … 2p) of the padded image,
            uniformly.
        mode: "reflect" mirrors at the border pixels, "zero" pads with black.

    Returns:
        uint8 (n, 3, S, S).

    Raises:
        InputError: the images are too small to be reflected by `padding` pixels.
        ValueError: there is no such mode.
    """
    if mode not in ("reflect", "zero"):
        raise ValueError(f"padding mode {mode!r} is neither reflect nor zero")
    size = images.shape[-1]
    if mode == "reflect" and padding >= size:
        raise InputError(
            f"images of {size} pixels cannot be reflected by {padding}; choose a larger"
            " --image_size"
        )
    bits = _random_bits(indices.to(images.device, non_blocking=True), epoch, seed)
    # Bits 0–19 give the first row of the crop, bits 20–39 its first column, bit 40 the flip.
    # 2²⁰ is no multiple of 2p + 1: the places' probabilities differ by less than 1e-5 for p = 4.
    first_row, first_column = (((bits >> shift) & 0xFFFFF) % (2 * padding + 1) for shift in (0, 20))
    flipped = ((bits >> 40) & 1).bool()
    steps = torch.arange(size, device=images.device)
    # (n, S): the row or column of the unpadded image that each output pixel is read from. Numbers
    # below 0 and from S on lie in the padding.
    rows = steps + first_row[:, None] - padding
    # To flip an image is to read its columns backwards.
    across = torch.where(flipped[:, None], steps.flip(0), steps)
    columns = across + first_column[:, None] - padding
    if mode == "reflect":
        # −1 → 1 and S → S − 2: mirror at 0, then at S − 1
        rows, columns = (size - 1 - (size - 1 - place.abs()).abs() for place in (rows, columns))
        return _pick(images, rows, columns)
    rows_inside, columns_inside = ((place >= 0) & (place < size) for place in (rows, columns))
    picked = _pick(images, rows.clamp(0, size - 1), columns.clamp(0, size - 1))
    inside = rows_inside[:, :, None] & columns_inside[:, None, :]  # (n, S, S)
    return picked.mul_(inside[:, None])  # padding becomes black in every channel


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Read pixel (rows[i, y], columns[i, x]) of image i for each output pixel (y, x).

    Args:
        images: uint8 (n, 3, S, S).
        rows: int64 (n, S), each in 0 … S − 1.
        columns: int64 (n, S), each in 0 … S − 1.
    """
    count, channels, size = images.shape[:3]
    # One gather over flattened pixels, the same places for all channels
    places = (rows[:, :, None] * size + columns[:, None, :]).view(count, 1, size * size)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)


def _random_bits(indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Draw 64 bits for each image: entries `indices` of SplitMix64's stream of (seed, epoch).

    A hash of a counter needs no generator's state. int64 products wrap alike on every device.

    Returns:
        int64 (n,).
    """
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    # Entry i of the stream is a hash of origin + i · step.
    bits = indices * _STEP + int.from_bytes(digest, "little", signed=True)
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros; torch's `>>` fills with the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
