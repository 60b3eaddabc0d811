"""Pictures of components, variances and curves, as functions that give a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from torch import Tensor

SIGNED = "RdBu_r"  # for components and residuals: zero is white, on one symmetric scale
UNSIGNED = "viridis"
RESIDUAL, REMAINDER = "#d55e00", "#999999"
# Okabe and Ito's colours, which colour-blind people tell apart; every curve also has a marker of its own.
CURVES = (("#0072b2", "o"), ("#d55e00", "s"), ("#009e73", "^"), ("#cc79a7", "D"), ("#e69f00", "v"), ("#56b4e9", "P"))
SYMBOLS = {"target": "$x^*$", "output": "$g(x)$", "residual": r"$x_\Delta$"}
# Laid over a photo: the weakest is transparent, the strongest nearly opaque. The colour bar has just these colours.
HEAT = ListedColormap(
    np.column_stack([matplotlib.colormaps["inferno"](np.linspace(0.3, 1, 256))[:, :3], np.linspace(0, 0.85, 256)])
)


def symbol(name: str) -> str:
    """Give the paper's symbol, as mathtext, of "target", "output", "residual" or "order0", "order1", …"""
    return SYMBOLS.get(name) or f"$x^{{({name.removeprefix('order')})}}$"


def component_figure(
    image: Tensor | None,
    x: Tensor,
    target: Tensor,
    output: Tensor,
    components: Tensor,
    channels: Sequence[int],
    notes: Sequence[str] | None = None,
) -> Figure:
    """Show, for some channels, a target's map and what it splits into (paper Eq. 3): one row a channel.

    All maps of a row share one symmetric colour scale, so that strengths compare; only x is on its own.

    Args:
        image: the photo, uint8 (3, S, S), shown in front of every row; None leaves it out.
        x: the feature that the target is reconstructed from, (C_in, H, W). Its channels do not correspond to the
            target's: shown is the one of the same number, or the last.
        target: x*, (C, H', W').
        output: g(x), (C, H', W'): the components and, of a Trans-Net that standardises, a constant.
        components: x(0) … x(K), (K+1, C, H', W').
        channels: which channels, one row each.
        notes: a text for each row.

    Returns:
        A figure that belongs to no window.
    """
    maps = {f"target\n{symbol('target')}": target, f"reconstructed\n{symbol('output')}": output}
    maps |= {f"order {k}\n{symbol(f'order{k}')}": part for k, part in enumerate(components)}
    maps[f"not reconstructed\n{symbol('residual')}"] = target - output
    columns = len(maps) + 1 + (image is not None)
    figure = _figure(1.32 * columns + 0.5, 1.32 * len(channels) + 0.45)
    axes = figure.subplots(len(channels), columns, squeeze=False)
    for row, channel in enumerate(channels):
        limit = max(float(values[channel].abs().max()) for values in maps.values()) or 1.0
        cells = list(axes[row])
        if image is not None:
            _show(cells.pop(0), image.permute(1, 2, 0), "photo")
        _show(cells.pop(0), x[min(channel, len(x) - 1)].float(), "input $x$\n(own scale)", cmap=UNSIGNED)
        for axis, (title, values) in zip(cells, maps.items()):
            shown = _show(axis, values[channel].float(), title, cmap=SIGNED, vmin=-limit, vmax=limit)
        figure.colorbar(shown, ax=axes[row, -1], fraction=0.06, pad=0.04).ax.tick_params(labelsize=6)
        axes[row, 0].set_ylabel(f"channel {channel}" + (f"\n{notes[row]}" if notes else ""), fontsize=8)
    _titles_on_top(axes)
    return figure


def decomposition_figure(trans_net: Any, x: Tensor, target: Tensor) -> Figure:
    """Show what the first feature of a batch splits into, in the four channels that vary most on it.

    Args:
        trans_net: g, in evaluation mode; its `decompose` gives g(x) and the components.
        x: (N, C_in, H, W).
        target: x*, (N, C, H', W').
    """
    output, components = trans_net.decompose(x[:1])
    channels = target[0].flatten(1).std(1, correction=0).topk(min(4, target.shape[1])).indices.tolist()
    return component_figure(None, x[0], target[0], output[0].detach(), components[:, 0].detach(), channels)


def strength(maps: Tensor, size: int, channel: int | None = None) -> Tensor:
    """Say where maps are strong: Σ over channels of |value|, or |value| of one channel, at an image's resolution.

    Args:
        maps: (N, C, H, W).
        size: S, pixels; the maps are enlarged bilinearly.
        channel: only this one.

    Returns:
        (N, S, S) float32, at least 0.
    """
    chosen = maps if channel is None else maps[:, channel : channel + 1]
    summed = chosen.float().abs().sum(1, keepdim=True)
    return F.interpolate(summed, (size, size), mode="bilinear", align_corners=False)[:, 0]


def overlay_figure(
    images: Tensor, target: Tensor, output: Tensor, residual: str = "not reconstructed", channel: int | None = None
) -> Figure:
    """Lay x*, g(x) and x_Δ over the photos that they come from: one row a photo (paper Fig. 3 and 5).

    Every column has a colour scale of its own, from its weakest point to its strongest, that stands below it: the
    overlays say where features are, not how strong the columns are in comparison.

    Args:
        images: the photos, uint8 (N, 3, S, S); shown in colour first and in grey under the maps.
        target: x*, (N, C, H, W).
        output: g(x), (N, C, H, W).
        residual: what x_Δ is called here: blind spots, unreliable features.
        channel: only this channel instead of the sum over all.

    Returns:
        A figure that belongs to no window.
    """
    maps = {f"features {symbol('target')}": target, f"reconstructed {symbol('output')}": output}
    maps[f"{residual} {symbol('residual')}"] = target - output
    rows, columns = len(images), len(maps) + 1
    figure = _figure(1.9 * columns, 1.93 * rows + 0.75)
    axes = figure.subplots(rows + 1, columns, squeeze=False, height_ratios=[1] * rows + [0.05])
    for axis, image in zip(axes[:, 0], images):
        _show(axis, image.permute(1, 2, 0), "photo")
    axes[rows, 0].set_axis_off()
    for column, (title, values) in enumerate(maps.items(), start=1):
        heats = strength(values, images.shape[-1], channel)
        for axis, image, heat in zip(axes[:, column], images, heats):
            _show(axis, image.float().mean(0), title, cmap="gray", vmin=0, vmax=255)
            shown = axis.imshow(heat.cpu().numpy(), cmap=HEAT, vmin=float(heats.min()), vmax=float(heats.max()))
        ticks = MaxNLocator(4, prune="both")  # a number at the end of the bar would push the columns apart
        bar = figure.colorbar(shown, cax=axes[rows, column], orientation="horizontal", ticks=ticks)
        bar.set_label(
            "sum of |value| over channels" if channel is None else f"|value| in channel {channel}", fontsize=7
        )
        bar.ax.tick_params(labelsize=7)
    _titles_on_top(axes)
    return figure


def variance_figure(reports: Mapping[str, Mapping[str, Any]], p: Sequence[float] = ()) -> Figure:
    """Draw the variances of the components as shares of Var(x*), a panel for each report (paper Table 2).

    Components are not orthogonal: what is missing from, or exceeds, 100 % is twice the sum of their covariances.

    Args:
        reports: by title, what `ComponentMoments.report` gives or `Variance.py --json` wrote.
        p: p(1) … p(K), drawn in a last panel.
    """
    rows = max(len(report["var"]) for report in reports.values()) - 1
    panels = len(reports) + (len(p) > 0)
    figure = _figure(2.5 * panels + 0.8, 0.28 * rows + 1.0, between=0.06)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis, (title, report) in zip(axes, reports.items()):
        total = report["var"]["target"]
        parts = {name: value for name, value in report["var"].items() if name not in ("target", "output")}
        values = [*parts.values(), total - sum(parts.values())]
        shares = [100 * value / total if total > 0 else 0.0 for value in values]
        names = [*map(symbol, parts), "2 Σ covariances"]
        blues = matplotlib.colormaps["Blues"](np.linspace(0.9, 0.45, len(parts) - 1))
        texts = [f"{value:.3g}  ({share:.3g} %)" for value, share in zip(values, shares)]
        _bars(axis, names, shares, [*blues, RESIDUAL, REMAINDER], texts, [max(share, 0) for share in shares])
        if axis is not axes[0] and len(names) == len(axes[0].get_yticks()):
            axis.tick_params(labelleft=False)
        axis.set_xlim(min(-5, *shares), max(100, *shares) * 1.7)
        axis.set_xticks(range(0, 101, 25))
        axis.set_xlabel("% of Var($x^*$)", fontsize=8)
        axis.set_title(f"{title}\nVar($x^*$) = {total:.3g}", fontsize=9)
    if len(p):
        names = [f"$p^{{({k})}}$" for k in range(1, len(p) + 1)]
        _bars(axes[-1], names, p, [CURVES[2][0]] * len(p), [f"{weight:.3f}" for weight in p], [1] * len(p))
        axes[-1].set(xlim=(0, 1.3), ylim=(rows - 0.5, -0.5), xticks=(0, 0.5, 1))
        axes[-1].axvline(0.5, color="black", linewidth=0.8, linestyle="--")
        axes[-1].set_xlabel("weight (dashed: where it began)", fontsize=8)
        axes[-1].set_title("learned weights\nof the orders", fontsize=9)
    return figure


def curve_figure(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    x_label: str,
    y_label: str,
    notes: Mapping[str, Sequence[str]] | None = None,
) -> Figure:
    """Draw one curve a name through its points (paper Fig. 4).

    Args:
        curves: points (x, y) by name, joined in their order; at least one curve.
        x_label: quantity and unit.
        y_label: the same.
        notes: a text beside each point, by the curve's name.
    """
    figure = Figure(figsize=(4.4, 3.3), layout="constrained")
    axis = figure.subplots()
    for (name, points), (colour, marker) in zip(curves.items(), CURVES):
        axis.plot(*zip(*points), color=colour, marker=marker, markersize=5, linewidth=1.5, label=name)
        for (x, y), note in zip(points, (notes or {}).get(name, ())):
            text = axis.annotate(note, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7, color=colour)
            text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    axis.margins(x=0.08)
    if all(float(x).is_integer() for points in curves.values() for x, _ in points):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
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


def _figure(width: float, height: float, between: float = 0.02) -> Figure:
    """Make a figure, inches, whose cells lie close together."""
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=between, hspace=between)
    return Figure(figsize=(width, height), layout=layout)


def _show(axis: Axes, picture: Tensor, title: str, **style: Any) -> AxesImage:
    """Draw one cell without ticks."""
    shown = axis.imshow(picture.cpu().numpy(), interpolation="nearest", **style)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    return shown


def _titles_on_top(axes: np.ndarray) -> None:
    """Title a grid of cells (rows, columns) in its first row only."""
    for axis in axes[1:].flat:
        axis.set_title("")


def _bars(
    axis: Axes,
    names: Sequence[str],
    values: Sequence[float],
    colours: Sequence[Any],
    texts: Sequence[str],
    text_at: Sequence[float],
) -> None:
    """Draw horizontal bars from top to bottom, each with a text right of its `text_at`."""
    axis.barh(names, values, color=colours, height=0.75)
    for row, (text, place) in enumerate(zip(texts, text_at)):
        axis.annotate(text, (place, row), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
