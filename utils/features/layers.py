"""Features of one net at several layers, from one pass over the images: a file for each layer.

Maps are averaged to a few positions before they are written, so that many layers take little room.
A pass that was interrupted goes on behind the last image whose features are whole.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from utils.arrays import map_array
from utils.devices import to_cpu
from utils.errors import InputError
from utils.files import read_json, replacing, reserve, write_json
from utils.runtime import Runtime

SECONDS_BETWEEN_MARKS = 20.0
LOGITS, DONE = "logits", "done.json"
REMEDY = "remove its folder and start again"


@dataclass(frozen=True)
class Taken:
    """A layer whose features are kept.

    Attributes:
        file: the name of its file, without ending.
        place: of the layer among what the net gives.
        shape: of one image's maps as they are kept, (C, h, w).
    """

    file: str
    place: int
    shape: tuple[int, int, int]


def averaged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Average maps (N, C, H, W) to at most h × w positions, (N, C, h, w)."""
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


def is_complete(folder: Path, images: int) -> bool:
    """Whether a folder holds the features of all its images."""
    return _done(folder) == images


@torch.no_grad()
def keep_layers(
    net: nn.Module,
    load: Callable[[range], Iterable[Sequence[Tensor]]],
    images: int,
    layers: Sequence[Taken],
    outputs: int,
    folder: Path,
    runtime: Runtime,
    advance: Callable[[int], Any] = lambda count: None,
) -> None:
    """Pass images through a net and write what it gives at some layers, and its logits.

    Args:
        net: pixels → (maps of every layer (n, C, H, W), …, logits (n, K)), on the device, frozen.
        load: the numbers of images, in order → their batches, which begin with pixels and end with
            these numbers.
        images: N.
        layers: what is kept.
        outputs: K.
        folder: of this net and these images alone.
        runtime: device and precision.
        advance: is told of so many images more.
    """
    # What an earlier pass wrote whole is kept.
    done = _done(folder)
    advance(done)
    shapes = {one.file: (images, *one.shape) for one in layers} | {LOGITS: (images, outputs)}
    arrays = {name: _mapped(folder / f"{name}.npy", shape) for name, shape in shapes.items()}
    marked = time.monotonic()
    try:
        for pixels, *_, numbers in load(range(done, images)) if done < images else ():
            with runtime.autocast():
                *features, logits = net(pixels.to(runtime.device, non_blocking=True))
            rows = numbers.numpy()
            kept = [averaged(features[one.place].float(), one.shape[1:]) for one in layers]
            for name, values in zip(arrays, to_cpu(*kept, logits.float())):
                arrays[name][rows] = values.numpy()
            # Numbers come in order: all images up to here are whole.
            done = int(rows[-1]) + 1
            advance(len(rows))
            # To flush maps waits for the disk: not after every batch.
            if time.monotonic() - marked > SECONDS_BETWEEN_MARKS:
                _mark(folder, arrays, done)
                marked = time.monotonic()
    finally:
        # Also after an interrupt: the next pass goes on behind these.
        _mark(folder, arrays, done)


class LayerFile:
    """Features of all images at one layer, (N, C, h, w), of which those asked for are read.

    The file is mapped for each reading, so that memory holds no more of it.

    Raises:
        InputError: there is no such file, or it is damaged.
    """

    def __init__(self, folder: Path, file: str) -> None:
        self.path = folder / f"{file}.npy"
        self.shape: tuple[int, ...] = self._mapped().shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor:
        """Give the features of some images, (n, …), float32."""
        return torch.from_numpy(np.array(self._mapped()[images]))

    def _mapped(self) -> NDArray[np.float32]:
        return map_array(self.path, REMEDY)


def _done(folder: Path) -> int:
    try:
        return int(read_json(folder / DONE)["images"])
    except (OSError, ValueError, KeyError, TypeError, InputError):
        return 0


def _mark(folder: Path, arrays: dict[str, np.memmap], done: int) -> None:
    """Say how many images are whole, once they are on the disk."""
    for array in arrays.values():
        array.flush()
    write_json(folder / DONE, {"images": done})


def _mapped(path: Path, shape: tuple[int, ...]) -> np.memmap:
    """Map a file for features; it has its room on the disk before the first is written.

    Raises:
        InputError: the file that is there is damaged, or of other images or layers.
    """
    if path.is_file():
        array = map_array(path, REMEDY, writable=True)
        if array.shape != shape or array.dtype != np.float32:
            raise InputError(f"{path} holds {array.dtype} {array.shape}, not {shape}; {REMEDY}")
        return array
    # Whole or not at all: a next run would take half of a file for a damaged one
    with replacing(path) as temporary:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        reserve(temporary)
    return map_array(path, REMEDY, writable=True)
