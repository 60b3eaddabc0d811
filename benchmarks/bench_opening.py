"""What it costs that a net proves itself when it is opened:
ConvOutput.py with the proof and without.

    KC_REAL_DATA=FOLDER python -m benchmarks.bench_opening

Two classifiers of one architecture store the features of a layer of the same photos. Both kinds of
run take turns in one process, so what the machine does besides falls on both; their seconds are the
processor's. The photos are those of CUB-200-2011 in KC_REAL_DATA, or noise where there are none.
Prints Markdown.
"""

import argparse
import contextlib
import io
import os
import statistics
import tempfile
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch import Tensor

import ConvOutput
from benchmarks import contests
from benchmarks.machine import ran_on
from benchmarks.turns import timed
from models.cut_net import CutNet


def noise(folder: Path, count: int) -> Path:
    """Make images of noise, as many of each class."""
    for number in range(count):
        path = folder / "photos" / str(number % contests.CLASSES) / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (375, 500, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(path)
    return folder / "photos"


def believe(net: CutNet, _pixels: Tensor) -> None:
    """Take the fast form without a proof."""
    net._is_fast = True


def measure(
    arch: str, layer: str, image_size: int, count: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Give the seconds of every run with the proof, and of every run without it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        real = Path(os.environ.get("KC_REAL_DATA", "/nowhere"), "CUB_200_2011").is_dir()
        images = (contests.photos if real else noise)(folder, count)
        a, b = contests.save_classifiers(folder, arch)
        words = [
            "--resume1",
            a,
            "--resume2",
            b,
            "--layer",
            layer,
            "--dataset",
            "folder",
            "--train_path",
            images,
        ]
        words += ["--image_size", image_size, "--data_root", folder, "-j", "0"]
        seconds: tuple[list[float], list[float]] = [], []

        def run(number: int) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                ConvOutput.main([str(word) for word in (*words, "--out", folder / str(number))])

        for number in range(-1, rounds):
            # The order changes from round to round; the first round sets up and does not count.
            for proven in (True, False) if number % 2 else (False, True):
                without = mock.patch.object(CutNet, "prove_fast", believe)
                with contextlib.nullcontext() if proven else without:
                    taken = timed(lambda: run(2 * number + proven)).seconds  # noqa: B023
                if number >= 0:
                    # A pair: with the proof first
                    seconds[not proven].append(taken)
    return seconds


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 64])
    parser.add_argument("--nets", nargs="+", default=["resnet18"], metavar="ARCH:LAYER")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "torchvision")
    print(
        "| net | pixels | images | with the proof, s | without, s | more | pairs: lowest to"
        " highest |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for net in args.nets:
        arch, _, layer = net.partition(":")
        for size in args.image_sizes:
            layer = layer or "layer3.1.add"
            proven, believed = measure(arch, layer, size, args.images, args.rounds)
            more = [100 * (one / other - 1) for one, other in zip(proven, believed)]
            slow, fast = (statistics.median(times) for times in (proven, believed))
            print(
                f"| {arch} at {layer} | {size} | {args.images} | {slow:.2f} | {fast:.2f} "
                f"| {statistics.median(more):.1f} % | {min(more):.1f} to {max(more):.1f} % |",
                flush=True,
            )
    print(f"\n{where}")


if __name__ == "__main__":
    main()
