"""Two networks and the Trans-Net between them:
each cut at its layer, or all three from a Trans-Net's checkpoint.
"""

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.cut_net import open_net, stand_in_pixels
from models.layers import Layer
from models.split import as_maps
from models.trans_net import TransNet, build_from_state
from utils import checkpoint
from utils.errors import InputError
from utils.normalisation import NORMALISATIONS, recorded_normalisation
from utils.provenance import Provenance


def read_stored(x: Tensor, target: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    """Give x and the target of a batch of stored features as maps."""
    return as_maps(x), as_maps(target)


class Pair(nn.Module):
    """Compute both networks' features of images and split the target's by what the other's explain.

    Args:
        head_a: pixels → x. With a Trans-Net of the reverse direction this is net B's head.
        head_b: pixels → x*.
        trans_net: g.
        provenance: of the features that g was fitted on.
    """

    def __init__(
        self, head_a: nn.Module, head_b: nn.Module, trans_net: TransNet, provenance: Provenance
    ) -> None:
        super().__init__()
        self.head_a, self.head_b, self.trans_net, self.provenance = (
            head_a,
            head_b,
            trans_net,
            provenance,
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give x, x*, g(x) and its components x(0) … x(K) (paper Eq. 3); x_Δ is x* less g(x).

        Args:
            pixels: uint8 (N, 3, S, S), RGB; each network normalises them by its own constants.

        Returns:
            x (N, C_in, H, W), x* and g(x) (N, C, H', W'), components (K+1, N, C, H', W').
        """
        x, target = as_maps(self.head_a(pixels)), as_maps(self.head_b(pixels))
        return x, target, *self.trans_net.decompose(x)


class Decomposition(nn.Module):
    """Split a target into components and residual, batch axis first, as DataParallel gathers."""

    def __init__(self, trans_net: TransNet) -> None:
        super().__init__()
        self.trans_net = trans_net

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Give the components (N, K+1, C, H, W) and x_Δ (N,
        C, H, W) of x and target (paper Eq. 3).
        """
        output, components = self.trans_net.decompose(x)
        return components.transpose(0, 1), target - output


def open_pair(
    trans_net: str | Path,
    net_a: str | Path | None = None,
    net_b: str | Path | None = None,
    layer_a: str | None = None,
    layer_b: str | None = None,
    pixels: Tensor | None = None,
) -> Pair:
    """Read a Trans-Net and the networks that it was fitted on,
    in evaluation mode and without gradients.

    Args:
        trans_net: the Trans-Net's checkpoint, ours or the authors'.
        net_a: checkpoint of the network that x comes from. None: the one that the Trans-Net's
            checkpoint names.
        net_b: the same for x*.
        layer_a: the node of `net_a`, as `models.split` takes it. None: as the Trans-Net's
            checkpoint says.
        layer_b: the same for `net_b`.
        pixels: of a few images, uint8 (n, 3, S, S), that both cuts are proven on; None: noise of
            the size that the Trans-Net's checkpoint says.

    Raises:
        InputError: a file is missing or damaged; the Trans-Net does not say what is not named here,
            as the authors' do not; or it was fitted on other networks or layers than these.
    """
    state = checkpoint.load(trans_net)
    fitted = Provenance.from_record(state.get("source", {}))
    nets, pixels = {}, stand_in_pixels(fitted.image_size) if pixels is None else pixels
    for role, path, layer in (
        ("a", net_a or fitted.a.path, layer_a or fitted.a.layer),
        ("b", net_b or fitted.b.path, layer_b or fitted.b.layer),
    ):
        if path is None or layer is None:
            raise InputError(
                f"{trans_net} does not say what it was fitted on; name net_{role} and layer_{role}"
            )
        net = open_net(path, None, Layer(layer))
        fitted_by = getattr(fitted, role).normalisation or recorded_normalisation(
            net.state.get("data", {})
        )
        # As the authors' all were
        nets[role] = net.normalised_by(fitted_by or NORMALISATIONS["imagenet"])
        net.prove(pixels)
    opened = Provenance(nets["a"].source, nets["b"].source)
    fitted.check(opened, trans_net)
    provenance = replace(fitted, a=opened.a, b=opened.b)
    head_a, head_b = (net.from_pixels(net.head) for net in nets.values())
    pair = Pair(head_a, head_b, build_from_state(state, trans_net), provenance)
    return pair.eval().requires_grad_(False)


# What the direction changes of a fit's settings: M is at most the channels of its x.
OF_DIRECTION = ("reverse", "hidden")


def find_reverse(trans_net: str | Path, *, alike: bool = False) -> Path | None:
    """Find, beside a Trans-Net's checkpoint,
    one that was fitted on the same features in the other direction.

    Args:
        trans_net: the checkpoint; the authors' say nothing of their features, and have none.
        alike: only one that was fitted by the same options.
    """
    state = checkpoint.load(trans_net, mmap=True)
    wanted = Provenance.from_record(state.get("source", {})).reversed()
    if None in (wanted.a.sha256, wanted.b.sha256):
        return None
    for path in sorted(Path(trans_net).parent.glob("checkpoint_*.pth.tar")):
        with contextlib.suppress(InputError):  # what cannot be read is no Trans-Net
            other = checkpoint.load(path, mmap=True)
            source = Provenance.from_record(other.get("source", {}))
            is_other = (source.a, source.b) == (wanted.a, wanted.b) and path != Path(trans_net)
            if is_other and (not alike or _settings(other) == _settings(state)):
                return path
    return None


def _settings(state: checkpoint.State) -> dict[str, Any]:
    """Give the options of a fit that both directions have in common."""
    settings = state.get("settings", {})
    return {name: value for name, value in settings.items() if name not in OF_DIRECTION}
