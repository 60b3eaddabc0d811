"""Checkpoints: written whole or not at all, read without running any code that they carry."""

import errno
import pickle
import struct
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from utils.errors import InputError
from utils.files import replacing

State = dict[str, Any]


def save(path: str | Path, state: State) -> None:
    """Save `state` to `path` atomically; an interrupted save leaves the previous file as it was.

    Raises:
        InputError: there is no room for it.
    """
    with replacing(path) as temporary:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # PyTorch's writer has no other word for a full disk
            if "writ" not in str(error):
                raise
            raise InputError(
                f"{path} cannot be written: the disk is full or a quota is used up; make room, the file that was there "
                "before is whole"
            ) from None


def load(path: str | Path, *, mmap: bool = False) -> State:
    """Read a checkpoint onto the CPU: today's zip format or PyTorch 1.0's, tensors and plain values only.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used; PyTorch 1.0's format is read whole all the same.

    Returns:
        The saved dictionary. Tensors saved on a GPU arrive on the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, or it holds objects that
            only running its code could rebuild.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"no checkpoint at {path}{_what_is_there(path)}")
    damaged = InputError(f"{path} is truncated or not a checkpoint; make or download it again")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the opcode that asks for a class or function
            raise InputError(
                f"{path} holds more than tensors and plain values ({_reason(error)}) and is refused, because "
                "loading it could run code; save its state_dict alone and use that"
            ) from None
        raise damaged from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # the end of a cut-off zip is sought from before its beginning
            raise
        raise damaged from None
    except (
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        struct.error,
        AssertionError,
        zipfile.BadZipFile,
    ):  # all of these come from cut-off files, depending on where the cut is
        raise damaged from None
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
    return next((word.strip(",.`'") for before, word in pairwise(words) if before == "GLOBAL"), "a Python object")
