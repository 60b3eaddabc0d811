"""Σ^(1/2), the divisors of a Trans-Net's branches: with them p alone weighs (paper Eq. 1)."""

import math

import torch
from torch import Tensor, nn

EPS = 1e-5  # added to a standard deviation, outside the root, as in the released code


class InstanceScale(nn.Module):
    """Standard deviation of each sample and channel over H×W, unbiased, plus EPS."""

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor of a feature; no gradient flows through it.

        Args:
            h: (N, C, H, W).

        Returns:
            (N, C, 1, 1), float32; 1 where H×W = 1.
        """
        # Detached, as in the released code; float32, since sums of squares overflow half precision.
        h, count = h.detach().float(), h.shape[2] * h.shape[3]
        if count == 1:  # one value has no deviation
            return torch.ones_like(h)
        # `Tensor.std` over two axes takes 12 times as long as this.
        deviations = h - h.mean((2, 3), keepdim=True)
        # Unbiased: √(Σ (h − mean)² / (HW − 1)) is the norm of the deviations over √(HW − 1).
        norms = torch.linalg.vector_norm(deviations, dim=(2, 3), keepdim=True)
        return norms / math.sqrt(count - 1) + EPS


class BatchScale(nn.Module):
    """Standard deviation of each channel over the images and H×W, as the paper defines Σ.

    In training the statistics are the batch's, in evaluation their running average (momentum 0.1).
    The first batch sets the average, so that it does not begin with an arbitrary value.
    """

    running_std: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_std", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor of a feature; in training, gradients flow through it.

        Args:
            h: (N, C, H, W).

        Returns:
            (1, C, 1, 1), float32.
        """
        # A last batch may be one vector, which has no deviation: it takes the running one.
        if self.training and h.numel() > h.shape[1]:
            std = h.float().std((0, 2, 3))
            # running += weight · (std − running): weight 1 takes the first batch whole. `where`
            # decides on the device, so the host does not wait to read `batches`.
            # In place: a DataParallel replica shares this buffer with the saved module.
            self.running_std.lerp_(std.detach(), torch.where(self.batches == 0, 1.0, self.momentum))
            self.batches += 1
            divisor = std + EPS
        else:
            # In evaluation EPS is a lower bound and is not added, as in the released code.
            divisor = self.running_std.clamp_min(EPS)
        return divisor[None, :, None, None]
