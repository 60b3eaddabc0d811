"""Epochs in which a frozen network answers the same every time:
asked in every epoch against asked once.

    python -m benchmarks.bench_constant_work

The two kinds of epoch take turns, and their median counts. Prints Markdown.
"""

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.machine import ran_on
from consistency.frozen_feature import freeze
from distillation.born_again import distillation_loss
from distillation.teacher import Teacher, live_logits, teacher_logits
from models.classifiers import build
from models.cut_net import CutNet
from models.trans_net import TransNet
from utils.data.computed_once import compute_once
from utils.data.datasets import ImageList
from utils.data.images import ImageData
from utils.data.loaders import make_loader
from utils.data.storage import TensorStore
from utils.pixels import FromPixels, normalise
from utils.provenance import NetSource
from utils.runtime import Runtime, start
from utils.training.classification import Loader, classify, classify_features
from utils.training.engine import Fit, make_optimizer, train_one_epoch
from utils.training.losses import classification_loss

CLASSES = 200
Epoch = Callable[[int], object]  # runs epoch number i
StepResult = tuple[Tensor, dict[str, Tensor]]


class Prepared(NamedTuple):
    """The same epochs in two ways."""

    every_time: Epoch
    stored: Epoch
    once_seconds: float
    difference: float  # largest one of any entry of what is stored, over its largest entry


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--refinement_images", type=int, default=64)
    parser.add_argument("--arch", default="resnet18", help="of the born-again networks")
    parser.add_argument("--images", type=int, default=192, help="of the born-again networks")
    parser.add_argument("--image_size", type=int, default=112, help="of the born-again networks")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3, help="epochs of each kind")
    args = parser.parse_args(argv)
    runtime = start([], None, seed=0)
    where = ran_on(__file__, argv, "torch", "torchvision", cuda=runtime.device.type == "cuda")
    kinds: dict[str, tuple[Callable[[ImageData, int, Runtime], Prepared], int, int]] = {
        "refinement: head and decomposition, vgg16_bn at features.30": (
            refinement,
            args.refinement_images,
            224,
        ),
        f"born-again: the teacher's logits, {args.arch}": (
            functools.partial(born_again, args.arch),
            args.images,
            args.image_size,
        ),
    }
    rows = []
    for title, (prepare, count, image_size) in kinds.items():
        prepared = prepare(random_images(count, image_size), args.batch_size, runtime)
        assert prepared.difference < 1e-6, "what is stored must be what would be computed"
        seconds: tuple[list[float], list[float]] = ([], [])
        for index in range(args.rounds + 1):
            for epoch, measured in zip((prepared.every_time, prepared.stored), seconds):
                began = time.perf_counter()
                epoch(index)
                measured.append(time.perf_counter() - began)
        # The first epoch sets up
        slow, fast = (statistics.median(measured[1:]) for measured in seconds)
        cells = [
            f"{statistics.median(m[1:]):.2f} ({min(m[1:]):.2f} to {max(m[1:]):.2f})"
            for m in seconds
        ]
        rows.append(
            f"| {title} | {count} of {image_size} pixels | {cells[0]} | {cells[1]} |"
            f" {slow / fast:.2f} | {prepared.once_seconds:.2f} | {prepared.difference:.1e} |"
        )
    print(
        f"\nBatches of {args.batch_size}, float32\n\n| computed once | images | s an epoch, asked"
        " every time | s an epoch, stored | ratio | s to compute them once | largest difference"
        " |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    print("\n".join(rows))
    print(f"\n{where}")


def as_they_are(pixels: Tensor, _indices: Tensor) -> Tensor:
    """Leave pixels to networks that read pixels."""
    return pixels


def refinement(images: ImageData, batch_size: int, runtime: Runtime) -> Prepared:
    """Prepare epochs of a tail whose features are computed from the images,
    or were computed of every image once.
    """
    source = NetSource("vgg16_bn", "features.30", normalisation=images.normalisation)
    net = CutNet(build("vgg16_bn", CLASSES).eval(), [source], {})
    tail, pixels = net.tail, images.__getitems__([0, 1])[0]
    trans_net = TransNet(512, 512).eval()
    frozen, shape = freeze("components", {"A": net, "B": net}, trans_net, [1, 1, 1], "B", pixels)
    frozen.to(runtime.device)

    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        loader = make_loader(images, batch_size)
        stored = compute_once(frozen, loader, shape, runtime, folder=folder, label="features")
    once_seconds = time.perf_counter() - began
    loader = make_loader(images, batch_size, shuffle=True)
    stored_loader = make_loader(images.with_stored(stored), batch_size, shuffle=True)
    optimizer = make_optimizer("Adam", tail.parameters(), lr=1e-5, momentum=0.9, weight_decay=1e-4)
    fit = Fit(runtime.parallel(tail), tail, optimizer, runtime.grad_scaler(), runtime)
    return Prepared(
        functools.partial(
            train_one_epoch,
            fit,
            loader,
            functools.partial(classify, preprocess=as_they_are, frozen=frozen),
        ),
        functools.partial(train_one_epoch, fit, stored_loader, classify_features),
        once_seconds,
        largest_difference(
            lambda pixels, _: frozen(pixels),
            lambda _, indices: stored.gather(indices),
            loader,
            runtime,
        ),
    )


def born_again(arch: str, images: ImageData, batch_size: int, runtime: Runtime) -> Prepared:
    """Prepare epochs of a student whose teacher is asked about every batch,
    or was asked about every image once.
    """
    model = FromPixels(build(arch, CLASSES).to(runtime.device).eval(), images.normalisation)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        stored = teacher_logits(
            model, make_loader(images, batch_size), CLASSES, runtime, folder=folder
        )
    once_seconds = time.perf_counter() - began
    student = build(arch, CLASSES)
    optimizer = make_optimizer(
        "SGD", student.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4
    )
    loader = make_loader(images, batch_size, shuffle=True)
    fit = Fit(runtime.parallel(student), student, optimizer, runtime.grad_scaler(), runtime)

    def distil(
        net: nn.Module, pixels: Tensor, targets: Tensor, indices: Tensor, *, teacher: Teacher
    ) -> StepResult:
        logits = net(normalise(pixels))
        task, imitation = (
            classification_loss(logits, targets),
            distillation_loss(logits, teacher(pixels, indices), 1.0),
        )
        return task + 0.5 * imitation, {"CE": task, "KD": imitation}

    def epoch_with(teacher: Teacher) -> Epoch:
        return functools.partial(
            train_one_epoch, fit, loader, functools.partial(distil, teacher=teacher)
        )

    live = functools.partial(live_logits, model)
    difference = largest_difference(live, stored, loader, runtime)
    return Prepared(epoch_with(live), epoch_with(stored), once_seconds, difference)


@torch.no_grad()
def largest_difference(live: Teacher, stored: Teacher, loader: Loader, runtime: Runtime) -> float:
    """Compare what two functions of images and indices give:
    the largest |difference| over the largest |entry|.
    """
    difference, largest = 0.0, 0.0
    for batch in loader:
        pixels, _, indices = runtime.to_device(batch)
        expected = live(pixels, indices)
        difference = max(
            difference, (stored(pixels, indices).to(expected.device) - expected).abs().max().item()
        )
        largest = max(largest, expected.abs().max().item())
    return difference / largest


def random_images(count: int, image_size: int) -> ImageData:
    """Make a data set of random pixels in memory."""
    names, targets = [f"{i}.jpg" for i in range(count)], torch.arange(count) % CLASSES
    classes = [str(label) for label in range(CLASSES)]
    pixels = torch.randint(0, 256, (count, 3, image_size, image_size), dtype=torch.uint8)
    images = ImageData(
        ImageList(Path(), names, targets, classes, {}),
        name="folder",
        split="train",
        image_size=image_size,
    )
    return images.with_stored(TensorStore(pixels))


if __name__ == "__main__":
    main()
