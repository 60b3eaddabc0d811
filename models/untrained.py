"""Nets before any training, the baseline that trained ones are compared with."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def set_statistics(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Set every BatchNorm's mean and variance to those of its input over some images.

    A new BatchNorm has mean 0 and variance 1, which its input has not. In evaluation mode
    activations then fade from layer to layer, and the net is nearly linear. One pass with batch
    statistics, averaged over the batches, gives the net that training would begin with. All other
    layers stay in evaluation mode, so that dropout draws nothing.

    Args:
        net: changed in place, and in evaluation mode afterwards. Without BatchNorm nothing is
            computed.
        images: batches (N, 3, S, S) that the net takes, on its device. A batch of one image is
            skipped.
    """
    net.eval()
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    # Without running statistics a BatchNorm always uses the batch's: nothing to set.
    norms = [module for module in norms if module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's sign for a plain average over the batches
        norm.train()
    try:
        for batch in images:
            if len(batch) > 1:  # one value may be all of a channel: it has no variance
                net(batch)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()
