"""Lengths of axes that remember their node, so that a recorded graph computes them anew."""

import operator
from collections.abc import Callable
from typing import Any

from torch import fx


class Length(int):
    """The length of an axis: an integer that remembers its node in a graph.

    Sums, differences, products and quotients of lengths have nodes too. `int(length)`,
    `len(tensor)` and floats lose the node; `models.graph.trace` detects those by recording twice.

    Attributes:
        node: of the graph that is being recorded.
    """

    node: fx.Node

    def __new__(cls, value: int, node: fx.Node) -> "Length":
        """Make a length of its value at this recording's images and its node."""
        length = super().__new__(cls, value)
        length.node = node
        return length


def add_length(
    graph: fx.Graph, function: Callable[..., int], operands: tuple[Any, ...], value: int
) -> fx.Node:
    """Add a node that computes a length, at the graph's insertion point."""
    node = graph.call_function(function, operands)
    node.meta["length"] = value
    return node


def _operator(function: Callable[..., int], reflected: bool) -> Callable[..., Any]:
    """Make an operator's method for `Length`; of a reflected one, 2 * n, swap the operands."""

    def combine(*operands: Any) -> Any:
        operands = operands[::-1] if reflected else operands
        numbers = [int(operand) if isinstance(operand, Length) else operand for operand in operands]
        value = function(*numbers)
        # A float, or NotImplemented, is no length.
        if type(value) is not int or not all(isinstance(number, int) for number in numbers):
            return value
        nodes = tuple(
            operand.node if isinstance(operand, Length) else operand for operand in operands
        )
        graph = next(operand.node.graph for operand in operands if isinstance(operand, Length))
        return Length(value, add_length(graph, function, nodes, value))

    return combine


for _name in ("add", "sub", "mul", "floordiv", "mod"):
    setattr(Length, f"__{_name}__", _operator(getattr(operator, _name), reflected=False))
    setattr(Length, f"__r{_name}__", _operator(getattr(operator, _name), reflected=True))
Length.__neg__ = _operator(operator.neg, reflected=False)  # type: ignore[method-assign]
