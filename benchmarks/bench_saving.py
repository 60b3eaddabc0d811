"""What it costs that files carry content hashes, and that the state before the last one is kept.

    KC_REAL_DATA=FOLDER python -m benchmarks.bench_saving

Every line runs with both and without: no hashes written or checked, no state kept, no content put
in order before it is written. Both take turns in one process, in another order from round to
round. Whole steps compute much more than they save, and differ by the machine's noise. So the
time within the functions that the comparison leaves out is taken too, as a share of the rest of
its own turn. The bare lines save and read alone, which nobody does without computing something.
The photos are those of CUB-200-2011 in KC_REAL_DATA, or noise where there are none; a step's data
set are the digits of scikit-learn. Prints Markdown.
"""

import argparse
import contextlib
import io
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch

import ConvOutput
import PrepareData
import Training
import Training_TransNet
from benchmarks import contests
from benchmarks.bench_opening import noise
from benchmarks.machine import ran_on
from benchmarks.turns import processor_seconds
from models.classifiers import build
from utils import checkpoint, files, sums
from utils.features import writer
from utils.features.cache import open_features
from utils.features.writer import FeatureWriter
from utils.provenance import Provenance
from utils.training.engine import make_optimizer

ARCH, LAYER, SHAPE = "resnet18", "layer3.1.add", (256, 14, 14)  # of photos of 224 pixels
PIECE = 50  # images that are written and read at a time
TIMES = 10  # a checkpoint is saved and read in a turn


class Contest(NamedTuple):
    """What is measured.

    Attributes:
        title: in the table.
        run: a turn, with hashes and kept states or without.
    """

    title: str
    run: Callable[[bool], object]


# What is left out, and what stands in its place
ADDED: list[tuple[Any, str, Callable[..., Any]]] = [
    (writer, "sums_of", lambda *_: {}),
    (sums, "check", lambda *_, **__: None),
    (checkpoint, "_damaged_entry", lambda _: None),
    (checkpoint, "_unshared", lambda state: state),
    (files, "_keep_earlier", lambda *_: None),
]


@contextlib.contextmanager
def bare() -> Iterator[None]:
    """Write no hashes, check none, write states as they are, and keep the last one alone."""
    with contextlib.ExitStack() as stack:
        for module, name, stand_in in ADDED:
            stack.enter_context(mock.patch.object(module, name, stand_in))
        yield


@contextlib.contextmanager
def metered() -> Iterator[list[float]]:
    """Take the processor's seconds within what `bare` leaves out."""
    seconds, depth = list[float](), [0]

    def timed(whole: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            depth[0] += 1
            began = time.process_time()
            try:
                return whole(*args, **options)
            finally:
                depth[0] -= 1
                if not depth[0]:  # one that calls itself or another counts once
                    seconds.append(time.process_time() - began)

        return call

    with contextlib.ExitStack() as stack:
        for module, name, _ in ADDED:
            stack.enter_context(mock.patch.object(module, name, timed(getattr(module, name))))
        yield seconds


def checkpoints(folder: Path) -> Iterator[Contest]:
    """Save and read the states of nets with their optimisers."""
    for arch, classes, size in (("resnet8", 10, 32), ("resnet18", 200, 224)):
        model = build(arch, classes)
        optimizer = make_optimizer("SGD", model.parameters(), lr=0.1, momentum=0.9, weight_decay=0)
        model(torch.randn(2, 3, size, size)).sum().backward()
        optimizer.step()
        state = {"epoch": 1, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}
        path = folder / f"{arch}.pth.tar"

        def save(hashed: bool, path: Path = path, state: dict[str, Any] = state) -> None:
            for _ in range(TIMES):
                checkpoint.save(path, state, keep=2 if hashed else 1)

        def read(_hashed: bool, path: Path = path) -> None:
            for _ in range(TIMES):
                checkpoint._first_damaged.cache_clear()
                checkpoint.load(path)

        save(True)
        megabytes = path.stat().st_size / 1e6
        yield Contest(f"bare: save {arch} ({megabytes:.1f} MB), {TIMES} times", save)
        yield Contest(f"bare: read it first, {TIMES} times", read)


def features(folder: Path, count: int) -> Iterator[Contest]:
    """Store features of photos, and read them first."""
    values = torch.randn(PIECE, *SHAPE)
    targets, hits = torch.arange(PIECE), torch.ones(PIECE, 1, dtype=torch.bool)
    record = Provenance.from_record({"dataset": "photos", "split": "train"})
    megabytes = 2 * 4 * count * values[0].numel() / 1e6

    def store(_hashed: bool) -> None:
        names = [f"{number}.jpg" for number in range(count)]
        cache = FeatureWriter(
            folder / "cache",
            provenance=record,
            paths=names,
            shape_a=SHAPE,
            shape_b=SHAPE,
            top_k=(1,),
            dtype=torch.float32,
        )
        for start in range(0, count, PIECE):
            rows = list(range(start, min(start + PIECE, count)))
            for net in "ab":
                part = slice(0, len(rows))
                cache.write(net, rows, values[part], targets[part], hits[part])
        cache.finish()

    def read(_hashed: bool) -> None:
        (folder / "cache" / sums.VERIFIED).unlink(missing_ok=True)
        cache = open_features(folder / "cache")
        for start in range(0, count, PIECE):
            cache.__getitems__(range(start, min(start + PIECE, count)))

    store(True)
    yield Contest(f"bare: store features of {count:,} photos ({megabytes:,.0f} MB)", store)
    yield Contest("bare: read them first, once", read)


def quietly(script: Any, *words: object) -> None:
    """Run a step without its lines."""
    with contextlib.redirect_stdout(io.StringIO()):
        script.main([str(word) for word in words])


def digits_steps(folder: Path) -> Iterator[Contest]:
    """Train on the digits, which saves after every epoch."""
    quietly(PrepareData, "digits", "--out", folder / "data")
    digits = ("--dataset", "digits", "--data_root", folder / "data", "--image_size", 32, "-j", 0)

    def train(hashed: bool) -> None:
        words = ("-a", "resnet8", *digits, "--epochs", 2, "--keep", 2 if hashed else 1)
        quietly(Training, *words, "--out", folder / f"digits{hashed}")

    yield Contest("Training.py, resnet8 on the digits, 2 epochs", train)


def photo_steps(folder: Path, count: int) -> Iterator[Contest]:
    """Store features of photos, and fit to them first."""
    real = Path(os.environ.get("KC_REAL_DATA", "/nowhere"), "CUB_200_2011").is_dir()
    images = (contests.photos if real else noise)(folder, count)
    a, b = contests.save_classifiers(folder, ARCH)

    def store(hashed: bool) -> None:
        nets = ("--resume1", a, "--resume2", b, "--layer", LAYER, "--image_size", 32, "-j", 0)
        data = ("--dataset", "folder", "--name", "photos", "--train_path", images)
        out = folder / f"photos{hashed}"
        shutil.rmtree(out, ignore_errors=True)  # complete features are not stored again
        quietly(ConvOutput, *nets, *data, "--out", out)

    def fit(hashed: bool) -> None:
        stored = next((folder / f"photos{hashed}" / "convOuts").glob("*/*"))
        for file in stored.rglob(sums.VERIFIED):
            file.unlink()
        words = ("--convOut_path", stored, "--standardise", "--solve", "--steps", 20, "--restart")
        quietly(Training_TransNet, *words, "--out", folder / f"photos{hashed}")

    yield Contest(f"ConvOutput.py, {ARCH}, {count:,} photos of 32 pixels", store)
    yield Contest("Training_TransNet.py, which reads them first, 20 steps", fit)


class Ratios(NamedTuple):
    """What a line took, one value a round.

    Attributes:
        without: seconds of the processor.
        processor, wall: of both, with above without.
        within: seconds of the processor with, above those outside of what was added.
    """

    without: list[float]
    processor: list[float]
    wall: list[float]
    within: list[float]


def measure(contest: Contest, rounds: int) -> Ratios:
    """Let both take turns."""
    ratios = Ratios([], [], [], [])
    with bare():
        contest.run(False)  # sets up, and does not count
    for number in range(rounds):
        taken = {}
        # The order changes from round to round
        for hashed in (True, False) if number % 2 else (False, True):
            began = processor_seconds(), time.perf_counter()
            with metered() if hashed else bare() as added:
                contest.run(hashed)
            taken[hashed] = processor_seconds() - began[0], time.perf_counter() - began[1]
            if hashed:
                whole = taken[hashed][0]
                ratios.within.append(whole / (whole - sum(added or [])))
        (processor, wall), (bare_processor, bare_wall) = taken[True], taken[False]
        ratios.without.append(bare_processor)
        ratios.processor.append(processor / bare_processor)
        ratios.wall.append(wall / bare_wall)
    return ratios


def in_words(ratios: list[float]) -> str:
    """Give the median and the range of ratios as percentages above 1."""
    median, low, high = (
        100 * (value - 1) for value in (statistics.median(ratios), min(ratios), max(ratios))
    )
    return f"{median:+.1f} % | {low:+.1f} to {high:+.1f} %"


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of a bare line")
    parser.add_argument("--step_rounds", type=int, default=5, help="pairs of a whole step")
    parser.add_argument("--only", choices=["bare", "steps", "photos"], help="these lines alone")
    args = parser.parse_args(argv)
    where = ran_on(__file__, argv, "torch", "torchvision")
    print("| what | without, s | within | turns | processor | pairs | wall | pairs |")
    print(f"|---|{'---:|' * 7}")
    with tempfile.TemporaryDirectory() as name:
        folder, groups = Path(name), list[tuple[int, Iterator[Contest]]]()
        if args.only in (None, "bare"):
            groups += [(args.rounds, checkpoints(folder))]
            groups += [(args.rounds, features(folder, args.images))]
        if args.only in (None, "steps"):
            groups += [(args.step_rounds, digits_steps(folder))]
        if args.only in (None, "steps", "photos"):
            groups += [(args.step_rounds, photo_steps(folder, args.images))]
        for rounds, group in groups:
            for contest in group:
                ratios = measure(contest, rounds)
                row = [contest.title, f"{statistics.median(ratios.without):.2f}"]
                row += map(in_words, (ratios.within, ratios.processor, ratios.wall))
                print(f"| {' | '.join(row)} |", flush=True)
    print(f"\n{where}")


if __name__ == "__main__":
    main()
