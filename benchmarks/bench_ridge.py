"""The best convolution in closed form:
streamed normal equations against scikit-learn's Ridge on unfolded patches.

    python -m benchmarks.bench_ridge

Both fit the same ridge weight in float64, on one thread, each in a process of its own; seconds are
of the processor, because the machine may be shared. The streamed one also fits five times on four
fifths of the images, for the held-out error; its sums alone stand beside the same sums from
unfolded patches. Needs Linux, for the memory. Prints Markdown.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge
from torch import Tensor

from benchmarks.machine import ran_on
from consistency.ridge import NormalEquations, bytes_needed

BATCH = 64
SHARE = 1e-2  # ridge weight over the mean diagonal


class Measured(NamedTuple):
    """What a method gave and took: an array to compare,
    seconds of the processor, bytes on top of the data.
    """

    result: np.ndarray
    seconds: float
    bytes: int


def features(images: int, channels: int, size: int) -> tuple[Tensor, Tensor]:
    """Make maps (N, C, size, size) whose neighbours and channels resemble each other,
    and targets that they explain.
    """
    torch.manual_seed(0)
    mixing, weight = torch.randn(channels, channels), torch.randn(channels, channels, 3, 3)
    x = torch.einsum(
        "oc,nchw->nohw", mixing / channels**0.5, torch.randn(images, channels, size, size)
    )
    x = x + F.avg_pool2d(x, 3, 1, 1)
    return x, F.conv2d(
        x, weight / (9 * channels) ** 0.5, padding=1
    ).relu() + 0.3 * torch.randn_like(x)


def unfolded(x: Tensor) -> np.ndarray:
    """Give all patches, float64 (N·H·W, C·9)."""
    return F.unfold(x.double(), 3, padding=1).transpose(1, 2).flatten(0, 1).numpy()


def scikit_learn(x: Tensor, target: Tensor) -> np.ndarray:
    """Fit Ridge on all patches at once."""
    patches = unfolded(x)
    wanted = target.double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    alpha = SHARE * float(np.einsum("ij,ij->", patches, patches)) / patches.shape[1]
    fitted = Ridge(alpha=alpha, fit_intercept=False, solver="cholesky", copy_X=False).fit(
        patches, wanted
    )
    return fitted.coef_.reshape(target.shape[1], x.shape[1], 3, 3)


def accumulate(x: Tensor, target: Tensor) -> NormalEquations:
    """Add all batches."""
    equations = NormalEquations(x.shape[1], target.shape[1], 3)
    for part in torch.arange(len(x)).split(BATCH):
        equations.add(x[part], target[part], part)
    return equations


def streamed(x: Tensor, target: Tensor) -> np.ndarray:
    """Accumulate and solve."""
    return accumulate(x, target).solve([SHARE]).weight.numpy()


def sums(x: Tensor, target: Tensor) -> np.ndarray:
    """Accumulate alone; gives Σ u yᵀ."""
    return accumulate(x, target).cross.sum(0)[..., :-1].numpy()


def sums_of_patches(x: Tensor, target: Tensor) -> np.ndarray:
    """Accumulate the same from the unfolded patches of every batch."""
    unknowns, out_channels = 9 * x.shape[1], target.shape[1]
    gram, cross = np.zeros((unknowns, unknowns)), np.zeros((unknowns, out_channels))
    for part in torch.arange(len(x)).split(BATCH):
        patches = unfolded(x[part])
        gram += patches.T @ patches
        cross += patches.T @ target[part].double().permute(0, 2, 3, 1).flatten(0, 2).numpy()
    return cross.reshape(x.shape[1], 9, out_channels).transpose(1, 0, 2)


def memory(name: str) -> int:
    """Read this process's memory from the system: VmRSS, now, or VmHWM, at most so far, bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure(method: Callable[[Tensor, Tensor], np.ndarray], file: Path) -> Measured:
    """Run a method on stored features in this process, which nothing else has used."""
    torch.set_num_threads(1)
    x, target = torch.load(file, weights_only=True)
    # Forget the highest memory so far
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, start = memory("VmRSS"), time.process_time()
    result = method(x, target)
    return Measured(result, time.process_time() - start, memory("VmHWM") - before)


def rows(images: int, channels: int, size: int) -> Iterator[str]:
    """Measure every method in a process of its own; gives the rows of the table."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.pt"
        torch.save(features(images, channels, size), file)
        found: dict[str, Measured] = {}
        for title, (method, reference) in METHODS.items():
            with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                found[title] = one = pool.submit(measure, method, file).result()
            said = (
                f"{bytes_needed(channels, channels, 3) / 2**20:.0f}" if method is streamed else ""
            )
            difference = ""
            if reference:
                expected = found[reference].result
                difference = f"{np.abs(one.result - expected).max() / np.abs(expected).max():.1e}"
            yield (
                f"| {channels} | {title} | {one.seconds:.2f} | {one.bytes / 2**20:.0f} | {said} |"
                f" {difference} |"
            )


# And what each must equal
METHODS: dict[str, tuple[Callable[[Tensor, Tensor], np.ndarray], str | None]] = {
    "scikit-learn's Ridge on unfolded patches": (scikit_learn, None),
    "streamed: five folds' errors and the fit": (
        streamed,
        "scikit-learn's Ridge on unfolded patches",
    ),
    "sums alone, of unfolded patches": (sums_of_patches, None),
    "sums alone, of shifted maps": (sums, "sums alone, of unfolded patches"),
}


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--size", type=int, default=6, help="of a map, positions to a side")
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "sklearn")
    os.environ["OMP_NUM_THREADS"] = "1"  # read by the libraries of the new processes
    print(f"{args.images} images of {args.size}×{args.size}, batches of {BATCH}, float64\n")
    print("| channels | method | s | MiB on top of the data | said before | largest difference |")
    print("|---:|---|---:|---:|---:|---:|")
    for channels in args.channels:
        for row in rows(args.images, channels, args.size):
            print(row, flush=True)
    print(f"\n{where}")


if __name__ == "__main__":
    main()
