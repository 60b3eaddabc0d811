"""A frozen teacher's logits: computed once, or in every step where the images change."""

import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.data.computed_once import compute_once
from utils.errors import InputError
from utils.runtime import Runtime

# The student's pixels, uint8 (N, 3, S, S), and their indices, int64 (N,) → logits (N, C)
Teacher = Callable[[Tensor, Tensor], Tensor]


def teacher_logits(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, ...]],
    classes: int,
    runtime: Runtime,
    *,
    folder: str | Path,
    gpu: int | None = None,
) -> Teacher:
    """Freeze a classifier and make it a teacher that is asked batch by batch.

    If the images are the same in every epoch, all logits are computed here, once. They equal those
    of a teacher that is asked in every step up to float32 rounding: kernels depend on the size of
    the batch. With equal batches they are equal to the bit.

    Args:
        model: the teacher, pixels → logits (`utils.pixels.FromPixels`); put into evaluation mode.
        loader: an unshuffled loader of the training images (`ImageData`).
        classes: C, the length of the logits.
        runtime: device, processes, precision.
        folder: where a file of logits would be made.
        gpu: of a teacher that is asked in every step; None: the run's device.

    Returns:
        The teacher; its logits arrive on the device of the batch.

    Raises:
        InputError: this machine has no such `gpu`.
    """
    model.requires_grad_(False).eval()
    if loader.dataset.augments:  # type: ignore[attr-defined]
        device = runtime.device
        if gpu is not None and runtime.has_accelerator:
            if gpu >= torch.accelerator.device_count():
                raise InputError(
                    f"--gpu_teacher {gpu} does not exist: this machine has"
                    f" {torch.accelerator.device_count()} GPUs"
                )
            device = torch.device(device.type, gpu)
        return functools.partial(live_logits, model.to(device))
    if gpu is not None:
        runtime.say("the teacher's logits are computed once, so --gpu_teacher has no effect")
    # The images never change, so neither do its answers: one pass serves all epochs.
    net = runtime.parallel(model).eval()
    stored = compute_once(
        net, loader, (classes,), runtime, folder=folder, label="logits of the teacher"
    )
    # One row an image of the data set: a batch's indices choose its rows.
    return lambda _pixels, indices: stored.gather(indices).to(indices.device)


@torch.no_grad()
def live_logits(teacher: nn.Module, pixels: Tensor, _indices: Tensor) -> Tensor:
    """Ask a frozen teacher, which may be on another device.

    Args:
        teacher: pixels → logits.
        pixels: uint8 (N, 3, S, S).

    Returns:
        (N, C), on the pixels' device.
    """
    device = next(teacher.parameters()).device
    return teacher(pixels.to(device)).to(pixels.device)
