"""Measure trained nets on the test images: accuracies,
and what a method adds to training alone, with intervals.

A run's scripts leave links to classifiers in RUN/results/accuracy/METHOD/NET/, one a seed.
Intervals are 95 %, of a bootstrap over the test images crossed with the seeds; fewer than about
five seeds give too narrow ones. A difference is between nets of the same seeds on the same images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from consistency.bootstrap import Interval, accuracy, verdict
from models.classifiers import read_classifier
from utils.command import command
from utils.data.images import ImageData, check_classes, load_images
from utils.data.loaders import make_loader
from utils.errors import InputError
from utils.options import add_data_root
from utils.parser import Parser, result_file, some_path
from utils.provenance import RESIZED_BEFORE
from utils.report.tables import markdown_table, save_table
from utils.training.metrics import topk_hits

TITLES = {
    "teacher": "the teacher",
    "alone": "alone",
    "kd": "KD (Hinton et al. 2014)",
    "dml": "DML",
    "dcm": "DCM",
    "hsakd": "HSAKD",
}
Hits = dict[str, NDArray[np.bool_]]  # by seed (name of a file), of every test image


class Row(NamedTuple):
    """A net by a method: its accuracy in percent,
    and the points that it has more than the same net trained alone.
    """

    net: str
    method: str
    seeds: int
    images: int
    accuracy: Interval
    gain: Interval | None


@torch.inference_mode()
def hits_of(path: Path, images: dict[str, ImageData], data_root: str) -> NDArray[np.bool_]:
    """Say of every test image whether a classifier is right,
    (N,); `images` keeps what is opened.
    """
    model, state = read_classifier(path)
    if "data" not in state:
        raise InputError(
            f"{path} does not say what it was trained on; train it with a script of this suite"
        )
    data = state["data"]
    # Nets of one data set, way to pixels and normalisation share the opened images.
    resize = data.get("resize", RESIZED_BEFORE)
    key = repr([*(data[name] for name in ("dataset", "image_size", "normalisation")), resize])
    if key not in images:
        images[key] = load_images(
            data["dataset"],
            "val",
            data_root=data_root,
            image_size=data["image_size"],
            resize=resize,
            normalisation=data["normalisation"],
        )
    check_classes(data["classes"], images[key].classes, f"the test images of {path}")
    preprocess = images[key].preprocessing()
    loader = make_loader(images[key], 100)
    hits = [
        topk_hits(model(preprocess(pixels)), targets, [1])[:, 0] for pixels, targets, _ in loader
    ]
    return torch.cat(hits).numpy()


def read_hits(run: str | Path, data_root: str) -> dict[str, dict[str, Hits]]:
    """Measure every net of a run: hits by net, method and seed.

    Raises:
        InputError: the run has no nets.
    """
    folder = Path(run, "results", "accuracy")
    measured: dict[str, dict[str, Hits]] = {}
    images: dict[str, ImageData] = {}
    for method in TITLES:
        for path in sorted(folder.glob(f"{method}/*/*.pth.tar")):
            of_method = measured.setdefault(path.parent.name, {}).setdefault(method, {})
            of_method[path.name] = hits_of(path, images, data_root)
    if not measured:
        raise InputError(
            f"{folder} has no nets; run experiments/small_distil.sh or one that it names first"
        )
    return measured


def interval_of(hits: Hits, less: Hits | None = None) -> Interval:
    """Give the interval of an accuracy, or of a difference on the same images,
    over images and, if several, seeds.
    """
    # Of a difference the seeds of both: nets are compared seed by seed.
    seeds = sorted(hits.keys() & (hits if less is None else less).keys())
    ours, theirs = (
        np.stack([part[seed] for seed in seeds]).astype(float) for part in (hits, less or hits)
    )
    second = theirs if less is not None else None
    # One seed is held fixed: its interval is over the images alone.
    if len(seeds) > 1:
        return accuracy(ours, second, crossed="fits")
    return accuracy(ours[0], None if second is None else second[0])


def rows_of(measured: dict[str, dict[str, Hits]]) -> list[Row]:
    """Summarise hits: a row for each net and method."""
    rows = []
    for net, methods in measured.items():
        for method, hits in methods.items():
            alone = methods.get("alone", {})
            # A teacher stands beside its students, and is another network.
            compared = method not in ("alone", "teacher") and bool(hits.keys() & alone.keys())
            gain = interval_of(hits, alone) if compared else None
            images = len(next(iter(hits.values())))
            rows.append(Row(net, method, len(hits), images, interval_of(hits), gain))
    return rows


def written(interval: Interval | None, form: str = ".1f") -> str:
    """Write a number and its interval, or nothing."""
    if interval is None or interval.value is None:
        return ""
    ends = (
        "no interval" if interval.low is None else f"{interval.low:{form}}, {interval.high:{form}}"
    )
    return f"{interval.value:{form}} [{ends}]"


def judged(more: Interval | None, form: str = "+.1f") -> str:
    """Write a difference, its interval and whether it shows, or nothing."""
    return f"{written(more, form)}: {verdict(more)}" if more else ""


def markdown(rows: Sequence[Row]) -> str:
    """Write a table."""
    head = ("net", "method", "seeds", "top-1 accuracy, %", "more than alone, points")
    cells = [
        (row.net, TITLES[row.method], str(row.seeds), written(row.accuracy), judged(row.gain))
        for row in rows
    ]
    table = markdown_table(head, cells, texts=2)
    images = sorted({row.images for row in rows})
    counts = " or ".join(f"{count:,}" for count in images)
    return f"{table}\n\n{counts} test images; 95 % intervals.\n"


def build_parser() -> Parser:
    """Declare the options."""
    parser = Parser(
        __doc__, "python -m experiments.accuracies runs/small_distil --markdown accuracies.md"
    )
    group = parser.add_argument_group("accuracies")
    group.add_argument("run", type=some_path, help="what OUT was when the scripts ran")
    add_data_root(group)
    group.add_argument(
        "--markdown", type=result_file(), metavar="FILE", help="write the table as Markdown"
    )
    group.add_argument("--csv", type=result_file(), metavar="FILE", help="write it as CSV")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> list[Row]:
    """Print the table."""
    args = build_parser().parse_args(argv)
    rows = rows_of(read_hits(args.run, args.data_root))
    text = markdown(rows)
    print(text)
    ends = ("low", "high")
    head = ("net", "method", "seeds", "images", "accuracy_percent", *ends, "gain_points", *ends)
    save_table(text, [head, *(csv_line(row) for row in rows)], args.markdown, args.csv)
    return rows


def plain(interval: Interval | None) -> list[float | None]:
    """Give a number and its interval's ends."""
    return [interval.value, interval.low, interval.high] if interval else [None] * 3


def csv_line(row: Row) -> list[Any]:
    """Write a row as plain values."""
    return [row.net, row.method, row.seeds, row.images, *plain(row.accuracy), *plain(row.gain)]


if __name__ == "__main__":
    main()
