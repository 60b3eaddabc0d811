"""Which axis of a network's maps holds the channels."""

from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

# What reads the last axis as channels, and what reads the second.
_LAST = (nn.Linear, nn.LayerNorm)
_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_LAST_FUNCTIONS = (functional.linear, functional.layer_norm)
_SECOND_FUNCTIONS = (functional.conv2d, functional.batch_norm, functional.group_norm, torch.conv2d)


def has_channels_last(node: fx.Node, model: nn.Module, override: bool | None = None) -> bool:
    """Say whether a value's channels are its last axis: (N, H, W, C) and not (N, C, H, W).

    The channels are the axis that keeps its length when the images get larger. Where that does not decide, because
    the model takes one size alone or its maps keep theirs, it is the axis that the next layer reads, or else the one
    that the layer before it writes: a Linear or LayerNorm the last, a convolution or BatchNorm the second.

    Args:
        node: of `models.graph.trace`.
        model: whose node it is.
        override: what a user says; it holds for maps alone.
    """
    shape, larger = node.meta["shape"], node.meta.get("larger")
    if len(shape) != 4:
        return False
    if override is not None:
        return override
    if larger is not None and (shape[1] == larger[1]) != (shape[3] == larger[3]):
        return bool(shape[3] == larger[3])
    for neighbours in (lambda one: one.users, lambda one: one.all_input_nodes):
        answer = _nearest(node, model, neighbours)
        if answer is not None:
            return answer
    return False


def _nearest(node: fx.Node, model: nn.Module, neighbours: Any) -> bool | None:
    """Ask the nearest layer in one direction, through whatever keeps the shape; None where there is none."""
    backwards = node in [user for one in neighbours(node) for user in one.users]
    waiting, seen = [node] if backwards else list(neighbours(node)), {node}
    while waiting:
        current = waiting.pop(0)
        answer = _reads_last(current, model, node.meta["shape"])
        if answer is not None:
            return answer
        if current.meta.get("shape") == node.meta["shape"]:
            seen.add(current)
            waiting += [other for other in neighbours(current) if other not in seen]
    return None


def _reads_last(node: fx.Node, model: nn.Module, shape: tuple[int, ...]) -> bool | None:
    """Say whether a call works on the last axis as channels, or on the second; None: on neither."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        is_last, is_second = isinstance(module, _LAST), isinstance(module, _SECOND)
    else:
        is_last, is_second = node.target in _LAST_FUNCTIONS, node.target in _SECOND_FUNCTIONS
    return is_last if is_last or is_second else None
