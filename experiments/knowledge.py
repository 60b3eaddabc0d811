"""Set what students share with a teacher beside what a method adds to their accuracy.

experiments/distillation_knowledge.sh leaves both:
RUN/results/knowledge/METHOD/DIRECTION_STAGE/SEED.npz has the sums per image of one calibration. A
number is a normalised consistency, the mean over the students of a method: 0 is what the features
of another image of the class give, 1 what a net's features give of themselves. Intervals are 95 %,
over the test images crossed with the students; all numbers use the same resamples of the images, so
that a difference from the students trained alone is of pairs.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from consistency.bootstrap import Interval, count, mean_over_fits, weighted
from consistency.calibration import KINDS, instability_of, load_sums, normalised_consistency
from experiments.accuracies import TITLES, Row, judged, plain, read_hits, rows_of, written
from utils.command import command
from utils.errors import InputError
from utils.files import replacing
from utils.options import add_data_root
from utils.parser import MOST_RESAMPLES, Parser, result_file, some_path, whole
from utils.report.charts import CURVES
from utils.report.tables import markdown_table, save_table

METHODS = {name: TITLES[name] for name in ("alone", "kd", "dcm", "hsakd")} | {
    "dcm_partner": "DCM, its own partner"
}
DIRECTIONS = {"teacher-student": "teacher → student", "student-teacher": "student → teacher"}
NOT_COMPARED = ("alone", "dcm_partner")  # the latter is about another net than the others are
Array = NDArray[Any]


class Cell(NamedTuple):
    """What one method's students share with the teacher in one stage,
    and how much more than those trained alone.
    """

    direction: str
    stage: str
    method: str
    students: int
    consistency: Interval
    gain: Interval | None


def draw(path: Path, resamples: int) -> Array:
    """Give the normalised consistency on all images and on B resamples,
    the same for every file, (1 + B,).
    """
    sums = load_sums(path)
    images = len(sums["observed"])
    # One seed for all files: the same resamples, so that differences are paired.
    drawn = np.random.default_rng(0).integers(images, size=(resamples, images))
    # Row 0 takes every image once: the value on all images.
    weights = np.concatenate([np.ones((1, images)), count(drawn, images)])
    totals = np.stack([weighted(sums[kind], weights) for kind in KINDS])  # (3, 1 + B, 2)
    return normalised_consistency(*instability_of(totals)["instability"])


def read_cells(run: str | Path, resamples: int) -> list[Cell]:
    """Summarise every calibration of a run.

    Raises:
        InputError: the run has none.
    """
    folder = Path(run, "results", "knowledge")
    draws = {
        (path.parents[1].name, path.parent.name, path.stem): draw(path, resamples)
        for path in sorted(folder.glob("*/*/[!.]*.npz"))
    }
    if not draws:
        raise InputError(
            f"{folder} has no sums per image; run experiments/distillation_knowledge.sh first"
        )
    cells = []
    for direction, method in product(DIRECTIONS, METHODS):
        for place in sorted(
            {place for drawn, place, _ in draws if drawn == method and place.startswith(direction)}
        ):
            students = sorted(
                seed for drawn, where, seed in draws if (drawn, where) == (method, place)
            )
            of_students = np.stack([draws[method, place, seed] for seed in students])
            compared = [
                seed
                for seed in students
                if ("alone", place, seed) in draws and method not in NOT_COMPARED
            ]
            gain = None
            if compared:
                more = np.stack(
                    [draws[method, place, seed] - draws["alone", place, seed] for seed in compared]
                )
                # Column 0 is on all images, the others on resamples.
                gain = mean_over_fits(more[:, 0], more[:, 1:])
            consistency = mean_over_fits(of_students[:, 0], of_students[:, 1:])
            cells.append(
                Cell(direction, place.rsplit("_", 1)[1], method, len(students), consistency, gain)
            )
    return cells


def markdown(cells: Sequence[Cell], accuracies: Sequence[Row]) -> str:
    """Write one table: a line for each method, its accuracy,
    and what is shared in every stage and direction.
    """
    columns = sorted(
        {(cell.direction, cell.stage) for cell in cells},
        key=lambda c: ([*DIRECTIONS].index(c[0]), c[1]),
    )
    by_place = {(cell.method, cell.direction, cell.stage): cell for cell in cells}
    titles = [
        "method",
        "students",
        "top-1, %",
        *(f"{DIRECTIONS[direction]}, stage {stage}" for direction, stage in columns),
    ]
    rows = []
    for method in METHODS:
        of_columns = [by_place.get((method, *column)) for column in columns]
        students = " or ".join(map(str, sorted({cell.students for cell in of_columns if cell})))
        if not students:
            continue
        accuracy = next((row for row in accuracies if row.method == method), None)
        values = [written(cell.consistency, ".3f") if cell else "" for cell in of_columns]
        top1 = written(accuracy.accuracy) if accuracy else ""
        rows.append([METHODS[method], students, top1, *values])
        if method not in NOT_COMPARED:
            more = [judged(cell.gain, "+.3f") if cell else "" for cell in of_columns]
            gain = judged(accuracy.gain) if accuracy else ""
            rows.append(["… more than alone", "", gain, *more])
    return f"{markdown_table(titles, rows)}\n"


def draw_figure(cells: Sequence[Cell], accuracies: Sequence[Row]) -> Figure:
    """Draw the accuracies, and the normalised consistency
    of every stage in both directions, with intervals.
    """
    figure = Figure(figsize=(10.5, 3.4), layout="constrained")
    first, *others = figure.subplots(1, 3, width_ratios=[1, 1.5, 1.5])
    others[1].sharey(others[0])
    shown = [method for method in METHODS if any(cell.method == method for cell in cells)]
    styles = dict(zip(METHODS, CURVES))
    names = [
        method for method in ("teacher", *shown) if any(row.method == method for row in accuracies)
    ]
    for place, method in enumerate(names):
        row = next(row for row in accuracies if row.method == method)
        colour, marker = styles.get(method, ("#333333", "*"))
        _point(first, place, row.accuracy, colour, marker)
    first.set_xticks(
        range(len(names)), [METHODS.get(name, name).split(" (")[0] for name in names], fontsize=8
    )
    first.tick_params(axis="x", rotation=30)
    first.set_ylabel("top-1 accuracy, %", fontsize=9)
    for axis, (direction, title) in zip(others, DIRECTIONS.items()):
        for shift, method in enumerate(shown):
            colour, marker = styles[method]
            of_method = [
                cell for cell in cells if (cell.direction, cell.method) == (direction, method)
            ]
            # Methods of one stage stand side by side around its tick.
            places = [int(cell.stage) + 0.09 * (shift - (len(shown) - 1) / 2) for cell in of_method]
            axis.plot(
                places,
                [_value(cell.consistency) for cell in of_method],
                color=colour,
                linewidth=0.8,
                alpha=0.6,
            )
            for i, cell in enumerate(of_method):
                _point(
                    axis,
                    places[i],
                    cell.consistency,
                    colour,
                    marker,
                    METHODS[method] if i == 0 else None,
                )
        axis.set_xticks(sorted({int(cell.stage) for cell in cells}))
        axis.set_xlabel("stage", fontsize=9)
        axis.set_title(title, fontsize=9)
    others[0].set_ylabel("normalised consistency", fontsize=9)
    others[1].legend(fontsize=7, frameon=False)
    for axis in (first, *others):
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _value(interval: Interval) -> float:
    return float("nan") if interval.value is None else interval.value


def _point(
    axis: Axes, place: float, interval: Interval, colour: str, marker: str, label: str | None = None
) -> None:
    """Draw a number and its interval."""
    value = _value(interval)
    ends = None
    if interval.low is not None and interval.high is not None:
        ends = [[value - interval.low], [interval.high - value]]
    axis.errorbar(
        place, value, ends, color=colour, marker=marker, markersize=5, capsize=2, label=label
    )


def build_parser() -> Parser:
    """Declare the options."""
    parser = Parser(
        __doc__, "python -m experiments.knowledge runs/small_distil --figure knowledge.png"
    )
    group = parser.add_argument_group("what is shared")
    group.add_argument("run", type=some_path, help="what OUT was when the script ran")
    add_data_root(group)
    group.add_argument(
        "--bootstrap",
        type=whole(100, MOST_RESAMPLES),
        default=1000,
        metavar="N",
        help="resamples",
    )
    group.add_argument(
        "--markdown", type=result_file(), metavar="FILE", help="write the table as Markdown"
    )
    group.add_argument("--csv", type=result_file(), metavar="FILE", help="write it as CSV")
    group.add_argument(
        "--figure", type=result_file(".png", ".svg", ".pdf"), metavar="FILE", help="draw it"
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> list[Cell]:
    """Print the table."""
    args = build_parser().parse_args(argv)
    cells = read_cells(args.run, args.bootstrap)
    measured = read_hits(args.run, args.data_root)
    students = [row for row in rows_of(measured) if {"kd", "hsakd"} & measured[row.net].keys()]
    text = markdown(cells, students)
    print(text)
    ends = ("low", "high")
    head = ("direction", "stage", "method", "students", "consistency", *ends, "more", *ends)
    save_table(text, [head, *(csv_line(cell) for cell in cells)], args.markdown, args.csv)
    if args.figure:
        with replacing(args.figure) as temporary:
            draw_figure(cells, students).savefig(temporary, dpi=150)
    return cells


def csv_line(cell: Cell) -> list[object]:
    """Write a cell as plain values."""
    return [
        cell.direction,
        cell.stage,
        cell.method,
        cell.students,
        *plain(cell.consistency),
        *plain(cell.gain),
    ]


if __name__ == "__main__":
    main()
