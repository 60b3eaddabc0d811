"""A Trans-Net and the features that it is fitted to.

It is made for them, filled from a file, and compared with them.
"""

from pathlib import Path
from typing import Any

import torch

from models.split import as_maps
from models.trans_net import TransNet, build_from_state
from utils.errors import InputError


def between(
    shape_a: tuple[int, ...],
    shape_b: tuple[int, ...],
    *,
    layers: int,
    fc: bool = False,
    **config: Any,
) -> TransNet:
    """Make the Trans-Net that maps one image's feature of shape_a to one of shape_b.

    Args:
        shape_a: of x: maps (C, H, W), tokens (T, C) or a vector (C,).
        shape_b: of x*: the same kind.
        layers: K + 1.
        fc: 1×1 convolutions also on maps.
        config: the other arguments of `TransNet`.

    Raises:
        InputError: the shapes are of different kinds, or leave nothing of single values.
    """
    if len(shape_a) != len(shape_b):
        raise InputError(
            f"A's features have shape {shape_a} and B's {shape_b}: "
            "a Trans-Net maps feature maps to feature maps, vectors to vectors, tokens to tokens"
        )
    # (1, C, H, W) of maps, tokens or vectors; "meta" takes no memory.
    x, target = (
        as_maps(torch.empty(1, *shape, device="meta")).shape for shape in (shape_a, shape_b)
    )
    if config.get("bn") and config.get("norm") == "instance" and x[2:].numel() == 1:
        raise InputError(
            "--bn removes the mean of each map, and these features are single values; add --norm"
            " batch"
        )
    size = (target[2], target[3])
    # Vectors and tokens have no neighbours to convolve over.
    return TransNet(
        x[1], target[1], layers, 1 if fc or len(shape_a) < 3 else 3, out_size=size, **config
    )


def channels_of(shape: tuple[int, ...]) -> int:
    """Say how many channels one image's feature has.

    Features are maps (C, H, W), tokens (T, C) or a vector (C,).
    """
    return as_maps(torch.empty(1, *shape, device="meta")).shape[1]


def fill_trans_net(trans_net: TransNet, state: dict[str, Any], path: str | Path) -> None:
    """Give a Trans-Net the weights of a checkpoint that was read from `path`.

    Both must be built alike.

    Raises:
        InputError: it is not.
    """
    stored = build_from_state(state, path)
    if stored.config != trans_net.config:
        now = trans_net.config
        others = [
            f"{key} {value}, now {now.get(key)}"
            for key, value in stored.config.items()
            if value != now.get(key)
        ]
        raise InputError(
            f"{path} holds a Trans-Net of other options or shapes: {'; '.join(others)}"
        )
    trans_net.load_state_dict(stored.state_dict())


def check_fit(trans_net: TransNet, shape_a: tuple[int, ...], shape_b: tuple[int, ...]) -> None:
    """Check that a Trans-Net maps one image's feature of shape_a to one of shape_b; see `between`.

    Raises:
        InputError: it does not.
    """
    config = trans_net.config
    x, target = (as_maps(torch.empty(1, *shape, device="meta")) for shape in (shape_a, shape_b))
    # Without a size of its own g keeps that of x.
    size = tuple(config["out_size"] or x.shape[2:])
    expected = (config["in_channels"], (config["out_channels"], *size))
    if (x.shape[1], tuple(target.shape[1:])) != expected:
        raise InputError(
            f"the Trans-Net maps {expected[0]} channels to {expected[1]}, but these features are"
            f" {tuple(x.shape[1:])} and {tuple(target.shape[1:])}: check the layer, the nets and"
            " the direction"
        )
