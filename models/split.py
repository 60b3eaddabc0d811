"""Cut a classifier at a layer into a head (images → feature) and a tail (feature → logits).

One mechanism serves every network. Its forward pass is recorded as a graph, whose nodes carry
readable names (`features.30`, `layer3.5.add`). The graph is cut at the node that the layer's name
means.
"""

import contextlib
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from models.graph import (
    Traced,
    copy_inputs,
    cut_nodes,
    find_cut,
    flow_around,
    images_in,
    modes_of,
    reach,
    restore_modes,
    result_of,
    trace,
)
from models.layout import has_channels_last
from models.meta import ShapesAlone
from models.recorder import spell
from utils.errors import InputError


def split(
    model: nn.Module,
    layer: str,
    image_size: int | None = None,
    *,
    channels_last: bool | None = None,
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """Cut a model at a layer; `tail(head(images))` equals `model(images)`.

    The halves share the model's modules and parameters, each a disjoint set of them. So `train()`
    and `eval()` of a half act on its Dropout and BatchNorm modules. A layer is a module, whose
    output is meant as a forward hook sees it, or another node of the graph (`layer3.5.add`). At the
    last node the feature is the logits and the tail has no parameters. The halves never change
    their input in place.

    Maps have their channels second, (N, C, H, W), as Trans-Nets take them. Where the model has them
    last, the head moves them, the tail moves them back, and `head.meta["channels_last"]` is True. A
    half that is right for images of one size alone has that size in `meta["image_size"]`.

    Args:
        model: images (N, 3, S, S) → logits (N, C); its mode is left as it is.
        layer: the name of the layer.
        image_size: S, pixels. It matters only where the model's code decides by it, or where sizes
            in the tail come from before the cut. The halves then refuse images of another size.
            None: a usual size that the model takes.
        channels_last: whether the layer's maps have their channels last. None: see `models.layout`.

    Returns:
        head: images → feature. tail: feature → logits.

    Raises:
        InputError: there is no such layer; it is no cut because other values flow around it; or the
            model's code depends on values.
    """
    traced = trace(model, image_size)
    cut = find_cut(traced, layer, model)
    moved = has_channels_last(cut, model, channels_last)

    # The head: everything that the cut's node is computed from
    head_graph, copies = _begin(traced, cut)
    feature = copy_inputs(head_graph, cut, copies)
    head_graph.output(_channels_second(head_graph, feature) if moved else feature)

    head = _module(model, traced, head_graph, "Head")
    tail = _module(model, traced, _tail_graph(traced, cut, moved), "Tail")
    head.meta["channels_last"] = moved
    return head, tail


def _begin(traced: Traced, result: fx.Node) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """Begin a graph from the images to `result`.

    Returns:
        The graph with the node of the images, and by the original node what stands for it. That
        is a copy where the net would change its images in place.
    """
    graph = fx.Graph()
    original = next(iter(traced.graph.nodes))
    images = graph.node_copy(original)
    if traced.is_fixed(result):
        images = graph.call_function(of_size, (images, (3, traced.image_size, traced.image_size)))
    needed = reach(result, lambda node: node.all_input_nodes)
    if any("writes_images" in node.meta for node in needed):
        images = graph.call_method("clone", (images,))
    return graph, {original: images}


def _tail_graph(traced: Traced, cut: fx.Node, moved: bool) -> fx.Graph:
    """Make the graph feature → logits.

    The tail may compute with lengths from before the cut. The number of images is read from the
    feature. Any other length is a constant: its value at the recorded size of the images.
    """
    result, graph = result_of(traced.graph), fx.Graph()
    behind = reach(cut, lambda node: node.users)

    def inputs(node: fx.Node) -> list[fx.Node]:
        return [] if _is_from_before(node, behind) else node.all_input_nodes

    # What the logits need, without going back past the cut.
    needed = reach(result, inputs, stop={cut})
    outer = {
        node for node in traced.graph.nodes if node in needed and _is_from_before(node, behind)
    }
    # The tail's only input; `checked` is the same behind a test of its size, in the net's order.
    feature = checked = graph.placeholder("feature")
    # A length grows with the images where it is not the same for twice as large ones.
    depends_on_size = any(
        "length" in node.meta and node.meta["more"] != node.meta.get("larger") for node in outer
    )
    if traced.is_fixed() or depends_on_size:
        shape = cut.meta["shape"][1:]
        # The recorded shape is (H, W, C), the tail is given (C, H, W).
        shape = (shape[-1], *shape[:-1]) if moved else shape
        checked = graph.call_function(of_size, (feature, shape))
    if moved:
        # (N, C, H, W) → (N, H, W, C)
        checked = graph.call_method("permute", (checked, 0, 2, 3, 1))
    # VGG's and AlexNet's ReLUs work in place: a copy keeps the caller's feature as it is.
    layout: dict[str, Any] = {"memory_format": torch.contiguous_format} if moved else {}
    copies: dict[fx.Node, Any] = {cut: graph.call_method("clone", (checked,), kwargs=layout)}
    for node in traced.graph.nodes:
        if node in outer:
            copies[node] = _of_feature(graph, feature, node)
        elif node in needed:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(copies[result])
    return graph


def _is_from_before(node: fx.Node, behind: set[fx.Node]) -> bool:
    """Whether a node is a length of a value before the cut, or the images' device.

    Args:
        node: that the tail computes with.
        behind: the cut's node and all that is computed from it.
    """
    if "device" in node.meta:
        return True
    source = node.args[0] if node.target == "size" and "length" in node.meta else None
    return isinstance(source, fx.Node) and source not in behind and "of_images" in source.meta


def _of_feature(graph: fx.Graph, feature: fx.Node, node: fx.Node) -> fx.Node | int:
    """Compute a length from before the cut, or the device, from the feature.

    Raises:
        InputError: the length depends on the number of images, and is no multiple of it.
    """
    if "device" in node.meta:
        return graph.call_function(getattr, (feature, "device"))
    times = images_in(node)
    if times is None:
        raise InputError(
            f"a length that the tail computes with, {node.meta['length']} for two images, comes"
            " from before the cut "
            f"and depends on the number of images; choose another --layer: {spell(node.args[0].meta.get('at'))}"  # type: ignore[union-attr]
        )
    if times == 0:
        return int(node.meta["length"])
    images = graph.call_method("size", (feature, 0))
    return images if times == 1 else graph.call_function(operator.mul, (images, times))


def of_size(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a value, if its shape without the batch axis is the recorded one.

    Raises:
        InputError: it has another shape.
    """
    if tuple(value.shape[1:]) != tuple(shape):
        raise InputError(
            f"the network was cut for {tuple(shape)}, on which its code depends, and gets"
            f" {tuple(value.shape[1:])}; cut it with the image size that it is asked with"
        )
    return value


def _channels_second(graph: fx.Graph, feature: fx.Node) -> fx.Node:
    """Turn (N, H, W, C) into (N, C, H, W)."""
    return graph.call_method("contiguous", (graph.call_method("permute", (feature, 0, 3, 1, 2)),))


def _module(model: nn.Module, traced: Traced, graph: fx.Graph, name: str) -> fx.GraphModule:
    """Make a module of a graph, with the model's modules and parameters and its constants."""
    attributes = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    constants = attributes & traced.constants.keys()
    # GraphModule copies what the graph names from the model: lend it the constants meanwhile.
    vars(model).update({constant: traced.constants[constant] for constant in constants})
    try:
        module = fx.GraphModule(model, graph, name)
    finally:
        for constant in constants:
            del vars(model)[constant]
    module._non_persistent_buffers_set |= constants  # they are no part of the model's state dict
    if any(node.target is of_size for node in graph.nodes):
        module.meta["image_size"] = traced.image_size
    return module


def tap(
    model: nn.Module,
    layers: Sequence[str],
    image_size: int | None = None,
    *,
    channels_last: bool | None = None,
) -> fx.GraphModule:
    """Make a model that gives some layers' features and the logits in one pass.

    Args:
        model: images (N, 3, S, S) → logits (N, C); its modules are shared.
        layers: names, as `split` takes them.
        image_size: see `split`.
        channels_last: see `split`.

    Returns:
        images → (feature of each layer, …, logits).

    Raises:
        InputError: see `split`.
    """
    traced = trace(model, image_size)
    result = result_of(traced.graph)
    cut_at = [find_cut(traced, layer, model) for layer in layers]
    moved = {node: has_channels_last(node, model, channels_last) for node in cut_at}
    tapped, copies = _begin(traced, result)
    features: dict[fx.Node, fx.Node] = {}
    needed = reach(result, lambda node: node.all_input_nodes)
    for node in traced.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = tapped.node_copy(node, copies.__getitem__)
        if node in moved:
            value, layout = copies[node], dict[str, Any]()
            if moved[node]:
                value = tapped.call_method("permute", (value, 0, 3, 1, 2))
                layout["memory_format"] = torch.contiguous_format
            # A copy here and now: the next layer may change the value in place.
            features[node] = tapped.call_method("clone", (value,), kwargs=layout)
    tapped.output((*(features[node] for node in cut_at), copies[result]))
    module = _module(model, traced, tapped, "Tapped")
    module.meta["channels_last"] = [moved[node] for node in cut_at]
    return module


def before_last(tail: fx.GraphModule, layer: str) -> fx.GraphModule:
    """Cut a tail before its last layer: feature → penultimate feature.

    Args:
        tail: of `split`; its modules are shared.
        layer: the name of the last layer, a module.

    Raises:
        InputError: the tail does not have it.
    """
    last = next(
        (node for node in tail.graph.nodes if node.op == "call_module" and node.target == layer),
        None,
    )
    if last is None:
        raise InputError(
            f"the features are taken at or behind {layer}, the last layer; choose a --layer"
            " before it"
        )
    graph = fx.Graph()
    graph.output(copy_inputs(graph, last.all_input_nodes[0], {}))
    return fx.GraphModule(tail, graph, "Penultimate")


def cuts(model: nn.Module, image_size: int) -> dict[str, tuple[int, ...]]:
    """List every layer at which a model can be cut, in order.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.

    Returns:
        By the layer's name, the shape of one image's feature there.
    """
    return cuts_and_others(model, image_size)[0]


def cuts_and_others(
    model: nn.Module, image_size: int, *, channels_last: bool | None = None
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """List every layer at which a model can be cut, and the modules at which it cannot.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.
        channels_last: see `split`.

    Returns:
        By cut, in order, the shape of one image's feature. By any other module, in words, why the
        model cannot be cut there.
    """
    traced = trace(model, image_size)
    shapes, names = {}, traced.names
    nodes = cut_nodes(traced.graph)
    for node in nodes:
        shape = tuple(node.meta["shape"][1:])
        is_last = has_channels_last(node, model, channels_last)
        shapes[names[node]] = (shape[-1], *shape[:-1]) if is_last else shape  # (C, H, W)
    others = {}
    for module, (*_, output) in traced.modules.items():
        if output is None:
            others[module] = "gives several values"
        elif module and output not in nodes and output.op != "placeholder":
            around = [names.get(node, "the images") for node in flow_around(traced.graph, output)]
            flowing = ", ".join(around[:2]) + (", …" if len(around) > 2 else "")
            others[module] = f"{flowing} {'flows' if len(around) == 1 else 'flow'} around it"
    return shapes, others


def module_cuts(model: nn.Module, image_size: int) -> list[str]:
    """Name the modules at whose output a model can be cut, in order.

    A module that is called several times has several outputs; it is not listed.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.
    """
    traced = trace(model, image_size)
    nodes = cut_nodes(traced.graph)
    return [
        path
        for path, outputs in traced.modules.items()
        if len(outputs) == 1 and outputs[0] in nodes
    ]


def feature_shape(head: nn.Module, image_size: int) -> tuple[int, ...]:
    """Measure the shape of a head's feature, without the batch axis, on one blank image.

    Args:
        head: images (N, 3, S, S) → feature (N, …).
        image_size: S, pixels.

    Raises:
        InputError: the network does not take images of this size, or the layer's value is no
            tensor.
    """
    return _shape(_of_blank_image(head, image_size))


def feature_shapes(tapped: nn.Module, image_size: int) -> list[tuple[int, ...]]:
    """Measure the shapes of the features of `tap`; see `feature_shape`."""
    return [_shape(feature) for feature in _of_blank_image(tapped, image_size)[:-1]]


def _of_blank_image(net: nn.Module, image_size: int) -> Any:
    """Ask a net for one blank image, in evaluation mode.

    Raises:
        InputError: it does not take images of this size.
    """
    modes = modes_of(net)
    net.eval()
    try:
        return _only_shapes(net, image_size)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        only = getattr(net, "image_size", None)  # a vision transformer takes one size
        instead = f"it takes --image_size {only}" if only else "choose another --image_size"
        raise InputError(
            f"the network does not take {image_size}×{image_size} images ({reason}); {instead}"
        ) from None
    finally:
        restore_modes(modes)


@torch.no_grad()
def _only_shapes(net: nn.Module, image_size: int) -> Any:
    """Ask a net for one image on "meta", so that no weight is read from its file."""
    state = [*net.named_parameters(), *net.named_buffers()]
    image = torch.zeros(1, 3, image_size, image_size)
    # It fails where the net holds tensors as plain attributes, or asks for values: ask with values.
    with contextlib.suppress(Exception), ShapesAlone():
        return functional_call(
            net, {name: value.to("meta") for name, value in state}, image.to("meta")
        )
    return net(image.to(next((value.device for _, value in state), image.device)))


def _shape(feature: Any) -> tuple[int, ...]:
    """Give a feature's shape without the batch axis.

    Raises:
        InputError: it is no tensor.
    """
    if not isinstance(feature, Tensor):
        raise InputError(
            f"the layer gives a {type(feature).__name__}, not a feature; choose another --layer"
        )
    return tuple(feature.shape[1:])


def as_maps(feature: Tensor) -> Tensor:
    """View any feature as maps, the form that a Trans-Net takes.

    (N, C) → (N, C, 1, 1); tokens (N, T, C) → (N, C, T, 1); (N, C, H, W) stays.

    Raises:
        InputError: the feature has another number of axes.
    """
    if feature.ndim == 2:
        return feature[:, :, None, None]
    if feature.ndim == 3:
        return feature.transpose(1, 2)[..., None]
    if feature.ndim == 4:
        return feature
    raise InputError(
        f"a feature has 2, 3 or 4 axes, not {tuple(feature.shape)}; choose another --layer"
    )


def from_maps(maps: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `as_maps`, so that a tail takes the result.

    Args:
        maps: (N, C, H, W).
        shape: the feature's shape without the batch axis, as `feature_shape` gives it.

    Returns:
        The feature, (N, *shape).
    """
    if len(shape) == 1:  # (N, C, 1, 1) → (N, C)
        return maps.flatten(1)
    if len(shape) == 2:  # (N, C, T, 1) → (N, T, C)
        return maps.squeeze(3).transpose(1, 2)
    return maps
