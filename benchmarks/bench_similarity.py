"""Similarities beside other people's code (values,
seconds, memory), and what tells real nets apart.

    python -m benchmarks.bench_similarity --data_root demo/data

The oracles are pytorch-cka (two n × n Gram matrices), cca-zoo on scikit-learn's principal
components, and `scipy.linalg.orthogonal_procrustes`. Ours reads float32 features in batches. Each
runs in a process of its own; the memory is what it needs beyond the features and the libraries.

Then small nets are trained on the digits by Training.py. Of pairs of nets, every score ranks those
of two trained nets against those of which one is untrained, and pairs of one architecture against
pairs of two: the area under the curve (AUC) is how often a pair of the first kind has the higher
score, 0.5 is chance. Untrained nets have the statistics of one pass over the fitting images, or
(0/1) BatchNorms as initialised. The consistency is the linear reference's, calibrated within the
class, the mean of both directions and the smaller. CKA, SVCCA and Procrustes take positions as
rows; "images" are the same with an image as a row. Prints Markdown.
"""

import argparse
import contextlib
import datetime
import io
import itertools
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

import Training
from benchmarks.machine import ran_on
from consistency.pair_sums import PairSums
from consistency.permutation import calibrate_linear
from consistency.position_similarity import linear_cka, procrustes, svcca
from consistency.similarity import SCORES, ImageRows, image_rows
from models.cut_net import open_net, untrained_net
from models.layers import Layer
from models.split import as_maps
from models.untrained import set_statistics
from utils.data.images import ImageData, load_images
from utils.provenance import NetSource

BATCH = 256
# And where their features are taken: 32 channels
ARCHS = {"resnet8": "layer2", "wrn_10_1": "group1"}
TRAINED, UNTRAINED = 4, 3  # nets of each architecture and kind
UNTRAINED_KINDS = ("untrained", "untrained 0/1")
IMAGE_SIZE, EPOCHS = 16, 3
FIT_IMAGES, HELD_IMAGES = 400, 200
SHUFFLES = 5
NAMES = (
    "consistency",
    "smaller way",
    "CKA",
    "SVCCA",
    "1 − Procrustes",
    *(f"{name}, images" for name in SCORES),
)


def oracle_cka(x: Tensor, y: Tensor) -> float:
    """Compute unbiased linear CKA by pytorch-cka."""
    from cka import cka_from_features  # noqa: PLC0415 — of the tests' requirements

    return cka_from_features(x, y).item()


def oracle_svcca(x: Tensor, y: Tensor) -> float:
    """Compute the mean canonical correlation of the
    components that hold 99 % of the variance, by cca-zoo.
    """
    from cca_zoo.linear import CCA  # noqa: PLC0415
    from cca_zoo.metrics import pairwise_correlations  # noqa: PLC0415
    from sklearn.decomposition import PCA  # noqa: PLC0415

    components = [
        PCA(0.99, svd_solver="full").fit_transform(features.numpy()) for features in (x, y)
    ]
    count = min(features.shape[1] for features in components)
    return float(pairwise_correlations(CCA(count).fit_transform(components))[0, 1].mean())


def oracle_procrustes(x: Tensor, y: Tensor) -> float:
    """Compute half the squared distance of the rotated, centred features of norm 1, by scipy."""
    one, other = (
        (features - features.mean(0)) / (features - features.mean(0)).norm() for features in (x, y)
    )
    rotation, _ = scipy.linalg.orthogonal_procrustes(one.numpy(), other.numpy())
    # ½ ‖XR − Y‖² = 1 − ‖XᵀY‖_*, as both have norm 1
    return float(np.square(one.numpy() @ rotation - other.numpy()).sum() / 2)


def streamed(x: Tensor, y: Tensor) -> PairSums:
    """Take one pass in batches."""
    sums = PairSums()
    for pair in zip(x.split(BATCH), y.split(BATCH)):
        sums.update(*pair)
    return sums


MEASURES = {
    "CKA": (oracle_cka, linear_cka),
    "SVCCA": (oracle_svcca, svcca),
    "Procrustes": (oracle_procrustes, procrustes),
}


def measure(name: str, oracle: bool, rows: int, channels: int) -> tuple[float, float, float]:
    """Give the value, the seconds and the mebibytes of one
    measure on features that share half their variance.
    """
    generator = torch.Generator().manual_seed(0)
    x, noise = (torch.randn(rows, channels, generator=generator) for _ in range(2))
    y = x @ torch.randn(channels, channels, generator=generator) / channels**0.5 + noise
    theirs, ours = MEASURES[name]
    if oracle:
        theirs(x[:300, :4].double(), y[:300, :4].double())  # imports
    before, began = peak_mebibytes(), time.perf_counter()
    value = theirs(x.double(), y.double()) if oracle else ours(streamed(x, y)).value
    assert value is not None
    return value, time.perf_counter() - began, peak_mebibytes() - before


def peak_mebibytes() -> float:
    """Give the largest memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def oracle_table(measures: Sequence[str], rows: Sequence[int], channels: int) -> None:
    """Print every measure beside its oracle."""
    print(f"{channels} channels each\n")
    print("| measure | rows | s, oracle | s, ours | MiB, oracle | MiB, ours | difference |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    # A new process for each measurement: its peak memory is the measurement's own.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name, count in itertools.product(measures, rows):
            (value, *costs), (ours, *our_costs) = (
                pool.apply(measure, (name, oracle, count, channels)) for oracle in (True, False)
            )
            print(
                f"| {name} | {count:,} | {costs[0]:.2f} | {our_costs[0]:.2f} | {costs[1]:.0f} |"
                f" {our_costs[1]:.0f} | {abs(value - ours):.1e} |",
                flush=True,
            )


def inputs_of(images: ImageData, count: int) -> Tensor:
    """Give normalised images of every class, (N, 3, S, S)."""
    # The classes lie one behind the other
    chosen = range(0, len(images), len(images) // count)[:count]
    pixels, *_ = images.__getitems__(list(chosen))
    return images.preprocessing()(pixels)


def features_of(head: torch.nn.Module, images: ImageData, count: int) -> Tensor:
    """Give the features of these images, (N, C, H, W)."""
    with torch.no_grad():
        return as_maps(head(inputs_of(images, count))).double()


def nets(data_root: str) -> dict[tuple[str, str, int], list[Tensor]]:
    """Train small nets; give the features of trained and of untrained ones:
    of images to fit, and held-out ones.
    """
    images = [
        load_images("digits", split, data_root=data_root, image_size=IMAGE_SIZE)
        for split in ("train", "val")
    ]
    by_net = {}
    with tempfile.TemporaryDirectory() as out:
        for arch, layer in ARCHS.items():
            heads = {}
            for seed in range(TRAINED):
                words = (
                    f"--dataset digits --arch {arch} --image_size {IMAGE_SIZE} --epochs {EPOCHS} -b"
                    " 64 --lr 0.05"
                )
                words += (
                    f" --logspace 1 --seed {seed} --suffix sd{seed} --data_root {data_root} --out"
                    f" {out} -j 0"
                )
                with contextlib.redirect_stdout(io.StringIO()):
                    Training.main(words.split())
                path = Path(out, "model_checkpoints", f"checkpoint_digits_{arch}_sd{seed}.pth.tar")
                heads[arch, "trained", seed] = open_net(path, None, Layer(layer)).head.eval()
            for kind, seed in itertools.product(UNTRAINED_KINDS, range(UNTRAINED)):
                torch.manual_seed(100 + seed)
                head = untrained_net(NetSource(arch, layer), len(images[0].classes)).head
                if kind == "untrained":
                    pixels, order = inputs_of(images[0], FIT_IMAGES), torch.randperm(FIT_IMAGES)
                    set_statistics(head, (pixels[batch] for batch in order.split(100)))
                heads[arch, kind, seed] = head
            for key, head in heads.items():
                counts = (FIT_IMAGES, HELD_IMAGES)
                by_net[key] = [
                    features_of(head, batch, count) for batch, count in zip(images, counts)
                ]
    return by_net


def scores_of(x: list[Tensor], y: list[Tensor], labels: list[Tensor]) -> list[float]:
    """Give the scores of a pair in the order of `NAMES`."""
    both = []
    for first, second in ((x, y), (y, x)):
        generator = torch.Generator().manual_seed(0)
        calibration = calibrate_linear(
            first, second, labels, generator, draws=0, shuffles=SHUFFLES, resamples=2, kernel_size=3
        )
        both.append(calibration.intervals["consistency"].value)
    sums = streamed(x[1], y[1])
    distance = procrustes(sums).value
    scores: list[Any] = [
        np.mean(np.array(both, float)),
        np.min(np.array(both, float)),
        linear_cka(sums).value,
        svcca(sums).value,
    ]
    scores.append(None if distance is None else 1 - distance)
    rows_x, rows_y = (ImageRows(image_rows(features[1])) for features in (x, y))
    scores += [score(rows_x, rows_y, None) for score in SCORES.values()]
    return [float(value) for value in np.array(scores, float)]


def auc(first: Sequence[float], second: Sequence[float]) -> float:
    """Give how often a score of the first kind is the higher one;
    a tie counts half. NaN where a score is none.
    """
    difference = np.subtract.outer(np.array(first), np.array(second))
    # (n, m): every score of the first kind against every one of the second
    if not np.isfinite(difference).all():
        return float("nan")
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


def apart_table(data_root: str) -> None:
    """Print how well every score tells kinds of pairs apart."""
    by_net = nets(data_root)
    images = [
        load_images("digits", split, data_root=data_root, image_size=IMAGE_SIZE)
        for split in ("train", "val")
    ]
    counts = (FIT_IMAGES, HELD_IMAGES)
    labels = [split.targets[:: len(split) // count][:count] for split, count in zip(images, counts)]
    pairs = {
        (a, b): scores_of(by_net[a], by_net[b], labels)
        for a, b in itertools.combinations(by_net, 2)
    }

    def kind(keep: Callable[..., bool]) -> list[list[float]]:
        return [
            scores
            for ((arch, one, _), (other, two, _)), scores in pairs.items()
            if keep(arch == other, {one, two})
        ]

    trained = kind(lambda same, both: same and both == {"trained"})
    kinds = {
        f"both trained / one {name}, of one architecture": kind(
            lambda same, both, name=name: same and both == {"trained", name}
        )
        for name in UNTRAINED_KINDS
    }
    kinds["one architecture / two, all trained"] = kind(
        lambda same, both: not same and both == {"trained"}
    )
    print(
        f"\nNets on the digits at {IMAGE_SIZE} pixels: {TRAINED} trained and {UNTRAINED} untrained"
        " ones of each kind of"
    )
    print(f"{', '.join(ARCHS)}; {FIT_IMAGES} images fitted, {HELD_IMAGES} held out\n")
    print(f"| AUC | pairs | {' | '.join(NAMES)} |\n|---|---:|{'---:|' * len(NAMES)}")
    for name, others in kinds.items():
        areas = [auc(*columns) for columns in zip(np.array(trained).T, np.array(others).T)]
        print(
            f"| {name} | {len(trained)} / {len(others)} |"
            f" {' | '.join(f'{area:.3f}' for area in areas)} |"
        )
    print(f"\n| mean score | {' | '.join(NAMES)} |\n|---|{'---:|' * len(NAMES)}")
    for name, some in {"both trained, one architecture": trained, **kinds}.items():
        print(f"| {name} | {' | '.join(f'{value:.3f}' for value in np.mean(some, axis=0))} |")


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[1000, 10000], help="none: no oracles"
    )
    parser.add_argument(
        "--measures",
        nargs="+",
        choices=MEASURES,
        default=list(MEASURES),
        help="beside their oracles",
    )
    parser.add_argument("--channels", type=int, default=256, help="of each feature")
    parser.add_argument(
        "--data_root", default="demo/data", help="where PrepareData.py digits wrote; '': no nets"
    )
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "scipy")
    print(f"# Similarities, {datetime.date.today()}\n")
    if args.rows:
        oracle_table(args.measures, args.rows, args.channels)
    if args.data_root:
        apart_table(args.data_root)
    print(f"\n{where}")


if __name__ == "__main__":
    main()
