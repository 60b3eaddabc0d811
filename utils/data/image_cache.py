"""Photos decoded once and kept as uint8: on the GPU, in memory or in a memory-mapped file."""

import hashlib
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from utils.data.datasets import printable
from utils.data.image_file import open_image_file
from utils.data.images import ImageData
from utils.data.storage import TensorStore, available_memory_bytes, choose_place
from utils.errors import InputError
from utils.files import in_words
from utils.progress import Progress

CHUNK = 32  # images that a thread decodes at a time; they bound the memory beside the result
NAMED_PROBLEMS = 10  # unreadable images that a message names


def cache_images(
    data: ImageData,
    mode: str,
    *,
    cache_dir: str | Path,
    workers: int,
    device: torch.device | None = None,
    quiet: bool = False,
) -> ImageData:
    """Decode every image once, in parallel.

    The result takes images × 3·S·S bytes, its build a constant more. A stored data set is fastest
    without loader workers. Its batches arrive on `result.device`.

    Args:
        data: images of one split. Stored ones, and those that are augmented while they are decoded,
            are returned unchanged.
        mode: "off" decodes in every epoch. "ram" keeps one array, which forked workers share.
            "disk" keeps a file for later runs, checked against name and content of every image.
            "auto" takes the first of GPU, memory and disk that has room to spare.
        cache_dir: folder of the files of "disk".
        workers: threads that decode.
        device: where the model computes; "auto" uses it if it is a GPU.
        quiet: print nothing (processes other than the main one).

    Returns:
        The data set whose batches are gathered from the decoded images.

    Raises:
        InputError: images cannot be read (ten are named, all are counted), or there is no room.
    """
    if data.stored is not None or mode == "off":
        return data
    say = (lambda _: None) if quiet else print
    if data.augments_while_decoding:
        say(
            f"the {data.split} images of {data.name} are augmented anew whenever they are decoded"
            " and are not cached"
        )
        return data
    shape = (len(data), 3, data.image_size, data.image_size)
    needed_bytes, path = math.prod(shape), Path(cache_dir, _file_name(data))
    place = choose_place(needed_bytes, path, device) if mode == "auto" else mode
    if place == "off":
        say(
            f"no room to cache the {data.split} images of {data.name} ({in_words(needed_bytes)}); "
            "decoding in every epoch"
        )
        return data
    began = time.monotonic()
    if place == "disk":
        store = open_image_file(path, data, lambda pixels: _fill(pixels, data, workers, quiet), say)
    elif place == "gpu":
        on_gpu = torch.empty(shape, dtype=torch.uint8, device=device)
        _fill(on_gpu, data, workers, quiet)
        store = TensorStore(on_gpu)
    else:
        # Refuse now: Linux grants the memory, and kills the process when it is filled.
        if needed_bytes > available_memory_bytes():
            raise InputError(
                f"the {data.split} images of {data.name} take {in_words(needed_bytes)}, of memory"
                f" {in_words(available_memory_bytes())} are available; use --cache_images disk"
                " or off"
            )
        in_memory = np.empty(shape, dtype=np.uint8)  # NumPy's, which forked workers share
        _fill(in_memory, data, workers, quiet)
        store = TensorStore(torch.from_numpy(in_memory))
    where = {"gpu": f"on {device}", "ram": "in memory", "disk": f"in {printable(path)}"}[place]
    say(
        f"{len(data)} {data.split} images of {data.name} ready {where}: {in_words(needed_bytes)}, "
        f"{time.monotonic() - began:.1f} s"
    )
    return data.with_stored(store)


def _fill(pixels: np.ndarray | Tensor, data: ImageData, workers: int, quiet: bool) -> None:
    """Decode all images into an array.

    Args:
        pixels: uint8 (n, 3, S, S), filled in place.
        data: the n images.
        workers: threads that decode.
        quiet: show no progress.

    Raises:
        InputError: images cannot be read; one error for all of them.
    """

    def decode(chunk: range) -> list[int]:
        """Fill the rows of a chunk, and list the images that cannot be read."""
        try:
            pixels[chunk.start : chunk.stop] = data.decode(chunk)
        except InputError:
            # One broken image fails the chunk: try each of them alone.
            return [index for index in chunk if not _is_readable(data, index)]
        return []

    chunks = [range(start, min(start + CHUNK, len(data))) for start in range(0, len(data), CHUNK)]
    # Threads suffice: Pillow releases the interpreter's lock. They write into one array.
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        unreadable = Progress(
            pool.map(decode, chunks), f"decoding {data.split}", total=len(chunks), quiet=quiet
        )
        problems = [index for indices in unreadable for index in indices]
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole queue
    if problems:
        named = ", ".join(data.paths[index] for index in problems[:NAMED_PROBLEMS])
        raise InputError(
            f"{len(problems)} of {len(data)} images in {printable(data.root)} cannot be read:"
            f" {named}{', …' if len(problems) > NAMED_PROBLEMS else ''}; replace or remove them"
        )


def _is_readable(data: ImageData, index: int) -> bool:
    """Whether one image can be decoded."""
    try:
        data.decode([index])
    except InputError:
        return False
    return True


def _file_name(data: ImageData) -> str:
    """Name the file: one for each folder, sub-sampler and size."""
    folder = hashlib.sha256(os.fsencode(data.root)).hexdigest()[:8]
    return f"{data.name}_{data.split}_{data.sample_num or 'all'}_{data.image_size}_{folder}.npy"
