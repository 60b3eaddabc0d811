"""Learning rates as plain lists, one number an epoch; a warm-up has one number a step.

A list needs no state, so that resuming is exact.
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
        epochs: the number of epochs.
        logspace: decades from the first to the last epoch: lr → lr · 10^(−logspace). 0: steps.
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
    """Give half a cosine from `lr` towards 0, in cycles of doubling length.

    This is SGDR (Loshchilov and Hutter 2017). The cycles have `first`, 2·`first`, 4·`first`, …
    epochs.
    """
    rates: list[float] = []
    length = first
    while len(rates) < epochs:
        rates += [lr / 2 * (1 + math.cos(math.pi * epoch / length)) for epoch in range(length)]
        length *= 2
    return rates[:epochs]


def warm_up_and_cosine(lr: float, steps: int, share: float = 0.05) -> list[float]:
    """Give a line up to `lr` over the first share of the steps, then half a cosine towards 0.

    Args:
        lr: the highest rate.
        steps: the number of steps.
        share: of the steps that rise, in (0, 1).

    Returns:
        One rate a step, each above 0.
    """
    rising = max(1, int(share * steps))
    falling = max(1, steps - rising)
    up = [lr * (step + 1) / rising for step in range(rising)]
    # Step 0 has the highest rate; the 0 at the cosine's end is never reached.
    down = [lr / 2 * (1 + math.cos(math.pi * step / falling)) for step in range(steps - rising)]
    return (up + down)[:steps]


def by_epoch(rates: Sequence[float], steps: int, *, one_cycle: float = 0) -> list[list[float]]:
    """Give the rate of each step, by epoch.

    Args:
        rates: of the epochs, (E,); with one cycle only the first, its highest, counts.
        steps: of an epoch.
        one_cycle: share of all steps in which the rate rises, in (0, 1); then it falls to 0. 0: it
            is constant within an epoch.

    Returns:
        E lists of `steps` rates.
    """
    if not one_cycle:
        return [[rate] * steps for rate in rates]
    cycle = warm_up_and_cosine(rates[0], len(rates) * steps, one_cycle)
    return [cycle[start : start + steps] for start in range(0, len(cycle), steps)]


def warm_up(lr: float, epoch: int, epochs: int, steps: int) -> list[float]:
    """Give the rates in an epoch of a linear warm-up: lr·(1 + step + epoch·steps) / (epochs·steps).

    Args:
        lr: the rate of the warm-up's last step.
        epoch: counted from 0.
        epochs: of the warm-up.
        steps: of an epoch.

    Returns:
        One rate a step; none after the warm-up.
    """
    if epoch >= epochs:
        return []
    return [lr * (1 + step + epoch * steps) / (epochs * steps) for step in range(steps)]


@contextlib.contextmanager
def each_step(optimizer: Optimizer, rates: Sequence[float], taken: int = 0) -> Iterator[None]:
    """Give each step that an optimiser takes meanwhile the next rate; without rates, do nothing.

    `taken` steps had their rates already.
    """
    waiting = iter(rates[taken:])
    if rates and taken:
        set_learning_rate(optimizer, rates[taken - 1])
    hook = (
        # A hook, since the loop over batches knows no schedule.
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
    """Whether something that is due every so many epochs is due after this one, or it is the last.

    Args:
        epoch: counted from 0.
        every: so many epochs.
        epochs: the number of all epochs.
    """
    return epoch + 1 == epochs or (epoch + 1) % every == 0


def set_learning_rate(optimizer: Optimizer, *rates: float) -> None:
    """Set the rate of every parameter group: one rate for all, or one for each in their order."""
    groups = optimizer.param_groups
    for group, lr in zip(groups, rates * len(groups) if len(rates) == 1 else rates, strict=True):
        group["lr"] = lr
