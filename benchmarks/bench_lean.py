"""What is lean about pixels and training: each way beside the one before, in turns.

    python -m benchmarks.bench_lean resize [--rounds 5]
    python -m benchmarks.bench_lean order [--rounds 5]

`resize` opens 100 birds from the folder that KC_REAL_DATA names, by PyTorch and by Pillow. `order`
takes steps of SGD with maps in either order of memory, in float32 and bfloat16. Times are processor
seconds of one thread, and ratios are of the two in one turn.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.machine import ran_on
from models.memory_order import order_channels_last
from tests.e2e import zoo_nets
from utils.data.images import load_images
from utils.later import torchvision
from utils.training.engine import make_optimizer

CLASSES, PHOTOS = 10, 100
# Net, pixels to a side, batch size
CASES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "tiny10": (lambda: zoo_nets.tiny10(CLASSES), 32, 64),
    "CIFAR ResNet-20": (zoo_nets.resnet20, 32, 64),
    "ResNet-18 (32)": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 32, 64),
    "ResNet-18 (64)": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 64, 32),
    "ResNet-18 (224)": (lambda: torchvision.models.resnet18(num_classes=CLASSES), 224, 8),
    "VGG-16-BN (64)": (lambda: torchvision.models.vgg16_bn(num_classes=CLASSES), 64, 24),
}


def in_turns(first: Callable[[], object], second: Callable[[], object], rounds: int) -> str:
    """Let two take turns, after one of each: the row of both medians in ms, and of the ratio."""
    taken: list[list[float]] = [[], []]
    for turn in range(rounds + 1):
        for times, run in zip(taken, (first, second)):
            began = time.process_time()
            run()
            if turn:
                times.append(1000 * (time.process_time() - began))
    ratios = [one / other for one, other in zip(*taken)]
    medians = " | ".join(f"{statistics.median(times):.0f}" for times in taken)
    middle = statistics.median(ratios)
    return f"{medians} | {middle:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def resize(rounds: int) -> None:
    """Open photos by Pillow and by PyTorch, and compare their pixels."""
    folder = Path(os.environ["KC_REAL_DATA"], "CUB_200_2011", "images")
    print("| pixels | Pillow, ms | PyTorch, ms | ratio | values that differ | by at most |")
    print("|---:|---:|---:|---:|---:|---:|")
    for size in (224, 64, 32):
        by_pillow, by_torch = (
            load_images("folder", "val", data_root="", path=folder, image_size=size, resize=way)
            for way in ("pillow", "torch")
        )
        chosen = torch.linspace(0, len(by_torch) - 1, PHOTOS).long().tolist()
        levels = (by_pillow.decode(chosen).int() - by_torch.decode(chosen).int()).abs()
        row = in_turns(partial(by_pillow.decode, chosen), partial(by_torch.decode, chosen), rounds)
        print(f"| {size} | {row} | {(levels > 0).float().mean():.2%} | {levels.max()} |")


def order(rounds: int) -> None:
    """Take steps of SGD in either order of memory."""
    print("| net | precision | channels first, ms | last, ms | ratio |")
    print("|---|---|---:|---:|---:|")
    for name, (build, size, batch) in CASES.items():
        images, labels = torch.randn(batch, 3, size, size), torch.arange(batch) % CLASSES
        for precision, is_mixed in (("float32", False), ("bfloat16", True)):
            first, last = (
                _step_of(build(), size, images, labels, is_last=is_last, is_mixed=is_mixed)
                for is_last in (False, True)
            )
            print(f"| {name} | {precision} | {in_turns(first, last, rounds)} |", flush=True)


def _step_of(
    net: nn.Module,
    size: int,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    is_last: bool,
    is_mixed: bool,
) -> Callable[[], object]:
    """Give the function that takes one step of training."""
    if is_last:
        order_channels_last(net, size, images.device)
    optimizer = make_optimizer(
        "SGD", net.train().parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=is_mixed):
            loss = functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=["resize", "order"])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    where = ran_on(__file__, argv, "torch", "torchvision")
    if args.what != "order" and "KC_REAL_DATA" in os.environ:
        resize(args.rounds)
    if args.what != "resize":
        order(args.rounds)
    print(where)


if __name__ == "__main__":
    main()
