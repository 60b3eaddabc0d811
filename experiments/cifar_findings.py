"""Decide the paper's findings on the CIFAR-10 nets, by intervals over nets.

    python -m experiments.cifar_findings runs [--markdown FILE] [--figure FILE.png]

Reads RUN/compare/*/compare.json and the tuned tails of RUN/results, which experiments/cifar_run.sh
wrote. Every number is of some seeds; its interval is the delete-one jackknife's over these seeds
with Student's t, so that it says what other seeds of the recipe would give. The images are held as
they are, 5,000 test images that judge (tails: 3,000), each of them one of all nets. Beside a
verdict stands the power: the difference that so many seeds would show in four of five runs, and for
what cannot be said the number of seeds that the difference seen would take.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from consistency.bootstrap import Interval, Verdict, verdict
from utils import checkpoint
from utils.command import command
from utils.errors import InputError
from utils.files import read_json, replacing, write_text
from utils.later import matplotlib
from utils.parser import Parser, result_file, some_path, whole
from utils.report.charts import CURVES
from utils.report.tables import markdown_table

Array = NDArray[np.float64]
CONFIDENCE, POWER = 0.95, 0.8
TUNED = ("4.1", "4.3")  # sections that tune tails
MOST_SEEDS = 1000  # a difference that takes more is none
LEVELS = ("0.8", "1.6")
# Places of seeds → a number for each layer (L,), or one number (1,)
Row = Callable[[list[int]], Array]


@dataclass(frozen=True)
class Estimate:
    """A number of some seeds.

    Attributes:
        value: of all seeds.
        error: its standard error over seeds.
        seeds: how many.
    """

    value: float
    error: float
    seeds: int

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends, at `CONFIDENCE`."""
        reach = self.error * stats.t.ppf((1 + CONFIDENCE) / 2, self.seeds - 1)
        return self.value - reach, self.value + reach

    def interval(self) -> Interval:
        """Give it in the words of the other statistics."""
        low, high = self.ends
        return Interval(self.value, low, high, CONFIDENCE, "jackknife", 0, ("nets",), True, "")

    def text(self, form: str) -> str:
        """Write it with its interval: "0.56 [0.55, 0.57]"."""
        low, high = self.ends
        return f"{self.value:{form}} [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True)
class Finding:
    """A difference that the paper says is above 0.

    Attributes:
        section: of the paper.
        says: the claim.
        where: the layer, or what was measured.
        difference: the number that is claimed to be larger, less the other.
        form: of its numbers.
    """

    section: str
    says: str
    where: str
    difference: Estimate
    form: str = "+.3f"

    @property
    def verdict(self) -> Verdict:
        """See `consistency.bootstrap.verdict`."""
        return verdict(self.difference.interval())

    def power(self) -> str:
        """Say which difference these seeds would show, and what an undecided one would take."""
        found = f"{detectable(self.difference.error, self.difference.seeds):{self.form[1:]}}"
        if self.verdict == "cannot be said":
            needed = seeds_needed(self.difference)
            found += f"; {needed:,} seeds" if needed else f"; more than {MOST_SEEDS:,} seeds"
        return found


def jackknife(statistic: Row, seeds: int) -> list[Estimate]:
    """Estimate numbers and their standard errors by leaving out each seed in turn.

    Args:
        statistic: places of seeds → numbers (K,).
        seeds: how many there are, at least 2.

    Returns:
        K estimates; error² = (n − 1)/n Σ (θ₍ᵢ₎ − mean θ₍ᵢ₎)² (Efron and Stein 1981).
    """
    every = list(range(seeds))
    values = statistic(every)
    left_out = np.stack([statistic([i for i in every if i != out]) for out in every])
    errors = np.sqrt((seeds - 1) / seeds * ((left_out - left_out.mean(0)) ** 2).sum(0))
    return [Estimate(float(value), float(error), seeds) for value, error in zip(values, errors)]


def mean_of(values: Iterable[Array | float]) -> Row:
    """Average numbers that each seed has of its own, (L,) or one number each."""
    table = np.stack([np.atleast_1d(value) for value in values])
    return lambda seeds: table[seeds].mean(0)


def less(larger: Row, smaller: Row) -> Row:
    """Subtract, of the same seeds."""
    return lambda seeds: larger(seeds) - smaller(seeds)


def detectable(error: float, seeds: int) -> float:
    """Give the difference whose interval lies above 0 in `POWER` of all runs with so many seeds."""
    return float(error * sum(stats.t.ppf(((1 + CONFIDENCE) / 2, POWER), seeds - 1)))


def seeds_needed(difference: Estimate) -> int | None:
    """Give the number of seeds that would show a difference as large as the one seen."""
    for seeds in range(difference.seeds, MOST_SEEDS + 1):
        error = difference.error * math.sqrt(difference.seeds / seeds)
        if detectable(error, seeds) <= abs(difference.value):
            return seeds
    return None


class Atlas:
    """Consistencies of all ordered pairs of nets at three layers.

    Args:
        path: compare.json of more than two nets.

    Attributes:
        layers: their names.
        forth: (L, M, M); [l, i, j] is the share of net j's feature, beyond its class, that net i's
            gives.
        accuracy: top-1 in percent on the images that judge, by net.
    """

    def __init__(self, path: Path) -> None:
        self.path, result = path, read_json(path)
        atlas = result["atlas"]
        self.layers: list[str] = atlas["layers"]
        self.forth = np.array(atlas["forth"], dtype=float)  # None of a net with itself: NaN
        self.places = {name: place for place, name in enumerate(atlas["names"])}
        self.accuracy = {
            net["name"]: net["top1_percent"]["value"]
            for net in result["nets"]
            if net["top1_percent"]  # None where a net has other classes than the images
        }

    def of(self, source: str, target: str) -> Array:
        """Give the consistency of one net → another at each layer, (L,).

        Raises:
            InputError: a net is not in the comparison.
        """
        for name in (source, target):
            if name not in self.places:
                raise InputError(f"{self.path} has no net {name}; --seeds says how many there are")
        return self.forth[:, self.places[source], self.places[target]]

    def mean(self, pairs: Sequence[tuple[str, str]], *, shared: bool = False) -> Array:
        """Average over pairs, (L,); `shared` takes the smaller of both ways of each."""
        ways = [self.of(*pair) for pair in pairs]
        if shared:
            ways = [np.minimum(way, self.of(*pair[::-1])) for way, pair in zip(ways, pairs)]
        return np.mean(ways, axis=0)


def net(seed: int, kind: str = "", data: str = "CIFAR10") -> str:
    """Name a net as compare.json does."""
    return f"{data}_resnet20_sd{seed}{kind and '_' + kind}"


def pairs_of(seeds: Sequence[int], first: str = "", second: str = "") -> list[tuple[str, str]]:
    """List the pairs of two different seeds, each net of its kind."""
    return [(net(i, first), net(j, second)) for i in seeds for j in seeds if i != j]


def both_halves(
    seeds: Sequence[int], *, other_data: bool, other_seed: bool
) -> list[tuple[str, str]]:
    """List the pairs of nets that differ in their half of the images, in their seed, or in both."""
    return [
        (net(i, f"50par_{half}"), net(j, f"50par_{'BA'['AB'.index(half)] if other_data else half}"))
        for i in seeds
        for j in seeds
        for half in "AB"
        if (i != j) == other_seed
    ]


@dataclass
class Results:
    """What a run has.

    Attributes:
        folder: of the run.
        seeds: how many.
        numbers: of the table of numbers: section, what, and one estimate a layer (or one number).
        findings: decided claims.
    """

    folder: Path
    seeds: int
    numbers: list[tuple[str, str, list[Estimate]]]
    findings: list[Finding]

    def atlas(self, name: str) -> Atlas | None:
        """Read a comparison, None where it is not there."""
        path = self.folder / "compare" / name / "compare.json"
        return Atlas(path) if path.exists() else None

    def add(
        self,
        section: str,
        rows: Mapping[str, Row],
        claims: Sequence[tuple[str, str, str]],
        where: Sequence[str],
        form: str = "+.3f",
    ) -> None:
        """Estimate numbers by layer, and decide differences between them.

        Args:
            section: of the paper.
            rows: by name: seeds → a number at each place, (L,).
            claims: what is said, the row that is claimed to be larger, and the other.
            where: names of the places.
            form: of differences.
        """
        for name, row in rows.items():
            self.numbers.append((section, name, jackknife(row, self.seeds)))
        for says, larger, smaller in claims:
            of = jackknife(less(rows[larger], rows[smaller]), self.seeds)
            self.findings += [
                Finding(section, says, place, estimate, form) for place, estimate in zip(where, of)
            ]


def stability(results: Results) -> None:
    """Sec. 4.2: seeds, depth, and two halves of the images."""
    if atlas := results.atlas("seeds"):
        layers = atlas.layers

        def shared(seeds: list[int]) -> Array:
            return atlas.mean(pairs_of(seeds), shared=True)

        results.numbers.append(("4.2", "shared by two seeds", jackknife(shared, results.seeds)))
        falls = jackknife(lambda seeds: -np.diff(shared(seeds)), results.seeds)
        says = "a deeper layer is less consistent"
        results.findings += [
            Finding("4.2", says, f"{shallow} over {deep}", fall)
            for shallow, deep, fall in zip(layers, layers[1:], falls)
        ]
    if halves := results.atlas("halves"):
        kinds = {
            "shared by two seeds of one half": {"other_data": False, "other_seed": True},
            "by the two halves, one seed": {"other_data": True, "other_seed": False},
            "by the two halves, two seeds": {"other_data": True, "other_seed": True},
        }

        def of(kind: Mapping[str, bool]) -> Row:
            return lambda seeds: halves.mean(both_halves(seeds, **kind), shared=True)

        rows = {name: of(kind) for name, kind in kinds.items()}
        same, other, _ = rows
        says = "other images cost more consistency than another seed"
        results.add("4.2", rows, [(says, same, other)], halves.layers)


def compression(results: Results) -> None:
    """Sec. 4.4: what pruned nets lack of the original."""
    atlases = [results.atlas(f"compressed_sd{seed}") for seed in range(results.seeds)]
    of_seed = [atlas for atlas in atlases if atlas]
    if len(of_seed) < results.seeds:
        return
    kinds = {level: f"pruned{level}-{level}" for level in LEVELS}
    rows = {
        f"lacked at {level} std": mean_of(
            1 - atlas.of(net(seed, kind), net(seed)) for seed, atlas in enumerate(of_seed)
        )
        for level, kind in kinds.items()
    }
    claims = [
        (f"{high} std discards more than {low}", f"lacked at {high} std", f"lacked at {low} std")
        for low, high in pairwise(LEVELS)
    ]
    results.add("4.4", rows, claims, of_seed[0].layers)
    accuracies = {
        f"accuracy at {level} std, %": mean_of(
            atlas.accuracy[net(seed, kind)] for seed, atlas in enumerate(of_seed)
        )
        for level, kind in {"0": "", **kinds}.items()
    }
    results.add("4.4", accuracies, [], [])


def diagnosis(results: Results) -> None:
    """Sec. 4.1: a weak net and a strong one, both ways, and tails that were tuned on both."""
    if atlas := results.atlas("weak"):
        seeds = range(results.seeds)
        blind, unreliable, reference = (
            "blind spots: of the strong net's, the weak one lacks",
            "unreliable: of the weak net's, the strong one lacks",
            "reference: of a strong net's, another strong one lacks",
        )
        rows = {
            blind: mean_of(1 - atlas.of(net(seed, "short"), net(seed)) for seed in seeds),
            unreliable: mean_of(1 - atlas.of(net(seed), net(seed, "short")) for seed in seeds),
            reference: lambda some: 1 - atlas.mean(pairs_of(some)),
        }
        claims = [
            ("a weak net has more blind spots than a strong one", blind, reference),
            ("blind spots outweigh unreliable features", blind, unreliable),
        ]
        results.add("4.1", rows, claims, atlas.layers)
    tails(
        results,
        "4.1",
        "diagnosis",
        {
            "raw": "weak net's tail on its raw feature",
            "residual_added": "the same, blind spots added",
            "noise_added": "control: noise of their size",
            "raw_B": "control: the strong net's feature",
            "reliable": "unreliable features removed",
        },
        [
            ("better with the blind spots", "residual_added", "raw"),
            ("better with the blind spots than with noise", "residual_added", "noise_added"),
            ("better without unreliable features", "reliable", "raw"),
        ],
    )


def generations(results: Results) -> None:
    """Sec. 4.5: born-again nets, generations 0 to 2."""
    atlas = results.atlas("generations")
    if atlas is None:
        return
    seeds = range(results.seeds)
    old, teacher, other = (
        "of generation 2's, generation 0 lacks",
        "of generation 2's, generation 1 lacks",
        "reference: generation 1 of another series",
    )
    rows = {
        old: mean_of(1 - atlas.of(net(seed), net(seed, "gen2")) for seed in seeds),
        teacher: mean_of(1 - atlas.of(net(seed, "gen1"), net(seed, "gen2")) for seed in seeds),
        other: lambda some: 1 - atlas.mean(pairs_of(some, "gen1", "gen2")),
    }
    claims = [
        ("blind spots fall from generation to generation", old, teacher),
        ("a teacher hands on more than its generation has anyway", other, teacher),
    ]
    results.add("4.5", rows, claims, atlas.layers)
    accuracies = {
        f"accuracy of generation {number}, %": mean_of(
            atlas.accuracy[net(seed, kind)] for seed in seeds
        )
        for number, kind in enumerate(("", "gen1", "gen2"))
    }
    first, second, third = accuracies
    claims = [
        ("generation 1 is better than 0", second, first),
        ("generation 2 is better than 1", third, second),
    ]
    results.add("4.5", accuracies, claims, ["accuracy, points"], "+.2f")


def refinement(results: Results) -> None:
    """Sec. 4.3: a tail on what two nets share."""
    tails(
        results,
        "4.3",
        "refinement",
        {
            "raw_A": "A's tail on its raw feature",
            "raw_B": "B's tail on its raw feature",
            "100": "B's tail on x(0)",
            "110": "on x(0) + x(1)",
            "111": "on x(0) + x(1) + x(2)",
        },
        [
            ("what is shared is better than A's raw feature", "111", "raw_A"),
            ("what is shared is better than B's raw feature", "111", "raw_B"),
            ("the second order adds to the first", "111", "110"),
        ],
    )


def tasks(results: Results) -> None:
    """Sec. 4.6: ten classes against animals and vehicles."""
    atlas = results.atlas("tasks")
    if atlas is None:
        return

    seeds, two = range(results.seeds), "CIFAR10_two"
    rows = {
        "of the two-class net's, the ten-class one lacks": mean_of(
            1 - atlas.of(net(seed), net(seed, data=two)) for seed in seeds
        ),
        "of the ten-class net's, the two-class one lacks": mean_of(
            1 - atlas.of(net(seed, data=two), net(seed)) for seed in seeds
        ),
    }
    of_two, of_ten = rows
    says = "the fine task holds more of the coarse one's than the other way round"
    results.add("4.6", rows, [(says, of_ten, of_two)], atlas.layers)


def tails(
    results: Results,
    section: str,
    table: str,
    titles: Mapping[str, str],
    claims: Sequence[tuple[str, str, str]],
) -> None:
    """Compare the accuracies of tuned tails, seed by seed."""
    by_kind = {kind: tail_accuracies(results.folder / "results" / table / kind) for kind in titles}
    if any(len(accuracies) != results.seeds for accuracies in by_kind.values()):
        return
    rows = {titles[kind]: mean_of(accuracies) for kind, accuracies in by_kind.items()}
    named = [(says, titles[larger], titles[smaller]) for says, larger, smaller in claims]
    results.add(section, rows, named, ["accuracy, points"], "+.2f")


def tail_accuracies(folder: Path) -> list[float]:
    """Read the accuracies of a kind's tails in percent, in the order of their seeds."""
    paths = sorted(folder.glob("resnet20/*.pth.tar"))
    return [float(checkpoint.load(path, mmap=True)["acc1"]) for path in paths]


SECTIONS = (diagnosis, stability, refinement, compression, generations, tasks)


def lines(results: Results) -> Iterator[str]:
    """Write the verdicts, and the numbers that they come from, as Markdown."""
    counts = {
        word: sum(finding.verdict == word for finding in results.findings)
        for word in ("shows", "does not show", "cannot be said")
    }
    yield (
        f"{len(results.findings)} differences of {results.seeds} seeds each: "
        + ", ".join(f"{count} {word}" for word, count in counts.items())
        + ". Each has a 95 % interval of its own; of so many, one or two exclude 0 by chance."
    )
    header = ["section", "claim", "where", "difference, 95 % over nets", "verdict"]
    header.append("would show; would take")
    body = [
        [
            finding.section,
            finding.says,
            finding.where,
            finding.difference.text(finding.form),
            finding.verdict,
            finding.power(),
        ]
        for finding in results.findings
    ]
    yield markdown_table(header, body, 5)
    header = ["section", "what", "layer1", "layer2", "layer3"]
    body = [
        [
            section,
            what,
            *(one.text(".3f" if len(of) > 1 else ".2f") for one in of),
            *[""] * (3 - len(of)),
        ]
        for section, what, of in results.numbers
    ]
    yield markdown_table(header, body, 2)


def draw(results: Results) -> Any:
    """Draw the numbers by layer, a panel a section, and the tails' and nets' accuracies."""
    by_layer = [entry for entry in results.numbers if len(entry[2]) > 1]
    sections = list(dict.fromkeys(section for section, *_ in by_layer))
    tails = [
        (what, of[0]) for section, what, of in results.numbers if section in TUNED and len(of) == 1
    ]
    rows = math.ceil((len(sections) + bool(tails)) / 2)
    figure = matplotlib.figure.Figure(figsize=(11, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    titles = {
        "4.1": "4.1 A weak net lacks most of what a strong one computes",
        "4.2": "4.2 What two nets share, by depth",
        "4.4": "4.4 What a pruned net lacks of the original",
        "4.5": "4.5 What generation 2 has and older nets lack",
        "4.6": "4.6 Tasks of two and of ten classes",
    }
    for panel in panels[len(sections) :]:
        panel.set_axis_off()
    for panel, section in zip(panels, sections):
        of_section = [entry for entry in by_layer if entry[0] == section]
        for place, ((_, what, of), (colour, marker)) in enumerate(zip(of_section, CURVES)):
            x = np.arange(len(of)) + 0.04 * (place - len(of_section) / 2)
            values = [one.value for one in of]
            reach = [(one.ends[1] - one.ends[0]) / 2 for one in of]
            panel.errorbar(
                x, values, reach, color=colour, marker=marker, markersize=5, label=what, capsize=2
            )
        panel.set_xticks(range(3), [f"stage {number}" for number in (1, 2, 3)])
        panel.set_ylim(bottom=0)
        panel.set_title(titles[section], fontsize=10, loc="left")
        panel.set_ylabel("share of the feature, beyond the class", fontsize=8)
        panel.tick_params(labelsize=8)
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(fontsize=7, frameon=False)
    if tails:
        panel = panels[len(sections)]
        panel.set_axis_on()
        for place, (_, one) in enumerate(tails):
            low, high = one.ends
            panel.errorbar(
                one.value, place, xerr=(high - low) / 2, color=CURVES[0][0], marker="o", capsize=2
            )
        panel.set_yticks(range(len(tails)), [what for what, _ in tails], fontsize=7)
        panel.invert_yaxis()
        panel.set_title(
            "4.1, 4.3 Upper layers tuned on other features: right, %", fontsize=10, loc="left"
        )
        panel.tick_params(axis="x", labelsize=8)
        panel.grid(axis="x", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    return figure


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__, "python -m experiments.cifar_findings runs --figure findings.png")
    parser.add_argument("run", type=some_path, help="folder of experiments/cifar_run.sh")
    parser.add_argument("--seeds", type=whole(2), default=5, help="how many, from 0 on")
    parser.add_argument(
        "--markdown", type=result_file(".md"), metavar="FILE", help="write the tables"
    )
    parser.add_argument(
        "--figure",
        type=result_file(".png", ".svg"),
        metavar="FILE",
        help="draw the numbers: PNG, SVG",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Read the run, print the verdicts, and write what is asked for."""
    args = build_parser().parse_args(argv)
    results = Results(Path(args.run), args.seeds, [], [])
    for section in SECTIONS:
        section(results)
    if not results.findings:
        raise InputError(
            f"{args.run} has no section; run experiments/cifar_run.sh with OUT={args.run}"
        )
    text = "\n\n".join(lines(results)) + "\n"
    print(text)
    if args.markdown:
        write_text(args.markdown, text)
    if args.figure:
        with replacing(args.figure) as file:
            draw(results).savefig(file, format=Path(args.figure).suffix[1:], dpi=150)


if __name__ == "__main__":
    command(main)()
