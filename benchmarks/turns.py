"""How a turn is timed: a function here or a process of its own,
by the processor's seconds or the clock's.
"""

import contextlib
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


def processor_seconds() -> float:
    """Give what this process and those that it started and that ended have computed."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


# That all turns are timed by; `bench_plain` may take the wall's
clock: Callable[[], float] = processor_seconds


class Turn(NamedTuple):
    """What one turn took: seconds, and of a process of its own the most memory, bytes."""

    seconds: float
    peak_bytes: int = 0


def process(*words: object) -> Turn:
    """Run Python with some words."""
    began, peak = clock(), 0
    with subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL) as child:
        while child.poll() is None:
            # Asked while it runs: afterwards the process has no status.
            peak = max(peak, peak_bytes(child.pid))
            time.sleep(0.05)
    if child.returncode:
        raise RuntimeError(f"{shlex.join(map(str, words))} ended with {child.returncode}")
    return Turn(clock() - began, peak)


def peak_bytes(pid: int) -> int:
    """Give the most memory that a process held since it began; 0 where it is over.

    Not what `resource` says of children: that counts what their parent held when it started them.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    return 0


def timed(function: Callable[[], object], times: float = 1) -> Turn:
    """Time a function; it stands for `times` as much."""
    began = clock()
    function()
    return Turn((clock() - began) * times)
