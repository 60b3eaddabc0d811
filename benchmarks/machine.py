"""What a benchmark ran on and how: the line below its table."""

import datetime
import importlib
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch


def ran_on(script: str, argv: Sequence[str] | None, *libraries: str, cuda: bool = False) -> str:
    """Name the processor, threads, other programs' load, versions, date and command.

    Call it before anything is measured, so that the load average is not the benchmark's own.

    Args:
        script: the benchmark's `__file__`.
        argv: what its main was given; None: the command line.
        libraries: modules whose versions matter, beside Python.
        cuda: a GPU computes.
    """
    processor = torch.cuda.get_device_name() if cuda else f"{platform.machine()} CPU"
    versions = ", ".join(
        f"{name} {importlib.import_module(name).__version__}" for name in libraries
    )
    words = shlex.join(sys.argv[1:] if argv is None else argv)
    return (
        f"{processor}, {os.cpu_count()} cores, threads: {torch.get_num_threads()}, "
        f"load average {os.getloadavg()[0]:.1f} before the run; "
        f"Python {platform.python_version()}, {versions}; {datetime.date.today()}; "
        f"`python -m benchmarks.{Path(script).stem}{' ' if words else ''}{words}`"
    )
