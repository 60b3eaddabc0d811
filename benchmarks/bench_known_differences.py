"""Known differences: a lack is planted into net A; is it the first that is named, and is nothing named
where nothing was planted?

    OMP_NUM_THREADS=1 python -m benchmarks.bench_known_differences $KC_REAL_DATA/MNIST_mini

Nets of 24,170 parameters learn MNIST. B is plain. A was taught that two digits are one (3-5 and 4-9
are difficult to tell apart, 0-1 and 6-7 easy), or never saw one digit. *Hidden*: the merged net is
frozen up to the cut and gets a new tail, which is taught all ten digits, so that A's answers say less
of the lack. Controls are plain nets. Plain nets serve in turns as B, as three reference nets and as
two controls; so settings share nets.

g is the linear reference, 3×3 at the middle cut and 1×1 at the late one, fitted to training images.
All is measured on the test images. Rivals: A's confusions above B's; B's bits between the two classes
that are lost; the ratio of Fisher's criterion of both nets' features; 1 − CKA of the two classes'
images; linear probes' accuracies of B above A. Prints Markdown, every loss included.

    python -m benchmarks.bench_known_differences $KC_REAL_DATA --zoo    # zoo/ and CIFAR10_mini/ lie in it

asks published nets behind their last stage and the one before: ResNet-56 is B, ResNet-20 is A, and
ResNet-32 and 44 are the references; then B, A and three references are nets of one recipe, where any
call is a false one.
"""

import argparse
import copy
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scipy.stats import t as students_t
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.bench_similarity import auc
from benchmarks.machine import ran_on
from consistency.class_gaps import Distinctions, measure_distinctions
from consistency.knowledge import lost_bits
from consistency.permutation import Regression
from consistency.similarity import ImageRows, cka, image_rows
from utils.data.images import load_folder

Array = NDArray[Any]

DIGITS, SIZE = 10, 28
PAIRS = list(itertools.combinations(range(DIGITS), 2))
MERGED = [(3, 5), (4, 9), (0, 1), (6, 7)]
REFERENCES, CONTROLS = 3, 2  # of each B
FIT_IMAGES = 1000  # of the training images
CUTS = {"middle": (8, 3), "late": (11, 1)}  # layers before the cut, and g's kernel
BATCH = 32
ZOO_FIT, ZOO_HELD = 200, 100  # images of each class
TINY_SEEDS = 10  # each in turn as B; the next is A, the three behind it are references
RIVALS = ("confusion", "bits between", "Fisher", "CKA by pair", "probes")
OURS = ("tail gap less references", "tail gap")


class Images(NamedTuple):
    """Grey images (N, 1, 28, 28), standardised, and their digits (N,)."""

    pixels: Tensor
    digits: Tensor


def read_images(folder: str) -> tuple[Images, Images]:
    """Read the images to fit to and those to judge on."""
    both = []
    for data in load_folder(folder, SIZE):
        pixels, digits, _ = data.__getitems__(range(len(data)))
        grey = pixels[:, :1].float()
        both.append(Images((grey - grey.mean()) / grey.std(), digits))
    return both[0], both[1]


def make_net() -> nn.Sequential:
    """Make a net of 24,170 parameters: three convolutions, each behind a normalisation, and a layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
        # The middle cut: 32 × 7 × 7
        *(nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
        # The late cut: 64 × 7 × 7
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, DIGITS)),
    )


def train(net: nn.Module, inputs: Tensor, digits: Tensor, epochs: int, seed: int) -> None:
    """Train by Adam with a falling learning rate."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    # −(−a // b) rounds up.
    steps = epochs * -(-len(inputs) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for some in torch.randperm(len(inputs), generator=generator).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(net(inputs[some]), digits[some]).backward()
            optimizer.step()
            schedule.step()


def trained(images: Images, epochs: int, seed: int) -> nn.Sequential:
    """Give a net of a seed, which alone says how it begins and in which order it sees images."""
    torch.manual_seed(seed)
    net = make_net()
    train(net, images.pixels, images.digits, epochs, seed)
    return net.eval()


def with_merged(images: Images, pair: tuple[int, int]) -> Images:
    """Call the second digit of a pair the first."""
    digits = torch.where(images.digits == pair[1], pair[0], images.digits)
    return Images(images.pixels, digits)


@torch.no_grad()
def outputs(net: nn.Module, inputs: Tensor) -> Tensor:
    """Let a net, or a half of one, see images."""
    return torch.cat([net(some) for some in inputs.split(500)])


def with_new_tail(
    net: nn.Sequential, cut: int, images: Images, epochs: int, seed: int
) -> nn.Sequential:
    """Freeze a net up to a cut, and teach a new tail all digits."""
    torch.manual_seed(seed)
    head, tail = copy.deepcopy(net[:cut]), make_net()[cut:]
    train(tail, outputs(head, images.pixels), images.digits, epochs, seed)
    return nn.Sequential(*head, *tail).eval()


class Seen:
    """What a net makes of the images at a cut.

    Attributes:
        fitted: its feature of the images that g is fitted to.
        held_out: of those that it is judged on.
        logits: its answers to these.
    """

    def __init__(self, net: nn.Sequential, cut: int, fitted: Images, held_out: Images) -> None:
        self.tail = net[cut:]
        self.fitted, self.held_out = (
            outputs(net[:cut], images.pixels) for images in (fitted, held_out)
        )
        self.logits = outputs(self.tail, self.held_out)
        self.rows = [image_rows(of) for of in (self.fitted, self.held_out)]


def sent(source: Seen, target: Seen, kernel: int) -> Tensor:
    """Give B's answers to g(x), g being the linear reference with a ridge weight that it chooses."""
    regression = Regression(
        (source.fitted, source.held_out),
        (target.fitted, target.held_out),
        weight=None,
        kernel_size=kernel,
    )
    rows: list[Tensor] = []
    regression.observed(lambda images, wanted, predicted: rows.append(predicted))
    # `Regression` predicts about the fitted images' mean, (n, U, D): (n, D, U), then maps.
    maps = torch.cat(rows).mT.unflatten(2, target.held_out.shape[2:])  # (N, D, h, w)
    mean = target.fitted.mean((0, 2, 3))[:, None, None]
    return outputs(target.tail, (maps + mean).float())


def ranks(measured: Distinctions) -> dict[str, Array]:
    """Give L and e of every pair, in the order of `PAIRS`."""
    by_pair = {(of.first, of.second): of for of in measured.pairs}
    rows = [by_pair.get(pair) for pair in PAIRS]
    # What B itself does not tell apart comes last.
    return {
        "tail gap less references": np.array([-np.inf if of is None else of.t for of in rows]),
        "tail gap": np.array([-np.inf if of is None else of.relative for of in rows]),
    }


def confusions(logits: Tensor, digits: Tensor) -> Array:
    """Give the share of the images of both digits of a pair that are answered by the other one."""
    counts = torch.zeros(DIGITS, DIGITS).index_put_(
        (digits, logits.argmax(1)), torch.ones(len(digits)), accumulate=True
    )
    shares = (counts / counts.sum(1, keepdim=True)).numpy()
    return np.array([shares[c, d] + shares[d, c] for c, d in PAIRS])


def bits_between(logits: Tensor, sent_logits: Tensor, digits: Tensor) -> Array:
    """Give the bits of B's choice between two digits that are lost, on images of these."""
    lost = []
    for pair in PAIRS:
        members = (digits == pair[0]) | (digits == pair[1])
        lost.append(
            lost_bits(logits[members][:, pair], sent_logits[members][:, pair]).mean().item()
        )
    return np.array(lost)


def fisher(rows: Tensor, digits: Tensor) -> Array:
    """Give log ‖μ_c − μ_d‖² / (tr Σ_c + tr Σ_d) of every pair."""
    parts = [rows[digits == digit] for digit in range(DIGITS)]
    means, spreads = [of.mean(0) for of in parts], [of.var(0).sum() for of in parts]
    ratios = [(means[c] - means[d]).square().sum() / (spreads[c] + spreads[d]) for c, d in PAIRS]
    return torch.stack(ratios).log().numpy()


def distance_by_cka(first: Tensor, second: Tensor, digits: Tensor) -> Array:
    """Give 1 − CKA of two nets' features of the images of a pair."""
    found = []
    for c, d in PAIRS:
        members = (digits == c) | (digits == d)
        found.append(1 - cka(ImageRows(first[members]), ImageRows(second[members])))
    return np.array(found)


def probes(seen: Seen, digits: Sequence[Tensor]) -> Array:
    """Give the accuracy of a ridge classifier between the digits of each pair."""
    scale = seen.rows[0].std(0).clamp(min=1e-6)
    fitted, held_out = ((rows - seen.rows[0].mean(0)) / scale for rows in seen.rows)
    accuracies = []
    for c, d in PAIRS:
        members = [(of == c) | (of == d) for of in digits]
        x, y = fitted[members[0]], (digits[0][members[0]] == c).double() * 2 - 1
        # In the dual form, since there are fewer images of two digits than columns
        gram = x @ x.mT + 0.1 * len(x) * torch.eye(len(x), dtype=x.dtype)
        weights = x.mT @ torch.linalg.solve(gram, y - y.mean())
        scores = held_out[members[1]] @ weights + y.mean()
        accuracies.append(((scores > 0) == (digits[1][members[1]] == c)).double().mean().item())
    return np.array(accuracies)


class Setting(NamedTuple):
    """One A and one B.

    Attributes:
        kind: what A lacks: "merged", "hidden", "unseen" or "control".
        planted: the pair of digits, or the digit; None of controls.
        scores: of every pair of digits, by the method.
        measured: our distinctions.
        areas: under the curve of images that A and B answer differently, by the score of an image.
    """

    kind: str
    planted: Any
    scores: dict[str, Array]
    measured: Distinctions
    areas: dict[str, float]

    def is_first(self, method: str) -> bool:
        """Whether the planted pair is first, and alone there."""
        place, scores = PAIRS.index(self.planted), self.scores[method]
        return bool((scores[place] > np.delete(scores, place)).all())

    def is_called(self) -> bool:
        """Whether the planted pair is called."""
        return any((of.first, of.second) == self.planted for of in self.measured.called)


class Bench:
    """All nets, and what is measured of them.

    Args:
        folder: of MNIST's images.
        seeds: how many plain nets, and how many nets with each lack.
        epochs: of each training.
        first: the first seed.
    """

    def __init__(self, folder: str, seeds: int, epochs: int, first: int) -> None:
        self.images, self.held_out = read_images(folder)
        self.seeds, self.epochs, self.first = seeds, epochs, first
        # At equal distances along the list, which goes class by class
        chosen = torch.linspace(0, len(self.images.digits) - 1, FIT_IMAGES).long()
        self.fitted = Images(*(of[chosen] for of in self.images))
        self.plain = [trained(self.images, epochs, first + number) for number in range(seeds)]

    def accuracy(self, net: nn.Module) -> float:
        """Give a net's accuracy on the test images, in percent."""
        answers = outputs(net, self.held_out.pixels).argmax(1)
        return 100 * (answers == self.held_out.digits).double().mean().item()

    def settings(self, number: int) -> dict[str, list[Setting]]:
        """Measure the settings at each cut whose B is the plain net of this number."""
        seed = 1000 + 20 * (self.first + number)
        lacking: list[tuple[str, Any, nn.Sequential]] = [
            ("merged", pair, trained(with_merged(self.images, pair), self.epochs, seed + place))
            for place, pair in enumerate(MERGED)
        ]
        digit = (self.first + number) % DIGITS
        others = self.images.digits != digit
        seen = Images(self.images.pixels[others], self.images.digits[others])
        lacking.append(("unseen", digit, trained(seen, self.epochs, seed + 10)))
        # Each net is B once; those behind it are references, then controls.
        turned = [self.plain[(number + step) % self.seeds] for step in range(self.seeds)]
        return {
            cut: self.at(layers, kernel, turned, lacking, seed)
            for cut, (layers, kernel) in CUTS.items()
        }

    def at(
        self,
        layers: int,
        kernel: int,
        turned: Sequence[nn.Sequential],
        lacking: Sequence[tuple[str, Any, nn.Sequential]],
        seed: int,
    ) -> list[Setting]:
        """Measure the settings of one B at one cut."""

        def see(net: nn.Sequential) -> Seen:
            return Seen(net, layers, self.fitted, self.held_out)

        target = see(turned[0])
        references = [sent(see(net), target, kernel) for net in turned[1 : 1 + REFERENCES]]
        controls = turned[1 + REFERENCES : 1 + REFERENCES + CONTROLS]
        nets = [*lacking, *(("control", None, net) for net in controls)]
        found = []
        for place, (kind, planted, net) in enumerate(nets):
            source = see(net)
            arriving = sent(source, target, kernel)
            setting = self.measure(kind, planted, source, target, arriving, references)
            found.append(setting)
            # g and B are those of "merged": only A's tail, and with it A's answers, is another.
            if kind != "merged":
                continue
            # The same features, so all but what is measured of A's answers stays
            hidden = with_new_tail(net, layers, self.images, self.epochs, seed + place)
            logits = outputs(hidden, self.held_out.pixels)
            scores = setting.scores | {"confusion": self.confusion(logits, target.logits)}
            areas = self.areas(logits, target.logits, arriving, setting.measured)
            found.append(Setting("hidden", planted, scores, setting.measured, areas))
        return found

    def measure(
        self,
        kind: str,
        planted: Any,
        source: Seen,
        target: Seen,
        arriving: Tensor,
        references: Sequence[Tensor],
    ) -> Setting:
        """Measure one setting by all methods."""
        digits = self.held_out.digits
        measured = measure_distinctions(
            target.logits, arriving, digits, references=references, resamples=0
        )
        rows, of_both = (source.rows[1], target.rows[1]), (self.fitted.digits, digits)
        scores = ranks(measured) | {
            "confusion": self.confusion(source.logits, target.logits),
            "bits between": bits_between(target.logits, arriving, digits),
            "Fisher": fisher(rows[1], digits) - fisher(rows[0], digits),
            "CKA by pair": distance_by_cka(*rows, digits),
            "probes": probes(target, of_both) - probes(source, of_both),
        }
        areas = self.areas(source.logits, target.logits, arriving, measured)
        return Setting(kind, planted, scores, measured, areas)

    def confusion(self, of_a: Tensor, of_b: Tensor) -> Array:
        """Give A's confusions above B's."""
        digits = self.held_out.digits
        return confusions(of_a, digits) - confusions(of_b, digits)

    def areas(
        self, of_a: Tensor, of_b: Tensor, arriving: Tensor, measured: Distinctions
    ) -> dict[str, float]:
        """Give how well scores of images tell those apart that A and B answer differently."""
        other = (of_a.argmax(1) != of_b.argmax(1)).numpy()
        if not other.any():
            return {}
        scores = {
            "margin": measured.margin,
            "confidence": -measured.confidence,
            "bits lost": lost_bits(of_b, arriving).numpy(),
        }
        return {name: auc(of[other].tolist(), of[~other].tolist()) for name, of in scores.items()}


def chance_first(controls: Sequence[Setting], method: str, pair: tuple[int, int]) -> int:
    """Count the controls in which a pair is first."""
    return sum(setting._replace(planted=pair).is_first(method) for setting in controls)


def first_table(settings: Sequence[Setting]) -> None:
    """Print how often the planted pair is the first of 45, and how often it is so by chance."""
    head = [f"{kind} {c}-{d}" for kind in ("plain", "hidden") for c, d in MERGED]
    head += [f"in controls {c}-{d}" for c, d in MERGED]
    print(f"| method | {' | '.join(head)} |\n|---|{'---:|' * len(head)}")
    controls = [of for of in settings if of.kind == "control"]
    for method in (*OURS, *RIVALS):
        cells = []
        for kind, pair in itertools.product(("merged", "hidden"), MERGED):
            of_pair = [of for of in settings if of.kind == kind and of.planted == pair]
            cells.append(f"{sum(of.is_first(method) for of in of_pair)} of {len(of_pair)}")
        cells += [f"{chance_first(controls, method, pair)} of {len(controls)}" for pair in MERGED]
        print(f"| {method} | {' | '.join(cells)} |")


def call_table(settings: Sequence[Setting]) -> None:
    """Print how often pairs are called."""
    print("| A | planted pair called | other pairs called, mean | any call |\n|---|---:|---:|---:|")
    groups = [(f"merged {c}-{d}", "merged", (c, d)) for c, d in MERGED]
    for name, kind, pair in [*groups, ("control", "control", None)]:
        chosen = [of for of in settings if of.kind == kind and of.planted == pair]
        planted = sum(of.is_called() for of in chosen)
        others = np.mean([len(of.measured.called) for of in chosen]) - planted / len(chosen)
        some = sum(bool(of.measured.called) for of in chosen)
        first = f"{planted} of {len(chosen)}" if pair else "–"
        print(f"| {name} | {first} | {others:.1f} | {some} of {len(chosen)} |")


def unseen_lines(settings: Sequence[Setting]) -> None:
    """Print how often the digit that A never saw is the first of the classes."""
    unseen = [of for of in settings if of.kind == "unseen"]
    kinds: dict[str, Callable[[Any], float]] = {
        "effect less references": lambda of: of.effect_beyond_references,
        "effect": lambda of: of.effect,
        "bits lost less references": lambda of: of.lost_beyond_references,
        "bits lost": lambda of: of.lost_bits.value,
    }
    counts = []
    for name, value in kinds.items():
        hits = sum(max(of.measured.classes, key=value).label == of.planted for of in unseen)
        counts.append(f"{name} {hits}")
    print(f"Unseen digit first of ten, of {len(unseen)}: {', '.join(counts)}.")


def area_table(settings: Sequence[Setting]) -> None:
    """Print the areas under the curve, and the interval of the margin's above the confidence's."""
    head = ("A", "margin", "confidence", "bits lost", "margin − confidence", "margin better")
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for kind in ("merged", "hidden", "unseen", "control"):
        areas = [of.areas for of in settings if of.kind == kind and of.areas]
        means = [np.mean([of[name] for of in areas]) for name in head[1:4]]
        more = np.array([of["margin"] - of["confidence"] for of in areas])
        # Student's interval of a mean of independent settings
        half = students_t.ppf(0.975, len(more) - 1) * more.std(ddof=1) / len(more) ** 0.5
        cells = [f"{mean:.3f}" for mean in means]
        ends = f"{more.mean():+.3f} [{more.mean() - half:+.3f}, {more.mean() + half:+.3f}]"
        print(f"| {kind} | {' | '.join(cells)} | {ends} | {(more > 0).sum()} of {len(more)} |")


def published(data: Path) -> None:
    """Print what is called of published nets."""
    (fitted, labels_of_fitted), (held_out, labels) = (
        zoo.pictures(data / "CIFAR10_mini", split, count)
        for split, count in (("train", ZOO_FIT), ("val", ZOO_HELD))
    )

    def see(net: zoo.Staged, cut: int, how: Any) -> Seen:
        layers = nn.Sequential(*net.stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc)
        both = [
            Images(zoo.normalised(pixels, how), of)
            for pixels, of in ((fitted, labels_of_fitted), (held_out, labels))
        ]
        return Seen(layers, cut, *both)

    def measured(target: Seen, senders: Sequence[Seen], images: Any = slice(None)) -> Distinctions:
        arriving = [sent(one, target, 1)[images] for one in senders]
        return measure_distinctions(
            target.logits[images], arriving[0], labels[images], references=arriving[1:]
        )

    depths = (56, 20, 32, 44)
    endings = {20: "12fca82f", 32: "d509ac18", 44: "014dd654", 56: "4bfd9763"}
    folder = data / "zoo" / "resnet_cifar"
    resnets = [zoo.load_resnet(folder / f"resnet{of}-{endings[of]}.th", of) for of in depths]
    print(f"\n## Published nets, {len(labels):,} held-out images\n")
    for cut in (2, 3):
        target, *senders = (see(net, cut, zoo.IMAGENET) for net in resnets)
        both = measured(target, senders)
        calls = [
            f"{of.first}-{of.second}: L {of.loss.value:.3f} [{of.loss.low:.3f}, {of.loss.high:.3f}],"
            f" e {of.beyond_references:+.3f}"
            for of in both.called
        ]
        halves = []
        for parity in (0, 1):
            half = measured(target, senders, torch.arange(len(labels)) % 2 == parity)
            halves.append(ranks(half))
        rank = {name: spearmanr(*(of[name] for of in halves)).statistic for name in OURS}
        print(
            f"ResNet-20 → 56 behind stage {cut}, 1×1, references ResNet-32 and 44:"
            f" {len(calls)} pairs called{': ' if calls else ''}{'; '.join(calls)}. Rank correlation"
            f" of two halves of the images: L {rank['tail gap']:.2f},"
            f" t {rank['tail gap less references']:.2f}.\n"
        )
    tiny = [zoo.load_tiny(data / "zoo" / "tiny10" / f"seed{n}.pt") for n in range(TINY_SEEDS)]
    for cut in (6, 8):
        seen = [see(net, cut, zoo.CIFAR) for net in tiny]
        called = []
        for first in range(TINY_SEEDS):
            target, *senders = (seen[(first + step) % TINY_SEEDS] for step in range(2 + REFERENCES))
            called.append(len(measured(target, senders).called))
        print(
            f"tiny10, behind stage {cut}: {sum(map(bool, called))} of {TINY_SEEDS} settings of one"
            f" recipe with any call, {sum(called)} calls in all.\n"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="MNIST's images, with train and test; or of --zoo")
    parser.add_argument("--zoo", action="store_true", help="ask published nets alone")
    parser.add_argument("--seeds", type=int, default=6, help="plain nets; 6 or more")
    parser.add_argument("--epochs", type=int, default=3, help="of each training")
    parser.add_argument("--turns", type=int, help="how many of them are B; default: all")
    parser.add_argument("--first", type=int, default=0, help="seed")
    args = parser.parse_args(argv)
    if args.seeds <= REFERENCES + CONTROLS:
        parser.error(f"--seeds must be above {REFERENCES + CONTROLS}")
    machine, began = ran_on(__file__, argv, "torch", "numpy"), time.process_time()
    if args.zoo:
        published(Path(args.folder))
        print(f"{time.process_time() - began:.0f} CPU seconds. {machine}")
        return
    bench = Bench(args.folder, args.seeds, args.epochs, args.first)
    accuracies = [bench.accuracy(net) for net in bench.plain]
    settings: dict[str, list[Setting]] = {cut: [] for cut in CUTS}
    for number in range(args.turns or args.seeds):
        for cut, of_turn in bench.settings(number).items():
            settings[cut] += of_turn
    print("# Known differences\n")
    print(
        f"{args.seeds} plain nets of {min(accuracies):.1f} to {max(accuracies):.1f} % right on"
        f" {len(bench.held_out.digits):,} test images; g fitted to {FIT_IMAGES:,}."
    )
    for cut, (_, kernel) in CUTS.items():
        print(f"\n## {cut.capitalize()} cut, g of {kernel}×{kernel}\n")
        print("Is the planted pair the first of 45?\n")
        first_table(settings[cut])
        print("\nCalls, by three reference nets:\n")
        call_table(settings[cut])
        print()
        unseen_lines(settings[cut])
        print("\nAreas under the curve, for images that A and B answer differently:\n")
        area_table(settings[cut])
    print(f"\n{time.process_time() - began:.0f} CPU seconds. {machine}")


if __name__ == "__main__":
    main()
