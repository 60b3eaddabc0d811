"""Two networks with heads, trained together on the same batches: DCM, and HSAKD's online form."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from models.small.auxiliary import NetWithHeads, build_with_heads
from utils.errors import InputError

Outputs = tuple[Tensor, list[Tensor]]  # of a network with heads


class TestedInTraining(NetWithHeads):
    """A network that never leaves training mode.

    Its BatchNorm normalises every batch by that batch's statistics, in tests too.
    """

    __test__ = False  # pytest takes a class of this name for tests

    def train(self, mode: bool = True) -> "TestedInTraining":
        """Stay in training mode, whatever mode is asked for."""
        return super().train(True)


class Couple(nn.Module):
    """Two networks that see the same images.

    `load_classifier` reads net 1 of a state dict of both.
    """

    def __init__(self, net1: NetWithHeads, net2: NetWithHeads) -> None:
        super().__init__()
        self.net1, self.net2 = net1, net2

    def forward(self, images: Tensor) -> tuple[Outputs, Outputs]:
        """Give both networks' outputs for images (M, 3, S, S): logits (M, N), heads' logits."""
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
        in_training: numbers (1, 2) of the networks that never leave training mode.
        state: a state dict of the same couple, to fill it.

    Raises:
        InputError: an unknown network, a network without DCM's heads, or a state of other networks.
    """
    nets = []
    for number, arch in enumerate(archs, start=1):
        net = build_with_heads(arch, num_classes, "dcm", heads=heads)
        nets.append(
            TestedInTraining(net.backbone, dict(net.heads), "dcm") if number in in_training else net
        )
    couple = Couple(*nets)
    if state is not None:
        expected, given = (
            {key: tuple(value.shape) for key, value in tensors.items()}
            for tensors in (couple.state_dict(), state)
        )
        if given != expected:
            kind = "with" if heads else "without"
            raise InputError(
                f"the checkpoint does not hold {' and '.join(archs)} {kind} heads and {num_classes}"
                " classes; go on from one that DCM.py saved of these"
            )
        couple.load_state_dict(dict(state))
    return couple
