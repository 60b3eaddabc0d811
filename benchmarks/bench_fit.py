"""Held-out instability against seconds: the released procedure,
the closed form, and the linear reference.

    python -m benchmarks.bench_fit [FEATURES] [--out FILE.md]

FEATURES is what `ConvOutput.py --t_or_v both` wrote; default: those of `make demo`. The fits are
those of Training_TransNet.py itself, run one after the other in folders of their own, K = 2.
Seconds count the whole of its `main`, with one measuring at the end, without the start-up of Python
and without the linear reference beside the fit.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import Training_TransNet
from benchmarks.machine import ran_on
from utils import checkpoint, runs

# Its 1e-4 is for 1,000 epochs of 5,994 images
RELEASED = "--alpha [0.1,0.1] --lr 0.001 --logspace 2"
SOLVED = "--alpha [0.1,0.1] --standardise --lr 3e-4 --logspace 1 --hidden 0"
DEFAULT = "--alpha [0.1,0.1] --standardise --solve"


class Fit(NamedTuple):
    """One way to fit.

    Attributes:
        title: in the table.
        options: of Training_TransNet.py.
        epochs: how many; None: a budget in steps.
    """

    title: str
    options: str
    epochs: int | None


FITS = [
    *(Fit(f"released procedure, {epochs} epochs", RELEASED, epochs) for epochs in (15, 60, 200)),
    *(
        Fit(f"--standardise --solve, {epochs} epochs", f"{SOLVED} --solve", epochs)
        for epochs in (0, 5, 15)
    ),
    Fit("--standardise --solve (400 steps)", DEFAULT, None),
    Fit("--standardise --solve --hidden 0 (400 steps)", f"{DEFAULT} --hidden 0", None),
    Fit(
        "linear reference (--layers 1 --standardise --solve)", "--layers 1 --standardise --solve", 0
    ),
]


def measure(fit: Fit, features: str) -> tuple[float, float]:
    """Fit once; give the held-out instability and the seconds."""
    with tempfile.TemporaryDirectory() as out:
        budget = [] if fit.epochs is None else ["--epochs", str(fit.epochs)]
        words = ["--convOut_path", features, *fit.options.split(), *budget, "--out", out]
        began = time.perf_counter()
        Training_TransNet.main(
            [*words, "--one_direction", "--no_reference", "--val_epoch", "1000", "--validate"]
        )
        seconds = time.perf_counter() - began
        (path,) = Path(out).glob("model_checkpoints/*/*.pth.tar")
        (log,) = Path(out).glob("logs/*/*/metrics.jsonl")
        lines = runs.read_metrics(log)
        state = checkpoint.load(path)
    # A fit without epochs writes no line: its error stands in the checkpoint.
    instability = lines[-1]["val_instability"] if lines else state["held_out"]
    return instability, seconds


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "features", metavar="FEATURES", nargs="?", default="demo/convOuts/digits_resnet18/digits_L2"
    )
    parser.add_argument("--out", type=Path, help="write the table as Markdown")
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch")
    rows = ["| fit | held-out instability | seconds |", "|---|---:|---:|"]
    for fit in FITS:
        instability, seconds = measure(fit, args.features)
        rows.append(f"| {fit.title} | {instability:.4f} | {seconds:.1f} |")
        print(rows[-1], flush=True)
    index = json.loads(Path(args.features, "train", "index.json").read_text(encoding="utf-8"))
    what = (
        f"{index['record'].get('arch')} at {index['record'].get('layer')}, {index['shape_a']},"
        f" {index['count']} images"
    )
    text = "\n".join([*rows, "", f"{what}; {where}"])
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
