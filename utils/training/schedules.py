"""Learning rates as plain lists: one number an epoch, so resuming needs no state."""

import numpy as np
from torch.optim import Optimizer


def learning_rates(
    lr: float, epochs: int, *, logspace: float = 0, epoch_step: int = 60, decay_factor: float = 0.3
) -> list[float]:
    """Give the learning rate of every epoch.

    Args:
        lr: the first epoch's rate.
        epochs: how many epochs.
        logspace: decades over all epochs, first and last included: lr → lr · 10^(−logspace). 0: steps.
        epoch_step: with steps, an epoch has the rate lr · decay_factor^(epoch // epoch_step).
        decay_factor: see `epoch_step`.
    """
    if logspace:
        return (lr * np.logspace(0, -logspace, epochs)).tolist()
    return [lr * decay_factor ** (epoch // epoch_step) for epoch in range(epochs)]


def geometric(start: float, end: float, epochs: int) -> list[float]:
    """Go from `start` to `end` (both > 0, or equal) by the same factor every epoch."""
    if start == end:
        return [start] * epochs
    return np.geomspace(start, end, epochs).tolist()


def due(epoch: int, every: int, epochs: int) -> bool:
    """Say whether something that happens `every` so many epochs happens after this one; after the last it does."""
    return epoch + 1 == epochs or (epoch + 1) % every == 0


def set_learning_rate(optimizer: Optimizer, *rates: float) -> None:
    """Give every parameter group its rate: the same one to all, or one for each group in their order."""
    groups = optimizer.param_groups
    for group, lr in zip(groups, rates * len(groups) if len(rates) == 1 else rates, strict=True):
        group["lr"] = lr
