"""The surroundings of a step: devices, processes, precision, seeds."""

import contextlib
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils import peers, remarks
from utils.errors import InputError
from utils.parser import command_line

AMP_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Runtime:
    """The devices and processes of this run.

    Attributes:
        device: of this process.
        device_ids: accelerators of `DataParallel`; otherwise one or none.
        rank: number of this process under `torchrun`, else 0.
        world_size: processes of the run, 1 without `torchrun`.
        amp_dtype: autocast type; None: float32.
        compiled: models go through `torch.compile`.
        seed: of this run; every epoch derives its seed from it.
        workers: processes that decode images beside this one.
    """

    device: torch.device
    device_ids: tuple[int, ...]
    rank: int
    world_size: int
    amp_dtype: torch.dtype | None
    compiled: bool
    seed: int
    workers: int = 0

    @property
    def has_accelerator(self) -> bool:
        """Whether a GPU computes: CUDA, XPU, MPS or another one that PyTorch knows."""
        return self.device.type != "cpu"

    @property
    def locks_pages(self) -> bool:
        """Whether batches come faster from page-locked memory; MPS shares that of the CPU."""
        return self.device.type not in ("cpu", "mps")

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line once for the whole run."""
        if self.is_main:
            print(line, flush=True)

    def say_next(self, script: str, *words: object) -> None:
        """Print the next step's command, ready to paste."""
        self.say(f"next: {command_line(script, *words)}")

    def parallel(self, model: nn.Module, *, has_unused: bool = False) -> nn.Module:
        """Move a model to its device(s), and wrap it for several.

        The wrapper is `torch.compile`'s with `--compile`, `DistributedDataParallel` under torchrun
        if something is trained, `DataParallel` for several `--device_ids`. Call the wrapper's
        `forward`; for everything else keep the model itself.

        Args:
            model: moved in place.
            has_unused: the result may not depend on some parameters. Every backward pass then
                searches for them.
        """
        model.to(self.device)
        # Compiled first: the wrappers for several devices call what is inside.
        wrapped: nn.Module = torch.compile(model) if self.compiled else model  # type: ignore[assignment]
        if self.world_size > 1:
            if any(parameter.requires_grad for parameter in model.parameters()):
                wrapped = nn.parallel.DistributedDataParallel(
                    wrapped,
                    device_ids=list(self.device_ids) or None,
                    find_unused_parameters=has_unused,
                )
        elif len(self.device_ids) > 1:
            wrapped = nn.DataParallel(wrapped, device_ids=list(self.device_ids))
        return wrapped

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Give the context of mixed precision, or one that does nothing."""
        if self.amp_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.amp_dtype)

    def grad_scaler(self) -> torch.amp.GradScaler:
        """Give the loss scaler that fp16 needs; it does nothing for other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp_dtype is torch.float16)

    def to_device(self, batch: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Move a batch; the copy overlaps with computing where its memory is page-locked."""
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in batch)

    def seed_epoch(self, epoch: int) -> None:
        """Seed by (seed, epoch, rank), so that a resumed run repeats an uninterrupted one."""
        # Primes keep the three apart: no two (epoch, rank) of a run share a seed.
        seed_everything((self.seed * 1_000_003 + epoch) * 1_009 + self.rank)

    def random_state(self) -> dict[str, Any]:
        """Give the states of all generators of this process, as plain values and tensors."""
        kind, keys, *rest = np.random.get_state(legacy=True)
        return {
            "python": random.getstate(),
            "numpy": [kind, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
            "torch": torch.get_rng_state(),
            "device": _generator_state(self.device) if self.has_accelerator else None,
        }

    def set_random_state(self, state: Mapping[str, Any]) -> None:
        """Set all generators of this process to states of `random_state`."""
        random.setstate(state["python"])
        kind, keys, *rest = state["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(state["torch"])
        if state["device"] is not None and self.has_accelerator:
            _set_generator_state(self.device, state["device"])

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over the processes."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the values of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def gather(self, value: Any) -> list[Any]:
        """Collect any picklable value of every process, in rank order, on every process."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def alone(self) -> "Runtime":
        """Give this process as the only one, for work that it does not share."""
        return replace(self, rank=0, world_size=1)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Let the main process run a block before the others do."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:  # the main process' barrier releases the waiting ones
            self.barrier()

    def barrier(self) -> None:
        """Wait for the other processes."""
        if self.world_size > 1:
            dist.barrier()


def start(
    device_ids: Sequence[int],
    gpu: int | None,
    seed: int,
    amp: str = "off",
    compiled: bool = False,
    tf32: bool = False,
    workers: int = 0,
) -> Runtime:
    """Choose devices, join the other processes of torchrun, seed, and print one line on it all.

    Args:
        device_ids: accelerators, the main one first; repeated ids count once.
        gpu: one accelerator, in place of `device_ids`.
        seed: of Python, NumPy and torch.
        amp: "off", "bf16" or "fp16".
        compiled: use `torch.compile`.
        tf32: let GPUs round the factors of float32 products to 10 bits.
        workers: processes that decode images.

    Raises:
        InputError: this machine does not have a named device, or amp is "fp16" without a GPU.
    """
    remarks.forget()
    asked = [gpu] if gpu is not None else list(dict.fromkeys(device_ids))
    wanted = asked or [0]
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    # CUDA's, XPU's, MPS', … without a number; None: this machine has none
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    device, used = torch.device("cpu"), tuple[int, ...]()
    if world_size > 1:
        # One device for each process of a machine, by torchrun's number
        wanted = [int(os.environ.get("LOCAL_RANK", rank))]
        if not dist.is_initialized():
            dist.init_process_group(dist.get_default_backend_for_device(accelerator or device))
            peers.watch(rank, world_size)
    if accelerator is not None:
        available = torch.accelerator.device_count()
        absent = [index for index in wanted if not 0 <= index < available]
        if absent:
            raise InputError(
                f"{accelerator.type} device {absent[0]} does not exist: this machine has 0 to"
                f" {available - 1}"
            )
        device, used = torch.device(accelerator.type, wanted[0]), tuple(wanted)
        torch.accelerator.set_device_index(wanted[0])
    elif amp == "fp16":
        raise InputError("--amp fp16 needs a GPU; on the CPU use --amp bf16 or off")
    if device.type == "cuda":
        # Try all convolution algorithms once for each size: sizes do not change within a run.
        torch.backends.cudnn.benchmark = True
        # PyTorch's default is on for convolutions and off for products.
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    runtime = Runtime(device, used, rank, world_size, AMP_DTYPES[amp], compiled, seed, workers)
    seed_everything(seed)
    runtime.say(_describe(runtime, amp, asked))
    return runtime


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (all devices), each modulo the range that it takes."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed % 2**64)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed everything for a block, and restore the random state behind it.

    That is the state of Python, of NumPy and of torch.
    """
    python, of_numpy = random.getstate(), np.random.get_state()
    with unchanged_generators(device):
        try:
            seed_everything(seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(of_numpy)


@contextlib.contextmanager
def unchanged_generators(device: torch.device) -> Iterator[None]:
    """Restore torch's random state behind a block, that of the CPU and of a device."""
    state = None if device.type == "cpu" else _generator_state(device)
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            if state is not None:
                _set_generator_state(device, state)


def _generator_state(device: torch.device) -> Tensor:
    """Give the state of an accelerator's generator, uint8 on the CPU."""
    module = torch.get_device_module(device)
    # MPS has one device, and its functions take no number.
    return module.get_rng_state() if device.type == "mps" else module.get_rng_state(device)


def _set_generator_state(device: torch.device, state: Tensor) -> None:
    module = torch.get_device_module(device)
    if device.type == "mps":
        module.set_rng_state(state)
    else:
        module.set_rng_state(state, device)


def _describe(runtime: Runtime, amp: str, asked: Sequence[int]) -> str:
    """Write the line on devices, processes, precision, seed and version."""
    if runtime.has_accelerator:
        kind = runtime.device.type
        # MPS has no names.
        name_of = getattr(torch.get_device_module(kind), "get_device_name", lambda index: kind)
        names = [f"{kind}:{index} ({name_of(index)})" for index in runtime.device_ids]
        where = "running on " + ", ".join(names)
    else:
        named = f"{' and '.join(map(str, asked))} {'was' if len(asked) == 1 else 'were'} asked for"
        missing = f", though {named}" if asked else ""
        threads = torch.get_num_threads()
        where = (
            f"no GPU (CUDA, MPS or XPU){missing}: running on the CPU with {threads}"
            f" thread{'s' * (threads != 1)}"
        )
    processes = f", {runtime.world_size} processes" if runtime.world_size > 1 else ""
    precision = "" if amp == "off" else f", {amp}"
    return f"{where}{processes}{precision}, seed {runtime.seed}, torch {torch.__version__}"
