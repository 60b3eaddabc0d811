"""HSAKD's online form: two networks that see the same images."""

from torch import Tensor, nn

from models.small.auxiliary import NetWithHeads

Outputs = tuple[Tensor, list[Tensor]]


class OnlinePair(nn.Module):
    """Two networks with branches, trained together."""

    def __init__(self, net1: NetWithHeads, net2: NetWithHeads) -> None:
        super().__init__()
        self.net1, self.net2 = net1, net2

    def forward(self, images: Tensor) -> tuple[Outputs, Outputs]:
        """Give what each network makes of images (M, 3, S, S): logits (M, N) and each branch's logits."""
        return self.net1(images), self.net2(images)
