"""Two networks with heads that are trained together on the same batches:
DCM, and HSAKD's online form.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.small.auxiliary import NetWithHeads, build_with_heads
from utils.errors import InputError

Outputs = tuple[Tensor, list[Tensor]]  # of a network with heads


class TestedInTraining(NetWithHeads):
    """A network that never leaves training mode:
    its BatchNorm normalises every batch by its own statistics.
    """

    __test__ = False  # no test, whatever pytest makes of its name

    def train(self, mode: bool = True) -> "TestedInTraining":
        """Stay in training mode, whatever mode is asked for."""
        return super().train(True)


class Couple(nn.Module):
    """Two networks that see the same images;
    `load_classifier` takes a state dict of them as net 1.
    """

    def __init__(self, net1: NetWithHeads, net2: NetWithHeads) -> None:
        super().__init__()
        self.net1, self.net2 = net1, net2

    def forward(self, images: Tensor) -> tuple[Outputs, Outputs]:
        """Give what both networks make of images (M, 3,
        S, S): logits (M, N) and each head's logits.
        """
        return self.net1(images), self.net2(images)


def build_couple(
    archs: Sequence[str],
    num_classes: int,
    *,
    heads: bool = True,
    in_training: Collection[int] = (),
    state: Mapping[str, Any] | None = None,
) -> Couple:
    """Build two networks of DCM, net 1 first.

    Args:
        archs: two names of `models.small.names`.
        num_classes: N.
        heads: with DCM's two heads each.
        in_training: the networks (1, 2) that never leave training mode.
        state: a state dict of the same couple, which fills it.

    Raises:
        InputError: an unknown network, one without DCM's heads, or a state of other networks.
    """
    nets = []
    for number, arch in enumerate(archs, start=1):
        net = build_with_heads(arch, num_classes, "dcm", heads=heads)
        nets.append(
            TestedInTraining(net.backbone, dict(net.heads), "dcm") if number in in_training else net
        )
    couple = Couple(*nets)
    if state is not None:
        own, theirs = (
            {key: tuple(v.shape) for key, v in tensors.items()}
            for tensors in (couple.state_dict(), state)
        )
        if own != theirs:
            kind = "with" if heads else "without"
            raise InputError(
                f"the checkpoint does not hold {' and '.join(archs)} {kind} heads and {num_classes}"
                " classes; go on from one that DCM.py saved of these"
            )
        couple.load_state_dict(dict(state))
    return couple
