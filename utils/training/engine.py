"""One epoch of training, and one pass of evaluation.

A script passes its science as a `step`: a batch in, the loss and named metrics out. Each metric is
a mean over the batch, or has one value a sample.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils import checkpoint, stopping
from utils.allocator import keep_freed_memory
from utils.data.loaders import names_of
from utils.devices import float64_home, has_float64, to_cpu
from utils.errors import DivergedError, InputError
from utils.progress import Progress
from utils.runtime import Runtime, unchanged_generators
from utils.training.muon import Muon

FUSED_ON = ("cpu", "cuda", "mps", "xpu")  # devices with fused optimisers
# What SGD, Adam and Muon keep of a parameter that took a step
MOMENTS = ({"momentum_buffer"}, {"step", "exp_avg", "exp_avg_sq"})
NAMED = 4  # files of a batch that a message has
TOO_FEW = "more than 1 value per channel"  # in the error of PyTorch's BatchNorm
Step = Callable[..., tuple[Tensor, dict[str, Tensor]]]  # step(net, *batch) -> loss, metrics


class Averages:
    """Means of a step's metrics over samples; sums stay on the device, so that no step waits.

    Attributes:
        samples: how many were added.
        sums: by metric a scalar, float64.
    """

    def __init__(self) -> None:
        self.samples = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, metrics: dict[str, Tensor], samples: int) -> None:
        """Add a batch's metrics: means, or one value for each of its samples."""
        self.samples += samples
        values = [value.detach() for value in metrics.values()]
        if not all(has_float64(value.device) for value in values):
            values = to_cpu(*values)
        for name, value in zip(metrics, values):
            # Batches may differ in size: means are weighed, and added in float64.
            weighted = value.double().mean() * samples
            self.sums[name] = self.sums[name] + weighted if name in self.sums else weighted

    def read(self, runtime: Runtime | None = None) -> dict[str, float]:
        """Give the means so far, over all processes where `runtime` is given."""
        values = torch.stack([*self.sums.values()])
        # One tensor, so that processes add it up as they do the sums.
        count = torch.full_like(values[:1], self.samples)
        if runtime is not None:
            values, count = runtime.sum(values), runtime.sum(count)
            self.samples = int(count.item())
        return dict(zip(self.sums, (values / count).tolist()))


@dataclass
class Midway:
    """Where an epoch was left, by a signal within it or before it was saved.

    Attributes:
        record: None, where no epoch is under way; else plain values and tensors: "epoch" from 0,
            "step" (how many were taken), and by process "samples", "sums" and "random".
    """

    record: dict[str, Any] | None = None

    def note(self, epoch: int, step: int, averages: Averages, runtime: Runtime) -> None:
        """Note that `step` steps of an epoch were taken; all processes do so together."""
        sums = dict(zip(averages.sums, to_cpu(*averages.sums.values())))
        of_process = (averages.samples, sums, runtime.random_state())
        samples, all_sums, states = map(list, zip(*runtime.gather(of_process)))
        self.record = {"epoch": epoch, "step": step}
        self.record |= {"samples": samples, "sums": all_sums, "random": states}

    def taken(self, epoch: int) -> int:
        """Give how many steps of an epoch were taken, which was left."""
        return self.record["step"] if self.record and self.record["epoch"] == epoch else 0

    def go_on(self, epoch: int, averages: Averages, runtime: Runtime) -> int:
        """Fill the averages with what was noted of an epoch; give its steps, 0 where none were.

        Raises:
            InputError: it was noted by another number of processes.
        """
        if self.record is None or not self.taken(epoch):
            return 0
        if len(self.record["random"]) != runtime.world_size:
            raise InputError(
                f"epoch {epoch + 1} was left within by {len(self.record['random'])} processes;"
                f" start as many to go on, or --start_epoch {epoch} to begin it anew"
            )
        averages.samples = self.record["samples"][runtime.rank]
        sums = self.record["sums"][runtime.rank]
        averages.sums = {
            name: value.to(float64_home(runtime.device)) for name, value in sums.items()
        }
        return self.record["step"]


@dataclass(frozen=True)
class Fit:
    """A network in training, with its optimiser.

    Attributes:
        net: from `runtime.parallel`; its forward pass is trained.
        model: the unwrapped network, which is saved.
        optimizer: over the parameters that are trained.
        scaler: the loss scaler of fp16.
        runtime: device, processes, precision.
        print_freq: batches between two readings of the running averages.
        midway: where the epoch in hand was left; see `train_one_epoch`.
        skip_nonfinite: steps of an epoch that may be left out because their loss or a gradient is
            infinite or NaN. Above 0 every step waits for the device.
    """

    net: nn.Module
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    runtime: Runtime
    print_freq: int = 10
    midway: Midway = field(default_factory=Midway)
    skip_nonfinite: int = 0

    def __post_init__(self) -> None:
        # A fused SGD makes its momenta in its first step, also where the scaler leaves that one
        # out: they would hold what was in memory before.
        if self.scaler.is_enabled() and isinstance(self.optimizer, torch.optim.SGD):
            for group in self.optimizer.param_groups:
                for parameter in group["params"] if group["momentum"] else ():
                    momentum = torch.zeros_like(parameter)
                    self.optimizer.state[parameter].setdefault("momentum_buffer", momentum)

    def state(self, epoch: int, **facts: Any) -> checkpoint.State:
        """Gather the state for resuming after `epoch` epochs, with facts that describe the run.

        Raises:
            InputError: the weights diverged: there is nothing to save.
        """
        self.check_finite(epoch)
        return {
            "epoch": epoch,
            **facts,
            "state_dict": _plainly_stored(self.model.state_dict()),
            "optimizer": _plainly_stored(self.optimizer.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def check_finite(self, epoch: int) -> None:
        """Refuse to save weights that are infinite or NaN after `epoch` epochs.

        Raises:
            InputError: they are.
        """
        if name := checkpoint.first_not_finite(self.model.state_dict()):
            raise DivergedError(
                f"{name} is not finite after epoch {epoch}: the fit diverged and is not saved; lower"
                " --lr or switch --amp off"
            )

    def restore(self, state: checkpoint.State, path: str | Path) -> int:
        """Restore the optimiser and the loss scaler; the model has its weights already.

        Args:
            state: the checkpoint.
            path: its file, for messages.

        Returns:
            The number of epochs that were trained.

        Raises:
            InputError: the checkpoint has no training state, or one of another optimiser or other
                parameters.
        """
        if "optimizer" not in state or "epoch" not in state:
            raise InputError(
                f"{path} holds weights but no training state, so it cannot be resumed; use it as"
                " --weights"
            )
        try:
            saved, current = state["optimizer"], self.optimizer.param_groups[0]
            # Whether a step is fused depends on this run's device, not on that of the file.
            fused = {"fused": current["fused"]} if "fused" in current else {}
            groups = [{**group, **fused} for group in saved["param_groups"]]
            options = set(self.optimizer.defaults)
            self.optimizer.load_state_dict({**saved, "param_groups": groups})
            # PyTorch loads any optimiser's groups and fails in the first step; it adds options that
            # are younger than the file. So a missing option means another optimiser.
            if absent := options - self.optimizer.param_groups[0].keys():
                raise ValueError(f"it has no {', '.join(sorted(absent))}")
            for group in self.optimizer.param_groups:
                _check_group(group, self.optimizer.defaults)
            has_momentum = self.optimizer.param_groups[0].get("momentum", 0) > 0
            for parameter, of_parameter in self.optimizer.state.items():
                _check_optimizer_state(parameter, of_parameter, has_momentum=has_momentum)
                _order_as(parameter, of_parameter)
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            epoch = int(state["epoch"])
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise InputError(
                f"{path} was trained with another optimiser or other parameters than this"
                f" {type(self.optimizer).__name__}; choose its --optim, or use it as --weights"
            ) from error
        return epoch


def _check_group(group: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options of an optimiser that are of another kind than its own.

    Raises:
        ValueError: one is no finite number where one is expected, or no yes or no.
    """
    for name, default in defaults.items():
        value = group.get(name, default)
        if isinstance(default, bool) != isinstance(value, bool) and default is not None:
            raise ValueError(f"{name} is {value!r}")
        is_number = isinstance(value, int | float) and math.isfinite(value)
        if isinstance(default, int | float) and not is_number:
            raise ValueError(f"{name} is {value!r}")


def _check_optimizer_state(
    parameter: Tensor, state: Mapping[str, Any], *, has_momentum: bool
) -> None:
    """Refuse moments that are not a parameter's: a fused step would read beyond their end.

    Raises:
        ValueError: one is missing, is no tensor, has another shape, or is not finite.
    """
    if state and not any(known <= state.keys() for known in MOMENTS):
        raise ValueError(f"it has {', '.join(map(str, state))} of a parameter")
    for name, value in state.items():
        # SGD without momentum keeps None; a fused step takes momenta of all parameters or of none.
        if value is None and name == "momentum_buffer" and not has_momentum:
            continue
        if not isinstance(value, Tensor):
            raise ValueError(f"{name} is {value!r}")
        if value.ndim and (value.shape, value.dtype) != (parameter.shape, parameter.dtype):
            raise ValueError(f"{name} has shape {tuple(value.shape)} of {value.dtype}")
        if value.is_floating_point() and not value.isfinite().all():
            raise ValueError(f"{name} is not finite")


def _order_as(parameter: Tensor, state: dict[str, Any]) -> None:
    """Store moments in the order of their parameter, in place: a fused step reads both alike."""
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim:
            state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _plainly_stored(values: Any) -> Any:
    """Copy nested dictionaries, with contiguous tensors: files have them so, whatever a run has."""
    if isinstance(values, Tensor):
        return values.contiguous()
    if not isinstance(values, dict):
        return values
    stored = copy.copy(values)  # with its attributes: a `state_dict` has versions of modules
    for name, value in values.items():
        stored[name] = _plainly_stored(value)
    return stored


@contextlib.contextmanager
def saved_midway(fit: Fit, save: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Let an interruption save what is not saved yet, also within an epoch.

    Args:
        fit: knows where the epoch in hand was left.
        save: is given `Midway.record`.
    """
    try:
        yield
    except KeyboardInterrupt:
        if fit.midway.record is not None:
            save(fit.midway.record)
        raise


def train_one_epoch(
    fit: Fit, loader: DataLoader[Any], step: Step, epoch: int, *, steps: int | None = None
) -> dict[str, float]:
    """Train for one epoch.

    SIGINT and SIGTERM wait for the end of a step; several processes leave the same one, at the next
    reading of the averages. What the epoch needs to go on, to the bit, is then in `fit.midway`.
    Where a checkpoint has put it there, the epoch goes on from it.

    Args:
        fit: its learning rate is set already; the network is put into training mode.
        loader: from `make_loader`; shuffled by (seed, epoch).
        step: `step(net, *batch) -> (loss, metrics)`, called under autocast with the batch on the
            device.
        epoch: counted from 0; seeds this epoch.
        steps: the epoch's number of steps; None: the loader's.

    Returns:
        `Loss` and the step's metrics, means over all samples of all processes.

    Raises:
        DivergedError: the loss is no longer finite. Nothing of this epoch is saved.
        InputError: a batch is too small for BatchNorm.
        Interrupted: a signal came.
    """
    runtime = fit.runtime
    if not runtime.has_accelerator:
        keep_freed_memory()
    fit.net.train()
    runtime.seed_epoch(epoch)
    averages, watch = Averages(), _Watch(epoch, fit)
    taken = fit.midway.go_on(epoch, averages, runtime)
    states = fit.midway.record["random"] if taken and fit.midway.record else None
    fit.midway.record = None  # the weights change from here on
    loader.batch_sampler.set_epoch(epoch, taken)  # type: ignore[union-attr]
    # The last epoch of a budget in steps may end before the loader does.
    total = len(loader) if steps is None else min(steps, len(loader))
    batches = itertools.islice(loader, total - taken)
    progress = Progress(
        batches, f"epoch {epoch + 1}", total=total - taken, quiet=not runtime.is_main
    )
    with stopping.after_this_step():
        for index, batch in enumerate(progress, start=taken):
            if states and index == taken:  # now that the loader has drawn what it draws
                runtime.set_random_state(states[runtime.rank])
            with runtime.autocast():
                loss, metrics = _take(step, fit.net, runtime.to_device(batch))
            fit.optimizer.zero_grad(set_to_none=True)
            # Without fp16 the scaler passes loss and step through.
            fit.scaler.scale(loss).backward()
            if watch.skips(index, loss, loader):
                # A step without gradients changes nothing, and takes its rate of the schedule.
                fit.optimizer.zero_grad(set_to_none=True)
                fit.optimizer.step()
            else:
                fit.scaler.step(fit.optimizer)
                fit.scaler.update()
                averages.add({"Loss": loss, **metrics}, len(batch[0]))
                watch.see(index, loss)
            # Reading waits for the device: not after every batch
            if (index + 1) % fit.print_freq == 0 and averages.samples:
                running = averages.read()
                watch.check(running["Loss"], loader)
                # The mean since the epoch began, of this process
                progress.note = f"loss {running['Loss']:.4g}"
            if signal := _ending(runtime, index + 1, total, fit.print_freq):
                fit.midway.note(epoch, index + 1, averages, runtime)
                raise stopping.Interrupted(signal)
    if states and taken == total:
        runtime.set_random_state(states[runtime.rank])
    # Before the averages become those of all processes: a signal may come before this is saved.
    fit.midway.note(epoch, total, averages, runtime)
    means = averages.read(runtime)
    watch.check(means["Loss"], loader)
    return means


class _Watch:
    """Watch the losses of an epoch: the first one that is not finite is known without waiting."""

    def __init__(self, epoch: int, fit: Fit) -> None:
        self._epoch, self._fit, self._skipped = epoch, fit, 0
        self._first = torch.full((), -1, device=fit.runtime.device)

    def see(self, step: int, loss: Tensor) -> None:
        """Take a step's loss, a scalar."""
        is_first = (self._first < 0) & ~loss.detach().isfinite()
        self._first = torch.where(is_first, step, self._first)

    def check(self, loss: float, loader: DataLoader[Any]) -> None:
        """Refuse to go on with a mean loss that is infinite or NaN.

        Raises:
            DivergedError: it is so; the message has the first step and the files of its batch.
        """
        if not math.isfinite(loss):
            raise DivergedError(
                f"the loss became {loss} in {self._where(int(self._first), loader)}: lower --lr,"
                " switch --amp off, or leave such steps out by --skip_nonfinite N"
            )

    def skips(self, step: int, loss: Tensor, loader: DataLoader[Any]) -> bool:
        """Whether a step, whose gradients are there, is left out by all processes; say so.

        Raises:
            DivergedError: more were left out in this epoch than may be.
        """
        if not self._fit.skip_nonfinite:
            return False
        runtime, scaler = self._fit.runtime, self._fit.scaler
        is_bad = ~loss.detach().isfinite()
        # With fp16 gradients overflow now and then, and the scaler leaves such steps out itself.
        if not scaler.is_enabled():
            gradients = [one.grad for one in self._fit.model.parameters() if one.grad is not None]
            is_bad = is_bad | ~torch.nn.utils.get_total_norm(gradients).isfinite()
        if not runtime.sum(is_bad.float()).item():
            return False
        self._skipped += 1
        where = self._where(step, loader)
        if self._skipped > self._fit.skip_nonfinite:
            raise DivergedError(
                f"the loss or a gradient is not finite in {where}, and --skip_nonfinite"
                f" {self._fit.skip_nonfinite} such steps were left out already; lower --lr"
            )
        runtime.say(f"note: the loss or a gradient is not finite in {where}, which is left out")
        return True

    def _where(self, step: int, loader: DataLoader[Any]) -> str:
        """Name a step and the files of its batch."""
        names = names_of(loader.dataset, loader.batch_sampler.batch(step))  # type: ignore[union-attr]
        shown = ", ".join(names[:NAMED]) + (
            f" and {len(names) - NAMED} more" * (len(names) > NAMED)
        )
        return f"epoch {self._epoch + 1}, step {step + 1} ({shown})"


def _ending(runtime: Runtime, taken: int, total: int, print_freq: int) -> int:
    """Give the signal by which all processes end after this step, or 0."""
    if runtime.world_size == 1:
        return stopping.asked()
    # Asking the others costs a message: not after every batch
    if taken % print_freq and taken < total:
        return 0
    signals = runtime.gather(stopping.asked())
    return max(signals)


@torch.no_grad()
def check_last_batch(
    model: nn.Module, samples: int, batch_size: int, shape: Sequence[int], runtime: Runtime
) -> None:
    """Refuse a last batch of one sample that BatchNorm cannot normalise, before any training.

    BatchNorm needs more than one value a channel. If a batch of one occurs, the model is tried on
    one blank sample, with copies of its buffers.

    Args:
        model: of samples (n, *shape); left in training mode.
        samples: trained on in an epoch, by all processes.
        batch_size: of all processes together.
        shape: of one sample.
        runtime: says the number of processes.

    Raises:
        InputError: there is a batch of one, and the model cannot be trained on it.
    """
    # Of one process
    share = math.ceil(samples / runtime.world_size)
    size = max(1, batch_size // runtime.world_size)
    # A remainder of 0 is a full last batch.
    last = share % size or size
    if last > 1:
        return
    model.train()
    parameter = next(model.parameters())
    sample = torch.zeros(1, *shape, dtype=parameter.dtype, device=parameter.device)
    # BatchNorm would move its statistics: it moves copies.
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    try:
        with unchanged_generators(parameter.device):
            torch.func.functional_call(model, buffers, (sample,))
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        # Propose the nearest smaller size without a last batch of one, else a larger one.
        sizes = itertools.chain(range(size - 1, 1, -1), range(size + 1, share + 1))
        better = next((other for other in sizes if share % other != 1), None)
        such = f", such as {better * runtime.world_size}" if better else ", and more images"
        raise InputError(
            f"{samples:,} images in batches of {batch_size} leave one image for the last batch, and"
            f" BatchNorm needs more than one value a channel: choose another --batch_size{such}"
        ) from None


@torch.no_grad()
def evaluate(
    net: nn.Module,
    loader: DataLoader[Any],
    step: Step,
    runtime: Runtime,
    *,
    label: str = "validation",
) -> dict[str, float]:
    """Average a step's loss and metrics over a data set, every sample exactly once.

    Args:
        net: from `runtime.parallel`; put into evaluation mode.
        loader: an unshuffled one.
        step: as in `train_one_epoch`.
        runtime: device, processes, precision.
        label: of the progress bar.

    Returns:
        `Loss` and the step's metrics, means over the whole set.
    """
    net.eval()
    if isinstance(net, nn.parallel.DistributedDataParallel):
        # The wrapper's forward synchronises, but processes may have different numbers of batches.
        # BatchNorm's statistics differ between processes since their last common step: take those
        # of rank 0, which are saved.
        net = net.module
        runtime.broadcast(net.buffers())
    averages = Averages()
    for batch in Progress(loader, label, quiet=not runtime.is_main):
        with runtime.autocast():
            loss, metrics = step(net, *runtime.to_device(batch))
        averages.add({"Loss": loss, **metrics}, len(batch[0]))
    means = averages.read(runtime)
    expected = len(loader.dataset)  # type: ignore[arg-type]
    if averages.samples != expected:
        raise RuntimeError(f"evaluated {averages.samples} samples of a set of {expected}")
    return means


def make_optimizer(
    name: str,
    parameters: Iterable[nn.Parameter],
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Make an optimiser over the parameters that are trained.

    Where PyTorch can, SGD and Adam are `fused`: one pass over each tensor, with other roundings.

    Args:
        name: "SGD" (with momentum), "Adam" or "Muon" (see `Muon`).
        parameters: of the network.
        lr: learning rate.
        momentum: of SGD and Muon.
        weight_decay: see the optimisers.

    Raises:
        ValueError: an unknown name.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    # One tensor on another device would refuse a fused step.
    fused = all(
        parameter.device.type in FUSED_ON and parameter.is_floating_point() for parameter in trained
    )
    if name == "SGD":
        return torch.optim.SGD(
            trained, lr, momentum=momentum, weight_decay=weight_decay, fused=fused
        )
    if name == "Adam":
        return torch.optim.Adam(trained, lr, weight_decay=weight_decay, fused=fused)
    if name == "Muon":
        return Muon(trained, lr, momentum=momentum, weight_decay=weight_decay)
    raise ValueError(f"optimizer {name!r} is neither SGD nor Adam nor Muon")


def _take(
    step: Step, net: nn.Module, batch: tuple[Tensor, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a step.

    Raises:
        InputError: the batch is too small for BatchNorm, which is the user's choice and no bug.
    """
    try:
        return step(net, *batch)
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        raise InputError(
            f"a batch of {len(batch[0])} image has one value a channel and BatchNorm needs more: "
            "choose another --batch_size"
        ) from None
