"""What is lean about small runs: each way beside another one, in turns.

    python -m benchmarks.bench_lean [resize|order|small|extraction] [--rounds 5]

`resize` opens 100 birds from the folder that KC_REAL_DATA names, by PyTorch and by Pillow. `order`
takes steps of SGD with maps in either order of memory, in float32 and bfloat16. `small` takes steps
of a Trans-Net's fit, as it is and compiled, and its convolutions alone. `extraction` stores features
of such birds by whole runs of ConvOutput.py and of `benchmarks.torchvision_loop`. Times are processor
seconds of one thread, and ratios are of one turn.
"""

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

from benchmarks.contests import frozen, photos, save_classifiers
from benchmarks.machine import ran_on
from benchmarks.roofline import bare_convolutions, bare_training
from benchmarks.turns import process, timed
from consistency.family import Family
from consistency.reconstruction import reconstruct
from models.memory_order import order_channels_last
from models.trans_net import TransNet
from tests.e2e import zoo_nets
from utils.allocator import keep_freed_memory
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
# Channels, spare channels and positions to a side of a Trans-Net's features
SMALL = ((128, 64, 4), (64, 64, 8), (32, 64, 16), (16, 16, 32))
PAIRS = 64  # of features in a step
# Net, `--conv_layer`, the module that it means, how many photos, pixels to a side
EXTRACTIONS = (
    ("resnet18", 2, "layer2", 200, 64),
    ("resnet18", 2, "layer2", 64, 224),
    ("vgg16_bn", 30, "features.30", 200, 224),
)
PIECE = 8  # photos of the bare convolutions' batch


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


def small(rounds: int) -> None:
    """Take steps of a fit, as they are and compiled, and run their convolutions alone."""
    keep_freed_memory()
    print(
        "| channels + spare, size | step, ms | compiled, ms | convolutions, ms | their share of the"
        " step | of the compiled one |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for channels, hidden, size in SMALL:
        x, target = torch.randn(2, PAIRS, channels, size, size)
        nets = [TransNet(channels, channels, standardise=True, hidden=hidden) for _ in range(3)]
        contest = [
            _fit_step(nets[0], x, target, compiled=False),
            _fit_step(nets[1], x, target, compiled=True),
            bare_training(nets[2], x),
        ]
        taken: list[list[float]] = [[], [], []]
        for turn in range(rounds + 1):
            for times, run in zip(taken, contest):
                for _ in range(0 if turn else 2):  # the compiler's turn, and the allocator's
                    run()
                times.append(timed(run).seconds)
        of_turns = [times[1:] for times in taken]
        shares = [
            statistics.median(bare / whole for whole, bare in zip(times, of_turns[2]))
            for times in of_turns[:2]
        ]
        medians = " | ".join(f"{1000 * statistics.median(times):.1f}" for times in of_turns)
        case = f"{channels} + {hidden}, {size} × {size}"
        print(f"| {case} | {medians} | {shares[0]:.0%} | {shares[1]:.0%} |", flush=True)


def _fit_step(
    net: TransNet, x: torch.Tensor, target: torch.Tensor, *, compiled: bool
) -> Callable[[], object]:
    """Give the function that takes one step of a fit."""
    family = Family([net])
    optimizer = make_optimizer("Adam", family.parameters(), lr=1e-3, momentum=0.9, weight_decay=0.0)
    module: nn.Module = torch.compile(family) if compiled else family  # type: ignore[assignment]

    def step() -> None:
        loss, _ = reconstruct(
            module,
            x,
            target,
            family=family,
            alphas=[torch.zeros(net.order)],
            read=lambda first, second: (first, second),
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def extraction(rounds: int) -> None:
    """Store features of two nets by whole runs, the suite's and a loop's."""
    print(
        "| nets, photos | ConvOutput.py, s | the loop, s | bare convolutions, s | ours / the loop |"
        " convolutions / ours |"
    )
    print("|---|---:|---:|---:|---:|---:|")
    for arch, number, layer, count, size in EXTRACTIONS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            images, (a, b) = photos(folder, count), save_classifiers(folder, arch)
            bare = bare_convolutions(frozen(a), torch.randn(PIECE, 3, size, size))
            data = ["--dataset", "folder", "--train_path", images, "--image_size", size, "-j", 0]
            places = (folder / f"{turn}" for turn in itertools.count())
            ours, loop, alone = [], [], []
            for _ in range(rounds):
                words = ["--resume1", a, "--resume2", b, "--conv_layer", number, *data]
                ours.append(process("ConvOutput.py", *words, "--out", next(places)).seconds)
                words = [arch, a, b, layer, images, size, next(places)]
                loop.append(process("-m", "benchmarks.torchvision_loop", *words).seconds)
                # The bare pass runs one net on PIECE photos: it stands for both nets on all.
                alone.append(timed(bare, 2 * count / PIECE).seconds)
            print(
                f"| {arch}, {count} at {size} | {_spread(ours)} | {_spread(loop)} |"
                f" {_spread(alone)} | {_spread([x / y for x, y in zip(ours, loop)], 2)} |"
                f" {_spread([x / y for x, y in zip(alone, ours)], 2)} |",
                flush=True,
            )


def _spread(values: list[float], digits: int = 1) -> str:
    """Write the median and the range."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} … {high:.{digits}f})"


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="?", choices=list(CONTESTS))
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # of the runs that are processes of their own
    where = ran_on(__file__, argv, "torch", "torchvision")
    for name in [args.what] if args.what else CONTESTS:
        if name in OF_PHOTOS and "KC_REAL_DATA" not in os.environ:
            print(f"{name} needs real photos: name their folder by KC_REAL_DATA; skipped")
            continue
        CONTESTS[name](args.rounds)
        print()
    print(where)


CONTESTS = {"resize": resize, "order": order, "small": small, "extraction": extraction}
OF_PHOTOS = ("resize", "extraction")


if __name__ == "__main__":
    main()
