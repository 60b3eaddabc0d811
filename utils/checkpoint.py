"""Checkpoints: written whole or not at all, read without running any code that they carry."""

import errno
import pickle
import struct
import zipfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.errors import InputError
from utils.files import replacing

State = dict[str, Any]


def save(path: str | Path, state: State) -> None:
    """Save `state` to `path` atomically; an interrupted save leaves the previous file as it was."""
    with replacing(path) as temporary:
        torch.save(state, temporary)


def load(path: str | Path, *, mmap: bool = False) -> State:
    """Read a checkpoint onto the CPU: today's zip format or PyTorch 1.0's, tensors and plain values only.

    Args:
        path: the file.
        mmap: leave the tensors in the file until they are used (today's format alone).

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
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
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


def training_state(
    network: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, epoch: int, **facts: Any
) -> State:
    """Gather what a run needs to go on after `epoch` epochs, and the facts that describe the model."""
    return {
        "epoch": epoch,
        **facts,
        "state_dict": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
    }


def to_resume(resume: str, own: Path) -> Path | None:
    """Find what `--resume` means: a path, "auto" for this run's own checkpoint if there is one, or nothing."""
    if resume == "auto":
        return own if own.exists() else None
    return Path(resume) if resume else None


def own_progress(own: Path, key: str, facts: State) -> State:
    """Load what an earlier run of the same command left, to go on from there.

    Args:
        own: where this run saves.
        key: under which its checkpoints record `facts`.
        facts: plain values that must be the same for the two runs to be one.

    Returns:
        The checkpoint, or nothing where there is none yet.

    Raises:
        InputError: the file is of another run; the message has the first fact that differs.
    """
    if not own.exists():
        return {}
    state = load(own)
    stored = state.get(key, {})
    for name, value in facts.items():
        if stored.get(name) != value:
            raise InputError(
                f"{own} is of another run, with {name} {stored.get(name)} instead of {value}; "
                "repeat that command, or choose another --suffix"
            )
    return state


def restore_training(
    state: State, path: str | Path, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> int:
    """Put the optimiser and the loss scaler where a checkpoint left them.

    Returns:
        The number of epochs that were trained.

    Raises:
        InputError: the checkpoint has no training state, or one of another optimiser or other parameters.
    """
    if "optimizer" not in state or "epoch" not in state:
        raise InputError(f"{path} holds weights but no training state, so it cannot be resumed; use it as --weights")
    try:
        optimizer.load_state_dict(state["optimizer"])
        # PyTorch takes any optimiser's groups and fails in the first step; it adds what is younger than the file.
        if absent := optimizer.defaults.keys() - optimizer.param_groups[0].keys():
            raise ValueError(f"it has no {', '.join(sorted(absent))}")
        if state.get("scaler"):
            scaler.load_state_dict(state["scaler"])
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{path} was trained with another optimiser or other parameters ({error})") from None
    return int(state["epoch"])


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
