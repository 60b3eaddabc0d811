"""The stages of a net: where its maps shrink, and which layers of two nets correspond."""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import takewhile

from torch import nn

from models.split import cuts

Shapes = Mapping[str, tuple[int, ...]]  # by cut, in order: the shape of one image's feature
# Modules and functions between stages that only move or average numbers. A stage is named by the
# layer before them.
_MOVING = re.compile(
    r"(Adaptive|SelectAdaptive)?(Avg|Max)?Pool(2d)?|Identity|Dropout(\dd)?|Flatten|Permute|"
    r"(adaptive_)?(avg|max)_pool2d|mean|permute|flatten|view|reshape|transpose|contiguous"
)


def stages(model: nn.Module, image_size: int) -> list[str]:
    """Name the layers at which the stages of a net end, from the first to the last.

    A stage ends at the last cut before the map shrinks to half its side. The block that shrinks
    it, which may widen it first, belongs to the next stage. A net with fewer than two such stages
    (transformers, perceptrons, plain convolutions) has four, which end at quarters of its blocks.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.

    Returns:
        Names of modules (`layer1`), or else of nodes (`relu_1`).
    """
    return list(stages_of(model, cuts(model, image_size)).values())


def stages_of(model: nn.Module, shapes: Shapes) -> dict[str, str]:
    """Name the layers at which stages end, as `stages` does; by the name of the cut."""
    layout = _Layout(model, shapes)
    ends = layout.stage_ends()
    return dict(zip((layout.names[end] for end in ends), layout.readable(ends)))


def blocks_of(model: nn.Module, shapes: Shapes) -> list[str]:
    """Name the cuts at which the blocks of a net end, and those at which its stages do, in order.

    Args:
        model: see `stages`.
        shapes: every cut.
    """
    layout = _Layout(model, shapes)
    ends = {*layout.block_ends(), *layout.stage_ends()}
    for name, module in layout.modules.items():
        if name in layout.matrices and next(module.children(), None) is not None:
            inside = [cut for cut, held in enumerate(layout.names) if held.startswith(f"{name}.")]
            # Inside some modules, such as a layer of torch.nn, no cut lies.
            ends.update(inside[-1:])
    return [layout.names[end] for end in sorted(ends) if end < len(layout.names) - 1]


def place_of(model: nn.Module, shapes: Shapes, layer: str) -> tuple[int, float] | None:
    """Give a layer's stage, counted from 0 for the last, and the share of the stage behind it.

    Args:
        model: see `stages`.
        shapes: every cut.
        layer: the name of a cut, or of a module around some cuts.

    Returns:
        None where there is no such cut, or it lies behind all stages.
    """
    names = list(shapes)
    ends = _Layout(model, shapes).stage_ends()
    # The dots let "layer1" match itself and "layer1.0", but not "layer10".
    inside = [index for index, name in enumerate(names) if f"{name}.".startswith(f"{layer}.")]
    later = [end for end in ends if inside and end >= inside[-1]]
    if not later:
        return None
    begin = max((end for end in ends if end < later[0]), default=-1)
    # In (0, 1]: 1 at the stage's own end.
    return len(later) - 1, (inside[-1] - begin) / (later[0] - begin)


class _Layout:
    """The cuts of a net, counted from 0, and its modules.

    Attributes:
        names: of the cuts, in order.
        shapes: of one image's feature at each cut, (C, H, W), (T, C) or (C,).
        modules: of the net, by name.
        matrices: names of the modules that have a matrix of weights, directly or inside.
    """

    def __init__(self, model: nn.Module, shapes: Shapes) -> None:
        self.names, self.shapes = list(shapes), list(shapes.values())
        self.modules = dict(model.named_modules())
        weights = [
            name
            for name, weight in model.named_parameters(remove_duplicate=False)
            if weight.ndim > 1
        ]
        self.matrices = {module for name in weights for module in _prefixes(name)}

    def stage_ends(self) -> list[int]:
        """Give the cuts at which stages end; see `stages`."""
        ends = list[int]()
        shrinking = self._shrinking()
        for first in shrinking:
            # At (C,) the last map ends. No block shrinks it: the stage ends right before.
            begin = self._block_begin(first, shrinking) if len(self.shapes[first]) == 3 else first
            last, before = begin - 1, ends[-1] if ends else -1
            # Skip pooling and flattening before the block: the stage ends at a layer with a name.
            while last > before and self._moves(last):
                last -= 1
            if self._has_weights(before + 1, last):  # a pooling alone is no stage
                ends.append(last)
        blocks = self.block_ends()
        if len(ends) > 1 or not blocks:
            return ends
        # The last block of each quarter. With fewer than four blocks, quarters share an end.
        quarters = [math.ceil(len(blocks) * quarter / 4) - 1 for quarter in range(1, 5)]
        return [blocks[index] for index in dict.fromkeys(quarters)]

    def readable(self, cuts_: Sequence[int]) -> list[str]:
        """Name each cut by the largest module that ends there and contains no earlier one."""
        chosen, before = list[str](), -1
        for cut in cuts_:
            # A name must not hold the cut before, or two stages had one name, nor any later cut.
            others = (*self.names[: before + 1][-1:], *self.names[cut + 1 :])
            modules = [module for module in self._around(cut) if not _holds(module, others)]
            chosen.append(modules[0] if modules else self.names[cut])
            before = cut
        return chosen

    def _shrinking(self) -> list[int]:
        """Give the cuts at which the map's side halves, and the first cut without a map."""
        indices, before = list[int](), 0  # `before` is the side of the last square map
        for index, shape in enumerate(self.shapes):
            # Global pooling: from a side above 2 to 1×1 in one step
            pooled = len(shape) == 3 and shape[1:] == (1, 1) and before > 2
            if len(shape) < 2 or pooled:
                return [*indices, index] if index else indices
            # Images are square: other shapes are windows or heads of attention.
            if len(shape) == 3 and shape[1] == shape[2]:
                # Half the side, rounded up: a stride of 2 takes 7 to 4.
                if before > shape[1] and shape[1] <= (before + 1) // 2:
                    indices.append(index)
                before = shape[1]
        return indices

    def _block_begin(self, first: int, shrinking: Sequence[int]) -> int:
        """Give the first cut of the block that shrinks the map at cut `first`, or else `first`.

        A block is the largest module that shrinks a map once and does not contain all earlier
        cuts. A plain list of layers is a block only if its first layer with weights shrinks the
        map.
        """
        for module in self._around(first):
            inside = [index for index, name in enumerate(self.names) if _holds(module, [name])]
            if type(self.modules[module]) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
                is_block = not self._has_weights(inside[0], first - 1)
            else:
                # A module that shrinks the map twice holds two stages.
                is_block = len(set(inside) & set(shrinking)) == 1
            # A module that begins at the net's first cut holds the stem, too: it is no block.
            if inside[0] and is_block:
                return inside[0]
        return first

    def _around(self, cut: int) -> list[str]:
        """Name the modules around a cut, the outermost first, without the net itself."""
        return [name for name in _prefixes(self.names[cut]) if name in self.modules]

    def _moves(self, cut: int) -> bool:
        """Whether a cut only moves or averages numbers, in no module of the cut before."""
        name = self.names[cut]
        if any(_holds(module, self.names[cut - 1 : cut]) for module in self._around(cut)):
            return False
        module = self.modules.get(name)
        # The function of a node such as `features.flatten_1`, or the class of a module
        function = re.sub(r"_\d+$", "", name.rpartition(".")[2])
        operation = function if module is None else type(module).__name__
        return _MOVING.fullmatch(operation) is not None

    def _has_weights(self, first: int, last: int) -> bool:
        """Whether a module with a matrix of weights has all its cuts among cuts first … last."""
        outside = (*self.names[:first], *self.names[last + 1 :])
        inside = {
            name for cut in range(first, last + 1) for name in (*self._around(cut), self.names[cut])
        }
        return any(not _holds(module, outside) for module in inside & self.matrices)

    def block_ends(self) -> list[int]:
        """Give the last cut of each block.

        Blocks are the children, with a matrix of weights, of the module that has the most such
        children. What follows a block in the same shape and without a matrix belongs to it:
        BatchNorm, ReLU.
        """
        parent, ends = "", dict[str, int]()  # the module with the most, and its children's ends
        for name in self.modules:
            last = dict[str, int]()
            for cut in range(len(self.names) - 1):  # the last one gives the logits
                start = f"{name}." if name else ""
                child = start + self.names[cut].removeprefix(start).partition(".")[0]
                if self.names[cut].startswith(start) and child in self.matrices:
                    # Later cuts overwrite earlier ones: the last cut inside each child stays.
                    last[child] = cut
            if len(last) > len(ends):
                parent, ends = name, last
        # The parent and the modules around it hold matrices, and all that follows is inside them:
        # they must not count below.
        above = {*_prefixes(f"{parent}.")}

        def follows(cut: int) -> bool:
            same = self.shapes[cut] == self.shapes[cut - 1] and (
                not parent or _holds(parent, [self.names[cut]])
            )
            around = {*self._around(cut), self.names[cut]} - above
            return same and not around & self.matrices and not self._moves(cut)

        return [
            end + len(list(takewhile(follows, range(end + 1, len(self.names)))))
            for end in ends.values()
        ]


def _prefixes(name: str) -> list[str]:
    """Give the names of the modules around a name: "a", "a.b" of "a.b.c"."""
    pieces = name.split(".")
    return [".".join(pieces[:count]) for count in range(1, len(pieces))]


def _holds(module: str, names: Sequence[str]) -> bool:
    """Whether at least one of some cuts lies inside a module."""
    return any(name.startswith(f"{module}.") for name in names)
