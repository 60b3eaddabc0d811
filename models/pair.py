"""Two networks and the Trans-Net between them: each cut at its layer, or all three from a Trans-Net's checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, fx, nn

from models.classifiers import build, last_layer, read_classifier
from models.layers import Layer
from models.own import refuse_unnamed
from models.split import as_maps, before_last, from_maps, split, tap
from models.trans_net import TransNet, build_from_state
from utils import checkpoint
from utils.errors import InputError
from utils.files import sha256
from utils.normalisation import NORMALISATIONS, Normalisation, recorded_normalisation
from utils.pixels import FromPixels
from utils.provenance import NetSource, Provenance


class Net(NamedTuple):
    """A trained classifier, cut at a layer.

    Attributes:
        state: its checkpoint without the weights; "model" says what rebuilds it.
        source: what it is: architecture, layer, file.
        head: images (N, 3, S, S) → feature (N, *shape).
        tail: feature → logits (N, C).
    """

    state: checkpoint.State
    source: NetSource
    head: nn.Module
    tail: fx.GraphModule

    def normalised_by(self, normalisation: Normalisation) -> "Net":
        """Say by which constants the network reads pixels."""
        return self._replace(source=replace(self.source, normalisation=normalisation))

    def from_pixels(self, head: nn.Module) -> FromPixels:
        """Let a form of the head, which takes normalised images, read pixels."""
        return from_pixels(head, self.source)


def from_pixels(module: nn.Module, source: NetSource) -> FromPixels:
    """Let a form of a network, or of a part that begins with its images, read pixels by the constants it is used to.

    Raises:
        InputError: nobody recorded them.
    """
    if source.normalisation is None:
        raise InputError(f"nothing says how images of {source.path or 'the net'} are normalised; name --normalisation")
    return FromPixels(module, source.normalisation)


def open_net(path: str | Path, arch: str | None, layer: Layer, hint: str = "") -> Net:
    """Read a classifier's checkpoint and cut the network at a layer.

    Args:
        path: the checkpoint.
        arch: the architecture that is expected, if any; see `read_classifier`.
        layer: where.
        hint: what to say behind the sentence that there is no such layer.

    Raises:
        InputError: the file holds no such classifier, or it has no such layer.
    """
    model, state = read_classifier(path, arch)
    try:
        node = layer.node(model)
        head, tail = split(model, node)
    except InputError as error:
        raise InputError(f"{error}{hint}") from None
    return Net(state, NetSource(state["model"]["arch"], node, str(path), sha256(path)), head, tail)


def untrained_head(source: NetSource, classes: int, named: str | None = None) -> nn.Module:
    """Build a net anew, as it is initialised before any training, and cut it where its features were taken.

    Args:
        source: says the architecture and the layer.
        classes: of the data set, at least 1.
        named: the architecture that an option says, without which a user's own is refused.

    Returns:
        Normalised images (N, 3, S, S) → feature, in evaluation mode and without gradients, on the CPU.

    Raises:
        InputError: the source does not say which net it was, or it is the user's own and no option names it.
    """
    if source.arch is None or source.layer is None or not classes:
        raise InputError("the features do not say of which net, layer and classes they are; store them anew")
    refuse_unnamed(source.arch, named, "the stored features' record")
    head, _ = split(build(source.arch.removesuffix("_ft"), classes), source.layer)
    return head.requires_grad_(False).eval()


class Tapped(NamedTuple):
    """A trained classifier that also gives its features at some layers.

    Attributes:
        state: its checkpoint without the weights; "model" says what rebuilds it.
        sources: what it is, once for each layer.
        net: images (N, 3, S, S) → (feature, …, logits (N, C)).
    """

    state: checkpoint.State
    sources: list[NetSource]
    net: nn.Module

    def normalised_by(self, normalisation: Normalisation) -> "Tapped":
        """Say by which constants the network reads pixels."""
        return self._replace(sources=[replace(source, normalisation=normalisation) for source in self.sources])

    def from_pixels(self, net: nn.Module) -> FromPixels:
        """Let a form of the network, which takes normalised images, read pixels."""
        return from_pixels(net, self.sources[0])


def open_tapped(path: str | Path, arch: str | None, layers: Sequence[Layer], hint: str = "") -> Tapped:
    """Read a classifier's checkpoint and tap the network at some layers; see `open_net`."""
    model, state = read_classifier(path, arch)
    try:
        nodes = [layer.node(model) for layer in layers]
        net = tap(model, nodes)
    except InputError as error:
        raise InputError(f"{error}{hint}") from None
    digest = sha256(path)
    return Tapped(state, [NetSource(state["model"]["arch"], node, str(path), digest) for node in nodes], net)


class Penultimate(nn.Module):
    """What a net's frozen layers make of its feature at a cut: its penultimate feature, that of the last layer's input.

    Args:
        layers: feature (N, *shape) → penultimate feature.
        shape: of one image's feature at the cut.
    """

    def __init__(self, layers: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.shape = layers, shape
        self.requires_grad_(False).eval()

    def forward(self, maps: Tensor) -> Tensor:
        """Give the penultimate feature of a feature that comes as maps (N, C, H, W)."""
        return self.layers(from_maps(maps, self.shape))


def open_penultimate(source: NetSource, arch: str | None, shape: tuple[int, ...]) -> Penultimate:
    """Read a net that features were stored of, and give what follows them up to its last layer.

    Args:
        source: which net, and where it was cut.
        arch: see `open_net`.
        shape: of one image's feature.

    Raises:
        InputError: the features do not say which net it was, it is not there any more, or nothing follows.
    """
    if source.path is None or source.layer is None:
        raise InputError("the features do not say of which net they are, whose layers are asked for; store them anew")
    net = open_net(source.path, arch, Layer(source.layer))
    if source.sha256 != net.source.sha256:
        raise InputError(f"{source.path} is not the net any more that the features were stored of; store them anew")
    model, _ = read_classifier(source.path, arch)
    return Penultimate(before_last(net.tail, last_layer(model)), shape)


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

    def __init__(self, head_a: nn.Module, head_b: nn.Module, trans_net: TransNet, provenance: Provenance) -> None:
        super().__init__()
        self.head_a, self.head_b, self.trans_net, self.provenance = head_a, head_b, trans_net, provenance

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
        """Give the components (N, K+1, C, H, W) and x_Δ (N, C, H, W) of x and target (paper Eq. 3)."""
        output, components = self.trans_net.decompose(x)
        return components.transpose(0, 1), target - output


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
            authors' do not; or it was fitted on other networks or layers than these.
    """
    state = checkpoint.load(trans_net)
    fitted = Provenance.from_record(state.get("source", {}))
    nets = {}
    for role, path, layer in (
        ("a", net_a or fitted.a.path, layer_a or fitted.a.layer),
        ("b", net_b or fitted.b.path, layer_b or fitted.b.layer),
    ):
        if path is None or layer is None:
            raise InputError(f"{trans_net} does not say what it was fitted on; name net_{role} and layer_{role}")
        net = open_net(path, None, Layer(layer))
        fitted_by = getattr(fitted, role).normalisation or recorded_normalisation(net.state.get("data", {}))
        nets[role] = net.normalised_by(fitted_by or NORMALISATIONS["imagenet"])  # as the authors' all were
    opened = Provenance(nets["a"].source, nets["b"].source)
    fitted.check(opened, trans_net)
    provenance = replace(fitted, a=opened.a, b=opened.b)
    head_a, head_b = (net.from_pixels(net.head) for net in nets.values())
    pair = Pair(head_a, head_b, build_from_state(state, trans_net), provenance)
    return pair.eval().requires_grad_(False)


def find_reverse(trans_net: str | Path) -> Path | None:
    """Find, beside a Trans-Net's checkpoint, one that was fitted on the same features in the other direction."""
    wanted = Provenance.from_record(checkpoint.load(trans_net, mmap=True).get("source", {})).reversed()
    if None in (wanted.a.sha256, wanted.b.sha256):
        return None
    for path in sorted(Path(trans_net).parent.glob("checkpoint_*.pth.tar")):
        other = Provenance.from_record(checkpoint.load(path, mmap=True).get("source", {}))
        if (other.a, other.b) == (wanted.a, wanted.b):
            return path
    return None
