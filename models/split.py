"""Cut a classifier at a layer into a head (images → feature) and a tail (feature → logits).

One mechanism serves every torchvision classifier: its forward pass is traced into a graph whose nodes carry
readable names (`features.30`, `layer3.5.add`), and the graph is cut at the node that the layer's name means.
"""

import difflib
import functools
import math
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from utils.errors import InputError
from utils.later import feature_extraction, torchvision


class HeadTail(nn.Module):
    """Run a head and its tail in one forward pass, so that DataParallel can split the images.

    Args:
        head: images (N, 3, S, S) → feature (N, …).
        tail: feature → logits (N, C).
    """

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head = head
        self.tail = tail

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Give the feature (N, …) and the logits (N, C) of images (N, 3, S, S)."""
        feature = self.head(images)
        return feature, self.tail(feature)


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
    cut = _find(names, layer, model)
    if around := _flow_around(graph, cut):
        later = list(graph.nodes)[list(graph.nodes).index(cut) + 1 :]
        nearest = next(names[node] for node in later if node in names and not _flow_around(graph, node))
        flowing = ", ".join("the images" if node.op == "placeholder" else names[node] for node in around[:3])
        raise InputError(
            f"{layer} is no cut: {flowing} {'flow' if len(around) > 1 else 'flows'} around it; "
            f"the next layer where everything meets is {nearest}"
        )

    head_graph = fx.Graph()
    head_graph.output(_copy_inputs(head_graph, cut, {}))

    tail_graph = fx.Graph()
    feature = tail_graph.placeholder("feature")
    # VGG's and AlexNet's ReLUs work in place; the caller's feature is not theirs to overwrite.
    own = tail_graph.call_method("clone", (feature,))
    tail_graph.output(_copy_inputs(tail_graph, _result(graph), {cut: own}))
    return fx.GraphModule(model, head_graph, "Head"), fx.GraphModule(model, tail_graph, "Tail")


def cuts(model: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """List every layer at which a model can be cut, in order, with the shape of one image's feature there.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.
    """
    graph, names = trace(model)
    modes = _modes(model)
    model.eval()
    try:
        with torch.no_grad():
            ShapeProp(fx.GraphModule(model, graph)).propagate(torch.zeros(1, 3, image_size, image_size))
    finally:
        _restore(modes)
    shapes = {node: getattr(node.meta.get("tensor_meta"), "shape", None) for node in names}
    return {
        names[node]: tuple(shape[1:])
        for node, shape in shapes.items()
        if node.op != "placeholder" and shape is not None and not _flow_around(graph, node)
    }


def trace(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Trace a model's forward pass in evaluation mode; its modules' modes are left as they are.

    Returns:
        The graph, whose nodes name the model's own modules and parameters, and each node's readable name, in order.
    """
    tracer = feature_extraction.NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_leaves())
    tracer.proxy_buffer_attributes = True  # else what is computed from a buffer becomes a constant of the graph
    # A functional dropout keeps the flag that it was traced with: in evaluation mode it can never make features
    # random. (torchvision's dropouts of non-zero rate are modules, which follow train() and eval().)
    modes = _modes(model)
    model.eval()
    try:
        graph = tracer.trace(model)
    finally:
        _restore(modes)
    return graph, dict(tracer.node_to_qualname)


@functools.cache
def _leaves() -> list[type[nn.Module]]:
    """List the modules that are one node each, beside those of torch.nn.

    They are torchvision's own layers (StochasticDepth, …) but not its sequences of layers (Conv2dNormActivation, …),
    and the BatchNorms that `classifiers.fix_batch_norm` makes.
    """
    own = [item for item in vars(torchvision.ops).values() if isinstance(item, type) and issubclass(item, nn.Module)]
    return [item for item in own if not issubclass(item, nn.Sequential)] + [nn.BatchNorm2d]


def feature_shape(head: nn.Module, image_size: int) -> tuple[int, ...]:
    """Measure the shape of a head's feature, without the batch axis, on one blank image.

    Args:
        head: images (N, 3, S, S) → feature (N, …).
        image_size: S, pixels.

    Raises:
        InputError: the network does not take images of this size, or the layer's value is no tensor.
    """
    device = next((parameter.device for parameter in head.parameters()), torch.device("cpu"))
    modes = _modes(head)
    head.eval()
    try:
        with torch.no_grad():
            feature = head(torch.zeros(1, 3, image_size, image_size, device=device))
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        only = getattr(head, "image_size", None)  # a vision transformer's
        instead = f"it takes --image_size {only}" if only else "choose another --image_size"
        raise InputError(f"the network does not take {image_size}×{image_size} images ({reason}); {instead}") from None
    finally:
        _restore(modes)
    if not isinstance(feature, Tensor):
        raise InputError(f"the layer gives a {type(feature).__name__}, not a feature; choose another --layer")
    return feature.shape[1:]


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


def _modes(model: nn.Module) -> dict[nn.Module, bool]:
    return {module: module.training for module in model.modules()}


def _restore(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _find(names: dict[fx.Node, str], layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means: its own, or the last one under a module's path."""
    found = [node for node, name in names.items() if name == layer or name.startswith(f"{layer}.")]
    if not found or found[-1].op == "placeholder":
        near = difflib.get_close_matches(layer, names.values(), cutoff=0)
        raise InputError(f"this {_kind(model)} has no layer {layer!r}; the nearest names are {', '.join(near)}")
    return found[-1]


def _result(graph: fx.Graph) -> fx.Node:
    """Give the node whose value the graph returns."""
    return graph.output_node().all_input_nodes[0]


def _flow_around(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """Give the values that carry the images past `cut` to the result; empty for a cut."""
    result = _result(graph)
    behind = _reach(cut, lambda node: node.users)
    beside = _reach(next(iter(graph.nodes)), lambda node: node.users) - behind
    needed = _reach(result, lambda node: node.all_input_nodes, stop={cut})
    return [
        node
        for node in graph.nodes
        if node in needed & beside and (node is result or not (needed & behind).isdisjoint(node.users))
    ]


def _copy_inputs(target: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copy `node` and what it is computed from into `target`, up to the nodes that `copies` has; give its copy."""
    needed = _reach(node, lambda current: current.all_input_nodes, stop=set(copies))
    for original in node.graph.nodes:
        if original in needed:
            copies[original] = target.node_copy(original, copies.__getitem__)
    return copies[node]


def _reach(
    start: fx.Node, neighbours: Callable[[fx.Node], Iterable[fx.Node]], stop: AbstractSet[fx.Node] = frozenset()
) -> set[fx.Node]:
    """Collect `start` and everything that can be reached from it without entering `stop`."""
    reached: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in reached and node not in stop:
            reached.add(node)
            waiting.extend(neighbours(node))
    return reached


def _kind(model: nn.Module) -> str:
    return type(model).__name__
