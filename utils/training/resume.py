"""The one meaning of --resume: continue this run's checkpoint if all settings agree.

Settings are the options that change the result.
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
from utils.provenance import RESIZED_BEFORE, Provenance, same_arch

# Recorded in checkpoints, but not compared
VERSIONS = {"torch": str(torch.__version__), "torchvision": version("torchvision")}
# Settings younger than some checkpoints, with the values that hold where none is recorded
YOUNGER = {"one_cycle": 0, "label_smoothing": 0, "resize": RESIZED_BEFORE}


def find(
    resume: str,
    path: Path,
    settings: Mapping[str, Any],
    *,
    source: Provenance | None = None,
    restart: bool = False,
    extendable: bool = False,
    first_epoch: int = 1,
    elsewhere: str = "--suffix",
) -> Path | None:
    """Find the checkpoint that a run continues.

    Args:
        resume: "" begins anew, "auto" continues `path` if it exists; else the checkpoint to
            continue.
        path: where this run saves.
        settings: every option of this run that changes the result, plain values.
        source: the features that it reads, if any.
        restart: replace the file at `path`, whatever it is.
        extendable: `epochs` may differ, because the learning rates so far do not depend on it.
        first_epoch: the value of "epoch" in a checkpoint after the first epoch.
        elsewhere: the option that names another place, for messages.

    Returns:
        The checkpoint, or None to begin anew.

    Raises:
        InputError: `path` is of another run or cannot be read; or the checkpoint that `resume`
            names is missing or of other features.
    """
    put_right(resume, path, restart=restart, first_epoch=first_epoch)
    other = None if resume in ("", "auto") else Path(resume)
    # A run that would overwrite another run's file is refused, resumed or not.
    if path.exists() and not restart:
        check(path, settings, source=source, extendable=extendable, elsewhere=elsewhere)
    # A checkpoint elsewhere is a beginning; what it was trained with is kept as history.
    if other is not None:
        state = checkpoint.load(other, mmap=True)  # raises now if it is missing or damaged
        if source:
            Provenance.from_record(state.get("source", {})).check(source, other)
        return other
    return path if resume and path.exists() and not restart else None


def put_right(resume: str, *paths: Path, restart: bool = False, first_epoch: int = 1) -> None:
    """Put right what a killed run left, and what of it was damaged since; see `recover`.

    A step calls it before it reads its own checkpoints.

    Args:
        resume: see `find`. A damaged file gives way to the state before it by "auto" alone.
        paths: this run's checkpoints, in one folder; of one state where they are saved together.
        restart: see `find`.
        first_epoch: see `find`.
    """
    # A run that was killed between two files of one state leaves them to be put right first.
    settle(paths[0].parent)
    if resume == "auto" and not restart:
        checkpoint.recover(*paths, first_epoch=first_epoch)


def read_own(path: Path) -> checkpoint.State:
    """Read this run's checkpoint; its tensors stay in the file.

    Raises:
        InputError: it cannot be read; the message names --restart.
    """
    try:
        return checkpoint.load(path, mmap=True)
    except InputError as error:
        raise InputError(f"{error}, or add --restart to replace it") from None


def check(
    path: Path,
    settings: Mapping[str, Any],
    *,
    source: Provenance | None = None,
    extendable: bool = False,
    elsewhere: str = "--suffix",
) -> None:
    """Refuse to replace or continue a checkpoint of another run.

    Args:
        path: the checkpoint.
        settings: see `find`. Settings that the file does not record are not compared: files of
            earlier versions and of the authors have few or none.
        source: see `find`.
        extendable: see `find`.
        elsewhere: see `find`.

    Raises:
        InputError: a setting differs; the message has the first one, with both values.
    """
    state = read_own(path)
    stored = recorded_settings(state)
    fitted = Provenance.from_record(state.get("source", {}))
    # The features come first: they say more than a setting that differs with them.
    difference = fitted.differs(source) if source else None
    for name, value in settings.items():
        if difference is None and name in stored and not (name == "epochs" and extendable):
            if agrees(stored, name, value):
                continue
            difference = f"{name} {stored[name]} instead of {value}"
    if difference:
        raise InputError(
            f"{path} is of another run, with {difference}; choose another {elsewhere}, or --restart"
            " to replace it"
        )


def check_images(
    path: Path, images: Mapping[str, Contents], *, elsewhere: str = "--suffix"
) -> None:
    """Refuse to replace or continue a checkpoint that was made of other images.

    Args:
        path: the checkpoint. One of an earlier version records no images and is accepted.
        images: this run's, by split: "train", "val".
        elsewhere: see `find`.

    Raises:
        InputError: images were edited, removed, added, renamed or moved to another class; the
            message names some.
    """
    recorded = read_own(path).get("images", {})
    for split, contents in images.items():
        if split not in recorded:
            continue
        if changes := Contents.from_record(recorded[split]).changes(contents):
            raise InputError(
                f"{path} was made of other {split} images; since then {changes}; put them back,"
                f" choose another {elsewhere}, or --restart to replace it"
            )


def recorded_settings(state: checkpoint.State) -> dict[str, Any]:
    """Give the settings that a checkpoint records, {} if none, with those younger than the file."""
    stored = state.get("settings")
    return {**YOUNGER, **stored} if stored else {}


def agrees(stored: Mapping[str, Any], name: str, value: Any) -> bool:
    """Whether recorded settings have this value; a factory's file may be moved (`same_arch`)."""
    if name not in stored:
        return False
    recorded = stored[name]
    if isinstance(recorded, str) and isinstance(value, str):
        return same_arch(recorded, value)
    return bool(recorded == value)


def history(state: checkpoint.State, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give a checkpoint's record of epochs that were trained with other settings.

    Args:
        state: the checkpoint that a run continues, or an empty one.
        settings: of this run.

    Returns:
        The earlier stretches of epochs, each with its `settings` and its last `epoch`.
    """
    before = list(state.get("history", []))
    stored = recorded_settings(state)
    # An empty state has no settings: it stands for this run's own.
    if stored and stored != {**YOUNGER, **settings}:
        before.append({"epoch": state["epoch"], "settings": state["settings"]})
    return before


def twin(path: Path, settings: Mapping[str, Any]) -> Path | None:
    """Find, in the folder of a run's checkpoint, one that differs in the seed alone.

    It is the other net of a pair.
    """
    for other in sorted(path.parent.glob("checkpoint_*.pth.tar")):
        with contextlib.suppress(InputError):  # a file that cannot be read is no twin
            stored = recorded_settings(checkpoint.load(other, mmap=True))
            if {name for name in settings if not agrees(stored, name, settings[name])} == {"seed"}:
                return other
    return None
