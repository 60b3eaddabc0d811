"""Libraries that are loaded by what first uses them,
so that --help and a wrong option wait for none of them.

torchvision alone takes as long to import as PyTorch, whose exporter it loads. A file takes it from
here,

    from utils.later import torchvision

and names what it uses in full, inside of its functions: `torchvision.models.VGG`.
"""

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
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


_COMPILER = "torch._dynamo"


class _Idle(ModuleType):
    """Stands for a module of PyTorch's compiler until something is compiled.

    Args:
        name: of the module.
        answers: by name the functions that need no compiler while nothing is compiled.
    """

    def __init__(self, name: str, **answers: Callable[..., Any]) -> None:
        super().__init__(name)
        vars(self).update(answers)

    def __getattr__(self, name: str) -> Any:
        # An import and what looks through all modules ask for these, and compile nothing.
        if name.startswith("__") and (name, self.__name__) != ("__path__", _COMPILER):
            raise AttributeError(name)
        _load_compiler()
        return getattr(importlib.import_module(self.__name__), name)


def defer_compiler() -> None:
    """Load PyTorch's compiler (1.4 s) only where something is compiled.

    Without this it is loaded to hear what it shall leave alone: by every optimiser, and by many
    operators on the device "meta"; and by torchvision, for one function of its detectors. Nothing
    is done before PyTorch is loaded, or where its compiler is.
    """
    torch_module = sys.modules.get("torch")
    if torch_module is None or _COMPILER in sys.modules:
        return
    compiler = _Idle(_COMPILER, disable=_leave_alone, graph_break=_do_nothing)
    utils = _Idle(f"{_COMPILER}.utils", is_compile_supported=_is_compile_supported)
    vars(compiler)["utils"] = utils
    vars(torch_module)[_COMPILER.rpartition(".")[2]] = compiler
    sys.modules |= {module.__name__: module for module in (compiler, utils)}


def _load_compiler() -> ModuleType:
    """Load the compiler in place of what stands for it."""
    for name in [name for name, module in sys.modules.items() if isinstance(module, _Idle)]:
        del sys.modules[name]
    return importlib.import_module(_COMPILER)


def _leave_alone(function: Any = None, *options: Any, **named: Any) -> Any:
    """Give a function that is not compiled, which is itself; or what decorates one so."""
    return _leave_alone if function is None else function


def _do_nothing(*options: Any, **named: Any) -> None:
    """Break no graph: none is made."""


def _is_compile_supported(device: Any) -> Any:
    return _load_compiler().utils.is_compile_supported(device)


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
