"""Architectures that neither this project nor torchvision has: timm's, and a user's own factories.

    timm:NAME                   of the library timm, where it is installed
    package.module:factory      a function or class in any module that can be imported
    path/to/file.py:factory     one in a file

To import a module of the user's is to run its code. So it happens only where an option names it. A
checkpoint that names one is refused until the option says the same (`named_arch`).
"""

import importlib.util
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import user_module
from models.inputs import TIMM
from utils.errors import InputError
from utils.later import timm
from utils.provenance import same_arch

# What factories call the number of classes.
_CLASSES = (
    "num_classes",
    "n_classes",
    "nclasses",
    "classes",
    "nclass",
    "n_class",
    "num_class",
    "class_num",
    "classes_num",
    "number_of_classes",
    "nb_classes",
    "nb_class",
    "num_cls",
    "n_cls",
    "num_labels",
    "n_labels",
    "num_outputs",
    "n_outputs",
    "n_out",
    "out_features",
    "output_dim",
    "out_dim",
    "dim_out",
    "outputs",
)
# What else its only argument may be called: n, C, nc, target_classes.
_LIKELY = re.compile(r"^\w\w?$|class|label", re.IGNORECASE)


def is_own(arch: str) -> bool:
    """Whether a name means a factory of the user's own."""
    return ":" in arch and not is_timm(arch)


def is_timm(arch: str) -> bool:
    """Whether a name means a network of timm."""
    return arch.startswith(TIMM)


def is_foreign(arch: str) -> bool:
    """Whether a network is built by code that this project does not know."""
    return ":" in arch


def named_arch(held: str, named: str | None, path: str | Path) -> str:
    """Give the name by which a file's network is built;
    refuse the user's code, if no option names it.

    Args:
        held: the architecture that the file says.
        named: the one that an option says.
        path: the file.

    Returns:
        `held`; or `named`, where that is the same factory and says where its file is now.

    Raises:
        InputError: it is the user's own, and the option says nothing or another one.
    """
    if not is_own(held):
        return held
    if named is None or not same_arch(held, named):
        raise InputError(
            f"{path} holds a {held}, whose code runs only where an option names it; add --arch"
            f" {held}"
        )
    return named


def build_foreign(arch: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build a network of timm, or call a user's factory.

    Args:
        arch: "timm:NAME", "package.module:factory" or "path/to/file.py:factory". A factory is given
            the number of classes by the name that its signature has for it, or as its only
            argument; one that takes none is called without.
        num_classes: C.
        pretrained: of timm, its trained weights.

    Returns:
        images (N, 3, S, S) → what its author returns, in float32 on the CPU (or "meta", where that
        is the device).

    Raises:
        InputError: there is no such module or factory, it cannot be called so, or it gives
            something else.
    """
    model = (
        _build_timm(arch, num_classes, pretrained)
        if is_timm(arch)
        else _call_factory(arch, num_classes)
    )
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise InputError(f"{arch} gives a {type(model).__name__}, a torch.nn.Module is expected")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    return model.to(torch.get_default_device()).float()


def _build_timm(arch: str, num_classes: int, pretrained: bool) -> nn.Module:
    name = arch.removeprefix(TIMM)
    if importlib.util.find_spec("timm") is None:
        raise InputError(
            f"{arch} is a network of timm, which is not installed; install it: pip install timm"
        )
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:3] or timm.list_models(f"{name[:6]}*")[:3]
        hint = f"; it has {', '.join(near)}" if near else "; timm.list_models() names them all"
        raise InputError(f"timm {timm.__version__} has no network {name!r}{hint}")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    except Exception as error:  # no network, no such weights, an optional library
        reason = str(error).partition("\n")[0]
        instead = "; give a local file with --weights FILE" if pretrained else ""
        raise InputError(
            f"timm cannot make {name} ({type(error).__name__}: {reason}){instead}"
        ) from error


def _call_factory(arch: str, num_classes: int) -> Any:
    """Import a user's module and call its factory."""
    source, _, factory = arch.rpartition(":")
    with user_module.opened(source, arch) as module:
        make = getattr(module, factory, None)
        if not callable(make):
            names = [name for name, value in vars(module).items() if _is_factory(value, module)]
            hint = f"; it has {', '.join(names[:6])}" if names else ""
            raise InputError(f"{arch}: {source} has no function {factory!r}{hint}")
        return _call(make, arch, num_classes)


def _call(make: Callable[..., Any], arch: str, num_classes: int) -> Any:
    """Call a factory, with the number of classes if it takes it."""
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # of a function in C
        return make(num_classes=num_classes)
    by_name = [
        entry
        for entry in parameters
        if entry.kind in (entry.POSITIONAL_OR_KEYWORD, entry.KEYWORD_ONLY)
    ]
    spelt = next(
        (entry.name for word in _CLASSES for entry in by_name if entry.name.lower() == word), None
    )
    required = [
        entry
        for entry in parameters
        if entry.default is entry.empty
        and entry.kind not in (entry.VAR_POSITIONAL, entry.VAR_KEYWORD)
    ]
    if spelt is None and len(required) == 1 and _LIKELY.search(required[0].name):
        spelt = required[0].name
        if required[0].kind is inspect.Parameter.POSITIONAL_ONLY:
            return make(num_classes)
    if others := [entry.name for entry in required if entry.name != spelt]:
        raise InputError(
            f"{arch} needs {', '.join(others)}, and a factory gets the number of classes alone;"
            " write a function that takes num_classes and calls it"
        )
    if spelt is not None:
        return make(**{spelt: num_classes})
    if any(entry.kind is entry.VAR_KEYWORD for entry in parameters):
        try:
            return make(num_classes=num_classes)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return make()


def _is_factory(value: Any, module: Any) -> bool:
    """Whether something of a module may be meant as its factory."""
    return inspect.isroutine(value) and value.__module__ == module.__name__
