"""Pictures of feature maps, as functions that give a matplotlib figure.

They show components, and overlays on photos.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.files import replacing
from utils.later import matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SIGNED = "RdBu_r"  # for components and residuals: zero is white, on one symmetric scale
UNSIGNED = "viridis"
OWN = "\n(own scale)"  # below what a colour bar of another scale than its neighbours' says
CONTOURS = (0.5, 0.75)  # of the scale of what is not reconstructed
SYMBOLS = {"target": "$x^*$", "output": "$g(x)$", "residual": r"$x_\Delta$"}


@functools.cache
def heat_colours() -> "ListedColormap":
    """Give the colours of what lies over a photo, and of its bar.

    The weakest is transparent, the strongest nearly opaque.
    """
    colours = matplotlib.colormaps["inferno"](np.linspace(0.3, 1, 256))[:, :3]
    return matplotlib.colors.ListedColormap(np.column_stack([colours, np.linspace(0, 0.85, 256)]))


def symbol(name: str) -> str:
    """Give the paper's symbol of a component, as mathtext.

    Names are "target", "output", "residual" and "order0", "order1", …
    """
    return SYMBOLS.get(name) or f"$x^{{({name.removeprefix('order')})}}$"


def component_figure(
    image: Tensor | None,
    x: Tensor,
    target: Tensor,
    output: Tensor,
    components: Tensor,
    channels: Sequence[int],
    notes: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> "Figure":
    """Show what a target's maps split into, one row a channel (paper Eq. 3).

    The channels are chosen.

    All maps of a row share one symmetric colour scale, so that strengths compare; only x is on its
    own.

    Args:
        image: the photo, uint8 (3, S, S), shown in front of every row; None leaves it out.
        x: the feature that the target is reconstructed from, (C_in, H, W). Its channels do not
            correspond to the target's: shown is the one that correlates most with the target's in
            this image, positively or negatively, with its number and its r.
        target: x*, (C, H', W').
        output: g(x), (C, H', W'): the components and, of a Trans-Net that standardises, a constant.
        components: x(0) … x(K), (K+1, C, H', W').
        channels: which channels, one row each.
        notes: a text for each row.
        names: of the rows; None: "channel" and its number.

    Returns:
        A figure that belongs to no window.
    """
    maps = {f"target\n{symbol('target')}": target, f"reconstructed\n{symbol('output')}": output}
    maps |= {
        f"order {k}\n{symbol(f'order{k}')}": component for k, component in enumerate(components)
    }
    maps[f"not reconstructed\n{symbol('residual')}"] = target - output
    maps, x = {title: as_pictures(values) for title, values in maps.items()}, as_pictures(x)
    # Tokens that lie on no grid are one picture of all channels.
    if maps and next(iter(maps.values())).shape[0] == 1:
        channels = [0]
    columns = len(maps) + 1 + (image is not None)
    figure = tight_figure(1.32 * columns + 0.5, 1.32 * len(channels) + 0.45)
    axes = figure.subplots(len(channels), columns, squeeze=False)
    for row, channel in enumerate(channels):
        # One symmetric scale for all maps of a row, so that zero is white.
        limit = max(float(values[channel].abs().max()) for values in maps.values()) or 1.0
        cells = list(axes[row])
        if image is not None:
            show(cells.pop(0), image.permute(1, 2, 0), "photo")
        # x has other channels than x*: show the one that goes with this one.
        match, r = best_match(x, maps[next(iter(maps))][channel])
        axis = cells.pop(0)
        show(axis, x[match].float(), "best match in $x$\n(own scale)", cmap=UNSIGNED)
        axis.set_xlabel(f"channel {match}, r = {r:+.2f}", fontsize=6, labelpad=2)
        for axis, (title, values) in zip(cells, maps.items()):
            shown = show(axis, values[channel].float(), title, cmap=SIGNED, vmin=-limit, vmax=limit)
        bar = figure.colorbar(shown, ax=axes[row, -1], fraction=0.06, pad=0.04)
        bar.set_label("value, of all but $x$", fontsize=6)
        bar.ax.tick_params(labelsize=6)
        name = names[row] if names else f"channel {channel}"
        axes[row, 0].set_ylabel(name + (f"\n{notes[row]}" if notes else ""), fontsize=8)
    _titles_on_top(axes)
    return figure


def best_match(x: Tensor, target: Tensor) -> tuple[int, float]:
    """Find the channel whose map goes with a target's map, by correlation over positions.

    Args:
        x: maps (C, H, W), brought to the target's size.
        target: one map, (H', W').

    Returns:
        The channel whose |r| is the largest, and its r in [-1, 1]; r is 0 where a map is constant.
    """
    if x.shape[1:] != target.shape:
        x = F.interpolate(x.float()[None], tuple(target.shape), mode="bilinear")[0]
    rows = torch.cat([target.double()[None], x.double()]).flatten(1)
    # Pearson's r is the product of centred rows of norm 1; a constant row has norm 0 and r = 0.
    rows = F.normalize(rows - rows.mean(1, keepdim=True), dim=1)
    r = rows[1:] @ rows[0]
    match = int(r.abs().argmax())
    return match, float(r[match])


def decomposition_figure(trans_net: Any, x: Tensor, target: Tensor) -> "Figure":
    """Show what the first feature of a batch splits into.

    The channels are the four that vary most on it.

    Args:
        trans_net: g, in evaluation mode; its `decompose` gives g(x) and the components.
        x: (N, C_in, H, W).
        target: x*, (N, C, H', W').
    """
    output, components = trans_net.decompose(x[:1])
    channels = (
        target[0].flatten(1).std(1, correction=0).topk(min(4, target.shape[1])).indices.tolist()
    )
    return component_figure(
        None, x[0], target[0], output[0].detach(), components[:, 0].detach(), channels
    )


def as_pictures(maps: Tensor) -> Tensor:
    """Make tokens that came as maps (…, C, T, 1) something to look at; other maps stay as they are.

    Tokens whose number, less the class token perhaps, is a square lie on their grid: (…, C, √T,
    √T). Others are one picture, tokens × channels: (…, 1, T, C).
    """
    if maps.shape[-1] != 1 or maps.shape[-2] == 1:
        return maps
    tokens = maps.shape[-2]
    # Without a class token, then with one in front.
    for others in (0, 1):
        side = math.isqrt(tokens - others)
        if side**2 == tokens - others:
            # (…, C, T, 1) → (…, C, √T, √T), without the class token
            return maps[..., others:, 0].unflatten(-1, (side, side))
    # (…, C, T, 1) → (…, 1, T, C)
    return maps[..., 0].transpose(-1, -2)[..., None, :, :]


def strength(maps: Tensor, size: int, channel: int | None = None) -> Tensor:
    """Say where maps are strong, at an image's resolution.

    Strength is Σ over channels of |value|, or |value| of one channel.

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
    images: Tensor,
    target: Tensor,
    output: Tensor,
    residual: str = "not reconstructed",
    channel: int | None = None,
) -> "Figure":
    """Lay x*, g(x) and x_Δ over the photos that they come from (paper Fig. 3 and 5).

    Each photo has a row.

    Features and reconstruction are read against each other, so they share one colour scale, from
    their weakest point to their strongest. What is not reconstructed is weaker: on that scale it
    would look like the bare photo, so it has a scale of its own, and contours at half and at
    three quarters of it.

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
    figure = tight_figure(1.9 * columns, 1.93 * rows + 0.75)
    axes = figure.subplots(rows + 1, columns, squeeze=False, height_ratios=[1] * rows + [0.05])
    for axis, image in zip(axes[:, 0], images):
        show(axis, image.permute(1, 2, 0), "photo")
    axes[rows, 0].set_axis_off()
    strengths = {
        title: strength(as_pictures(values), images.shape[-1], channel)
        for title, values in maps.items()
    }
    *shared, last = strengths
    # One scale for x* and g(x), another for what is not reconstructed.
    scales = dict.fromkeys(shared, _limits(torch.stack([strengths[title] for title in shared])))
    scales[last] = _limits(strengths[last])
    quantity = (
        "sum of |value| over channels" if channel is None else f"|value| in channel {channel}"
    )
    for column, (title, heats) in enumerate(strengths.items(), start=1):
        for axis, image, heat in zip(axes[:, column], images, heats):
            # In grey, so that the only colours are those of the maps.
            show(axis, image.float().mean(0), title, cmap="gray", vmin=0, vmax=255)
            weakest, strongest = scales[title]
            shown = axis.imshow(
                heat.cpu().numpy(), cmap=heat_colours(), vmin=weakest, vmax=strongest
            )
            levels = [weakest + share * (strongest - weakest) for share in CONTOURS]
            # A map that no level crosses has no contour to draw.
            if title == last and float(heat.min()) < levels[0] < float(heat.max()):
                axis.contour(heat.cpu().numpy(), levels, colors="white", linewidths=0.8)
        # A number at the end of the bar would push the columns apart.
        ticks = matplotlib.ticker.MaxNLocator(4, prune="both")
        bar = figure.colorbar(shown, cax=axes[rows, column], orientation="horizontal", ticks=ticks)
        bar.set_label(f"{quantity}{OWN if title == last else ''}", fontsize=7)
        bar.ax.tick_params(labelsize=7)
    _titles_on_top(axes)
    return figure


def _limits(heats: Tensor) -> tuple[float, float]:
    """Give the weakest and the strongest point of some maps."""
    return float(heats.min()), float(heats.max())


def save_figure(file: str | Path, figure: "Figure") -> None:
    """Write a figure whole, in the format that its name ends with, and say so."""
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
    print(f"saved {file}")


def tight_figure(width: float, height: float, between: float = 0.02) -> "Figure":
    """Make a figure, inches, whose cells lie close together."""
    layout = matplotlib.layout_engine.ConstrainedLayoutEngine(
        w_pad=0.03, h_pad=0.03, wspace=between, hspace=between
    )
    return matplotlib.figure.Figure(figsize=(width, height), layout=layout)


def show(axis: "Axes", picture: Tensor, title: str, size: float = 8, **style: Any) -> "AxesImage":
    """Draw one cell without ticks, and its title in points."""
    shown = axis.imshow(picture.cpu().numpy(), interpolation="nearest", **style)
    axis.set_title(title, fontsize=size)
    axis.set_xticks([])
    axis.set_yticks([])
    return shown


def _titles_on_top(axes: np.ndarray) -> None:
    """Title a grid of cells (rows, columns) in its first row only."""
    for axis in axes[1:].flat:
        axis.set_title("")
