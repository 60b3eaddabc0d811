"""Two networks, each cut at its layer, and the Trans-Net between their features."""

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
    """Give x and the target of a batch of stored features as maps, (N, C, H, W)."""
    return as_maps(x), as_maps(target)


class Pair(nn.Module):
    """Compute both networks' features of images, and split B's by what A's can reconstruct.

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
        """Give x, x*, g(x) and its components x(0) … x(K) (paper Eq. 3); x_Δ is x* − g(x).

        Args:
            pixels: uint8 (N, 3, S, S), RGB; each network normalises them by its own constants.

        Returns:
            x (N, C_in, H, W), x* and g(x) (N, C, H', W'), components (K+1, N, C, H', W').
        """
        x, target = as_maps(self.head_a(pixels)), as_maps(self.head_b(pixels))
        return x, target, *self.trans_net.decompose(x)


class Decomposition(nn.Module):
    """Split a target into components and residual.

    The batch axis comes first, because DataParallel joins its replicas' outputs along axis 0.
    """

    def __init__(self, trans_net: TransNet) -> None:
        super().__init__()
        self.trans_net = trans_net

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Split x* as in paper Eq. 3.

        Args:
            x: A's feature, (N, C_in, H', W').
            target: x*, (N, C, H, W).

        Returns:
            The components, (N, K+1, C, H, W), and x_Δ, (N, C, H, W).
        """
        output, components = self.trans_net.decompose(x)
        # (K+1, N, C, H, W) → (N, K+1, C, H, W)
        return components.transpose(0, 1), target - output


def open_pair(
    trans_net: str | Path,
    net_a: str | Path | None = None,
    net_b: str | Path | None = None,
    layer_a: str | None = None,
    layer_b: str | None = None,
    pixels: Tensor | None = None,
) -> Pair:
    """Read a Trans-Net and its two networks, in evaluation mode and without gradients.

    Args:
        trans_net: the Trans-Net's checkpoint, of this suite or of the authors.
        net_a: checkpoint of the network that x comes from. None: the network that the Trans-Net's
            checkpoint names.
        net_b: checkpoint of the network that x* comes from; None: likewise.
        layer_a: the node of `net_a`, as `models.split` takes it. None: the node that the
            Trans-Net's checkpoint names.
        layer_b: the node of `net_b`; None: likewise.
        pixels: of a few images, uint8 (n, 3, S, S), on which both cuts are proven. None: noise of
            the size that the Trans-Net's checkpoint says.

    Raises:
        InputError: a file is missing or damaged; neither an argument nor the Trans-Net's checkpoint
            names a network or layer; or the Trans-Net was fitted on other networks or layers.
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
        # Files that record no constants are the authors', who used ImageNet's throughout.
        nets[role] = net.normalised_by(fitted_by or NORMALISATIONS["imagenet"])
        net.prove(pixels)
    opened = Provenance(nets["a"].source, nets["b"].source)
    fitted.check(opened, trans_net)
    # The images stay those of the fit; the nets are the files that were opened now.
    provenance = replace(fitted, a=opened.a, b=opened.b)
    head_a, head_b = (net.from_pixels(net.head) for net in nets.values())
    pair = Pair(head_a, head_b, build_from_state(state, trans_net), provenance)
    return pair.eval().requires_grad_(False)


# Settings of a fit that its direction changes: M is at most the channels of x.
OF_DIRECTION = ("reverse", "hidden")


def find_reverse(trans_net: str | Path, *, alike: bool = False) -> Path | None:
    """Find, in a Trans-Net's folder, the one of the other direction between the same features.

    Args:
        trans_net: the checkpoint; the authors' record no features, and have none.
        alike: only one that was fitted by the same options.
    """
    state = checkpoint.load(trans_net, mmap=True)
    # The other direction's A is this one's B, layers and hashes included.
    wanted = Provenance.from_record(state.get("source", {})).reversed()
    if None in (wanted.a.sha256, wanted.b.sha256):  # without hashes nets cannot be told apart
        return None
    for path in sorted(Path(trans_net).parent.glob("checkpoint_*.pth.tar")):
        with contextlib.suppress(InputError):  # a file that cannot be read is none
            other = checkpoint.load(path, mmap=True)
            source = Provenance.from_record(other.get("source", {}))
            is_other = (source.a, source.b) == (wanted.a, wanted.b) and path != Path(trans_net)
            if is_other and (not alike or _settings(other) == _settings(state)):
                return path
    return None


def _settings(state: checkpoint.State) -> dict[str, Any]:
    """Give the options of a fit that both directions share."""
    settings = state.get("settings", {})
    return {name: value for name, value in settings.items() if name not in OF_DIRECTION}
