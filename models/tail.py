"""B's frozen tail: what its layers behind the cut make of a feature,
its own or one that a Trans-Net gives.
"""

from torch import Tensor, fx, nn

from models.classifiers import last_layer
from models.cut_net import reopen_net
from models.graph import copy_inputs, result_of
from models.split import from_maps
from utils.provenance import NetSource


class FrozenTail(nn.Module):
    """Give the penultimate feature and the logits of a feature, in one pass.

    Args:
        tail: feature (N, *shape) → logits (N, C), of `split`; its modules are shared, and are never
            trained.
        last: the name of the net's last layer, whose input is the penultimate feature.
        shape: of one image's feature at the cut.
        outputs: C; None: not said.
    """

    def __init__(
        self, tail: fx.GraphModule, last: str, shape: tuple[int, ...], outputs: int | None = None
    ) -> None:
        super().__init__()
        self.outputs = outputs
        reader = [
            node for node in tail.graph.nodes if node.op == "call_module" and node.target == last
        ]
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        logits = copy_inputs(graph, result_of(tail.graph), copies)
        graph.output((*(copies[node.all_input_nodes[0]] for node in reader[:1]), logits))
        self.layers, self.shape = fx.GraphModule(tail, graph, "FrozenTail"), shape
        self.requires_grad_(False).eval()

    def forward(self, maps: Tensor) -> tuple[Tensor | None, Tensor]:
        """Give the penultimate feature (N, …) and the logits (N,
        C) of a feature that comes as maps (N, C, H, W).

        Behind the last layer there is no penultimate feature: None.
        """
        *penultimate, logits = self.layers(from_maps(maps, self.shape))
        return (penultimate[0] if penultimate else None), logits


def open_tail(source: NetSource, arch: str | None, shape: tuple[int, ...]) -> FrozenTail:
    """Read the tail of a net that features were computed of.

    Args:
        source: which net, and where it was cut.
        arch: the architecture, needed where that is the user's own code; see `open_net`.
        shape: of one image's feature.

    Raises:
        InputError: the features do not say which net it was, or it is not there any more.
    """
    net = reopen_net(source, arch)
    return FrozenTail(net.tail, last_layer(net.model), shape, net.state["model"]["num_classes"])
