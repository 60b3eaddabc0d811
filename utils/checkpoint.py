"""Checkpoints: written whole or not at all, read without running any code that they carry."""

import errno
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing
from utils.later import safetensors
from utils.numpy_values import STAND_INS, tensors_for_arrays
from utils.parser import Namespace
from utils.presence import check_checkpoint

State = dict[str, Any]
# Of the metadata of a .safetensors file: what a checkpoint says beside its weights, as JSON
_RECORD = "record"


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
                f"{path} cannot be written: the disk is full or a quota is used up; make room, the"
                " file that was there before is whole"
            ) from None


def save_safetensors(
    path: str | Path, state: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Save a state dict for other programs, atomically, as a .safetensors file.

    Args:
        path: the file.
        state: the tensors. One that several names share is written once for each.
        record: plain values that `load` gives beside them: the architecture, the data.
    """
    metadata = {"format": "pt", _RECORD: json.dumps(record)}
    with replacing(path) as temporary:
        tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
        safetensors.torch.save_file(tensors, temporary, metadata)


def load(path: str | Path, *, mmap: bool = False) -> State:
    """Read a checkpoint onto the CPU: tensors and plain values only.

    It is in today's zip format, PyTorch 1.0's, or .safetensors, whatever its name. Plain values are
    also numbers and arrays of NumPy, paths, and the options of a training script, an
    `argparse.Namespace`.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used; PyTorch 1.0's format is read whole
            all the same.

    Returns:
        The saved dictionary. Tensors saved on a GPU arrive on the CPU.

    Raises:
        InputError: there is no such file, it is truncated or no checkpoint, it is a program
            (TorchScript, an exported net), or it holds objects that only running its code could
            rebuild.
    """
    path = Path(path)
    check_checkpoint(path)
    damaged = InputError(f"{path} is truncated or not a checkpoint; make or download it again")
    if _is_safetensors(path):
        return _load_safetensors(path, damaged)
    zipped = zipfile.is_zipfile(path)
    if zipped:
        _refuse_program(path)
    try:
        with torch.serialization.safe_globals(_plain_types()):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the opcode that asks for a class or function
            raise InputError(
                f"{path} holds more than tensors and plain values ({_reason(error)}) and is"
                " refused, because loading it could run code; save its state_dict alone and use"
                " that"
            ) from None
        raise damaged from None
    except OSError as error:
        # The end of a cut-off zip is sought from before its beginning
        if error.errno != errno.EINVAL:
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
    return tensors_for_arrays(state)


def _plain_types() -> list[Any]:
    """List the types, beside PyTorch's own,
    that training scripts put into checkpoints and that only hold values.

    An entry with a name says what stands for the type of that name: paths are not opened, NumPy's
    numbers and arrays are read by `utils.numpy_values`.
    """
    paths = {
        "PosixPath": PurePosixPath,
        "PurePosixPath": PurePosixPath,
        "WindowsPath": PureWindowsPath,
        "PureWindowsPath": PureWindowsPath,
    }
    # Paths have moved between Python's versions.
    named = [
        (kind, f"{module}.{name}")
        for name, kind in paths.items()
        for module in ("pathlib", "pathlib._local")
    ]
    return [Namespace, *STAND_INS, *named]


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as a .safetensors file does:
    the length of a JSON header, then that header.
    """
    with path.open("rb") as file:
        beginning = file.read(9)
    return (
        len(beginning) == 9
        and beginning[8:] == b"{"
        and struct.unpack("<Q", beginning[:8])[0] < 1 << 30
    )


def _load_safetensors(path: Path, damaged: InputError) -> State:
    """Read a .safetensors file, whose tensors stay mapped until they are used."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
        record = json.loads(metadata[_RECORD]) if _RECORD in metadata else None
    except (safetensors.SafetensorError, ValueError, RuntimeError):
        raise damaged from None
    return {**record, "state_dict": tensors} if isinstance(record, dict) else tensors


def _refuse_program(path: Path) -> None:
    """Refuse archives that hold a program, not a dictionary.

    Raises:
        InputError: it is one.
    """
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    programs = {
        "constants.pkl": "a TorchScript archive",
        "archive_format": "an exported program (torch.export)",
    }
    if kind := next((kind for name, kind in programs.items() if name in names), None):
        raise InputError(
            f"{path} is {kind}, which carries code and not a dictionary of weights; save the net's"
            " state_dict and use that"
        )


def _reason(error: Exception) -> str:
    """The class that the restricted unpickler stopped at, from its long message."""
    words = str(error).split()
    return next(
        (word.strip(",.`'") for before, word in pairwise(words) if before == "GLOBAL"),
        "a Python object",
    )
