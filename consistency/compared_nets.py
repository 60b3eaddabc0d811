"""Checkpoints that are compared: where they can be cut, and their features from one pass."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from consistency.compared import ComparedLayer, parameters_of
from models.classifiers import last_layer, read_classifier
from models.cut_net import CutNet, open_net
from models.layers import STAGE, Layer, matched_by_depth
from models.own import is_own
from models.split import as_maps, cuts
from models.stages import blocks_of, stages_of
from models.tail import FrozenTail
from utils.errors import InputError
from utils.features.layers import LOGITS, LayerFile, Taken, is_complete, keep_layers
from utils.files import sha256
from utils.kept import Kept, digest
from utils.later import flop_counter
from utils.normalisation import Normalisation
from utils.runtime import Runtime

SURVEYS = 2  # the version of what is kept of a net


class Place(NamedTuple):
    """A layer of a net that is compared.

    Attributes:
        name: by which the net is cut.
        stage: which ends there, from 1; None: none does.
        depth: the share of the net's cuts up to it, in (0, 1].
        shape: of one image's feature.
    """

    name: str
    stage: int | None
    depth: float
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    """What is read of a checkpoint before its features.

    Attributes:
        path: the file.
        asked: the architecture that an option names.
        arch: the net's.
        sha256: of the file.
        code: of the file with its factory, where the net is the user's own; "" elsewhere.
        outputs: how many classes it tells apart.
        parameters: how many numbers training changes.
        flops: of one image's forward pass.
        shapes: of one image's feature at every cut, in order.
        stages: cuts at which stages end, and how they are best named.
        blocks: cuts at which blocks end.
        state: the checkpoint without its weights.
        image_size: S, pixels, at which it was surveyed.
    """

    path: str
    asked: str | None
    arch: str
    sha256: str
    code: str
    outputs: int
    parameters: int
    flops: float
    shapes: Mapping[str, tuple[int, ...]]
    stages: Mapping[str, str]
    blocks: Sequence[str]
    state: Mapping[str, Any]
    image_size: int

    @classmethod
    def of(
        cls,
        path: str,
        asked: str | None,
        arch: str,
        digest_of_file: str,
        code: str,
        outputs: int,
        parameters: int,
        layout: Mapping[str, Any],
        state: Mapping[str, Any],
    ) -> "Survey":
        """Make it of what `layout_of` gives, and of what else is known."""
        shapes = {name: tuple(shape) for name, shape in layout["shapes"].items()}
        return cls(
            path,
            asked,
            arch,
            digest_of_file,
            code,
            outputs,
            parameters,
            layout["flops"],
            shapes,
            layout["stages"],
            layout["blocks"],
            state,
            layout["image_size"],
        )

    @property
    def identity(self) -> list[str]:
        """What the net is, by content."""
        return [self.sha256, self.arch, self.code]

    def place(self, name: str) -> Place:
        """Find a layer: a cut, a module that ends at one, or "stage:N".

        Raises:
            InputError: there is none.
        """
        ends = list(self.stages.values())
        if stage := STAGE.fullmatch(name):
            number = int(stage[1])
            if not 1 <= abs(number) <= len(ends):
                raise InputError(
                    f"{self.path} has stages 1 to {len(ends)}, not {number}: they end at"
                    f" {', '.join(ends)}"
                )
            name = ends[number - 1 if number > 0 else number]
        names = list(self.shapes)
        # A module's cuts begin with its name; the last one is where the module ends.
        inside = [i for i, cut in enumerate(names) if cut == name or cut.startswith(f"{name}.")]
        if not inside:
            raise InputError(
                f"{self.path} cannot be cut at {name}; its stages end at {', '.join(ends)}, and"
                " ConvOutput.py --list_layers prints all"
            )
        cut = names[inside[-1]]
        # `stages` is by cut and in order, so that a cut's place is the stage's number.
        stages = list(self.stages)
        stage_number = stages.index(cut) + 1 if cut in self.stages else None
        return Place(name, stage_number, (inside[-1] + 1) / len(names), tuple(self.shapes[cut]))

    def ends(self) -> list[Place]:
        """Give the ends of its stages."""
        return [self.place(name) for name in self.stages.values()]

    def all_places(self) -> list[Place]:
        """Give the ends of its blocks, as stages are named where one ends there."""
        return [self.place(self.stages.get(cut, cut)) for cut in self.blocks]


def survey(
    path: str,
    asked: str | None,
    model_and_state: tuple[Any, Mapping[str, Any]],
    image_size: int,
    kept: Kept,
) -> Survey:
    """Read what a checkpoint is, and where it can be cut at an image size; what is there is kept.

    Args:
        path: the checkpoint.
        asked: the architecture that an option names.
        model_and_state: as `read_classifier` gives them.
        image_size: S, pixels.
        kept: where surveys stay.
    """
    model, state = model_and_state
    arch = state["model"]["arch"]
    source = Path(arch.rpartition(":")[0])
    # A user's own net is its weights and its code: both are in its identity.
    code = sha256(source) if is_own(arch) and source.is_file() else ""
    file = sha256(path)

    layout = kept.get(
        "survey",
        [SURVEYS, file, arch, code, image_size],
        lambda: layout_of(model, image_size),
    )
    outputs = state["model"]["num_classes"]
    return Survey.of(path, asked, arch, file, code, outputs, parameters_of(model), layout, state)


def layout_of(model: nn.Module, image_size: int) -> dict[str, Any]:
    """See where a net can be cut, where its stages and blocks end, and what a pass takes."""
    shapes = cuts(model, image_size)
    flops = 0.0
    # A net that does not take such images is refused when it proves its cuts
    refusals = contextlib.suppress(RuntimeError, ValueError, AssertionError)
    counter = flop_counter.FlopCounterMode(display=False)
    with torch.no_grad(), refusals, counter:
        model(torch.zeros(1, 3, image_size, image_size))
        flops = float(counter.get_total_flops())
    return {
        "image_size": image_size,
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "stages": stages_of(model, shapes),
        "blocks": blocks_of(model, shapes),
        "flops": flops,
    }


def matched_places(
    surveys: Sequence[Survey], at: Sequence[str] | None, at_b: Sequence[str] | None
) -> tuple[list[list[Place]], str]:
    """Choose the layers of nets that are compared, by their place in the lists.

    Args:
        surveys: of two nets or more.
        at: layers by name; None: the ends of all stages.
        at_b: those of the second net, where they differ.

    Returns:
        The layers of every net, as many of each; what is to be said of the matching, or "".

    Raises:
        InputError: there are no such layers, or other numbers of them.
    """
    if at is not None:
        named = [at, *([at_b or at] * (len(surveys) - 1))]
        if len({len(names) for names in named}) > 1:
            raise InputError(
                f"layers are paired by their place, and these are {len(at)} of --at and"
                f" {len(at_b or at)} of --at2; name as many of both"
            )
        return [[of.place(name) for name in names] for of, names in zip(surveys, named)], ""
    places = [of.ends() for of in surveys]
    for of, ends in zip(surveys, places):
        if not ends:
            raise InputError(f"{of.path} has no stages; name its layers by --at")
    # The net with the fewest stages keeps all; of the others those of the nearest depth stay.
    # Ties go to the first net.
    fewest = min(range(len(places)), key=lambda number: len(places[number]))
    if len({len(ends) for ends in places}) == 1:
        return places, ""
    depths = [[place.depth for place in ends] for ends in places]
    matched = []
    for ends, of_net in zip(places, depths):
        pairs = matched_by_depth(depths[fewest], of_net)
        matched.append([ends[number] for _, number in pairs])
    counts = ", ".join(str(len(ends)) for ends in places)
    return matched, f"the nets have {counts} stages, which were matched by their depth"


def same_places(of: Survey, places: Sequence[Place]) -> list[Place]:
    """Find another net's places in a net of its recipe: by stage, or else by name.

    Raises:
        InputError: there are none.
    """
    return [of.place(one.name if one.stage is None else f"stage:{one.stage}") for one in places]


def kept_size(shape: tuple[int, ...], side: int) -> tuple[int, int, int]:
    """Say how maps of a feature are kept: averaged to at most S × S positions; 0: as they are."""
    # On "meta": the axes of maps, tokens or vectors, and no memory.
    channels, height, width = as_maps(torch.empty(1, *shape, device="meta")).shape[1:]
    if not side:
        return channels, height, width
    if len(shape) == 2:  # tokens, (C, T, 1)
        return channels, min(height, side**2), width
    return channels, min(height, side), min(width, side)


class NetFeatures:
    """The features of one net at some layers, of some splits of images, in a folder of a cache.

    Args:
        survey: which net.
        normalisation: by which it reads pixels.
        places: layers, with the positions to a side that are kept of each.
        image_size: S, pixels.
        cache: the folder.
        precision: of the forward pass, in words; part of what features are.
    """

    def __init__(
        self,
        survey: Survey,
        normalisation: Normalisation,
        places: Sequence[tuple[Place, int]],
        image_size: int,
        cache: Path,
        precision: str,
    ) -> None:
        self.survey, self.normalisation, self.image_size = survey, normalisation, image_size
        # A layer that is kept at two sizes is tapped once.
        self.names = list(dict.fromkeys(place.name for place, _ in places))
        self.cache, self.precision = cache, precision
        self.taken = {
            (place.name, side): Taken(
                f"layer{number}", self.names.index(place.name), kept_size(place.shape, side)
            )
            for number, (place, side) in enumerate(dict.fromkeys(places))
        }

    def identity(self, images: str) -> dict[str, Any]:
        """Give all that the features of some images depend on."""
        layers = [[name, *one.shape] for (name, _), one in self.taken.items()]
        return {
            "net": self.survey.identity,
            "normalisation": self.normalisation,
            "image_size": self.image_size,
            "layers": layers,
            "images": images,
            "precision": self.precision,
        }

    def folder(self, images: str) -> Path:
        """Say where the features of some images are."""
        return self.cache / f"features_{digest(self.identity(images))}"

    def is_complete(self, images: str, count: int) -> bool:
        """Whether the features of these images are there."""
        return is_complete(self.folder(images), count)

    def open(self) -> CutNet:
        """Open the net, cut at all of its layers."""
        layers = [Layer(name, image_size=self.image_size) for name in self.names]
        net = open_net(self.survey.path, self.survey.asked, layers)
        return net.normalised_by(self.normalisation)

    def compute(
        self,
        pixels: Tensor,
        splits: Mapping[str, tuple[Callable[[range], Iterable[Any]], int]],
        runtime: Runtime,
        advance: Callable[[int], object],
    ) -> None:
        """Pass every image through the net once.

        Args:
            pixels: of a few images, by which the net proves its cuts.
            splits: of each identity of images the loader of their numbers, and how many they are.
            runtime: device and precision.
            advance: is told of so many images more.

        Raises:
            InputError: the net is no longer the one that was surveyed, or cannot be cut there.
        """
        # Hours may lie between the survey and this pass.
        net = self.open()
        if net.source.sha256 != self.survey.sha256:
            raise InputError(f"{self.survey.path} was changed while it was read; start again")
        net.prove_fast(pixels)
        form = runtime.parallel(_Maps(net.frozen(runtime.device)))
        for images, (load, count) in splits.items():
            folder = self.folder(images)
            keep_layers(
                form,
                load,
                count,
                list(self.taken.values()),
                self.survey.outputs,
                folder,
                runtime,
                advance,
            )

    def logits(self, images: str) -> Tensor:
        """Give the net's answers to some images, (N, K)."""
        return LayerFile(self.folder(images), LOGITS)[:]

    def layers(
        self, places: Sequence[Place], side: int, fitted: str, held_out: str, pixels: Tensor | None
    ) -> list[ComparedLayer]:
        """Give layers with their features.

        Args:
            places: which.
            side: positions that are kept of each.
            fitted: which images regressions are fitted to.
            held_out: which they are judged on.
            pixels: of a few images, by which a tail is proved; None: there are no tails.
        """
        layers = []
        for place in places:
            taken = self.taken[place.name, side]
            of_fitted, of_held_out = (
                LayerFile(self.folder(images), taken.file) for images in (fitted, held_out)
            )
            identity = digest(
                [self.identity(fitted), self.identity(held_out), place.name, list(taken.shape)]
            )
            tail = None if pixels is None else partial(self.tail, place, pixels)
            shape, depth = place.shape, place.depth
            layers.append(
                ComparedLayer(
                    place.name, place.stage, depth, shape, of_fitted, of_held_out, identity, tail
                )
            )
        return layers

    def tail(self, place: Place, pixels: Tensor) -> FrozenTail:
        """Open what follows a layer."""
        layer = Layer(place.name, image_size=self.image_size)
        net = open_net(self.survey.path, self.survey.asked, layer)
        # By the plain proof: a `FrozenTail` has no fast form.
        net.normalised_by(self.normalisation).prove(pixels)
        return FrozenTail(net.tail, last_layer(net.model), place.shape, self.survey.outputs)

    def weights(self) -> Mapping[str, Tensor]:
        """Read the net's weights."""
        return read_classifier(self.survey.path, self.survey.asked)[0].state_dict()


class _Maps(nn.Module):
    """Let a tapped net give features as maps, (n, C, H, W), and its logits last."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        *features, logits = self.net(pixels)
        return (*map(as_maps, features), logits)
