"""Print the table of steps on a real GPU: whether they run, how near the CPU's numbers, what waits.

    python -m tests.accelerator.on_gpu [--amp bf16]

Each step runs on small photos: on the CPU in batches of 4, on CUDA in batches of 4 and of 8, each
device in a process of its own. A step reads what the steps before it wrote on its device, so a
distance holds theirs. It is the largest, over the files that a step writes and the entries of a
file, of ‖GPU − CPU‖ / ‖CPU‖. Waits are the warnings of `torch.cuda.set_sync_debug_mode`; batches of 4
in place of 8 bring so many more, divided by the steps or batches that they bring (the simulated
accelerator counted these). Prints Markdown.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine import ran_on
from tests.accelerator import steps
from tests.accelerator.table import make_photos
from tests.same_numbers import ROOT, VOLATILE, compared, read

SYNC = re.compile("called a synchronizing CUDA operation")
HEADER = (
    "| step | on CUDA | largest distance from the CPU | of which file | waits, batches of 4 | of 8 |\n"
    "|---|---|---:|---|---:|---:|"
)


def run_here(folder: Path, photos: Path, batch: int, amp: str) -> None:
    """Run the steps on this process's device, and write what happened to FOLDER.json.

    A step that fails is said, and the next one begins.
    """
    report: dict[str, Any] = {}
    steps.lay_out(folder, photos)
    for name, words in steps.command_lines(batch, amp).items():
        before = set(compared(folder))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            try:
                steps.run_line(folder, name, words)
                failure = ""
            except BaseException:
                failure = traceback.format_exc()
        lines = collections.Counter(
            f"{os.path.relpath(warning.filename, ROOT)}:{warning.lineno}"
            for warning in caught
            if SYNC.search(str(warning.message))
        )
        report[name] = {
            "failure": failure,
            "waits": lines.total(),
            "lines": lines.most_common(8),
            "files": sorted(set(compared(folder)) - before),
        }
    folder.with_suffix(".json").write_text(json.dumps(report, indent=1))


def distances(expected: Any, value: Any, name: str = "") -> Iterator[tuple[float, str]]:
    """Give ‖value − expected‖ / ‖expected‖ of every array of numbers, inf where forms differ."""
    if isinstance(expected, dict) and isinstance(value, dict):
        for key in expected.keys() & value.keys() - VOLATILE:
            yield from distances(expected[key], value[key], f"{name}/{key}")
    elif isinstance(expected, list | tuple) and isinstance(value, list | tuple):
        for index, pair in enumerate(zip(expected, value, strict=False)):
            yield from distances(*pair, f"{name}/{index}")
    elif isinstance(expected, torch.Tensor | np.ndarray | float):
        first, second = (
            torch.as_tensor(item).double().flatten().cpu() for item in (expected, value)
        )
        if first.shape != second.shape:
            yield float("inf"), name
        elif (norm := first.norm().item()) > 0:
            yield (second - first).norm().item() / norm, name


def main(argv: list[str] | None = None) -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    parser.add_argument("--worker", nargs=3, metavar=("FOLDER", "PHOTOS", "BATCH"))
    args = parser.parse_args(argv)
    if args.worker:
        torch.set_num_threads(1)
        run_here(Path(args.worker[0]), Path(args.worker[1]), int(args.worker[2]), args.amp)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, photos = Path(name), Path(name, "photos")
        make_photos(photos)
        workers = []
        for place, batch, gpus in (("cpu", 4, ""), ("gpu4", 4, None), ("gpu8", 8, None)):
            environment = dict(os.environ)
            if gpus is not None:
                environment["CUDA_VISIBLE_DEVICES"] = gpus
            words = [sys.executable, "-m", "tests.accelerator.on_gpu", "--amp", args.amp]
            words += ["--worker", str(folder / place), str(photos), str(batch)]
            workers.append(
                subprocess.Popen(words, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
            )
        for worker in workers:
            worker.wait()
        reports = {
            place: json.loads((folder / f"{place}.json").read_text())
            for place in ("cpu", "gpu4", "gpu8")
        }
        print(f"--amp {args.amp}\n\n{HEADER}")
        for step, facts in reports["gpu4"].items():
            found = list(distances_of_files(folder, facts["files"]))
            distance, where = max(found, default=(float("nan"), "none"))
            ended = "failed" if facts["failure"] else "to its end"
            print(
                f"| {step} | {ended} | {distance:.1e} | {where} | {facts['waits']}"
                f" | {reports['gpu8'][step]['waits']} |"
            )
        print()
        for step, facts in reports["gpu4"].items():
            print(f"- {step}: {'; '.join(f'{line} {times}' for line, times in facts['lines'])}")
        for step, facts in {**reports["cpu"], **reports["gpu4"]}.items():
            if facts["failure"]:
                print(f"\n{step}:\n{facts['failure']}", file=sys.stderr)
    where = ran_on(__file__, argv, "torch")
    print("\n" + where.replace("benchmarks.", "tests.accelerator."))


def distances_of_files(folder: Path, files: list[str]) -> Iterator[tuple[float, str]]:
    """Give the largest distance of each file that both devices wrote."""
    cpu, gpu = compared(folder / "cpu"), compared(folder / "gpu4")
    for file in files:
        if file in cpu and not any(part in file for part in steps.OTHERWISE):
            expected, value = read(cpu[file]), read(gpu[file])
            distance, entry = max(distances(expected, value), default=(0.0, ""))
            yield distance, f"`{file}` {entry}"


if __name__ == "__main__":
    main()
