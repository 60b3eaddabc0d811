"""Where features are taken, as the options say it: a node by name, or the documented number of a layer."""

from dataclasses import dataclass

from torch import nn

from utils.errors import InputError
from utils.later import torchvision


@dataclass(frozen=True)
class Layer:
    """Where features are taken, as the options say it.

    Attributes:
        name: of any node of the traced network (`--layer`).
        conv_layer: the documented number instead (`--conv_layer`); see `layer_name`.
        fc: the number counts in the classifier.
        default: the number that is meant of a VGG where no option says a layer.
    """

    name: str | None = None
    conv_layer: int | None = None
    fc: bool = False
    default: int = 30

    @property
    def is_named(self) -> bool:
        """Whether an option says the layer."""
        return self.name is not None or self.conv_layer is not None

    def or_node(self, node: str | None) -> "Layer":
        """Give the layer of a node that a file knows, where no option says another."""
        return self if self.is_named or node is None else Layer(node)

    @property
    def label(self) -> str:
        """Name the layer in file names: "30", "fc3", or the node's own name."""
        number = self.default if self.conv_layer is None else self.conv_layer
        return self.name or f"{'fc' if self.fc else ''}{number}"

    def node(self, model: nn.Module) -> str:
        """Name the node of a model that is meant."""
        if self.name is not None:
            return self.name
        if self.conv_layer is not None:
            return layer_name(model, self.conv_layer, self.fc)
        if isinstance(model, torchvision.models.VGG):
            return layer_name(model, self.default, self.fc)
        raise InputError(f"no option names the layer of this {type(model).__name__}: use --conv_layer or --layer")


def layer_name(model: nn.Module, conv_layer: int, fc: bool = False) -> str:
    """Name the layer that the documented `--conv_layer N` (with `--fc`: of the classifier) means.

    Args:
        model: a VGG or AlexNet (`features[N]`, `classifier[N]`) or a ResNet (output of stage N, 1 to 4, before
            the last ReLU).
        conv_layer: N.
        fc: N counts in the fully-connected part, which only VGG and AlexNet have.

    Raises:
        InputError: the model has no such layer, or is of another family.
    """
    if isinstance(model, torchvision.models.VGG | torchvision.models.AlexNet):
        part = "classifier" if fc else "features"
        length = len(getattr(model, part))
        if not 0 <= conv_layer < length:
            raise InputError(f"{part} of this {type(model).__name__} has layers 0 to {length - 1}, not {conv_layer}")
        return f"{part}.{conv_layer}"
    if isinstance(model, torchvision.models.ResNet) and not fc:
        if not 1 <= conv_layer <= 4:
            raise InputError(f"the layers of a ResNet are 1 to 4 (3: the last 14×14 feature map), not {conv_layer}")
        return f"layer{conv_layer}.{len(getattr(model, f'layer{conv_layer}')) - 1}.add"
    flag = "--fc" if isinstance(model, torchvision.models.ResNet) else "--conv_layer"
    raise InputError(f"{flag} has no meaning for a {type(model).__name__}; name the layer with --layer NAME")


def usual_layer(model: nn.Module) -> list[str]:
    """Give the words that name a late layer of maps on a command line; of other networks --list_layers shows them all.

    Args:
        model: a VGG or AlexNet, where it is the last convolution, or a ResNet, where it is the last 14×14 map.
    """
    if isinstance(model, torchvision.models.VGG | torchvision.models.AlexNet):
        last = [index for index, module in enumerate(model.features) if isinstance(module, nn.Conv2d)][-1]
        return ["--conv_layer", str(last)]
    return ["--conv_layer", "3"] if isinstance(model, torchvision.models.ResNet) else ["--list_layers"]
