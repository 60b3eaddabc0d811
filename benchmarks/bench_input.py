"""Photos into batches: decoded in every epoch against decoded once,
what that costs in memory, and augmentation.

    python -m benchmarks.bench_input --images data/CUB200/train

Without --images: the real photos below KC_REAL_DATA, or 500 synthetic ones of 500 × 400 pixels. The
files are read once before, so that they come from the system's file cache; later epochs take turns,
and their median counts.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.nn import functional as F

from benchmarks.machine import ran_on
from utils.data.batches import AUGMENTATIONS, Preprocessing
from utils.data.datasets import list_images
from utils.data.image_cache import cache_images
from utils.data.images import ImageData
from utils.data.loaders import make_loader
from utils.pixels import normalise


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, help="folder of class folders")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2, help="processes or threads that decode")
    parser.add_argument("--rounds", type=int, default=3, help="later epochs of each kind")
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "torchvision", "PIL")
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.images or real_photos() or synthetic_photos(Path(scratch, "photos"), 500)
        data = open_photos(folder, args.image_size)
        kilobytes = (
            sum(data.file(index).stat().st_size for index in range(len(data))) / len(data) / 1e3
        )
        for index in range(len(data)):
            data.file(index).read_bytes()
        print(
            f"{len(data)} photos of {kilobytes:.0f} kB on average, to {args.image_size} ×"
            f" {args.image_size} pixels\n"
        )
        if Path("/proc/self/status").is_file():
            memory_table(folder, args.image_size, args.workers)
        cached_seconds = speed_table(
            data, Path(scratch, "cache"), args.batch_size, args.workers, args.rounds
        )
    step_seconds = training_step_seconds(args.image_size)
    print(
        f"\nFeeding an image that is decoded already takes {cached_seconds * 1e6:.0f} µs,"
        f" {cached_seconds / step_seconds:.2%} of its share of a ResNet-18 training step on this"
        f" machine ({step_seconds * 1e3:.1f} ms, batches of 32)."
    )
    augmentation_table(args.rounds)
    print(f"\n{where}")


def speed_table(data: ImageData, cache: Path, batch_size: int, workers: int, rounds: int) -> float:
    """Print images/s of first and later epochs; return the seconds an image takes from memory."""

    def epoch_seconds(images: ImageData) -> float:
        loader = make_loader(
            images, batch_size, shuffle=True, workers=0 if images.stored is not None else workers
        )
        began = time.perf_counter()
        count = sum(len(batch[0]) for batch in loader)
        assert count == len(data), "an epoch is every image once"
        return time.perf_counter() - began

    def cached(mode: str) -> Callable[[], ImageData]:
        return lambda: cache_images(data, mode, cache_dir=cache, workers=workers, quiet=True)

    kinds = {
        f"decoded in every epoch, {workers} loader workers": lambda: data,
        "decoded once, in memory": cached("ram"),
        "decoded once, in a mapped file": cached("disk"),
        "the same file in the next run": cached("disk"),
    }
    first, opened = {}, {}
    for kind, open_kind in kinds.items():
        began = time.perf_counter()
        opened[kind] = open_kind()
        first[kind] = time.perf_counter() - began + epoch_seconds(opened[kind])
    later: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(rounds):
        for kind, images in opened.items():
            later[kind].append(epoch_seconds(images))
    medians = {kind: statistics.median(seconds) for kind, seconds in later.items()}
    decoding, in_memory, *_ = medians.values()
    print(
        "| images/s | first epoch, decoding included | later epochs (lowest to highest) | ratio of"
        " later epochs |"
    )
    print("|---|---:|---:|---:|")
    for kind, seconds in later.items():
        speeds = [len(data) / value for value in (medians[kind], max(seconds), min(seconds))]
        print(
            f"| {kind} | {len(data) / first[kind]:.0f} | {speeds[0]:.0f} ({speeds[1]:.0f} to"
            f" {speeds[2]:.0f}) | {decoding / medians[kind]:.1f} |"
        )
    return in_memory / len(data)


def memory_table(folder: Path, image_size: int, workers: int) -> None:
    """Print by how much the peak of resident memory rises while images are decoded into memory."""
    whole = len(open_photos(folder, image_size))
    print(
        "| images | peak of the build above its start | of it pixels (images ×"
        f" {3 * image_size**2:,} B) | rest |"
    )
    print("|---:|---:|---:|---:|")
    for count in (whole // 4, whole // 2, whole):
        # a process for each: memory that an earlier build gave back would be used again and not be
        # seen
        with multiprocessing.get_context("fork").Pool(1) as process:
            grown = process.apply(build_bytes, (folder, image_size, count, workers))
        pixels = count * 3 * image_size**2
        print(
            f"| {count} | {grown / 1e6:.1f} MB | {pixels / 1e6:.1f} MB |"
            f" {(grown - pixels) / 1e6:.1f} MB |"
        )
    print()


def build_bytes(folder: Path, image_size: int, count: int, workers: int) -> int:
    """Bytes by which the peak of resident memory rises
    while `count` images are decoded into memory.
    """

    def resident_bytes(field: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(dict(line.split(":", 1) for line in lines)[field].removesuffix("kB")) * 1024

    data = open_photos(folder, image_size, count)
    before = resident_bytes("VmRSS")
    cache_images(data, "ram", cache_dir=".", workers=workers, quiet=True)
    return resident_bytes("VmHWM") - before


def augmentation_table(rounds: int, batch_size: int = 128, image_size: int = 32) -> None:
    """Print what preparing a batch costs, plain and augmented,
    beside a training step of that size.
    """
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    indices = torch.arange(batch_size)
    kinds = {"normalised": Preprocessing()} | {
        f"augmented ({name}) and normalised": Preprocessing(augmentation=augmentation)
        for name, augmentation in AUGMENTATIONS.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for epoch in range(1 + 10 * rounds):
        for kind, preprocess in kinds.items():
            began = time.perf_counter()
            preprocess(images, indices, epoch)
            seconds[kind].append(time.perf_counter() - began)
    step_seconds = training_step_seconds(image_size, batch_size)
    print(
        f"\n| batch of {batch_size} × {image_size} × {image_size} pixels | µs an image | of a"
        " ResNet-18 training step |"
    )
    print("|---|---:|---:|")
    for kind, values in seconds.items():
        an_image = statistics.median(values[1:]) / batch_size  # the first one sets up
        print(f"| {kind} | {an_image * 1e6:.1f} | {an_image / step_seconds:.2%} |")


def training_step_seconds(image_size: int, batch_size: int = 32, steps: int = 5) -> float:
    """Seconds an image takes in a training step of ResNet-18, median."""
    model = torchvision.models.resnet18(num_classes=200)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images = torch.randint(0, 256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
    targets = torch.randint(0, 200, (batch_size,))
    seconds = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(normalise(images)), targets).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:]) / batch_size  # the first one sets up


def open_photos(folder: Path, image_size: int, count: int | None = None) -> ImageData:
    """Open a folder of class folders, the first `count` of its photos."""
    images = list_images("folder", "train", "", folder)
    chosen = torch.arange(min(len(images.files), count or len(images.files)))
    return ImageData(images.subset(chosen), name="folder", split="train", image_size=image_size)


def real_photos() -> Path | None:
    """Return the real photos' folder, where there is one."""
    folder = Path(os.environ.get("KC_REAL_DATA", ""), "CUB_200_2011", "images")
    return folder if "KC_REAL_DATA" in os.environ and folder.is_dir() else None


def synthetic_photos(folder: Path, count: int) -> Path:
    """Write JPEGs of 500 × 400 pixels: smooth shapes with grain,
    so that they are as long as photos.
    """
    (folder / "all").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (20, 25, 3), dtype=np.uint8)).resize(
            (500, 400)
        )
        grain = random.normal(0, 8, (400, 500, 1))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "all" / f"{number:04d}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
