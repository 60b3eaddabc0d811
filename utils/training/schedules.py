"""Learning rates as plain lists: one number an epoch,
so resuming needs no state; in a warm-up one number a step.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch.optim import Optimizer


def learning_rates(
    lr: float, epochs: int, *, logspace: float = 0, epoch_step: int = 60, decay_factor: float = 0.3
) -> list[float]:
    """Give the learning rate of every epoch.

    Args:
        lr: the first epoch's rate.
        epochs: how many epochs.
        logspace: decades over all epochs, first and last included: lr → lr · 10^(−logspace). 0:
            steps.
        epoch_step: with steps, an epoch has the rate lr · decay_factor^(epoch // epoch_step).
        decay_factor: see `epoch_step`.
    """
    if logspace:
        return (lr * np.logspace(0, -logspace, epochs)).tolist()
    return [lr * decay_factor ** (epoch // epoch_step) for epoch in range(epochs)]


def multistep(
    lr: float, epochs: int, milestones: Sequence[int], factor: float = 0.1
) -> list[float]:
    """Multiply the rate by `factor` in each of the epochs `milestones`, counted from 0."""
    return [
        lr * factor ** sum(epoch >= milestone for milestone in milestones)
        for epoch in range(epochs)
    ]


def warm_restarts(lr: float, epochs: int, first: int) -> list[float]:
    """Go down half a cosine from `lr` towards 0 in cycles of `first`,
    2·`first`, 4·`first`, … epochs (SGDR, 2017).
    """
    rates: list[float] = []
    length = first
    while len(rates) < epochs:
        rates += [lr / 2 * (1 + math.cos(math.pi * epoch / length)) for epoch in range(length)]
        length *= 2
    return rates[:epochs]


def warm_up_and_cosine(lr: float, steps: int, share: float = 0.05) -> list[float]:
    """Go up to `lr` in a straight line over the first `share` of the steps,
    then down half a cosine towards 0.

    Returns:
        One rate a step, each above 0.
    """
    rising = max(1, int(share * steps))
    falling = max(1, steps - rising)
    up = [lr * (step + 1) / rising for step in range(rising)]
    down = [lr / 2 * (1 + math.cos(math.pi * step / falling)) for step in range(steps - rising)]
    return (up + down)[:steps]


def warm_up(lr: float, epoch: int, epochs: int, steps: int) -> list[float]:
    """Give the rate of every step of an epoch of a linear warm-up,
    lr·(1 + step + epoch·steps) / (epochs·steps).

    Args:
        lr: the rate of the warm-up's last step.
        epoch: counted from 0.
        epochs: how many the warm-up has.
        steps: of an epoch.

    Returns:
        One rate a step; none after the warm-up.
    """
    if epoch >= epochs:
        return []
    return [lr * (1 + step + epoch * steps) / (epochs * steps) for step in range(steps)]


@contextlib.contextmanager
def each_step(optimizer: Optimizer, rates: Sequence[float]) -> Iterator[None]:
    """Give every step that an optimiser takes meanwhile the next rate;
    without any rates, leave its own.
    """
    waiting = iter(rates)
    hook = (
        optimizer.register_step_pre_hook(lambda *_: set_learning_rate(optimizer, next(waiting)))
        if rates
        else None
    )
    try:
        yield
    finally:
        if hook:
            hook.remove()


def geometric(start: float, end: float, epochs: int) -> list[float]:
    """Go from `start` to `end` (both > 0, or equal) by the same factor every epoch."""
    if start == end:
        return [start] * epochs
    return np.geomspace(start, end, epochs).tolist()


def due(epoch: int, every: int, epochs: int) -> bool:
    """Say whether something that happens `every` so many epochs happens after this one;
    after the last it does.
    """
    return epoch + 1 == epochs or (epoch + 1) % every == 0


def set_learning_rate(optimizer: Optimizer, *rates: float) -> None:
    """Give every parameter group its rate: the same one to all,
    or one for each group in their order.
    """
    groups = optimizer.param_groups
    for group, lr in zip(groups, rates * len(groups) if len(rates) == 1 else rates, strict=True):
        group["lr"] = lr
