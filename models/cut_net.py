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
# What rounding may make of the largest value: of an answer that was computed in the same order of
# operations, and of one whose BatchNorms are folded and whose memory is in channels-last order.
SAME, FAST = 1e-5, 1e-4


class CutNet:
    """A trained classifier, cut at one layer or tapped at several.

    A net is read once and hashed once. Before its features are used, `prove` holds what was cut
    against the net as its author wrote it; `frozen` refuses to work before.

        net = open_net("A.pth.tar", None, Layer("layer3.1.add")).normalised_by(normalisation)
        net.prove_fast(pixels)
        head = net.frozen(device)       # pixels (N, 3, S, S) → feature (N, *shape)

    Args:
        model: images (N, 3, S, S) → logits (N, C), in evaluation mode, on the CPU.
        sources: what it is, once for each layer.
        state: its checkpoint without the weights; "model" says what rebuilds it.
        tapped: `form`, which is asked for features, is `taps`; else it is `head`.

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
        # Pixels that it was cut for, where its code depends on them
        self.image_size: int | None = None
        self.form = self.taps if tapped else self.head
        self._shapes: dict[int, list[Shape]] = {}  # by image size, once they were measured
        self._is_fast: bool | None = None  # whether `frozen` is fast; None: nothing was proven

    @property
    def source(self) -> NetSource:
        """What the net is, cut at the first of its layers."""
        return self.sources[0]

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
        """Say by which constants the net reads pixels."""
        self.sources = [replace(source, normalisation=normalisation) for source in self.sources]
        return self

    def from_pixels(self, module: nn.Module) -> FromPixels:
        """Let a form of the net, which takes normalised images, read pixels by the net's constants.

        Raises:
            InputError: nobody recorded them.
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
        """Measure the shapes of one image's features at all layers, of S pixels to a side.

        A net whose code depends on the size of the images is cut anew for this one.
        """
        if image_size in self._shapes:
            return self._shapes[image_size]
        forms = (self.form,) if self.tapped else (self.head, self.tail)
        if any(form.meta.get("image_size", image_size) != image_size for form in forms):
            try:
                self._cut_for(image_size)
            except InputError:
                if "image_size" in self.form.meta:
                    raise  # else the net's end alone does not take them, and its features are right
        shapes = (
            feature_shapes(self.taps, image_size)
            if self.tapped
            else [feature_shape(self.head, image_size)]
        )
        self._shapes = {image_size: shapes}  # of the size that the net is cut for now
        return shapes

    def _cut_for(self, image_size: int) -> None:
        """Cut the net anew, for images of S pixels to a side."""
        size, self.image_size = self.image_size, image_size
        before: dict[str, Any] = {
            form: vars(self).pop(form) for form in ("_halves", "taps") if form in vars(self)
        }
        try:
            self.form = self.taps if self.tapped else self.head
        except InputError:
            self.image_size = size
            vars(self).update(before)
            raise

    def penultimate(self, shape: Shape) -> "Penultimate":
        """Give what follows the first layer up to the net's last one.

        Args:
            shape: of one image's feature at the first layer.

        Raises:
            InputError: nothing follows.
        """
        return Penultimate(before_last(self.tail, last_layer(self.model)), shape)

    def prove(self, pixels: Tensor) -> list[Tensor]:
        """Hold the cut net against the net as its author wrote it, on a few images.

        - The feature at a layer that is a module equals, to the bit, what a forward hook sees.
        - The logits equal the net's own. So the feature of a layer that no hook sees is right too.

        All is computed on the CPU in float32 and leaves random numbers as they were.

        Args:
            pixels: of a few images, uint8 (n, 3, S, S) on the CPU.

        Returns:
            What `form` gives: the feature, or the features and the logits.

        Raises:
            InputError: the net does not take such images, or what was cut computes something else.
        """
        size, images = pixels.shape[-1], self._normalised(pixels)
        self.shapes(size)  # says best what is wrong with the size
        seen, logits = self._as_written(images)
        given = _ask(self.form, images)
        moved = self.form.meta["channels_last"]
        for source, feature, outputs, is_moved in zip(
            self.sources, given, seen, moved if self.tapped else [moved]
        ):
            # Where the net has its channels last, (N, H, W, C), the cut has them second.
            expected = [output.permute(0, 3, 1, 2) if is_moved else output for output in outputs]
            if expected and not any(_differ(feature, output) == 0 for output in expected):
                raise self._refusal(f"its feature at {source.layer} is not what that module gives")
        if logits is not None:
            answer = given[-1] if self.tapped else _ask(self.tail, given[0])[0]
            if (difference := _differ(answer, logits)) > SAME:
                raise self._refusal(
                    f"its logits differ from the net's by {difference:.1e} of the largest"
                )
        elif not all(seen):
            raise InputError(
                f"{self._name} does not take {size}×{size} images; choose another --image_size"
            )
        self._is_fast = False
        return given

    def prove_fast(self, pixels: Tensor) -> None:
        """Hold the cut net against the net itself, and its fast form against both; see `prove`.

        The fast form (BatchNorms folded, channels last) must give the same up to rounding. Where it
        does not, `frozen` gives the plain form, and a remark says so.

        Args:
            pixels: of a few images, uint8 (n, 3, S, S) on the CPU.

        Raises:
            InputError: see `prove`.
        """
        given = self.prove(pixels)
        reason = _why_not_fast(self.form, self._normalised(pixels), given)
        if reason:
            remark(f"{self._name}: {reason}; the plain form of the net is used, which is slower")
        self._is_fast = not reason

    def frozen(self, device: torch.device) -> FromPixels:
        """Give `form` on a device, without gradients: fast after `prove_fast`, plain after `prove`.

        It holds no more of the net than it needs.

        Returns:
            Pixels, uint8 (N, 3, S, S), → what `form` gives.

        Raises:
            RuntimeError: nothing was proven.
        """
        return self.from_pixels(self.frozen_form(device))

    def frozen_form(self, device: torch.device) -> nn.Module:
        """Give the same of images that are normalised already,
        float32 (N, 3, S, S); see `frozen`.
        """
        if self._is_fast is None:
            raise RuntimeError("call prove() before the features of this net are used")
        if self._is_fast:
            return freeze_for_inference(self.form, device)
        try:
            return freeze_plainly(self.form).to(device)
        except Exception:  # what cannot be copied is taken itself
            return self.form.requires_grad_(False).eval().to(device)

    def _normalised(self, pixels: Tensor) -> Tensor:
        """Give a proof its images; by which constants makes no difference to it."""
        return normalise(pixels, *(self.source.normalisation or NORMALISATIONS["imagenet"]))

    def _as_written(self, images: Tensor) -> tuple[list[list[Tensor]], Tensor | None]:
        """Ask the net itself: what a hook sees at each layer, call by call, and the logits.

        A layer that is no module has no hook. The logits are None where the net's end does not
        take the images, as a Linear that counts positions; its features can be used even so.
        """
        seen, handles = [list[Tensor]() for _ in self.sources], []
        for source, outputs in zip(self.sources, seen):
            with contextlib.suppress(AttributeError):  # a function's node
                module = self.model.get_submodule(str(source.layer))
                handles.append(module.register_forward_hook(partial(_record, outputs)))
        try:
            with DropoutOff():
                return seen, _ask(self.model, images)[0]
        except (RuntimeError, ValueError, AssertionError):
            return seen, None
        finally:
            for handle in handles:
                handle.remove()

    @property
    def _name(self) -> str:
        return str(self.source.path or self.source.arch)

    def _refusal(self, what: str) -> InputError:
        return InputError(
            f"{self._name} was cut at {self.source.layer}, but {what}: its forward pass does what"
            " the cut does not see; choose another --layer, or write that part of the net with"
            " torch's modules"
        )


def _record(outputs: list[Tensor], module: nn.Module, inputs: object, output: object) -> None:
    """Keep what a module gives; a copy, because the next layer may work in place."""
    if isinstance(output, Tensor):
        outputs.append(output.clone())


@torch.no_grad()
def _ask(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Give all tensors that a net answers,
    in evaluation mode, from one seed: some draw even then.
    """
    modes = modes_of(net)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            answer = net.eval()(images.clone())
    finally:
        restore_modes(modes)
    answers = (
        answer.values()
        if isinstance(answer, dict)
        else [answer]
        if isinstance(answer, Tensor)
        else answer
    )
    return [value for value in answers if isinstance(value, Tensor)]


def _differ(given: Tensor, expected: Tensor) -> float:
    """Give the largest difference over the largest finite value; 0 where all equal, NaN NaN."""
    if given.shape != expected.shape:
        return float("inf")
    equal = (given == expected) | (given.isnan() & expected.isnan())
    if equal.all():
        return 0.0
    largest = expected.where(expected.isfinite(), 0).abs().max()
    difference = (given - expected).abs()[~equal].max() / largest
    return float(difference.nan_to_num(float("inf")))


def _why_not_fast(plain: nn.Module, images: Tensor, given: Sequence[Tensor]) -> str | None:
    """Say why the fast form of a net must not be used; None where it gives the same."""
    try:
        answers = _ask(freeze_for_inference(plain, torch.device("cpu")), images)
    except Exception as error:  # whatever a stranger's module raises when it is copied or folded
        return f"its fast form fails ({type(error).__name__}: {' '.join(str(error).split())[:100]})"
    difference = max(_differ(*pair) for pair in zip(answers, given, strict=True))
    return (
        f"its fast form differs by {difference:.1e} of the largest value"
        if difference > FAST
        else None
    )


def open_net(
    path: str | Path, arch: str | None, layers: Layer | Sequence[Layer], hint: str = ""
) -> CutNet:
    """Read a classifier's checkpoint and cut the network.

    Args:
        path: the checkpoint.
        arch: the architecture that is expected, if any; see `read_classifier`.
        layers: where: at one layer it is cut into head and tail, at the layers of a list tapped.
        hint: what to say behind the sentence that there is no such layer.

    Raises:
        InputError: the file holds no such classifier, or it has no such layer.
    """
    model, state = read_classifier(path, arch)
    digest, tapped = sha256(path), not isinstance(layers, Layer)
    several: Sequence[Layer] = [layers] if isinstance(layers, Layer) else layers
    try:
        size = state.get("data", {}).get("image_size")
        known = NetSource(state["model"]["arch"], None, str(path), digest)
        sources = [
            replace(known, layer=layer.node(model, size), channels_last=layer.channels_last)
            for layer in several
        ]
        return CutNet(model, sources, state, tapped=tapped)
    except InputError as error:
        raise InputError(f"{error}{hint}") from None


def reopen_net(source: NetSource, arch: str | None) -> CutNet:
    """Read a net that features were stored of, cut where they were taken.

    Args:
        source: which net, and where it was cut.
        arch: see `open_net`.

    Raises:
        InputError: the features do not say which net it was, or it is not there any more.
    """
    if source.path is None or source.layer is None:
        raise InputError(
            "the features do not say of which net they are, whose layers are asked for; store them"
            " anew"
        )
    net = open_net(source.path, arch, Layer().or_source(source))
    if source.sha256 != net.source.sha256:
        raise InputError(
            f"{source.path} is not the net any more that the features were stored of; store them"
            " anew"
        )
    return net if source.normalisation is None else net.normalised_by(source.normalisation)


def untrained_net(source: NetSource, classes: int, named: str | None = None) -> CutNet:
    """Build a net anew, as it is initialised before any training,
    cut where its features were taken.

    Args:
        source: says the architecture and the layer.
        classes: of the data set, at least 1.
        named: the architecture that an option says, without which a user's own is refused.

    Returns:
        The net on the CPU, or where `torch.device` says as a context, without gradients; it reads
        pixels by the constants that the source says.

    Raises:
        InputError: the source does not say which net it was, or it is the user's own and no option
            names it.
    """
    if source.arch is None or source.layer is None or not classes:
        raise InputError(
            "the features do not say of which net, layer and classes they are; store them anew"
        )
    arch = named_arch(source.arch, named, "the stored features' record")
    model = build(arch if is_foreign(arch) else arch.removesuffix("_ft"), classes)
    origin = replace(source, path=None, sha256=None)
    return CutNet(model.requires_grad_(False).eval(), [origin], {})


def stand_in_pixels(image_size: int) -> Tensor:
    """Draw two images of noise for a proof where no photo is at hand: uint8 (2, 3, S, S)."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, image_size, image_size)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


class Penultimate(nn.Module):
    """What a net's frozen layers make of its feature at a cut: the input of its last layer.

    Args:
        layers: feature (N, *shape) → penultimate feature.
        shape: of one image's feature at the cut.
    """

    def __init__(self, layers: nn.Module, shape: Shape) -> None:
        super().__init__()
        self.layers, self.shape = layers, shape
        self.requires_grad_(False).eval()

    def forward(self, maps: Tensor) -> Tensor:
        """Give the penultimate feature of a feature that comes as maps (N, C, H, W)."""
        return self.layers(from_maps(maps, self.shape))
