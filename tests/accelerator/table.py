"""Print the table of steps on the simulated accelerator: whether they run, and what waits.

    python -m tests.accelerator.table [--amp bf16]

Each step runs three times on noise of 40 pixels and 24 images: on the CPU in batches of 4, on the
accelerator in batches of 4 and of 8. A wait a step (or a batch) is the difference of the waits of
the last two, divided by that of their steps (or batches). The rest comes once a run, a layer or a
file. On a device without float64 sums move to the CPU. Prints Markdown.
"""

import argparse
import contextlib
import io
import tempfile
import traceback
from pathlib import Path

import torch

from benchmarks.machine import ran_on
from tests.accelerator import simulated, steps
from tests.accelerator.simulated import Waits
from tests.unit.photos import make_photo

IMAGES, CLASSES = 8, ("blue", "green", "red")
HEADER = (
    "| step | runs on it | numbers of the CPU | devices mixed | waits a step of training"
    " | waits a batch of a pass | waits a step, no float64 | waits a batch, no float64 |\n"
    "|---|---|---|---|---:|---:|---:|---:|"
)


def slopes(many: Waits, few: Waits) -> tuple[str, str]:
    """Say how many waits a step of training and a batch of a pass bring."""
    of_steps = sum(many.in_training.values()) - sum(few.in_training.values())
    of_batches = sum(many.in_batches.values()) - sum(few.in_batches.values())
    more_steps = many.steps - few.steps
    more_batches = many.batches - few.batches - more_steps
    return (
        f"{of_steps / more_steps:.2f}" if more_steps else "no training",
        f"{of_batches / more_batches:.2f}" if more_batches else "no pass",
    )


def make_photos(folder: Path) -> None:
    """Make `{train,val}/CLASS/*.jpg`: noise of 40 pixels, three classes of eight images."""
    for number in range(2 * IMAGES * len(CLASSES)):
        split, place = ("train", "val")[number % 2], CLASSES[number // 2 % len(CLASSES)]
        make_photo(folder / split / place / f"{number}.jpg", number, size=(40, 40))


def main(argv: list[str] | None = None) -> None:
    """Run everything and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--amp", choices=["off", "bf16"], default="off")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    simulated.register()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()) as errors:
        folder, photos = Path(name), Path(name, "photos")
        make_photos(photos)
        try:
            steps.run(folder / "cpu", photos, batch=4, amp=args.amp, on_cpu=True)
            runs = {
                (batch, full): steps.run(
                    folder / f"{batch}{full}", photos, batch=batch, amp=args.amp, has_float64=full
                )
                for batch in (4, 8)
                for full in (True, False)
            }
        except BaseException:
            traceback.print_exc()
            raise SystemExit(errors.getvalue()) from None
        others = steps.other_numbers(folder / "cpu", folder / "4True")
    print(
        f"On the accelerator, --amp {args.amp}; entries of files that differ from the CPU's: ",
        end="",
    )
    print(f"{len(others)}\n\n{HEADER}")
    for step in steps.STEPS:
        columns = [
            slope
            for full in (True, False)
            for slope in slopes(*(runs[n, full][step] for n in (4, 8)))
        ]
        same = "some differ" if others else "to the bit"
        print(f"| {step} | to its end | {same} | none | {' | '.join(columns)} |")
    where = ran_on(__file__, argv, "torch")
    print("\n" + where.replace("benchmarks.", "tests.accelerator."))


if __name__ == "__main__":
    main()
