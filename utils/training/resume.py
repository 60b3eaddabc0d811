"""One meaning of --resume:
go on with this run's own checkpoint if every option that changes the result agrees.
"""

import contextlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from utils import checkpoint
from utils.data.contents import Contents
from utils.errors import InputError
from utils.files import settle
from utils.provenance import Provenance, same_arch

# Recorded, not compared
VERSIONS = {"torch": str(torch.__version__), "torchvision": version("torchvision")}


def find(
    resume: str,
    own: Path,
    settings: Mapping[str, Any],
    *,
    source: Provenance | None = None,
    restart: bool = False,
    extendable: bool = False,
    elsewhere: str = "--suffix",
) -> Path | None:
    """Find the checkpoint that a run goes on from.

    Args:
        resume: "" begins anew, "auto" goes on with this run's own checkpoint if there is one, else
            a path.
        own: where this run saves.
        settings: every option of this run that changes the result, plain values.
        source: the features that it reads, if it reads any.
        restart: replace what is at `own`, whatever it is.
        extendable: the rates of the epochs so far do not depend on how many follow, so `epochs` may
            differ.
        elsewhere: the option that names another place.

    Returns:
        The checkpoint, or None to begin anew.

    Raises:
        InputError: `own` is another run's, or cannot be read; or at the path is none, or one of
            other features.
    """
    settle(own.parent)
    path = None if resume in ("", "auto") else Path(resume)
    if own.exists() and not restart:
        check(own, settings, source=source, extendable=extendable, elsewhere=elsewhere)
    if path is not None:
        state = checkpoint.load(path, mmap=True)  # says now what is there instead
        if source:
            Provenance.from_record(state.get("source", {})).check(source, path)
        return path
    return own if resume and own.exists() and not restart else None


def read_own(own: Path) -> checkpoint.State:
    """Read this run's own checkpoint, its tensors left in the file.

    Raises:
        InputError: it cannot be read; it may be replaced.
    """
    try:
        return checkpoint.load(own, mmap=True)
    except InputError as error:
        raise InputError(f"{error}, or add --restart to replace it") from None


def check(
    own: Path,
    settings: Mapping[str, Any],
    *,
    source: Provenance | None = None,
    extendable: bool = False,
    elsewhere: str = "--suffix",
) -> None:
    """Refuse to touch a checkpoint of another run.

    Args:
        own: the checkpoint.
        settings: see `find`; what the file does not record (an earlier version's, the authors') is
            not compared.
        source: see `find`.
        extendable: see `find`.
        elsewhere: see `find`.

    Raises:
        InputError: the first setting that differs, with both values.
    """
    state = read_own(own)
    stored = state.get("settings", {})
    fitted = Provenance.from_record(state.get("source", {}))
    difference = fitted.differs(source) if source else None
    for name, value in settings.items():
        if difference is None and name in stored and not (name == "epochs" and extendable):
            if _agrees(stored, name, value):
                continue
            difference = f"{name} {stored[name]} instead of {value}"
    if difference:
        raise InputError(
            f"{own} is of another run, with {difference}; choose another {elsewhere}, or --restart"
            " to replace it"
        )


def check_images(own: Path, images: Mapping[str, Contents], *, elsewhere: str = "--suffix") -> None:
    """Refuse to touch a checkpoint that was made of other images.

    Args:
        own: the checkpoint. One of an earlier version, which records no images, is passed over.
        images: "train" and "val" → this run's.
        elsewhere: see `find`.

    Raises:
        InputError: images were edited, removed, added, renamed or moved to another class; the
            message names some.
    """
    recorded = read_own(own).get("images", {})
    for split, contents in images.items():
        if split in recorded and (
            changes := Contents.from_record(recorded[split]).changes(contents)
        ):
            raise InputError(
                f"{own} was made of other {split} images; since then {changes}; put them back,"
                f" choose another {elsewhere}, or --restart to replace it"
            )


def _agrees(stored: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether recorded settings have this value;
    a factory's file may have been moved (`same_arch`).
    """
    if name not in stored:
        return False
    held = stored[name]
    return held == value or (
        isinstance(held, str) and isinstance(value, str) and same_arch(held, value)
    )


def history(state: checkpoint.State, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give what a checkpoint records of epochs that were
    trained with other settings than the present ones.

    Args:
        state: the checkpoint that a run goes on from, or nothing.
        settings: of this run.

    Returns:
        The earlier stretches, each with its `settings` and the `epoch` that it ended with.
    """
    before = list(state.get("history", []))
    if state.get("settings", settings) != settings:
        before.append({"epoch": state["epoch"], "settings": state["settings"]})
    return before


def twin(own: Path, settings: Mapping[str, Any]) -> Path | None:
    """Find, beside a run's checkpoint,
    one of the same settings but for the seed: the other net of a pair.
    """
    for path in sorted(own.parent.glob("checkpoint_*.pth.tar")):
        with contextlib.suppress(InputError):  # what cannot be read is no twin
            stored = checkpoint.load(path, mmap=True).get("settings", {})
            if {name for name in settings if not _agrees(stored, name, settings[name])} == {"seed"}:
                return path
    return None
