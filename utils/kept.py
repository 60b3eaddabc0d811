"""Results that are computed once: kept in a folder, each under what it was made of; or kept only
until a long command is at its end, in a file by which it goes on.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from utils import checkpoint
from utils.errors import InputError
from utils.files import KEEP, earlier
from utils.runs import SECONDS_BETWEEN_SAVES

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


class Remains:
    """What a long command computed before it was interrupted: results by name, and what was left of
    the one in hand. All of it stands in one file, which goes where the command is at its end.

    Args:
        path: the file; None: nothing is kept.
        identity: plain values, all that the results depend on.
        active: False in processes that write nothing.
        taken_up: go on with what is there.
    """

    def __init__(
        self, path: Path | None, identity: Any, *, active: bool = True, taken_up: bool = True
    ) -> None:
        self.path, self._active = path, active
        self._state: checkpoint.State = {"identity": identity, "results": {}, "unfinished": {}}
        self._last_saved = time.monotonic()
        if path is None or not taken_up:
            return
        checkpoint.recover(path)
        if path.exists():
            # A damaged file is no loss but of time
            with contextlib.suppress(InputError):
                stored = checkpoint.load(path)
                # Those of other options, nets or images are not taken up, and are replaced.
                if stored.get("identity") == identity:
                    self._state = stored

    def holds(self, name: str) -> bool:
        """Whether a result is there."""
        return name in self._state["results"]

    def get(self, name: str, compute: Callable[[], Any]) -> Any:
        """Give a result, tensors and plain values: the one that is there, or else a computed one,
        which is then kept.
        """
        results = self._state["results"]
        if name not in results:
            results[name] = compute()
            self._state["unfinished"] = {}
            self._save()
        return results[name]

    def unfinished(self, name: str) -> checkpoint.State:
        """Give what was left of a result, or nothing."""
        return self._state["unfinished"].get(name, {})

    def leave(self, name: str, state: checkpoint.State) -> None:
        """Keep what a result goes on from."""
        self._state["unfinished"] = {name: state}
        self._save()

    @property
    def overdue(self) -> bool:
        """Whether the file is older than `SECONDS_BETWEEN_SAVES`."""
        return time.monotonic() - self._last_saved > SECONDS_BETWEEN_SAVES

    def remove(self) -> None:
        """Forget all: it is written elsewhere."""
        if self.path and self._active:
            for path in (self.path, earlier(self.path)):
                path.unlink(missing_ok=True)

    def _save(self) -> None:
        if self.path and self._active:
            checkpoint.save(self.path, self._state, keep=KEEP)
            self._last_saved = time.monotonic()
