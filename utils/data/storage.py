"""The store of tensors that never change: a row for each image, on a GPU, in memory or in a file."""

import os
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.arrays import map_array

# Shares of the free room that may be taken. The rest is for the model, its activations, and
# everybody else on the machine.
GPU_SHARE, RAM_SHARE, DISK_SHARE = 0.4, 0.5, 0.9


class TensorStore:
    """One tensor for each image of a data set: decoded pixels, logits or features.

    `images.with_stored(store)` is the data set whose batches begin with these rows.

    Attributes:
        values: (N, …) of a dtype that NumPy has; row i is image i's.
        device: of the rows, and of what `gather` returns.
        path: the .npy file that `values` map, or None.
    """

    def __init__(self, values: Tensor, path: Path | None = None) -> None:
        self.values, self.path = values, path

    @classmethod
    def mapped(cls, path: Path) -> "TensorStore":
        """Map a .npy file read-only; all processes share the pages that are read.

        Raises:
            InputError: there is no such file, or it is no whole array of numbers.
        """
        array = np.asarray(map_array(path, "remove it, and it is made anew"))
        with warnings.catch_warnings():
            # Torch warns of read-only memory, into which nothing here writes.
            warnings.simplefilter("ignore", UserWarning)
            return cls(torch.from_numpy(array), path)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    def gather(self, index: Tensor) -> Tensor:
        """Copy the rows at some indices.

        Args:
            index: int64 (n,), on any device.

        Returns:
            (n, …) on `self.device`.
        """
        if self.device.type == "cpu":
            # torch waits for a thread on each core; on a busy machine NumPy's one thread is 50
            # times as fast.
            return torch.from_numpy(self.values.numpy()[index.cpu().numpy()])
        return self.values.index_select(0, index.to(self.device, non_blocking=True))

    def __reduce__(self) -> tuple[Callable[..., "TensorStore"], tuple[Any, ...]]:
        if self.path is not None:
            # A spawned worker maps the file; pickled, the values would be copied.
            return TensorStore.mapped, (self.path,)
        return TensorStore, (self.values,)


def choose_place(needed_bytes: int, path: Path, device: torch.device | None) -> str:
    """Choose the first place with room to spare for a store.

    Args:
        needed_bytes: size of the store.
        path: the file that it would have on disk.
        device: where the model computes; only a GPU counts.

    Returns:
        "gpu", "ram" or "disk"; "off" where there is no room.
    """
    if (
        device is not None
        and device.type != "cpu"
        and needed_bytes < GPU_SHARE * free_bytes(device)
    ):
        return "gpu"
    if needed_bytes < RAM_SHARE * available_memory_bytes():
        return "ram"
    # The folder may be yet to be made: ask the nearest one above that exists.
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    has_space = path.is_file() or needed_bytes < DISK_SHARE * shutil.disk_usage(existing).free
    if has_space and os.access(existing, os.W_OK):
        return "disk"
    return "off"


def free_bytes(device: torch.device) -> int:
    """Give the memory, in bytes, that a tensor on this device may take."""
    # The CPU has no such function, and MPS shares its memory.
    ask = getattr(torch.get_device_module(device), "mem_get_info", None)
    return available_memory_bytes() if ask is None else ask(device)[0]


def available_memory_bytes() -> int:
    """Give the memory, in bytes, that this process may take.

    It is the machine's or the container's, whichever is less, shared by the processes of torchrun.
    """
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    text = meminfo.read_text(encoding="ascii") if meminfo.is_file() else ""
    if match := re.search(r"MemAvailable: *(\d+) kB", text):
        available = int(match[1]) * 1024
    else:  # no Linux, or an old one
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # A container without a limit has "max" in this file.
    if container.is_file() and (limit := container.read_text(encoding="ascii").strip()).isdigit():
        available = min(available, int(limit))
    # Processes of one machine share it in equal parts.
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
