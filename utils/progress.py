"""Progress: a bar with time left on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class Progress(Iterable[Item]):
    """Iterate over `items` and show how far it is; `note` is shown behind it."""

    def __init__(
        self, items: Iterable[Item], label: str, *, total: int | None = None, quiet: bool = False
    ) -> None:
        """Prepare.

        Args:
            items: what to iterate over.
            label: said in front.
            total: length, where `items` has none.
            quiet: show nothing (processes other than the main one).
        """
        self.items, self.label, self.quiet, self.note = items, label, quiet, ""
        self.total = len(items) if total is None and isinstance(items, Sized) else total

    def __iter__(self) -> Iterator[Item]:
        if self.quiet:
            return iter(self.items)
        return self._bar() if sys.stderr.isatty() else self._lines()

    def _bar(self) -> Iterator[Item]:
        with tqdm(self.items, self.label, self.total, leave=False, dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                if self.note:
                    bar.set_postfix_str(self.note, refresh=False)

    def _lines(self) -> Iterator[Item]:
        begun = last = time.monotonic()
        for done, item in enumerate(self.items, start=1):
            yield item
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                left = (
                    f", {(now - begun) / done * (self.total - done):.0f} s left"
                    if self.total
                    else ""
                )
                note = f", {self.note}" if self.note else ""
                print(
                    f"{self.label}: {done}/{self.total or '?'}{left}{note}",
                    file=sys.stderr,
                    flush=True,
                )
