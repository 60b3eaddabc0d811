"""A training step of DCM against the sum of the two networks' plain training steps,
and the ratio of their FLOPs.

    python -m benchmarks.bench_dcm

The kinds of epoch take turns, and their median counts. On a CPU, seconds are those that this
process computed in all of its threads, so that other programs count little; on a GPU, those on the
clock. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import DCM
from benchmarks.machine import ran_on
from models.small.auxiliary import build_bare
from models.small.couple import build_couple
from utils.data.batches import AUGMENTATIONS
from utils.data.datasets import ImageList
from utils.data.images import ImageData
from utils.data.loaders import make_loader
from utils.data.storage import TensorStore
from utils.normalisation import NORMALISATIONS
from utils.runtime import Runtime, start
from utils.training.classification import classify
from utils.training.engine import Fit, Step, make_optimizer, train_one_epoch

CLASSES, IMAGE_SIZE = 100, 32
TARGET = 1.15  # times the ratio of the FLOPs


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=["wrn_16_1-wrn_16_1", "wrn_16_1-mobilenet8"])
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=5, help="epochs of each kind")
    args = parser.parse_args(argv)
    runtime = start([], None, seed=0)
    where = ran_on(__file__, argv, "torch", "torchvision", cuda=runtime.device.type == "cuda")
    images = random_images(args.batch_size * args.steps)
    rows = [measure(pair, images, args.batch_size, args.rounds, runtime) for pair in args.pairs]
    print(
        f"\nBatches of {args.batch_size} images of {IMAGE_SIZE} pixels, float32, {CLASSES} classes;"
        " FLOPs of convolutions and linear layers, forward and backward; the target is at most"
        f" {TARGET}\n\n| networks | s a step, both alone | s a step, DCM | ratio | ratio of FLOPs |"
        " ratio of ratios |\n|---|---:|---:|---:|---:|---:|"
    )
    print("\n".join(rows))
    print(f"\n{where}")


def measure(pair: str, images: ImageData, batch_size: int, rounds: int, runtime: Runtime) -> str:
    """Time epochs of both kinds in turns; give a line of the table."""
    archs = pair.split("-")
    loader = make_loader(images, batch_size, shuffle=True)
    preprocess = partial(images.preprocessing(), epoch=0)
    plain = partial(classify, preprocess=preprocess)
    alone = [(fit_of(build_bare(arch, CLASSES), runtime), plain) for arch in archs]
    together = [
        (
            fit_of(build_couple(archs, CLASSES), runtime),
            partial(DCM.teach, preprocess=preprocess, method="dcm"),
        )
    ]

    def epoch(fits: Sequence[tuple[Fit, Step]], index: int) -> None:
        for fit, step in fits:
            train_one_epoch(fit, loader, step, index)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()

    kinds: tuple[Callable[[int], None], ...] = (partial(epoch, alone), partial(epoch, together))
    flops, seconds = [], ([], [])  # type: ignore[var-annotated]
    for kind in kinds:
        with FlopCounterMode(display=False) as counter:
            kind(0)  # which sets up, too
        flops.append(counter.get_total_flops())
    clock = time.perf_counter if runtime.device.type == "cuda" else time.process_time
    for index in range(1, rounds + 1):
        for kind, measured in zip(kinds, seconds):
            began = clock()
            kind(index)
            measured.append((clock() - began) / len(loader))
    cells = [f"{statistics.median(m):.3f} ({min(m):.3f} to {max(m):.3f})" for m in seconds]
    ratio, of_flops = (
        statistics.median(seconds[1]) / statistics.median(seconds[0]),
        flops[1] / flops[0],
    )
    return (
        f"| {pair} | {cells[0]} | {cells[1]} | {ratio:.2f} | {of_flops:.2f} |"
        f" {ratio / of_flops:.2f} |"
    )


def fit_of(model: nn.Module, runtime: Runtime) -> Fit:
    """Give a network DCM's optimiser, at a rate that keeps noise from diverging."""
    optimizer = make_optimizer("SGD", model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4)
    return Fit(runtime.parallel(model), model, optimizer, runtime.grad_scaler(), runtime)


def random_images(count: int) -> ImageData:
    """Make a data set of random pixels in memory, augmented as DCM's."""
    names, targets = [f"{i}.png" for i in range(count)], torch.arange(count) % CLASSES
    classes = [str(label) for label in range(CLASSES)]
    pixels = torch.randint(0, 256, (count, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    images = ImageData(
        ImageList(Path(), names, targets, classes, {}),
        name="folder",
        split="train",
        image_size=IMAGE_SIZE,
        normalisation=NORMALISATIONS["dcm"],
        augmentation=AUGMENTATIONS["reflect4"],
    )
    return images.with_stored(TensorStore(pixels))


if __name__ == "__main__":
    main()
