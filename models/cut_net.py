"""A classifier that is opened once, cut at some layers, and proves that the cut changed nothing."""

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.classifiers import build, last_layer, read_classifier
from models.frozen import freeze_for_inference, freeze_plainly
from models.graph import modes_of, restore_modes
from models.layers import Layer
from models.own import is_foreign, named_arch
from models.recorder import DropoutOff
from models.split import before_last, feature_shape, feature_shapes, from_maps, split, tap
from utils import checkpoint
from utils.errors import InputError
from utils.files import sha256
from utils.normalisation import NORMALISATIONS, Normalisation
from utils.pixels import FromPixels, normalise
from utils.provenance import NetSource
from utils.remarks import remark

Shape = tuple[int, ...]
# The largest difference that rounding may explain, as a share of the largest value. SAME: the
# same operations in the same order. FAST: BatchNorms folded, memory in channels-last order.
SAME, FAST = 1e-5, 1e-4


class CutNet:
    """A trained classifier, cut at one layer or tapped at several.

    A net is read once and hashed once. Before its features are used, `prove` compares the cut net
    with the net as its author wrote it. `frozen` refuses to work before that.

        net = open_net("A.pth.tar", None, Layer("layer3.1.add")).normalised_by(normalisation)
        net.prove_fast(pixels)
        head = net.frozen(device)       # pixels (N, 3, S, S) → feature (N, *shape)

    Args:
        model: images (N, 3, S, S) → logits (N, C), in evaluation mode, on the CPU.
        sources: one record of the net for each layer.
        state: its checkpoint without the weights; "model" says what rebuilds it.
        tapped: features come from `taps` (all layers in one pass) instead of from `head`.

    Raises:
        InputError: there is no such layer, or it is no cut.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Sequence[NetSource],
        state: checkpoint.State,
        *,
        tapped: bool = False,
    ) -> None:
        self.model, self.sources, self.state, self.tapped = model, list(sources), state, tapped
        # Pixels to a side that it was cut for; None: a usual size
        self.image_size: int | None = None
        # The graph that gives features
        # Made now, so that a wrong layer is refused before anything is computed.
        self.form = self.taps if tapped else self.head
        self._shapes: dict[int, list[Shape]] = {}  # of the features, by the size of the images
        # Whether the fast form passed its proof; None: nothing is proven yet
        self._is_fast: bool | None = None

    @property
    def source(self) -> NetSource:
        """The record of the net, cut at the first of its layers."""
        return self.sources[0]

    @property
    def data(self) -> dict[str, Any]:
        """What its checkpoint says of the images that it was trained on."""
        return self.state.get("data", {})

    @property
    def head(self) -> fx.GraphModule:
        """Images (N, 3, S, S) → feature (N, *shape) of the first layer."""
        return self._halves[0]

    @property
    def tail(self) -> fx.GraphModule:
        """Feature of the first layer → logits (N, C)."""
        return self._halves[1]

    @cached_property
    def _halves(self) -> tuple[fx.GraphModule, fx.GraphModule]:
        last = self.source.channels_last
        return split(self.model, str(self.source.layer), self.image_size, channels_last=last)

    @cached_property
    def taps(self) -> fx.GraphModule:
        """Images (N, 3, S, S) → (feature of every layer, …, logits (N, C)), in one pass."""
        layers, last = [str(source.layer) for source in self.sources], self.source.channels_last
        return tap(self.model, layers, self.image_size, channels_last=last)

    def normalised_by(self, normalisation: Normalisation) -> "CutNet":
        """Record the constants by which the net normalises pixels, and return the net."""
        self.sources = [replace(source, normalisation=normalisation) for source in self.sources]
        return self

    def from_pixels(self, module: nn.Module) -> FromPixels:
        """Put the net's normalisation before a form of it that takes normalised images.

        Raises:
            InputError: the net's normalisation is not recorded.
        """
        if self.source.normalisation is None:
            raise InputError(
                f"nothing says how images of {self._name} are normalised; name --normalisation"
            )
        return FromPixels(module, self.source.normalisation)

    def whole(self) -> FromPixels:
        """Give the net as its author wrote it, pixels → logits; see `from_pixels`."""
        return self.from_pixels(self.model)

    def shapes(self, image_size: int) -> list[Shape]:
        """Measure the shapes of one image's features, without the batch axis, at all layers.

        A net whose code depends on the size of the images is cut anew for this size.

        Args:
            image_size: S, pixels.
        """
        if image_size in self._shapes:
            return self._shapes[image_size]
        forms = (self.form,) if self.tapped else (self.head, self.tail)
        if any(form.meta.get("image_size", image_size) != image_size for form in forms):
            try:
                self._cut_for(image_size)
            except InputError:
                # Without "image_size" the features are right at any size. Then only the net's end
                # refuses these images (a Linear that counts positions), and nobody asks for it.
                if "image_size" in self.form.meta:
                    raise
        shapes = (
            feature_shapes(self.taps, image_size)
            if self.tapped
            else [feature_shape(self.head, image_size)]
        )
        self._shapes = {image_size: shapes}  # shapes at another size belong to another cut
        return shapes

    def _cut_for(self, image_size: int) -> None:
        """Cut the net anew for images of S pixels to a side; after an error the old cut stays."""
        size_before, self.image_size = self.image_size, image_size
        # Cached properties live in the instance's dictionary: taking them out clears the cache.
        cuts_before: dict[str, Any] = {
            form: vars(self).pop(form) for form in ("_halves", "taps") if form in vars(self)
        }
        try:
            self.form = self.taps if self.tapped else self.head
        except InputError:
            self.image_size = size_before
            vars(self).update(cuts_before)
            raise

    def penultimate(self, shape: Shape) -> "Penultimate":
        """Give the map from the first layer's feature to the penultimate feature.

        Args:
            shape: of one image's feature at the first layer.

        Raises:
            InputError: the features are taken at or behind the last layer.
        """
        return Penultimate(before_last(self.tail, last_layer(self.model)), shape)

    def prove(self, pixels: Tensor) -> list[Tensor]:
        """Compare the cut net with the net as its author wrote it, on a few images.

        - The feature at a layer that is a module equals, to the bit, what a forward hook sees.
        - The logits equal those of the net. So a feature that no hook sees is right too.

        The proof computes on the CPU in float32 and leaves the random state as it was.

        Args:
            pixels: of a few images, uint8 (n, 3, S, S) on the CPU.

        Returns:
            The output of `form`: the feature, or the features and the logits.

        Raises:
            InputError: the net does not take such images, or the cut net computes something else.
        """
        size, images = pixels.shape[-1], self._normalised(pixels)
        self.shapes(size)  # its error is the clearest where the net does not take this size
        hooked, logits = self._as_written(images)
        features = _ask(self.form, images)
        self._compare_features(features, hooked)
        if logits is not None:
            # The taps' last output is the logits; a head's feature goes on through the tail.
            answer = features[-1] if self.tapped else _ask(self.tail, features[0])[0]
            if (difference := _differ(answer, logits)) > SAME:
                raise self._refusal(
                    f"its logits differ from the net's by {difference:.1e} of the largest"
                )
        elif not all(hooked):  # neither the logits nor a hook could confirm some feature
            raise InputError(
                f"{self._name} does not take {size}×{size} images; choose another --image_size"
            )
        self._is_fast = False
        return features

    def _compare_features(self, features: list[Tensor], hooked: list[list[Tensor]]) -> None:
        """Compare each layer's feature with what a hook saw there, call by call.

        Raises:
            InputError: it equals none of the calls' outputs; a module may be called several times.
        """
        moved = self.form.meta["channels_last"]
        layers_moved = moved if self.tapped else [moved]
        for source, feature, outputs, is_moved in zip(self.sources, features, hooked, layers_moved):
            # (N, H, W, C) in the net is (N, C, H, W) in the cut.
            expected = [output.permute(0, 3, 1, 2) if is_moved else output for output in outputs]
            if expected and not any(_differ(feature, output) == 0 for output in expected):
                raise self._refusal(f"its feature at {source.layer} is not what that module gives")

    def prove_fast(self, pixels: Tensor) -> None:
        """Compare the cut net with the net itself, and its fast form with both; see `prove`.

        The fast form (BatchNorms folded, channels last) must give the same up to rounding. If it
        does not, `frozen` gives the plain form, and a remark says so.

        Args:
            pixels: of a few images, uint8 (n, 3, S, S) on the CPU.

        Raises:
            InputError: see `prove`.
        """
        features = self.prove(pixels)
        reason = _why_not_fast(self.form, self._normalised(pixels), features)
        if reason:
            remark(f"{self._name}: {reason}; the plain form of the net is used, which is slower")
        self._is_fast = not reason

    def frozen(self, device: torch.device) -> FromPixels:
        """Give `form` frozen on a device: fast after `prove_fast`, plain after `prove`.

        It has no gradients, and holds no more of the net than it needs.

        Returns:
            Pixels, uint8 (N, 3, S, S), → the output of `form`.

        Raises:
            RuntimeError: nothing was proven.
        """
        return self.from_pixels(self.frozen_form(device))

    def frozen_form(self, device: torch.device) -> nn.Module:
        """Give `frozen` for images that are normalised already, float32 (N, 3, S, S)."""
        if self._is_fast is None:
            raise RuntimeError("call prove() before the features of this net are used")
        if self._is_fast:
            return freeze_for_inference(self.form, device)
        try:
            return freeze_plainly(self.form).to(device)
        except Exception:  # a module that cannot be copied is used itself
            return self.form.requires_grad_(False).eval().to(device)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Normalise the images of a proof; it holds for any constants."""
        return normalise(pixels, *(self.source.normalisation or NORMALISATIONS["imagenet"]))

    def _as_written(self, images: Tensor) -> tuple[list[list[Tensor]], Tensor | None]:
        """Ask the net itself.

        Returns:
            What a hook sees at each layer, call by call; none where the layer is no module. And
            the logits, or None where the net's end does not take the images, as a Linear that
            counts positions. The features can be used even so.
        """
        hooked, handles = [list[Tensor]() for _ in self.sources], []
        for source, outputs in zip(self.sources, hooked):
            with contextlib.suppress(AttributeError):  # the layer is a function's node
                module = self.model.get_submodule(str(source.layer))
                handles.append(module.register_forward_hook(partial(_record, outputs)))
        try:
            with DropoutOff():
                return hooked, _ask(self.model, images)[0]
        except (RuntimeError, ValueError, AssertionError):
            return hooked, None
        finally:
            for handle in handles:
                handle.remove()

    @property
    def _name(self) -> str:
        """The net, as messages call it."""
        return str(self.source.path or self.source.arch)

    def _refusal(self, reason: str) -> InputError:
        """Give the error of a cut that failed its proof."""
        return InputError(
            f"{self._name} was cut at {self.source.layer}, but {reason}: its forward pass does"
            " what the cut does not see; choose another --layer, or write that part of the net with"
            " torch's modules"
        )


def _record(outputs: list[Tensor], module: nn.Module, inputs: object, output: object) -> None:
    """Keep a copy of a module's output: the next layer may change it in place."""
    if isinstance(output, Tensor):
        outputs.append(output.clone())


@torch.no_grad()
def _ask(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Give all tensors of a net's answer, in evaluation mode.

    Some nets draw random numbers even then: each question begins from the same seed.
    """
    modes = modes_of(net)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            answer = net.eval()(images.clone())
    finally:
        restore_modes(modes)
    if isinstance(answer, Tensor):
        return [answer]
    entries = answer.values() if isinstance(answer, dict) else answer
    return [entry for entry in entries if isinstance(entry, Tensor)]


def _differ(actual: Tensor, expected: Tensor) -> float:
    """Give the largest difference as a share of the largest finite value; NaN equals NaN."""
    if actual.shape != expected.shape:
        return float("inf")
    equal = (actual == expected) | (actual.isnan() & expected.isnan())
    if equal.all():
        return 0.0
    # inf is a value that features may have (masks of attention); it sets no scale.
    largest = expected.where(expected.isfinite(), 0).abs().max()
    # Leave equal entries out: inf − inf is NaN. Any NaN that remains is a difference: inf.
    difference = (actual - expected).abs()[~equal].max() / largest
    return float(difference.nan_to_num(float("inf")))


def _why_not_fast(plain: nn.Module, images: Tensor, features: Sequence[Tensor]) -> str | None:
    """Say why the fast form of a net must not be used; None where it gives the same."""
    try:
        answers = _ask(freeze_for_inference(plain, torch.device("cpu")), images)
    except Exception as error:  # a stranger's module may raise anything when copied or folded
        return f"its fast form fails ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    difference = max(_differ(*pair) for pair in zip(answers, features, strict=True))
    if difference <= FAST:
        return None
    return f"its fast form differs by {difference:.1e} of the largest value"


def open_net(
    path: str | Path, arch: str | None, layers: Layer | Sequence[Layer], hint: str = ""
) -> CutNet:
    """Read a classifier's checkpoint and cut the network.

    Args:
        path: the checkpoint.
        arch: the architecture that is expected, if any; see `read_classifier`.
        layers: one layer, at which the net is cut into head and tail; or a list, whose layers are
            tapped.
        hint: is added to the message where there is no such layer.

    Raises:
        InputError: the file holds no such classifier, or it has no such layer.
    """
    model, state = read_classifier(path, arch)
    # Hashed when it is read: later steps compare this, not the file's name.
    digest, tapped = sha256(path), not isinstance(layers, Layer)
    several: Sequence[Layer] = [layers] if isinstance(layers, Layer) else layers
    try:
        size = state.get("data", {}).get("image_size")
        whole_net = NetSource(state["model"]["arch"], None, str(path), digest)
        sources = [
            replace(whole_net, layer=layer.node(model, size), channels_last=layer.channels_last)
            for layer in several
        ]
        return CutNet(model, sources, state, tapped=tapped)
    except InputError as error:
        raise InputError(f"{error}{hint}") from None


def reopen_net(source: NetSource, arch: str | None) -> CutNet:
    """Open the net that features were stored of, cut at their layer.

    Args:
        source: the features' record of the net.
        arch: see `open_net`.

    Raises:
        InputError: the record is incomplete, or the file is gone or has changed.
    """
    if source.path is None or source.layer is None:
        raise InputError(
            f"the features' record must name a checkpoint and a layer, and has path {source.path}"
            f" and layer {source.layer}; store the features anew"
        )
    net = open_net(source.path, arch, Layer().or_source(source))
    if source.sha256 != net.source.sha256:
        raise InputError(
            f"{source.path} has the SHA-256 {str(net.source.sha256)[:8]} …, and the features were"
            f" stored of {str(source.sha256)[:8]} …; store them anew"
        )
    return net if source.normalisation is None else net.normalised_by(source.normalisation)


def untrained_net(source: NetSource, classes: int, named: str | None = None) -> CutNet:
    """Build a net before any training, freshly initialised and cut at its features' layer.

    Args:
        source: the features' record of the net: architecture, layer, normalisation.
        classes: of the data set, at least 1.
        named: the architecture that an option names; a user's own code runs only if it is named.

    Returns:
        The net without gradients, on the CPU or the device of an enclosing `torch.device`.

    Raises:
        InputError: the record is incomplete, or no option names the user's own architecture.
    """
    if source.arch is None or source.layer is None or not classes:
        raise InputError(
            f"the features' record must name architecture, layer and classes, and has {source.arch},"
            f" {source.layer} and {classes}; store the features anew"
        )
    arch = named_arch(source.arch, named, "the stored features' record")
    model = build(arch if is_foreign(arch) else arch.removesuffix("_ft"), classes)
    origin = replace(source, path=None, sha256=None)
    return CutNet(model.requires_grad_(False).eval(), [origin], {})


def stand_in_pixels(image_size: int) -> Tensor:
    """Draw two images of noise for a proof without photos: uint8 (2, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, image_size, image_size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class Penultimate(nn.Module):
    """A net's frozen layers from a cut up to the input of its last layer.

    Args:
        layers: feature (N, *shape) → penultimate feature.
        shape: of one image's feature at the cut.
    """

    def __init__(self, layers: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.layers, self.shape = layers, shape
        self.requires_grad_(False).eval()

    def forward(self, maps: Tensor) -> Tensor:
        """Give the penultimate feature, of a feature as maps (N, C, H, W)."""
        return self.layers(from_maps(maps, self.shape))
