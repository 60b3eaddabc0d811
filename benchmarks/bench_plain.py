"""The suite beside a plain implementation of the released
procedure and beside its bare convolutions, in one run.

    python -m benchmarks.bench_plain [ROW …] [--results NAME]

vgg16_bn with random weights, cut at features.30, photos of 224 pixels from the folder that
KC_REAL_DATA names, float32. What is compared takes turns, and medians count: of the processor's
seconds, because the machine may be shared (set OMP_NUM_THREADS=1), or with --wall, on a machine
that does nothing else, of the clock's. Whole runs are processes of their own, start-up included:
the fewer --images, the more it weighs. The plain procedure is `benchmarks.plain`; the roofline is
the same convolutions alone, on inputs that lie ready in `channels_last` order, or what the table
says. With --results, NAME.json keeps every row's last run and NAME.md has the table of all of them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import turns
from benchmarks.contests import BEST, OURS, PLAIN, ROWS, Row
from benchmarks.machine import ran_on
from benchmarks.turns import Turn
from utils.files import read_json, write_json


def measure(row: Row, images: int, rounds: int) -> dict[str, Any]:
    """Let what is compared take turns; give medians."""
    with tempfile.TemporaryDirectory() as folder:
        contest = row.prepare(Path(folder), images)
        taken: dict[str, list[Turn]] = {name: [] for name in contest}
        for _ in range(rounds):
            for name, take in contest.items():
                taken[name].append(take())
    numbers: dict[str, Any] = {
        "images": images,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    numbers["clock"] = turns.clock.__name__
    for name, of_turns in taken.items():
        numbers[name] = statistics.median(turn.seconds for turn in of_turns)
        numbers[f"{name}_turns"] = [turn.seconds for turn in of_turns]
        numbers[f"{name}_peak_bytes"] = max(turn.peak_bytes for turn in of_turns)
    return numbers


def table(results: dict[str, dict[str, Any]]) -> str:
    """Give the Markdown table of all rows that were measured."""
    lines = [
        "| what | images | suite, s | plain, s | roofline, s | plain / suite | target | roofline /"
        " suite | target |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in ROWS.items():
        if values := results.get(name):
            ours, slow, best = (values[key] for key in (OURS, PLAIN, BEST))
            lines.append(
                f"| {row.title} | {values['images']} | {ours:.2f} | {slow:.2f} | {best:.2f}"
                f" ({row.roofline}) | {slow / ours:.2f} | {row.of_plain} | {best / ours:.0%} |"
                f" {row.of_roofline:.0%} |"
            )
    peaks = [
        f"{ROWS[name].title}: {values['suite_peak_bytes'] / 1e9:.2f} GB, plain"
        f" {values['plain_peak_bytes'] / 1e9:.2f}"
        for name, values in results.items()
        if values["suite_peak_bytes"]
    ]
    return "\n".join([*lines, "", *(f"most GB held by {peak}; " for peak in peaks)])


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all"
    )
    parser.add_argument("--images", type=int, help="of a turn; default: each row's own")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--wall", action="store_true", help="time by the clock; default: by the processor"
    )
    parser.add_argument(
        "--results",
        help="keep the numbers of this and earlier runs, and the table, as NAME.json and .md",
    )
    args = parser.parse_args(argv)
    if args.wall:
        turns.clock = time.perf_counter
    where = ran_on(__file__, argv, "torch", "torchvision")
    kept = Path(f"{args.results}.json")
    results = read_json(kept) if args.results and kept.exists() else {}
    for name in args.rows or ROWS:
        if ROWS[name].of_photos and "KC_REAL_DATA" not in os.environ:
            print(f"{name} needs real photos: name their folder by KC_REAL_DATA; skipped")
            continue
        results[name] = measure(ROWS[name], args.images or ROWS[name].images, args.rounds)
        print(json.dumps({name: results[name]}), flush=True)
    text = f"{table(results)}\n\n{where}\n"
    print(text)
    if args.results:
        write_json(kept, results)
        kept.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
