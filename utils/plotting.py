"""Pictures of feature components, as functions that give a matplotlib figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

SIGNED = "RdBu_r"  # for components and residuals: zero is white, on one symmetric scale
UNSIGNED = "viridis"


def component_figure(
    image: Tensor | None, maps: Mapping[str, Tensor], channels: Sequence[int], notes: Sequence[str] | None = None
) -> Figure:
    """Show, for some channels, what A sees, what B sees, and how B's map splits: one row a channel.

    Args:
        image: the photo, uint8 (3, S, S), shown in front of every row; None leaves it out.
        maps: columns by title, each (C, H, W). "x" is on its own scale, since A's channels are not B's; all other
            columns of a row share one symmetric scale, so that strengths compare.
        channels: which channels, one row each.
        notes: a text for each row.

    Returns:
        A figure that belongs to no window.
    """
    columns = len(maps) + (image is not None)
    figure = Figure(figsize=(1.55 * columns, 1.6 * len(channels) + 0.5), layout="constrained")
    axes = figure.subplots(len(channels), columns, squeeze=False)
    for row, channel in enumerate(channels):
        shared = [values[channel].float() for title, values in maps.items() if title != "x"]
        limit = max(float(values.abs().max()) for values in shared) or 1.0
        cells = list(axes[row])
        if image is not None:
            _show(cells.pop(0), image.permute(1, 2, 0).cpu().numpy(), "image" if row == 0 else "")
        for axis, (title, values) in zip(cells, maps.items()):
            picture = values[channel if title != "x" else min(channel, len(values) - 1)].float().cpu().numpy()
            if title == "x":
                _show(axis, picture, title if row == 0 else "", cmap=UNSIGNED)
            else:
                shown = _show(axis, picture, title if row == 0 else "", cmap=SIGNED, vmin=-limit, vmax=limit)
        figure.colorbar(shown, ax=axes[row, -1], fraction=0.05, pad=0.02).ax.tick_params(labelsize=6)
        label = f"channel {channel}" + (f"\n{notes[row]}" if notes else "")
        axes[row, 0].set_ylabel(label, fontsize=7)
    return figure


def _show(axis: Axes, picture: np.ndarray, title: str, **style: Any) -> AxesImage:
    """Draw one cell without ticks."""
    shown = axis.imshow(picture, interpolation="nearest", **style)
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
    return shown


def component_titles(order: int) -> list[str]:
    """Title the components: x(0) … x(K), as in the paper."""
    return [f"$x^{{({k})}}$" for k in range(order + 1)]
