"""Run something in a fork of this process, which has PyTorch already: what it prints, how it ends."""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

SECONDS = 120  # after which a process hangs
MOMENTS = ("fsync", "replace")


class End(NamedTuple):
    """How a process ended.

    Attributes:
        code: its exit code; negative: the signal that killed it.
        out, err: what it printed.
        moments: how often it flushed a file or gave one its name.
        modules: that it imported.
        seconds: that it took.
    """

    code: int
    out: str
    err: str
    moments: int
    modules: list[str]
    seconds: float


@dataclass
class Apart:
    """A process that runs something in a folder.

    Args:
        main: what it runs.
        work: the folder.
        arm: is called in the process before.
        name: of the files with what it prints, beside the folder.
        script: as whose process it appears.
    """

    main: Callable[[], object]
    work: Path
    arm: Callable[[], object] = lambda: None
    name: str = "printed"
    script: str = "none.py"
    pid: int = field(init=False)
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = time.monotonic()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._be_apart()

    @property
    def printed(self) -> list[Path]:
        """The files of its output, of its errors and of its record."""
        return [
            self.work.parent / f"{self.work.name}.{self.name}.{kind}"
            for kind in ("out", "err", "record")
        ]

    def end(self, kill: tuple[int, float] | None = None) -> End:
        """Wait until it ends.

        Args:
            kill: a signal, and the seconds after which it comes.

        Raises:
            TimeoutError: it takes too long; it is killed.
        """
        due = None if kill is None else self.began + kill[1]
        while True:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            now = time.monotonic()
            if ended:
                break
            if kill and due is not None and now >= due:
                os.kill(self.pid, kill[0])
                due = None
            if now - self.began > SECONDS:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                raise TimeoutError(f"{self.main} takes over {SECONDS} s")
            time.sleep(0.002)
        code = os.waitstatus_to_exitcode(status)
        out, err, record = (path.read_text() if path.exists() else "" for path in self.printed)
        for path in self.printed:
            path.unlink(missing_ok=True)
        moments, modules = json.loads(record) if record else (0, [])
        return End(code, out, err, moments, modules, now - self.began)

    def _be_apart(self) -> NoReturn:
        """Be that process; end as the interpreter would."""
        code, before = 0, set(sys.modules)
        count: list[int] = []
        try:
            os.chdir(self.work)
            for number, path in enumerate(self.printed[:2], start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            sys.stdout, sys.stderr = (open(number, "w") for number in (1, 2))  # noqa: PTH123, SIM115
            count = _count_moments()
            sys.argv = [self.script]
            self.arm()
            self.main()
        except SystemExit as end:
            code = 1 if isinstance(end.code, str) else int(end.code or 0)
            if isinstance(end.code, str):
                print(end.code, file=sys.stderr)
        except BaseException:
            code = 70
            traceback.print_exc()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        with contextlib.suppress(OSError):
            record = [len(count), sorted(set(sys.modules) - before)]
            self.printed[2].write_text(json.dumps(record))
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


_moments: list[Callable[[int], object]] = []


def _count_moments() -> list[int]:
    """Count how often this process flushes a file or gives one its name, and act there."""
    count: list[int] = []

    def watch(name: str) -> None:
        original = getattr(os, name)

        def watched(*args: Any, **more: Any) -> Any:
            for act in _moments:
                act(len(count))
            count.append(1)
            return original(*args, **more)

        setattr(os, name, watched)

    for name in MOMENTS:
        watch(name)
    return count


def at_moment(number: int, act: Callable[[], object]) -> None:
    """Let something happen in this process at a moment of `Cell.a_moment`."""
    _moments.append(lambda now: act() if now == number else None)
