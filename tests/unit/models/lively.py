"""Feature maps, and Trans-Nets in which nothing is as it is initialised."""

from typing import Any

import torch

from models.trans_net import TransNet

NORMS = ["instance", "batch"]


def maps(images, channels, size=6, seed=0):
    """Feature maps (N, C, H, W) whose channels differ in mean and magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = (size, size) if isinstance(size, int) else size
    magnitude = torch.linspace(0.5, 3, channels)[:, None, None]
    return magnitude * (torch.randn(images, channels, *size, generator=generator) + 0.3)


def lively(*shape, seed=0, **options) -> Any:
    """A Trans-Net in evaluation mode with different p,
    learned norms and running statistics that are not initial.
    """
    torch.manual_seed(seed)
    net: Any = TransNet(*shape, **options)
    with torch.no_grad():
        net.logit_p.copy_(torch.linspace(-1, 2, net.order))
        if net.standardise:
            net.set_standards(
                torch.linspace(-1, 2, shape[0]), 2.5, torch.linspace(3, -1, shape[1]), 0.7
            )
            net.shift.copy_(torch.linspace(0, 0.5, shape[1]))
        if net.input_norm is not None and options.get("affine"):
            net.input_norm.weight.uniform_(0.5, 2)
            net.input_norm.bias.uniform_(-1, 1)
        net.train()(maps(5, shape[0], seed=8))
        net(maps(5, shape[0], seed=9))
    return net.eval()
