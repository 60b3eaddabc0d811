"""Progress: a bar on a terminal, a plain line every half minute in a log, with the time left."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 30.0


class Progress(Iterable[Item]):
    """An iteration that shows its progress, and behind it the text `note`."""

    def __init__(
        self, items: Iterable[Item], label: str, *, total: int | None = None, quiet: bool = False
    ) -> None:
        """Prepare.

        Args:
            items: are iterated over.
            label: is shown in front.
            total: the number of items, if `items` has no length.
            quiet: show nothing (processes other than the main one).
        """
        self.items, self.label, self.quiet, self.note = items, label, quiet, ""
        self.total = len(items) if total is None and isinstance(items, Sized) else total

    def __iter__(self) -> Iterator[Item]:
        if self.quiet:
            return iter(self.items)
        return self._bar() if sys.stderr.isatty() else self._lines()

    def _bar(self) -> Iterator[Item]:
        """Iterate with tqdm's bar."""
        with tqdm(self.items, self.label, self.total, leave=False, dynamic_ncols=True) as bar:
            for item in bar:
                yield item
                if self.note:
                    bar.set_postfix_str(self.note, refresh=False)

    def _lines(self) -> Iterator[Item]:
        """Iterate with a line to stderr every `SECONDS_BETWEEN_LINES`."""
        begun = last = time.monotonic()
        for done, item in enumerate(self.items, start=1):
            yield item
            now = time.monotonic()
            if now - last >= SECONDS_BETWEEN_LINES:
                last = now
                line = f"{self.label}: {done}/{self.total or '?'}"
                if self.total:
                    line += f", {(now - begun) / done * (self.total - done):.0f} s left"
                if self.note:
                    line += f", {self.note}"
                print(line, file=sys.stderr, flush=True)


class Meter:
    """Show how far a command is that does work of several kinds, and the time that is left.

    Args:
        label: said in front.
        quiet: show nothing.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self.label, self.quiet, self.note = label, quiet, ""
        self.total = self.done = 0.0
        self._began = self._last = time.monotonic()
        self._skipped = 0.0

    def expect(self, amount: float) -> None:
        """Add to what there is to do, in any unit that is the same for all kinds of work."""
        self.total += amount

    def skip(self, amount: float) -> None:
        """Take off what need not be done, because it is there."""
        self._skipped += amount
        self.add(amount)

    def add(self, amount: float) -> None:
        """Add to what is done; say so from time to time."""
        self.done += amount
        now = time.monotonic()
        interactive = sys.stderr.isatty()
        if self.quiet or now - self._last < (1.0 if interactive else SECONDS_BETWEEN_LINES):
            return
        self._last = now
        # What was kept took no time: the rate is that of the rest.
        worked = self.done - self._skipped
        left = ""  # nothing was worked yet that says how long the rest takes
        if worked:
            seconds = (now - self._began) / worked * max(0.0, self.total - self.done)
            left = f", {seconds:.0f} s left"
        share = min(1.0, self.done / (self.total or 1.0))
        note = f", {self.note}" if self.note else ""
        print(
            f"{self.label}: {100 * share:.0f} %{left}{note}",
            file=sys.stderr,
            flush=True,
            end="\r" if interactive else "\n",
        )
