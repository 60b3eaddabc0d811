"""The bookkeeping of a run: its checkpoint, its resumption, and what is due after each epoch.

The loop itself stays in the script, where a reader looks for it:

    run = Run(path, settings, epochs, runtime, log_folder=folder, resume="auto")  # before decoding
    run.restore(fit)                                # after the model has the weights of `run.state`
    with run.keeping(fit, state):                   # state(epochs): what a run goes on from
        for epoch in run.epochs():
            metrics = train_one_epoch(fit, loader, step, epoch)   # a signal ends it after a step
            if run.is_due_to_validate(epoch):
                metrics |= validate(...)
                run.measured(main_accuracy(metrics, "val_"))
            run.write(epoch, metrics)
            run.save(epoch, state(epoch + 1))
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.errors import InputError
from utils.files import KEEP, check_room, check_unclaimed, earlier
from utils.provenance import Provenance
from utils.remarks import remark
from utils.runs import RunLog, read_metrics
from utils.runtime import Runtime
from utils.training import resume as resuming
from utils.training.engine import Fit
from utils.training.schedules import due


class Run:
    """One run of training, which may be interrupted and resumed.

    As a context manager it opens the log and keeps other runs from writing in the same place.

    Attributes:
        path: the checkpoint of the last epoch.
        best_path: the checkpoint of the best epoch; None: it is not kept.
        settings: every option that changes the result, as plain values.
        resumed: the checkpoint that the run continues, or None.
        state: the content of `resumed`, its tensors mapped from the file; {} for a new run.
        start_epoch: the first epoch to train, counted from 0.
        has_best: whether the best epoch in `state` is a file of this run, not of the one it continues.
        acc1: the last measured accuracy, in percent; 0 before any.
        best_acc1: the highest accuracy, in percent.
        is_best: whether the present epoch has the highest accuracy.
        log: of the epochs; it exists within `with`.
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
        keep: int = KEEP,
        elsewhere: str = "--suffix",
        again: str = "--resume auto",
    ) -> None:
        """Find the checkpoint that the run continues; nothing is written yet.

        Args:
            path: the checkpoint of its last epoch.
            settings: every option that changes the result.
            epochs: of the whole run, or of each of its `stages`.
            runtime: the main process alone writes.
            log_folder: of its log.
            resume: "" begins anew, "auto" continues `path` if it exists; else the checkpoint to
                continue.
            restart: replace the file at `path`, whatever it is.
            extendable: a run with another number of epochs may continue the checkpoint.
            source: the features that are read, if any.
            start_epoch: the first epoch, in place of the checkpoint's next one.
            first_epoch: the value of "epoch" in a checkpoint after the first epoch.
            stages: how often `epochs` are trained. After the last epoch of each, validation and
                checkpoint are due.
            val_epoch: epochs between validations.
            save_epoch: epochs between checkpoints.
            best_path: the checkpoint of the best epoch; None: it is not kept.
            keep: how many checkpoints of last epochs are kept; see `utils.files.earlier`.
            elsewhere: the option that names another place, for messages.
            again: the option that resumes an interrupted run, for messages.

        Raises:
            InputError: another run writes there or has its checkpoint there; or `start_epoch`
                leaves no epoch.
        """
        if runtime.is_main:
            check_unclaimed(log_folder, elsewhere=elsewhere)
            check_unclaimed(path, is_file=True, elsewhere=elsewhere)
        self.path, self.best_path, self.settings, self.runtime = path, best_path, settings, runtime
        # Before anything is decoded: a run that may not go on ends at once.
        self.resumed = resuming.find(
            resume,
            path,
            settings,
            source=source,
            restart=restart,
            extendable=extendable,
            first_epoch=first_epoch,
            elsewhere=elsewhere,
        )
        self.state: checkpoint.State = (
            checkpoint.load(self.resumed, mmap=True) if self.resumed else {}
        )
        if start_epoch is not None and start_epoch >= epochs:
            raise InputError(
                f"--start_epoch {start_epoch} leaves nothing of --epochs {epochs} to train"
            )
        # Weights alone, as the authors' files, are a beginning; their epochs do not count.
        has_training_state = {"epoch", "optimizer"} <= self.state.keys()
        # In a checkpoint after one epoch "epoch" is `first_epoch`.
        trained = int(self.state["epoch"]) + 1 - first_epoch if has_training_state else 0
        self.start_epoch = trained if start_epoch is None else start_epoch
        self.acc1 = float(self.state.get("acc1") or 0)
        self.has_best = self._finds_best()
        # The best of a run that is continued elsewhere is no file of this one: begin at 0.
        self.best_acc1 = float(self.state.get("best_acc1") or 0) if self.has_best else 0.0
        self.is_best = False
        self.log_path = log_folder / "metrics.jsonl"
        # Metrics of an earlier run are read again, before they are added to.
        if runtime.is_main:
            read_metrics(self.log_path)  # a damaged one is refused before an epoch is trained
        self._stage_epochs, self._epochs = epochs, epochs * stages
        self._val_epoch, self._save_epoch = val_epoch, save_epoch
        self._elsewhere, self._again = elsewhere, again
        self._state: Callable[[int], checkpoint.State] | None = None
        self._fit: Fit | None = None
        self._before = (self.acc1, self.best_acc1)
        self._is_chosen = start_epoch is not None  # the first epoch: it begins anew
        self._keep = keep

    def _finds_best(self) -> bool:
        if self.best_path is None or self.resumed != self.path:
            return self.resumed == self.path
        if self.best_path.exists() and not checkpoint.is_whole(self.best_path):
            remark(f"{self.best_path} is damaged; the best of the epochs to come takes its place")
            return False
        return self.best_path.exists()

    @property
    def is_finished(self) -> bool:
        """Whether no epoch is left to train."""
        return self.start_epoch >= self._epochs

    def restore(self, fit: Fit) -> None:
        """Restore optimiser and loss scaler; the model has its weights already.

        Raises:
            InputError: see `Fit.restore`.
        """
        if self.resumed is None:
            return
        fit.restore(self.state, self.resumed)
        if self.is_within(self.start_epoch):
            fit.midway.record = midway = self.state["midway"]
            self.runtime.say(
                f"going on in epoch {self.start_epoch + 1}, after {midway['step']} of its steps"
            )
        if not self.is_finished:
            # A run that is extended differs in `epochs` alone.
            planned = self.state.get("settings", {}).get("epochs", self._stage_epochs)
            longer = "" if planned == self._stage_epochs else f", which was to end after {planned}"
            self.runtime.say(
                f"going on after epoch {self.start_epoch} of {self._epochs}: {self.resumed}{longer}"
            )

    def is_within(self, epoch: int) -> bool:
        """Whether the run goes on within this epoch, counted from 0, and not at its beginning."""
        midway = self.state.get("midway")
        if midway is None or self._is_chosen or not self._is_this_run():
            return False
        return bool(midway["epoch"] == epoch)

    def _is_this_run(self) -> bool:
        """Whether the checkpoint is of this run; another one's order and rates are others."""
        stored, settings = self.state.get("settings", {}), self.settings
        return all(
            name == "epochs" or (name in stored and resuming.agrees(stored, name, value))
            for name, value in settings.items()
        )

    def keeping(self, fit: Fit, state: Callable[[int], checkpoint.State]) -> "Run":
        """Let an interruption save what is not saved yet, also within an epoch.

        Args:
            fit: knows where the epoch in hand was left.
            state: the number of finished epochs → what a run goes on from.

        Returns:
            This run, to be opened by `with`.

        Raises:
            InputError: the disk has no room for its checkpoints.
        """
        self._fit, self._state = fit, state
        if self.runtime.is_main and not self.is_finished:
            places = [self.path, *(earlier(self.path, age) for age in range(1, self._keep))]
            places += [self.best_path] if self.best_path else []
            # A new file stands beside the old one until it is whole.
            files = 1 + sum(not place.exists() for place in places)
            remedy = "make room, or name another --out"
            check_room(self.path.parent, files * _bytes_of(fit), "the checkpoints", remedy)
        return self

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, *rest: object
    ) -> None:
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                self._save_midway()
        finally:
            self.log.__exit__(kind, error, *rest)

    def _save_midway(self) -> None:
        """Save the epoch in hand as far as it is, if nothing of it is saved."""
        if self._state is None or self._fit is None or self._fit.midway.record is None:
            return
        midway = self._fit.midway.record
        # The accuracies of this epoch are measured anew: else the best one would not be the best.
        self.acc1, self.best_acc1 = self._before
        if self.runtime.is_main:
            state = self._state(midway["epoch"]) | {"midway": midway}
            self._save(state)
            self.log.saved(self.path, midway["epoch"], midway["step"])

    def epochs(self) -> Iterator[int]:
        """Yield the numbers of the remaining epochs, counted from 0 over all stages."""
        for epoch in range(self.start_epoch, self._epochs):
            self.is_best, self._before = False, (self.acc1, self.best_acc1)
            yield epoch

    def is_due_to_validate(self, epoch: int) -> bool:
        """Whether a validation follows this epoch; it always follows the last one."""
        # Counted within the stage, so that each stage's last epoch is validated.
        return due(epoch % self._stage_epochs, self._val_epoch, self._stage_epochs)

    def is_due_to_save(self, epoch: int) -> bool:
        """Whether a checkpoint follows this epoch: by its number, or because the last is old."""
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
        """Write an epoch's metrics to the log and the terminal."""
        self.log.write(epoch, metrics)

    @property
    def accuracies(self) -> dict[str, float]:
        """A checkpoint's entries `acc1` and `best_acc1`, in percent."""
        return {"acc1": self.acc1, "best_acc1": self.best_acc1}

    @property
    def record(self) -> dict[str, Any]:
        """A checkpoint's entries on its run: `settings`, `history` of earlier ones, `versions`."""
        past = resuming.history(self.state, self.settings)
        return {"settings": dict(self.settings), "history": past, "versions": resuming.VERSIONS}

    def save(self, epoch: int, state: checkpoint.State) -> None:
        """Save the state after an epoch, with `record`: as the best if it is, as the last if due.

        A run that is killed before both are saved repeats this epoch.
        """
        best = {self.best_path: self.record | state} if self.is_best and self.best_path else {}
        if self.is_due_to_save(epoch):
            self.save_last(epoch + 1, state, beside=best)
        elif best and self.runtime.is_main:
            checkpoint.save_together(best)

    def save_last(
        self,
        trained: int,
        state: checkpoint.State,
        beside: Mapping[Path, checkpoint.State] | None = None,
    ) -> None:
        """Save the state after `trained` epochs now, with `record`.

        Args:
            trained: epochs.
            state: what the run goes on from.
            beside: by file in the same folder, what is saved together with it.
        """
        if self.runtime.is_main:
            self._save(state, beside)
            self.log.saved(self.path, trained)
        if self._fit is not None:
            self._fit.midway.record = None  # it is saved

    def _save(
        self, state: checkpoint.State, beside: Mapping[Path, checkpoint.State] | None = None
    ) -> None:
        of_run = {self.path: self.record | state}
        checkpoint.save_together(of_run, keep=self._keep, beside=beside)


def _bytes_of(fit: Fit) -> int:
    """Estimate the size of a checkpoint: weights, and the moments of those that are trained."""
    # Muon has one or two, counted as one
    moments = 1 if "momentum" in fit.optimizer.defaults else 2
    weights = sum(value.nbytes for value in fit.model.state_dict().values())
    trained = [one for one in fit.model.parameters() if one.requires_grad]
    return weights + moments * sum(one.nbytes for one in trained)
