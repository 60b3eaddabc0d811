"""The constants by which networks normalise images, by name or as six numbers.

A channel's value in units of 0 … 1 becomes (value − mean) / deviation. This module imports no
torch, so that parsers and `--help` are fast.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

Constants = tuple[float, float, float]  # of red, green, blue, in units of 0 … 1
# Mean and deviation; plain tuples, as checkpoints hold them
Normalisation = tuple[Constants, Constants]

NORMALISATIONS: dict[str, Normalisation] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's and most of timm's
    # CIFAR-100's, as HSAKD has them
    "cifar": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    # CIFAR-10's: mean and deviation over all pixels of its training images
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    # The same mean, but the deviation inside an image, averaged over the images: many training
    # scripts for CIFAR-10 have copied these numbers.
    "cifar10_per_image": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "dcm": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),  # DCM's
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),  # to −1 … 1, as Inception and many transformers
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # pixels stay in 0 … 1
}


def read_normalisation(text: str) -> Normalisation:
    """Read a name or six numbers.

    Args:
        text: "cifar10", or "0.49,0.48,0.45,0.25,0.24,0.26": the means of red, green and blue, then
            their deviations.

    Raises:
        ValueError: it is neither; the message says what is expected.
    """
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    try:
        numbers = [float(entry) for entry in text.strip("[]() ").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 6 or not all(map(math.isfinite, numbers)):
        raise ValueError(
            f"expected {', '.join(NORMALISATIONS)}, or six numbers (the means of red, green and"
            f" blue, then their deviations), got {text!r}"
        )
    if max(map(abs, numbers)) > 1 or min(numbers[3:]) <= 0:
        raise ValueError(
            "means and deviations are those of pixels in units of 0 … 1, deviations above 0, got"
            f" {text}"
        )
    return as_normalisation((numbers[:3], numbers[3:]))


def as_normalisation(stored: Sequence[Sequence[float]]) -> Normalisation:
    """Make plain tuples of a mean and a deviation that a file holds as lists."""
    (r, g, b), (deviation_r, deviation_g, deviation_b) = (
        map(float, constants) for constants in stored
    )
    return (r, g, b), (deviation_r, deviation_g, deviation_b)


def normalisation_words(normalisation: Normalisation) -> str:
    """Write a normalisation as an option takes it: its name, or else its six numbers."""
    for name, constants in NORMALISATIONS.items():
        if constants == normalisation:
            return name
    mean, std = normalisation
    return ",".join(f"{number!r}" for number in (*mean, *std))


def recorded_normalisation(record: Mapping[str, Any]) -> Normalisation | None:
    """Read a record's `normalisation`, or the `mean` and `std` of a net's factory or a transform.

    Args:
        record: of a checkpoint, a transform or a factory.

    Returns:
        None if it has neither.
    """
    if record.get("normalisation"):
        return as_normalisation(record["normalisation"])
    if "mean" in record and "std" in record and len(record["mean"]) == len(record["std"]) == 3:
        return as_normalisation((record["mean"], record["std"]))
    return None
