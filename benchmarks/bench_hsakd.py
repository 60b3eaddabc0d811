"""HSAKD's batches: a training step on B images in four
rotations against four plain steps on B images.

    python -m benchmarks.bench_hsakd

Both run the same network with branches on uint8 images; the rotated step of 4B rows also
preprocesses B images, rotates them and has four times the rows of every loss. The two kinds take
turns, and their median counts. On a CPU, seconds are those that this process computed in all of its
threads, so that other programs count little; on a GPU, those on the clock. Prints Markdown.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.machine import ran_on
from distillation.hsakd import rotate
from distillation.hsakd_steps import teach
from models.small.auxiliary import build_with_heads
from utils.data.batches import AUGMENTATIONS, Preprocessing
from utils.normalisation import NORMALISATIONS
from utils.runtime import start
from utils.training.metrics import accuracies_percent

CLASSES = 100


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    runtime = start([], None, seed=0)
    device = runtime.device
    where = ran_on(__file__, argv, "torch", cuda=device.type == "cuda")
    net = build_with_heads(args.arch, CLASSES, "hsakd").to(device).train()
    images = torch.randint(0, 256, (args.batch_size, 3, 32, 32), dtype=torch.uint8, device=device)
    targets = torch.randint(0, CLASSES, (args.batch_size,), device=device)
    indices = torch.arange(args.batch_size, device=device)
    preprocess = partial(
        Preprocessing(*NORMALISATIONS["cifar"], augmentation=AUGMENTATIONS["zero4"]), epoch=0
    )
    rotated = partial(teach, preprocess=preprocess, accuracies=accuracies_percent)
    kinds: dict[str, Callable[[], object]] = {
        "plain": partial(four_plain_steps, net, preprocess, images, targets, indices),
        "rotated": partial(train, net, lambda: rotated(net, images, targets, indices)[0]),
        "rotation": lambda: rotate(preprocess(images, indices)),
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    for _ in range(args.rounds + 1):
        for kind, run in kinds.items():
            began = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[kind].append(clock() - began)
    seconds = {kind: found[1:] for kind, found in seconds.items()}  # the first round sets up
    medians = {kind: statistics.median(found) for kind, found in seconds.items()}
    ranges = {
        kind: f"{1e3 * min(found):.0f} to {1e3 * max(found):.0f}" for kind, found in seconds.items()
    }
    print(
        f"\n{args.arch} with branches, batches of {args.batch_size}, float32\n\n| four plain steps,"
        " ms | one rotated step, ms | ratio | of it preprocessing and rotating, ms"
        f" |\n|---:|---:|---:|---:|\n| {1e3 * medians['plain']:.0f} ({ranges['plain']}) |"
        f" {1e3 * medians['rotated']:.0f} ({ranges['rotated']}) |"
        f" {medians['rotated'] / medians['plain']:.3f} | {1e3 * medians['rotation']:.2f} |"
    )
    print(f"\n{where}")


def train(net: nn.Module, loss: Callable[[], Tensor]) -> None:
    """Go forward and backward."""
    net.zero_grad()
    loss().backward()


def four_plain_steps(
    net: nn.Module,
    preprocess: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
) -> None:
    """Train on the images as they are, four times,
    with a loss of the logits and of every branch's.
    """
    for _ in range(4):
        train(net, partial(plain_loss, net, preprocess, images, targets, indices))


def plain_loss(
    net: nn.Module,
    preprocess: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
) -> Tensor:
    """CE of the logits and of every branch's."""
    logits, branches = net(preprocess(images, indices))
    return torch.stack(
        [nn.functional.cross_entropy(found, targets) for found in (logits, *branches)]
    ).sum()


if __name__ == "__main__":
    main()
