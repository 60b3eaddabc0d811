"""Instabilities over a grid of steps and spare channels, and where doubling both changes nothing.

    python -m benchmarks.bench_width FEATURES … --lines FILE.jsonl [--amp bf16]

FEATURES are folders that `ConvOutput.py --t_or_v both` wrote. Of each, Trans-Nets of three layers
are fitted with M = 0, C/2, C and 2 C spare channels in 200, 400 and 800 steps; the rest is the
product's default. Every fit is one line of FILE.jsonl; what stands there is not fitted again.
Prints Markdown.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset

from benchmarks.machine import ran_on
from consistency.bootstrap import bootstrap
from consistency.budget import Budget
from consistency.calibration import instability_of
from consistency.fitting import Beside, Fitting, Pairs
from consistency.reconstruction import image_errors
from consistency.trans_nets import between, channels_of
from models.pair import read_stored
from utils.data.loaders import make_loader
from utils.features.cache import open_features
from utils.runtime import Runtime, seed_everything, start

LAYERS, STEPS, WIDTHS = 3, (200, 400, 800), (0, 0.5, 1, 2)  # widths in units of x's channels
ALPHA = 0.1


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the fits that are there."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )


def interval_of(net: Any, loader: Any, runtime: Runtime) -> list[float | None]:
    """Measure an instability and its 95 % interval over the images."""
    errors = image_errors(net, loader, read_stored, runtime)
    interval = bootstrap(instability_of, [errors])["instability"]
    return [interval.value, interval.low, interval.high]


def fit_grid(folder: str, path: Path, runtime: Runtime) -> None:
    """Fit what is missing of one pair."""
    train, val = (open_features(folder, split=split) for split in ("train", "val"))

    def load(chosen: Tensor, shuffle: bool = False) -> Any:
        return make_loader(Subset(train, chosen.tolist()), 64, shuffle=shuffle)

    unseen = make_loader(val, 64)
    pairs, shared = Pairs(load, read_stored, torch.arange(len(train)), unseen), dict[bool, Beside]()
    channels = channels_of(train.shape_a)
    measured = {(line["pair"], line["hidden"], line["steps"]) for line in read_lines(path)}
    for width in WIDTHS:
        for steps in STEPS:
            name, hidden = Path(folder).name, int(width * channels)
            if (name, hidden, steps) in measured:
                continue
            began = time.process_time()
            seed_everything(0)
            net = between(
                train.shape_a, train.shape_b, layers=LAYERS, standardise=True, hidden=hidden
            )
            fitting = Fitting(
                [net],
                pairs,
                Budget(steps=steps),
                runtime,
                alphas=[torch.full((LAYERS - 1,), ALPHA)],
                beside=shared,
            )
            fitting.run(f"{name}, M {hidden}, {steps} steps")
            reference = shared[False].reference
            line = {
                "pair": name,
                "channels": channels,
                "hidden": hidden,
                "steps": steps,
                "seconds": time.process_time() - began,
                "held_out": interval_of(net, unseen, runtime),
                "fitted": interval_of(net, load(pairs.fitted), runtime),
                "record": fitting.record(0),
                "linear": reference.instability if reference else None,
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def print_table(lines: list[dict[str, Any]]) -> None:
    """Print every fit, and of each pair where doubling both
    changes the held-out error by less than its interval.
    """
    print("| pair | M | steps | fitted images | held-out images | 95 % | linear | CPU s |")
    print("|---|---:|---:|---:|---:|---|---:|---:|")
    for line in sorted(lines, key=lambda line: (line["pair"], line["hidden"], line["steps"])):
        value, low, high = line["held_out"]
        print(
            f"| {line['pair']} | {line['hidden']} | {line['steps']} | {line['fitted'][0]:.4f} |"
            f" {value:.4f} | [{low:.4f}, {high:.4f}] | {line['linear']:.4f} |"
            f" {line['seconds']:.0f} |"
        )
    print()
    for pair in sorted({line["pair"] for line in lines}):
        of_pair = {
            (line["hidden"], line["steps"]): line["held_out"]
            for line in lines
            if line["pair"] == pair
        }
        ends = [
            (hidden, steps)
            for (hidden, steps), (value, low, high) in sorted(of_pair.items())
            if (2 * hidden, 2 * steps) in of_pair
            and hidden
            and abs(of_pair[2 * hidden, 2 * steps][0] - value) < (high - low) / 2
        ]
        verdict = (
            f"at its end from M = {ends[0][0]}, {ends[0][1]} steps on"
            if ends
            else "nowhere at its end in this grid"
        )
        print(f"- {pair}: {verdict}")


def main(argv: list[str] | None = None) -> None:
    """Fit, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("features", nargs="*", metavar="FEATURES")
    parser.add_argument(
        "--lines", type=Path, required=True, metavar="FILE", help="one JSON line a fit"
    )
    parser.add_argument(
        "--amp", choices=["off", "bf16"], default="off", help="precision of the steps"
    )
    args = parser.parse_args(argv)
    where, runtime = ran_on(__file__, argv, "torch"), start([], None, 0, args.amp)
    for folder in args.features:
        fit_grid(folder, args.lines, runtime)
    print_table(read_lines(args.lines))
    print(where)


if __name__ == "__main__":
    main()
