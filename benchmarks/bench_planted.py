"""Planted truth: does the calibrated consistency say what was planted,
and is what shares nothing called consistent?

    python -m benchmarks.bench_planted

Images are latent vectors: a class's mean plus content. A net's channels mix them and add noise of
their own. B has A's channels, with 1 − s of its variance, and another net's channels on *other*
images (two nets on the same images share knowledge), with s of it; all are rotated and widened. Its
variance is what the null leaves unexplained: over all images the whole; within the class what a
regression from other images of the class leaves.

The instability is the linear reference's, at one ridge weight; other images' x give the null, A → A
the ceiling. Every repetition draws new classes, nets and images.

Last, maps that a Trans-Net must find: rows x of independent channels, all of them informative, and
targets behind one or two layers of ReLUs. The fits are the product's own, by its default budget and
by --until converged. Prints Markdown.
"""

import argparse
import contextlib
import datetime
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.utils.data import Dataset, Subset

from benchmarks.machine import ran_on
from consistency.bootstrap import Interval, bootstrap
from consistency.budget import Budget
from consistency.calibration import Null, best_of, permutations
from consistency.fitting import Fitting, Pairs, converge
from consistency.permutation import calibrate_linear, permuted_errors
from consistency.reconstruction import image_errors
from models.pair import read_stored
from models.trans_net import TransNet
from utils.data.loaders import make_loader
from utils.fit_options import spare_channels
from utils.runtime import Runtime

CLASSES, LATENT, CHANNELS, WIDENED, SIDE = 10, 6, 12, 36, 2
FIT_IMAGES, HELD_IMAGES = 320, 160
WEIGHT = 0.1  # of ridge
SHUFFLES, PERMUTATIONS = 5, 200
NOISE = 0.5  # of a channel, beside contents of variance 1
SHARES = [share / 10 for share in range(11)]
NULL_PAIRS: dict[str, dict[str, Any]] = {  # B has seen other images: what else the pair is
    "other images": {},
    "other images of the same class, permuted within it": {"within": True},
    "200 channels of 60 images": {"wide": True},
    "best of 4 layers": {"layers": 4},
    "best of 4 layers, 200 channels of 60 images, within the class": {
        "within": True,
        "wide": True,
        "layers": 4,
    },
}


@dataclass(frozen=True)
class Features:
    """A's and B's features of fitting and of held-out images, and the images' classes."""

    x: list[Tensor]
    target: list[Tensor]
    labels: list[Tensor]

    def consistency(self, generator: torch.Generator, *, within: bool) -> Interval:
        """Calibrate the linear reference; `within`: against pairs of the same class."""
        labels = self.labels if within else [torch.zeros_like(of_split) for of_split in self.labels]
        calibration = calibrate_linear(
            self.x, self.target, labels, generator, draws=0, shuffles=SHUFFLES, weight=WEIGHT
        )
        return calibration.intervals["consistency"]


class World:
    """Classes of images, whose means are `spread` apart in units of the content,
    and what nets see in them.
    """

    def __init__(self, generator: torch.Generator, spread: float = 1.0) -> None:
        self.generator = generator
        means = spread * self.normal(CLASSES, LATENT)
        self.means = means - means.mean(0)

    def normal(self, *shape: int) -> Tensor:
        """Draw standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def net(self, channels: int = CHANNELS) -> Tensor:
        """Draw a net: how its channels mix the latent dimensions, (Z, C)."""
        return self.normal(LATENT, channels) / LATENT**0.5

    def labels(self, images: int) -> Tensor:
        """Draw classes (N,)."""
        return torch.randint(CLASSES, (images,), generator=self.generator)

    def images(self, labels: Tensor) -> Tensor:
        """Draw images of these classes, (N, Z, H·W):
        half of the content belongs to the image, half to the position.
        """
        # The sum of both has variance 2.
        content = self.normal(len(labels), LATENT, 1) + self.normal(len(labels), LATENT, SIDE**2)
        return self.means[labels][..., None] + content / 2**0.5

    def features(self, net: Tensor, images: Tensor) -> Tensor:
        """Let a net see images: (N, C, H, W)."""
        maps = torch.einsum("nzu,zc->ncu", images, net)
        return (maps + NOISE * self.normal(*maps.shape)).unflatten(2, (SIDE, SIDE))

    def unexplained(self, source: Tensor, target: Tensor, *, within: bool) -> float:
        """Give the variance of the target that a ridge regression
        from other images' source leaves, per position.
        """
        # Second moments over images: of the class means, (Z, Z), and with the content's unit
        # variance.
        classes = self.means.T @ self.means / CLASSES
        latent = classes + torch.eye(LATENT)
        # tr TᵀΣT of the channels T, and their own noise
        total = (target * (latent @ target)).sum() + NOISE**2 * target.shape[1]
        if not within:
            return total.item()
        # Sender and target share the class alone: their cross moments are those of the class means.
        gram = source.T @ latent @ source + NOISE**2 * torch.eye(source.shape[1])
        cross = source.T @ classes @ target
        solution = torch.linalg.solve(
            gram + WEIGHT * gram.diagonal().mean() * torch.eye(len(gram)), cross
        )
        # The error of W beside the true moments: tr (S − 2 WᵀC + WᵀGW)
        return (total - 2 * (cross * solution).sum() + (solution * (gram @ solution)).sum()).item()


def planted_pair(world: World, share: float, *, within: bool) -> Features:
    """Draw a pair whose B has a share of its variance from another net on other images."""
    net, other = world.net(), world.net()
    # Each part is scaled by what its null leaves: so 1 − s is the consistency that is planted.
    sizes = [world.unexplained(net, channels_of, within=within) for channels_of in (net, other)]
    # Orthonormal columns, (36, 24): every channel of B mixes all of both nets.
    rotation = torch.linalg.qr(world.normal(WIDENED, 2 * CHANNELS))[0]
    features = Features([], [], [])
    for count in (FIT_IMAGES, HELD_IMAGES):
        labels = world.labels(count)
        x = world.features(net, world.images(labels))
        foreign = world.features(other, world.images(labels if within else world.labels(count)))
        channels = torch.cat(
            [((1 - share) / sizes[0]) ** 0.5 * x, (share / sizes[1]) ** 0.5 * foreign], dim=1
        )
        features.x.append(x)
        features.target.append(torch.einsum("nchw,dc->ndhw", channels, rotation))
        features.labels.append(labels)
    return features


def planted_table(repetitions: int, *, within: bool) -> None:
    """Print what was found of each planted share."""
    print(f"\n## Null {'within the class' if within else 'over all images'}\n")
    print(
        "| planted 1 − s | mean found | sd | within ±0.03 | interval covers | interval's half"
        " width |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    covered = []
    for index, share in enumerate(SHARES):
        intervals = []
        for repetition in range(repetitions):
            # Another seed for every repetition, share and null
            generator = torch.Generator().manual_seed(1_000_000 * index + 2 * repetition + within)
            pair = planted_pair(World(generator), share, within=within)
            intervals.append(pair.consistency(generator, within=within))
        value, low, high = (
            np.array([getattr(one, name) for one in intervals]) for name in ("value", "low", "high")
        )
        # At s = 0 it is 1 but for rounding
        inside = (low <= 1 - share + 1e-9) & (high >= 1 - share - 1e-9)
        covered.append(inside.mean())
        near = abs(value - 1 + share) <= 0.03
        print(
            f"| {1 - share:.1f} | {value.mean():.4f} | {value.std():.4f} | {near.mean():.1%} "
            f"| {covered[-1]:.1%} | {(high - low).mean() / 2:.4f} |",
            flush=True,
        )
    print(
        f"\nCovered over s = 0.1 … 1: {np.mean(covered[1:]):.1%}; at s = 0 both ends are 1, and so"
        " is what is found."
    )


def null_pair(
    generator: torch.Generator, *, within: bool = False, wide: bool = False, layers: int = 1
) -> Null:
    """Draw nets that share nothing, or nothing beyond the class,
    and test the best of A's layers.
    """
    world = World(generator)
    sizes = (60, 40) if wide else (120, 60)
    labels = [world.labels(count) for count in sizes]
    seen = [world.images(split) for split in labels]
    foreign = [world.images(split if within else world.labels(len(split))) for split in labels]
    classes = labels if within else [torch.zeros_like(split) for split in labels]
    orders = [permutations(split, PERMUTATIONS, generator) for split in classes]
    target_fit, target_held = vectors(world, world.net(50 if wide else WIDENED), foreign)
    nulls = []
    for _ in range(layers):
        x_fit, x_held = vectors(world, world.net(200 if wide else CHANNELS), seen)
        nulls.append(
            permuted_errors(x_fit, target_fit, x_held, target_held, *orders, weight=WEIGHT).null()
        )
    return best_of(nulls)


def vectors(world: World, net: Tensor, parts: Iterable[Tensor]) -> list[Tensor]:
    """Let a net see some sets of images, its maps averaged: (N, C, 1, 1) each."""
    return [world.features(net, images).mean((2, 3), keepdim=True) for images in parts]


def null_table(repetitions: int) -> None:
    """Print how often pairs that share nothing are called consistent."""
    print(f"\n## Pairs that share nothing, {PERMUTATIONS} permutations\n")
    print("| pair: B has seen other images | called consistent (p ≤ 0.05) |\n|---|---:|")
    rates = []
    for name, kind in NULL_PAIRS.items():
        nulls = (
            null_pair(torch.Generator().manual_seed(7_000_000 + seed), **kind)
            for seed in range(repetitions)
        )
        rates.append(np.mean([null.p_value <= 0.05 for null in nulls]))
        print(f"| {name} | {rates[-1]:.2%} |", flush=True)
    print(f"| all | {np.mean(rates):.2%} |")


def attack_table(repetitions: int) -> None:
    """Print what a sender of class-clustered noise reaches,
    that has seen nothing of an image but its class.
    """
    accuracies, scores = [], []
    for seed in range(repetitions):
        generator = torch.Generator().manual_seed(9_000_000 + seed)
        world = World(generator, spread=4)  # a net that has learned the classes
        clusters, net = 4 * world.normal(CLASSES, CHANNELS), world.net(WIDENED)
        pair = Features([], [], [world.labels(count) for count in (FIT_IMAGES, HELD_IMAGES)])
        for labels in pair.labels:
            noise = world.normal(len(labels), CHANNELS, SIDE, SIDE)
            pair.x.append(clusters[labels][..., None, None] + noise)
            pair.target.append(world.features(net, world.images(labels)))
        accuracies.append(tail_accuracies(pair))
        scores.append([pair.consistency(generator, within=within) for within in (False, True)])
    of_target, of_noise = 100 * np.mean(accuracies, axis=0)
    over_all, inside = zip(*scores)
    print("\n## A sender of class-clustered noise\n")
    print(
        f"B's features through B's tail {of_target:.1f} %, the noise translated to them {of_noise:.1f} %."
    )
    for name, intervals in (("over all images", over_all), ("within the class", inside)):
        zero = np.mean([one.low <= 0 <= one.high for one in intervals])
        mean = np.mean([one.value for one in intervals])
        print(f"Consistency by the null {name}: {mean:.4f}; its interval contains 0 in {zero:.1%}.")


def tail_accuracies(pair: Features) -> list[float]:
    """Fit a linear tail to B's averaged features, and a linear g;
    give its accuracies on B's features and on g(x).
    """
    x_fit, x_held, target_fit, target_held = (
        features.mean((2, 3)).numpy() for features in (*pair.x, *pair.target)
    )
    tail = LinearDiscriminantAnalysis().fit(target_fit, pair.labels[0])
    sent = LinearRegression().fit(x_fit, target_fit).predict(x_held)
    return [tail.score(features, pair.labels[1]) for features in (target_held, sent)]


MAP_CHANNELS, MAP_ROWS, MAP_HELD = 8, 4000, 1000
MAPS = {  # kind of target → layers that it needs
    "full": 3,  # W0 ReLU(W1 ReLU(W2 x) / σ) / σ: two layers of ReLUs, and nothing else
    "even": 2,  # V |U x|: of no linear layer's
    "linear": 1,
}


class Rows(Dataset[Any]):
    """Rows of x and of the target, (N, C, 1, 1), as batches of the feature cache."""

    def __init__(self, x: Tensor, target: Tensor) -> None:
        self.x, self.target = x, target

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, ...]:
        """Give x, the target, no classes, and the numbers."""
        rows = torch.as_tensor(indices)
        return self.x[rows], self.target[rows], torch.zeros_like(rows), rows


def planted_map(kind: str, seed: int) -> Rows:
    """Draw x, (N, C, 1, 1), normal, and a target of `MAPS` behind random matrices."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(MAP_ROWS + MAP_HELD, MAP_CHANNELS, generator=generator)
    first, second, last = torch.randn(3, MAP_CHANNELS, MAP_CHANNELS, generator=generator)
    if kind == "full":
        inner = (x @ first.T).relu()
        outer = (inner / inner.std(0) @ second.T).relu()
        target = outer / outer.std(0) @ last.T
    else:
        target = ((x @ first.T).abs() if kind == "even" else x) @ last.T
    return Rows(x[..., None, None], target[..., None, None])


BUDGETS = ("default", "M = 2 C, 800 steps", "--until converged")


def map_table(seeds: int, budgets: Sequence[str]) -> None:
    """Print what one, two and three layers find of planted maps,
    and what the third adds to the second.
    """
    print(f"\n## Maps of {MAP_CHANNELS} channels, {MAP_ROWS} rows fitted, {MAP_HELD} held out\n")
    print(
        "R² on held-out rows; the gain of the third layer with its 95 % interval, paired by row.\n"
    )
    print(
        "| planted map | seed | budget | linear | 2 layers | 3 layers | gain of the third | steps,"
        " M, ridge | s |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---|---:|")
    cpu = Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)
    for kind in MAPS:
        for seed in range(seeds):
            rows = planted_map(kind, seed)

            def load(chosen: Tensor, shuffle: bool = False, rows: Rows = rows) -> Any:
                return make_loader(Subset(rows, chosen.tolist()), 64, shuffle=shuffle)

            images = torch.arange(len(rows))
            pairs = Pairs(load, read_stored, images[:MAP_ROWS], load(images[MAP_ROWS:]))
            for name in budgets:
                print(map_row(kind, seed, pairs, cpu, name), flush=True)


def map_row(kind: str, seed: int, pairs: Pairs, cpu: Runtime, name: str) -> str:
    """Fit two and three layers and lay them out as a row of the table."""
    began, errors, how, linear = time.process_time(), list[Any](), "", float("nan")
    for layers in (2, 3):
        alpha = torch.full((layers - 1,), 0.1)

        def make(hidden: int, layers: int = layers) -> TransNet:
            torch.manual_seed(seed)
            return TransNet(MAP_CHANNELS, MAP_CHANNELS, layers, 1, standardise=True, hidden=hidden)

        budget, hidden = Budget(), spare_channels(MAP_CHANNELS)
        if name == BUDGETS[1]:
            budget, hidden = Budget(steps=800), 2 * MAP_CHANNELS
        elif name == BUDGETS[2]:
            with contextlib.redirect_stdout(sys.stderr):  # what it tried
                end = converge(make, pairs, Budget(steps=200), cpu, hidden=hidden, alpha=alpha)
            budget, hidden = Budget(steps=end.steps), end.hidden
        fitting = Fitting([make(hidden)], pairs, budget, cpu, alphas=[alpha]).run()
        assert pairs.unseen is not None
        errors.append(image_errors(fitting.trans_nets[0], pairs.unseen, read_stored, cpu))
        reference = fitting.beside[False].reference
        assert reference is not None
        linear, how = 1 - reference.instability, f"{budget.steps}, {hidden}, {fitting.ridges[0]:g}"

    def gains(two: Any, three: Any) -> dict[str, Any]:
        return {"gain": (two[..., 1] - three[..., 1]) / two[..., 0]}

    two, three = (1 - one[:, 1].sum() / one[:, 0].sum() for one in errors)
    gain = bootstrap(gains, errors)["gain"]
    ends = f"{gain.value:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}]"
    seconds = time.process_time() - began
    return (
        f"| {kind} | {seed} | {name} | {linear:.4f} | {two:.4f} | {three:.4f} | {ends} |"
        f" {how} | {seconds:.0f} |"
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=400, help="of every line")
    parser.add_argument("--seeds", type=int, default=3, help="of every planted map")
    parser.add_argument("--maps", action="store_true", help="planted maps alone")
    parser.add_argument("--until", action="store_true", help="fit them by --until converged too")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    where, began = ran_on(__file__, argv, "torch", "scipy"), time.process_time()
    print(f"# Planted truth, {datetime.date.today()}\n")
    if args.maps:
        map_table(args.seeds, BUDGETS if args.until else BUDGETS[:2])
        print(f"\n{time.process_time() - began:.0f} s of the processor; ")
        print(where)
        return
    print(
        f"{args.repetitions} repetitions of every line; {FIT_IMAGES} images fitted, {HELD_IMAGES}"
        " held out, "
    )
    print(
        f"{CHANNELS} channels widened to {WIDENED}, maps of {SIDE} × {SIDE}; ridge weight"
        f" {WEIGHT}, "
    )
    print(f"{SHUFFLES} shuffled pairings.")
    planted_table(args.repetitions, within=True)
    null_table(args.repetitions)
    attack_table(args.repetitions)
    planted_table(args.repetitions, within=False)
    map_table(args.seeds, BUDGETS if args.until else BUDGETS[:2])
    print(f"\n{time.process_time() - began:.0f} s of the processor; ")
    print(where)


if __name__ == "__main__":
    main()
