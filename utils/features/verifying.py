"""All files below a folder read anew, each by its kind: which are not what was written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils import checkpoint, kept, sums
from utils.arrays import map_array, read_arrays
from utils.errors import InputError
from utils.files import read_json
from utils.runs import read_metrics

REMEDY = "make it again"


def find_damaged(folder: Path) -> Iterator[tuple[Path, str | None]]:
    """Read every file of a known kind.

    Of checkpoints, features, photo stores and kept results all bytes are held against their sums;
    of others the form alone, since they have none.

    Yields:
        The file, and what is wrong with it; None: nothing is.
    """
    for path in sorted(folder.rglob("*")):
        ending = next((ending for ending in READERS if path.name.endswith(ending)), None)
        if ending is None or path.name.startswith(".") or not path.is_file():
            continue
        try:
            READERS[ending](path)
        except InputError as error:
            yield path, str(error)
        else:
            yield path, None


def _read_checkpoint(path: Path) -> None:
    state = checkpoint.load(path)
    if (written := state.pop(kept.SUM, None)) and written != checkpoint.content_sha256(state):
        raise InputError(f"{path} has other values than were written; {REMEDY}")
    weights = state.get("state_dict")
    if isinstance(weights, dict) and (name := checkpoint.first_not_finite(weights)):
        raise InputError(f"{path} holds a net that diverged: {name} is not finite; {REMEDY}")


def _read_record(path: Path) -> None:
    record = read_json(path)
    if isinstance(record, dict) and sums.SUMS in record:
        sums.check(path, record, REMEDY, anew=True)


# By the end of a file's name
READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys((".pth.tar", ".pth", ".pt7", ".safetensors"), _read_checkpoint),
    ".npy": lambda path: map_array(path, REMEDY),
    ".npz": lambda path: read_arrays(path, REMEDY),
    "metrics.jsonl": read_metrics,
    ".json": _read_record,
}
