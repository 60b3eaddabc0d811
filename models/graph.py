"""A model's forward pass as a graph: its nodes by readable names,
and which of them it can be cut at.
"""

import difflib
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from models.inputs import preprocessing_of
from models.lengths import add_length
from models.recorder import NeedsValuesError, Recording, place_of, record, spell
from utils.errors import InputError

# Where nothing says the size of images, these are tried in turn: of photos, of small images, what
# some nets insist on.
_SIZES = (
    224,
    32,
    64,
    28,
    299,
    96,
    128,
    256,
    384,
    512,
    8,
    16,
    48,
    112,
    160,
    192,
    240,
    288,
    320,
    336,
    448,
)
# With how many images a model is recorded: first, to see what depends on that number, and to check
# how.
_BATCHES = (2, 5, 3)


class Traced(NamedTuple):
    """A model's forward pass.

    Attributes:
        graph: its nodes name the model's modules and parameters. Of their `meta` see
            `models.recorder.Recording`, with two images; "more" is the shape or length with five,
            and "larger" that with five of twice the size, where the model takes them.
        names: each node's readable name, in order.
        modules: by path what each call of a module gave, in order; None for what is not one tensor.
        constants: by the name of their node the tensors that belong to no module.
        image_size: S, pixels, of the images that were recorded.
        confirmed: how many of the nodes do the same with larger images; what follows is right for
            this size alone.
    """

    graph: fx.Graph
    names: dict[fx.Node, str]
    modules: dict[str, list[fx.Node | None]]
    constants: dict[str, Tensor]
    image_size: int
    confirmed: int

    def is_fixed(self, node: fx.Node | None = None) -> bool:
        """Whether the graph, up to a node or as a whole, is right for images of one size alone."""
        nodes = list(self.graph.nodes)
        return (len(nodes) - 1 if node is None else nodes.index(node)) >= self.confirmed


def trace(model: nn.Module, image_size: int | None = None) -> Traced:
    """Record a model's forward pass in evaluation mode; its modules' modes are left as they are.

    It is recorded with two images, with five, and with five that are twice as large. Where its code
    computes with lengths in a way that they do not survive, as `int(x.shape[0])`, the recordings
    differ by numbers. One that grows with the images in the batch is computed from it, one that
    depends on their size fixes what follows to that size; any other difference is refused.

    Args:
        model: images (N, 3, S, S) → anything. The halves that `models.split` makes are graphs
            already.
        image_size: S, pixels. None: what the model says, or the first usual size that it takes.

    Raises:
        InputError: its code depends on values, or on how many images there are, or it does not take
            them.
    """
    if isinstance(model, fx.GraphModule):
        graph = fx.Graph()
        graph.output(graph.graph_copy(model.graph, {}))
        return Traced(graph, _names(graph), {}, {}, image_size or 0, len(graph.nodes))
    modes = modes_of(model)
    model.eval()
    try:
        size, first, with_values = _first_recording(model, image_size)

        def again(images: int, times: int = 1) -> Recording:
            shape = (images, 3, times * size, times * size)
            return record(model, shape, with_values, up_to_error=times > 1)

        more, larger = again(_BATCHES[1]), again(_BATCHES[1], times=2)
        _Comparison(first, more).note("more")
        _Comparison(first, larger).note("larger")
        counted = _compute_batch(model, first, more, again)
    finally:
        restore_modes(modes)
    names, nodes = _names(first.graph), list(first.graph.nodes)
    agreed = _Comparison(more, larger).agreed
    confirmed = nodes.index(counted[agreed]) if agreed < len(counted) else len(nodes)
    return Traced(first.graph, names, first.modules, first.constants, size, confirmed)


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    return {node: node.meta["layer"] for node in graph.nodes if "layer" in node.meta}


def _first_recording(model: nn.Module, image_size: int | None) -> tuple[int, Recording, bool]:
    """Record a model at the size that is said,
    or at the first that it takes; with values if it cannot be without.
    """
    carried = preprocessing_of(model)
    of_model = (getattr(model, "image_size", None), carried.image_size if carried else None)
    usual = dict.fromkeys([*(size for size in of_model if type(size) is int), *_SIZES])
    sizes = [image_size] if image_size is not None else list(usual)
    errors: list[Exception] = []
    for with_values in (False, True):
        for size in sizes:
            try:
                return size, record(model, (_BATCHES[0], 3, size, size), with_values), with_values
            except InputError:
                raise
            except NeedsValuesError as error:
                errors.append(error)
                break
            except Exception as error:  # whatever the model's code raises
                errors.append(error)
    first, place = errors[0], spell(place_of(errors[0].__traceback__))
    reason = str(first).splitlines()[0] if str(first) else type(first).__name__
    if image_size is not None:
        raise InputError(
            f"the network does not take {image_size}×{image_size} images ({reason}, at {place}); "
            "choose another --image_size"
        )
    raise InputError(
        f"this {_kind(model)} cannot be cut, because its forward pass fails ({reason}): {place}"
    )


class _Difference(NamedTuple):
    """A number that is not the same in two recordings.

    Attributes:
        node: of the first recording.
        path: to the number in (node.args, node.kwargs).
        value: in the first recording.
        other: in the second.
    """

    node: fx.Node
    path: tuple[Any, ...]
    value: int
    other: int


class _Comparison:
    """Two recordings of a model side by side, as far as they make the same calls.

    Attributes:
        twins: to nodes of the first those of the second.
        differences: numbers that are not the same.
        apart: the first node at which they differ by more; None where they do not.
        agreed: how many calls, lengths apart, are the same, numbers included.
    """

    def __init__(self, first: Recording, second: Recording) -> None:
        self.twins: dict[fx.Node, fx.Node] = {}
        self.differences: list[_Difference] = []
        self.apart: fx.Node | None = None
        self.agreed = 0
        nodes, others = calls(first.graph), calls(second.graph)
        for node, other in zip(nodes, others):
            if not self._same(node, other) or not _same_constants(first, second, node, other):
                self.apart = node
                break
            self.twins[node] = other
            self.agreed += not self.differences
        else:
            if len(nodes) != len(others):
                self.apart = nodes[min(len(nodes), len(others)) - 1]

    def note(self, key: str) -> None:
        """Note at the nodes of the first recording the shapes and lengths of the second."""
        for node, twin in self.twins.items():
            node.meta[key] = twin.meta.get("length", twin.meta.get("shape"))

    def _same(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether two calls are the same but for numbers, which are noted."""
        if (node.op, node.target) != (other.op, other.target):
            return False
        for path, value, its in _pairs((node.args, node.kwargs), (other.args, other.kwargs)):
            if isinstance(value, fx.Node) and isinstance(its, fx.Node):
                if value not in self.twins and _is_aside(value) and self._same(value, its):
                    self.twins[value] = its
                if self.twins.get(value) is not its:
                    return False
            elif type(value) is type(its) is int and value != its:
                self.differences.append(_Difference(node, path, value, its))
            elif value is not its and value != its:
                return False
        return True


def _same_constants(first: Recording, second: Recording, node: fx.Node, other: fx.Node) -> bool:
    if node.target not in first.constants:
        return True
    return torch.equal(first.constants[str(node.target)], second.constants[str(other.target)])


def calls(graph: fx.Graph) -> list[fx.Node]:
    """List the nodes that are values and not lengths or the device."""
    return [node for node in graph.nodes if not _is_aside(node)]


def _is_aside(node: fx.Node) -> bool:
    return "length" in node.meta or "device" in node.meta


def _pairs(
    value: Any, other: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Walk two calls' arguments side by side and give
    the path to each place and what stands there.
    """
    if isinstance(value, slice) and isinstance(other, slice):
        for place in ("start", "stop", "step"):
            yield from _pairs(getattr(value, place), getattr(other, place), (*path, place))
        return
    if isinstance(value, tuple | list | dict) and isinstance(other, tuple | list | dict):
        keys, its = (
            list(item) if isinstance(item, dict) else list(range(len(item)))
            for item in (value, other)
        )
        if keys == its:
            for key in keys:
                yield from _pairs(value[key], other[key], (*path, key))
            return
    yield path, value, other


def _compute_batch(
    model: nn.Module, first: Recording, second: Recording, again: Callable[[int], Recording]
) -> list[fx.Node]:
    """Let numbers that grow with the images in a batch be computed from it,
    in the first recording's graph.

    Such a number is a·N + b: two recordings say a and b, a third confirms it.

    Returns:
        The first recording's calls, without what was added.

    Raises:
        InputError: something else depends on the number of images.
    """
    refusal = (
        f"this {_kind(model)} cannot be cut, because its code depends on the number of images in a"
        " batch"
    )
    counted, comparison = calls(first.graph), _Comparison(first, second)
    differences = comparison.differences
    check = (
        _Comparison(first, again(_BATCHES[2]))
        if differences and comparison.apart is None
        else comparison
    )
    for apart in (comparison.apart, check.apart):
        if apart is not None:
            raise InputError(f"{refusal}: {spell(apart.meta.get('at'))}")
    third = {(one.node, one.path): one.other for one in check.differences}
    terms = []
    for node, path, value, other in differences:
        # Exact, or the third recording disagrees
        slope = (other - value) // (_BATCHES[1] - _BATCHES[0])
        offset = value - slope * _BATCHES[0]
        if third.get((node, path)) != slope * _BATCHES[2] + offset:
            raise InputError(f"{refusal}: {spell(node.meta.get('at'))}")
        terms.append((node, path, slope, offset))
    images = next(iter(first.graph.nodes))
    for node, path, slope, offset in terms:
        with first.graph.inserting_before(node):
            length, value = first.graph.call_method("size", (images, 0)), _BATCHES[0]
            length.meta |= {"length": value, "more": _BATCHES[1], "larger": _BATCHES[1]}
            if slope != 1:
                value *= slope
                length = add_length(first.graph, operator.mul, (length, slope), value)
            if offset:
                length = add_length(first.graph, operator.add, (length, offset), value + offset)
        node.args, node.kwargs = _replaced((node.args, node.kwargs), path, length)
    return counted


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Give nested arguments with another value at a path."""
    if not path:
        return new
    key, rest = path[0], path[1:]
    if isinstance(value, slice):
        pieces = {name: getattr(value, name) for name in ("start", "stop", "step")}
        return slice(*{**pieces, key: _replaced(pieces[key], rest, new)}.values())
    if isinstance(value, dict):
        return {**value, key: _replaced(value[key], rest, new)}
    items = [*value[:key], _replaced(value[key], rest, new), *value[key + 1 :]]
    return type(value)(*items) if hasattr(value, "_fields") else tuple(items)


def find_cut(traced: Traced, layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means, past which no value flows.

    Raises:
        InputError: there is none, or it is no cut.
    """
    cut = _find(traced, layer, model)
    if not _is_feature(cut):
        shape = cut.meta.get("shape")
        what = "several values" if shape is None else f"a tensor {shape} for {_BATCHES[0]} images"
        raise InputError(
            f"{layer} is no cut: it gives {what}, not one feature for each image; choose another"
            " --layer"
        )
    if around := flow_around(traced.graph, cut):
        names, nodes = traced.names, list(traced.graph.nodes)
        last = _last_uses(traced.graph)
        if cut not in last:
            raise InputError(
                f"{layer} is no cut: the logits do not need it; choose another --layer"
            )
        later = nodes[nodes.index(cut) + 1 :]
        cuts = set(cut_nodes(traced.graph))
        nearest = next((names[node] for node in later if node in names and node in cuts), None)
        flowing = ", ".join(
            "the images" if node.op == "placeholder" else names.get(node, node.name)
            for node in around[:3]
        )
        raise InputError(
            f"{layer} is no cut: {flowing} {'flow' if len(around) > 1 else 'flows'} around it; "
            f"the next layer where everything meets is {nearest}"
        )
    return cut


def _is_feature(node: fx.Node) -> bool:
    """Whether a node is one tensor whose first axis is the images."""
    shape, more = node.meta.get("shape"), node.meta.get("more")
    if not shape or shape[0] != _BATCHES[0]:
        return False
    return not more or more[0] == _BATCHES[1]


def images_in(length: fx.Node) -> int | None:
    """Say how often a length has the number of images as a factor;
    0: it does not depend on it, None: by no factor.
    """
    value, more = length.meta["length"], length.meta.get("more")
    if value == more:
        return 0
    factor, rest = divmod(value, _BATCHES[0])
    return factor if not rest and factor * _BATCHES[1] == more else None


def _find(traced: Traced, layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means: its own, a module's output, or the last one under a path."""
    names = traced.names
    exact = [node for node, name in names.items() if name == layer and node.op != "placeholder"]
    if exact:
        return exact[-1]
    if layer in traced.modules:
        output = traced.modules[layer][-1]
        if output is None:
            raise InputError(
                f"{layer} gives several values, not one feature; choose another --layer"
            )
        if output.op != "placeholder":
            return output
    under = [node for node, name in names.items() if name.startswith(f"{layer}.")]
    if not under and (numbered := re.fullmatch(r"(.*\bgetitem)_\d+", layer)):
        # Earlier versions counted lengths that the code reads too: the class token of a ViT was
        # getitem_5.
        under = [
            node
            for node, name in names.items()
            if name == numbered[1] and numbered[1] + "_1" not in names.values()
        ]
    if not under:
        near = difflib.get_close_matches(
            layer, [*dict.fromkeys([*names.values(), *traced.modules])], cutoff=0
        )
        raise InputError(
            f"this {_kind(model)} has no layer {layer!r}; the nearest names are {', '.join(near)}; "
            "--list_layers prints all"
        )
    return under[-1]


def result_of(graph: fx.Graph) -> fx.Node:
    """Give the node whose value the graph returns."""
    return graph.output_node().all_input_nodes[0]


def _last_uses(graph: fx.Graph) -> dict[fx.Node, int]:
    """Give of every value that carries the images to the result where it is used last,
    as a place in the graph.

    The result itself is used at the end. Lengths and the device are no such values: they can be had
    at any cut.
    """
    result = result_of(graph)
    needed = reach(result, lambda node: node.all_input_nodes if "of_images" in node.meta else ())
    places = {
        node: place
        for place, node in enumerate(graph.nodes)
        if node in needed and "of_images" in node.meta
    }
    end = len(graph.nodes)
    return {
        node: end if node is result else max(places[user] for user in node.users if user in places)
        for node in places
    }


def cut_nodes(graph: fx.Graph) -> list[fx.Node]:
    """List the nodes past which no value flows, in order."""
    last = _last_uses(graph)
    cuts, reaching = [], -1  # how far the values before this place reach
    for place, node in enumerate(graph.nodes):
        if node in last:
            if node.op != "placeholder" and reaching <= place and _is_feature(node):
                cuts.append(node)
            reaching = max(reaching, last[node])
    return cuts


def flow_around(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """Give the values that carry the images past `cut` to the result; empty for a cut."""
    last, before = _last_uses(graph), True
    place = list(graph.nodes).index(cut)
    around = []
    for node in graph.nodes:
        if node is cut:
            before = False
        elif before and last.get(node, -1) > place:
            around.append(node)
    return around if cut in last else [result_of(graph)]


def copy_inputs(target: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """Copy `node` and what it is computed from into `target`,
    up to the nodes that `copies` has; give its copy.
    """
    needed = reach(node, lambda current: current.all_input_nodes, stop=set(copies))
    for original in node.graph.nodes:
        if original in needed:
            copies[original] = target.node_copy(original, copies.__getitem__)
    return copies[node]


def reach(
    start: fx.Node,
    neighbours: Callable[[fx.Node], Iterable[fx.Node]],
    stop: AbstractSet[fx.Node] = frozenset(),
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
