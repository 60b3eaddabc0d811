"""The books of a run: where it is saved, what it goes on from,
and what is due after each of its epochs.

The loop itself stays in the script, where a reader looks for it:

    run = Run(path, settings, epochs, runtime, log_folder=folder, resume="auto")   # before images are decoded
    run.restore(fit)                                                # once the model has the weights of `run.state`
    with run:
        for epoch in run.epochs():
            metrics = train_one_epoch(fit, loader, step, epoch)
            if run.is_due_to_validate(epoch):
                metrics |= validate(...)
                run.measured(main_accuracy(metrics, "val_"))
            run.write(epoch, metrics)
            run.save(epoch, fit.state(epoch + 1, **run.accuracies, ...))
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.errors import InputError
from utils.files import check_unclaimed
from utils.provenance import Provenance
from utils.runs import RunLog
from utils.runtime import Runtime
from utils.training import resume as resuming
from utils.training.engine import Fit
from utils.training.schedules import due


class Run:
    """One run of training, which is saved in one place and may be interrupted and gone on with.

    As a context manager it opens the log and keeps other runs from writing in the same place.

    Attributes:
        path: the checkpoint of the last epoch.
        best_path: that of the best epoch, or None where only the last one is kept.
        settings: every option that changes the result, as plain values.
        resumed: the checkpoint that the run goes on from, or None.
        state: what that holds, its tensors mapped from the file; {} for a new run.
        start_epoch: the first epoch to train, counted from 0.
        acc1: the last accuracy that was measured, in percent; 0 before any.
        best_acc1: the highest one, in percent.
        is_best: whether the present epoch has it.
        log: of the epochs; there within `with`.
        log_path: the file of its JSON lines.
    """

    log: RunLog

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        epochs: int,
        runtime: Runtime,
        *,
        log_folder: Path,
        resume: str = "",
        restart: bool = False,
        extendable: bool = False,
        source: Provenance | None = None,
        start_epoch: int | None = None,
        first_epoch: int = 1,
        stages: int = 1,
        val_epoch: int = 1,
        save_epoch: int = 1,
        best_path: Path | None = None,
        elsewhere: str = "--suffix",
        again: str = "--resume auto",
    ) -> None:
        """Find what the run goes on from; nothing is written yet.

        Args:
            path: where its last epoch is saved.
            settings: every option that changes the result.
            epochs: of the whole run, or of each of its `stages`.
            runtime: which process this is; the main one alone writes.
            log_folder: where its log goes.
            resume: "" begins anew, "auto" goes on with `path` if it exists, else a path.
            restart: replace what is at `path`, whatever it is.
            extendable: another number of epochs may go on with the same checkpoint.
            source: the features that are read, if any.
            start_epoch: the first epoch, instead of the one that the checkpoint stopped at.
            first_epoch: what a checkpoint that was saved after the first epoch has under "epoch".
            stages: how often `epochs` are trained; after the last epoch of each everything is due.
            val_epoch: epochs between validations.
            save_epoch: epochs between checkpoints.
            best_path: where the best epoch is saved too.
            elsewhere: the option that names another place.
            again: what goes on with an interrupted run, in words.

        Raises:
            InputError: another run is writing there, or its checkpoint is there; or `start_epoch`
                leaves no epoch.
        """
        if runtime.is_main:
            check_unclaimed(log_folder, elsewhere=elsewhere)
            check_unclaimed(path, is_file=True, elsewhere=elsewhere)
        self.path, self.best_path, self.settings, self.runtime = path, best_path, settings, runtime
        self.resumed = resuming.find(
            resume,
            path,
            settings,
            source=source,
            restart=restart,
            extendable=extendable,
            elsewhere=elsewhere,
        )
        self.state: checkpoint.State = (
            checkpoint.load(self.resumed, mmap=True) if self.resumed else {}
        )
        if start_epoch is not None and start_epoch >= epochs:
            raise InputError(
                f"--start_epoch {start_epoch} leaves nothing of --epochs {epochs} to train"
            )
        has_training_state = {"epoch", "optimizer"} <= self.state.keys()
        trained = int(self.state["epoch"]) + 1 - first_epoch if has_training_state else 0
        self.start_epoch = trained if start_epoch is None else start_epoch
        self.acc1 = float(self.state.get("acc1") or 0)
        self.best_acc1 = float(self.state.get("best_acc1") or 0) if self.has_best else 0.0
        self.is_best = False
        self.log_path = log_folder / "metrics.jsonl"
        self._stage_epochs, self._epochs = epochs, epochs * stages
        self._val_epoch, self._save_epoch = val_epoch, save_epoch
        self._elsewhere, self._again = elsewhere, again

    @property
    def has_best(self) -> bool:
        """Whether the best epoch that `state` speaks of is in a file of this run,
        and not of another.
        """
        return self.resumed == self.path and (self.best_path is None or self.best_path.exists())

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.start_epoch >= self._epochs

    def restore(self, fit: Fit) -> None:
        """Put optimiser and loss scaler where the checkpoint left them;
        the model has its weights already.

        Raises:
            InputError: see `Fit.restore`.
        """
        if self.resumed is None:
            return
        fit.restore(self.state, self.resumed)
        if not self.is_finished:
            planned = self.state.get("settings", {}).get("epochs", self._stage_epochs)
            longer = "" if planned == self._stage_epochs else f", which was to end after {planned}"
            self.runtime.say(
                f"going on after epoch {self.start_epoch} of {self._epochs}: {self.resumed}{longer}"
            )

    def __enter__(self) -> "Run":
        self.log = RunLog(
            self.log_path.parent,
            self._epochs,
            start_epoch=self.start_epoch,
            active=self.runtime.is_main,
            elsewhere=self._elsewhere,
            again=self._again,
            writes=[self.path],
        )
        self.log.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.log.__exit__(kind, *rest)

    def epochs(self) -> Iterator[int]:
        """Count the epochs that are left, from 0 over all stages."""
        for epoch in range(self.start_epoch, self._epochs):
            self.is_best = False
            yield epoch

    def is_due_to_validate(self, epoch: int) -> bool:
        """Say whether this epoch is followed by a validation; the last one is."""
        return due(epoch % self._stage_epochs, self._val_epoch, self._stage_epochs)

    def is_due_to_save(self, epoch: int) -> bool:
        """Say whether this epoch is followed by a checkpoint:
        by its number, or as the last one is long ago.
        """
        return (
            due(epoch % self._stage_epochs, self._save_epoch, self._stage_epochs)
            or self.log.overdue
        )

    def measured(self, accuracy_percent: float) -> None:
        """Note the accuracy after the present epoch."""
        self.acc1 = accuracy_percent
        self.is_best = accuracy_percent > self.best_acc1
        self.best_acc1 = accuracy_percent if self.is_best else self.best_acc1

    def write(self, epoch: int, metrics: dict[str, float]) -> None:
        """Write what an epoch measured to the log and the terminal."""
        self.log.write(epoch, metrics)

    @property
    def accuracies(self) -> dict[str, float]:
        """What a checkpoint says of a classifier: `acc1`, `best_acc1`, in percent."""
        return {"acc1": self.acc1, "best_acc1": self.best_acc1}

    @property
    def record(self) -> dict[str, Any]:
        """What every checkpoint says of its run: `settings`,
        the `history` of earlier ones, `versions`.
        """
        past = resuming.history(self.state, self.settings)
        return {"settings": dict(self.settings), "history": past, "versions": resuming.VERSIONS}

    def save(self, epoch: int, state: checkpoint.State) -> None:
        """Save the state after an epoch, with `record`:
        as the best if it is, as the last one where that is due.

        The last one speaks of the best, so the best is written first. A run that is killed between
        the two repeats this epoch, and writes the same best again.
        """
        if self.runtime.is_main and self.is_best and self.best_path:
            checkpoint.save(self.best_path, self.record | state)
        if self.is_due_to_save(epoch):
            self.save_last(epoch + 1, state)

    def save_last(self, trained: int, state: checkpoint.State) -> None:
        """Save the state after `trained` epochs now, with `record`."""
        if self.runtime.is_main:
            checkpoint.save(self.path, self.record | state)
            self.log.saved(self.path, trained)
