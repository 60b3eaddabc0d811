"""Σ^(1/2): what the branches of a Trans-Net are divided by,
so that p alone weighs them (paper Eq. 1).
"""

import math

import torch
from torch import Tensor, nn

EPS = 1e-5  # added to a standard deviation, outside the root, as in the released code


class InstanceScale(nn.Module):
    """Standard deviation of each sample and channel over H×W,
    unbiased, plus EPS; 1 where H×W = 1.
    """

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor (N, C, 1, 1) in float32 of a feature (N,
        C, H, W); no gradient flows through it.
        """
        h, count = h.detach().float(), h.shape[2] * h.shape[3]
        if count == 1:
            return torch.ones_like(h)
        # std() takes one number after the other: 12 times as long
        deviations = h - h.mean((2, 3), keepdim=True)
        return (
            torch.linalg.vector_norm(deviations, dim=(2, 3), keepdim=True) / math.sqrt(count - 1)
            + EPS
        )


class BatchScale(nn.Module):
    """Standard deviation of each channel over the images and H×W, as the paper defines Σ.

    The statistics are those of the batch in training and their running average (momentum 0.1) in
    evaluation; the first batch sets the average, so it never starts from an arbitrary value.
    """

    running_std: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_std", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor (1, C, 1, 1) in float32 of a feature (N,
        C, H, W); in training the gradient knows it.
        """
        # One vector, as a last batch may be, has no deviation
        if self.training and h.numel() > h.shape[1]:
            std = h.float().std((0, 2, 3))
            # In place: a DataParallel replica shares this buffer with the module that is saved.
            self.running_std.lerp_(std.detach(), torch.where(self.batches == 0, 1.0, self.momentum))
            self.batches += 1
            divisor = std + EPS
        else:
            # No EPS on top in evaluation, as in the released code
            divisor = self.running_std.clamp_min(EPS)
        return divisor[None, :, None, None]
