"""Draw a run's results as the paper's figures, PNG and SVG, into RUN/figures.

fig3_…: blind spots and unreliable features on photos (Sec. 4.1). fig4_…: accuracy and Var(x_Δ) of
compressed nets (4.4), Var(x_Δ) of born-again generations (4.5). fig5_…: what nets of different
tasks share (4.6). table2: variances by order (4.2). verdicts: every claim, decided. calibration:
instabilities between their nulls and ceilings. The numbers are those of experiments/tables.py; maps
are computed from the checkpoints that they name. A figure whose data are missing is left out, and a
line says so.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from experiments.intervals import Key, measured
from experiments.tables import PAPER, Results, Table, read_table
from models.pair import open_pair
from utils.command import command
from utils.data.images import load_images
from utils.errors import InputError
from utils.files import check_writable, read_json, replacing
from utils.options import add_data_root
from utils.parser import Parser, some_path, whole
from utils.provenance import RESIZED_BEFORE
from utils.report.charts import Estimate, Point, curve_figure, interval_figure, variance_figure
from utils.report.maps import overlay_figure

# Figures of maps: the row in RUN/results, and what x_Δ is there.
MAPS = {
    "fig3_blind_spots": ("diagnosis/blind_spots", "blind spots"),
    "fig3_unreliable_features": ("diagnosis/unreliable", "unreliable features"),
    "fig5_fine_to_binary": ("tasks/fine-binary", "inconsistent"),
    "fig5_binary_to_fine": ("tasks/binary-fine", "inconsistent"),
}
VARIANCES = ("target", "order0", "order1", "order2", "output", "residual")


def layer_titles(layout: dict[str, Any]) -> dict[str, str]:
    """Name the paper's layers by the keys that results have: "vgg16_bn_L37" is "VGG-16 conv5_2"."""
    return {**layout["table2"]["columns"], **layout["table3"]["columns"]}


def cells_of(results: Results, row: str) -> list[str]:
    """Name the cells below a row such as "table1/case1"."""
    return [cell for cell in results.cells() if cell.startswith(f"{row}/") and results.facts(cell)]


def need(results: Results, row: str) -> list[str]:
    """Name the cells below a row.

    Raises:
        InputError: there are none.
    """
    cells = cells_of(results, row)
    if not cells:
        raise InputError(f"{results.folder / row} has no results")
    return cells


def draw_maps(results: Results, cell: str, residual: str, data_root: Path, photos: int) -> Figure:
    """Lay x*, g(x) and x_Δ of a cell's Trans-Net over
    validation photos that are spread over the classes.
    """
    if not results.facts(cell):
        raise InputError(f"{results.folder / cell} has no results")
    source = results.facts(cell)[0]["source"]
    pair = open_pair(
        *(source[key] for key in ("transnet_path", "path_a", "path_b", "layer_a", "layer_b"))
    )
    fitted = pair.provenance
    images = load_images(
        source["dataset"],
        "val",
        data_root=data_root,
        image_size=fitted.image_size,
        resize=fitted.resize or RESIZED_BEFORE,
    )
    # The list goes class by class: equal distances show many classes.
    chosen = torch.linspace(0, len(images) - 1, photos).long().tolist()
    pixels = images.__getitems__(chosen)[0]
    _, target, output, _ = pair(pixels)
    figure = overlay_figure(pixels, target, output, residual)
    given, wanted = (f"{source[f'arch_{net}']} {source[f'layer_{net}']}" for net in "ab")
    figure.suptitle(f"features of {wanted}, reconstructed from {given}", fontsize=9)
    return figure


def draw_variances(results: Results, titles: dict[str, str]) -> Figure:
    """Draw the variances by order, a panel for each cell of `titles`,
    which are means over the pairs of nets.
    """
    reports = {}
    for cell, title in titles.items():
        variances = {name: measured(results.facts(cell), f"var.{name}") for name in VARIANCES}
        reports[title] = {
            "var": {name: number.value for name, number in variances.items() if number}
        }
    return variance_figure(reports)


def draw_table2(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw the variances by order of every layer (Table 2)."""
    cells = {cell.rsplit("/", 1)[1]: cell for cell in need(results, "table1/case1")}
    paper = {key: title for key, title in layout["table2"]["columns"].items() if key in cells}
    titles = paper | {key: key for key in cells if key not in paper}  # other networks follow
    return draw_variances(results, {cells[key]: title for key, title in titles.items()})


def draw_tasks(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw how much the nets of two tasks reconstruct of each other,
    side by side for each layer (Sec. 4.6).
    """
    directions = {"fine-binary": "fine-grained → binary", "binary-fine": "binary → fine-grained"}
    titles = {
        cell: f"{title}\n{layer_titles(layout).get(key, key)}"
        for row, title in directions.items()
        for cell in need(results, f"tasks/{row}")
        for key in [cell.rsplit("/", 1)[1]]
    }
    # By layer, so that both directions of one stand side by side
    return draw_variances(
        results, dict(sorted(titles.items(), key=lambda entry: entry[0].rsplit("/", 1)[1]))
    )


def draw_compression(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw the accuracy after compression against Var(x_Δ),
    a curve for each layer (Fig. 4, left).
    """
    need(results, "compression")
    table = read_table("compression", layout["compression"], results, {})
    curves: dict[str, list[Point]] = {}
    for row, column in table.ours:
        after = (row, "after")
        if column not in ("removed", "before", "after") and after in table.ours:
            # A row is NET_THRESHOLDS: all of a net and a layer are one curve.
            key = f"{row.rsplit('_', 1)[0]}_{column}"
            note = f"{table.ours[row, 'removed']:.0f} %"
            point = Point(
                table.ours[row, column],
                table.ours[after],
                ends(table, (row, column)),
                ends(table, after),
                note,
            )
            curves.setdefault(layer_titles(layout).get(key, key), []).append(point)
    if not curves:
        raise InputError(
            f"{results.folder / 'compression'} has no layer with its accuracy after compression"
        )
    x_label = (
        "Var($x_\\Delta$), discarded by the compression\n(beside the points: parameters removed)"
    )
    return curve_figure(curves, x_label, "top-1 accuracy in %")


def draw_distillation(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw Var(x_Δ) of the newest net given each generation (Fig. 4, right)."""
    need(results, "distillation")
    table = read_table("distillation", layout["distillation"], results, {})
    curves: dict[str, list[Point]] = {}
    for row in table.rows:
        key, generation = row.rsplit("_gen", 1)
        place = (row, "variance")
        point = Point(int(generation), table.ours[place], y_ends=ends(table, place))
        curves.setdefault(layer_titles(layout).get(key, key), []).append(point)
    return curve_figure(curves, "generation of born-again nets", r"Var($x_\Delta$), blind spots")


def ends(table: Table, place: Key) -> tuple[float, float] | None:
    """Give the interval, or the range of several files, of a table's number."""
    between = table.intervals.get(place)
    return (between.low, between.high) if between else None


def draw_verdicts(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw the difference that every claim is about,
    with its interval and verdict, a panel for each table.
    """
    panels = {}
    for name, entry in layout.items():
        table = read_table(name, entry, results, {})
        if table.claims:
            panels[table.title] = {
                f"{claim.says}\n{claim.where}": [
                    Estimate(
                        claim.verdict,
                        claim.difference,
                        claim.interval.low if claim.interval else None,
                        claim.interval.high if claim.interval else None,
                    )
                ]
                for claim in table.claims
            }
    if not panels:
        raise InputError(f"{results.folder} has nothing of which something is claimed")
    return interval_figure(panels)


def draw_calibration(results: Results, layout: dict[str, Any]) -> Figure:
    """Draw every instability between its null and its ceiling,
    and what other measures say of the same features.
    """
    need(results, "calibration")
    table = read_table("calibration", layout["calibration"], results, {})
    panels: dict[str, dict[str, list[Estimate]]] = {}
    for title, columns in {
        "instability Var(x_Δ)/Var(x*)": ("this", "linear", "null", "ceiling"),
        "similarity": ("consistency", "CKA", "SVCCA", "ridge"),
    }.items():
        panels[title] = {}
        for row, name in table.rows.items():
            panels[title][name] = [
                Estimate(
                    table.columns[column],
                    table.ours[row, column],
                    *(ends(table, (row, column)) or (None, None)),
                )
                for column in columns
                if (row, column) in table.ours
            ]
    return interval_figure(panels)


def build_parser() -> Parser:
    """Declare the options."""
    parser = Parser(__doc__, "python -m experiments.figures runs --data_root data")
    group = parser.add_argument_group("figures")
    group.add_argument("run", type=some_path, help="what OUT was when the sections' scripts ran")
    add_data_root(group, ". Fig. 5 uses RUN/mix, which tasks.sh makes")
    group.add_argument("--photos", type=whole(1), default=4, help="photos of a figure of maps")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Draw what there is."""
    args = build_parser().parse_args(argv)
    run = Path(args.run)
    check_writable(run / "figures")
    results, layout = Results(run), read_json(PAPER)["tables"]
    if not results.cells():
        raise InputError(f"{results.folder} has no results; run the scripts in experiments/ first")
    figures: dict[str, Callable[[], Figure]] = {}
    for name, (row, residual) in MAPS.items():
        # Fig. 5's images are made by tasks.sh, inside the run.
        data_root = run / "mix" if name.startswith("fig5") else Path(args.data_root)
        cells = cells_of(results, row)
        for cell in cells or [row]:
            full_name = f"{name}_{cell.rsplit('/', 1)[1]}" if len(cells) > 1 else name
            figures[full_name] = partial(draw_maps, results, cell, residual, data_root, args.photos)
    figures |= {
        "fig4_compression": partial(draw_compression, results, layout),
        "fig4_distillation": partial(draw_distillation, results, layout),
        "fig5_variances": partial(draw_tasks, results, layout),
        "table2": partial(draw_table2, results, layout),
        "verdicts": partial(draw_verdicts, results, layout),
        "calibration": partial(draw_calibration, results, layout),
    }
    left_out: dict[str, list[str]] = {}
    for name, draw in sorted(figures.items()):
        try:
            figure = draw()
        except InputError as error:
            left_out.setdefault(str(error), []).append(name)
            continue
        for ending in ("png", "svg"):
            path = run / "figures" / f"{name}.{ending}"
            with replacing(path) as temporary:
                figure.savefig(temporary, dpi=150)
        print(f"saved {path.with_suffix('')}.png and .svg")
    if left_out:
        print(
            "left out: "
            + "; ".join(f"{', '.join(names)} ({why})" for why, names in left_out.items())
        )


if __name__ == "__main__":
    main()
