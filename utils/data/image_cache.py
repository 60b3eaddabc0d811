"""Photos decoded once: kept as uint8 on the GPU, in memory or in a memory-mapped file."""

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

CHUNK = 32  # images that a thread decodes at a time: all that the build holds beside the result
NAMED_PROBLEMS = 10


def cache_images(
    data: ImageData,
    mode: str,
    *,
    cache_dir: str | Path,
    workers: int,
    device: torch.device | None = None,
    quiet: bool = False,
) -> ImageData:
    """Decode every image once, in parallel,
    and return the data set that gathers its batches from the result.

    The result takes images × 3·S·S bytes; the build takes a constant more. A stored data set is
    fastest without loader workers; `result.device` says where its batches arrive.

    Args:
        data: images of one split; already stored ones, and those that decoding augments, are
            returned as they are.
        mode: "off" decodes in every epoch; "ram" keeps one array that forked workers share; "disk"
            a file that later runs find again, checked against name and content of every image;
            "auto" takes the GPU, memory or disk, the first that has room to spare.
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
        if needed_bytes > available_memory_bytes():
            raise InputError(
                f"the {data.split} images of {data.name} take {in_words(needed_bytes)}, of memory"
                f" {in_words(available_memory_bytes())} are available; use --cache_images disk"
                " or off"
            )
        in_memory = np.empty(shape, dtype=np.uint8)
        _fill(in_memory, data, workers, quiet)
        store = TensorStore(torch.from_numpy(in_memory))
    where = {"gpu": f"on {device}", "ram": "in memory", "disk": f"in {printable(path)}"}[place]
    say(
        f"{len(data)} {data.split} images of {data.name} ready {where}: {in_words(needed_bytes)}, "
        f"{time.monotonic() - began:.1f} s"
    )
    return data.with_stored(store)


def _fill(pixels: np.ndarray | Tensor, data: ImageData, workers: int, quiet: bool) -> None:
    """Decode all images into `pixels`, or raise one InputError for all that cannot be read."""

    def decode(chunk: range) -> list[int]:
        try:
            pixels[chunk.start : chunk.stop] = data.decode(chunk)
        except InputError:
            return [index for index in chunk if not _is_readable(data, index)]
        return []

    chunks = [range(start, min(start + CHUNK, len(data))) for start in range(0, len(data), CHUNK)]
    # Threads: Pillow releases the interpreter lock, and they write into the one array without
    # copies.
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        done = Progress(
            pool.map(decode, chunks), f"decoding {data.split}", total=len(chunks), quiet=quiet
        )
        problems = [index for part in done for index in part]
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole queue
    if problems:
        named = ", ".join(data.paths[index] for index in problems[:NAMED_PROBLEMS])
        raise InputError(
            f"{len(problems)} of {len(data)} images in {printable(data.root)} cannot be read:"
            f" {named}{', …' if len(problems) > NAMED_PROBLEMS else ''}; replace or remove them"
        )


def _is_readable(data: ImageData, index: int) -> bool:
    try:
        data.decode([index])
    except InputError:
        return False
    return True


def _file_name(data: ImageData) -> str:
    """One file for each folder, sub-sampler and size."""
    folder = hashlib.sha256(os.fsencode(data.root)).hexdigest()[:8]
    return f"{data.name}_{data.split}_{data.sample_num or 'all'}_{data.image_size}_{folder}.npy"
