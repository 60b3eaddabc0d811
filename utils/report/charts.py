"""Charts of numbers, as functions that give a matplotlib figure.

They show variances by order, spectra and curves.
"""

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from utils.later import matplotlib
from utils.report.maps import symbol, tight_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESIDUAL, REMAINDER = "#d55e00", "#999999"
# Okabe and Ito's colours, which colour-blind people tell apart; every curve also has a marker of
# its own.
CURVES = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#e69f00", "v"),
    ("#56b4e9", "P"),
)


class Estimate(NamedTuple):
    """A number with its interval, as it is drawn.

    Attributes:
        series: what kind of number it is; a series has a colour and a marker.
        value: the number.
        low, high: the ends, or None.
    """

    series: str
    value: float
    low: float | None
    high: float | None


class Point(NamedTuple):
    """A point of a curve, the intervals of its numbers if they are known, and a text beside it."""

    x: float
    y: float
    x_ends: tuple[float, float] | None = None
    y_ends: tuple[float, float] | None = None
    note: str = ""


def variance_figure(reports: Mapping[str, Mapping[str, Any]], p: Sequence[float] = ()) -> "Figure":
    """Draw the variances of the components as shares of Var(x*) (paper Table 2).

    Each report has a panel.

    Components are not orthogonal: what is missing from, or exceeds, 100 % is twice the sum of their
    covariances.

    Args:
        reports: by title, what `variance_report` gives or `Variance.py --json` wrote.
        p: p(1) … p(K), drawn in a last panel.
    """
    rows = max(len(report["var"]) for report in reports.values()) - 1
    panels = len(reports) + (len(p) > 0)
    figure = tight_figure(2.5 * panels + 0.8, 0.28 * rows + 1.0, between=0.06)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, (title, report) in zip(axes, reports.items()):
        total = report["var"]["target"]
        parts = {
            name: value for name, value in report["var"].items() if name not in ("target", "output")
        }
        # Var(x*) = Σ Var(parts) + 2 Σ Cov: the last bar is the covariances.
        values = [*parts.values(), total - sum(parts.values())]
        shares = [100 * value / total if total > 0 else 0.0 for value in values]
        names = [*map(symbol, parts), "2 Σ covariances"]
        # Orders from dark to light, then the residual and the covariances.
        blues = matplotlib.colormaps["Blues"](np.linspace(0.9, 0.45, len(parts) - 1))
        texts = [f"{value:.3g}  ({share:.3g} %)" for value, share in zip(values, shares)]
        _bars(
            axis,
            names,
            shares,
            [*blues, RESIDUAL, REMAINDER],
            texts,
            [max(share, 0) for share in shares],
        )
        if axis is not axes[0] and len(names) == len(axes[0].get_yticks()):
            axis.tick_params(labelleft=False)
        # Beyond 100 % there is room for the texts behind the bars.
        axis.set_xlim(min(-5, *shares), max(100, *shares) * 1.7)
        axis.set_xticks(range(0, 101, 25))
        axis.set_xlabel("% of Var($x^*$)", fontsize=8)
        axis.set_title(f"{title}\nVar($x^*$) = {total:.3g}", fontsize=9)
    if len(p):
        names = [f"$p^{{({k})}}$" for k in range(1, len(p) + 1)]
        _bars(
            axes[-1],
            names,
            p,
            [CURVES[2][0]] * len(p),
            [f"{weight:.3f}" for weight in p],
            [1] * len(p),
        )
        axes[-1].set(xlim=(0, 1.3), ylim=(rows - 0.5, -0.5), xticks=(0, 0.5, 1))
        axes[-1].axvline(0.5, color="black", linewidth=0.8, linestyle="--")
        axes[-1].set_xlabel("weight (dashed: where it began)", fontsize=8)
        axes[-1].set_title("learned weights\nof the orders", fontsize=9)
    return figure


def curve_figure(curves: Mapping[str, Sequence[Point]], x_label: str, y_label: str) -> "Figure":
    """Draw one curve a name through its points, with their intervals (paper Fig. 4).

    Args:
        curves: points by name, joined in their order; at least one curve.
        x_label: quantity and unit.
        y_label: the same.
    """
    figure = matplotlib.figure.Figure(figsize=(4.4, 3.3), layout="constrained")
    axis = figure.subplots()
    for (name, points), (colour, marker) in zip(curves.items(), CURVES):
        x, y, x_ends, y_ends, _ = zip(*points)
        axis.plot(x, y, color=colour, marker=marker, markersize=5, linewidth=1.5, label=name)
        across, along = _reach(x, x_ends), _reach(y, y_ends)
        axis.errorbar(
            x, y, xerr=across, yerr=along, fmt="none", ecolor=colour, elinewidth=1, alpha=0.6
        )
        for point in points:
            text = axis.annotate(
                point.note,
                point[:2],
                xytext=(4, 4),
                textcoords="offset points",
                fontsize=7,
                color=colour,
            )
            text.set_path_effects(
                [matplotlib.patheffects.withStroke(linewidth=2, foreground="white")]
            )
    axis.margins(x=0.08)
    # Whole numbers, such as depths, get no fractions between them.
    if all(float(point.x).is_integer() for points in curves.values() for point in points):
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axis.set_xlabel(x_label, fontsize=9)
    axis.set_ylabel(y_label, fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        axis.legend(fontsize=8, frameon=False)
    else:
        axis.set_title(next(iter(curves)), fontsize=9)
    return figure


def interval_figure(panels: Mapping[str, Mapping[str, Sequence[Estimate]]]) -> "Figure":
    """Draw numbers with their intervals, a line each.

    They are in panels below one another, each with its scale.

    Args:
        panels: by title: by the name of a line what stands on it.
    """
    tall = 1 + max(name.count("\n") for lines in panels.values() for name in lines)  # lines of text
    heights = [tall * len(lines) + 2.5 for lines in panels.values()]
    # 0.2 inches for each line of text
    figure = matplotlib.figure.Figure(figsize=(9.5, 0.2 * sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    named = dict.fromkeys(
        estimate.series for lines in panels.values() for line in lines.values() for estimate in line
    )
    # A series has one colour and marker in all panels.
    styles = dict(zip(named, itertools.cycle(CURVES)))
    for axis, (title, lines) in zip(axes, panels.items()):
        handles = {}
        for place, line in enumerate(lines.values()):
            for series, value, low, high in line:
                colour, marker = styles[series]
                ends = None if low is None or high is None else [[value - low], [high - value]]
                handles[series] = axis.errorbar(
                    value,
                    place,
                    xerr=ends,
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linewidth=1.2,
                    linestyle="none",
                )
        axis.set_yticks(range(len(lines)), list(lines))
        axis.set_ylim(len(lines) - 0.4, -0.6)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_title(textwrap.fill(title, 70), fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.legend(
            list(handles.values()),
            list(handles),
            loc="upper left",
            bbox_to_anchor=(1, 1),
            fontsize=8,
            frameon=False,
        )
    return figure


def spectrum_figure(spectrum: Sequence[Mapping[str, float]]) -> "Figure":
    """Draw the fuzziness spectrum.

    It says how much more of Var(x*) each depth explains on images that were not fitted.

    Args:
        spectrum: a row a depth, the shallowest first, with `layers`, `r2` = 1 − instability, and
            `gain`, the R² beyond that of the depth before.
    """
    figure = matplotlib.figure.Figure(
        figsize=(4.2, 0.42 * len(spectrum) + 1.1), layout="constrained"
    )
    axis = figure.subplots()
    names = [f"{row['layers']} layer{'s' if row['layers'] > 1 else ''}" for row in spectrum]
    gains = [100 * row["gain"] for row in spectrum]
    blues = matplotlib.colormaps["Blues"](np.linspace(0.9, 0.45, len(spectrum)))
    texts = [
        f"{gain:+.2f} %  (together {100 * row['r2']:.2f} %)" for gain, row in zip(gains, spectrum)
    ]
    _bars(axis, names, gains, list(blues), texts, [max(gain, 0) for gain in gains])
    # Texts stand right of the bars; the axis itself ends at 100 %, since a share has no more.
    axis.set_xlim(min(0, *gains) * 1.1, 100 * 1.7)
    axis.set_xticks(range(0, 101, 25))
    axis.spines["bottom"].set_bounds(min(0, *gains), 100)
    axis.set_xlabel("held-out R² gained over the depth before, % of Var($x^*$)", fontsize=8)
    return figure


def _reach(
    values: Sequence[float], ends: Sequence[tuple[float, float] | None]
) -> list[list[float]]:
    """Give how far intervals reach below and above their numbers; nowhere where there are none."""
    low, high = zip(*(both or (value, value) for value, both in zip(values, ends)))
    return [
        [value - end for value, end in zip(values, low)],
        [end - value for value, end in zip(values, high)],
    ]


def _bars(
    axis: "Axes",
    names: Sequence[str],
    values: Sequence[float],
    colours: Sequence[Any],
    texts: Sequence[str],
    text_at: Sequence[float],
) -> None:
    """Draw horizontal bars from top to bottom, each with a text right of its `text_at`."""
    axis.barh(names, values, color=colours, height=0.75)
    for row, (text, place) in enumerate(zip(texts, text_at)):
        axis.annotate(
            text, (place, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7
        )
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
