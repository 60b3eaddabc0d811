"""Architectures of the user's own: "package.module:factory", found on PYTHONPATH.

To import such a module is to run its code. So it happens only where the user both has it on PYTHONPATH and names it in
an option; a checkpoint that names one is refused until the option says the same (`refuse_unnamed`).
"""

import importlib.util
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from torch import nn

from utils.errors import InputError


def is_own(arch: str) -> bool:
    """Whether a name means a factory of the user's own."""
    return ":" in arch


def refuse_unnamed(held: str | None, named: str | None, path: str | Path) -> None:
    """Refuse a file whose network is built by the user's code, if no option names that code.

    Args:
        held: the architecture that the file says.
        named: the one that an option says.
        path: the file.

    Raises:
        InputError: it is the user's own, and the option says nothing or another one.
    """
    if held is not None and is_own(held) and named != held:
        raise InputError(f"{path} holds a {held}, whose code runs only where an option names it; add --arch {held}")


def build_own(arch: str, num_classes: int) -> nn.Module:
    """Import a factory and call it.

    Args:
        arch: "package.module:factory"; `factory(num_classes=C)` gives images (N, 3, S, S) → logits (N, C).
        num_classes: C.

    Raises:
        InputError: PYTHONPATH has no such module, or the module no such factory, or it gives something else.
    """
    module, _, factory = arch.partition(":")
    package = module.partition(".")[0]
    folders = [str(Path(folder).absolute()) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    spec = PathFinder.find_spec(package, folders) if package else None
    if spec is None:
        raise InputError(
            f"{arch} is looked for on PYTHONPATH, which has no {package or 'package'}; set it to the folder that has it"
        )
    sys.path.extend(folder for folder in folders if folder not in sys.path)
    if (taken := importlib.util.find_spec(package)) is None or taken.origin != spec.origin:
        raise InputError(f"{arch}: the name {package} means another package here; call yours differently")
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise InputError(f"{arch}: there is no module {error.name} in {spec.origin or package}") from None
    make = getattr(imported, factory, None)
    if not callable(make):
        raise InputError(f"{arch}: {module} has no function {factory!r}")
    model = make(num_classes=num_classes)
    if not isinstance(model, nn.Module):
        raise InputError(f"{arch} gives a {type(model).__name__}, a torch.nn.Module is expected")
    return model
