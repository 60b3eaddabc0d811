"""A model's forward pass as a graph: its nodes by readable names, and which of them it can be cut at."""

import difflib
import functools
import math
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet

from torch import fx, nn

from utils.errors import InputError
from utils.later import feature_extraction, torchvision


def trace(model: nn.Module) -> tuple[fx.Graph, dict[fx.Node, str]]:
    """Trace a model's forward pass in evaluation mode; its modules' modes are left as they are.

    Returns:
        The graph, whose nodes name the model's own modules and parameters, and each node's readable name, in order.
    """
    tracer = feature_extraction.NodePathTracer(autowrap_modules=(math, torchvision.ops), leaf_modules=_leaves())
    tracer.proxy_buffer_attributes = True  # else what is computed from a buffer becomes a constant of the graph
    # A functional dropout keeps the flag that it was traced with: in evaluation mode it can never make features
    # random. (torchvision's dropouts of non-zero rate are modules, which follow train() and eval().)
    modes = modes_of(model)
    model.eval()
    try:
        graph = tracer.trace(model)
    except fx.proxy.TraceError as error:
        raise InputError(
            f"this {_kind(model)} cannot be cut, because its forward pass depends on values: {error}"
        ) from None
    finally:
        restore_modes(modes)
    return graph, dict(tracer.node_to_qualname)


@functools.cache
def _leaves() -> list[type[nn.Module]]:
    """List the modules that are one node each, beside those of torch.nn.

    They are torchvision's own layers (StochasticDepth, …) but not its sequences of layers (Conv2dNormActivation, …),
    and the BatchNorms that `classifiers.fix_batch_norm` makes.
    """
    own = [item for item in vars(torchvision.ops).values() if isinstance(item, type) and issubclass(item, nn.Module)]
    return [item for item in own if not issubclass(item, nn.Sequential)] + [nn.BatchNorm2d]


def find_cut(graph: fx.Graph, names: dict[fx.Node, str], layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means, past which no value flows."""
    cut = _find(names, layer, model)
    if around := flow_around(graph, cut):
        later = list(graph.nodes)[list(graph.nodes).index(cut) + 1 :]
        nearest = next(names[node] for node in later if node in names and not flow_around(graph, node))
        flowing = ", ".join("the images" if node.op == "placeholder" else names[node] for node in around[:3])
        raise InputError(
            f"{layer} is no cut: {flowing} {'flow' if len(around) > 1 else 'flows'} around it; "
            f"the next layer where everything meets is {nearest}"
        )
    return cut


def _find(names: dict[fx.Node, str], layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means: its own, or the last one under a module's path."""
    found = [node for node, name in names.items() if name == layer or name.startswith(f"{layer}.")]
    if not found or found[-1].op == "placeholder":
        near = difflib.get_close_matches(layer, names.values(), cutoff=0)
        raise InputError(f"this {_kind(model)} has no layer {layer!r}; the nearest names are {', '.join(near)}")
    return found[-1]


def result_of(graph: fx.Graph) -> fx.Node:
    """Give the node whose value the graph returns."""
    return graph.output_node().all_input_nodes[0]


def flow_around(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """Give the values that carry the images past `cut` to the result; empty for a cut."""
    result = result_of(graph)
    behind = reach(cut, lambda node: node.users)
    beside = reach(next(iter(graph.nodes)), lambda node: node.users) - behind
    needed = reach(result, lambda node: node.all_input_nodes, stop={cut})
    return [
        node
        for node in graph.nodes
        if node in needed & beside and (node is result or not (needed & behind).isdisjoint(node.users))
    ]


def copy_inputs(target: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copy `node` and what it is computed from into `target`, up to the nodes that `copies` has; give its copy."""
    needed = reach(node, lambda current: current.all_input_nodes, stop=set(copies))
    for original in node.graph.nodes:
        if original in needed:
            copies[original] = target.node_copy(original, copies.__getitem__)
    return copies[node]


def reach(
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


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """Say which modules of a model are in training mode."""
    return {module: module.training for module in model.modules()}


def restore_modes(modes: dict[nn.Module, bool]) -> None:
    """Put every module back into its mode."""
    for module, training in modes.items():
        module.training = training
