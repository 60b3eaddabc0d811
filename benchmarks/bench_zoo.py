"""What tells nets apart that others trained: layers, training,
images of a class; ours beside other people's measures.

    KC=/data                                            # zoo/ and CIFAR10_mini/ lie in it
    python -m benchmarks.bench_zoo $KC                  # all parts, some minutes of one core
    python -m benchmarks.bench_zoo $KC --parts layers coverage

*layers*: of each layer of one net, is the most similar layer of another net of the recipe the
corresponding one (Kornblith et al. 2019, Table 2)? Ten nets that differ in their seed, eight
layers, rows of images: maps pooled to 4 × 4, or means over positions. Also: does a net's similarity
fall with the distance of its own layers (ReSi)? *trained*: areas under the curve of pairs of two
trained nets above pairs of which the sender is not trained, or knows B's answer alone. *coverage*:
of the mean over ten nets by intervals from four of them, 400 draws. *same*: a net's copies that
compute the same: permuted channels, folded BatchNorms, rescaled channels. *digits*: small nets
trained here on scikit-learn's digits: random labels, half of the classes, one epoch, untrained.

One way is A → B alone: R² = 1 − instability. The smaller way is the smaller of A → B and B → A.
Prints Markdown, every loss included.
"""

import argparse
import datetime
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn

from benchmarks import zoo
from benchmarks.bench_similarity import auc
from benchmarks.machine import ran_on
from consistency import similarity
from consistency.bootstrap import Interval
from consistency.calibration import shuffled_within_class
from consistency.knowledge import Knowledge, measure_knowledge
from consistency.position_similarity import unbiased_hsic
from consistency.several import over_nets
from consistency.similarity import ImageRows, image_rows

Array = NDArray[Any]

SEEDS, LAYERS = 10, 8
RESNETS = {20: "12fca82f", 32: "d509ac18", 44: "014dd654", 56: "4bfd9763"}
FIT, HELD = 60, 50  # images of each class
DRAWS = 400
SPACES: dict[str, Callable[[Tensor], Tensor]] = {
    "maps pooled to 4 × 4": image_rows,
    "means over positions": lambda maps: maps.double().mean((2, 3)),
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print(f"\n| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
    print()


def with_interval(interval: Interval, unit: float = 100) -> str:
    """Show a number and its interval."""
    value, low, high = (
        unit * (end or 0.0) for end in (interval.value, interval.low, interval.high)
    )
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


# --- all pairs of nets and layers at once


def squared_errors(sources: Sequence[ImageRows], targets: Sequence[ImageRows]) -> Array:
    """Give each held-out image's Σ |y − ŷ|² of every ridge regression, float32 (S, T, N)."""
    widths = [target.rows.shape[1] for target in targets]
    fitted, rows = (
        torch.cat([target.about[which].float() for target in targets], dim=1) for which in (0, 1)
    )
    errors = np.empty((len(sources), len(targets), len(rows)), np.float32)
    for source, of_source in zip(sources, errors):
        # y − H Y of all targets in one product, their columns side by side
        squares = (rows - source.smoother.float() @ fitted).square()
        of_source[:] = torch.stack(
            [of_target.sum(1) for of_target in squares.split(widths, dim=1)]
        ).numpy()
        # A cached property: (N, M) of float64 for each source would stay in memory.
        del source.smoother
    return errors


def totals(targets: Sequence[ImageRows]) -> Array:
    """Give each held-out image's Σ |y − mean y|², float32 (T, N)."""
    return torch.stack([target.centred.square().sum(1) for target in targets]).float().numpy()


def all_cka(rows: Sequence[ImageRows]) -> Array:
    """Give the CKA of all pairs, (T, T)."""
    grams = torch.stack([one.gram.flatten() for one in rows])
    size = len(rows[0])
    # Entries 0, N + 1, 2 (N + 1), … of a flattened Gram matrix: (T, N)
    diagonals = grams[:, :: size + 1]
    sums = diagonals.sum(1)
    # All pairs at once, (T, T); on the diagonal each with itself
    hsic = unbiased_hsic(grams @ grams.mT, diagonals @ diagonals.mT, sums.outer(sums), size)
    scale = hsic.diagonal().sqrt()
    return (hsic / scale.outer(scale)).numpy()


def all_neighbours(rows: Sequence[ImageRows]) -> Array:
    """Give the shares of nearest neighbours in common of all pairs, (T, T)."""
    size = len(rows[0])
    near = torch.stack(
        [torch.zeros(size, size).scatter_(1, one.neighbours, 1.0).flatten() for one in rows]
    )
    # near[i, j] of two nets: their product counts the neighbours in common.
    return (near @ near.mT / (size * similarity.NEIGHBOURS)).double().numpy()


def of_pairs(
    score: Callable[..., float], rows: Sequence[ImageRows], pairs: Iterator[tuple[int, int]]
) -> Array:
    """Give a symmetric score of some pairs, (T, T), NaN elsewhere."""
    values = np.full((len(rows), len(rows)), np.nan)
    for first, second in pairs:
        values[first, second] = values[second, first] = score(rows[first], rows[second])
    return values


# --- layers


def found_layers(values: Array) -> Array:
    """Say whether the most similar layer of another net is the corresponding one.

    Args:
        values: similarities (…, L, L), axis −2 the layers that are asked for.

    Returns:
        float (…, L); NaN where there are no similarities.
    """
    right = np.argmax(np.nan_to_num(values, nan=-np.inf), -1) == np.arange(values.shape[-1])
    return np.where(np.isfinite(values).all(-1), right, np.nan)


def layer_rows(
    nets: Sequence[zoo.Staged], parts: Sequence[Tensor], space: Callable[[Tensor], Tensor]
) -> list[ImageRows]:
    """Give every net's rows behind each stage, net by net."""
    rows = []
    for net in nets:
        of_parts = []
        for images in parts:
            maps, of_stages = images, []
            for stage in net.stages:
                with torch.no_grad():
                    maps = torch.cat([stage(batch) for batch in maps.split(zoo.BATCH)])
                of_stages.append(space(maps))
            of_parts.append(of_stages)
        rows += [ImageRows(held_out, fitted) for fitted, held_out in zip(*of_parts)]
    return rows


def layers_of(
    rows: Sequence[ImageRows], nets: int, title: str, few: int | None = None
) -> dict[str, Array]:
    """Print Kornblith's table, and how a net's own layers are alike.

    Args:
        rows: of every net and layer.
        nets: how many.
        title: of the table.
        few: so many nets for SVCCA and Procrustes, which take a decomposition a pair; None: all.

    Returns:
        "errors" (M, L, M, L, N) and "totals" (M, L, N), for what follows.
    """
    layers, images = len(rows) // nets, len(rows[0])
    errors = squared_errors(rows, rows).reshape(nets, layers, nets, layers, images)
    whole = totals(rows).reshape(nets, layers, images)
    few = few or nets
    some = [(a, b) for a, b in itertools.combinations_with_replacement(range(few * layers), 2)]
    scores = {
        "CKA": all_cka(rows),
        "mutual 10-NN": all_neighbours(rows),
        "SVCCA": of_pairs(similarity.svcca, rows, iter(some)),
        "Procrustes": of_pairs(similarity.procrustes, rows, iter(some)),
    }
    blocks = {
        name: values.reshape(nets, layers, nets, layers).transpose(0, 2, 1, 3)
        for name, values in scores.items()
    }  # (M, M, L of the first, L of the second)
    forth = errors.transpose(0, 2, 4, 1, 3)  # (M, M, N, L of A, L of B)
    # back[a, b, n, i, j] is the error of B's layer j → A's layer i.
    back = errors.transpose(2, 0, 4, 3, 1)
    of_b = np.broadcast_to(whole[None].transpose(0, 1, 3, 2)[:, :, :, None], forth.shape)
    of_a = np.broadcast_to(whole[:, None].transpose(0, 1, 3, 2)[..., None], forth.shape)
    names = [name for name in blocks if np.isfinite(blocks[name]).all()]
    hits = np.stack([found_layers(blocks[name]) for name in names], -1)  # (M, M, L, measures)
    # Summed over images, weights included, this is the hit itself, so that only nets vary it.
    per_image = np.broadcast_to(hits[:, :, None] / images, (nets, nets, images, layers, len(names)))

    def numbers(
        forth: Array, back: Array, of_a: Array, of_b: Array, others: Array
    ) -> Mapping[str, Array]:
        one_way, other_way = 1 - forth / of_b, 1 - back / of_a
        smaller = np.minimum(one_way, other_way)
        ours = {
            "ridge R², one way: the target that A's layer gives best": found_layers(one_way),
            "ridge R², one way: the source that gives B's layer best": found_layers(other_way),
            "ridge R², smaller way": found_layers(smaller),
        }
        ours |= {name: others[..., place] for place, name in enumerate(names)}
        right = {name: hit.mean(-1) for name, hit in ours.items()}
        least = {
            f"{name}, layer {i + 1}": hit[..., i]
            for name, hit in ours.items()
            for i in range(layers)
        }
        difference = right["ridge R², smaller way"] - right["CKA"]
        return right | least | {"smaller way − CKA": difference}

    intervals = over_nets(numbers, [forth, back, of_a, of_b, per_image], resamples=300)
    shown = [name for name in intervals if ", layer" not in name]
    rows_shown = []
    for name in shown:
        cells = (
            [f"{100 * (intervals[f'{name}, layer {i + 1}'].value or 0):.0f}" for i in range(layers)]
            if (f"{name}, layer 1" in intervals)
            else [""] * layers
        )
        rows_shown.append([name, with_interval(intervals[name]), *cells])
    for name in set(blocks) - set(names):
        of_few = found_layers(blocks[name])[:few, :few]
        off = ~np.eye(few, dtype=bool)
        if np.isfinite(of_few[off]).any():
            cells = [
                f"{100 * value:.0f}" if np.isfinite(value) else "–" for value in of_few[off].mean(0)
            ]
            whole_share = np.nanmean(of_few[off])
            rows_shown.append([f"{name} ({few} nets)", f"{100 * whole_share:.1f}", *cells])
    print(
        f"\n### {title}\n\n{nets} nets, {nets * (nets - 1)} ordered pairs, {layers} layers; right"
        " layers in percent"
    )
    table(["measure", "right, % [95 %]", *(str(i + 1) for i in range(layers))], rows_shown)
    monotonic(blocks | {"ridge R², smaller way": smaller_way(errors, whole)}, layers)
    return {"errors": errors, "totals": whole}


def smaller_way(errors: Array, whole: Array) -> Array:
    """Give the smaller R² of all pairs, (M, M, L, L)."""
    # (M, L, M, L): from source to target, over the target's variance
    r2 = 1 - errors.sum(-1) / whole.sum(-1)[None, None]
    both = np.minimum(r2, r2.transpose(2, 3, 0, 1))
    return both.transpose(0, 2, 1, 3)


def monotonic(blocks: Mapping[str, Array], layers: int) -> None:
    """Print whether a net's own layers are the less alike
    the further they lie apart (ReSi's monotonicity).
    """
    triples = [(i, j, k) for i, j, k in itertools.combinations(range(layers), 3)]
    rows = []
    for name, values in blocks.items():
        within = np.array([values[net, net] for net in range(len(values))])
        within = within[np.isfinite(within).all((1, 2))]
        if not len(within) or not triples:
            continue
        kept = [
            ((within[:, i, j] >= within[:, i, k]) + 0.0 + (within[:, j, k] >= within[:, i, k])) / 2
            for i, j, k in triples
        ]
        upper = np.triu_indices(layers, 1)
        distance = upper[1] - upper[0]
        correlations = [-spearmanr(distance, one[upper]).statistic for one in within]
        rows.append([name, f"{np.mean(kept):.3f}", f"{np.mean(correlations):.3f}"])
    if rows:
        print(
            "A net beside itself: of layers i < j < k, how often s(i, j) ≥ s(i, k) and s(j, k) ≥"
            " s(i, k); and the"
        )
        print("rank correlation of similarity with nearness.")
        table(["measure", "of triples", "rank correlation"], rows)


# --- coverage


def coverage(sums_of: Mapping[str, Array], title: str) -> None:
    """Print how often intervals from four of the nets hold the mean over all of them."""
    errors, whole = sums_of["errors"], sums_of["totals"]
    nets, layers, images = whole.shape
    generator = np.random.default_rng(0)

    def ways(forth: Array, back: Array, of_a: Array, of_b: Array) -> dict[str, Array]:
        return {
            "one way": 1 - forth / of_b,
            "smaller way": np.minimum(1 - forth / of_b, 1 - back / of_a),
        }

    rows: dict[str, list[str]] = {}
    for layer in range(layers):
        same = errors[:, layer, :, layer]  # (M, M, N)
        of_b = np.broadcast_to(whole[None, :, layer], same.shape)
        # Forth and back, then the variances of A's and of B's layer: (M, M, N) each
        sums = [same, same.transpose(1, 0, 2), of_b.transpose(1, 0, 2), of_b]
        off = ~np.eye(nets, dtype=bool)
        truth = {
            name: value[off].mean()
            for name, value in ways(*(sample.sum(-1) for sample in sums)).items()
        }
        hits: dict[str, list[bool]] = {}
        widths: dict[str, list[float]] = {}
        for draw in range(DRAWS):
            few = generator.choice(nets, 4, replace=False)
            chosen = generator.integers(images, size=images)
            # The same four nets and the same images for every number
            sample = [one[np.ix_(few, few)][:, :, chosen] for one in sums]
            for only in (False, True):
                intervals = over_nets(
                    ways, sample, resamples=200, drawn_from=nets, images_only=only, seed=draw
                )
                for name, interval in intervals.items():
                    low, high = interval.low or 0.0, interval.high or 0.0
                    label = f"{name}, {'images alone' if only else 'images × nets'}"
                    hits.setdefault(label, []).append(low <= truth[name] <= high)
                    widths.setdefault(label, []).append(high - low)
        for label, covered in hits.items():
            rows.setdefault(label, []).append(
                f"{100 * np.mean(covered):.0f} ({np.mean(widths[label]):.3f})"
            )
    print(
        f"\n### {title}\n\nThe mean R² over all pairs of {nets} nets, by 95 % intervals from 4 of"
        " them and as many"
    )
    print(f"images drawn anew, {DRAWS} draws: coverage in percent, and the intervals' mean width.")
    table(
        ["interval", *(f"layer {i + 1}" for i in range(layers))],
        [[name, *cells] for name, cells in rows.items()],
    )


# --- trained against untrained


class Sender:
    """What stands in A's place:
    its maps of the fitted and of the held-out images, and rows of them.
    """

    def __init__(self, maps: Sequence[Tensor]) -> None:
        self.maps = maps
        self.rows = ImageRows(image_rows(maps[1]), image_rows(maps[0]))


class Receiver(Sender):
    """Net B: its maps, and its answers to the held-out images."""

    def __init__(self, maps: Sequence[Tensor], net: zoo.Staged, depth: int) -> None:
        super().__init__(maps)
        self.net, self.depth = net, depth
        self.penultimate, self.logits = net.tail_in_batches(maps[1], depth)

    def through(
        self, sender: Sender, labels: Tensor, ridges: Sequence[float] = zoo.RIDGES
    ) -> Knowledge:
        """Say what B still knows by a linear g of the sender's maps,
        fitted to every second image.
        """
        g = zoo.PointMap(sender.maps[0][::2], self.maps[0][::2], ridges)
        return self.knowledge(*self.net.tail_in_batches(g(sender.maps[1]), self.depth), labels)

    def knowledge(self, penultimate: Tensor, logits: Tensor, labels: Tensor) -> Knowledge:
        """Say what B still knows by these answers."""
        features = (self.penultimate, penultimate)
        return measure_knowledge(
            self.logits, logits, labels=labels, penultimate=features, permutations=99, resamples=0
        )


def scores_of(
    sender: Sender, receiver: Receiver, knowledge: Knowledge, shuffles: Sequence[Tensor]
) -> dict[str, float]:
    """Give every measure of one pair; all but the last are the larger, the more alike."""
    x, y = sender.rows, receiver.rows

    def way(one: ImageRows, other: ImageRows) -> tuple[float, float]:
        """R² of true pairs, and above pairs of the class: (null − I) / null."""
        r2, null = similarity.ridge_r2(one, other), similarity.ridge_r2(one, other, *shuffles)
        return r2, 1 - (1 - r2) / (1 - null)

    forth, back = way(x, y), way(y, x)
    return {
        "ρ": knowledge["rho"],
        "K_c": knowledge["K_c"],
        "K": knowledge["K"],
        "penultimate R²": knowledge["penultimate_r2"],
        "agreement with B": knowledge["agreement"],
        "consistency, one way": forth[1],
        "consistency, smaller way": min(forth[1], back[1]),
        "ridge R², one way": forth[0],
        "ridge R², smaller way": min(forth[0], back[0]),
        **{name: score(x, y, None) for name, score in similarity.SCORES.items()},
        "p of ρ": knowledge.p or 1.0,
    }


Scores = dict[str, list[dict[str, float]]]  # by the kind of pair


def noise_of(
    receiver: Receiver,
    fitted_logits: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    shuffles: Sequence[Tensor],
) -> dict[str, float]:
    """Measure a sender of B's answer alone: another image with the same answer."""
    answers = (fitted_logits.argmax(1), receiver.logits.argmax(1))
    orders = [shuffled_within_class(split, generator) for split in answers]
    sender = Sender(tuple(maps[order] for maps, order in zip(receiver.maps, orders)))
    knowledge = receiver.knowledge(
        receiver.penultimate[orders[1]], receiver.logits[orders[1]], labels
    )
    return scores_of(sender, receiver, knowledge, shuffles)


def areas(by_layer: Sequence[Scores], first: str, title: str) -> None:
    """Print the area under the curve of pairs of the
    first kind above every other kind, and their means.
    """
    others = [kind for kind in by_layer[0] if kind != first]
    names = [name for name in by_layer[0][first][0] if name != "p of ρ"]

    def column(scores: Scores, kind: str, name: str) -> list[float]:
        return [one[name] for one in scores[kind]]

    def area(scores: Scores, kind: str, name: str) -> float:
        return auc(column(scores, first, name), column(scores, kind, name))

    counts = ", ".join(f"{len(pairs)} {kind}" for kind, pairs in by_layer[0].items())
    print(f"\n### {title}\n\nPairs a layer: {counts}.")
    rows = []
    for name in names:
        cells = []
        for kind in others:
            values = [area(scores, kind, name) for scores in by_layer]
            rest = values[1:] or values
            cells += [f"{min(rest):.3f}" if np.isfinite(rest).all() else "–"]
            cells += [f"{values[0]:.3f}"] if len(values) > 1 else []
        rows.append([name, *cells])
    more = len(by_layer) > 1
    head = [
        label
        for kind in others
        for label in ([f"{kind}, least of layers 2 on", "layer 1"] if more else [kind])
    ]
    print("Area under the curve: how often a pair of two trained nets has the larger value.")
    table(["measure", *head], rows)
    means = [
        [
            name,
            *(
                f"{np.mean([np.nanmean(column(scores, kind, name)) for scores in by_layer]):.3f}"
                for kind in (first, *others)
            ),
        ]
        for name in (*names, "p of ρ")
    ]
    print("Means over layers and pairs:")
    table(["measure", first, *others], means)


def trained(
    tinies: Sequence[zoo.Staged],
    parts: Sequence[Tensor],
    labels: Sequence[Tensor],
    targets: int = 4,
) -> None:
    """Print what tells pairs of two trained nets from others, at each layer of the tiny nets."""
    generator = torch.Generator().manual_seed(0)
    # `ridge_r2` takes the held-out images' order first.
    shuffles = [shuffled_within_class(split, generator) for split in reversed(labels)]
    nets = {f"seed {i}": net for i, net in enumerate(tinies)}
    for kind, images in (("untrained", parts[0]), ("untrained 0/1", None)):
        for seed in range(4):
            torch.manual_seed(100 + seed)
            nets[f"{kind} {seed}"] = zoo.untrained(zoo.tiny(), images)
    fitted_logits = [net.tail_in_batches(parts[0], 0)[1] for net in tinies[:targets]]
    maps = {name: tuple(parts) for name in nets}
    by_layer: list[Scores] = []
    for depth in range(1, LAYERS + 1):
        senders = {}
        for name, net in nets.items():
            with torch.no_grad():
                maps[name] = tuple(
                    torch.cat([net.stages[depth - 1](split) for split in one.split(zoo.BATCH)])
                    for one in maps[name]
                )
            senders[name] = Sender(maps[name])
        scores: Scores = {
            "both trained": [],
            "untrained": [],
            "untrained 0/1": [],
            "class noise": [],
        }
        for b in range(targets):
            receiver = Receiver(maps[f"seed {b}"], tinies[b], depth)
            for name, sender in senders.items():
                if name != f"seed {b}":
                    kind = "both trained" if name.startswith("seed") else name.rsplit(" ", 1)[0]
                    knowledge = receiver.through(sender, labels[1])
                    scores[kind].append(scores_of(sender, receiver, knowledge, shuffles))
            for _ in range(3):
                scores["class noise"].append(
                    noise_of(receiver, fitted_logits[b], labels[1], generator, shuffles)
                )
        by_layer.append(scores)
    areas(
        by_layer,
        "both trained",
        "Trained against untrained, and against senders of the class alone",
    )
    print_layers(by_layer)


def print_layers(by_layer: Sequence[Scores]) -> None:
    """Print ρ and K_c of each layer."""
    rows = []
    for name, kind in itertools.product(("ρ", "K_c", "consistency, smaller way"), by_layer[0]):
        rows.append(
            [
                f"{name}, {kind}",
                *(f"{np.mean([one[name] for one in scores[kind]]):.3f}" for scores in by_layer),
            ]
        )
    table(["mean", *(f"layer {i + 1}" for i in range(len(by_layer)))], rows)


# --- the same function


def same(net: zoo.Staged, parts: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
    """Print what copies that compute the same share, both ways: 1 is right."""
    parts, labels = [split[::5] for split in parts], [split[::5] for split in labels]
    generator = torch.Generator().manual_seed(0)

    def shares(other: zoo.Staged, depth: int, ridges: Sequence[float] = zoo.RIDGES) -> list[float]:
        both = [
            Receiver(tuple(one.maps(split, depth) for split in parts), one, depth)
            for one in (net, other)
        ]
        return [
            both[1].through(both[0], labels[1], ridges)["share"],
            both[0].through(both[1], labels[1], ridges)["share"],
        ]

    def factors(width: int, most: float) -> Tensor:
        return most ** (2 * torch.rand(width, generator=generator) - 1)

    def widths(depth: int) -> int:
        return zoo.TINY[depth - 1][0]

    kinds: dict[str, Iterator[list[float]]] = {
        "100 permutations of channels": (
            shares(
                zoo.permuted(net, depth, torch.randperm(widths(depth), generator=generator)), depth
            )
            for depth in (1 + i % LAYERS for i in range(100))
        ),
        "folded BatchNorms": (shares(zoo.folded(net), depth) for depth in range(1, LAYERS + 1)),
    }
    for most in (8, 64, 1024):
        # At once: a generator would see the last `most` alone
        copies = [
            zoo.rescaled(net, depth, factors(widths(depth), most)) for depth in range(1, LAYERS + 1)
        ]
        kinds[f"rescaled by 1/{most} … {most}"] = map(shares, copies, range(1, LAYERS + 1))
    kinds["rescaled by 1/8 … 8, ridge weight held at 0.1"] = (
        shares(zoo.rescaled(net, depth, factors(widths(depth), 8)), depth, (0.1,))
        for depth in range(1, LAYERS + 1)
    )
    rows = []
    for name, scores in kinds.items():
        values = np.array(list(scores))
        rows.append([name, f"{len(values)}", *(f"{abs(1 - way).max():.1e}" for way in values.T)])
    print(
        "\n### The same function under other weights\n\nLargest |1 − share| of K / I_B over copies"
        " of one net,"
    )
    print(
        "cut at each of its eight layers; g is a point-wise linear map whose ridge weight is chosen"
        " on held-out folds."
    )
    table(["copy", "copies", "A → copy", "copy → A"], rows)


# --- digits


def digits_net() -> zoo.Staged:
    """Build a small net for 8 × 8 digits: four stages of 32 channels."""
    widths = [1, 32, 32, 32, 32]
    return zoo.Staged(
        [
            nn.Sequential(nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU())
            for before, width, stride in zip(widths, widths[1:], (1, 1, 2, 1))
        ],
        32,
    )


def train(images: Tensor, labels: Tensor, seed: int, epochs: int) -> zoo.Staged:
    """Train a digits net by Adam."""
    torch.manual_seed(seed)
    net, generator = digits_net(), torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    steps = epochs * (len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-2, total_steps=steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            if len(batch) == 64:
                optimiser.zero_grad()
                F.cross_entropy(net(images[batch]), labels[batch]).backward()
                optimiser.step()
                schedule.step()
    return net.eval()


def digits(nets_each: int = 4, epochs: int = 15) -> None:
    """Train digits nets of several kinds and print what tells them apart,
    and which classes are missing.
    """
    from sklearn.datasets import load_digits  # noqa: PLC0415 — of this part alone

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = (torch.tensor(data.images, dtype=torch.float32)[order, None] - 5) / 6
    labels = torch.tensor(data.target)[order]
    parts, of_parts = (images[:1100], images[1100:]), (labels[:1100], labels[1100:])
    half = of_parts[0] < 5
    mixed = of_parts[0][torch.randperm(1100, generator=torch.Generator().manual_seed(1))]
    nets = {
        "both trained": [
            train(parts[0], of_parts[0], seed, epochs) for seed in range(nets_each + 1)
        ]
    }
    nets["half of the classes"] = [
        train(parts[0][half], of_parts[0][half], 20 + i, epochs) for i in range(nets_each)
    ]
    nets["one epoch"] = [train(parts[0], of_parts[0], 40 + i, 1) for i in range(nets_each)]
    nets["random labels"] = [train(parts[0], mixed, 60 + i, 4 * epochs) for i in range(nets_each)]
    for kind, given in (("untrained", parts[0]), ("untrained 0/1", None)):
        made = []
        for i in range(nets_each):
            torch.manual_seed(80 + i)
            made.append(zoo.untrained(digits_net(), given))
        nets[kind] = made
    accuracy = {
        kind: np.mean(
            [
                (net.tail_in_batches(parts[1], 0)[1].argmax(1) == of_parts[1]).double().mean()
                for net in some
            ]
        )
        for kind, some in nets.items()
    }
    memorised = np.mean(
        [
            (net.tail_in_batches(parts[0], 0)[1].argmax(1) == mixed).double().mean()
            for net in nets["random labels"]
        ]
    )
    print(
        "\n## Digits\n\nHeld-out accuracy: "
        + ", ".join(f"{kind} {100 * value:.1f} %" for kind, value in accuracy.items())
    )
    print(f"(of the random labels {100 * memorised:.1f} % are memorised).")
    generator = torch.Generator().manual_seed(2)
    shuffles = [shuffled_within_class(split, generator) for split in reversed(of_parts)]
    unseen: dict[str, list[float]] = {"A → B": [], "B → A": []}
    by_depth: dict[int, Scores] = {}
    for depth in (2, 3):
        senders = {
            kind: [Sender(tuple(net.maps(split, depth) for split in parts)) for net in some]
            for kind, some in nets.items()
        }
        scores: Scores = {kind: [] for kind in (*nets, "class noise")}
        for b, net in enumerate(nets["both trained"]):
            receiver = Receiver(senders["both trained"][b].maps, net, depth)
            fitted_logits = net.tail_in_batches(parts[0], 0)[1]
            for kind, some in senders.items():
                for i, sender in enumerate(some):
                    if kind == "both trained" and i == b:
                        continue
                    knowledge = receiver.through(sender, of_parts[1])
                    scores[kind].append(scores_of(sender, receiver, knowledge, shuffles))
                    if kind == "half of the classes":
                        reverse = Receiver(sender.maps, nets[kind][i], depth).through(
                            receiver, of_parts[1]
                        )
                        for way, answers in (("A → B", knowledge), ("B → A", reverse)):
                            lost = [
                                answers.lost_by_class[label].value or 0.0 for label in range(10)
                            ]
                            unseen[f"{way}"].append(auc(lost[5:], lost[:5]))
            for _ in range(2):
                scores["class noise"].append(
                    noise_of(receiver, fitted_logits, of_parts[1], generator, shuffles)
                )
        by_depth[depth] = scores
        areas([scores], "both trained", f"Digits, behind stage {depth} of 4")
    areas_of = ", ".join(f"{way} {np.mean(values):.3f}" for way, values in unseen.items())
    print(
        "Classes that A never saw have the larger D_c, area under the curve in a pair (A the half"
        f" net): {areas_of}."
    )


PARTS = ("layers", "coverage", "trained", "same", "digits")


def main(argv: list[str] | None = None) -> None:
    """Measure and print Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where zoo/ and CIFAR10_mini/ lie")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what is measured"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    where = ran_on(__file__, argv, "torch", "scipy")
    print(f"# A zoo of nets, {datetime.date.today()}\n")
    print(
        f"{10 * FIT:,} training images of CIFAR-10 fitted, {10 * HELD:,} test images held out;"
        " ridge weight"
    )
    print(f"{similarity.WEIGHT} of the mean variance for rows of images.")
    if set(args.parts) - {"digits"}:
        measured = [
            zoo.pictures(args.folder / "CIFAR10_mini", split, count)
            for split, count in (("train", FIT), ("val", HELD))
        ]
        labels = [split[1] for split in measured]
        parts = [zoo.normalised(split[0], zoo.CIFAR) for split in measured]
        tinies = [zoo.load_tiny(args.folder / f"zoo/tiny10/seed{seed}.pt") for seed in range(SEEDS)]
    if {"layers", "coverage"} & set(args.parts):
        print("\n## Which layer of another net corresponds?")
        for name, space in SPACES.items():
            pooled = name == "means over positions"
            began = time.process_time()
            by_layer = layers_of(
                layer_rows(tinies, parts, space), SEEDS, f"tiny10, {name}", None if pooled else 3
            )
            if "coverage" in args.parts and not pooled:
                coverage(by_layer, f"Coverage, tiny10, {name}")
            print(f"{time.process_time() - began:.0f} s of the processor")
        if "layers" in args.parts:
            began = time.process_time()
            residual = [
                zoo.load_resnet(args.folder / f"zoo/resnet_cifar/resnet{depth}-{name}.th", depth)
                for depth, name in RESNETS.items()
            ]
            normal = [zoo.normalised(split[0], zoo.IMAGENET)[::2] for split in measured]
            for name, space in SPACES.items():
                layers_of(
                    layer_rows(residual, normal, space),
                    len(residual),
                    f"ResNet-20, 32, 44, 56 behind three stages, {name}, half of the images",
                )
            print(f"{time.process_time() - began:.0f} s of the processor")
    for split, run in (
        ("trained", lambda: trained(tinies, parts, labels)),
        ("same", lambda: same(tinies[0], parts, labels)),
        ("digits", digits),
    ):
        if split in args.parts:
            began = time.process_time()
            run()
            print(f"{time.process_time() - began:.0f} s of the processor", flush=True)
    print(f"\n{where}")


if __name__ == "__main__":
    main()
