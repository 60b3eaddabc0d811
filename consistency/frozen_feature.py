"""The features that a tail is tuned on (paper Sec. 4.1 and 4.3).

They are raw ones, or what a Trans-Net keeps of them.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from consistency.tail_inputs import NOISE, RAW
from consistency.trans_nets import check_fit
from models.cut_net import CutNet
from models.split import as_maps, feature_shape, from_maps
from models.trans_net import TransNet
from utils.errors import InputError


class FrozenFeature(nn.Module):
    """Turn pixels (N, 3, S, S) into a feature (N, *shape), float32.

    The networks that do it are fixed, and in evaluation mode.

    What it gives, by `name`:

        components      Σ x(k) over `orders`: knowledge of A that is consistent with B's; of all orders, g(x_A).
                        The constant of a Trans-Net that standardises belongs to no order and is
                        always there
        residual_added  the same + x_Δ = x_B − g(x_A), A's blind spots
        raw_A, raw_B    x_A, x_B, the baselines
        noise_added     x_B + Gaussian noise, whose variance in each image and channel is the mean square of x_Δ there:
                        what is as large as the blind spots, and no knowledge. Drawn by a generator
                        of its own, so that a run that is repeated or resumed sees the same

    With all orders, `residual_added` is x_B up to rounding: what g(x_A) lacks of x_B is added to
    g(x_A). So the paper's first experiment in Sec. 4.1 asks what modules like A's make of x_B; it
    is computed as it is defined.

    Args:
        name: one of `INPUTS`.
        heads: "A" and "B" → pixels → feature; for a raw feature its own net's is enough.
        trans_net: g, from A's feature to B's; needless for a raw feature.
        orders: the k of the components that are summed.
        tail_shape: of the feature that the tail was trained on: maps (C, H, W), tokens (T, C) or a
            vector (C,); of these three the result is the same, its lengths are its own.
    """

    def __init__(
        self,
        name: str,
        heads: Mapping[str, nn.Module],
        trans_net: TransNet | None,
        orders: Sequence[int],
        tail_shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        needed = (
            [RAW[name]]
            if name in RAW
            else ["A", "B"]
            if name in ("residual_added", NOISE)
            else ["A"]
        )
        self.name, self.orders, self.tail_shape = name, list(orders), tail_shape
        self.heads = nn.ModuleDict({net: heads[net] for net in needed})
        self.trans_net = None if name in RAW else trans_net
        self.generator = torch.Generator().manual_seed(0)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FrozenFeature":
        """Stay in evaluation mode, so that no running statistics move."""
        return super().train(False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Give the feature of pixels, which each net's head normalises by its own constants."""
        features = {net: as_maps(head(pixels)) for net, head in self.heads.items()}
        if self.trans_net is None:
            (maps,) = features.values()
        else:
            # The chosen orders alone; the constant, of no order, is always there.
            output, components = self.trans_net.decompose(features["A"])
            chosen = torch.stack([components[k] for k in self.orders])
            maps = chosen.sum(0) + self.trans_net.constant[:, None, None]
            if self.name == "residual_added":
                maps = maps + (features["B"] - output)
            elif self.name == NOISE:
                residual = features["B"] - output
                noise = torch.randn(residual.shape, generator=self.generator).to(
                    residual, non_blocking=True
                )
                # Its standard deviation is √ of the mean square of x_Δ, one for each image and
                # channel.
                maps = features["B"] + noise * residual.square().mean((2, 3), keepdim=True).sqrt()
        return from_maps(maps, self.tail_shape).float()


def freeze(
    name: str,
    nets: dict[str, CutNet],
    trans_net: TransNet | None,
    in_mode: Sequence[int],
    tail: str,
    pixels: Tensor,
) -> tuple[FrozenFeature, tuple[int, ...]]:
    """Build the frozen part for the tail of net `tail`, and try both on one blank image.

    Args:
        name: one of `INPUTS`.
        nets: "A" and "B", those that take part; they are proven on the pixels.
        trans_net: see `FrozenFeature`.
        in_mode: 1 for each k whose x(k) is summed, 0 for the others, x(0) first; empty for a raw
            feature.
        tail: "A" or "B".
        pixels: of a few images, uint8 (n, 3, S, S) on the CPU.

    Returns:
        The frozen part and the shape of one image's feature.

    Raises:
        InputError: a cut computes something else than its net, the Trans-Net does not fit the
            nets' features, or the tail does not take the result.
    """
    image_size = pixels.shape[-1]
    shapes = {role: net.shapes(image_size)[0] for role, net in nets.items()}
    if trans_net is not None:
        check_fit(trans_net, shapes["A"], shapes["B"])
    for net in nets.values():
        net.prove_fast(pixels)
    orders = [k for k, chosen in enumerate(in_mode) if chosen]
    heads = {role: net.frozen(torch.device("cpu")) for role, net in nets.items()}
    frozen = FrozenFeature(name, heads, trans_net, orders, shapes[tail])
    shape = tuple(feature_shape(frozen, image_size))
    try:
        with torch.no_grad():
            # One blank feature shows whether widths and sizes fit.
            nets[tail].tail.eval()(torch.zeros(1, *shape))
    except (RuntimeError, ValueError, AssertionError):
        raise InputError(
            f"{name} gives a feature {shape}, which the tail of net {tail} does not take (its own"
            f" is {shapes[tail]}): choose layers with as many channels, or another --tail"
        ) from None
    return frozen, shape
