"""What the page says and shows of more than two nets: an answer, a heat map a layer, tables."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from utils.later import matplotlib
from utils.report.compare_charts import LOWEST_CONSISTENCY, Chart, as_uri, inked
from utils.report.compare_words import Ends, Sentence, ends, estimate
from utils.report.results import Cell, Result
from utils.report.sections import Table

WIDTH = 9.0  # inches, of all heat maps together
IN_A_ROW = 4  # heat maps beside each other
MOST_NUMBERED = 6  # nets of a heat map that has numbers in its cells
MOST_NAMED = 16  # nets whose names stand along a heat map
MOST_ODD = 3  # odd pairs in a sentence; a table has all


def atlas_answer(result: Result) -> list[Sentence]:
    """Say where nets share most and least, and which pairs are unlike the others."""
    layers = result.get("atlas", "layers")
    count = len(result.get("atlas", "nets"))
    shared = {row: found for row in range(len(layers)) if (found := _mean(result, row))}
    sentences = []
    if shared:
        most, least = (pick(shared, key=lambda row: shared[row].value) for pick in (max, min))
        text: list[Cell] = [
            f"Of what two of these {count} nets compute, they share on average ",
            *(estimate(result, *_place(most)), f" at {layers[most]}, where it is most"),
        ]
        if most == least:
            text = [*text[:-1], f" at {layers[most]}."]
        elif shared[most].overlaps(shared[least]):
            text = [*text, ", and ", estimate(result, *_place(least))]
            text += [f" at {layers[least]}; these nets and images do not tell the layers apart."]
        else:
            text = [*text, ", and ", estimate(result, *_place(least))]
            text += [f" at {layers[least]}, where it is least."]
        limit = (
            "Shared is the smaller of both ways, beyond what the class explains. Intervals are over"
            " images and nets: they say what other nets of this recipe would give, if these are of"
            " one."
        )
        sentences.append(Sentence(text, limit))
    odd = [
        (row, number, pair)
        for row in range(len(layers))
        for number, pair in enumerate(result.get("atlas", "odd", row))
    ]
    if odd:
        odd.sort(key=lambda found: -abs(found[2]["deviations"]))
        named = list[Cell]()
        for row, number, pair in odd[:MOST_ODD]:
            first, second = (_name(result, label) for label in pair["nets"])
            named += [", " if named else "", f"{first} and {second} at {layers[row]} ("]
            named += [result.value("atlas", "odd", row, number, "shared", form=".2f"), ")"]
        text = ["Pairs that share far less or more than the others: ", *named, "."]
        limit = "A pair far from the median of all pairs. It may be a fault of one net: look at it."
        sentences.append(Sentence(text, limit))
    return sentences


def atlas_closing(result: Result) -> Cell:
    """Say what every number of an atlas is about."""
    return [
        f"All of this is of {len(result.get('nets'))} nets and of ",
        result.value("images", "held_out", form=","),
        " images that nothing was fitted to.",
    ]


def atlas_chart(result: Result) -> Chart:
    """Draw what each pair of nets shares, a heat map a layer; alike nets stand beside each other."""
    with inked():
        return _heat_maps(result)


def _heat_maps(result: Result) -> Chart:
    layers = result.get("atlas", "layers")
    columns = min(IN_A_ROW, len(layers))
    rows = -(-len(layers) // columns)
    size = (WIDTH, rows * WIDTH / columns * 0.95)
    figure = matplotlib.figure.Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    tables = [np.array(of_layer, dtype=float) for of_layer in result.get("atlas", "shared")]
    lowest = min(0.0, *(float(np.nanmin(table)) for table in tables))
    darkest = max(LOWEST_CONSISTENCY, lowest)
    for row, (axis, name, table) in enumerate(zip(axes, layers, tables)):
        order = result.get("atlas", "order", row)
        ordered = table[np.ix_(order, order)]
        drawn = axis.imshow(ordered, cmap="viridis", vmin=darkest, vmax=1)
        axis.set_title(str(name), fontsize=8)
        labels = [_name(result, result.get("atlas", "nets", number)) for number in order]
        named = range(len(labels)) if len(labels) <= MOST_NAMED else []
        axis.set_xticks(list(named), [labels[n] for n in named], rotation=60, ha="right")
        axis.set_yticks(list(named), [labels[n] for n in named])
        axis.tick_params(labelsize=6, length=0)
        axis.spines[:].set_visible(False)
        for (y, x), value in np.ndenumerate(ordered) if len(labels) <= MOST_NUMBERED else ():
            if np.isfinite(value):
                colour = "black" if value > 0.6 else "white"  # of letters on light and dark cells
                axis.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    for axis in axes[len(layers) :]:
        axis.set_visible(False)
    figure.colorbar(
        drawn,
        ax=list(axes),
        label="shared (smaller of both ways)",
        fraction=0.02,
        pad=0.02,
        extend="min" if lowest < darkest else "neither",
    )
    means = ", ".join(
        f"{name} {found.value:.2f}"
        for row, name in enumerate(layers)
        if (found := _mean(result, row))
    )
    return Chart(
        "What each pair of nets shares, by layer",
        as_uri(figure),
        f"Heat maps of {len(result.get('nets'))} nets at {len(layers)} layers. Means: {means}.",
        "A net is not held against itself. At each layer alike nets stand beside each other.",
        wide=True,
    )


def atlas_tables(result: Result) -> Iterator[Table]:
    """Give the means over pairs with both intervals, the odd pairs, and every pair."""
    layers, labels = result.get("atlas", "layers"), result.get("atlas", "nets")
    rows: list[list[Cell]] = [
        [
            str(name),
            estimate(result, *_place(row), form=".3f"),
            estimate(result, "atlas", "intervals", row, "images", "shared", form=".3f"),
            estimate(
                result, "atlas", "intervals", row, "images_and_nets", "forth", form=".3f", bare=True
            ),
        ]
        for row, name in enumerate(layers)
    ]
    head = ("layer", "shared, over images and nets", "over images alone", "one way")
    yield Table("Means over all pairs", head, rows)
    odd: list[list[Cell]] = [
        [
            str(name),
            " and ".join(_name(result, label) for label in pair["nets"]),
            result.value("atlas", "odd", row, number, "shared", form=".3f"),
            result.value("atlas", "odd", row, number, "deviations", form="+.1f"),
        ]
        for row, name in enumerate(layers)
        for number, pair in enumerate(result.get("atlas", "odd", row))
    ]
    yield Table("Odd pairs", ("layer", "nets", "shared", "deviations"), odd)
    every: list[list[Cell]] = [
        [
            str(name),
            f"{_name(result, labels[i])} → {_name(result, labels[j])}",
            result.value("atlas", "forth", row, i, j, form=".3f"),
            result.value("atlas", "shared", row, i, j, form=".3f"),
        ]
        for row, name in enumerate(layers)
        for i in range(len(labels))
        for j in range(len(labels))
        if i != j and result.get("atlas", "shared", row, i, j) is not None
    ]
    yield Table("Every pair", ("layer", "way", "consistency", "shared"), every, folded=True)


def _place(row: int) -> tuple[str | int, ...]:
    return ("atlas", "intervals", row, "images_and_nets", "shared")


def _mean(result: Result, row: int) -> Ends | None:
    return ends(result, *_place(row))


def _name(result: Result, label: Any) -> str:
    """Give the name of the net that a label stands for."""
    return str(result.get("atlas", "names", result.get("atlas", "nets").index(label)))
