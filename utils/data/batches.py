"""What becomes of a batch of images on its device, before a network reads it."""

import functools

import torch
from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalise(images: Tensor) -> Tensor:
    """Turn pixels into what the networks read: the values of ToTensor and Normalize, on the images' device.

    Args:
        images: uint8 (n, 3, S, S), RGB.

    Returns:
        float32 (n, 3, S, S): (pixel / 255 − ImageNet mean) / ImageNet standard deviation.
    """
    mean, std = _mean_and_std(images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


@functools.cache  # once a device: a copy to the GPU in every step would wait for it
@torch.inference_mode(False)  # made first under inference mode, they could not be used in training
def _mean_and_std(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, float32 (3, 1, 1) each."""
    mean, std = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=torch.float32, device=device).view(2, 3, 1, 1)
    return mean, std
