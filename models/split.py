"""Cut a classifier at a layer into a head (images → feature) and a tail (feature → logits).

One mechanism serves every torchvision classifier: its forward pass is traced into a graph whose nodes carry
readable names (`features.30`, `layer3.5.add`), and the graph is cut at the node that the layer's name means.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.passes.shape_prop import ShapeProp

from models.graph import copy_inputs, find_cut, flow_around, modes_of, reach, restore_modes, result_of, trace
from utils.errors import InputError


def split(model: nn.Module, layer: str) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a model at a layer; `tail(head(images))` equals `model(images)`.

    Both halves share the model's modules and parameters and own disjoint sets of them; `train()` and `eval()`
    of a half act on its Dropout and BatchNorm modules. A layer is a node of the traced graph, or a module
    whose last node is meant (`layer3`). At the last node the feature is the logits and the tail has no
    parameters. The halves never change their input in place.

    Args:
        model: images (N, 3, S, S) → logits (N, C); its mode is left as it is.
        layer: the name of the layer.

    Returns:
        head: images → feature. tail: feature → logits.

    Raises:
        InputError: there is no such layer, or it is no cut because other values flow around it.
    """
    graph, names = trace(model)
    cut = find_cut(graph, names, layer, model)

    head_graph = fx.Graph()
    head_graph.output(copy_inputs(head_graph, cut, {}))

    tail_graph = fx.Graph()
    feature = tail_graph.placeholder("feature")
    # VGG's and AlexNet's ReLUs work in place; the caller's feature is not theirs to overwrite.
    own = tail_graph.call_method("clone", (feature,))
    tail_graph.output(copy_inputs(tail_graph, result_of(graph), {cut: own}))
    return fx.GraphModule(model, head_graph, "Head"), fx.GraphModule(model, tail_graph, "Tail")


def tap(model: nn.Module, layers: Sequence[str]) -> fx.GraphModule:
    """Make a model that also gives its features at some layers: images → (feature, …, logits), in one pass.

    Args:
        model: images (N, 3, S, S) → logits (N, C); its modules are shared.
        layers: names, as `split` takes them.

    Raises:
        InputError: see `split`.
    """
    graph, names = trace(model)
    found = [find_cut(graph, names, layer, model) for layer in layers]
    tapped, copies, features = fx.Graph(), dict[fx.Node, fx.Node](), dict[fx.Node, fx.Node]()
    needed = reach(result_of(graph), lambda node: node.all_input_nodes)
    for original in graph.nodes:
        if original in needed:
            copies[original] = tapped.node_copy(original, copies.__getitem__)
        if original in found:  # what follows may work in place
            features[original] = tapped.call_method("clone", (copies[original],))
    tapped.output((*(features[node] for node in found), copies[result_of(graph)]))
    return fx.GraphModule(model, tapped, "Tapped")


def before_last(tail: fx.GraphModule, layer: str) -> fx.GraphModule:
    """Cut a tail before its last layer: feature → penultimate feature.

    Args:
        tail: of `split`; its modules are shared.
        layer: the name of the last layer, a module.

    Raises:
        InputError: the tail does not have it.
    """
    last = next((node for node in tail.graph.nodes if node.op == "call_module" and node.target == layer), None)
    if last is None:
        raise InputError(f"the features are taken at or behind {layer}, the last layer; choose a --layer before it")
    graph = fx.Graph()
    graph.output(copy_inputs(graph, last.all_input_nodes[0], {}))
    return fx.GraphModule(tail, graph, "Penultimate")


def cuts(model: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """List every layer at which a model can be cut, in order, with the shape of one image's feature there.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.
    """
    graph, names = trace(model)
    modes = modes_of(model)
    model.eval()
    try:
        with torch.no_grad():
            ShapeProp(fx.GraphModule(model, graph)).propagate(torch.zeros(1, 3, image_size, image_size))
    finally:
        restore_modes(modes)
    shapes = {node: getattr(node.meta.get("tensor_meta"), "shape", None) for node in names}
    return {
        names[node]: tuple(shape[1:])
        for node, shape in shapes.items()
        if node.op != "placeholder" and shape is not None and not flow_around(graph, node)
    }


def feature_shape(head: nn.Module, image_size: int) -> tuple[int, ...]:
    """Measure the shape of a head's feature, without the batch axis, on one blank image.

    Args:
        head: images (N, 3, S, S) → feature (N, …).
        image_size: S, pixels.

    Raises:
        InputError: the network does not take images of this size, or the layer's value is no tensor.
    """
    return _shape(_of_blank_image(head, image_size))


def feature_shapes(tapped: nn.Module, image_size: int) -> list[tuple[int, ...]]:
    """Measure the shapes of what `tap` gives but the logits; see `feature_shape`."""
    return [_shape(feature) for feature in _of_blank_image(tapped, image_size)[:-1]]


def _of_blank_image(net: nn.Module, image_size: int) -> Any:
    modes = modes_of(net)
    net.eval()
    try:
        return _only_shapes(net, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        only = getattr(net, "image_size", None)  # a vision transformer's
        instead = f"it takes --image_size {only}" if only else "choose another --image_size"
        raise InputError(f"the network does not take {image_size}×{image_size} images ({reason}); {instead}") from None
    finally:
        restore_modes(modes)


@torch.no_grad()
def _only_shapes(net: nn.Module, image_size: int) -> Any:
    """Give tensors of the right shapes: without values, so that no weight is read from its file, or computed."""
    state = [*net.named_parameters(), *net.named_buffers()]
    image = torch.zeros(1, 3, image_size, image_size)
    with contextlib.suppress(Exception):  # of a net that holds other tensors, or what has no form without values
        return functional_call(net, {name: value.to("meta") for name, value in state}, image.to("meta"))
    return net(image.to(next((value.device for _, value in state), image.device)))


def _shape(feature: Any) -> tuple[int, ...]:
    if not isinstance(feature, Tensor):
        raise InputError(f"the layer gives a {type(feature).__name__}, not a feature; choose another --layer")
    return tuple(feature.shape[1:])


def as_maps(feature: Tensor) -> Tensor:
    """View any feature as maps: (N, C) → (N, C, 1, 1), tokens (N, T, C) → (N, C, T, 1), maps stay as they are."""
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim == 3:
        return feature.transpose(1, 2)[..., None]
    if feature.ndim == 4:
        return feature
    raise InputError(f"a feature has 2, 3 or 4 axes, not {tuple(feature.shape)}; choose another --layer")


def from_maps(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `as_maps`, so that a tail takes the result.

    Args:
        maps: (N, C, H, W).
        shape: the feature's shape without the batch axis, as `feature_shape` gives it.

    Returns:
        The feature, (N, *shape).
    """
    if len(shape) == 1:
        return maps.flatten(1)
    if len(shape) == 2:
        return maps.squeeze(3).transpose(1, 2)
    return maps
