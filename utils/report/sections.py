"""What the page of a run says of each result: its headline, its tables, its settings."""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from utils.errors import InputError
from utils.report.results import Cell, Result
from utils.report.tables import ONE_PAIR, component_title, held_fixed, share_of

CHANNELS = 10  # on the page, of up to thousands
TITLES = {"variance": "How much of B is not reconstructed", "calibration": "What that is worth"}
ONE_DIRECTION = f"this is one direction alone, and the smaller one counts; {ONE_PAIR}"


class Table(NamedTuple):
    """A table of the page; a folded one opens by a click, and one of words has no numbers to align."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    folded: bool = False
    words: bool = False


class Section(NamedTuple):
    """What the page says of one result.

    Attributes:
        title: of the section.
        of: the networks, layers and images.
        doubts: what makes the numbers doubtful.
        headlines: names, numbers, intervals.
        tables: the rest, settings and provenance last.
    """

    title: str
    of: Cell
    doubts: Sequence[Cell]
    headlines: Sequence[tuple[str, Cell, Cell]]
    tables: Sequence[Table]


def lay_out(result: Result) -> Section:
    """Lay out one result.

    Raises:
        InputError: it is not as the script writes it.
    """
    try:
        return _lay_out(result)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise InputError(
            f"{result.name} was changed after it was written ({reason}); write it anew"
        ) from None


def _lay_out(result: Result) -> Section:
    arch_a, layer_a, arch_b, layer_b = (
        result.value("source", f"{name}_{net}") for net in "ab" for name in ("arch", "layer")
    )
    data = result.value("source", "name" if result.get("source", "name") else "dataset")
    images = [
        result.value("images", form=","),
        " images of ",
        data,
        " (",
        result.value("source", "split"),
        ")",
    ]
    of: Cell = [arch_a, " ", layer_a, " → ", arch_b, " ", layer_b, ", ", *images]
    ways = (
        [("A → B", result), ("B → A", result.inside("back"))]
        if result.get("back")
        else [("", result)]
    )
    headlines = list[tuple[str, Cell, Cell]]()
    if result.get("shared"):
        shared = result.value("shared", "shared", "value", form=".4f")
        name = f"shared by these two nets, the smaller direction ({result.get('shared', 'scale')})"
        headlines.append((name, shared, result.interval("shared", "shared")))
    tables = list[Table]()
    for way, of_way in ways:
        behind = f", {way}" if way else ""
        if result.kind == "variance":
            for name, value, about in variance_headlines(of_way):
                headlines.append((f"{name}{behind}", value, about))
            tables_of_way = variance_tables(of_way)
        else:
            consistency = of_way.value("consistency", "value", form=".4f")
            interval = of_way.interval("consistency")
            headlines.append((f"normalised consistency{behind}", consistency, interval))
            tables_of_way = calibration_tables(of_way)
        tables_of_way = itertools.chain(tables_of_way, fit_tables(of_way))
        tables += [table._replace(title=f"{table.title}{behind}") for table in tables_of_way]
    if not result.get("shared"):
        headlines.append(("shared", "not measured", ONE_DIRECTION))
    title = TITLES[result.kind]
    doubts = [result.value("doubts", number) for number in range(len(result.get("doubts") or ()))]
    tables += [*measure_tables(result), settings_table(result)]
    return Section(f"{title} ({result.name})", of, doubts, headlines, tables)


def variance_headlines(result: Result) -> Iterator[tuple[str, Cell, Cell]]:
    """Give the instability of one direction, and that of its linear reference."""
    instability = result.value("instability", form=".4f")
    yield "instability Var(x_Δ)/Var(x*)", instability, result.interval("intervals", "instability")
    if result.get("linear_reference"):
        on = result.value("linear_reference", "measured_on")
        yield (
            "of the linear reference",
            result.value("linear_reference", "instability", form=".4f"),
            on,
        )


def variance_tables(result: Result) -> Iterator[Table]:
    """Lay out what Variance.py found: components, depths, classes, channels."""
    # A constant target has no shares.
    total, rows = result.get("var", "target"), []
    for name in result.get("var"):
        share = result.value("var", name, form=".2f", unit=100 / total) if total else "–"
        of_share = result.interval("intervals", share_of(name), form=".2f", unit=100)
        variance = (
            result.value("var", name, form=".6g"),
            result.interval("intervals", f"var_{name}", form=".4g"),
        )
        rows.append([component_title(name), *variance, share, of_share])
    fixed = result.get("intervals", "instability")
    note = (
        f"Intervals: {held_fixed(fixed)}." if fixed else "No intervals: no images were resampled."
    )
    yield Table(
        "Components",
        ("component", "variance", "its interval", "share of x*, %", "its interval"),
        rows,
        note,
    )
    if count := len(result.get("spectrum") or ()):
        rows = [
            [
                result.value("spectrum", row, "layers"),
                result.value("spectrum", row, "r2", form=".4f"),
                result.interval("spectrum", row, "intervals", "r2"),
                result.value("spectrum", row, "gain", form="+.4f"),
                result.interval("spectrum", row, "intervals", "gain", form="+.4f"),
            ]
            for row in range(count)
        ]
        note = (
            "R² is 1 − instability; the gain is what a depth adds to the one before, image by"
            " image."
        )
        yield Table(
            "Fuzziness spectrum",
            ("layers", "R²", "its interval", "gain", "its interval"),
            rows,
            note,
        )
    head = ("variance of x*", "instability", "its interval")
    if count := len(result.get("classes") or ()):
        rows = [_part(result, "classes", row, "class", "images") for row in range(count)]
        note = "A class is measured from its own mean, as if its images were all there are."
        yield Table("Classes", ("class", "images", *head), rows, note, folded=True)
    yield from knowledge_tables(result)
    if channels := result.get("channels"):
        order = sorted(range(len(channels)), key=lambda row: -channels[row]["variance"])[:CHANNELS]
        rows = [_part(result, "channels", row, "channel") for row in order]
        note = f"Those of B that vary most; {result.name} has every channel."
        yield Table("Channels", ("channel", *head), rows, note, folded=True)


def knowledge_tables(result: Result) -> Iterator[Table]:
    """Lay out what the target's net still knows; nothing where its tail was not at hand."""
    columns = {
        "bits": "K",
        "of": "I_B",
        "beyond the class": "rho",
        "agreement": "agreement",
        "decision recovery": "decision_recovery",
    }
    rows: list[list[Cell]] = [
        [
            row["sender"],
            *(
                result.value("still_known", "rows", number, name, "value", form=".3f")
                if name in row
                else "–"
                for name in columns.values()
            ),
            "–"
            if row["p"] is None
            else result.value("still_known", "rows", number, "p", form=".4f"),
        ]
        for number, row in enumerate(result.get("still_known", "rows") or ())
    ]
    notes = [f"{note}." for note in result.get("still_known", "notes") or ()]
    if rows or notes:
        about = "Bits of the answer of the net that is reconstructed, which is B in this table."
        note = " ".join([*[about] * bool(rows), *notes])
        yield Table("What B still knows", ("sender", *columns, "p"), rows, note)


def calibration_tables(result: Result) -> Iterator[Table]:
    """Lay out what Calibrate.py measured.

    That is nulls and ceilings, the linear reference's test, other similarities.
    """
    rows: list[list[Cell]] = [
        [
            row["pairs"],
            result.value("rows", number, "value", form=".4f"),
            result.interval("rows", number),
            (
                "–"
                if row["linear_reference"] is None
                else result.value("rows", number, "linear_reference", form=".4f")
            ),
            *(result.value("rows", number, key) for key in ("steps", "hidden") if key in row),
            *(["the linear layer" if row["is_linear"] else "–"] if "is_linear" in row else []),
        ]
        for number, row in enumerate(result.get("rows"))
    ]
    note = "; ".join(
        [f"Intervals: {held_fixed(result.get('consistency'))}", *(result.get("notes") or ())]
    )
    head = (
        "pairs",
        "instability",
        "its interval",
        "linear reference",
        "steps",
        "M",
        "its place taken by",
    )
    yield Table("Floor and ceiling", head[: len(rows[0])], rows, f"{note}.")
    if result.get("linear"):
        whole = {
            "permutations": "permutations within the class",
            "p": "p",
            "zero": "95 % of them leave more than",
            "above_zero": "consistency from there on",
        }
        rows = [[name, result.value("linear", key, form=".4g"), "–"] for key, name in whole.items()]
        for key, name in {
            "instability": "it leaves",
            "consistency": "normalised consistency",
        }.items():
            number = result.value("linear", key, "value", form=".4f")
            rows.append([name, number, result.interval("linear", key)])
        note = "The best single linear layer, against the same images in another order."
        yield Table("Test of the linear reference", ("", "value", "its interval"), rows, note)


def measure_tables(result: Result) -> Iterator[Table]:
    """Lay out other measures, which have no direction; nothing where there are none."""
    if result.get("baselines"):
        rows: list[list[Cell]] = [
            [
                score["name"],
                result.value("baselines", row, "value", form=".4f"),
                f"a {score['kind']}",
            ]
            for row, score in enumerate(result.get("baselines"))
        ]
        yield Table("Other measures of the same features", ("measure", "value", ""), rows)


def fit_tables(result: Result) -> Iterator[Table]:
    """Lay out how far the Trans-Net was fitted; nothing where its file does not say."""
    rows: list[list[Cell]] = [
        [name, result.value("fitted", *path, form=form)]
        for name, form, path in (
            ("steps", ",", ("steps",)),
            ("spare channels M", "", ("hidden",)),
            ("whether it is at its end", "", ("state",)),
            ("what twice the steps changed", "+.4f", ("of_steps",)),
            ("what twice M changed", "+.4f", ("of_width",)),
            ("changes below this are none", ".4f", ("tolerance",)),
            ("ridge weight of W(0)", "g", ("ridge",)),
            ("the linear layer took its place", "", ("linear", "taken")),
            ("what the linear layer left of the images that judge", ".4f", ("linear", "linear")),
            ("what the Trans-Net left of them", ".4f", ("linear", "deep")),
        )
        if result.get("fitted", *path) is not None
    ]
    if rows:
        note = (
            "Doublings were tried on fitted images held out; they serve for changes, and not for"
            " levels."
        )
        yield Table("Fit", ("", "value"), rows, note)


def settings_table(result: Result) -> Table:
    """Lay out what was measured and how: networks, layers, data, hashes, the options of the fit."""
    rows: list[list[Cell]] = [*result.entries("source"), *result.entries("settings")]
    for name, path in {
        "Trans-Net's SHA-256": ("transnet",),
        "epochs of the other fits": ("epochs",),
        "mean": ("mean",),
        "ridge of the linear reference": ("linear_reference", "ridge"),
    }.items():
        if result.get(*path) is not None:
            rows.append([name, result.value(*path)])
    return Table("Settings and provenance", ("setting", "value"), rows, folded=True, words=True)


def _part(result: Result, kind: str, row: int, *names: str) -> list[Cell]:
    """Lay out one class or channel: what it is called, Var(x*), its instability."""
    numbers = [
        result.value(kind, row, "variance", form=".6g"),
        result.value(kind, row, "instability", form=".4f"),
    ]
    return [
        *(result.value(kind, row, name) for name in names),
        *numbers,
        result.interval(kind, row),
    ]
