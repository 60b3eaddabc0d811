"""Charts of a comparison, drawn from its report.

Each has the text that stands for it where it is not seen.

They are SVG whose colours are variables, so that they have others in the page's dark mode.
A chart is as wide as a telephone, so that its letters stay legible there; the page lays two beside
one another where there is room.
"""

import base64
import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from utils.later import matplotlib
from utils.report.charts import CURVES
from utils.report.compare_words import (
    WAYS,
    Ends,
    distinction_place,
    ends,
    names,
    pair_label,
)
from utils.report.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#1b1f24"
# What a colour becomes in the dark.
DARK = {INK: "#e6e9ec", CURVES[0][0]: "#4aa8e0", CURVES[1][0]: "#f07b2e", CURVES[2][0]: "#2bc093"}
WIDTH = 4.2  # inches: 400 pixels of a browser
MOST_CLASSES = 20  # in a chart; the table has all
MOST_SPECTRA = 3  # pairs of layers, the deepest, of both ways
MOST_TICKS = 8  # with names, of up to hundreds of layers
MOST_SIDE_BY_SIDE = 40  # letters of all names below an axis
MOST_LETTERS = 28  # of a legend's line, for two beside one another
MOST_NUMBERS = 10  # rows of a heat map that has numbers in its cells
# Where an axis ends at the latest: an interval of few images may reach a hundred times as far
LOWEST_CONSISTENCY, HIGHEST_CONSISTENCY = -0.5, 1.5
HIGHEST_LEFT = 2.0  # of what is left: 1 is all of the variance
LOWEST_EXPLAINED = -50.0  # per cent
COLOURS = {"forth": CURVES[0], "back": CURVES[1]}
# How what is left is drawn, and what it is held against.
STYLES: dict[str, dict[str, Any]] = {
    "instability": {"marker": "o", "markersize": 5},
    "null": {"marker": "_", "markersize": 11, "markeredgewidth": 2},
    "ceiling": {"marker": "x", "markersize": 5},
    "floor": {"marker": "d", "markersize": 5, "fillstyle": "none"},
}
BEYOND = " An arrow at the edge: the interval reaches beyond it; the tables have its end."
Place: TypeAlias = tuple[str | int, ...]  # of a number in a report: keys and indices


class Chart(NamedTuple):
    """A chart of the page.

    Attributes:
        title: of the chart, above it.
        uri: an SVG.
        alternative: what it shows, in words and numbers.
        caption: what its marks are.
        wide: it takes the page's width.
    """

    title: str
    uri: str
    alternative: str
    caption: str
    wide: bool = False


def charts(result: Result) -> list[Chart]:
    """Draw what a report has: nothing is drawn of what it lacks."""
    drawn = (
        shared_chart,
        left_chart,
        matrix_chart,
        spectrum_chart,
        class_chart,
        distinction_chart,
    )
    with inked():
        return [chart for draw in drawn if (chart := draw(result))]


@contextlib.contextmanager
def inked() -> Iterator[None]:
    """Draw lines and letters in one ink on no ground, and the same figure as the same bytes."""
    ink: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK
    )
    whole: dict[Any, Any] = {"svg.fonttype": "path", "svg.hashsalt": "comparison", "font.size": 9}
    bare: dict[Any, Any] = {
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "savefig.facecolor": "none",
    }
    with matplotlib.rc_context({**ink, **whole, **bare}):
        yield


def as_uri(figure: "Figure") -> str:
    """Give a figure as an SVG inside of a URI, with colours for light and for dark."""
    figure.savefig(
        buffer := io.BytesIO(), format="svg", dpi=150, metadata={"Date": None, "Creator": None}
    )
    # Colours become CSS variables, which the reader's dark mode sets anew.
    text = buffer.getvalue().decode()
    light, dark = [], []
    for number, (colour, in_the_dark) in enumerate(DARK.items()):
        text = text.replace(colour, f"var(--c{number})")
        light.append(f"--c{number}:{colour}")
        dark.append(f"--c{number}:{in_the_dark}")
    style = (
        f"<style>:root{{{';'.join(light)}}}"
        f"@media (prefers-color-scheme:dark){{:root{{{';'.join(dark)}}}}}</style>"
    )
    # The style goes behind the opening tag, and the XML declaration in front of it goes.
    start = text.index("<defs>")
    text = text[text.index("<svg") : start] + style + text[start:]
    return "data:image/svg+xml;base64," + base64.b64encode(text.encode()).decode("ascii")


def shared_chart(result: Result) -> Chart | None:
    """Draw the consistency of both ways by depth, 0 at the null and 1 at the ceiling."""
    rows = range(len(result.get("pairs")))
    a, b = _names(result)
    of = {"forth": f"{a} has of {b}", "back": f"{b} has of {a}"}
    # Lines of linear layers, and open marks of Trans-Nets where they were fitted
    kinds: dict[str, Place] = {"": (), ", Trans-Net": ("trans_net",)}
    series = {
        (way, kind): {
            row: interval
            for row in rows
            if (interval := ends(result, "pairs", row, way, *path, "consistency"))
        }
        for kind, path in kinds.items()
        for way in WAYS
    }
    series = {key: points for key, points in series.items() if points}
    if not series:
        return None
    figure, axis = _canvas(2.9 + _tilted(result) + 0.5 * (len(series) > 2))
    bounds = _bounds(series.values(), LOWEST_CONSISTENCY, HIGHEST_CONSISTENCY, holds=(-0.05, 1.02))
    cut = False
    for (way, kind), points in series.items():
        style = _line_style(way, is_open=bool(kind))
        cut |= _draw_points(axis, points, bounds, label=f"{of[way]}{kind}", **style)
    _at_layers(axis, result)
    # The null; the axis always shows it and the ceiling.
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.set_ylim(bounds[0] - 0.02, bounds[1] + 0.02)
    axis.set_ylabel("consistency (0: null, 1: ceiling)")
    _legend(figure, [f"{of[way]}{kind}" for way, kind in series])
    words = [
        f"{of[way]}{kind}: {_in_words(result, points)}" for (way, kind), points in series.items()
    ]
    return Chart(
        "What each net has of the other, by depth",
        as_uri(figure),
        f"Line chart of the consistency at {len(rows)} pairs of layers. {'. '.join(words)}.",
        "Share of what is reconstructed beyond the null, with 95 % intervals over the images."
        + BEYOND * cut,
    )


def left_chart(result: Result) -> Chart | None:
    """Draw the instability of both ways by depth, and what it is held against."""
    rows = range(len(result.get("pairs")))
    if not rows:
        return None
    a, b = _names(result)
    figure, axis = _canvas(3.3 + _tilted(result))
    of = {"forth": f"{a} → {b}", "back": f"{b} → {a}"}
    words = []
    drawn, cut = set[str](), False
    largest = 1.0
    # Both ways of a pair stand beside one another at its tick.
    for way, shift in zip(WAYS, (-0.14, 0.14)):
        colour, _ = COLOURS[way]
        for kind, style in STYLES.items():
            points = {
                row: interval for row in rows if (interval := ends(result, "pairs", row, way, kind))
            }
            if not points:
                continue
            drawn.add(kind)
            shifted = {row + shift: interval for row, interval in points.items()}
            bounds = 0, HIGHEST_LEFT
            largest = max(largest, *(one.inside(*bounds).high for one in points.values()))
            cut |= _draw_points(axis, shifted, bounds, color=colour, linestyle="none", **style)
            if kind in ("instability", "null"):
                words.append(f"{of[way]} {kind}: {_in_words(result, points)}")
    _at_layers(axis, result)
    axis.set_xlim(-0.5, len(rows) - 0.5)
    axis.set_ylim(0, 1.05 * largest)
    axis.set_ylabel("share of Var(x*) left unexplained")
    # One legend for two things: marks say what a number is, colours say the way.
    names_of = {"instability": "left", "floor": "class alone"}
    marks = {names_of.get(kind, kind): STYLES[kind]["marker"] for kind in STYLES if kind in drawn}
    keys: list[Any] = [
        matplotlib.lines.Line2D([], [], color=INK, marker=mark, linestyle="none", markersize=5)
        for mark in marks.values()
    ]
    keys += [
        matplotlib.patches.Patch(color=COLOURS[way][0], label=name) for way, name in of.items()
    ]
    figure.legend(
        keys,
        [*marks, *(_short(name, 30) for name in of.values())],
        loc="outside lower center",
        ncols=2 if max(map(len, of.values())) > MOST_LETTERS else 3,
        frameon=False,
        fontsize=8,
    )
    return Chart(
        "What is left, and what it is held against",
        as_uri(figure),
        f"Chart of the share of variance left unexplained. {'. '.join(words)}.",
        "Null: pairs that share no more than their class. Ceiling: a net from itself. Class alone:"
        " what the means of the classes leave." + BEYOND * cut,
    )


def matrix_chart(result: Result) -> Chart | None:
    """Draw what each layer shares with each of the other net."""
    kind = next((name for name in ("shared", "cka") if result.get("matrix", name)), None)
    if kind is None:
        return None
    a, b = _names(result)
    rows, columns = result.get("matrix", "rows"), result.get("matrix", "columns")
    values = np.array(
        [
            [np.nan if cell is None else cell for cell in line]
            for line in _plain(result.get("matrix", kind))
        ]
    )
    wide = max(len(rows), len(columns)) > MOST_NUMBERS
    size = 2 * WIDTH if wide else WIDTH
    # Cells about square, within what fits a page
    figure, axis = _canvas(size * min(1.2, max(0.5, len(rows) / len(columns))) * 0.85, size)
    # Large maps are pixels inside of the SVG: thousands of cells would be megabytes.
    lowest = min(0.0, float(np.nanmin(values)))
    darkest = max(LOWEST_CONSISTENCY, lowest)
    drawn = axis.pcolormesh(values, cmap="viridis", vmin=darkest, vmax=1, rasterized=wide)
    axis.invert_yaxis()
    for place, labels, set_ticks in ((0, columns, axis.set_xticks), (1, rows, axis.set_yticks)):
        chosen = _spread(len(labels), 3 * MOST_TICKS if wide else MOST_NUMBERS)
        turned: dict[str, Any] = (
            {"rotation": 60, "ha": "right", "rotation_mode": "anchor"} if place == 0 else {}
        )
        set_ticks([n + 0.5 for n in chosen], [_short(labels[n]) for n in chosen], **turned)
    if not wide:
        # White on dark cells, black on light ones.
        for (y, x), value in np.ndenumerate(values):
            axis.text(
                *(x + 0.5, y + 0.5, "–" if np.isnan(value) else f"{value:.2f}"),
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > 0.6 else "white",
            )
    axis.tick_params(labelsize=7, length=0)
    axis.spines[:].set_visible(False)
    axis.set_xlabel(f"layers of {b}")
    axis.set_ylabel(f"layers of {a}")
    title = {"shared": "shared (smaller of both ways)", "cka": "CKA"}[kind]
    extend = "min" if lowest < darkest else "neither"
    figure.colorbar(drawn, ax=axis, label=title, fraction=0.05, pad=0.03, extend=extend)
    best = [
        f"{name} with {columns[int(np.nanargmax(line))]} ({np.nanmax(line):.2f})"
        for name, line in zip(rows, values)
        if not np.isnan(line).all()
    ]
    shown = best if len(best) <= MOST_CLASSES else [best[n] for n in _spread(len(best), MOST_TICKS)]
    return Chart(
        "Layer by layer",
        as_uri(figure),
        f"Heat map of {len(rows)} layers of {a} and {len(columns)} of {b}: {title}."
        f" Largest of a row: {', '.join(shown)}.",
        f"Of every layer of {a} (down) and of {b} (across): {title}.",
        wide,
    )


def spectrum_chart(result: Result) -> Chart | None:
    """Draw how much each depth of Trans-Net explains, at the pairs that have a spectrum."""
    every = range(len(result.get("pairs")))
    rows = [row for row in every if any(result.get("pairs", row, way, "spectrum") for way in WAYS)]
    lines = {
        (row, way): result.get("pairs", row, way, "spectrum")
        for row in rows[-MOST_SPECTRA:]
        for way in WAYS
        if result.get("pairs", row, way, "spectrum")
    }
    if not lines:
        return None
    a, b = _names(result)
    # A line of the legend has a pair of layers beside the names; where they are long, letters.
    a, b = (a, b) if len(a + b) < MOST_LETTERS else ("A", "B")
    of = {"forth": f"{a} → {b}", "back": f"{b} → {a}"}
    figure, axis = _canvas(2.5 + 0.17 * len(lines))  # a line each of the legend
    words, lowest, cut = [], 0.0, False
    # One colour for each pair of layers; both ways differ by line and marker.
    drawn_rows = dict.fromkeys(row for row, _ in lines)
    colours = {row: CURVES[n % len(CURVES)][0] for n, row in enumerate(drawn_rows)}
    for (row, way), depths in lines.items():
        # By the number of layers, in percent of Var(x*).
        points = {
            depth["layers"]: Ends(
                100 * depth["r2"],
                *(
                    100 * ((depth.get("intervals") or {}).get("r2") or {}).get(end, depth["r2"])
                    for end in ("low", "high")
                ),
            )
            for depth in depths
        }
        bounds = LOWEST_EXPLAINED, 101.0  # a share ends at 100 %
        lowest = min(lowest, *(interval.inside(*bounds).low for interval in points.values()))
        label = f"{_short(pair_label(result, row))}, {of[way]}"
        style = _line_style(way)
        style |= {"color": colours[row], "markersize": 4, "linewidth": 1.4, "label": label}
        cut |= _draw_points(axis, points, bounds, **style)
        values = ", ".join(
            f"{layers}: {interval.value:.1f} %" for layers, interval in points.items()
        )
        words.append(f"{label}, by layers: {values}")
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.set_ylim(lowest, 101)
    axis.set_xlabel("layers of the Trans-Net")
    axis.set_ylabel("explained, % of Var(x*)")
    _legend(figure, [f"{_short(pair_label(result, row))}, {of[way]}" for row, way in lines])
    return Chart(
        "How complex is what is shared",
        as_uri(figure),
        f"Line chart of the variance that Trans-Nets of several depths explain. {'. '.join(words)}.",
        "What rises with depth is shared only through non-linear layers."
        + (f" Of the {MOST_SPECTRA} deepest pairs." if len(rows) > MOST_SPECTRA else "")
        + BEYOND * cut,
    )


def class_chart(result: Result) -> Chart | None:
    """Draw which classes the deepest pair's knowledge is lost of, or what is unexplained of them."""
    rows = len(result.get("pairs"))
    if not rows:
        return None
    a, b = _names(result)
    lost: Place = ("pairs", rows - 1, "forth", "knowledge", "per_class")
    # Bits where B's tail was at hand, else what is unexplained within the classes.
    if result.get(*lost):
        series: dict[str, tuple[tuple[str | int, ...], str, str]] = {
            "forth": (lost, "lost_bits", f"lost from {a} to {b}")
        }
        title, unit = "Bits lost, by class", f"bits an image, of {b}'s answer"
    else:
        path: Place = ("pairs", rows - 1, "per_class")
        series = {
            way: (path, f"{way}_unexplained", label)
            for way, label in (("forth", f"{a} → {b}"), ("back", f"{b} → {a}"))
        }
        title, unit = "Unexplained within each class", "share of the variance within the class"
    points: dict[str, dict[int, Ends]] = {
        way: {
            number: interval
            for number in range(len(result.get(*path) or ()))
            if (interval := ends(result, *path, number, name))
        }
        for way, (path, name, _) in series.items()
    }
    if not points["forth"]:
        return None
    # The worst class of A → B on top.
    order = sorted(points["forth"], key=lambda number: -points["forth"][number].value)
    chosen = order[:MOST_CLASSES]
    path = series["forth"][0]
    labels = [str(result.get(*path, number, "class")) for number in chosen]
    figure, axis = _canvas(0.19 * len(chosen) + 1.1)
    values = [points[way][n].value for way in points for n in chosen if n in points[way]]
    # Bits have no end of their own; of an interval of few images less is shown.
    highest, cut = (2 * max(values) if result.get(*lost) else HIGHEST_LEFT), False
    for way, shift in zip(points, (-0.12, 0.12) if len(points) > 1 else (0,)):
        colour, marker = COLOURS[way]
        of_way = {
            place + shift: points[way][n] for place, n in enumerate(chosen) if n in points[way]
        }
        style: dict[str, Any] = {"marker": marker, "markersize": 4.5, "linestyle": "none"}
        style |= {"label": series[way][2], "color": colour}
        cut |= _draw_points(axis, of_way, (0, highest), across=True, **style)
    axis.set_yticks(range(len(labels)), [_short(label, 22) for label in labels], fontsize=8)
    # Upside down: the first label is on top.
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_xlabel(unit)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(axis="y", length=0)
    if len(points) > 1:
        _legend(figure, [label for _, _, label in series.values()])
    words = [
        f"{label} {points['forth'][number].value:.2f}" for label, number in zip(labels, chosen)
    ]
    some = f" {len(chosen)} worst of {len(order)} classes." if len(order) > len(chosen) else ""
    return Chart(
        title,
        as_uri(figure),
        f"Chart of {title.lower()} at {pair_label(result, rows - 1)}: {', '.join(words)}.{some}",
        f"At {pair_label(result, rows - 1)}, the worst first, with intervals where there are any."
        + some
        + BEYOND * cut,
    )


def distinction_chart(result: Result) -> Chart | None:
    """Draw how much of the gap between every two classes is lost, one map for each way."""
    places = {way: place for way in WAYS if (place := distinction_place(result, way))}
    places = {way: place for way, place in places.items() if result.get(*place, "matrix")}
    if not places:
        return None
    a, b = _names(result)
    of = {"forth": f"{a} → {b}", "back": f"{b} → {a}"}
    matrices = {
        way: np.array(result.get(*place, "matrix"), dtype=float) for way, place in places.items()
    }
    # One scale for both ways; above 0 where nothing is lost at all
    largest = max(1e-9, *(float(np.nanmax(matrix)) for matrix in matrices.values()))
    figure = matplotlib.figure.Figure(
        figsize=(WIDTH * len(places), 0.95 * WIDTH), layout="constrained"
    )
    words = []
    for axis, (way, place) in zip(
        figure.subplots(1, len(places), squeeze=False)[0], places.items()
    ):
        labels = [str(entry["class"]) for entry in result.get(*place, "classes")]
        drawn = axis.pcolormesh(matrices[way], cmap="viridis", vmin=0, vmax=largest)
        axis.invert_yaxis()
        axis.set_aspect("equal")
        ticks = [n + 0.5 for n in range(len(labels))]
        short = [_short(label, 12) for label in labels]
        axis.set_xticks(ticks, short, rotation=60, ha="right", rotation_mode="anchor")
        axis.set_yticks(ticks, short)
        axis.tick_params(labelsize=7, length=0)
        axis.spines[:].set_visible(False)
        axis.set_title(of[way], fontsize=9)
        worst = [
            f"{pair['first']} and {pair['second']} {pair['loss']['value']:.2f}"
            for pair in result.get(*place, "pairs")[:3]
        ]
        words.append(f"{of[way]}: most lost {', '.join(worst)}")
    figure.colorbar(drawn, ax=figure.axes, label="share of the gap that is lost", fraction=0.05)
    return Chart(
        "Which classes are told apart",
        as_uri(figure),
        f"Heat map of the lost share of the gap between every two classes. {'. '.join(words)}.",
        "Of the gap between two classes in a net's logits, the share that does not arrive from the"
        " other net's features. Without reference nets an order, no finding.",
        len(places) > 1,
    )


def _names(result: Result) -> tuple[str, str]:
    """Give the nets' names as there is room for them in a legend."""
    first, second = (_short(name, 16) for name in names(result))
    return first, second


def _canvas(height: float, width: float = WIDTH) -> tuple["Figure", "Axes"]:
    figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
    axis = figure.subplots()
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    return figure, axis


def _bounds(
    series: Iterable[dict[int, Ends]], lowest: float, highest: float, holds: tuple[float, float]
) -> tuple[float, float]:
    """Give an axis' ends: what intervals reach and `holds`, but no further than lowest, highest."""
    values = [*holds, *(value for points in series for one in points.values() for value in one)]
    return max(lowest, min(values)), min(highest, max(values))


def _draw_points(
    axis: "Axes",
    points: Mapping[float, Ends] | Mapping[int, Ends],
    bounds: tuple[float, float],
    *,
    color: str,
    across: bool = False,
    **style: Any,
) -> bool:
    """Draw numbers with their intervals, as far as an axis goes; say whether one reaches beyond.

    An arrow at the axis' end marks an interval that does; a number that does has no marker.

    Args:
        axis: to draw on.
        points: by their place along the other axis.
        bounds: the axis' ends.
        color: of all marks.
        across: the axis goes from left to right.
        style: of the markers and of the line between them.
    """
    low, high = bounds
    places, inside = list(points), [interval.inside(low, high) for interval in points.values()]
    values = [of.value if low <= of.value <= high else np.nan for of in points.values()]
    bars = [interval.value for interval in inside], _reach(inside)
    if across:
        axis.errorbar(bars[0], places, xerr=bars[1], fmt="none", ecolor=color)
        axis.plot(values, places, color=color, **style)
    else:
        axis.errorbar(places, bars[0], yerr=bars[1], fmt="none", ecolor=color)
        axis.plot(places, values, color=color, **style)
    arrows = [
        *((place, low, "<" if across else "v") for place, of in points.items() if of.low < low),
        *((place, high, ">" if across else "^") for place, of in points.items() if of.high > high),
    ]
    for place, end, arrow in arrows:
        x, y = (end, place) if across else (place, end)
        axis.plot([x], [y], marker=arrow, markersize=7, color=color, clip_on=False, zorder=4)
    return bool(arrows)


def _line_style(way: str, *, is_open: bool = False) -> dict[str, Any]:
    """Give the style of a way's line; open marks are of Trans-Nets."""
    colour, marker = COLOURS[way]
    return {
        "color": colour,
        "marker": marker,
        "markersize": 7 if is_open else 5,
        "markerfacecolor": "none" if is_open else None,
        "linewidth": 1 if is_open else 1.5,
        "linestyle": ":" if is_open else "-" if way == "forth" else "--",
    }


def _reach(points: Any) -> list[list[float]]:
    """Give how far intervals reach below and above their numbers."""
    # matplotlib takes lengths, of which rounding must not make a negative one.
    below = [max(0.0, interval.value - interval.low) for interval in points]
    return [below, [max(0.0, interval.high - interval.value) for interval in points]]


def _at_layers(axis: "Axes", result: Result) -> None:
    """Name the pairs of layers below an axis, as many as there is room for."""
    rows = len(result.get("pairs"))
    chosen = _spread(rows, MOST_TICKS)
    labels = [_short(pair_label(result, row)) for row in chosen]
    turned: dict[str, Any] = {}
    if _tilted(result):
        turned = {"rotation": 40, "ha": "right", "rotation_mode": "anchor", "fontsize": 7}
    axis.set_xticks(chosen, labels, **turned)
    axis.set_xlim(-0.3, rows - 0.7)
    axis.set_xlabel("pairs of layers, deeper to the right")
    axis.grid(axis="y", alpha=0.25)


def _tilted(result: Result) -> float:
    """Give the inches that the names of layers need more where they do not fit side by side."""
    count = len(result.get("pairs"))
    labels = [_short(pair_label(result, row)) for row in _spread(count, MOST_TICKS)]
    return 0.7 if sum(map(len, labels)) > MOST_SIDE_BY_SIDE else 0.0


def _legend(figure: "Figure", labels: Iterable[str]) -> None:
    """Lay the legend below, in two columns where that is no wider than the figure."""
    columns = 1 if max(map(len, labels)) > MOST_LETTERS else 2
    figure.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _spread(count: int, most: int) -> list[int]:
    """Choose at most so many of a row of things, evenly, the first and the last among them."""
    if count <= most:
        return list(range(count))
    return sorted({round(place) for place in np.linspace(0, count - 1, most)})


def _short(label: Any, most: int = 18) -> str:
    """Cut a long name in its middle, since its ends tell layers apart."""
    text = str(label)
    return text if len(text) <= most else f"{text[: most // 2 - 1]}…{text[-(most // 2) :]}"


def _in_words(result: Result, points: dict[int, Ends]) -> str:
    chosen: Sequence[int] = [list(points)[n] for n in _spread(len(points), MOST_TICKS)]
    return ", ".join(f"{points[row].value:.2f} at {pair_label(result, row)}" for row in chosen)


def _plain(matrix: Any) -> list[list[float | None]]:
    """Take the values of a matrix whose cells are numbers or intervals' records."""
    return [
        [cell.get("value") if isinstance(cell, dict) else cell for cell in line] for line in matrix
    ]
