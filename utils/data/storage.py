"""One store for tensors that never change: a row for each image,
on a GPU, in memory or in a mapped file.
"""

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

# What is left free is for the model and its activations, and for everybody else on the machine.
GPU_SHARE, RAM_SHARE, DISK_SHARE = 0.4, 0.5, 0.9


class TensorStore:
    """One tensor for each image of a data set,
    by the image's index: decoded pixels, logits, features.

    `images.with_stored(store)` is the data set whose batches begin with these rows.

    Attributes:
        values: (N, …) of a dtype that NumPy has, row i of image i.
        device: where the rows are, and so where `gather` gives them.
        path: the .npy file whose pages `values` are, or None.
    """

    def __init__(self, values: Tensor, path: Path | None = None) -> None:
        self.values, self.path = values, path

    @classmethod
    def mapped(cls, path: Path) -> "TensorStore":
        """Map a .npy file; the pages that are read are shared by all processes,
        and the file is never written.

        Raises:
            OSError, ValueError, EOFError, TypeError: there is no such file, or it is no whole array
                of numbers.
        """
        array = np.asarray(np.load(path, mmap_mode="r"))
        with warnings.catch_warnings():
            # Torch warns of read-only memory; `gather` only reads
            warnings.simplefilter("ignore", UserWarning)
            return cls(torch.from_numpy(array), path)

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.values.device

    def gather(self, index: Tensor) -> Tensor:
        """Return a copy of the rows at `index`,
        int64 (n,) on any device: (n, …) on `self.device`.
        """
        if self.device.type == "cpu":
            # torch's gather waits for a thread on each core; on a busy machine NumPy's single one
            # is 50 times as fast
            return torch.from_numpy(self.values.numpy()[index.cpu().numpy()])
        return self.values.index_select(0, index.to(self.device))

    def __reduce__(self) -> tuple[Callable[..., "TensorStore"], tuple[Any, ...]]:
        if self.path is not None:
            # A spawned worker maps the file; pickling would copy it
            return TensorStore.mapped, (self.path,)
        return TensorStore, (self.values,)


def choose_place(needed_bytes: int, path: Path, device: torch.device | None) -> str:
    """Choose where what is computed once is kept: the first that has room to spare.

    Args:
        needed_bytes: how much there is to keep.
        path: the file that would hold it on disk.
        device: where the model computes; only a GPU counts.

    Returns:
        "gpu", "ram", "disk", or "off" where there is no room.
    """
    if (
        device is not None
        and device.type == "cuda"
        and needed_bytes < GPU_SHARE * free_bytes(device)
    ):
        return "gpu"
    if needed_bytes < RAM_SHARE * available_memory_bytes():
        return "ram"
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    has_space = path.is_file() or needed_bytes < DISK_SHARE * shutil.disk_usage(existing).free
    if has_space and os.access(existing, os.W_OK):
        return "disk"
    return "off"


def free_bytes(device: torch.device) -> int:
    """Memory that a tensor on this device may take."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory_bytes()


def available_memory_bytes() -> int:
    """Memory that this process may take:
    what is available here or to its container, shared with torchrun's others.
    """
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file() and (
        found := re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text(encoding="ascii"))
    ):
        available = int(found[1]) * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if container.is_file() and (limit := container.read_text(encoding="ascii").strip()).isdigit():
        available = min(available, int(limit))
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
