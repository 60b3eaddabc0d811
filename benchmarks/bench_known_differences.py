"""Known differences: a lack is planted into net A; is it the first that is named, and is nothing named
where nothing was planted?

    OMP_NUM_THREADS=1 python -m benchmarks.bench_known_differences $KC_REAL_DATA/MNIST_mini

Nets of 24,170 parameters learn MNIST; B is plain, and `benchmarks.planted_nets` says what A lacks. Of
the digits 3-5 and 4-9 are difficult to tell apart, 0-1 and 6-7 easy. *Hidden* lacks lie in A's
features, but not in its answers. Controls are plain nets. Plain nets serve in turns as B, as three
reference nets and as two controls; so settings share nets. How often anything is called of nets of one
recipe is counted over every choice of B, A and three references besides. Mirror images are told by B's of twenty
classes alone, with references and controls of their own kind.

g is the linear reference, 3×3 at the middle cut and 1×1 at the late one, fitted to training images.
All is measured on the test images. `benchmarks.rivals` has the other methods. The class of a lack
that is about one digit is ranked by the least-squares effect of each digit on the scores of its pairs.

Nets and a JSON line for each setting stay in --work, so that an interrupted run goes on. Prints
Markdown, every loss included.

    python -m benchmarks.bench_known_differences $KC_REAL_DATA --zoo    # zoo/ and CIFAR10_mini/ lie in it

asks published nets behind their last stage and the one before: ResNet-56 is B, ResNet-20 is A, and
ResNet-32 and 44 are the references; then nets of one recipe, where any call is a false one.
"""

import argparse
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from scipy.stats import t as students_t
from torch import Tensor, nn

from benchmarks import rivals, zoo
from benchmarks.bench_similarity import auc
from benchmarks.machine import ran_on
from benchmarks.planted_nets import (
    CUTS,
    DIGITS,
    MERGED,
    Images,
    PlantedNets,
    outputs,
    read_images,
    with_mirrored,
)
from consistency.class_gaps import (
    Distinctions,
    class_effects,
    class_gaps,
    hold_against_references,
    measure_distinctions,
)
from consistency.knowledge import lost_bits
from consistency.permutation import Regression
from consistency.similarity import image_rows

Array = NDArray[Any]

REFERENCES, CONTROLS = 3, 2  # of each B
FIT_IMAGES = 1000  # of the training images
ZOO_FIT, ZOO_HELD = 200, 100  # images of each class
TINY_SEEDS = 10  # nets of one published recipe
OURS = ("tail gap less references", "tail gap")
OF_DIGIT = ("unseen", "random", "shortcut")


class Seen:
    """What a net makes of the images at a cut.

    Attributes:
        tail: behind the cut.
        fitted: its feature of the images that g is fitted to.
        held_out: of those that it is judged on.
        logits: its answers to these.
        rows: both features, a row an image.
    """

    def __init__(self, net: nn.Sequential, cut: int, fitted: Images, held_out: Images) -> None:
        self.tail = net[cut:]
        self.fitted, self.held_out = (
            outputs(net[:cut], images.pixels) for images in (fitted, held_out)
        )
        self.logits = outputs(self.tail, self.held_out)
        self.rows = [image_rows(of) for of in (self.fitted, self.held_out)]

    @cached_property
    def described(self) -> rivals.Described:
        """Its features in the words of dictionaries."""
        return rivals.Described(self.fitted.mean((2, 3)), self.held_out.mean((2, 3)))


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


def losses_of(target: Tensor, arriving: Sequence[Tensor], labels: Tensor) -> tuple[Array, Array]:
    """Give the pairs of classes that B tells apart, (P, 2), and L of each sender, (senders, P)."""
    measured = measure_distinctions(target, arriving[0], labels, resamples=0)
    pairs = np.array(sorted((of.first, of.second) for of in measured.pairs))
    classes = labels.unique()
    gap, *sent_gaps = (
        class_gaps(of.double(), labels, classes)[0][pairs[:, 0], pairs[:, 1]]
        for of in (target, *arriving)
    )
    return pairs, np.stack([1 - of / gap for of in sent_gaps])


def false_calls(losses: Array, classes: int) -> tuple[int, int]:
    """Count the choices of A and three references among senders of one recipe, and those with a call.

    Args:
        losses: L of each sender, (senders, P).
        classes: of which the pairs are.
    """
    relative = losses - np.median(losses, axis=1, keepdims=True)
    calls = choices = 0
    for sender in range(len(losses)):
        others = [of for of in range(len(losses)) if of != sender]
        for references in itertools.combinations(others, REFERENCES):
            tests = hold_against_references(relative[[sender, *references]], classes)
            calls += bool(tests["called"].any())
            choices += 1
    return choices, calls


def rival_scores(
    source: Seen, target: Seen, arriving: Tensor, both: tuple[Tensor, Tensor], classes: int
) -> dict[str, list[float]]:
    """Score every pair of classes by each rival.

    Args:
        source: A.
        target: B.
        arriving: B's answers to g(x).
        both: classes of the fitted and of the held-out images.
        classes: how many.
    """
    labels, pairs = both[1], rivals.pairs_of(classes)
    rows = source.rows[1], target.rows[1]

    def more(of: Callable[[Seen], Array]) -> Array:
        return of(target) - of(source)

    scores = {
        "bits between": rivals.bits_between(target.logits, arriving, labels, pairs),
        "Fisher": more(lambda seen: rivals.fisher(seen.rows[1], labels, pairs)),
        "CKA by pair": rivals.distance_by_cka(*rows, labels, pairs),
        "probes": more(lambda seen: rivals.probes(seen.rows, both, pairs)),
        "k-means": more(lambda seen: rivals.grouped_apart(seen.described.groups, labels, pairs)),
        "NMF": more(lambda seen: rivals.held_apart(seen.described.parts, labels, pairs)),
        "sparse autoencoder": more(
            lambda seen: rivals.held_apart(seen.described.codes, labels, pairs)
        ),
        "RDX": rivals.grouped_by_rdx(
            source.held_out.mean((2, 3)), target.held_out.mean((2, 3)), labels, pairs
        ),
    }
    if source.logits.shape == target.logits.shape:
        scores["confusion"] = confusion(source.logits, target.logits, labels)
    return {name: np.round(of, 5).tolist() for name, of in scores.items()}


def confusion(of_a: Tensor, of_b: Tensor, labels: Tensor) -> Array:
    """Give A's confusions above B's."""
    pairs = rivals.pairs_of(of_b.shape[1])
    return rivals.confusions(of_a, labels, pairs) - rivals.confusions(of_b, labels, pairs)


def areas(of_a: Tensor, of_b: Tensor, arriving: Tensor) -> dict[str, float]:
    """Give how well scores of images tell those apart that A and B answer differently."""
    answers = of_b.argmax(1)
    other = (of_a.argmax(1) != answers).numpy()
    if not other.any():
        return {}
    best_other = arriving.scatter(1, answers[:, None], -torch.inf).amax(1)
    margin = best_other - arriving.gather(1, answers[:, None])[:, 0]
    scores = {
        "margin": margin,
        "confidence": -of_b.softmax(1).amax(1),
        "bits lost": lost_bits(of_b, arriving),
    }
    return {
        name: auc(of[other].tolist(), of[~other].tolist())
        for name, of in ((name, of.double().numpy()) for name, of in scores.items())
    }


class Setting:
    """One A and one B at one cut, of a line.

    Attributes:
        kind: what A lacks: "merged", "hidden", one of `OF_DIGIT`, "mirrored", or "control", of twenty
            classes "control of twenty".
        planted: the pair of digits, or the digit; None elsewhere.
        pairs: all of the classes.
        scores: of these, by the method; −∞ where B does not tell a pair apart.
        calls: whether each pair is called.
        areas: under the curve of images that A and B answer differently, by the score of an image.
    """

    def __init__(self, line: Mapping[str, Any]) -> None:
        self.cut, self.kind, self.areas = line["cut"], line["kind"], line["areas"]
        planted = line["planted"]
        self.planted = tuple(planted) if isinstance(planted, list) else planted
        self.pairs = rivals.pairs_of(line["classes"])
        losses = np.array(line["losses"])
        relative = losses - np.median(losses, axis=1, keepdims=True)
        tests = hold_against_references(relative, len(np.unique(line["pairs"])))
        places = [self.pairs.index(tuple(pair)) for pair in line["pairs"]]
        self.calls = np.zeros(len(self.pairs), dtype=bool)
        self.calls[places] = tests["called"]
        self.scores = {name: np.array(of) for name, of in line["scores"].items()}
        for name, values in zip(OURS, (tests["t"], relative[0])):
            self.scores[name] = np.full(len(self.pairs), -np.inf)
            self.scores[name][places] = values

    def is_first(self, method: str, pair: tuple[int, int] | None = None) -> bool:
        """Whether a pair, or else the planted one, is first by a method, and alone there."""
        place, scores = self.pairs.index(pair or self.planted), self.scores[method]
        return bool((scores[place] > np.delete(scores, place)).all())

    def first_digit(self, method: str) -> int:
        """Give the digit of the largest effect on the scores of its pairs."""
        scores = self.scores[method]
        there = np.isfinite(scores)
        first, second = np.array(self.pairs)[there].T
        return int(np.nanargmax(class_effects(scores[there], first, second, DIGITS)))

    def mirror_area(self, method: str) -> float:
        """Give how well scores tell the pairs of a digit and its mirror image from the others."""
        scores, is_mirror = self.scores[method], np.array([d == c + DIGITS for c, d in self.pairs])
        there = np.isfinite(scores)
        return auc(scores[there & is_mirror].tolist(), scores[there & ~is_mirror].tolist())


class Bench:
    """What is measured, a setting at a time.

    Args:
        folder: of MNIST's images.
        work: where nets and lines stay.
        seeds: how many plain nets there are, each of which serves as B.
        epochs: of each training.
    """

    def __init__(self, folder: Path, work: Path, seeds: int, epochs: int) -> None:
        (work / "nets").mkdir(parents=True, exist_ok=True)
        self.images, self.held_out = read_images(folder)
        self.nets = PlantedNets(self.images, work / "nets", epochs)
        self.seeds, self.file = seeds, work / "settings.jsonl"
        self.of_senders = work / "senders.jsonl"
        # At equal distances along the list, which goes class by class
        chosen = torch.linspace(0, len(self.images.digits) - 1, FIT_IMAGES).long()
        self.fitted = Images(*(of[chosen] for of in self.images))
        lines = self.file.read_text().splitlines() if self.file.is_file() else []
        self.lines = {line["name"]: line for line in map(json.loads, lines)}

    def accuracy(self, number: int) -> float:
        """Give a plain net's accuracy on the test images, in percent."""
        answers = outputs(self.nets.plain(number), self.held_out.pixels).argmax(1)
        return 100 * (answers == self.held_out.digits).double().mean().item()

    def settings(self, turns: int, mirrors: int) -> list[Setting]:
        """Measure all settings, or read those that are there.

        Args:
            turns: how many plain nets serve as B.
            mirrors: how many nets of twenty classes do.
        """
        for number in range(turns):
            for cut in CUTS:
                self.of_plain(number, cut)
        for number in range(mirrors):
            for cut in CUTS:
                self.of_mirrors(number, cut, mirrors)
        return [Setting(line) for line in self.lines.values()]

    def controls(self, cut: str) -> list[tuple[int, int]]:
        """Give of each B the choices of A and references among the other plain nets, and the calls."""
        layers, kernel = CUTS[cut]
        lines = self.of_senders.read_text().splitlines() if self.of_senders.is_file() else []
        known = {(line["cut"], line["number"]): line for line in map(json.loads, lines)}
        counts, seen = [], dict[int, Seen]()
        for number in range(self.seeds):
            if (cut, number) not in known:
                for of in set(range(self.seeds)) - set(seen):
                    seen[of] = Seen(self.nets.plain(of), layers, self.fitted, self.held_out)
                target, labels = seen[number], self.held_out.digits
                arriving = [sent(seen[of], target, kernel) for of in seen if of != number]
                pairs, losses = losses_of(target.logits, arriving, labels)
                known[cut, number] = line = {
                    "cut": cut,
                    "number": number,
                    "classes": len(np.unique(pairs)),
                    "losses": losses.round(6).tolist(),
                }
                with self.of_senders.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            line = known[cut, number]
            counts.append(false_calls(np.array(line["losses"]), line["classes"]))
        return counts

    def of_plain(self, number: int, cut: str) -> None:
        """Measure the settings whose B is a plain net."""
        nets, digit = self.nets, number % DIGITS
        # Each net is B once; those behind it are references, then controls.
        turned = [(number + step) % self.seeds for step in range(1 + REFERENCES + CONTROLS)]
        lacking: list[tuple[str, Any, Callable[[], nn.Sequential]]] = [
            ("merged", pair, partial(nets.merged, pair, number)) for pair in MERGED
        ]
        lacking += [(kind, digit, partial(nets.lacking, kind, digit, number)) for kind in OF_DIGIT]
        lacking += [
            (f"control {step}", None, partial(nets.plain, of))
            for step, of in enumerate(turned[1 + REFERENCES :])
        ]
        self.measure(
            f"{cut} {number}",
            cut,
            [partial(nets.plain, of) for of in turned[: 1 + REFERENCES]],
            lacking,
            (self.fitted, self.held_out),
            partial(nets.hidden, number=number, cut=cut),
        )

    def of_mirrors(self, number: int, cut: str, mirrors: int) -> None:
        """Measure the settings whose B tells digits from their mirror images, one of some nets."""
        count, nets = max(mirrors, 1 + REFERENCES + CONTROLS), self.nets
        turned = [(number + step) % count for step in range(1 + REFERENCES + CONTROLS)]
        lacking: list[tuple[str, Any, Callable[[], nn.Sequential]]] = [
            ("mirrored", None, partial(nets.mirrored, number))
        ]
        lacking += [
            (f"control of twenty {step}", None, partial(nets.twenty, of))
            for step, of in enumerate(turned[1 + REFERENCES :])
        ]
        fitted, held_out = (
            with_mirrored(of, as_classes=True) for of in (self.fitted, self.held_out)
        )
        senders = [partial(nets.twenty, of) for of in turned[: 1 + REFERENCES]]
        self.measure(f"{cut} of twenty {number}", cut, senders, lacking, (fitted, held_out))

    def measure(
        self,
        name: str,
        cut: str,
        of_recipe: Sequence[Callable[[], nn.Sequential]],
        lacking: Sequence[tuple[str, Any, Callable[[], nn.Sequential]]],
        images: tuple[Images, Images],
        hidden: Callable[[tuple[int, int]], nn.Sequential] | None = None,
    ) -> None:
        """Measure the settings of one B at one cut that have no line yet.

        Args:
            name: of B and the cut, the beginning of the lines' names.
            cut: of `CUTS`.
            of_recipe: give B and its references.
            lacking: kind, planted and what gives the net, of each A.
            images: to fit to and to judge on.
            hidden: gives the merged net with a new tail.
        """
        names = [f"{name} {kind} {planted}" for kind, planted, _ in lacking]
        if all(of in self.lines for of in names):
            return
        layers, kernel = CUTS[cut]

        def see(give: Callable[[], nn.Sequential]) -> Seen:
            return Seen(give(), layers, *images)

        target = see(of_recipe[0])
        references = [sent(see(give), target, kernel) for give in of_recipe[1:]]
        labels, classes = images[1].digits, target.logits.shape[1]
        for of, (kind, planted, give) in zip(names, lacking):
            if of in self.lines:
                continue
            source = see(give)
            arriving = sent(source, target, kernel)
            pairs, losses = losses_of(target.logits, [arriving, *references], labels)
            both = images[0].digits, labels
            line = {
                "name": of,
                "cut": cut,
                "kind": kind.rstrip(" 0123456789"),
                "planted": planted,
                "classes": classes,
                "pairs": pairs.tolist(),
                "losses": losses.round(6).tolist(),
                "scores": rival_scores(source, target, arriving, both, classes),
                "areas": areas(source.logits, target.logits, arriving),
            }
            if kind == "merged" and hidden is not None:
                # The same features, so all but what is measured of A's answers stays
                answers = outputs(hidden(planted), images[1].pixels)
                of_answers = confusion(answers, target.logits, labels).tolist()
                more = {
                    "name": f"{of} hidden",
                    "kind": "hidden",
                    "scores": line["scores"] | {"confusion": of_answers},
                    "areas": areas(answers, target.logits, arriving),
                }
                self.write(line | more)
            self.write(line)

    def write(self, line: dict[str, Any]) -> None:
        """Keep a line."""
        self.lines[line["name"]] = line
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def chosen(settings: Sequence[Setting], kind: str, planted: Any = None) -> list[Setting]:
    """Choose settings by what A lacks."""
    return [of for of in settings if of.kind == kind and planted in (None, of.planted)]


def methods(settings: Sequence[Setting]) -> list[str]:
    """Name the methods that all of some settings have."""
    return [*OURS, *(name for name in settings[0].scores if name not in OURS)] if settings else []


def rows_of(head: Sequence[str], rows: Iterator[Sequence[str]]) -> None:
    """Print a table in Markdown."""
    print(f"| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()


def first_table(settings: Sequence[Setting]) -> None:
    """Print how often the planted pair is the first of 45, and how often it is so by chance."""
    controls = chosen(settings, "control")
    head = [f"{kind} {c}-{d}" for kind in ("plain", "hidden") for c, d in MERGED]
    head += [f"in controls {c}-{d}" for c, d in MERGED]

    def rows() -> Iterator[Sequence[str]]:
        for method in methods(controls):
            cells = []
            for kind in ("merged", "hidden"):
                for pair in MERGED:
                    group = chosen(settings, kind, pair)
                    cells.append(f"{sum(of.is_first(method) for of in group)} of {len(group)}")
            for pair in MERGED:
                first = sum(of.is_first(method, pair) for of in controls)
                cells.append(f"{first} of {len(controls)}")
            yield [method, *cells]

    print("Is the planted pair the first of 45?\n")
    rows_of(["method", *head], rows())


def call_table(settings: Sequence[Setting]) -> None:
    """Print how often pairs are called."""
    groups = [(f"merged {c}-{d}", chosen(settings, "merged", (c, d))) for c, d in MERGED]
    groups += [(kind, chosen(settings, kind)) for kind in (*OF_DIGIT, "control")]
    groups += [(kind, chosen(settings, kind)) for kind in ("mirrored", "control of twenty")]

    def rows() -> Iterator[Sequence[str]]:
        for name, group in groups:
            if not group:
                continue
            planted = [[_has(of.planted, pair, of.kind) for pair in of.pairs] for of in group]
            hits = [bool((of.calls & np.array(mask)).any()) for of, mask in zip(group, planted)]
            others = np.mean(
                [(of.calls & ~np.array(mask)).sum() for of, mask in zip(group, planted)]
            )
            some = sum(bool(of.calls.any()) for of in group)
            first = "–" if "control" in name else f"{sum(hits)} of {len(group)}"
            yield [name, first, f"{others:.1f}", f"{some} of {len(group)}"]

    print("Calls, by three reference nets:\n")
    head = ["A", "planted called, or a pair of the digit", "other pairs called, mean", "any call"]
    rows_of(head, rows())


def _has(planted: Any, pair: tuple[int, int], kind: str) -> bool:
    """Whether a pair is what was planted, or has the digit that was."""
    if kind == "mirrored":
        return pair[1] == pair[0] + DIGITS
    return planted == pair or planted in pair


def digit_table(settings: Sequence[Setting]) -> None:
    """Print how often the digit that A lacks is the first of ten."""
    controls = chosen(settings, "control")

    def rows() -> Iterator[Sequence[str]]:
        for method in methods(controls):
            cells = []
            for kind in OF_DIGIT:
                group = chosen(settings, kind)
                hits = sum(of.first_digit(method) == of.planted for of in group)
                cells.append(f"{hits} of {len(group)}")
            digit, count = Counter(of.first_digit(method) for of in controls).most_common(1)[0]
            yield [method, *cells, f"{digit}: {count} of {len(controls)}"]

    print("Is the digit that A lacks the first of ten?\n")
    rows_of(["method", *OF_DIGIT, "the most frequent first in controls"], rows())


def mirror_table(settings: Sequence[Setting]) -> None:
    """Print how well a digit and its mirror image are told from the other pairs of twenty classes."""
    group, controls = chosen(settings, "mirrored"), chosen(settings, "control of twenty")
    if not group:
        return

    def rows() -> Iterator[Sequence[str]]:
        for method in methods(group):
            cells = [np.mean([of.mirror_area(method) for of in some]) for some in (group, controls)]
            yield [method, *(f"{cell:.3f}" for cell in cells)]

    print(
        f"Mirror images as classes: area under the curve of their ten of 190 pairs, {len(group)} nets\n"
    )
    rows_of(["method", "A told to ignore them", "controls"], rows())


def area_table(settings: Sequence[Setting]) -> None:
    """Print the areas under the curve, and the interval of the margin's above the confidence's."""
    names = ("margin", "confidence", "bits lost")

    def rows() -> Iterator[Sequence[str]]:
        for kind in ("merged", "hidden", *OF_DIGIT, "control"):
            of_kind = [of.areas for of in chosen(settings, kind) if of.areas]
            if len(of_kind) < 2:
                continue
            means = [np.mean([of[name] for of in of_kind]) for name in names]
            more = np.array([of["margin"] - of["confidence"] for of in of_kind])
            # Student's interval of a mean of independent settings
            half = students_t.ppf(0.975, len(more) - 1) * more.std(ddof=1) / len(more) ** 0.5
            ends = f"{more.mean():+.3f} [{more.mean() - half:+.3f}, {more.mean() + half:+.3f}]"
            better = f"{(more > 0).sum()} of {len(more)}"
            yield [kind, *(f"{mean:.3f}" for mean in means), ends, better]

    print("Areas under the curve, for images that A and B answer differently:\n")
    rows_of(["A", *names, "margin − confidence", "margin better"], rows())


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
            by_pair = {(of.first, of.second): of for of in half.pairs}
            rows = [by_pair[pair] for pair in rivals.pairs_of(DIGITS)]
            halves.append({"L": [of.relative for of in rows], "t": [of.t for of in rows]})
        rank = {name: spearmanr(*(of[name] for of in halves)).statistic for name in "Lt"}
        print(
            f"ResNet-20 → 56 behind stage {cut}, 1×1, references ResNet-32 and 44:"
            f" {len(calls)} pairs called{': ' if calls else ''}{'; '.join(calls)}. Rank correlation"
            f" of two halves of the images: L {rank['L']:.2f}, t {rank['t']:.2f}.\n"
        )
    tiny = [zoo.load_tiny(data / "zoo" / "tiny10" / f"seed{n}.pt") for n in range(TINY_SEEDS)]
    for cut in (6, 8):
        seen, counts = [see(net, cut, zoo.CIFAR) for net in tiny], []
        for target in seen:
            arriving = [sent(of, target, 1) for of in seen if of is not target]
            _, losses = losses_of(target.logits, arriving, labels)
            counts.append(false_calls(losses, DIGITS))
        choices, false = map(sum, zip(*counts))
        print(
            f"tiny10, behind stage {cut}: any call in {false:,} of {choices:,} choices of B, A and"
            f" three references, {false / choices:.1%}.\n"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="MNIST's images, with train and test; or of --zoo"
    )
    parser.add_argument("--zoo", action="store_true", help="ask published nets alone")
    parser.add_argument("--work", type=Path, default=Path("runs/known_differences"))
    parser.add_argument("--seeds", type=int, default=10, help="plain nets; 6 or more")
    parser.add_argument("--turns", type=int, help="how many of them are B; default: all")
    parser.add_argument("--mirrors", type=int, default=6, help="nets B of twenty classes; 0: none")
    parser.add_argument("--epochs", type=int, default=3, help="of each training")
    args = parser.parse_args(argv)
    if args.seeds < 1 + REFERENCES + CONTROLS:
        parser.error(f"--seeds must be at least {1 + REFERENCES + CONTROLS}")
    machine, began = ran_on(__file__, argv, "torch", "numpy", "sklearn"), time.process_time()
    if args.zoo:
        published(args.folder)
        print(f"{time.process_time() - began:.0f} CPU seconds. {machine}")
        return
    bench = Bench(args.folder, args.work, args.seeds, args.epochs)
    settings = bench.settings(args.turns or args.seeds, args.mirrors)
    accuracies = [bench.accuracy(number) for number in range(args.seeds)]
    print("# Known differences\n")
    print(
        f"{args.seeds} plain nets of {min(accuracies):.1f} to {max(accuracies):.1f} % right on"
        f" {len(bench.held_out.digits):,} test images; g fitted to {FIT_IMAGES:,}."
    )
    for cut, (_, kernel) in CUTS.items():
        of_cut = [of for of in settings if of.cut == cut]
        print(f"\n## {cut.capitalize()} cut, g of {kernel}×{kernel}\n")
        for table in (first_table, call_table, digit_table, mirror_table, area_table):
            table(of_cut)
        choices, calls = map(sum, zip(*bench.controls(cut)))
        print(f"Any call of plain nets: {calls:,} of {choices:,} choices, {calls / choices:.1%}.\n")
    print(f"{time.process_time() - began:.0f} CPU seconds. {machine}")


if __name__ == "__main__":
    main()
