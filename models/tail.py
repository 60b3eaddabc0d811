"""B's frozen tail: the layers behind the cut, for B's feature or a Trans-Net's."""

from torch import Tensor, fx, nn

from models.classifiers import last_layer
from models.cut_net import CutNet, reopen_net
from models.frozen import freeze_plainly
from models.graph import copy_inputs, result_of
from models.split import from_maps
from utils.provenance import NetSource


class FrozenTail(nn.Module):
    """Give the penultimate feature and the logits of a feature, in one pass.

    Args:
        tail: of `split`, feature (N, *shape) → logits (N, C). Its modules are shared and frozen.
        last: the name of the net's last layer, whose input is the penultimate feature.
        shape: of one image's feature at the cut.
        outputs: C, if it is recorded.
    """

    def __init__(
        self, tail: fx.GraphModule, last: str, shape: tuple[int, ...], outputs: int | None = None
    ) -> None:
        super().__init__()
        self.outputs = outputs
        # The call of the last layer; a cut at or behind it has none in its tail.
        last_calls = [
            node for node in tail.graph.nodes if node.op == "call_module" and node.target == last
        ]
        # One graph with two results: the layers up to the last one run once for both.
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        logits = copy_inputs(graph, result_of(tail.graph), copies)
        penultimate = [copies[node.all_input_nodes[0]] for node in last_calls[:1]]
        graph.output((*penultimate, logits))
        self.layers, self.shape = fx.GraphModule(tail, graph, "FrozenTail"), shape
        self.requires_grad_(False).eval()

    def forward(self, maps: Tensor) -> tuple[Tensor | None, Tensor]:
        """Give the penultimate feature and the logits.

        Args:
            maps: the feature at the cut, as maps (N, C, H, W).

        Returns:
            The penultimate feature (N, …), or None where the cut lies at or behind the last layer;
            and the logits (N, C).
        """
        *penultimate, logits = self.layers(from_maps(maps, self.shape))
        return (penultimate[0] if penultimate else None), logits


def open_tail(source: NetSource, arch: str | None, shape: tuple[int, ...]) -> FrozenTail:
    """Open the tail of the net that features were computed with.

    Args:
        source: the features' record of the net and its layer.
        arch: the architecture, needed where it is the user's own code; see `open_net`.
        shape: of one image's feature.

    Raises:
        InputError: the record is incomplete, or the file is gone or has changed.
    """
    return tail_of(reopen_net(source, arch), shape)


def tail_of(net: CutNet, shape: tuple[int, ...]) -> FrozenTail:
    """Freeze the tail of an open net; it shares the net's weights.

    Args:
        net: cut at the feature's layer.
        shape: of one image's feature.
    """
    # Modules of its own: they may go to a device, and the net stays.
    tail = freeze_plainly(net.tail)
    return FrozenTail(tail, last_layer(net.model), shape, net.state["model"]["num_classes"])
