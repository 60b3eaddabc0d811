"""Which axis of a network's maps holds the channels."""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional

# What reads the last axis as channels, and what reads the second.
_LAST = (nn.Linear, nn.LayerNorm)
_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_LAST_FUNCTIONS = (functional.linear, functional.layer_norm)
_SECOND_FUNCTIONS = (functional.conv2d, functional.batch_norm, functional.group_norm, torch.conv2d)
# What moves axes, even where the shape stays; and what joins or parts them, of which the last may
# stay the last.
_MOVE = {
    "movedim",
    "permute",
    "swapaxes",
    "transpose",
    torch.movedim,
    torch.permute,
    torch.transpose,
}
_JOIN = {"flatten", "reshape", "unflatten", "view", torch.flatten, torch.reshape}


def has_channels_last(node: fx.Node, model: nn.Module, override: bool | None = None) -> bool:
    """Say whether a value's channels are its last axis: (N, H, W, C) and not (N, C, H, W).

    The channels are the axis that keeps its length when the images get larger. Where that does not
    decide, because the model takes one size alone or its maps keep theirs, it is the axis that the
    next layer reads, or else the one that the layer before it writes: a Linear or LayerNorm the
    last, a convolution or BatchNorm the second.

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
    reads = _nearest(node, model, list(node.users), lambda one: list(one.users))
    writes = _nearest(node, model, [node], lambda one: one.all_input_nodes)
    return bool(writes if reads is None else reads)


def _nearest(
    node: fx.Node,
    model: nn.Module,
    waiting: list[fx.Node],
    further: Callable[[fx.Node], list[fx.Node]],
) -> bool | None:
    """Say how the nearest layer in one direction sees a value,
    through what keeps its shape; None where none does.
    """
    shape, seen = node.meta["shape"], set[fx.Node]()
    # With whether only the last axis is the same as the value's
    ahead = [(one, False) for one in waiting]
    while ahead:
        current, is_joined = ahead.pop(0)
        is_last = _works_on_last(current, model)
        if is_last or (is_last is not None and not is_joined):
            return is_last
        seen.add(current)
        its = current.meta.get("shape") or (None,)
        is_joined = is_joined or current.target in _JOIN
        if current.target not in _MOVE and (its == shape or (is_joined and its[-1] == shape[-1])):
            ahead += [(other, is_joined) for other in further(current) if other not in seen]
    return None


def _works_on_last(node: fx.Node, model: nn.Module) -> bool | None:
    """Say whether a call works on the last axis as channels, or on the second; None: on neither."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        is_last, is_second = isinstance(module, _LAST), isinstance(module, _SECOND)
    else:
        is_last, is_second = node.target in _LAST_FUNCTIONS, node.target in _SECOND_FUNCTIONS
    return is_last if is_last or is_second else None
