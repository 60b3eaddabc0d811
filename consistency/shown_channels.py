"""Which channels a linear layer reconstructs best and worst, and their maps of one image."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from consistency.compared import ComparedLayer
from consistency.factorised_ridge import Maps
from consistency.variance_report import rank_channels
from utils.report.maps import component_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDS = 3  # channels of either end
LEAST_SIDE = 4  # positions to a side of maps that are shown: fewer always go with some channel
PICTURE = "channels.png"


class ShownChannels:
    """Gather the variances of a target's channels, and the maps of one image.

    It is shown the predictions of the held-out images, see `permutation.Watch`.

    Args:
        mean: of the target's channels over the fitted images, (D,).
        size: of the maps, h and w.
        image: whose maps are kept, a number among the held-out ones.
    """

    def __init__(self, mean: Tensor, size: tuple[int, int], image: int) -> None:
        self.mean, self.size, self.image = mean.float(), size, image
        # Of the target and of what is left: count, Σ and Σ of squares of every channel.
        self.count = 0
        self.sums = torch.zeros(2, 2, len(mean), dtype=torch.float64)
        self.maps: tuple[Tensor, Tensor] | None = None

    def __call__(self, images: slice, target: Tensor, predicted: Tensor) -> None:
        """Add a batch: the target and its prediction about the target's mean, (n, U, D) each."""
        both = torch.stack([target, target - predicted]).cpu().double().flatten(1, 2)
        self.sums += torch.stack([both.sum(1), both.square().sum(1)], dim=1)
        self.count += target.shape[0] * target.shape[1]
        if images.start <= self.image < images.stop:
            place = self.image - images.start
            target_maps, predicted_maps = (
                (rows[place].cpu().float() + self.mean).mT.unflatten(1, self.size)
                for rows in (target, predicted)
            )
            self.maps = target_maps, predicted_maps

    def state(self, x: Maps) -> dict[str, Any] | None:
        """Give what a picture needs, as tensors and plain values; None: the image was not shown.

        Args:
            x: maps of the held-out images, (N', C, h, w).
        """
        if self.maps is None:
            return None
        means = self.sums / self.count
        variances = means[:, 1] - means[:, 0].square()  # (2, D)
        rows = [
            {"channel": channel, "variance": of_target, "instability": of_rest / of_target}
            if of_target > 0
            else {"channel": channel, "variance": 0.0, "instability": None}
            for channel, (of_target, of_rest) in enumerate(variances.mT.tolist())
        ]
        chosen = rank_channels(rows, ends=ENDS)
        channels = [int(row["channel"]) for row in chosen]
        target, predicted = (maps[channels] for maps in self.maps)
        (of_image,) = x[slice(self.image, self.image + 1)]
        return {
            "image": self.image,
            "channels": channels,
            "instability": [float(row["instability"]) for row in chosen],
            "x": torch.as_tensor(of_image).float(),
            "target": target,
            "predicted": predicted,
        }


def can_be_shown(x: ComparedLayer, target: ComparedLayer) -> bool:
    """Whether both layers give maps, and the target's have places enough to look at."""
    is_large = min(target.size) >= LEAST_SIDE
    return is_large and all(len(layer.shape) == 3 for layer in (x, target))


def channel_picture(
    shown: Mapping[str, Any], names: Sequence[str], layer: str, photo: Tensor | None, path: str
) -> tuple["Figure", dict[str, str]]:
    """Draw the channels, and give the report's entry of the picture.

    Args:
        shown: of `ShownChannels.state`.
        names: of net A and net B.
        layer: of net B.
        photo: uint8 (3, S, S); None: it is not at hand.
        path: of the image; "": it has none.
    """
    numbers, unexplained = shown["channels"], shown["instability"]
    notes = [f"{share:.2f} left" for share in unexplained]
    # The chosen channels alone are there, so they are numbered anew for the figure.
    figure = component_figure(
        photo,
        shown["x"],
        shown["target"],
        shown["predicted"],
        torch.zeros(0, *shown["target"].shape),
        range(len(numbers)),
        notes,
        names=[f"channel {number}" for number in numbers],
    )
    half = len(numbers) // 2
    sides = [
        ", ".join(
            f"{number} ({share:.2f})" for number, share in zip(numbers[some], unexplained[some])
        )
        for some in (slice(half), slice(half, None))
    ]
    of = f" of {path}" if path else f" of held-out image {shown['image']}"
    caption = (
        f"Channels of {names[1]} at {layer} that the linear layer reconstructs best and worst from"
        f" {names[0]}, and their maps{of}. Left: the share of the channel's variance over all"
        f" held-out images. Best match: the channel of {names[0]} that goes with it in this image."
    )
    alternative = (
        f"Maps of {len(numbers)} channels: of {names[1]}, their reconstruction and what is left."
        f" Best, with the share that is left: {sides[0]}. Worst: {sides[1]}."
    )
    return figure, {"file": PICTURE, "caption": caption, "alternative": alternative}
