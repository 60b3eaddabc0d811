"""What every script takes before it works:
seconds of `--help` beside those of `import torch`, which nothing can save.

    python -m benchmarks.bench_start

Each is a process of its own; they take turns, and the medians of the processor's seconds count,
because the machine may be shared. Prints Markdown.
"""

import argparse
import os
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import ran_on

ROOT = Path(__file__).parents[1]
FLOOR = "import torch"


def processor_seconds(words: list[str]) -> float:
    """Run Python with some words."""
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{shlex.join(words)} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def main(argv: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT", help="default: all of them")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch")
    names = args.scripts or sorted(path.name for path in ROOT.glob("*.py"))
    commands = {FLOOR: ["-c", FLOOR]} | {name: [name, "--help"] for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds + 1):  # the first round writes what Python compiles
        for name, words in commands.items():
            seconds[name].append(processor_seconds(words))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print("| start of | s, median (lowest to highest) | over `import torch` |\n|---|---:|---:|")
    for name, values in seconds.items():
        over = f"{medians[name] / medians[FLOOR] - 1:+.0%}"
        print(
            f"| {name} | {medians[name]:.2f} ({min(values[1:]):.2f} to {max(values[1:]):.2f}) |"
            f" {over} |"
        )
    print(f"\n{where}")


if __name__ == "__main__":
    main()
