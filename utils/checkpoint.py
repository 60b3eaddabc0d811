"""Checkpoints: written whole or not at all, read without running any code that they carry."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.files import replacing


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Save `state` to `path` atomically; an interrupted save leaves the previous file as it was."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: today's zip format or PyTorch 1.0's, tensors and plain values only.

    Returns:
        The saved dictionary. Tensors saved on a GPU arrive on the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, or it holds objects that
            only running its code could rebuild.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}{_what_is_there(path)}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower() or "unsupported" in str(error).lower():
            raise InputError(
                f"{path} holds more than tensors and plain values ({_reason(error)}) and is refused, because "
                "loading it could run code; save its state_dict alone and use that"
            ) from None
        raise InputError(f"{path} is truncated or not a checkpoint; make or download it again") from None
    except (EOFError, RuntimeError, zipfile.BadZipFile, ValueError, KeyError, AssertionError, UnicodeDecodeError):
        raise InputError(f"{path} is truncated or not a checkpoint; make or download it again") from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, a checkpoint is a dictionary")
    return state


def _what_is_there(path: Path) -> str:
    """Name the neighbours of a missing checkpoint, since the usual mistake is a suffix."""
    neighbours = sorted(other.name for other in path.parent.glob("*.pth*")) if path.parent.is_dir() else []
    if not neighbours:
        return "; train it first or correct the path"
    shown = ", ".join(neighbours[:4]) + (", …" if len(neighbours) > 4 else "")
    return f"; that folder has {shown}"


def _reason(error: Exception) -> str:
    """The class that the restricted unpickler stopped at, from its long message."""
    words = str(error).split()
    return next((word.strip(",.`'") for before, word in zip(words, words[1:]) if before == "GLOBAL"), "a Python object")
