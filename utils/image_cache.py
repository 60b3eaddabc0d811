"""Photos decoded once: kept as uint8 on the GPU, in memory or in a memory-mapped file."""

import contextlib
import fcntl
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.data import ImageData
from utils.datasets import printable
from utils.errors import InputError
from utils.files import read_json, replacing, write_json
from utils.progress import Progress

# What "auto" leaves free is for the model and its activations, and for everybody else on the machine.
GPU_SHARE, RAM_SHARE, DISK_SHARE = 0.4, 0.5, 0.9
CHUNK = 32  # images that a thread decodes at a time: all that the build holds beside the result
NAMED_PROBLEMS = 10


class StoredPixels:
    """Decoded images in memory or on a GPU, (n, 3, S, S) uint8; loader workers share them."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.device = images, images.device

    def gather(self, index: Tensor) -> Tensor:
        """Return the images at `index` (n,)."""
        if self.device.type == "cpu":
            # torch's gather waits for a thread on each core; on a busy machine NumPy's single one is 50 times as fast
            return torch.from_numpy(self.images.numpy()[index.numpy()])
        return self.images.index_select(0, index.to(self.device))


class MappedPixels:
    """Decoded images in a .npy file, (n, 3, S, S) uint8; the pages that are read are shared by all processes."""

    device = torch.device("cpu")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.array = np.asarray(np.load(path, mmap_mode="r"))

    def gather(self, index: Tensor) -> Tensor:
        """Return the images at `index` (n,)."""
        return torch.from_numpy(self.array[index.numpy()])

    def __reduce__(self) -> tuple[type["MappedPixels"], tuple[Path]]:
        return MappedPixels, (self.path,)  # a spawned worker maps the file; pickling the array would copy it


def cache_images(
    data: ImageData,
    mode: str,
    *,
    cache_dir: str | Path,
    workers: int,
    device: torch.device | None = None,
    quiet: bool = False,
) -> ImageData:
    """Decode every image once, in parallel, and return the data set that gathers its batches from the result.

    The result takes images × 3·S·S bytes; the build takes a constant more. A stored data set is fastest
    without loader workers; `result.device` says where its batches arrive.

    Args:
        data: images of one split; already stored or augmented ones are returned as they are.
        mode: "off" decodes in every epoch; "ram" keeps one array that forked workers share; "disk" a file
            that later runs find again, checked against name, size and time of every image; "auto" takes the
            GPU, memory or disk, the first that has room to spare.
        cache_dir: folder of the files of "disk".
        workers: threads that decode.
        device: where the model computes; "auto" uses it if it is a GPU.
        quiet: print nothing (processes other than the main one).

    Raises:
        InputError: images cannot be read (ten are named, all are counted), or the disk is full.
    """
    if data.stored is not None or mode == "off":
        return data
    say = (lambda _: None) if quiet else print
    if data.augments:
        say(f"the {data.split} images of {data.name} are augmented anew in every epoch and are not cached")
        return data
    shape = (len(data), 3, data.image_size, data.image_size)
    needed_bytes, path = math.prod(shape), Path(cache_dir, _file_name(data))
    place = _place(needed_bytes, path, device) if mode == "auto" else mode
    if place == "off":
        say(
            f"no room to cache the {data.split} images of {data.name} ({_gigabytes(needed_bytes)}); "
            "decoding in every epoch"
        )
        return data
    began = time.monotonic()
    pixels: StoredPixels | MappedPixels
    if place == "disk":
        with _locked(path):
            if complaint := _complaint(path, data):
                say(complaint)
                _build_file(path, shape, data, workers, quiet)
        pixels = MappedPixels(path)
    elif place == "gpu":
        on_gpu = torch.empty(shape, dtype=torch.uint8, device=device)
        _fill(on_gpu, data, workers, quiet)
        pixels = StoredPixels(on_gpu)
    else:
        if needed_bytes > available_memory_bytes():
            raise InputError(
                f"the {data.split} images of {data.name} take {_gigabytes(needed_bytes)}, of memory "
                f"{_gigabytes(available_memory_bytes())} are available; use --cache_images disk or off"
            )
        in_memory = np.empty(shape, dtype=np.uint8)
        _fill(in_memory, data, workers, quiet)
        pixels = StoredPixels(torch.from_numpy(in_memory))
    where = {"gpu": f"on {device}", "ram": "in memory", "disk": f"in {printable(path)}"}[place]
    say(
        f"{len(data)} {data.split} images of {data.name} ready {where}: {_gigabytes(needed_bytes)}, "
        f"{time.monotonic() - began:.1f} s"
    )
    return data.with_stored(pixels)


def _place(needed_bytes: int, path: Path, device: torch.device | None) -> str:
    """Choose for "auto": the first of GPU, memory and disk that has room to spare, else "off"."""
    if device is not None and device.type == "cuda" and needed_bytes < GPU_SHARE * torch.cuda.mem_get_info(device)[0]:
        return "gpu"
    if needed_bytes < RAM_SHARE * available_memory_bytes():
        return "ram"
    existing = next(folder for folder in path.absolute().parents if folder.is_dir())
    has_space = path.is_file() or needed_bytes < DISK_SHARE * shutil.disk_usage(existing).free
    if has_space and os.access(existing, os.W_OK):
        return "disk"
    return "off"


def available_memory_bytes() -> int:
    """Memory that this process may take: what is available here or to its container, shared with torchrun's others."""
    meminfo, container = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.is_file() and (found := re.search(r"MemAvailable: *(\d+) kB", meminfo.read_text(encoding="ascii"))):
        available = int(found[1]) * 1024
    else:
        available = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if container.is_file() and (limit := container.read_text(encoding="ascii").strip()).isdigit():
        available = min(available, int(limit))
    return available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _fill(pixels: np.ndarray | Tensor, data: ImageData, workers: int, quiet: bool) -> None:
    """Decode all images into `pixels`, or raise one InputError for all that cannot be read."""

    def decode(chunk: range) -> list[int]:
        try:
            pixels[chunk.start : chunk.stop] = data.decode(chunk)
        except InputError:
            return [index for index in chunk if not _is_readable(data, index)]
        return []

    chunks = [range(start, min(start + CHUNK, len(data))) for start in range(0, len(data), CHUNK)]
    # Threads: Pillow releases the interpreter lock, and they write into the one array without copies.
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        done = Progress(pool.map(decode, chunks), f"decoding {data.split}", total=len(chunks), quiet=quiet)
        problems = [index for part in done for index in part]
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole queue
    if problems:
        named = ", ".join(data.paths[index] for index in problems[:NAMED_PROBLEMS])
        raise InputError(
            f"{len(problems)} of {len(data)} images in {printable(data.root)} cannot be read: {named}"
            f"{', …' if len(problems) > NAMED_PROBLEMS else ''}; replace or remove them"
        )


def _is_readable(data: ImageData, index: int) -> bool:
    try:
        data.decode([index])
    except InputError:
        return False
    return True


def _build_file(path: Path, shape: tuple[int, ...], data: ImageData, workers: int, quiet: bool) -> None:
    """Write the images to `path` and then the record that makes them complete."""
    record = _record(data)  # before decoding: an image that changes meanwhile is noticed by the next run
    _record_path(path).unlink(missing_ok=True)
    for orphan in path.parent.glob(f".{path.name}.*"):  # of builds that were killed; the lock is ours
        orphan.unlink()
    try:
        with replacing(path) as temporary:
            array = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.uint8, shape=shape)
            if hasattr(os, "posix_fallocate"):  # a mapped file that meets a full disk kills the process
                with temporary.open("r+b") as file:
                    os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
            _fill(array, data, workers, quiet)
            array.flush()
        write_json(_record_path(path), record)
    except OSError as error:
        raise InputError(
            f"{printable(path)} cannot be written ({error.strerror or error}; "
            f"it takes {_gigabytes(math.prod(shape))}); free some space or use --cache_images off"
        ) from None


def _complaint(path: Path, data: ImageData) -> str | None:
    """Say why the file has to be built, or None where it is complete and of these images."""
    if not path.is_file():
        return f"decoding the {data.split} images of {data.name} once, into {printable(path)}"
    try:
        found = read_json(_record_path(path))
        pixels = MappedPixels(path).array
    except (InputError, ValueError, OSError, EOFError):
        return f"{printable(path)} is incomplete; decoding the images again"
    if found != _record(data):
        return f"the images in {printable(data.root)} changed since {printable(path)} was made; decoding them again"
    if pixels.shape != (len(data), 3, data.image_size, data.image_size) or pixels.dtype != np.uint8:
        return f"{printable(path)} has other contents than its record says; decoding the images again"
    return None


def _record(data: ImageData) -> dict[str, Any]:
    """What the pixels were made of: every file's name, size and time as one hash, and the transform."""
    digest = hashlib.sha256()
    for index, name in enumerate(data.paths):
        try:
            status = data.file(index).stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        except OSError:  # named when it is decoded
            digest.update(f"{name}\0missing\n".encode())
    return {
        "format": 1,
        "images": len(data),
        "root": printable(data.root),
        "transform": data.transform_record,
        "files_sha256": digest.hexdigest(),
    }


def _file_name(data: ImageData) -> str:
    """One file for each folder, sub-sampler and size."""
    folder = hashlib.sha256(os.fsencode(data.root)).hexdigest()[:8]
    return f"{data.name}_{data.split}_{data.sample_num or 'all'}_{data.image_size}_{folder}.npy"


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process build; those that wait find the file complete."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = path.with_suffix(".lock").open("w")
    except OSError as error:
        raise InputError(
            f"the image cache {printable(path)} cannot be written ({error.strerror}); use --cache_images off"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
