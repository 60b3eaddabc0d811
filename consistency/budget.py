"""How far Trans-Nets are fitted and by what: the part of a fit that a null beside it repeats."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import nn
from torch.optim import Optimizer

from utils.training.engine import make_optimizer
from utils.training.schedules import learning_rates, warm_up_and_cosine


@dataclass(frozen=True)
class Budget:
    """Optimiser, rates, and a number of steps or of epochs.

    Attributes:
        optim: "Muon", "Adam" or "SGD".
        lr: the first learning rate, or with `steps` the highest one.
        momentum: of SGD and Muon.
        weight_decay: of the optimiser.
        batch_size: images of a step, over all processes.
        steps: of the optimiser in all, with the rates of `warm_up_and_cosine`; None: see `epochs`.
        epochs: passes over the fitted images, with the rates of `learning_rates`; None: see
            `steps`.
        logspace, epoch_step, decay_factor: see `learning_rates`.
        solve: W(0) is solved in closed form first and last; above 0 after every so many epochs too;
            None: never.
        print_freq: batches between two readings of the loss.
        skip_nonfinite: steps of an epoch that may be left out; see `Fit`.
    """

    optim: str = "Muon"
    lr: float = 0.04
    momentum: float = 0.95
    weight_decay: float = 0.0
    batch_size: int = 64
    steps: int | None = 400
    epochs: int | None = None
    logspace: float = 0
    epoch_step: int = 60
    decay_factor: float = 0.2
    solve: int | None = 0
    print_freq: int = 10
    skip_nonfinite: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any], **others: Any) -> "Budget":
        """Read it from the options of a run, or from a checkpoint's record of them.

        `others` go before both.
        """
        absent = {"steps": None, "epochs": None}  # an earlier version's checkpoint knows no steps
        values = absent | dict(settings) | others
        return cls(
            **{field.name: values[field.name] for field in fields(cls) if field.name in values}
        )

    def batches(self, images: int, processes: int = 1) -> int:
        """Say how many steps an epoch of so many images has."""
        # Each process has its share of the images, and of every batch.
        return math.ceil(math.ceil(images / processes) / max(1, self.batch_size // processes))

    def rates(self, batches: int) -> list[list[float]]:
        """Give for every epoch the rates of its steps; one rate alone is that of all of its steps.

        Args:
            batches: steps of a whole epoch; the last one of a budget in steps may have fewer.
        """
        if self.steps is None:
            of_epochs = learning_rates(
                self.lr,
                self.epochs or 0,
                logspace=self.logspace,
                epoch_step=self.epoch_step,
                decay_factor=self.decay_factor,
            )
            return [[rate] for rate in of_epochs]
        rates = warm_up_and_cosine(self.lr, self.steps)
        # A step's rate does not know epochs: slices of the whole schedule.
        return [rates[start : start + batches] for start in range(0, self.steps, batches)]

    def steps_of(self, images: int, processes: int = 1) -> int:
        """Say how many steps the whole fit has."""
        return (
            (self.epochs or 0) * self.batches(images, processes)
            if self.steps is None
            else self.steps
        )

    def optimizer(self, model: nn.Module) -> Optimizer:
        """Make the optimiser over the parameters that are trained."""
        return make_optimizer(
            self.optim,
            model.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
