"""Results that are computed once and kept in a folder, each under what it was made of."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.errors import InputError

SUM = "content_sha256"  # of the rest of a file


def digest(identity: Any) -> str:
    """Give 16 hexadecimal digits that stand for plain values, whatever the order of their keys."""
    text = json.dumps(identity, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Kept:
    """A folder of results. A name and an identity find one; another identity is another result.

    Args:
        folder: made with the first result; None: nothing is kept.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def path(self, name: str, identity: Any) -> Path | None:
        """Say where a result is, or would be."""
        return None if self.folder is None else self.folder / f"{name}_{digest(identity)}.pth"

    def holds(self, name: str, identity: Any) -> bool:
        """Whether a result is there."""
        path = self.path(name, identity)
        return path is not None and path.is_file()

    def get(
        self, name: str, identity: Any, compute: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any]:
        """Give a result: the one that is there, or else a computed one, which is then kept.

        Args:
            name: the first part of the file's name.
            identity: plain values, all that the result depends on.
            compute: gives tensors and plain values.
        """
        path = self.path(name, identity)
        if path is not None and path.is_file():
            # A damaged file is no loss: it is computed anew
            with contextlib.suppress(InputError):
                stored = checkpoint.load(path)
                if stored.pop(SUM, None) == checkpoint.content_sha256(stored):
                    return stored
        result = dict(compute())
        if path is not None:
            checkpoint.save(path, result | {SUM: checkpoint.content_sha256(result)})
        return result
