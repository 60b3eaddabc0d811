"""Work that is the same in every epoch, done once: one tensor an image is kept."""

import math
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from utils.data.storage import TensorStore, choose_place
from utils.errors import InputError
from utils.files import in_words
from utils.progress import Progress
from utils.runtime import Runtime


@torch.no_grad()
def compute_once(
    function: Callable[[Tensor], Tensor],
    loader: DataLoader[tuple[Tensor, ...]],
    shape: tuple[int, ...],
    runtime: Runtime,
    *,
    folder: str | Path,
    label: str,
) -> TensorStore:
    """Compute a frozen network's output for every image, and keep it for all epochs.

    It is kept on the GPU, in memory or in a file: the first of them that has room to spare. One
    line says where. The file has no name once it is open; so its space is freed however the run
    ends. Under torchrun every process computes its share of the images, and all read one file.

    Args:
        function: images uint8 (n, 3, S, S) on the device → a tensor (n, *shape). It is called under
            autocast without gradients. The caller puts its modules into evaluation mode.
        loader: an unshuffled loader of a data set without augmentation. Its batches begin with the
            images and end with their indices.
        shape: of one image's tensor.
        runtime: device, processes, precision.
        folder: where a file would be made.
        label: names the tensors in the progress bar and in the line.

    Returns:
        The tensors of all images, float32; the same in every process.

    Raises:
        InputError: there is no room for them.
    """
    began = time.monotonic()
    images_count = len(loader.dataset)  # type: ignore[arg-type]
    values, where = _allocate((images_count, *shape), runtime, Path(folder), label)
    for images, *_, indices in Progress(loader, label, quiet=not runtime.is_main):
        with runtime.autocast():
            rows = function(images.to(runtime.device, non_blocking=True))
        # Rows stand at the images' numbers, whichever process computes them.
        values[indices.to(values.device, non_blocking=True)] = rows.to(values.device, torch.float32)
    runtime.barrier()  # the other processes' rows are read from here on
    runtime.say(
        f"{label} of {images_count:,} images ready {where}: {in_words(values.nbytes)},"
        f" {time.monotonic() - began:.1f} s"
    )
    return TensorStore(values)


def _allocate(
    shape: tuple[int, ...], runtime: Runtime, folder: Path, label: str
) -> tuple[Tensor, str]:
    """Make an empty float32 tensor of a shape, and say in words where it is."""
    needed_bytes = 4 * math.prod(shape)
    # Several processes share the tensor through a file.
    place = (
        choose_place(needed_bytes, folder / "file", runtime.device)
        if runtime.world_size == 1
        else "disk"
    )
    if place == "gpu":
        return torch.empty(shape, device=runtime.device), f"on {runtime.device}"
    if place == "ram":
        return torch.empty(shape), "in memory"
    if place == "disk":
        return _mapped_file(shape, needed_bytes, runtime, folder), f"in a file in {folder}"
    raise InputError(
        f"{label} of {shape[0]:,} images take {in_words(needed_bytes)}, for which there is no room"
        f" on the device, in memory or in {folder}; free some, or name another --out"
    )


def _mapped_file(
    shape: tuple[int, ...], needed_bytes: int, runtime: Runtime, folder: Path
) -> Tensor:
    """Map a file that all processes share; it vanishes with the last of them."""
    name = ""
    try:
        if runtime.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=folder, prefix=".constant_work.")
            with os.fdopen(handle, "wb"):
                # Reserve the space now: a write into a mapped file on a full disk kills the
                # process by SIGBUS.
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(handle, 0, needed_bytes)
        # The main process made the file; the others get its name.
        shared = runtime.gather(name)[0]
        array = np.memmap(shared, np.float32, "r+", shape=shape)
        # Everybody has mapped the file before its name goes, below.
        runtime.barrier()
    except OSError as error:
        raise InputError(
            f"{in_words(needed_bytes)} cannot be written to {folder} ({error.strerror or error});"
            " free some space or name another --out"
        ) from None
    finally:
        if name:
            Path(name).unlink()  # the mapping stays; the space is freed with it
    return torch.from_numpy(array)
