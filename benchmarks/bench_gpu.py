"""What the paper's Trans-Net takes on a GPU:
its 1,000 epochs, projected from a few, in every precision.

    python -m benchmarks.bench_gpu [--images 1024]

Random features of vgg16_bn's conv4_3, 512×28×28, stored and fitted by `Training_TransNet.py`
itself; the seconds of an epoch are the median after the first two, scaled to the 5,994 images of
CUB-200-2011. Busy is the share of a fit in which the GPU computed or copied (seconds over the wall
clock's, start and saving included). Without a GPU the same runs on 32 channels and the CPU, and
only float32: it shows that the benchmark works. Prints Markdown.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import Training_TransNet
from benchmarks.contests import cache_of
from benchmarks.machine import ran_on
from benchmarks.plain import store_random
from utils import runs

IMAGES, EPOCHS, TIMED, WARM_UP = 5_994, 1_000, 5, 2
PRECISIONS = {"float32": [], "TF32": ["--tf32"], "bf16": ["--amp", "bf16"]}


def run(folder: Path, features: Path, *words: object) -> tuple[list[float], float]:
    """Fit quietly; give the seconds of every epoch and of the whole."""
    with tempfile.TemporaryDirectory(dir=folder) as out, contextlib.redirect_stdout(io.StringIO()):
        began = time.perf_counter()
        Training_TransNet.main([*map(str, ("--convOut_path", features, *words, "--out", out))])
        seconds = time.perf_counter() - began
        return [
            line["seconds"]
            for log in Path(out).glob("logs/*/*/metrics.jsonl")
            for line in runs.read_metrics(log)
        ], seconds


def fit(folder: Path, features: Path, precision: list[str]) -> tuple[float, float | None]:
    """Give the seconds of an epoch, and of a fit the share in which a GPU computed."""
    words = [
        "--alpha",
        "[0.1,0.1]",
        "--one_direction",
        "--no_reference",
        "--epochs",
        WARM_UP + TIMED,
        *precision,
    ]
    epochs, _ = run(folder, features, *words)
    busy = None
    if torch.cuda.is_available():
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
            _, seconds = run(folder, features, *words)
        # Operators of the CPU have the time of what they launched, too: it would count twice.
        on_device = [
            event for event in profiled.key_averages() if event.device_type == DeviceType.CUDA
        ]
        busy = (
            sum(event.self_device_time_total for event in on_device if not event.is_user_annotation)
            / 1e6
            / seconds
        )
    # The first epochs choose algorithms and fill caches.
    return statistics.median(epochs[WARM_UP:]), busy


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", type=int, help="that are fitted; default: 1,024, without a GPU 64"
    )
    args = parser.parse_args(argv)
    cuda = torch.cuda.is_available()
    images, channels = args.images or (1024 if cuda else 64), 512 if cuda else 32
    where = ran_on(__file__, argv, "torch", cuda=cuda)
    precisions = PRECISIONS if cuda else {"float32": []}
    print(f"{channels}×28×28, {images:,} images; projected to {EPOCHS:,} epochs of {IMAGES:,}\n")
    print(
        "| precision | ms an image and epoch | projected, minutes | the GPU was busy"
        " |\n|---|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store_random(folder / "pickles", images, (channels, 28, 28))
        cache_of(folder / "pickles", folder / "cache", (channels, 28, 28))
        for precision, words in precisions.items():
            seconds, busy = fit(folder, folder / "cache", words)
            minutes = seconds / images * IMAGES * EPOCHS / 60
            share = "no GPU" if busy is None else f"{busy:.0%}"
            print(
                f"| {precision} | {1e3 * seconds / images:.2f} | {minutes:,.0f} | {share} |",
                flush=True,
            )
        _, solved = run(folder, folder / "cache", "--standardise", "--solve", "--epochs", 0)
    print(f"\n`--solve`, no epoch, the whole fit: {solved:.1f} s")
    if not cuda:
        print(
            "skipped, for there is no GPU: 512 channels, TF32, bf16, and how busy it is; the"
            " minutes say nothing here"
        )
    print(f"\n{where}")


if __name__ == "__main__":
    main()
