"""Nets as they are before any training, beside which trained ones are held."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def set_statistics(net: nn.Module, images: Iterable[Tensor]) -> None:
    """Give every BatchNorm the mean and the variance that its input has over some images.

    As initialised, BatchNorms have means of 0 and variances of 1, which are not those of their inputs:
    in evaluation mode activations fade from layer to layer, and the net is nearly linear. One pass with
    statistics of the batch, averaged over the batches (momentum None), gives the net that training
    would begin with. All other layers stay in evaluation mode, so dropout draws nothing.

    Args:
        net: changed in place, and in evaluation mode afterwards; without BatchNorm nothing is
            computed.
        images: batches that the net takes, on its device; a batch of one image is passed over,
            since a variance over one value does not exist.
    """
    net.eval()
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    norms = [module for module in norms if module.track_running_stats]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in images:
            if len(batch) > 1:
                net(batch)
    finally:
        for norm, momentum in zip(norms, momenta):
            norm.momentum = momentum
            norm.eval()
