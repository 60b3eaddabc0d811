"""A network as a list of stages, from which its bare form and every head are built."""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from torch import nn

Block = Callable[[int, int, int], nn.Module]  # input channels, output channels, stride
Initialiser = Callable[[nn.Module], None]  # of one module, as `nn.Module.apply` takes it


@dataclass(frozen=True)
class Stage:
    """Blocks in a row.

    Attributes:
        name: its name in the network.
        block: makes a block.
        widths: output channels of each block.
        stride: of the first block; the others have 1.
        first: makes the first block where it is of another kind.
    """

    name: str
    block: Block
    widths: tuple[int, ...]
    stride: int = 1
    first: Block | None = None

    def build(self, channels: int) -> nn.Sequential:
        """Build the stage, (N, channels, H, W) → (N, widths[-1], H / stride, W / stride)."""
        blocks = []
        for index, width in enumerate(self.widths):
            # The first block changes width and side; ShuffleNet V2 has another kind for it.
            make = self.first if index == 0 and self.first else self.block
            blocks.append(make(channels, width, 1 if index else self.stride))
            channels = width
        return nn.Sequential(*blocks)


@dataclass(frozen=True)
class Description:
    """What a network is built from.

    Attributes:
        stem: makes the named modules before the stages.
        stem_channels: channels that the stem gives.
        stages: the stages.
        end: makes, of channels and outputs, the named modules from the last stage to the logits.
        attach: names of the stages whose outputs heads take, from the shallowest to the last.
        initialisers: of the network's modules; without any, PyTorch's defaults stay.
        head_initialisers: of the heads' modules; likewise.
        dcm_heads: the stages of DCM's first and second head, where they differ from the network's.
        dcm_initialisers: of network and heads under DCM, where they differ.
    """

    stem: Callable[[], dict[str, nn.Module]]
    stem_channels: int
    stages: tuple[Stage, ...]
    end: Callable[[int, int], dict[str, nn.Module]]
    attach: tuple[str, ...]
    initialisers: tuple[Initialiser, ...] = ()
    head_initialisers: tuple[Initialiser, ...] = ()
    dcm_heads: tuple[tuple[Stage, ...], ...] | None = None
    dcm_initialisers: tuple[Initialiser, ...] | None = None

    def channels_after(self, name: str) -> int:
        """Give the output channels of a stage."""
        return next(stage.widths[-1] for stage in self.stages if stage.name == name)

    def rest_after(self, name: str) -> tuple[Stage, ...]:
        """Give the stages that a head on the stage `name` repeats: the rest of the network.

        Nothing follows the last stage. A head there repeats the stages behind the attach point
        before it, at stride 1.
        """
        names = [stage.name for stage in self.stages]
        if rest := self.stages[names.index(name) + 1 :]:
            return rest
        # Stride 1: the map has shrunk already.
        first, *others = self.rest_after(self.attach[-2])
        return (replace(first, stride=1), *others)


class SmallNet(nn.Sequential):
    """A bare classifier, images (N, 3, S, S) → logits (N, C): stem, stages and end, by name."""

    def __init__(self, arch: str, modules: dict[str, nn.Module]) -> None:
        super().__init__(OrderedDict(modules))
        self.arch = arch


def build_net(arch: str, description: Description, num_classes: int) -> SmallNet:
    """Build the bare classifier `arch` of a description, with PyTorch's default weights."""
    modules = description.stem()
    body, channels = build_stages(description.stages, description.stem_channels)
    return SmallNet(arch, {**modules, **body, **description.end(channels, num_classes)})


def build_head(
    description: Description, attach: str, stages: tuple[Stage, ...], outputs: int
) -> nn.Sequential:
    """Build a head on stage `attach`, with PyTorch's default weights.

    It maps that stage's output through `stages` to logits (N, outputs).
    """
    body, channels = build_stages(stages, description.channels_after(attach))
    return nn.Sequential(OrderedDict({**body, **description.end(channels, outputs)}))


def build_stages(stages: Iterable[Stage], channels: int) -> tuple[dict[str, nn.Module], int]:
    """Build stages in a row.

    Args:
        stages: the stages.
        channels: of the first one's input.

    Returns:
        The stages by name, and the channels of the last one's output.
    """
    modules: dict[str, nn.Module] = {}
    for stage in stages:
        modules[stage.name] = stage.build(channels)
        channels = stage.widths[-1]
    return modules, channels


def conv3x3(channels: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 3×3 convolution without bias that keeps the size at stride 1."""
    return nn.Conv2d(channels, width, 3, stride, padding=1, groups=groups, bias=False)


def conv1x1(channels: int, width: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A 1×1 convolution without bias."""
    return nn.Conv2d(channels, width, 1, stride, groups=groups, bias=False)


def pooled_classifier(channels: int, outputs: int, name: str = "fc") -> dict[str, nn.Module]:
    """The usual end: global average pooling and a linear layer called `name`."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        name: nn.Linear(channels, outputs),
    }
