"""Foreign architectures: timm's, and a user's own factories.

    timm:NAME                   of the library timm, if it is installed
    package.module:factory      a function or class in any module that can be imported
    path/to/file.py:factory     a function or class in a file

To import a user's module is to run its code. So only an option can ask for it. A checkpoint that
names a user's architecture is refused until an option names the same (`named_arch`).
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

# Names of a factory's argument for the number of classes, the usual ones first.
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
# Other names of it, where it is the only argument: n, C, nc, target_classes.
_LIKELY = re.compile(r"^\w\w?$|class|label", re.IGNORECASE)


def is_own(arch: str) -> bool:
    """Whether a name means a user's own factory."""
    return ":" in arch and not is_timm(arch)


def is_timm(arch: str) -> bool:
    """Whether a name means a network of timm."""
    return arch.startswith(TIMM)


def is_foreign(arch: str) -> bool:
    """Whether a name means a network of timm or of the user's code."""
    return ":" in arch


def named_arch(stored: str, named: str | None, path: str | Path) -> str:
    """Give the name by which a file's network is built.

    Args:
        stored: the architecture that the file names.
        named: the architecture that an option names.
        path: the file, for messages.

    Returns:
        `stored`. Of a user's own architecture `named`, which says where its code is now.

    Raises:
        InputError: it is a user's own architecture, and the option names none or another one.
    """
    if not is_own(stored):
        return stored
    if named is None or not same_arch(stored, named):
        raise InputError(
            f"{path} holds a {stored}, whose code runs only where an option names it; add --arch"
            f" {stored}"
        )
    return named


def build_foreign(arch: str, num_classes: int, *, pretrained: bool = False) -> nn.Module:
    """Build a network of timm, or call a user's factory.

    Args:
        arch: "timm:NAME", "package.module:factory" or "path/to/file.py:factory". A factory gets the
            number of classes by its argument's name for it, or as its only argument. A factory
            without arguments is called without.
        num_classes: C.
        pretrained: take timm's trained weights.

    Returns:
        images (N, 3, S, S) → whatever its author returns, in float32 on the CPU or on the device of
        an enclosing `torch.device`.

    Raises:
        InputError: there is no such module or factory, it needs other arguments, or it returns no
            module.
    """
    model = (
        _build_timm(arch, num_classes, pretrained)
        if is_timm(arch)
        else _call_factory(arch, num_classes)
    )
    # Unwrap what an author wrapped for training: names in checkpoints are those of the net inside.
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        model = model.module
    if not isinstance(model, nn.Module):
        raise InputError(f"{arch} gives a {type(model).__name__}, a torch.nn.Module is expected")
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    return model.to(torch.get_default_device()).float()


def _build_timm(arch: str, num_classes: int, pretrained: bool) -> nn.Module:
    """Build a network of timm; see `build_foreign`."""
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
    except Exception as error:  # no connection, no such weights, a missing library
        reason = str(error).partition("\n")[0]
        instead = "; give a local file with --weights FILE" if pretrained else ""
        raise InputError(
            f"timm cannot make {name} ({type(error).__name__}: {reason}){instead}"
        ) from error


def _call_factory(arch: str, num_classes: int) -> Any:
    """Import a user's module and call its factory; see `build_foreign`."""
    source, _, factory = arch.rpartition(":")
    with user_module.opened(source, arch) as module:
        make = getattr(module, factory, None)
        if not callable(make):
            names = [name for name, value in vars(module).items() if _is_factory(value, module)]
            hint = f"; it has {', '.join(names[:6])}" if names else ""
            raise InputError(f"{arch}: {source} has no function {factory!r}{hint}")
        return _call(make, arch, num_classes)


def _call(make: Callable[..., Any], arch: str, num_classes: int) -> Any:
    """Call a factory, with the number of classes if it takes that.

    Raises:
        InputError: it needs other arguments too.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except ValueError:  # a function in C has no signature
        return make(num_classes=num_classes)
    by_name = [
        entry
        for entry in parameters
        if entry.kind in (entry.POSITIONAL_OR_KEYWORD, entry.KEYWORD_ONLY)
    ]
    # The order of `_CLASSES` decides, not that of the factory's arguments.
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
        # `**kwargs` may take num_classes or hand it on to something that does not.
        try:
            return make(num_classes=num_classes)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
    return make()


def _is_factory(value: Any, module: Any) -> bool:
    """Whether an entry of a module is a function of its own, which a message may propose."""
    return inspect.isroutine(value) and value.__module__ == module.__name__
