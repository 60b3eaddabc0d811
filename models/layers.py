"""Where features are taken, as options name it: a node, a stage, or a layer's documented number."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from models.split import cuts
from models.stages import place_of, stages, stages_of
from utils.errors import InputError
from utils.later import torchvision
from utils.provenance import NetSource

STAGE = re.compile(r"stage:(-?\d+)")  # what `--layer` may say in place of a name
USUAL_SIZE = 224  # pixels to a side, where nothing says another size
TOLERANCE = 0.15  # layers of the same depth differ by less than this share of their stage


@dataclass(frozen=True)
class Layer:
    """The layer whose output is the feature, as options name it.

    Attributes:
        name: of any module or node of the traced network (`--layer`); or "stage:N", the end of
            stage N, counted from 1, or "stage:-N", counted from the last.
        conv_layer: the documented number instead (`--conv_layer`); see `layer_name`.
        fc: the number counts in the classifier (`--fc`).
        image_size: S, pixels, at which stages are counted.
        channels_last: the layer's maps are (N, H, W, C); None: see `models.layout`.
        default: the number of a VGG's layer where no option names one.
    """

    name: str | None = None
    conv_layer: int | None = None
    fc: bool = False
    image_size: int | None = None
    channels_last: bool | None = None
    default: int = 30

    @property
    def is_named(self) -> bool:
        """Whether an option names the layer."""
        return self.name is not None or self.conv_layer is not None

    def or_source(self, source: NetSource) -> "Layer":
        """Take the layer of a file's record, where no option names another."""
        last = source.channels_last if self.channels_last is None else self.channels_last
        return replace(self, name=self.name if self.is_named else source.layer, channels_last=last)

    @property
    def label(self) -> str:
        """Name the layer in file names: "30", "fc3", or the node's own name."""
        number = self.default if self.conv_layer is None else self.conv_layer
        return self.name or f"{'fc' if self.fc else ''}{number}"

    def node(self, model: nn.Module, image_size: int | None = None) -> str:
        """Name the model's node.

        Args:
            model: images (N, 3, S, S) → logits.
            image_size: S, pixels, that the model was trained at; an option's size counts first.

        Raises:
            InputError: no option names a layer of this kind of model, or the model has no such
                layer or stage.
        """
        if self.name is not None and (stage := STAGE.fullmatch(self.name)):
            return _stage(model, int(stage[1]), self.image_size or image_size or USUAL_SIZE)
        if self.name is not None:
            return self.name
        if self.conv_layer is not None:
            return layer_name(model, self.conv_layer, self.fc)
        if isinstance(model, torchvision.models.VGG):
            return layer_name(model, self.default, self.fc)
        raise InputError(
            f"no option names the layer of this {type(model).__name__}: use --conv_layer or"
            " --layer, such as --layer stage:-1; ConvOutput.py --list_layers prints all"
        )


def _stage(model: nn.Module, number: int, image_size: int) -> str:
    """Name the layer at which a stage ends: 1, 2, … from the first, -1, -2, … from the last."""
    ends = stages(model, image_size)
    if not 1 <= abs(number) <= len(ends):
        raise InputError(
            f"this {type(model).__name__} has stages 1 to {len(ends)} at {image_size} pixels, "
            f"not {number}: they end at {', '.join(ends)}"
        )
    return ends[number - 1 if number > 0 else number]


def paired_stages(first: Sequence[str], second: Sequence[str]) -> list[tuple[str, str]]:
    """Match the stages of two nets from the last one back: nets of one task agree at the end."""
    count = min(len(first), len(second))
    return list(zip(first[-count:], second[-count:]))


def matched_by_depth(first: Sequence[float], second: Sequence[float]) -> list[tuple[int, int]]:
    """Match the stages of two nets by their depth: each of the net with fewer finds the nearest.

    The order is kept, and no stage is matched twice.

    Args:
        first: how deep each stage of net A ends, from 0 to 1, rising.
        second: the same of net B.

    Returns:
        Pairs of their numbers, as many as the net with fewer stages has.
    """
    if len(first) > len(second):
        return [(a, b) for b, a in matched_by_depth(second, first)]
    # The longer net may leave out `spare` stages in all: so stage `number` of the shorter one finds
    # its own at `number + spare` at the latest. Each takes the nearest; none is revised.
    spare, pairs, begin = len(second) - len(first), list[tuple[int, int]](), 0
    for number, depth in enumerate(first):
        # What follows needs a stage each
        choices = range(begin, number + spare + 1)
        nearest = min(choices, key=lambda other: abs(second[other] - depth))
        pairs.append((number, nearest))
        begin = nearest + 1
    return pairs


def note_of_sources(
    sources: Sequence[NetSource], models: Sequence[nn.Module], image_size: int
) -> str | None:
    """Give `note_of_depths` for two architectures that are cut at a layer of the same name."""
    first, second = sources
    if first.arch == second.arch or first.layer != second.layer:
        return None
    return note_of_depths(models, str(first.layer), image_size)


def note_of_depths(models: Sequence[nn.Module], layer: str, image_size: int) -> str | None:
    """Warn where a layer's name means another relative depth in net B than in net A.

    Args:
        models: net A and net B.
        layer: the name, of a cut in both.
        image_size: S, pixels.

    Returns:
        The warning, with the layers that correspond. None where the layer lies in the same stage
        of both, counted from the last, and equally far in it (within `TOLERANCE`).
    """
    places, ends = [], []  # of each net: (stage, share of it), names of its stages' ends
    for model in models:
        shapes = cuts(model, image_size)
        place = place_of(model, shapes, layer)
        if place is None:
            return None
        places.append(place)
        ends.append(list(stages_of(model, shapes).values()))
    (stage_a, share_a), (stage_b, share_b) = places
    if stage_a == stage_b and abs(share_a - share_b) < TOLERANCE:
        return None
    where = [
        # `place_of` counts stages from the last, as 0; the message counts from the first, as 1.
        f"{share:.0%} through stage {len(names) - stage} of {len(names)} in net {net}"
        for net, (stage, share), names in zip("AB", places, ends)
    ]
    # `dict.fromkeys` names a layer once where both nets call it the same.
    pairs = ", ".join(" and ".join(dict.fromkeys(pair)) for pair in paired_stages(*ends))
    remark = f"note: {layer} lies {' but '.join(where)}"
    return f"{remark}; --layers stages takes the same depth of both: {pairs}"


def layer_name(model: nn.Module, conv_layer: int, fc: bool = False) -> str:
    """Name the layer of the documented `--conv_layer N` (with `--fc`: in the classifier).

    Args:
        model: a VGG or AlexNet (`features[N]`, `classifier[N]`) or a ResNet (output of stage N, 1
            to 4, before the last ReLU).
        conv_layer: N.
        fc: N counts in the fully-connected layers, which only VGG and AlexNet have.

    Raises:
        InputError: the model has no such layer, or is of another family.
    """
    if isinstance(model, torchvision.models.VGG | torchvision.models.AlexNet):
        container = "classifier" if fc else "features"
        length = len(getattr(model, container))
        if not 0 <= conv_layer < length:
            raise InputError(
                f"{container} of this {type(model).__name__} has layers 0 to {length - 1}, not"
                f" {conv_layer}"
            )
        return f"{container}.{conv_layer}"
    if isinstance(model, torchvision.models.ResNet) and not fc:
        if not 1 <= conv_layer <= 4:
            raise InputError(
                "the layers of a ResNet are 1 to 4 (3: the last 14×14 feature map), not"
                f" {conv_layer}"
            )
        # The sum of the stage's last block, before its ReLU: the paper's features are signed.
        last_block = len(getattr(model, f"layer{conv_layer}")) - 1
        return f"layer{conv_layer}.{last_block}.add"
    if not fc and str(conv_layer) in dict(model.named_children()):  # a plain nn.Sequential
        return str(conv_layer)
    flag = "--fc" if isinstance(model, torchvision.models.ResNet) else "--conv_layer"
    raise InputError(
        f"{flag} has no meaning for a {type(model).__name__}; name the layer with --layer NAME"
    )


def usual_layer(model: nn.Module) -> list[str]:
    """Give the options that name a late layer of maps.

    Args:
        model: a VGG or AlexNet: its last convolution. A ResNet: its last 14×14 map. Any other net:
            the ends of all its stages.
    """
    if isinstance(model, torchvision.models.VGG | torchvision.models.AlexNet):
        last = [
            index for index, module in enumerate(model.features) if isinstance(module, nn.Conv2d)
        ][-1]
        return ["--conv_layer", str(last)]
    return (
        ["--conv_layer", "3"]
        if isinstance(model, torchvision.models.ResNet)
        else ["--layers", "stages"]
    )
