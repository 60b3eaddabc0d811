"""What becomes of a batch of images on its device,
before a network reads it: augmentation and normalisation.

Both run after the store of decoded images, so that every image is decoded once even where it is
augmented anew in every epoch. A script takes a `Preprocessing` from its images and calls it on each
batch:

    preprocess = train_images.preprocessing(seed)
    preprocess(images)                               # evaluation: normalised
    preprocess(images, indices, epoch)               # training: augmented as (seed, epoch, image) say, and normalised
    step = partial(classify, preprocess=partial(preprocess, epoch=epoch))
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from utils.errors import InputError
from utils.normalisation import Constants
from utils.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

# SplitMix64 (Steele, Lea, Flood 2014), its constants as int64
_STEP, _MIX_1, _MIX_2 = (
    x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


@dataclass(frozen=True)
class Augmentation:
    """Pad an image on all sides, crop it back to its size at a random place,
    and flip half of the images.

    Attributes:
        padding: pixels on each side.
        mode: "reflect" mirrors the image at its border pixels; "zero" pads with black.
    """

    padding: int
    mode: str


AUGMENTATIONS = {"reflect4": Augmentation(4, "reflect"), "zero4": Augmentation(4, "zero")}


@dataclass(frozen=True)
class Preprocessing:
    """What turns stored pixels into a network's input.

    Attributes:
        mean, std: of the normalisation.
        augmentation: of training images; None: they are the same in every epoch.
        seed: of the augmentation.
    """

    mean: Constants = IMAGENET_MEAN
    std: Constants = IMAGENET_STD
    augmentation: Augmentation | None = None
    seed: int = 0

    def __call__(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None
    ) -> Tensor:
        """Augment a batch where there is an augmentation and `epoch` is given, and normalise it.

        Args:
            images: uint8 (n, 3, S, S), RGB.
            indices: int64 (n,), each image's place in its data set; evaluation needs none.
            epoch: counted from 0; None: evaluation.

        Returns:
            float32 (n, 3, S, S) on the images' device.

        Raises:
            InputError: the images are too small for the padding.
        """
        return normalise(self.augmented(images, indices, epoch), self.mean, self.std)

    def augmented(
        self, images: Tensor, indices: Tensor | None = None, epoch: int | None = None
    ) -> Tensor:
        """Augment a batch and leave its pixels as they are,
        for networks with constants of their own; see above.

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

    What becomes of an image depends on (seed, epoch, its index) alone: not on the batch that it
    comes in, nor on the device, the processes or what was drawn before, so that a resumed run
    repeats an uninterrupted one.

    Args:
        images: uint8 (n, 3, S, S).
        indices: int64 (n,), each image's place in its data set, on any device.
        epoch: counted from 0.
        seed: of the run.
        padding: p, pixels on each side; the crop begins at (0 … 2p, 0 … 2p) of the padded image,
            all alike often.
        mode: "reflect" or "zero".

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
    top, left = (((bits >> shift) & 0xFFFFF) % (2 * padding + 1) for shift in (0, 20))
    flipped = ((bits >> 40) & 1).bool()
    steps = torch.arange(size, device=images.device)
    # (n, S), of the image itself; below 0 and from S on lies the padding
    rows = steps + top[:, None] - padding
    columns = torch.where(flipped[:, None], steps.flip(0), steps) + left[:, None] - padding
    if mode == "reflect":
        rows, columns = (size - 1 - (size - 1 - place.abs()).abs() for place in (rows, columns))
        return _pick(images, rows, columns)
    inside = [(place >= 0) & (place < size) for place in (rows, columns)]
    picked = _pick(images, rows.clamp(0, size - 1), columns.clamp(0, size - 1))
    return picked.mul_((inside[0][:, :, None] & inside[1][:, None, :])[:, None])


def _pick(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Give pixel (rows[i, y], columns[i, x]) of image i at (y,
    x); rows and columns are int64 (n, S).
    """
    count, channels, size = images.shape[:3]
    places = (rows[:, :, None] * size + columns[:, None, :]).view(count, 1, size * size)
    return images.flatten(2).gather(2, places.expand(-1, channels, -1)).view_as(images)


def _random_bits(indices: Tensor, epoch: int, seed: int) -> Tensor:
    """Draw 64 bits for each image:
    the numbers `indices` of the SplitMix64 stream of (seed, epoch), int64 (n,).

    A hash of a counter and no generator's state; int64 products wrap in the same way on every
    device.
    """
    digest = hashlib.blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
    bits = indices * _STEP + int.from_bytes(digest, "little", signed=True)
    bits = (bits ^ _shifted(bits, 30)) * _MIX_1
    bits = (bits ^ _shifted(bits, 27)) * _MIX_2
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shift right and fill with zeros; torch's own fills with the sign."""
    return (bits >> count) & ((1 << (64 - count)) - 1)
