"""The page of a comparison: the answer first, then figures, then every number.

Each number has its place in the report.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from utils.errors import InputError
from utils.later import matplotlib
from utils.report.atlas import atlas_answer, atlas_chart, atlas_closing, atlas_tables
from utils.report.compare_charts import charts
from utils.report.compare_words import (
    WAYS,
    answer,
    closing,
    distinction_place,
    ends,
    estimate,
    names,
    pair_label,
)
from utils.report.results import Cell, Picture, Result, read_pictures
from utils.report.sections import Table
from utils.report.template import fill

REPORT = "compare.json"
OF_NET_TABLE = ("label", "name", "arch", "parameters", "top1_percent", "remarks")
MOST_DISTINCTIONS = 10  # pairs of classes of each way; the report has more
UNFOLDED = 12  # rows; longer tables open by a click
PICTURE_BYTES = 1_000_000  # of all pictures on the page; others lie beside it
MOST_ROWS = 400  # of a table; the report has all


class Gate(NamedTuple):
    """What a gate decided: its verdict, why, and what it looked at."""

    verdict: Cell
    reasons: Sequence[Cell]
    tables: Sequence[Table]


def render_compare(report: Mapping[str, Any], folder: str | Path) -> str:
    """Make the page of a comparison.

    Args:
        report: what Compare.py wrote as `compare.json`.
        folder: where that file lies, and the pictures that the report names.

    Returns:
        HTML, with all that it shows; the same of the same report.

    Raises:
        InputError: the report is not as Compare.py writes it, or the page would be too large.
    """
    return render_result(Result(REPORT, "compare", report), folder)


def render_result(result: Result, folder: str | Path) -> str:
    """Make the page of a comparison that was read from a folder; see `render_compare`."""
    try:
        content = _lay_out(result, folder)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{result.name} was changed after it was written ({reason}); write it anew"
        ) from None
    return fill("compare.html.jinja", folder, **content)


def _lay_out(result: Result, folder: str | Path) -> dict[str, Any]:
    several = len(result.get("nets")) > 2
    a, b = names(result)
    title = f"What {len(result.get('nets'))} nets share" if several else f"What {a} and {b} share"
    of: Cell = [
        result.value("images", "held_out", form=","),
        " held-out images of ",
        result.value("images", "folder"),
        "; fitted to ",
        result.value("images", "fitted", form=","),
        " others; ",
        result.value("created"),
    ]
    doubts: list[Cell] = [
        result.value("doubts", row) for row in range(len(result.get("doubts") or ()))
    ]
    # What is doubtful about a net, with its name in front.
    for row, net in enumerate(result.get("nets")):
        for number in range(len(net.get("remarks") or ())):
            doubts.append([f"{net['name']}: ", result.value("nets", row, "remarks", number)])
    of_all = _atlas_tables(result) if several else _tables(result)
    pictures = list(_pictures(result, folder))
    every = [*of_all, _picture_table(result, pictures)]
    tables = [_bounded(table, result) for table in every if table.rows]
    return {
        "title": title,
        "of": of,
        "doubts": doubts,
        "gate": _gate(result),
        "sentences": atlas_answer(result) if several else answer(result),
        "closing": atlas_closing(result) if several else closing(result),
        "charts": [atlas_chart(result)] if several else charts(result),
        "pictures": pictures,
        "tables": tables,
        "drawn_by": f"matplotlib {matplotlib.__version__}",
    }


def _bounded(table: Table, result: Result) -> Table:
    """Cut a table that would make the page too large, and say so."""
    if (count := len(table.rows)) <= MOST_ROWS:
        return table
    note = f"The first {MOST_ROWS:,} of {count:,} rows; {result.name} has all. {table.note}"
    return table._replace(rows=table.rows[:MOST_ROWS], note=note.strip(), folded=True)


def _tables(result: Result) -> Iterator[Table]:
    yield from _layer_tables(result)
    yield _trans_net_table(result)
    yield _knowledge_table(result)
    yield from _distinction_tables(result)
    yield _similarity_table(result)
    yield from _class_tables(result)
    yield _spectrum_table(result)
    yield _matrix_table(result)
    yield _net_table(result)
    yield Table("Answers", ("on the held-out images", "number"), list(_answer_rows(result)))
    yield _image_table(result)
    yield _cost_table(result)
    yield _settings_table(result)


def _atlas_tables(result: Result) -> Iterator[Table]:
    yield from atlas_tables(result)
    yield _net_table(result)
    yield _image_table(result)
    yield _cost_table(result)
    yield _settings_table(result)


def _ways(result: Result) -> Iterator[tuple[int, str, str]]:
    """Give every pair of layers and way, and how a table names the way."""
    a, b = names(result)
    for row in range(len(result.get("pairs"))):
        for way, name in zip(WAYS, (f"{a} → {b}", f"{b} → {a}")):
            yield row, way, name


def _cell(result: Result, *path: str | int, form: str = ".3f", unit: float = 1) -> Cell:
    """Give a number with its interval, and a dash where there is none."""
    if result.get(*path) is None:
        return "–"
    if isinstance(result.get(*path), dict) and result.get(*path, "value") is None:
        return f"undefined: {result.get(*path, 'reason') or 'no such number'}"
    return estimate(result, *path, form=form, unit=unit)


def _layer_tables(result: Result) -> Iterator[Table]:
    notes = [note for pair in result.get("pairs") for note in pair.get("notes") or ()]
    columns = {
        "consistency": "consistency",
        "instability": "instability",
        "null": "null",
        "floor": "class alone",
    }
    rows: list[list[Cell]] = [
        [
            pair_label(result, row),
            name,
            *(_cell(result, "pairs", row, way, key) for key in columns),
        ]
        for row, way, name in _ways(result)
    ]
    head = ("layers", "way", *columns.values())
    note = "; ".join(dict.fromkeys(notes))
    yield Table("Layers", head, rows, note, folded=len(rows) > UNFOLDED)
    rows = [
        [
            *(pair_label(result, row), name, _cell(result, "pairs", row, "shared")),
            *(_cell(result, "pairs", row, way, key) for key in ("ceiling", "between", "within")),
            _fit_words(result.get("pairs", row, way, "fit")),
        ]
        for row, way, name in _ways(result)
    ]
    head = ("layers", "way", "shared", "ceiling", "between classes", "within classes", "fit")
    yield Table("Shared, ceilings and fits", head, rows, folded=True)


def _fit_words(fit: Mapping[str, Any] | None) -> str:
    """Say by what a way was fitted."""
    if not fit:
        return "–"
    if fit.get("family") == "linear":
        return "linear"
    width = f"{fit.get('hidden')} spare channels, {fit.get('steps')} steps"
    record = fit.get("record") or {}
    taken = (
        " (the linear layer took its place)" if (record.get("linear") or {}).get("taken") else ""
    )
    return f"Trans-Net, {fit.get('layers')} layers, {width}, {record.get('state')}{taken}"


def _trans_net_table(result: Result) -> Table:
    rows: list[list[Cell]] = []
    for row, way, name in _ways(result):
        path = ("pairs", row, way, "trans_net")
        if not result.get(*path):
            continue
        last = len(result.get("pairs", row, way, "spectrum")) - 1
        gain = ("pairs", row, way, "spectrum", last, "intervals", "gain")
        rows.append(
            [
                *(pair_label(result, row), name),
                *(_cell(result, *path, key) for key in ("consistency", "instability", "null")),
                _cell(result, *gain, form="+.3f"),
                _cell(result, "pairs", row, "shared_by_trans_nets"),
                _fit_words(result.get(*path, "fit")),
            ]
        )
    head = ("layers", "way", "consistency", "instability", "null", "R² gained", "shared", "fit")
    note = (
        "R² gained: over the linear layer, image by image. Not at its end: the last doubling of the"
        " steps still changed what is left. Width not at its end: more spare channels leave less."
    )
    return Table("Trans-Nets beside the linear layers", head, rows, note, len(rows) > UNFOLDED)


def _knowledge_table(result: Result) -> Table:
    columns = {
        "bits": ("bits of the answer", ".2f"),
        "kept_bits": ("that arrive", ".2f"),
        "share": ("share", ".3f"),
        "rho": ("beyond the class", ".3f"),
        "p": ("p of that", ".2g"),
        "agreement": ("equal answers", ".3f"),
        "decision_recovery": ("decision recovery", ".3f"),
        "penultimate_r2": ("penultimate R²", ".3f"),
    }
    rows: list[list[Cell]] = [
        [
            pair_label(result, row),
            f"{name}{by}",
            *(_cell(result, *path, key, form=form) for key, (_, form) in columns.items()),
        ]
        for row, way, name in _ways(result)
        for by, path in (
            ("", ("pairs", row, way, "knowledge")),
            (" by the Trans-Net", ("pairs", row, way, "trans_net", "knowledge")),
        )
        if result.get(*path)
    ]
    head = ("layers", "way", *(title for title, _ in columns.values()))
    note = (
        "Read by the second net's own layers. Beyond the class is shown by p, not by its interval."
    )
    return Table(
        "What a net still knows of what it is sent", head, rows, note, len(rows) > UNFOLDED
    )


def _distinction_tables(result: Result) -> Iterator[Table]:
    a, b = names(result)
    rows: list[list[Cell]] = []
    of_images: list[list[Cell]] = []
    notes = list[str]()
    for way, name in zip(WAYS, (f"{a} → {b}", f"{b} → {a}")):
        if (place := distinction_place(result, way)) is None:
            continue
        notes += result.get(*place, "notes")
        for number, pair in enumerate(result.get(*place, "pairs")[:MOST_DISTINCTIONS]):
            path = (*place, "pairs", number)
            # Called: beyond what reference nets of the same recipe lose.
            rows.append(
                [
                    *(name, f"{pair['first']} and {pair['second']}"),
                    _cell(result, *path, "loss"),
                    _cell(result, *path, "relative", form="+.3f"),
                    _cell(result, *path, "beyond_references", form="+.3f"),
                    {None: "–", True: "called", False: "not called"}[pair["called"]],
                ]
            )
        for number, image in enumerate(result.get(*place, "most_lost")):
            path = (*place, "most_lost", number)
            of_images.append(
                [
                    name,
                    str(image["path"] or image["image"]),
                    str(image["answer"]),
                    _cell(result, *path, "margin", form=".2f"),
                    _cell(result, *path, "confidence", form=".3f"),
                ]
            )
    note = (
        "Of the gap between two classes in the second net's logits, the share that does not arrive."
    )
    head = ("way", "classes", "gap lost", "less the median", "less references", "")
    note = " ".join(dict.fromkeys([note, *notes]))
    yield Table("Least shared distinctions", head, rows, note, len(rows) > UNFOLDED)
    note = "Margin: by how much the logits through the map prefer another class than the answer."
    head_of_images = ("way", "image", "the second net's answer", "margin", "confidence")
    yield Table("Images most lost", head_of_images, of_images, note, folded=True)
    yield from _missing_part_tables(result)


def _missing_part_tables(result: Result) -> Iterator[Table]:
    """Lay out how well the margin tells images, where it is lost, and along which directions."""
    a, b = names(result)
    differing: list[list[Cell]] = []
    places: list[list[Cell]] = []
    of_directions: list[list[Cell]] = []
    for way, name in zip(WAYS, (f"{a} → {b}", f"{b} → {a}")):
        if (place := distinction_place(result, way)) is None:
            continue
        if result.get(*place, "differing"):
            columns = ("images", "margin", "confidence", "beyond_confidence")
            differing.append(
                [name, *(_cell(result, *place, "differing", of, form=".3g") for of in columns)]
            )
        if result.get(*place, "places"):
            path = (*place, "places")
            places.append(
                [
                    *(name, _cell(result, *path, "positions", form=",")),
                    _cell(result, *path, "like_untrue", form=".2f"),
                    "withdrawn" if result.get(*path, "withdrawn") else "drawn",
                ]
            )
        for number, row in enumerate(result.get(*place, "directions", "shown") or ()):
            path = (*place, "directions", "shown", number)
            images = [
                ", ".join(str(of["path"] or of["image"]) for of in row[end][:3])
                for end in ("most", "least")
            ]
            channels = ", ".join(str(of["channel"]) for of in row["channels"])
            margin = _cell(result, *path, "margin", form=".3f")
            of_directions.append([name, margin, channels, *images])
    note = (
        "Areas under the curve: an image that both nets answer differently has the larger margin, or"
        " the smaller confidence, than one that they answer alike."
    )
    head = ("way", "such images", "margin", "confidence", "margin − confidence")
    yield Table("Images that both nets answer differently", head, differing, note)
    note = (
        "The map of an untrue pair, with another image's reconstruction, should have other ranks."
        " Where their correlation is 0.3 or more, the map shows the second net's features alone and"
        " is not drawn."
    )
    head_of_places = ("way", "positions", "rank correlation with an untrue pair", "map")
    yield Table("Where the missing part matters", head_of_places, places, note)
    note = "In the metric of the second net's tail. No test stands behind a direction."
    head = ("way", "margin carried", "strongest channels", "most excited by", "least excited by")
    yield Table("Directions of channels that are missing", head, of_directions, note, folded=True)


def _similarity_table(result: Result) -> Table:
    rows: list[list[Cell]] = []
    for row in range(len(result.get("pairs"))):
        for number, score in enumerate(result.get("pairs", row, "similarities") or ()):
            path = ("pairs", row, "similarities", number)
            level = "level" if "level" in score else "threshold"
            keys = (("value", ".3f"), (level, ".3f"), ("calibrated", ".3f"), ("p", ".2g"))
            rows.append(
                [
                    pair_label(result, row),
                    str(score["name"]),
                    *(_cell(result, *path, key, form=form) for key, form in keys),
                ]
            )
    note = (
        "An image is a row; maps are pooled to 4 × 4. Calibrated: (value − level) / (1 − level);"
        " 95 % of permuted images stay below the level."
    )
    head = ("layers", "similarity", "value", "level", "calibrated", "p")
    return Table("Other similarities", head, rows, note, len(rows) > UNFOLDED)


def _class_tables(result: Result) -> Iterator[Table]:
    a, b = names(result)
    rows: list[list[Cell]] = []
    # The deepest first, since a long table is cut.
    for row in reversed(range(len(result.get("pairs")))):
        for number, entry in enumerate(result.get("pairs", row, "per_class") or ()):
            path = ("pairs", row, "per_class", number)
            numbers = [_cell(result, *path, f"{way}_unexplained") for way in WAYS]
            rows.append([pair_label(result, row), str(entry["class"]), *numbers])
    head = ("layers", "class", f"{a} → {b}", f"{b} → {a}")
    note = "The share of the variance within a class's images that is not reconstructed."
    yield Table("Unexplained within the classes", head, rows, note, folded=True)
    rows = [
        [
            pair_label(result, row),
            name,
            str(entry["class"]),
            _cell(result, *path, number, "lost_bits"),
        ]
        for row, way, name in _ways(result)
        for path in [("pairs", row, way, "knowledge", "per_class")]
        for number, entry in enumerate(result.get(*path) or ())
    ]
    head = ("layers", "way", "class", "bits lost an image")
    yield Table("Bits lost, by class", head, rows, folded=True)
    rows = [
        [
            str(entry["class"]),
            *(
                _cell(result, "answers", "per_class", number, key, form=".2f", unit=100)
                for key in ("negative_flips", "positive_flips")
            ),
            _cell(result, "answers", "per_class", number, "mcnemar_p", form=".2g"),
        ]
        for number, entry in enumerate(result.get("answers", "per_class") or ())
    ]
    head = ("class", "negative flips, %", "positive flips, %", "McNemar's p")
    yield Table("Changed answers, by class", head, rows, folded=True)


def _spectrum_table(result: Result) -> Table:
    rows: list[list[Cell]] = []
    for row, way, name in _ways(result):
        for number in range(len(result.get("pairs", row, way, "spectrum") or ())):
            path = ("pairs", row, way, "spectrum", number)
            explained, gain = (
                _cell(result, *path, "intervals", key, form=form)
                if result.get(*path, "intervals", key)
                else _cell(result, *path, key, form=form)
                for key, form in (("r2", ".3f"), ("gain", "+.3f"))
            )
            depth = result.value(*path, "layers")
            rows.append([pair_label(result, row), name, depth, explained, gain])
    note = "R² is 1 − instability; the gain is over the depth before, image by image."
    head = ("layers", "way", "Trans-Net's layers", "R²", "gain")
    return Table("Fuzziness spectrum", head, rows, note, folded=True)


def _matrix_table(result: Result) -> Table:
    a, b = names(result)
    columns = {"shared": "shared", "forth": f"{a} → {b}", "back": f"{b} → {a}", "cka": "CKA"}
    kinds = [kind for kind in columns if result.get("matrix", kind)]
    rows: list[list[Cell]] = [
        [
            str(first),
            str(second),
            *(_cell(result, "matrix", kind, row, column) for kind in kinds),
        ]
        for row, first in enumerate(result.get("matrix", "rows") or ())
        for column, second in enumerate(result.get("matrix", "columns") or ())
    ]
    head = (f"layer of {a}", f"layer of {b}", *(columns[kind] for kind in kinds))
    return Table("Layer by layer", head, rows, folded=True)


def _net_table(result: Result) -> Table:
    rows: list[list[Cell]] = []
    for row, net in enumerate(result.get("nets")):
        accuracy = _cell(result, "nets", row, "top1_percent", form=".2f")
        reason = net.get("why_no_accuracy")
        rows.append(
            [
                result.value("nets", row, "name"),
                result.value("nets", row, "arch"),
                result.value("nets", row, "parameters", form=","),
                f"not measured: {reason}" if accuracy == "–" and reason else accuracy,
            ]
        )
    return Table("Nets", ("net", "architecture", "parameters", "top1, %"), rows)


def _answer_rows(result: Result) -> Iterator[list[Cell]]:
    titles = {
        "agreement": "equal answers, % of images",
        "negative_flips": "negative flips, % of images",
        "positive_flips": "positive flips, % of images",
    }
    for key, title in titles.items():
        if ends(result, "answers", key) is not None:
            yield [title, _cell(result, "answers", key, form=".2f", unit=100)]
    if result.get("answers", "mcnemar_p") is not None:
        yield ["p of McNemar's exact test", result.value("answers", "mcnemar_p", form=".2g")]


def _image_table(result: Result) -> Table:
    rows: list[list[Cell]] = [
        [title, result.value("images", key, form=",")]
        for key, title in (
            ("fitted", "fitted to"),
            ("held_out", "held out, for every number"),
            ("per_class_min", "of the smallest class"),
        )
        if result.get("images", key) is not None
    ]
    classes = result.get("images", "classes") or ()
    rows.append(["classes", str(len(classes))])
    notes = [*(result.get("images", "notes") or ()), *(result.get("notes") or ())]
    return Table("Images", ("", "number"), rows, "; ".join(notes))


def _cost_table(result: Result) -> Table:
    rows: list[list[Cell]] = [
        [
            str(entry["name"]),
            result.value("parts", number, "seconds", form=".1f"),
            "kept from an earlier run" if entry.get("cached") else "computed",
        ]
        for number, entry in enumerate(result.get("parts") or ())
    ]
    return Table("What it cost", ("step", "seconds", ""), rows, folded=True)


def _settings_table(result: Result) -> Table:
    rows: list[list[Cell]] = [
        [key, result.value(key)]
        for key in ("command", "created", "weights")
        if result.get(key) is not None
    ]
    rows += [*result.entries("versions"), *result.entries("settings")]
    for row, net in enumerate(result.get("nets")):
        others = {key: value for key, value in net.items() if key not in OF_NET_TABLE}
        for path in _leaves(others):
            rows.append([f"{net['name']} {' '.join(path)}", result.value("nets", row, *path)])
    rows += [["images' folder", result.value("images", "folder")]]
    return Table("Settings and provenance", ("setting", "value"), rows, folded=True, words=True)


def _leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Give the paths of what lies in a tree, but of nothing that is empty."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, key))
        elif value not in (None, "", []):
            yield (*path, key)


def _gate(result: Result) -> Gate | None:
    if not result.get("gate"):
        return None
    verdict: Cell = result.value("gate", "verdict")
    reasons: list[Cell] = [
        result.value("gate", "reasons", row) for row in range(len(result.get("gate", "reasons")))
    ]
    rows: list[list[Cell]] = [
        [
            str(entry["name"]),
            str(entry.get("where") or ""),
            _cell(result, "gate", "checks", row, "value", form=".4f"),
            [
                f"{entry.get('sense') or ''} ",
                _cell(result, "gate", "checks", row, "threshold", form="g"),
            ],
            str(entry["verdict"]),
        ]
        for row, entry in enumerate(result.get("gate", "checks") or ())
    ]
    head = ("check", "where", "value", "threshold", "verdict")
    policy = [*result.entries("gate", "policy")]
    tables = [
        Table("Checks", head, rows, folded=len(rows) > UNFOLDED),
        Table("Policy", ("setting", "value"), policy, folded=True, words=True),
    ]
    return Gate(verdict, reasons, [table for table in tables if table.rows])


def _pictures(result: Result, folder: str | Path) -> Iterator[tuple[Picture, str, str]]:
    """Give the pictures that the report names, with their captions and alternative texts.

    Raises:
        InputError: one is not in the folder.
    """
    named = result.get("pictures") or ()
    if not named:
        return
    # The report names files; only those in its folder are shown.
    there = {picture.name.place: picture for picture in read_pictures(folder)}
    room = PICTURE_BYTES
    for entry in named:
        if entry["file"] not in there:
            raise InputError(
                f"{result.name} names the picture {entry['file']}, which is not in {folder}; make"
                " it anew"
            )
        picture = there[entry["file"]]
        if len(picture.uri) > room:
            continue  # a table names it
        room -= len(picture.uri)
        yield picture, str(entry["caption"]), str(entry["alternative"])


def _picture_table(result: Result, shown: Sequence[tuple[Picture, str, str]]) -> Table:
    """Name the pictures that there is no room for."""
    files = {picture.name.place for picture, _, _ in shown}
    rows: list[list[Cell]] = [
        [str(entry["file"]), str(entry["caption"])]
        for entry in result.get("pictures") or ()
        if entry["file"] not in files
    ]
    return Table("Pictures beside the page, which has no room for them", ("file", "what"), rows)
