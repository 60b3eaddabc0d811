"""What every script takes to answer `--help` and a wrong option:
processor seconds, beside those of `import torch`, which none of them does.

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
PYTORCH = "import torch"
NOTHING = subprocess.DEVNULL


def processor_seconds(words: list[str]) -> float:
    """Run Python with some words."""
    with subprocess.Popen(
        [sys.executable, *words], cwd=ROOT, stdout=NOTHING, stderr=NOTHING
    ) as process:
        # `wait4` alone gives what this one child used.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, 1, 2):
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
    commands = {PYTORCH: ["-c", PYTORCH]}
    for name in names:
        commands |= {f"{name} {option}": [name, option] for option in ("--help", "--wrong_option")}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(args.rounds + 1):  # the first round writes what Python compiles
        for name, words in commands.items():
            seconds[name].append(processor_seconds(words))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print("| answer of | s, median (lowest to highest) | of `import torch` |\n|---|---:|---:|")
    for name, values in seconds.items():
        share = f"{medians[name] / medians[PYTORCH]:.0%}"
        print(
            f"| {name} | {medians[name]:.2f} ({min(values[1:]):.2f} to {max(values[1:]):.2f}) |"
            f" {share} |"
        )
    print(f"\n{where}")


if __name__ == "__main__":
    main()
