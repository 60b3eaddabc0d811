"""Two networks and the Trans-Net between them, opened from the Trans-Net's checkpoint: images → components."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.classifiers import load_classifier
from models.split import as_maps, split
from models.trans_net import TransNet, build_from_state
from utils import checkpoint
from utils.errors import InputError
from utils.files import sha256


class Pair(nn.Module):
    """Compute both networks' features of images and split the target's by what the other's explain.

    Args:
        head_a: images → x. With a Trans-Net of the reverse direction this is net B's head.
        head_b: images → x*.
        trans_net: g.
        source: where the features come from that g was fitted on: data set, architectures, layers, files.
    """

    def __init__(self, head_a: nn.Module, head_b: nn.Module, trans_net: TransNet, source: dict[str, Any]) -> None:
        super().__init__()
        self.head_a, self.head_b, self.trans_net, self.source = head_a, head_b, trans_net, source

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give x, x* and the components x(0) … x(K) of g(x) (paper Eq. 3); x_Δ is x* less their sum.

        Args:
            images: normalised, float32 (N, 3, S, S).

        Returns:
            x (N, C_in, H, W), x* (N, C, H', W'), components (K+1, N, C, H', W').
        """
        x, target = as_maps(self.head_a(images)), as_maps(self.head_b(images))
        return x, target, self.trans_net.decompose(x)[1]


def open_pair(
    trans_net: str | Path,
    net_a: str | Path | None = None,
    net_b: str | Path | None = None,
    layer_a: str | None = None,
    layer_b: str | None = None,
) -> Pair:
    """Read a Trans-Net and the networks that it was fitted on, in evaluation mode and without gradients.

    Args:
        trans_net: the Trans-Net's checkpoint, ours or the authors'.
        net_a: checkpoint of the network that x comes from. None: the one that the Trans-Net's checkpoint names.
        net_b: the same for x*.
        layer_a: the node of `net_a`, as `models.split` takes it. None: as the Trans-Net's checkpoint says.
        layer_b: the same for `net_b`.

    Raises:
        InputError: a file is missing or damaged; the Trans-Net does not say what is not named here, as the
            authors' do not; or the network that it names is not the file any more that it was fitted on.
    """
    state = checkpoint.load(trans_net)
    fitted = state.get("source", {})
    nets = {"a": net_a or fitted.get("path_a"), "b": net_b or fitted.get("path_b")}
    layers = {"a": layer_a or fitted.get("layer_a"), "b": layer_b or fitted.get("layer_b")}
    heads = {}
    for role, net in nets.items():
        if net is None or layers[role] is None:
            raise InputError(f"{trans_net} does not say what it was fitted on; name net_{role} and layer_{role}")
        model = load_classifier(net)
        if net == fitted.get(f"path_{role}") and sha256(net) != fitted.get(f"checkpoint_{role}"):
            raise InputError(f"{net} has changed since {trans_net} was fitted on it; fit a new Trans-Net")
        heads[role] = split(model, layers[role])[0]
    source = fitted | {f"path_{role}": str(net) for role, net in nets.items()}
    source |= {f"layer_{role}": layer for role, layer in layers.items()}
    pair = Pair(heads["a"], heads["b"], build_from_state(state, trans_net), source)
    return pair.eval().requires_grad_(False)


def find_reverse(trans_net: str | Path) -> Path | None:
    """Find, beside a Trans-Net's checkpoint, one that was fitted on the same features in the other direction."""
    source = checkpoint.load(trans_net).get("source", {})
    facts = ("checkpoint", "layer")
    wanted = [source.get(f"{fact}_{role}") for fact in facts for role in "ba"]
    for path in sorted(Path(trans_net).parent.glob("checkpoint_*.pth.tar")):
        other = checkpoint.load(path).get("source", {})
        if None not in wanted and [other.get(f"{fact}_{role}") for fact in facts for role in "ab"] == wanted:
            return path
    return None
