"""Pixels as a network reads them: normalised on its device, by the network's own constants."""

import functools

import torch
from torch import Tensor, nn

from utils.normalisation import Constants, Normalisation


def normalise(images: Tensor, mean: Constants, std: Constants) -> Tensor:
    """Normalise pixels on their device, to the values of torchvision's ToTensor and Normalize.

    Args:
        images: uint8 (n, 3, S, S), RGB.
        mean: of each channel, in units of 0 … 1.
        std: standard deviation of each channel, in units of 0 … 1.

    Returns:
        float32 (n, 3, S, S): (pixel / 255 − mean) / std.
    """
    return _normalised(images, *_mean_and_std(images.device, mean, std))


class FromPixels(nn.Module):
    """A network that reads pixels and normalises them by its own constants.

    So two networks with different constants read one batch of pixels, which is decoded once.

    Args:
        net: normalised images (N, 3, S, S) → anything.
        normalisation: mean and deviation that the network was trained with.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, normalisation: Normalisation) -> None:
        super().__init__()
        self.net = net
        # Buffers, so that they move with the network; its checkpoints hold none of them.
        for name, values in zip(("mean", "std"), normalisation):
            self.register_buffer(
                name, torch.tensor(values, dtype=torch.float32).view(3, 1, 1), persistent=False
            )
        # The constants follow the network, which may be on a device already.
        weight = next(net.parameters(), None)
        self.to(self.mean.device if weight is None else weight.device)

    def forward(self, pixels: Tensor) -> Tensor:
        """Give the network's output for pixels, uint8 (N, 3, S, S), RGB."""
        return self.net(_normalised(pixels, self.mean, self.std))


def _normalised(images: Tensor, means: Tensor, stds: Tensor) -> Tensor:
    """(pixel / 255 − mean) / std in this order, in place on one copy: three roundings, always."""
    return images.to(torch.float32, copy=True).div_(255).sub_(means).div_(stds)


@functools.cache  # once a device: a copy to the GPU in every step would wait for it
@torch.inference_mode(False)  # made first under inference mode, they could not be used in training
def _mean_and_std(device: torch.device, mean: Constants, std: Constants) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation, float32 (3, 1, 1) each."""
    means, stds = torch.tensor([mean, std], dtype=torch.float32, device=device).view(2, 3, 1, 1)
    return means, stds
