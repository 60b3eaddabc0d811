"""A head as it is cut from its classifier, the frozen form of it,
and its bare convolutions: seconds an image.

    python -m benchmarks.bench_frozen

The three take turns, and their medians count: on a CPU, which other programs may share, of the
processor's seconds of all threads (set OMP_NUM_THREADS=1). The bare convolutions read inputs of the
same shapes that lie ready in `channels_last` order, with nothing between them: what the frozen form
cannot be faster than. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.machine import ran_on
from benchmarks.roofline import bare_convolutions
from models.classifiers import build
from models.frozen import freeze_for_inference
from models.split import split
from utils.runtime import start

HEADS = (("vgg16_bn", "features.30"), ("resnet18", "layer3.1.add"))
CLASSES = 200


class Row(NamedTuple):
    """Medians in seconds an image,
    and the largest difference of the frozen feature over its largest entry.
    """

    head: float
    frozen: float
    convolutions: float
    difference: float


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    device = start([], None, seed=0).device
    where = ran_on(__file__, argv, "torch", "torchvision", cuda=device.type == "cuda")
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)
    print(
        f"\nBatches of {args.batch_size} of {args.image_size} × {args.image_size} pixels,"
        " float32\n\n| head | s an image, as cut | frozen | bare convolutions | as cut / frozen |"
        " convolutions / frozen | largest difference |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for arch, layer in HEADS:
        row = measure(arch, layer, images, args.rounds)
        assert row.difference < 1e-5, "the frozen form must compute the same"
        print(
            f"| {arch} at {layer} | {row.head:.4f} | {row.frozen:.4f} | {row.convolutions:.4f} |"
            f" {row.head / row.frozen:.2f} | {row.convolutions / row.frozen:.0%} |"
            f" {row.difference:.1e} |",
            flush=True,
        )
    print(f"\n{where}")


@torch.inference_mode()
def measure(arch: str, layer: str, images: Tensor, rounds: int) -> Row:
    """Time one head in its three forms by turns, after one round that does not count."""
    head = split(build(arch, CLASSES), layer)[0].to(images.device).eval()
    frozen = freeze_for_inference(head, images.device)
    expected = head(images)
    difference = ((frozen(images) - expected).abs().max() / expected.abs().max()).item()
    forms: tuple[Callable[[], object], ...] = (
        lambda: head(images),
        lambda: frozen(images),
        bare_convolutions(frozen, images),
    )
    seconds: tuple[list[float], ...] = ([], [], [])
    # Other programs may share the processor
    clock = time.perf_counter if images.is_cuda else time.process_time
    for _ in range(rounds + 1):
        for form, measured in zip(forms, seconds):
            began = clock()
            form()
            if images.is_cuda:
                torch.cuda.synchronize()
            measured.append((clock() - began) / len(images))
    as_cut, fast, bare = (statistics.median(measured[1:]) for measured in seconds)
    return Row(as_cut, fast, bare, difference)


if __name__ == "__main__":
    main()
