"""SIGINT and SIGTERM: the step in hand is ended and its state is saved; a second one ends at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal ends the run.

    Attributes:
        code: the exit code, 128 and the signal's number: 130 of Ctrl-C, 143 of a cluster's SIGTERM.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


class _Stopping:
    """What signals a process has had. A DataLoader's worker inherits the handler and a copy."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin a command, which had no signal yet."""
        self.process, self.asked, self.waits = os.getpid(), 0, False

    def handle(self, number: int, _frame: object) -> None:
        """Take a signal."""
        if os.getpid() != self.process:
            # Ctrl-C reaches the workers too, and their process may need one more batch of them
            if number == signal.SIGTERM:
                raise Interrupted(number)
            return
        if self.asked:
            sys.stderr.write("\nended at once; what was saved is whole\n")
            sys.stderr.flush()
            os._exit(128 + number)
        self.asked = number
        if not self.waits:
            raise Interrupted(number)
        sys.stderr.write("\nending after what is in hand; once more ends at once\n")
        sys.stderr.flush()


_now = _Stopping()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle both signals in a command; outside of the main thread nothing can be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _now.begin()
    before = {number: signal.signal(number, _now.handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _now.begin()


@contextlib.contextmanager
def after_this_step() -> Iterator[None]:
    """Let the first signal wait meanwhile; the block asks `asked` where it can be left."""
    _now.waits = True
    try:
        yield
    finally:
        _now.waits = False


@contextlib.contextmanager
def after_this_block() -> Iterator[None]:
    """Let the first signal wait for the end of a short block, and raise it there.

    PyTorch's writer of archives cannot be left within: the interpreter would abort.

    Raises:
        Interrupted: a signal came meanwhile, and nobody else waits for it.
    """
    had, waited = _now.asked, _now.waits
    _now.waits = True
    try:
        yield
    finally:
        _now.waits = waited
    if _now.asked != had and not waited:
        raise Interrupted(_now.asked)


def asked() -> int:
    """Give the number of the signal that this process has had, or 0."""
    return _now.asked
