"""Checkpoints: written whole or not at all, read without running any code that they carry."""

import errno
import functools
import hashlib
import io
import itertools
import json
import pickle
import struct
import sys
import time
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils import stopping
from utils.errors import InputError
from utils.files import earlier, put_back, replacing, replacing_together
from utils.later import safetensors
from utils.numpy_values import ARRAYS, NUMBERS, tensors_for_arrays
from utils.parser import PlainNamespace
from utils.presence import check_checkpoint
from utils.remarks import remark

State = dict[str, Any]
# The key in a .safetensors file's metadata for all but the weights, as JSON
_RECORD = "record"
SECONDS_OF_A_CLOCK = 2.0
LARGE_BYTES = 1 << 30
READABLE = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# Entries of a checkpoint that are read as dictionaries
RECORDS = ("state_dict", "data", "settings", "source", "images", "midway", "trans_net")
DOS_FOLDER = 0x10  # the attribute of a zip entry that is a folder
# The keys of sums there, since the format has none of its own: of all, and of the tensors alone, as
# earlier versions have it
_SUM, _DIGEST = "content_sha256", "sha256"


def save(path: str | Path, state: State, *, keep: int = 1) -> None:
    """Save `state` to `path` atomically; an interrupted save leaves the previous file as it was.

    Equal states give equal files, byte for byte.

    Args:
        path: the file.
        state: tensors and plain values.
        keep: how many states are kept, the new one counted; see `earlier`.

    Raises:
        OSError: there is no room for it.
    """
    save_together({Path(path): state}, keep=keep)


def save_together(
    states: Mapping[Path, State], *, keep: int = 1, beside: Mapping[Path, State] | None = None
) -> None:
    """Save several checkpoints that are one state: after a crash all are new, or all as before.

    Args:
        states: by file in one folder.
        keep: how many of each are kept, the new one counted; see `earlier`.
        beside: further files of that state, of which the new one alone is kept.

    Raises:
        OSError: there is no room for them; all are as before.
    """
    together = {**(beside or {}), **states}
    with replacing_together(list(together), keep=dict.fromkeys(states, keep)) as temporaries:
        for temporary, state in zip(temporaries, together.values()):
            _write(temporary, state)


def recover(*paths: Path, first_epoch: int = 1) -> None:
    """Put the state before in place of a damaged one, and say so.

    Nothing happens where no file is damaged, or none is kept that could take its place.

    Args:
        paths: checkpoints, which are one state where they were saved together. Those go back
            together.
        first_epoch: the value of "epoch" in a checkpoint after the first epoch.
    """
    damaged = [path for path in paths if path.exists() and not is_whole(path)]
    if not damaged:
        return
    for age in itertools.count(1):
        before = {path: _read(earlier(path, age)) for path in paths if earlier(path, age).exists()}
        if not before:
            return
        states = [before.get(path) for path in damaged]
        if all(states):
            break
    # Files that were saved at other times have other epochs
    epochs = {state.get("epoch") for state in states if state}
    back = [path for path, state in before.items() if state and state.get("epoch") in epochs]
    put_back(dict.fromkeys(back, age))
    state = states[0] or {}
    trained = state.get("epoch", first_epoch - 1) + 1 - first_epoch
    within = f" and {state['midway']['step']} steps of the next" if "midway" in state else ""
    remark(
        f"{', '.join(map(str, damaged))} is damaged; the run goes on from"
        f" {earlier(damaged[0], age).name}, saved after {trained} epochs{within}"
    )


def is_whole(path: Path) -> bool:
    """Whether a file is a checkpoint, and undamaged."""
    return _read(path) is not None


def _read(path: Path) -> State | None:
    """Read a checkpoint, its tensors left in the file; None: it is damaged."""
    try:
        return load(path, mmap=True)
    except InputError:
        return None


def _write(path: Path, state: State) -> None:
    # Given a path, PyTorch would write the temporary file's random name into the archive
    with stopping.after_this_block(), path.open("wb", buffering=0) as file:
        target = _Target(file)
        try:
            torch.save(_unshared(state), target)  # type: ignore[arg-type]
        except RuntimeError:
            if target.error is None:
                raise
            raise target.error from None


def _unshared(value: Any) -> Any:
    """Rebuild plain values, so that equal ones are pickled as equal bytes.

    Pickle writes an object that it has seen as a reference. So what a run read from a file would
    differ from what it made, though both are equal.
    """
    if type(value) is str:
        return sys.intern(value)  # equal strings are one object
    if type(value) in (list, tuple):
        return type(value)(map(_unshared, value))
    if type(value) in (dict, OrderedDict):
        copy = type(value)((_unshared(key), _unshared(one)) for key, one in value.items())
        # A module's state dict has an attribute: the versions of its parts
        for name, attribute in getattr(value, "__dict__", {}).items():
            setattr(copy, name, _unshared(attribute))
        return copy
    return value


class _Target:
    """A file that remembers why it could not be written: PyTorch's writer drops the reason."""

    def __init__(self, file: io.FileIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of `data`; an unbuffered file may take a part of it at a time."""
        rest = memoryview(data).cast("B")
        try:
            while len(rest):
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            raise
        return len(memoryview(data).cast("B"))

    def flush(self) -> None:
        """Do nothing: every write is done at once."""


def save_safetensors(
    path: str | Path, state: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Save a state dict for other programs, atomically, as a .safetensors file.

    Args:
        path: the file.
        state: the tensors. A tensor of several names is written once for each.
        record: plain values that `load` returns with them: the architecture, the data.
    """
    # Cloned, since the format has no tensors that share memory.
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    content = (json.dumps(record), {name: tensors[name] for name in sorted(tensors)})
    metadata = {"format": "pt", _RECORD: content[0], _SUM: content_sha256(content)}
    with replacing(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a .safetensors file, which its writer gives in an order by chance."""
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))  # spaces may end it


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Give the SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        values = tensors[name]
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def content_sha256(value: Any) -> str:
    """Give the SHA-256 of tensors and plain values in dictionaries, lists and tuples.

    It does not depend on the file that holds them, and knows a tuple from a list.
    """
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, np.ndarray | np.generic):  # which are read back as tensors and numbers
            part = torch.from_numpy(part) if isinstance(part, np.ndarray) else part.item()
        if isinstance(part, Tensor):
            values = part.detach().cpu().contiguous()
            digest.update(f"tensor {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(part, Mapping):
            digest.update(f"dict {len(part)}\n".encode())
            for key, entry in part.items():
                add(key)
                add(entry)
        elif isinstance(part, list | tuple):
            digest.update(f"{type(part).__name__} {len(part)}\n".encode())
            for entry in part:
                add(entry)
        else:
            digest.update(f"{type(part).__name__} {part!r}\n".encode())

    add(value)
    return digest.hexdigest()


def first_not_finite(state: Mapping[str, Any]) -> str | None:
    """Name the first tensor of a state dict that holds infinities or NaN; None: there is none."""
    floats = {
        name: value
        for name, value in state.items()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.is_meta
    }
    if not floats:
        return None
    # A sum passes on infinities and NaN, and makes no tensor of truths beside the weights.
    # One answer for all: a GPU is waited for once
    sums = torch.stack([value.sum(dtype=torch.float32) for value in floats.values()])
    suspects = [name for name, is_finite in zip(floats, sums.isfinite().tolist()) if not is_finite]
    # A sum of large values may overflow
    return next((name for name in suspects if not floats[name].isfinite().all()), None)


def load(path: str | Path, *, mmap: bool = False) -> State:
    """Read a checkpoint onto the CPU: tensors and plain values only.

    Its format is today's zip, PyTorch 1.0's, or .safetensors, whatever its name. Plain values
    include NumPy's numbers and arrays, paths, and the options of a training script, an
    `argparse.Namespace`.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used. PyTorch 1.0's format is read whole
            all the same.

    Returns:
        The saved dictionary, its tensors on the CPU.

    Raises:
        InputError: there is no such file; it is truncated, damaged or no checkpoint; it is a
            program (TorchScript, an exported net); or it holds objects that only its code could
            rebuild.
    """
    path = Path(path)
    check_checkpoint(path)
    before = f"; {earlier(path)} has the state before it" if earlier(path).exists() else ""
    remedy = f"make or download it again{before}"
    damaged = InputError(f"{path} is truncated or not a checkpoint; {remedy}")
    if _is_safetensors(path):
        return _load_safetensors(path, damaged)
    # PyTorch 1.0's format is no zip: it has no sums to check, and cannot be mapped.
    zipped = _is_zip(path)
    if zipped:
        if name := _damaged_entry(path):
            raise InputError(f"{path} is damaged: {name} is not what was written; {remedy}")
        _refuse_program(path)
    try:
        with torch.serialization.safe_globals(_plain_types()):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and zipped)
        state = tensors_for_arrays(state)
    except pickle.UnpicklingError as error:
        if "GLOBAL" in str(error):  # the opcode that asks for a class or function
            raise InputError(
                f"{path} holds more than tensors and plain values ({_reason(error)}) and is"
                " refused, because loading it could run code; save its state_dict alone and use"
                " that"
            ) from None
        raise damaged from None
    except RecursionError:
        raise InputError(
            f"{path} holds lists within lists without end and is refused; save its state_dict alone"
            " and use that"
        ) from None
    except OSError as error:
        # In a cut-off zip PyTorch seeks to a place before the beginning.
        if error.errno not in (None, errno.EINVAL):
            raise
        raise damaged from None
    except MemoryError:
        # A small file that asks for so much lies of its sizes.
        if path.stat().st_size > LARGE_BYTES:
            raise
        raise damaged from None
    except Exception:  # PyTorch's readers raise nearly anything on broken bytes
        raise damaged from None
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, a checkpoint is a dictionary")
    for name in RECORDS:
        if not isinstance(state.get(name, {}), Mapping):
            raise InputError(
                f"{path} holds a {type(state[name]).__name__} as {name!r}, where a dictionary is"
                " expected; take this entry out, or save the state_dict alone"
            )
    return state


def _plain_types() -> list[Any]:
    """List types that training scripts put into checkpoints and that only hold values.

    An entry with a name is a stand-in for the type of that name: paths that are never opened, and
    NumPy's numbers and arrays as `utils.numpy_values` reads them.
    """
    paths = {
        "PosixPath": PurePosixPath,
        "PurePosixPath": PurePosixPath,
        "WindowsPath": PureWindowsPath,
        "PureWindowsPath": PureWindowsPath,
    }
    # Python 3.13 moved its paths to another module.
    named = [
        (kind, f"{module}.{name}")
        for name, kind in paths.items()
        for module in ("pathlib", "pathlib._local")
    ]
    return [PlainNamespace, *ARRAYS, *NUMBERS, *named]


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as .safetensors: a header's length in 8 bytes, then the JSON header."""
    with path.open("rb") as file:
        beginning = file.read(9)
    if len(beginning) < 9 or beginning[8:] != b"{":
        return False
    return struct.unpack("<Q", beginning[:8])[0] < 1 << 30  # no header has a gigabyte


def _is_zip(path: Path) -> bool:
    """Whether a file is a zip archive, whole or damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return True


def _damaged_entry(path: Path) -> str | None:
    """Name the first entry of a zip archive whose bytes do not have the sum that it was given.

    PyTorch reads past these sums: of 2,000 checkpoints with one byte changed it took 638 for whole.
    A run opens a checkpoint several times; its sums are formed once while its time stays the same.
    """
    stat = path.stat()
    # A file system's clock is coarse: what was written just now can change again unseen
    is_new = time.time() - stat.st_mtime < SECONDS_OF_A_CLOCK
    check = _first_damaged.__wrapped__ if is_new else _first_damaged
    return check(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _first_damaged(path: Path, size: int, modified_ns: int) -> str | None:
    contents = "its table of contents"
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                # Of a folder PyTorch reads nothing, and gives what was in memory
                is_folder = entry.external_attr & DOS_FOLDER
                if is_folder or entry.compress_type not in READABLE:
                    return entry.filename
            return archive.testzip()
    except (
        zipfile.BadZipFile,
        EOFError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ):
        return contents
    except OSError as error:
        # An entry is sought from before the file's beginning; a decompressor names no number
        if error.errno not in (None, errno.EINVAL):
            raise
        return contents


def _load_safetensors(path: Path, damaged: InputError) -> State:
    """Read a .safetensors file, and hold its tensors against the sum that our own files carry."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        tensors = safetensors.torch.load_file(path)
        record = json.loads(metadata[_RECORD]) if _RECORD in metadata else None
    except (safetensors.SafetensorError, ValueError, RuntimeError):
        raise damaged from None
    if _DIGEST in metadata and _digest(tensors) != metadata[_DIGEST]:
        raise damaged
    content = (metadata.get(_RECORD), {name: tensors[name] for name in sorted(tensors)})
    if _SUM in metadata and content_sha256(content) != metadata[_SUM]:
        raise damaged
    return {**record, "state_dict": tensors} if isinstance(record, dict) else tensors


def _refuse_program(path: Path) -> None:
    """Refuse an archive that holds a program instead of a dictionary.

    Raises:
        InputError: it holds one.
    """
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2] for name in archive.namelist()}
    # The entry that only such an archive has
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
    """Name the class that PyTorch's unpickler refused; its message has it behind "GLOBAL"."""
    words = str(error).split()
    return next(
        (word.strip(",.`'") for before, word in pairwise(words) if before == "GLOBAL"),
        "a Python object",
    )
