"""A model's forward pass as a graph: readable names of its nodes, and where it can be cut."""

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

# Pixels to a side, tried in turn where nothing says the size: sizes of photos, sizes of small
# images, and sizes that some nets insist on.
_SIZES: tuple[int, ...] = (224, 32, 64, 28, 299, 96, 128, 256, 384, 512)
_SIZES += (8, 16, 48, 112, 160, 192, 240, 288, 320, 336, 448)
# The numbers of images that a model is recorded with: N, another to see which numbers depend on N,
# and a third to confirm that they are a·N + b.
_BATCHES = (2, 5, 3)


class Traced(NamedTuple):
    """A model's forward pass.

    Attributes:
        graph: its nodes name the model's modules and parameters. Their `meta` is that of
            `models.recorder.Recording`, with two images. "more" is the shape or length with five
            images, "larger" with five images of twice the size, where the model takes them.
        names: each node's readable name, in order.
        modules: by path the output of each call of a module, in order; None where that is not one
            tensor.
        constants: by the name of their node the tensors that belong to no module.
        image_size: S, pixels, of the recorded images.
        confirmed: the number of first nodes that do the same with larger images. The nodes behind
            them are right for this size alone.
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
        last = len(nodes) - 1 if node is None else nodes.index(node)
        return last >= self.confirmed


def trace(model: nn.Module, image_size: int | None = None) -> Traced:
    """Record a model's forward pass in evaluation mode; its modules' modes stay as they are.

    The pass is recorded with two images, with five, and with five of twice the size. Code such as
    `int(x.shape[0])` turns a length into a plain number, and then the recordings differ:

    - a number that grows with the batch is computed from the batch;
    - a number that depends on the images' size ties the following nodes to that size;
    - any other difference is refused.

    Args:
        model: images (N, 3, S, S) → anything. The halves that `models.split` makes are graphs
            already.
        image_size: S, pixels. None: the size that the model says, or the first usual size that it
            takes.

    Raises:
        InputError: the model's code depends on values or on the number of images, or the model does
            not take the images.
    """
    if isinstance(model, fx.GraphModule):
        graph = fx.Graph()
        # A half is a graph already. It is copied, so that a cut of the half leaves it whole.
        graph.output(graph.graph_copy(model.graph, {}))
        return Traced(graph, _names(graph), {}, {}, image_size or 0, len(graph.nodes))
    modes = modes_of(model)
    model.eval()
    try:
        size, first, with_values = _first_recording(model, image_size)

        def again(images: int, times: int = 1) -> Recording:
            shape = (images, 3, times * size, times * size)
            return record(model, shape, with_values, up_to_error=times > 1)

        # `larger` may end early: not every net takes images of twice the size.
        more, larger = again(_BATCHES[1]), again(_BATCHES[1], times=2)
        _Comparison(first, more).note("more")
        _Comparison(first, larger).note("larger")
        counted = _compute_batch(model, first, more, again)
    finally:
        restore_modes(modes)
    names, nodes = _names(first.graph), list(first.graph.nodes)
    # The first call that differs between two sizes of images ends what is right for every size.
    agreed = _Comparison(more, larger).agreed
    confirmed = nodes.index(counted[agreed]) if agreed < len(counted) else len(nodes)
    return Traced(first.graph, names, first.modules, first.constants, size, confirmed)


def _names(graph: fx.Graph) -> dict[fx.Node, str]:
    return {node: node.meta["layer"] for node in graph.nodes if "layer" in node.meta}


def _first_recording(model: nn.Module, image_size: int | None) -> tuple[int, Recording, bool]:
    """Record a model at `image_size`, or at the first size that it takes.

    Returns:
        The size, the recording, and whether it was made with values, which the last attempts have.

    Raises:
        InputError: the model takes none of the sizes, or cannot be recorded.
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
            except NeedsValuesError as error:  # at any size: go on with values at once
                errors.append(error)
                break
            except Exception as error:  # the model's code may raise anything
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
        twins: by node of the first recording the corresponding node of the second.
        differences: numbers that are not the same.
        apart: the first node that differs by more than a number; None where none does.
        agreed: the number of first calls, without lengths, that are the same, numbers included.
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
            self.agreed += not self.differences  # counts until the first difference
        else:  # no break: the same calls, but one recording may be longer
            if len(nodes) != len(others):
                self.apart = nodes[min(len(nodes), len(others)) - 1]

    def note(self, key: str) -> None:
        """Write the second recording's shapes and lengths into the first one's `meta[key]`."""
        for node, twin in self.twins.items():
            node.meta[key] = twin.meta.get("length", twin.meta.get("shape"))

    def _same(self, node: fx.Node, other: fx.Node) -> bool:
        """Whether two calls are the same up to numbers; different numbers are kept."""
        if (node.op, node.target) != (other.op, other.target):
            return False
        arguments = _pairs((node.args, node.kwargs), (other.args, other.kwargs))
        for path, mine, theirs in arguments:
            if isinstance(mine, fx.Node) and isinstance(theirs, fx.Node):
                # Lengths are no calls of their own: they are compared where a call reads them.
                if mine not in self.twins and _is_aside(mine) and self._same(mine, theirs):
                    self.twins[mine] = theirs
                if self.twins.get(mine) is not theirs:
                    return False
            elif type(mine) is type(theirs) is int and mine != theirs:
                self.differences.append(_Difference(node, path, mine, theirs))
            elif mine is not theirs and mine != theirs:
                return False
        return True


def _same_constants(first: Recording, second: Recording, node: fx.Node, other: fx.Node) -> bool:
    if node.target not in first.constants:
        return True
    return torch.equal(first.constants[str(node.target)], second.constants[str(other.target)])


def calls(graph: fx.Graph) -> list[fx.Node]:
    """List a graph's nodes without lengths and the device."""
    return [node for node in graph.nodes if not _is_aside(node)]


def _is_aside(node: fx.Node) -> bool:
    return "length" in node.meta or "device" in node.meta


def _pairs(
    value: Any, other: Any, path: tuple[Any, ...] = ()
) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Walk two calls' nested arguments side by side.

    Yields:
        The path to each leaf, and both leaves. Containers with other keys are leaves themselves.
    """
    if isinstance(value, slice) and isinstance(other, slice):
        for place in ("start", "stop", "step"):
            yield from _pairs(getattr(value, place), getattr(other, place), (*path, place))
        return
    if isinstance(value, tuple | list | dict) and isinstance(other, tuple | list | dict):
        keys = _keys(value)
        if keys == _keys(other):
            for key in keys:
                yield from _pairs(value[key], other[key], (*path, key))
            return
    yield path, value, other


def _keys(container: tuple[Any, ...] | list[Any] | dict[Any, Any]) -> list[Any]:
    """List a dictionary's keys, or the indices of a tuple or list."""
    return list(container) if isinstance(container, dict) else list(range(len(container)))


def _compute_batch(
    model: nn.Module, first: Recording, second: Recording, again: Callable[[int], Recording]
) -> list[fx.Node]:
    """Replace numbers that grow with the batch by nodes, in the first recording's graph.

    Such a number is a·N + b, of N images: two recordings give a and b, a third confirms them.

    Args:
        model: the recorded model, for messages.
        first: the recording with `_BATCHES[0]` images, changed in place.
        second: the recording with `_BATCHES[1]` images.
        again: records the model with a number of images.

    Returns:
        The first recording's calls, without the new nodes.

    Raises:
        InputError: something else depends on the number of images.
    """
    refusal = (
        f"this {_kind(model)} cannot be cut, because its code depends on the number of images in a"
        " batch"
    )
    counted, comparison = calls(first.graph), _Comparison(first, second)
    differences = comparison.differences
    # Without differences there is nothing to confirm, and a third pass would only cost time.
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
        # Of a number that is no a·N + b this division is not exact, and the third one disagrees.
        slope = (other - value) // (_BATCHES[1] - _BATCHES[0])
        offset = value - slope * _BATCHES[0]
        if third.get((node, path)) != slope * _BATCHES[2] + offset:
            raise InputError(f"{refusal}: {spell(node.meta.get('at'))}")
        terms.append((node, path, slope, offset))
    for node, path, slope, offset in terms:
        with first.graph.inserting_before(node):
            length = _batch_term(first.graph, slope, offset)
        node.args, node.kwargs = _replaced((node.args, node.kwargs), path, length)
    return counted


def _batch_term(graph: fx.Graph, slope: int, offset: int) -> fx.Node:
    """Add nodes that compute slope · N + offset, of N images, at the insertion point."""
    images, value = next(iter(graph.nodes)), _BATCHES[0]
    length = graph.call_method("size", (images, 0))
    # As if it had been recorded: with two images, with five, and with five larger ones.
    length.meta |= {"length": value, "more": _BATCHES[1], "larger": _BATCHES[1]}
    if slope != 1:
        value *= slope
        length = add_length(graph, operator.mul, (length, slope), value)
    if offset:
        length = add_length(graph, operator.add, (length, offset), value + offset)
    return length


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Give nested arguments with another value at a path; the arguments themselves stay."""
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
    """Find the cut that a name means: a node past which no value flows.

    Raises:
        InputError: there is no such node, or it is no cut; the message names the next cut.
    """
    cut = _find(traced, layer, model)
    if not _is_feature(cut):
        shape = cut.meta.get("shape")
        what = "several values" if shape is None else f"a tensor {shape} for {_BATCHES[0]} images"
        raise InputError(
            f"{layer} is no cut: it gives {what}, not one feature for each image; choose another"
            " --layer"
        )
    # A residual connection is the usual case: inside a block, the block's input flows around.
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
    # An axis may have length 2 by chance; with five images it must have length 5.
    return not more or more[0] == _BATCHES[1]


def images_in(length: fx.Node) -> int | None:
    """Give f of a length f·N, of N images.

    Returns:
        f; 0 for a length that does not depend on N; None for one that is no multiple of N.
    """
    value, more = length.meta["length"], length.meta.get("more")
    if value == more:
        return 0
    factor, remainder = divmod(value, _BATCHES[0])
    return factor if not remainder and factor * _BATCHES[1] == more else None


def _find(traced: Traced, layer: str, model: nn.Module) -> fx.Node:
    """Find the node that a name means.

    In this order: the node of that name, the output of that module, the last node under that path.

    Raises:
        InputError: there is none.
    """
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
    # A module that is a frame: its last node is where it ends.
    under = [node for node, name in names.items() if name.startswith(f"{layer}.")]
    if not under and (numbered := re.fullmatch(r"(.*\bgetitem)_\d+", layer)):
        # Earlier versions also counted lengths that the code reads: a ViT's class token, today
        # getitem, was getitem_5 in their checkpoints.
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
    """Give the last use of every value that carries the images to the result.

    Lengths and the device are no such values: any cut can give them.

    Returns:
        By node, the place in the graph of its last reader; of the result, the graph's length.
    """
    result = result_of(graph)
    needed = reach(result, lambda node: node.all_input_nodes if "of_images" in node.meta else ())
    places = {
        node: place
        for place, node in enumerate(graph.nodes)
        if node in needed and "of_images" in node.meta
    }
    # Only the output node reads the result, and that is no value.
    end = len(graph.nodes)
    return {
        node: end if node is result else max(places[user] for user in node.users if user in places)
        for node in places
    }


def cut_nodes(graph: fx.Graph) -> list[fx.Node]:
    """List the nodes past which no value flows, in order."""
    last = _last_uses(graph)
    # `reaching` is the last use of all values so far. A node at or behind it is a cut: everything
    # later depends on it alone.
    cuts, reaching = [], -1
    for place, node in enumerate(graph.nodes):
        if node in last:
            if node.op != "placeholder" and reaching <= place and _is_feature(node):
                cuts.append(node)
            reaching = max(reaching, last[node])
    return cuts


def flow_around(graph: fx.Graph, cut: fx.Node) -> list[fx.Node]:
    """List the values that flow past a node to the result; there are none if it is a cut."""
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
    """Copy a node and all that it is computed from into another graph.

    Args:
        target: the other graph.
        node: the node.
        copies: by node the copies that `target` has already; new ones are added.

    Returns:
        The node's copy.
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
    """Collect a node and everything that is reached from it without entering `stop`."""
    reached: set[fx.Node] = set()
    waiting = [start]
    while waiting:
        node = waiting.pop()
        if node not in reached and node not in stop:
            reached.add(node)
            waiting.extend(neighbours(node))
    return reached


def _kind(model: nn.Module) -> str:
    """The model's class, as messages call it."""
    return type(model).__name__


def modes_of(model: nn.Module) -> dict[nn.Module, bool]:
    """Give each module's mode: True in training."""
    return {module: module.training for module in model.modules()}


def restore_modes(modes: dict[nn.Module, bool]) -> None:
    """Put every module back into its mode of `modes_of`."""
    for module, training in modes.items():
        module.training = training
