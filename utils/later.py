"""Libraries that are loaded by what first uses them,
so that --help and a wrong option wait for none of them.

torchvision alone takes as long to import as PyTorch, whose exporter it loads. A file takes it from
here,

    from utils.later import torchvision

and names what it uses in full, inside of its functions: `torchvision.models.VGG`.
"""

import importlib
from typing import TYPE_CHECKING, Any


class Later:
    """Stands for a module and loads it when one of its names, or a module in it, is asked for."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        module = importlib.import_module(self._name)
        if hasattr(module, name):
            return getattr(module, name)
        inside = f"{self._name}.{name}"
        try:
            return importlib.import_module(inside)
        except ModuleNotFoundError as error:
            if error.name != inside:
                raise  # the module is there, and misses another one
            # As of any object: `hasattr` and what looks into modules (doctest, inspect) go on.
            raise AttributeError(f"module {self._name} has no {name}") from None


if TYPE_CHECKING:
    import jinja2
    import matplotlib.axes
    import matplotlib.colors
    import matplotlib.figure
    import matplotlib.layout_engine
    import matplotlib.patheffects
    import matplotlib.ticker
    import safetensors
    import scipy
    import sklearn
    import timm
    import torch
    import torchvision
    from torch.utils import flop_counter, tensorboard
    from torchvision.models import feature_extraction
else:
    jinja2 = Later("jinja2")
    matplotlib = Later("matplotlib")
    scipy = Later("scipy")
    safetensors = Later("safetensors")
    sklearn = Later("sklearn")
    timm = Later("timm")
    torch = Later("torch")
    torchvision = Later("torchvision")
    feature_extraction = Later("torchvision.models.feature_extraction")
    tensorboard = Later("torch.utils.tensorboard")
    flop_counter = Later("torch.utils.flop_counter")

__all__ = [
    "feature_extraction",
    "flop_counter",
    "jinja2",
    "matplotlib",
    "safetensors",
    "scipy",
    "sklearn",
    "tensorboard",
    "timm",
    "torch",
    "torchvision",
]
