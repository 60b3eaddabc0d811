"""Many layers or many nets at once: a matrix of two nets' layers, and an atlas of nets.

Both fit the linear reference alone. A layer is factorised once for all of its targets, and what one
source gives is kept as soon as it is computed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from consistency.calibration import KINDS, instability_of, normalised_consistency
from consistency.compared import (
    ComparedImages,
    ComparedLayer,
    ComparedNet,
    LinearSource,
    common_size,
    kernel_of,
)
from consistency.comparison import (
    VERSION,
    Effort,
    State,
    Work,
    direction_identity,
    finite,
    linear_flops,
    measure_direction,
    rows_of,
    sums_of,
)
from consistency.several import over_nets
from consistency.similarity import cka
from utils.errors import InputError
from utils.runtime import Runtime

MATRIX_IMAGES = 500  # of CKA: each layer's products of their rows are held
ODD = 3.5  # deviations from the median, by the median deviation, beyond which a pair is odd

Array = NDArray[Any]


def measure_row(
    x: ComparedLayer,
    targets: Sequence[ComparedLayer],
    images: ComparedImages,
    effort: Effort,
    work: Work,
    reduce: Callable[[State], Mapping[str, Any]],
    name: str,
) -> Mapping[str, Any]:
    """Fit one layer to many targets; each number or tensor is stacked over these.

    Args:
        x: the source.
        targets: of other nets, or of the other net.
        images: that all nets saw.
        effort: how much is computed; nothing is resampled.
        work: what is kept.
        reduce: what is kept of a direction.
        name: of what is kept, in the file's name.
    """
    # Sums alone are kept: the atlas draws its own resamples of images and nets.
    effort = replace(effort, permutations=0, resamples=0, knowledge=None)
    identity = [name, *(direction_identity(x, target, effort) for target in targets)]
    cost = sum(linear_flops(x, target, images, effort) for target in targets)
    cached = work.kept.holds(name, identity)

    def compute() -> Mapping[str, Any]:
        sources = dict[Any, LinearSource]()
        rows = list[Mapping[str, Any]]()
        for target in targets:
            how = (common_size(x, target), kernel_of(x, target))
            if how not in sources:
                sources = {how: LinearSource(x, *how)}  # one factor is in memory at one time
            # With a null the class means are not asked for.
            by_class = not effort.shuffles
            rows.append(
                reduce(measure_direction(sources[how], target, images, effort, by_class=by_class))
            )
        return {
            key: torch.stack([torch.as_tensor(row[key], dtype=torch.float64) for row in rows])
            for key in rows[0]
        }

    row = work.kept.get(name, identity, compute)
    (work.meter.skip if cached else work.meter.add)(cost)
    return row


def consistency_alone(state: State) -> dict[str, float]:
    """Give a direction's normalised consistency, without interval."""
    sums = [instability_of(of.sum(0))["instability"] for of in sums_of(state)]
    return {"consistency": float(normalised_consistency(*sums))}


def sums_alone(state: State) -> dict[str, Any]:
    """Give a direction's sums per image."""
    return {kind: torch.from_numpy(of) for kind, of in zip(KINDS, sums_of(state))}


def expect_rows(
    layers: Sequence[ComparedLayer],
    others: Sequence[ComparedLayer],
    images: ComparedImages,
    effort: Effort,
    work: Work,
) -> None:
    """Tell the meter what the rows of a table will take."""
    for x in layers:
        work.meter.expect(sum(linear_flops(x, target, images, effort) for target in others))


def measure_matrix(
    net_a: ComparedNet, net_b: ComparedNet, images: ComparedImages, effort: Effort, work: Work
) -> dict[str, Any]:
    """Compare every layer of A with every one of B.

    Returns:
        "rows" and "columns", the layers; "forth" and "back", the consistency of A → B and of B → A;
        "shared", the smaller one; "cka" of `MATRIX_IMAGES` held-out images. All are lists of rows of
        A; None is what is not defined.
    """
    # One shuffled pairing: a matrix has hundreds of cells, which are looked at together.
    effort = replace(effort, shuffles=min(1, effort.shuffles))
    sides = net_a.all_layers, net_b.all_layers
    for number in (0, 1):
        expect_rows(sides[number], sides[1 - number], images, effort, work)
    ways = []
    for number, label in enumerate(("A → B", "B → A")):
        layers, others = sides[number], sides[1 - number]
        with work.part(f"matrix of layers, {label}"):
            rows = [
                measure_row(x, others, images, effort, work, consistency_alone, "matrix")
                for x in layers
            ]
        # B → A has B's layers as rows.
        ways.append(torch.stack([row["consistency"] for row in rows]).numpy())
    forth, back = ways[0], ways[1].T
    with work.part("matrix of layers, CKA"):
        gram_rows = [
            [rows_of(layer, images, MATRIX_IMAGES) for layer in layers] for layers in sides
        ]
        similar = np.array(
            [
                [float("nan") if x.constant or y.constant else cka(x, y) for y in gram_rows[1]]
                for x in gram_rows[0]
            ]
        )
    names = [[layer.name for layer in layers] for layers in sides]
    tables = {"shared": np.minimum(forth, back), "forth": forth, "back": back, "cka": similar}
    return {"rows": names[0], "columns": names[1]} | {
        name: plain_rows(table) for name, table in tables.items()
    }


def plain_rows(table: Array) -> list[Any]:
    """Give an array as lists, None in place of what is not finite."""
    return [plain_rows(row) if np.ndim(row) else finite(row) for row in table]


def measure_atlas(
    nets: Sequence[ComparedNet],
    images: ComparedImages,
    effort: Effort,
    work: Work,
    runtime: Runtime | None = None,
) -> dict[str, Any]:
    """Compare all ordered pairs of nets at layers that are matched by their place.

    Of several processes each computes a share of the rows, one source net at one layer each, and
    then reads what the others kept.

    Args:
        nets: more than two.
        images: that all of them saw.
        effort: how much is computed.
        work: what is kept, in a folder that all processes share.
        runtime: processes; None: one.

    Returns:
        "layers", by the names and depths in the first net; "nets", their labels; by layer "forth"
        [i][j], the consistency of net i → net j, and "shared", the smaller one of both ways;
        "intervals" of the mean over all pairs, over images and nets and over images alone; "order",
        in which alike nets stand beside each other; "odd", the pairs that share far less or more
        than the others.

    Raises:
        InputError: nets have other numbers of layers.
    """
    counts = {len(net.layers) for net in nets}
    if len(counts) != 1:
        raise InputError(f"nets of an atlas must have as many layers each, not {sorted(counts)}")
    places = range(counts.pop())
    others = [[j for j in range(len(nets)) if j != i] for i in range(len(nets))]
    sources = [(place, i) for place in places for i in range(len(nets))]

    def row(place: int, i: int) -> Mapping[str, Any]:
        x = nets[i].layers[place]
        targets = [nets[j].layers[place] for j in others[i]]
        with work.part(f"atlas at {x.name}, {nets[i].label} → all"):
            return measure_row(x, targets, images, effort, work, sums_alone, "atlas")

    def expect(some: Sequence[tuple[int, int]]) -> None:
        for place, i in some:
            targets = [nets[j].layers[place] for j in others[i]]
            expect_rows([nets[i].layers[place]], targets, images, effort, work)

    if runtime and runtime.world_size > 1:
        expect(share := sources[runtime.rank :: runtime.world_size])
        for source in share:
            row(*source)
        runtime.barrier()
    expect(sources)
    entries: dict[str, list[Any]] = {
        name: [] for name in ("forth", "shared", "intervals", "order", "odd")
    }
    for place in places:
        shape = (len(nets), len(nets), len(images.held_out), 2)
        # (M, M, N', 2) for each kind; the diagonal stays 0 and is not read.
        sums = [np.zeros(shape) for _ in KINDS]
        for i in range(len(nets)):
            of_source = row(place, i)
            for kind, of in zip(KINDS, sums):
                of[i, others[i]] = of_source[kind].numpy()
        for name, of_layer in layer_entry(sums, nets, effort).items():
            entries[name].append(of_layer)
    first = nets[0].layers
    return {
        "layers": [layer.name for layer in first],
        "depths": [layer.depth for layer in first],
        "nets": [net.label for net in nets],
        "names": [net.name for net in nets],
        "version": VERSION,
        **entries,
    }


def layer_entry(
    sums: Sequence[Array], nets: Sequence[ComparedNet], effort: Effort
) -> dict[str, Any]:
    """Give what the atlas says of one layer.

    Args:
        sums: of `KINDS`, every ordered pair's parts of Var(x*) and Var(x_Δ), (M, M, N, 2) each.
        nets: M.
        effort: resamples and seed.
    """

    def numbers(*totals: Array) -> dict[str, Array]:
        of = [instability_of(total)["instability"] for total in totals]
        forth, back = normalised_consistency(*of[:3]), normalised_consistency(*of[3:])
        return {"forth": forth, "shared": np.minimum(forth, back)}

    # The same of j → i in the place of i → j
    both = [*sums, *(of.swapaxes(0, 1) for of in sums)]
    tables = numbers(*(of.sum(2) for of in both))
    for table in tables.values():
        np.fill_diagonal(table, np.nan)
    options: dict[str, Any] = {"resamples": effort.resamples, "seed": effort.seed}
    intervals = {
        name: {key: asdict(interval) for key, interval in of.items()}
        for name, of in (
            ("images_and_nets", over_nets(numbers, both, **options)),
            ("images", over_nets(numbers, both, images_only=True, **options)),
        )
    }
    shared = tables["shared"]
    return {
        "forth": plain_rows(tables["forth"]),
        "shared": plain_rows(shared),
        "intervals": intervals,
        "order": alike_order(shared),
        "odd": odd_pairs(shared, [net.label for net in nets]),
    }


def alike_order(shared: Array) -> list[int]:
    """Order nets so that alike ones stand beside each other: by the second axis of similarity.

    The Laplacian of what pairs share has the constant as its first eigenvector; the next one
    varies least between nets that share much.
    """
    # A pair that is not defined, or shares less than nothing, has no weight.
    weights = np.nan_to_num(shared, nan=0.0).clip(min=0)
    _, vectors = np.linalg.eigh(np.diag(weights.sum(1)) - weights)
    return [int(number) for number in np.argsort(vectors[:, 1], kind="stable")]


def odd_pairs(shared: Array, labels: Sequence[str]) -> list[dict[str, Any]]:
    """List the pairs that share far less or more than the others, the oddest first.

    Their deviation from the median is above `ODD` of the median deviation, which is scaled so that
    it is the deviation of a normal distribution.
    """
    rows, columns = np.triu_indices(len(labels), 1)
    values = shared[rows, columns]
    centre = np.nanmedian(values)
    # The median deviation of a normal distribution is 1 / 1.4826 of its standard deviation.
    scale = 1.4826 * np.nanmedian(np.abs(values - centre))
    if not scale > 0:
        return []
    pairs = [
        {
            "nets": [labels[int(i)], labels[int(j)]],
            "shared": float(value),
            "deviations": float((value - centre) / scale),
        }
        for i, j, value in zip(rows, columns, values)
        if abs(value - centre) > ODD * scale
    ]
    return sorted(pairs, key=lambda pair: -abs(pair["deviations"]))
