"""What images a net was made for, where its factory carries that."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import nn

from utils.later import timm

TIMM = "timm:"


class Inputs(NamedTuple):
    """The images that a net's author trained it on.

    Attributes:
        mean: of the channels R, G, B, in [0, 1].
        std: their deviation.
        image_size: S, pixels to a side; None where any size will do.
        interpolation: "bilinear", "bicubic", …; None where it is not said.
        crop_share: S over the side that a photo is resized to before its centre is cut out; None
            likewise.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int | None = None
    interpolation: str | None = None
    crop_share: float | None = None


def preprocessing_of(net: nn.Module | str) -> Inputs | None:
    """Give what a net's factory says of its images.

    Args:
        net: a network, timm's or one that carries a `default_cfg` or `pretrained_cfg` as timm's do;
            or the name of an architecture, "timm:NAME", which is not built for that.

    Returns:
        None where nothing is said, as of torchvision's networks and the small ones.
    """
    if isinstance(net, str):
        if not net.startswith(TIMM):
            return None
        config = timm.models.get_pretrained_cfg(net.removeprefix(TIMM), allow_unregistered=True)
        return None if config is None else _inputs(config.to_dict())
    carried = getattr(net, "pretrained_cfg", None) or getattr(net, "default_cfg", None)
    return _inputs(carried) if isinstance(carried, Mapping) else None


def _inputs(config: Mapping[str, Any]) -> Inputs | None:
    """Read timm's words; what is no pair of three numbers is passed over."""
    mean, std = (tuple(map(float, config.get(key) or ())) for key in ("mean", "std"))
    if not len(mean) == len(std) == 3:
        return None
    size, interpolation, share = (
        config.get(key) for key in ("input_size", "interpolation", "crop_pct")
    )
    return Inputs(mean, std, size[-1] if size else None, interpolation or None, share or None)
