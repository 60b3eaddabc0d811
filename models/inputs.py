"""The preprocessing that a net was trained with, where its factory records it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from utils.later import timm

TIMM = "timm:"


class Inputs(NamedTuple):
    """The images that a net's author trained it on.

    Attributes:
        mean: of the channels R, G, B, in [0, 1].
        std: standard deviations of the channels, same scale.
        image_size: S, pixels to a side; None: any size.
        interpolation: "bilinear", "bicubic", …; None: not recorded.
        crop_share: S over the side that a photo is resized to before the centre crop; None: not
            recorded.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int | None = None
    interpolation: str | None = None
    crop_share: float | None = None


def preprocessing_of(net: nn.Module | str) -> Inputs | None:
    """Give the preprocessing that a net's factory records.

    Args:
        net: a network of timm, or one with a `default_cfg` or `pretrained_cfg` like timm's; or an
            architecture's name, "timm:NAME", which is looked up without building the network.

    Returns:
        None where nothing is recorded, as of torchvision's networks and the small ones.
    """
    if isinstance(net, str):
        if not net.startswith(TIMM):
            return None
        config = timm.models.get_pretrained_cfg(net.removeprefix(TIMM), allow_unregistered=True)
        return None if config is None else _inputs(config.to_dict())
    carried = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    return _inputs(carried) if isinstance(carried, Mapping) else None


def _inputs(config: Mapping[str, Any]) -> Inputs | None:
    """Read timm's configuration; None where mean and std are not three numbers each."""
    mean, std = (tuple(map(float, config.get(key) or ())) for key in ("mean", "std"))
    if not len(mean) == len(std) == 3:
        return None
    size, interpolation, share = (
        config.get(key) for key in ("input_size", "interpolation", "crop_pct")
    )
    # timm's `input_size` is (3, S, S).
    return Inputs(mean, std, size[-1] if size else None, interpolation or None, share or None)
