"""Pictures of what does not arrive: the images most and least lost, and where in an image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.report.maps import as_pictures, heat_colours, show, tight_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 1.0  # inches to a side
GAP = 0.06  # between pictures, of their side


def photo_rows(rows: Mapping[str, tuple[Tensor, Sequence[str]]]) -> "Figure":
    """Lay out rows of photos.

    Args:
        rows: by their title, photos, uint8 (n, 3, S, S), and a caption of each.

    Returns:
        A figure that belongs to no window.
    """
    columns = max(len(photos) for photos, _ in rows.values())
    figure = tight_figure(CELL * columns, (CELL + 0.4) * len(rows))
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis, (title, (photos, captions)) in zip(axes, rows.items()):
        show(axis, side_by_side(photos, 255).permute(1, 2, 0), "")
        axis.set_ylabel(title, fontsize=7)
        size = photos.shape[-1]
        for number, caption in enumerate(captions):
            middle = number * (size + _gap(size)) + size / 2
            axis.text(middle, -0.03 * size, caption, ha="center", va="bottom", fontsize=6)
    return figure


def place_rows(photos: Tensor, maps: Mapping[str, Tensor]) -> "Figure":
    """Lay maps over photos, a column for each photo.

    Each map has a scale of its own, from 0 to its strongest position; what is below 0 is left bare.

    Args:
        photos: uint8 (n, 3, S, S), in colour in the first row and in grey under the maps.
        maps: by their title, (n, h, w).

    Returns:
        A figure that belongs to no window.
    """
    figure = tight_figure(CELL * len(photos), CELL * (1 + len(maps)) + 0.1)
    axes = figure.subplots(1 + len(maps), 1, squeeze=False)[:, 0]
    size, grey = photos.shape[-1], photos.float().mean(1, keepdim=True)
    show(axes[0], side_by_side(photos, 255).permute(1, 2, 0), "")
    axes[0].set_ylabel("photo", fontsize=7)
    for axis, (title, values) in zip(axes[1:], maps.items()):
        heats = F.interpolate(
            as_pictures(values.float()[:, None]), (size, size), mode="bilinear", align_corners=False
        ).clamp(min=0)
        # An image from which nothing is missing has nothing to show
        tiny = torch.finfo(torch.float32).tiny
        heats = heats / heats.amax((1, 2, 3), keepdim=True).clamp(min=tiny)
        show(axis, side_by_side(grey, 255)[0], "", cmap="gray", vmin=0, vmax=255)
        heat = side_by_side(heats, 0)[0]
        axis.imshow(heat.cpu().numpy(), cmap=heat_colours(), vmin=0, vmax=1)
        axis.set_ylabel(title, fontsize=7)
    return figure


def side_by_side(pictures: Tensor, between: float) -> Tensor:
    """Put pictures into one, since one cell is drawn much faster than ten.

    Args:
        pictures: (n, C, S, S).
        between: the value of the gaps.

    Returns:
        (C, S, width).
    """
    gap = _gap(pictures.shape[-1])
    padded = F.pad(pictures, (0, gap), value=between)
    return torch.cat([*padded], dim=-1)[..., :-gap]


def _gap(size: int) -> int:
    return max(1, round(GAP * size))


def image_captions(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Caption images by B's answer and the margin."""
    return [f"{of['answer']}\n{of['margin']:+.1f}" for of in images]
