"""What two nets share at matched layers, in both directions, from features that are at hand.

Of each pair of layers the linear reference is fitted both ways (`consistency.permutation`), with
pairs shuffled within the class (the null) and A → A (the ceiling) beside it. What both nets share
is the smaller consistency of both ways. Where a target's maps are whole, B's tail answers to g(x),
which says how much of what B knows arrives. On request solved Trans-Nets stand beside the linear
reference (`consistency.solved`).

A layer is factorised once for all of its targets. Every direction is kept as soon as it is
computed, so that an interrupted comparison goes on.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistency import several
from consistency.bootstrap import Interval, bootstrap
from consistency.calibration import KINDS, consistency_interval, instability_of, permutations
from consistency.compared import (
    ComparedImages,
    ComparedLayer,
    ComparedNet,
    LinearSource,
    common_size,
    kernel_of,
)
from consistency.compared_distinctions import (
    KeptMaps,
    Kinds,
    distinctions_entry,
    places_and_directions,
)
from consistency.factorised_ridge import take
from consistency.floors import ClassMoments, class_shares
from consistency.knowledge import Knowledge, measure_knowledge
from consistency.permutation import calibrated, permuted_sums
from consistency.shown_channels import ShownChannels, can_be_shown, channel_picture
from consistency.similarity import ImageRows, image_rows, image_similarities
from consistency.solved import NULL, TRUE, SolvedFits, Thorough
from consistency.variance_report import depth_rows
from models.tail import FrozenTail
from utils.errors import InputError
from utils.kept import Kept
from utils.progress import Meter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

VERSION = 2  # of what is kept; a change of what is computed raises it
WAYS = ("forth", "back")
LEAST_CLASSES = 2

Array = NDArray[Any]
State = Mapping[str, Any]


@dataclass(frozen=True)
class Effort:
    """How much is computed.

    Attributes:
        shuffles: pairings within the class whose mean is the null; three differ by some 1e-4.
            0: no null and no ceiling; then class means stand for the null.
        permutations: for the p-value of a direction; 0: none.
        resamples: of the held-out images.
        seed: of all that is drawn.
        similar_images: the most held-out (and fitted) images of which similarities are computed.
        similar_permutations: within the class, for their levels; 0: none.
        knowledge: permutations for what B still knows; None: it is left out.
    """

    shuffles: int = 3
    permutations: int = 0
    resamples: int = 1000
    seed: int = 0
    similar_images: int = 1000
    similar_permutations: int = 19
    knowledge: int | None = 1000


@dataclass
class Work:
    """What keeps results, says how far all is, and notes what each part took.

    Attributes:
        kept: where results stay.
        meter: of the whole command, in FLOPs.
        parts: of the report: name, seconds, whether all of it was there.
    """

    kept: Kept = field(default_factory=lambda: Kept(None))
    meter: Meter = field(default_factory=lambda: Meter("compare", quiet=True))
    parts: list[dict[str, Any]] = field(default_factory=list)

    @contextlib.contextmanager
    def part(self, name: str, *, cached: bool = False) -> Iterator[None]:
        """Note what a block takes."""
        self.meter.note, began = name, time.monotonic()
        yield
        seconds = round(time.monotonic() - began, 3)
        self.parts.append({"name": name, "seconds": seconds, "cached": cached})


def matching(
    first: Sequence[ComparedLayer], second: Sequence[ComparedLayer]
) -> list[tuple[ComparedLayer, ComparedLayer]]:
    """Pair layers by their place.

    Raises:
        InputError: there are none, or other numbers of them.
    """
    if not first or len(first) != len(second):
        raise InputError(
            f"layers are paired by their place, and these are {len(first)} of net A and"
            f" {len(second)} of net B; name as many of both"
        )
    return list(zip(first, second))


def linear_flops(
    x: ComparedLayer, target: ComparedLayer, images: ComparedImages, effort: Effort
) -> float:
    """Estimate what one direction takes, in FLOPs: products of all rows, for each pairing."""
    size, kernel = common_size(x, target), kernel_of(x, target)
    columns = x.held_out.shape[1] * kernel**2
    fitted, held_out = (len(labels) * size[0] * size[1] for labels in images.labels)
    unknowns = min(columns, fitted)  # in the dual form rows take the place of columns
    # Gram matrix, and its factor or eigenvectors
    factor = 4.0 * max(columns, fitted) * unknowns**2 + 20.0 * unknowns**3  # in float64
    # A multiplication and an addition for each row, column and channel
    once = 2.0 * columns * (fitted + held_out)
    # The true pairs, the permuted ones, and shuffled ones, which are judged in two passes.
    pairings = (
        1 + effort.permutations + effort.shuffles * (fitted + 2 * held_out) / (fitted + held_out)
    )
    channels = target.held_out.shape[1]
    ceiling = once * x.held_out.shape[1] if effort.shuffles else 0.0
    return factor + once * channels * pairings + ceiling


def direction_identity(
    x: ComparedLayer, target: ComparedLayer, effort: Effort, **more: Any
) -> dict[str, Any]:
    """Give all that one direction depends on."""
    # What changes similarities alone leaves the regressions as they are.
    how = {name: value for name, value in asdict(effort).items() if not name.startswith("similar")}
    size, kernel = common_size(x, target), kernel_of(x, target)
    features = {"x": x.identity, "target": target.identity, "size": size, "kernel": kernel}
    return {"version": VERSION, **features, **how, **more}


class Watched:
    """What is gathered while the true pairs of the held-out images are predicted.

    Args:
        labels: of the held-out images, (N',).
        mean: of the target's channels over the fitted images, (D,).
        size: of the maps.
        by_class: gather variances within classes.
        tail: maps → penultimate feature, logits; None: nobody answers.
        keeps_maps: keep maps of a few images, for places and directions of channels.
    """

    def __init__(
        self,
        labels: Tensor,
        mean: Tensor,
        size: tuple[int, int],
        *,
        by_class: bool,
        tail: FrozenTail | None,
        keeps_maps: bool = False,
    ) -> None:
        self.labels, self.mean, self.size, self.tail = labels, mean.float(), size, tail
        self.moments = (ClassMoments(), ClassMoments()) if by_class else None
        self.maps = KeptMaps(len(labels)) if keeps_maps else None
        self.answers: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images: slice, target: Tensor, predicted: Tensor) -> None:
        """Add a batch: the target and its prediction about the target's mean, (n, U, D) each."""
        if self.moments:
            for moments, rows in zip(self.moments, (target, target - predicted)):
                # Classes' variances are of the target, and of what is left of it.
                moments.update(rows.mT, self.labels[images])
        if self.tail is None:
            return
        # Regressions are about the channels' means: B's tail takes the features themselves.
        both = {
            name: (rows.mT + self.mean[:, None]).unflatten(2, self.size)  # (n, D, h, w)
            for name, rows in (("B", target), ("g", predicted))
        }
        for name, maps in both.items():
            penultimate, logits = self.tail(maps)
            self.answers.setdefault(f"logits of {name}", []).append(logits.float())
            if penultimate is not None:
                values = penultimate.flatten(1).float()
                self.answers.setdefault(f"penultimate of {name}", []).append(values)
        if self.maps is not None:
            z, sent = (self.answers[f"logits of {name}"][-1] for name in "Bg")
            self.maps.add(images, both["B"], both["g"], z, sent)

    def shares(self) -> dict[str, float | None]:
        """Give the floor, and what is explained between the classes and within them."""
        none = dict.fromkeys(("floor", "between", "within"))
        if self.moments is None:
            return none
        try:
            shares = class_shares(*(moments.variances() for moments in self.moments))
        except InputError:  # no class has two images
            return none
        return {name: finite(getattr(shares, name)) for name in none}

    def knowledge(self, logits_a: Tensor, effort: Effort) -> Knowledge | None:
        """Measure how many bits of B's answers arrive.

        Raises:
            InputError: see `measure_knowledge`.
        """
        if not self.answers:
            return None
        answers = {name: torch.cat(parts) for name, parts in self.answers.items()}
        logits, sent = answers["logits of B"], answers["logits of g"]
        pair = [answers.get(f"penultimate of {name}") for name in "Bg"]
        return measure_knowledge(
            logits,
            sent,
            labels=self.labels,
            penultimate=None if pair[0] is None or pair[1] is None else (pair[0], pair[1]),
            logits_a=logits_a if logits_a.shape == logits.shape else None,
            permutations=effort.knowledge or 0,
            resamples=effort.resamples,
            seed=effort.seed,
        )

    def distinctions(
        self,
        images: ComparedImages,
        effort: Effort,
        kinds: Kinds,
        references: Sequence[Tensor] = (),
        logits_a: Tensor | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Give what a report says of what B tells apart, and g(x) does not carry; and its maps.

        Args:
            images: that both nets saw.
            effort: how much is computed.
            kinds: what serves as classes.
            references: what `send` gives of each reference net, (N', K).
            logits_a: A's answers.

        Raises:
            InputError: see `distinctions_entry`.
        """
        assert self.tail is not None and self.maps is not None
        drawn = {"resamples": effort.resamples, "seed": effort.seed}
        z, sent = (torch.cat(self.answers[f"logits of {name}"]) for name in "Bg")
        entry = distinctions_entry(
            z,
            sent,
            self.labels,
            kinds,
            references=references,
            logits_a=logits_a,
            classes=images.classes,
            paths=images.paths,
            **drawn,
        )
        more, maps = places_and_directions(self.maps, self.tail, images.paths, **drawn)
        return entry | more, maps


def send(source: LinearSource, target: ComparedLayer, tail: FrozenTail) -> Tensor:
    """Let B's tail answer to the held-out images as a linear reference gives them, (N', K)."""
    regression = source.to(target)
    # Nothing but the answers is gathered, so that classes play no part
    labels = torch.zeros(target.held_out.shape[0], dtype=torch.int64)
    watched = Watched(labels, regression.fitted.mean, source.size, by_class=False, tail=tail)
    regression.observed(watched)
    return torch.cat(watched.answers["logits of g"])


def measure_direction(
    source: LinearSource,
    target: ComparedLayer,
    images: ComparedImages,
    effort: Effort,
    *,
    logits_a: Tensor | None = None,
    tail: FrozenTail | None = None,
    by_class: bool = True,
    distinctions_of: Kinds | None = None,
    references: Sequence[Tensor] = (),
    shown_image: int | None = None,
) -> dict[str, Any]:
    """Fit one direction, x → target, and measure what it leaves.

    Args:
        source: x.
        target: of net B.
        images: that both nets saw.
        effort: how much is computed.
        logits_a: A's answers to the held-out images, for the decision recovery.
        tail: B's, behind the target; None: what B still knows is left out.
        by_class: measure the floor and what is within classes.
        distinctions_of: measure which of the images' classes, or of B's answers, B alone tells
            apart, by its tail; None: it is left out.
        references: what `send` gives of each net of B's recipe, against which pairs are called.
        shown_image: the held-out image whose best and worst channels are kept; None: none.

    Returns:
        "sums" per image of `KINDS`, (N', 2) each; "intervals", "p", "ridge"; "floor", "between",
        "within"; "knowledge", "distinctions", its "maps" (see `places_and_directions`), "shown" and
        "notes".

    Raises:
        InputError: the features are constant, not finite, or of too few images.
    """
    by_class = by_class and images.has_classes
    # Without classes all images are of one: the null mixes all pairs.
    labels = (
        images.labels
        if images.has_classes
        else [torch.zeros_like(of_images) for of_images in images.labels]
    )
    # The true pairs first: their predictions pass by once, for classes and for B's tail.
    regression = source.to(target)
    mean = regression.fitted.mean
    asks_distinctions = tail is not None and distinctions_of is not None
    watched = Watched(
        images.held_out,
        mean,
        source.size,
        by_class=by_class,
        tail=tail,
        keeps_maps=asks_distinctions,
    )
    channels = ShownChannels(mean, source.size, shown_image or 0)

    def watch(*batch: Any) -> None:
        watched(*batch)
        if shown_image is not None:
            channels(*batch)

    is_watched = by_class or tail is not None or shown_image is not None
    errors = regression.observed(watch if is_watched else None)
    sums, p = [np.stack([errors.target, errors.observed], axis=1)], None
    if effort.shuffles:
        # Both ways begin at the same seed, and so draw the same orders.
        generator = torch.Generator().manual_seed(effort.seed % 2**64)
        # The p-value, which takes nearly all of the time where it is asked for.
        if effort.permutations:
            orders = [
                permutations(of_images, effort.permutations, generator) for of_images in labels
            ]
            (draws,) = permuted_sums(regression, None, orders[0], orders[1])
            errors = replace(errors, draws=draws)
            p = errors.null().p_value
        # The null and the ceiling beside it, with intervals of all three.
        linear = calibrated(
            regression,
            errors,
            labels,
            generator,
            effort.shuffles,
            effort.resamples,
            source.ceiling,
        )
        sums, intervals = list(linear.sums), linear.intervals
    else:
        intervals = bootstrap(instability_of, sums, resamples=effort.resamples, seed=effort.seed)
    notes, knowledge = list[str](), None
    if tail is not None and logits_a is not None:
        try:
            knowledge = watched.knowledge(logits_a, effort)
        except InputError as error:
            notes.append(f"what B still knows is left out: {error}")
    distinctions, maps = None, dict[str, Tensor]()
    if asks_distinctions and distinctions_of is not None:
        try:
            distinctions, maps = watched.distinctions(
                images, effort, distinctions_of, references, logits_a
            )
        except InputError as error:
            notes.append(f"distinctions are left out: {error}")
    return {
        "sums": {kind: torch.from_numpy(of) for kind, of in zip(KINDS, sums)},
        "intervals": {name: asdict(interval) for name, interval in intervals.items()},
        "p": p,
        "ridge": errors.weight,
        **watched.shares(),
        "knowledge": knowledge and knowledge_entry(knowledge, images.classes),
        "distinctions": distinctions,
        "maps": maps,
        "shown": channels.state(source.held_out),
        "notes": notes,
    }


def measure_trans_net(
    fits: SolvedFits,
    linear: State,
    images: ComparedImages,
    effort: Effort,
    *,
    logits_a: Tensor,
    tail: FrozenTail | None = None,
) -> dict[str, Any]:
    """Fit a solved Trans-Net and its null, and measure what the Trans-Net leaves.

    Its ceiling is the linear reference's: of A → A a linear layer leaves next to nothing already.

    Args:
        fits: of the direction.
        linear: what `measure_direction` gave of it, with a null.
        images: that both nets saw.
        effort: how much is computed.
        logits_a: A's answers to the held-out images.
        tail: B's, behind the target; None: what B still knows is left out.

    Returns:
        As `measure_direction`, without "p" and "distinctions"; "fitted", how far it was fitted, and
        "spectrum", what it explains more than the linear reference, image by image.

    Raises:
        InputError: see `Fitting`.
    """
    end = fits.find_end()
    fitted, null = fits.fit(TRUE, end), fits.fit(NULL, end)
    linear_sums = {kind: of.numpy() for kind, of in linear["sums"].items()}
    sums = fitted.errors, null.errors, linear_sums["ceiling"]
    options: dict[str, Any] = {"resamples": effort.resamples, "seed": effort.seed}
    intervals = consistency_interval(instability_of, *([of] for of in sums), **options)
    spectrum = depth_rows(
        [1, fits.thorough.layers],
        [instability_of] * 2,
        [linear_sums["observed"], fitted.errors],
        **options,
    )
    # The tail reads the features themselves, so that nothing is taken off their means.
    none = torch.zeros(fits.target[1].shape[1])
    size, by_class = tuple(fits.target[1].shape[2:]), images.has_classes
    watched = Watched(images.held_out, none, size, by_class=by_class, tail=tail)
    if by_class or tail is not None:
        fits.show(fitted.trans_net, watched)
    knowledge, notes = None, list[str]()
    if tail is not None:
        try:
            knowledge = watched.knowledge(logits_a, effort)
        except InputError as error:
            notes.append(f"what B still knows by the Trans-Net is left out: {error}")
    return {
        "sums": {kind: torch.from_numpy(of) for kind, of in zip(KINDS, sums)},
        "intervals": {name: asdict(interval) for name, interval in intervals.items()},
        "fitted": dict(fitted.record),
        "spectrum": spectrum,
        **watched.shares(),
        "knowledge": knowledge and knowledge_entry(knowledge, images.classes),
        "notes": notes,
    }


def knowledge_entry(knowledge: Knowledge, classes: Sequence[str]) -> dict[str, Any]:
    """Give what a report says of what B still knows."""
    names = {
        "bits": "I_B",
        "kept_bits": "K",
        "calibrated_bits": "K_c",
        "share": "share",
        "rho": "rho",
        "agreement": "agreement",
        "decision_recovery": "decision_recovery",
        "penultimate_r2": "penultimate_r2",
    }
    entry: dict[str, Any] = {
        name: asdict(knowledge.numbers[of]) if of in knowledge.numbers else None
        for name, of in names.items()
    }
    lost = [
        {"class": classes[label], "lost_bits": asdict(interval)}
        for label, interval in knowledge.lost_by_class.items()
    ]
    return entry | {"p": knowledge.p, "per_class": lost, "notes": list(knowledge.notes)}


def trans_net_entry(state: State, layers: int) -> dict[str, Any]:
    """Give what a report says of one direction's Trans-Net."""
    intervals, fitted = state["intervals"], state["fitted"]
    return {
        **{name: intervals[name] for name in ("instability", "null", "ceiling", "consistency")},
        **{name: state[name] for name in ("floor", "between", "within", "knowledge")},
        "fit": {
            "family": "Trans-Net",
            "layers": layers,
            "hidden": fitted["hidden"],
            "steps": fitted["steps"],
            "ridge": fitted["ridge"],
            "record": fitted,
        },
    }


def direction_entry(state: State) -> dict[str, Any]:
    """Give what a report says of one direction."""
    intervals = state["intervals"]
    return {
        **{name: intervals.get(name) for name in ("instability", "null", "ceiling", "consistency")},
        "p": state["p"],
        **{name: state[name] for name in ("floor", "between", "within")},
        "fit": {
            "family": "linear",
            "layers": 1,
            "hidden": 0,
            "steps": 0,
            "ridge": state["ridge"],
            "record": None,
        },
        "spectrum": None,
        "knowledge": state["knowledge"],
        "distinctions": state.get("distinctions"),
    }


def sums_of(state: State) -> several.Direction:
    """Give a direction's sums per image: of its pairs, of the null and of the ceiling.

    Without a null, what the class means leave stands for it, or where there are no classes all of
    the variance; and the ceiling is 0.
    """
    sums = {name: of.numpy() for name, of in state["sums"].items()}
    observed = sums["observed"]
    if "null" in sums:
        return observed, sums["null"], sums["ceiling"]
    # I_0 of `floors`: what the class means leave, in each image as in all.
    floor = 1.0 if state["floor"] is None else state["floor"]
    target = observed[:, 0]
    return observed, np.stack([target, floor * target], 1), np.stack([target, 0 * target], 1)


def shared_of(forth: State, back: State, effort: Effort) -> Interval:
    """Give what both nets share: the smaller consistency of both ways, inside each resample."""
    both = several.shared(
        sums_of(forth), sums_of(back), resamples=effort.resamples, seed=effort.seed
    )
    return both["shared"]


def unexplained_by_class(forth: State, back: State, images: ComparedImages) -> list[dict[str, Any]]:
    """Give the instability of both ways within the images of each class."""
    rows = []
    ways = {name: state["sums"]["observed"] for name, state in (("forth", forth), ("back", back))}
    for label in images.held_out.unique().tolist():
        members = images.held_out == label
        row: dict[str, Any] = {"class": images.classes[label], "images": int(members.sum())}
        for name, sums in ways.items():
            # Var(x*) and Var(x_Δ) of the class's images, about the means over all images.
            total, rest = sums[members].sum(0).tolist()
            row[f"{name}_unexplained"] = rest / total if total > 0 else None
        rows.append(row)
    return rows


def some_images(labels: Tensor, most: int) -> Tensor:
    """Choose images at even distances, so that classes that follow each other keep their shares."""
    if len(labels) <= most:
        return torch.arange(len(labels))
    return torch.linspace(0, len(labels) - 1, most).round().long()


def rows_of(layer: ComparedLayer, images: ComparedImages, most: int) -> ImageRows:
    """Read rows of some images: those that are compared, and those that are fitted to."""
    # Files are read at these numbers alone.
    chosen = [some_images(labels, most).numpy() for labels in images.labels]
    fitted, held_out = (
        image_rows(take(maps, numbers))
        for maps, numbers in zip((layer.fitted, layer.held_out), chosen)
    )
    return ImageRows(held_out, fitted)


def measure_similarities(
    first: ComparedLayer, second: ComparedLayer, images: ComparedImages, effort: Effort
) -> dict[str, Any]:
    """Compute CKA and others of a pair of layers, each beside permutations within the class."""
    most = effort.similar_images
    labels = [of_images[some_images(of_images, most)] for of_images in images.labels]
    if not images.has_classes:
        labels = [torch.zeros_like(of_images) for of_images in labels]
    x, y = (rows_of(layer, images, most) for layer in (first, second))
    generator = torch.Generator().manual_seed(effort.seed % 2**64)
    scores = image_similarities(x, y, labels, generator, draws=effort.similar_permutations)
    rows = [asdict(score) | {"threshold": score.level, "images": len(x)} for score in scores]
    # `threshold` is the name in reports; `level` that of the score.
    plain = [
        {key: finite(of) if isinstance(of, float | np.floating) else of for key, of in row.items()}
        for row in rows
    ]
    return {"scores": plain}


def finite(number: float | np.floating) -> float | None:
    """Give a number, or None in place of NaN or infinity, which JSON does not have."""
    return float(number) if np.isfinite(number) else None


class Comparing:
    """The comparison of two nets.

    Args:
        net_a: with its layers; pairs are by their place.
        net_b: the same.
        images: that both saw.
        effort: how much is computed.
        work: what is kept, and how far all is.
        references: nets of B's recipe from other seeds, with as many layers.
        thorough: fit solved Trans-Nets beside the linear references, as this says; None: none.
    """

    def __init__(
        self,
        net_a: ComparedNet,
        net_b: ComparedNet,
        images: ComparedImages,
        effort: Effort,
        work: Work,
        references: Sequence[ComparedNet] = (),
        thorough: Thorough | None = None,
    ) -> None:
        self.nets, self.images, self.effort, self.work = (net_a, net_b), images, effort, work
        self.thorough = thorough
        self.matched = matching(net_a.layers, net_b.layers)
        self.maps: dict[str, Mapping[str, Tensor]] = {}  # of the images most lost, by the way
        # Of the last pair that has maps, channels of one image are shown
        maps = [b for a, b in self.matched if can_be_shown(a, b)]
        self.pictured, self.shown_image = maps[-1] if maps else None, len(images.held_out) // 2
        self.shown: Mapping[str, Any] | None = None
        # Later pairs overwrite: the last of each net that can answer stays.
        # The last layers of each net whose tail can answer to g(x): distinctions are of these
        self.last: list[ComparedLayer | None] = [None, None]
        for a, b in self.matched:
            for number, (x, target) in enumerate(((a, b), (b, a))):
                if self.can_answer(x, target):
                    self.last[number] = target
        # References send to B where distinctions are: each has its label and its layer there
        self.senders = [
            (reference.label, layer)
            for reference in references
            for (_, b), layer in zip(self.matched, reference.layers)
            if b is self.last[0]
        ]
        for a, b in self.matched:
            for x, target in ((a, b), (b, a)):
                work.meter.expect(linear_flops(x, target, images, effort))
                if thorough:
                    work.meter.expect(self.fits(x, target, thorough).usual_flops())

    def pairs(self) -> list[dict[str, Any]]:
        """Compare every pair of layers."""
        entries = []
        for a, b in self.matched:
            identity = [VERSION, a.identity, b.identity, asdict(self.effort)]
            cached = self.work.kept.holds("similarities", identity)
            with self.work.part(f"similarities of {a.name} and {b.name}", cached=cached):
                scores = self.work.kept.get(
                    "similarities",
                    identity,
                    lambda: measure_similarities(a, b, self.images, self.effort),  # noqa: B023
                )
            # Each direction is kept as soon as it is there.
            forth, back = self.direction(0, a, b), self.direction(1, b, a)
            ways = [direction_entry(forth), direction_entry(back)]
            more: dict[str, Any] = {}
            notes = [*forth["notes"], *back["notes"]]
            if self.thorough:
                deep = [
                    self.trans_net(*way, self.thorough)
                    for way in ((0, a, b, forth), (1, b, a, back))
                ]
                for way, state in zip(ways, deep):
                    way["trans_net"] = trans_net_entry(state, self.thorough.layers)
                    way["spectrum"] = state["spectrum"]
                    notes += state["notes"]
                more = {"shared_by_trans_nets": asdict(shared_of(deep[0], deep[1], self.effort))}
            beyond = "null within the class" if self.effort.shuffles else "class means"
            entries.append(
                {
                    "a": a.record(),
                    "b": b.record(),
                    "forth": ways[0],
                    "back": ways[1],
                    "shared": asdict(shared_of(forth, back, self.effort)),
                    **more,
                    "shared_beyond": beyond if self.images.has_classes else "all images",
                    "similarities": scores["scores"],
                    "per_class": unexplained_by_class(forth, back, self.images)
                    if self.images.has_classes
                    else [],
                    "notes": [*dict.fromkeys(notes)],
                }
            )
        return entries

    def picture(
        self, photo: Callable[[int], Tensor] | None = None
    ) -> tuple[dict[str, "Figure"], list[dict[str, str]]]:
        """Draw the channels that are reconstructed best and worst, once `pairs` has compared.

        Args:
            photo: the number of a held-out image → uint8 (3, S, S); None: they are not at hand.

        Returns:
            Figures by their files' names, and the report's entries of them; none without maps.
        """
        if self.shown is None or self.pictured is None:
            return {}, []
        number = int(self.shown["image"])
        path = self.images.paths[number] if self.images.paths else ""
        names = [net.name for net in self.nets]
        of_image = None if photo is None else photo(number)
        figure, entry = channel_picture(self.shown, names, self.pictured.name, of_image, path)
        return {entry["file"]: figure}, [entry]

    def can_answer(self, x: ComparedLayer, target: ComparedLayer) -> bool:
        """Whether the tail behind a target is at hand and reads maps as g gives them."""
        # The tail reads maps of the layer's own size; averaged ones have lost what it needs.
        whole = common_size(x, target) == target.size and not target.is_averaged
        return self.effort.knowledge is not None and target.tail is not None and whole

    def sent(self, label: str, x: ComparedLayer, target: ComparedLayer) -> Tensor:
        """Give B's answers to what one reference net sends, (N', K), or take what is kept."""
        size, kernel = common_size(x, target), kernel_of(x, target)
        identity = [VERSION, x.identity, target.identity, size, kernel]

        def compute() -> dict[str, Tensor]:
            assert target.tail is not None
            return {"sent": send(LinearSource(x, size, kernel), target, target.tail())}

        cached = self.work.kept.holds("sent", identity)
        with self.work.part(f"reference {label} → B at {target.name}", cached=cached):
            return self.work.kept.get("sent", identity, compute)["sent"]

    def direction(self, number: int, x: ComparedLayer, target: ComparedLayer) -> State:
        """Measure one direction, or take what is kept of it; 0 is A → B, 1 is B → A."""
        sender, receiver = self.nets[number], self.nets[1 - number]
        answers = self.can_answer(x, target)
        kinds: Kinds | None = None
        if target is self.last[number]:
            kinds = "classes" if receiver.knows_classes else "answers"
        # Only where they are measured, so that what was kept of other layers stays valid
        more: dict[str, Any] = {"distinctions_of": kinds} if kinds else {}
        senders = self.senders if kinds and number == 0 else []
        if senders:
            more["references"] = [layer.identity for _, layer in senders]
        shown_image = self.shown_image if number == 0 and target is self.pictured else None
        if shown_image is not None:
            more["shown_image"] = shown_image
        identity = direction_identity(
            x, target, self.effort, answers=answers, classes=list(self.images.classes), **more
        )
        # The meter counts what is computed, and skips what is kept.
        cost = linear_flops(x, target, self.images, self.effort)
        cached = self.work.kept.holds("linear", identity)

        def compute() -> State:
            source = LinearSource(x, common_size(x, target), kernel_of(x, target))
            tail = target.tail() if answers and target.tail else None
            state = measure_direction(
                source,
                target,
                self.images,
                self.effort,
                logits_a=sender.logits,
                tail=tail,
                distinctions_of=kinds,
                references=[self.sent(*of_sender, target) for of_sender in senders],
                shown_image=shown_image,
            )
            if target.tail is not None and not answers and self.effort.knowledge is not None:
                state["notes"].append(
                    f"what net {receiver.label} still knows is left out at {target.name}, whose"
                    " maps were averaged"
                )
            return state

        with self.work.part(
            f"{sender.label} → {receiver.label}, {x.name} → {target.name}", cached=cached
        ):
            state = self.work.kept.get("linear", identity, compute)
        if shown_image is not None:
            self.shown = state["shown"]
        (self.work.meter.skip if cached else self.work.meter.add)(cost)
        if state["maps"]:
            self.maps[WAYS[number]] = state["maps"]
        return state

    def fits(self, x: ComparedLayer, target: ComparedLayer, thorough: Thorough) -> SolvedFits:
        """Give the Trans-Nets of one direction, which are not fitted yet."""
        source = LinearSource(x, common_size(x, target), kernel_of(x, target))
        labels = self.images.labels
        if not self.images.has_classes:
            labels = torch.zeros_like(labels[0]), torch.zeros_like(labels[1])
        identity = {
            "x": x.identity,
            "target": target.identity,
            "size": source.size,
            "kernel": source.kernel_size,
            "classes": list(self.images.classes),
        }
        work = self.work
        return SolvedFits(source, target, labels, thorough, identity, work.kept, work.meter)

    def trans_net(
        self,
        number: int,
        x: ComparedLayer,
        target: ComparedLayer,
        linear: State,
        thorough: Thorough,
    ) -> State:
        """Measure one direction by a solved Trans-Net, or take what is kept of it; see `direction`."""
        answers, classes = self.can_answer(x, target), list(self.images.classes)
        identity = direction_identity(
            x, target, self.effort, answers=answers, classes=classes, thorough=thorough.identity()
        )
        fits = self.fits(x, target, thorough)
        cached = self.work.kept.holds("trans_net", identity)

        def compute() -> State:
            return measure_trans_net(
                fits,
                linear,
                self.images,
                self.effort,
                logits_a=self.nets[number].logits,
                tail=target.tail() if answers and target.tail else None,
            )

        labels = [self.nets[place].label for place in (number, 1 - number)]
        title = f"{' → '.join(labels)}, {x.name} → {target.name}, Trans-Net"
        with self.work.part(title, cached=cached):
            state = self.work.kept.get("trans_net", identity, compute)
        if cached:
            self.work.meter.skip(fits.usual_flops())
        return state
