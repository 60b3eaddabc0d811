"""The channel axis of a network's maps: (N, C, H, W) or (N, H, W, C)."""

from collections.abc import Callable

import torch
from torch import fx, nn
from torch.nn import functional

# Layers and functions that read the last axis as channels, and those that read the second.
_LAST = (nn.Linear, nn.LayerNorm)
_SECOND = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm, nn.InstanceNorm2d)
_LAST_FUNCTIONS = (functional.linear, functional.layer_norm)
_SECOND_FUNCTIONS = (functional.conv2d, functional.batch_norm, functional.group_norm, torch.conv2d)
# _MOVE: functions that may move the channels to another axis, even where the shape stays.
# _JOIN: functions that join or split axes; the last axis may stay the last.
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
    """Whether a value's channels are its last axis: (N, H, W, C) instead of (N, C, H, W).

    The channels are the axis whose length stays when the images get larger. That does not decide
    where the model takes one size alone, or its maps keep their size. Then it is the axis that the
    next layer reads, or else the axis that the layer before writes. A Linear or LayerNorm works on
    the last axis, a convolution or BatchNorm on the second.

    Args:
        node: of `models.graph.trace`.
        model: the traced model.
        override: the user's word; it holds for maps alone.
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
    """Whether the nearest layer in one direction has a value's channels last.

    Args:
        node: the value.
        model: the traced model.
        waiting: the nodes where the search begins.
        further: gives a node's neighbours in the direction of the search.

    Returns:
        None where no such layer is reached through calls that keep the value's shape.
    """
    shape, seen = node.meta["shape"], set[fx.Node]()
    # Breadth first. The flag: axes were joined on the way, so only the last one is still the same.
    ahead = [(start, False) for start in waiting]
    while ahead:
        current, is_joined = ahead.pop(0)
        is_last = _works_on_last(current, model)
        if is_last or (is_last is not None and not is_joined):
            return is_last
        seen.add(current)
        shape_here = current.meta.get("shape") or (None,)
        is_joined = is_joined or current.target in _JOIN
        same_axes = shape_here == shape or (is_joined and shape_here[-1] == shape[-1])
        if current.target not in _MOVE and same_axes:
            ahead += [(other, is_joined) for other in further(current) if other not in seen]
    return None


def _works_on_last(node: fx.Node, model: nn.Module) -> bool | None:
    """Whether a call has its channels on the last axis, or on the second; None: on neither."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        is_last, is_second = isinstance(module, _LAST), isinstance(module, _SECOND)
    else:
        is_last, is_second = node.target in _LAST_FUNCTIONS, node.target in _SECOND_FUNCTIONS
    return is_last if is_last or is_second else None
