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


def photo_rows(rows: Mapping[str, tuple[Tensor, Sequence[str]]]) -> "Figure":
    """Lay out rows of photos.

    Args:
        rows: by their title, photos, uint8 (n, 3, S, S), and a caption of each.

    Returns:
        A figure that belongs to no window.
    """
    columns = max(len(photos) for photos, _ in rows.values())
    figure = tight_figure(CELL * columns, (CELL + 0.4) * len(rows))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for of_row, (title, (photos, captions)) in zip(axes, rows.items()):
        for axis in of_row[len(photos) :]:
            axis.set_axis_off()
        for axis, photo, caption in zip(of_row, photos, captions):
            show(axis, photo.permute(1, 2, 0), caption, size=6)
        of_row[0].set_ylabel(title, fontsize=7)
    return figure


def place_rows(photos: Tensor, maps: Mapping[str, Tensor]) -> "Figure":
    """Lay maps over photos, a column for each photo.

    Each cell has a scale of its own, from 0 to its strongest position; what is below 0 is left bare.

    Args:
        photos: uint8 (n, 3, S, S), in colour in the first row and in grey under the maps.
        maps: by their title, (n, h, w).

    Returns:
        A figure that belongs to no window.
    """
    figure = tight_figure(CELL * len(photos), CELL * (1 + len(maps)) + 0.1)
    axes = figure.subplots(1 + len(maps), len(photos), squeeze=False)
    size, grey = photos.shape[-1], photos.float().mean(1)
    for axis, photo in zip(axes[0], photos):
        show(axis, photo.permute(1, 2, 0), "")
    axes[0, 0].set_ylabel("photo", fontsize=7)
    for of_row, (title, values) in zip(axes[1:], maps.items()):
        of_row[0].set_ylabel(title, fontsize=7)
        heats = F.interpolate(
            as_pictures(values.float()[:, None]), (size, size), mode="bilinear", align_corners=False
        )[:, 0].clamp(min=0)
        for axis, image, heat in zip(of_row, grey, heats):
            show(axis, image, "", cmap="gray", vmin=0, vmax=255)
            # An image from which nothing is missing has nothing to show
            strongest = max(float(heat.max()), torch.finfo(torch.float32).tiny)
            axis.imshow(heat.cpu().numpy(), cmap=heat_colours(), vmin=0, vmax=strongest)
    return figure


def image_captions(images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Caption images by B's answer and the margin."""
    return [f"{of['answer']}\n{of['margin']:+.1f}" for of in images]
