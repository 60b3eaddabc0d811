"""Collect a run's numbers into the paper's tables, the paper's beside ours.

The sections' scripts leave every number in RUN/results/TABLE/ROW/COLUMN/: a JSON file of
Variance.py or Pruning.py, or a link to a checkpoint. A cell is the mean over the files of its
folder; where there is none, it stays empty. paper.json says which rows and columns a table has,
which entry of a file is its number, and the paper's. What a run has beyond the paper's rows and
columns (other networks) follows them. The row "settings" has files for the caption alone, and
RUN/results/TABLE/note.txt is a line of it. Numbers have their intervals, and what paper.json claims
of two rows or columns is decided by the interval of the difference (`experiments.intervals`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from experiments.intervals import LEGEND, Between, Claim, Number, decide, measured
from experiments.settings import NETS, differences
from utils import checkpoint
from utils.command import command
from utils.errors import InputError
from utils.files import read_json
from utils.parser import Parser, result_file, some_path
from utils.report.tables import markdown_table, save_table

PAPER = Path(__file__).with_name("paper.json")
Facts = dict[str, Any]
Key = tuple[str, str]  # row, column


@dataclass(frozen=True)
class Table:
    """One table of numbers.

    Attributes:
        name: in paper.json.
        title: what stands above it.
        notes: lines below the title.
        rows: titles by key, in order.
        columns: the same.
        ours: our numbers; what is missing is not there.
        intervals: of our numbers, where they are known.
        claims: what is said of our numbers, decided.
        paper: the paper's.
        number_format: how a number is printed.
    """

    name: str
    title: str
    notes: list[str]
    rows: dict[str, str]
    columns: dict[str, str]
    ours: dict[Key, float]
    intervals: dict[Key, Between]
    claims: list[Claim]
    paper: dict[Key, float]
    number_format: str


class Results:
    """What the scripts left in RUN/results; each file is read once."""

    def __init__(self, run: str | Path) -> None:
        self.folder = Path(run, "results")
        self._facts: dict[Path, Facts] = {}

    def cells(self) -> list[str]:
        """Name every cell that has a file, such as "table1/case1/alexnet_L8";
        numbers in names sort as numbers.
        """
        folders = {
            path.parent.relative_to(self.folder).as_posix()
            for path in self.folder.glob("*/*/*/[!.]*")
        }
        # Shorter numbers are smaller: by length first, then by text.
        return sorted(
            folders, key=lambda name: [(len(word), word) for word in re.findall(r"\d+|\D+", name)]
        )

    def facts(self, cell: str) -> list[Facts]:
        """Read the files of a cell: see `read`."""
        return [self.read(path) for path in sorted(self.folder.glob(f"{cell}/[!.]*"))]

    def read(self, path: Path) -> Facts:
        """Read JSON, with what the networks that it names say of themselves,
        or a checkpoint without its tensors.
        """
        if path not in self._facts:
            self._facts[path] = (
                self._read_json(path) if path.suffix == ".json" else _read_checkpoint(path)
            )
        return self._facts[path]

    def _read_json(self, path: Path) -> Facts:
        facts = read_json(path)
        source = facts.get("source", {})
        named = {name: Path(source[key]) for name, key in NETS if key in source}
        return facts | {name: self.read(net) for name, net in named.items() if net.is_file()}


def _read_checkpoint(path: Path) -> Facts:
    state = checkpoint.load(path, mmap=True)
    tensors = {"state_dict", "optimizer"}
    return {key: state[key] for key in state.keys() - tensors} | {
        "lr": state["optimizer"]["param_groups"][0]["lr"]
    }


def read_table(
    name: str, layout: Mapping[str, Any], results: Results, expected: Mapping[str, float]
) -> Table:
    """Fill one table.

    Args:
        name: of the table.
        layout: its entry in paper.json. `cells` and `value` are patterns with {row} and {column};
            an entry of `rows` or `columns` is a title, or has patterns of its own; `minus` is a
            cell whose number is subtracted; see `experiments.intervals.decide` for `claims`.
        results: of the run.
        expected: the paper's settings, by the names of `settings`; a table of another paper has its
            own.
    """
    axes = {"row": dict(layout["rows"]), "column": dict(layout["columns"])}
    pattern = layout["cells"]
    for axis in axes:
        # "table1/{row}/{column}" becomes a regular expression that finds rows and columns of a run.
        pattern = pattern.replace(f"{{{axis}}}", f"(?P<{axis}>[^/]+)")
    for found in filter(None, (re.fullmatch(pattern, cell) for cell in results.cells())):
        for axis, key in found.groupdict().items():
            # What the paper does not have comes behind it, under its own name.
            axes[axis].setdefault(key, key)
    axes["row"].pop("settings", None)

    numbers: dict[Key, Number] = {}
    used = results.facts(f"{layout['cells'].split('/')[0]}/settings/*")
    for row, row_entry in axes["row"].items():
        for column, column_entry in axes["column"].items():
            # The table's rules, over which a row's and a column's own go.
            rules = dict(layout)
            for entry in (row_entry, column_entry):
                rules |= entry if isinstance(entry, dict) else {}
            place = {"row": row, "column": column}
            files = results.facts(rules["cells"].format(**place))
            number = measured(files, rules["value"].format(**place))
            if number and "minus" in rules:
                other = measured(results.facts(rules["minus"].format(**place)), rules["value"])
                number = other and number.minus(other)
            if number:
                numbers[row, column] = number
                used += files

    paper = {
        (row, column): number
        for row, cells in layout["paper"].items()
        for column, number in cells.items()
    }
    rows, columns = (
        {
            key: entry["title"] if isinstance(entry, dict) else entry
            for key, entry in axes[axis].items()
            if any(filled[position] == key for filled in (*numbers, *paper))
        }
        for position, axis in enumerate(axes)
    )
    note = results.folder / layout["cells"].split("/")[0] / "note.txt"
    notes = differences(used, expected) + (
        [note.read_text(encoding="utf-8").strip()] if note.is_file() else []
    )
    claims = decide(layout.get("claims", ()), rows, columns, numbers)
    ours = {key: number.value for key, number in numbers.items()}
    intervals = {key: between for key, number in numbers.items() if (between := number.between())}
    return Table(
        name,
        layout["title"],
        notes,
        rows,
        columns,
        ours,
        intervals,
        claims,
        paper,
        layout["format"],
    )


def with_numbers(table: Table) -> Table:
    """Leave out the columns in which no number is ours, and say which."""
    filled = {column for _, column in table.ours}
    columns = {key: title for key, title in table.columns.items() if key in filled}
    left_out = ", ".join(title for key, title in table.columns.items() if key not in filled)
    note = (
        [f"Left out, since this run has no number: {left_out} (--paper_columns all shows them)."]
        if left_out
        else []
    )
    paper = {key: number for key, number in table.paper.items() if key[1] in filled}
    return replace(table, notes=table.notes + note, columns=columns, paper=paper)


def lines(table: Table) -> list[list[str]]:
    """Lay a table out as text cells, the head first;
    beside a column that the paper has stands the paper's.
    """
    in_paper = {column for _, column in table.paper}
    head, body = [""], [[title] for title in table.rows.values()]
    for column, title in table.columns.items():
        for name, numbers in ((title, table.ours), ("paper", table.paper)):
            if numbers is table.ours or column in in_paper:
                head.append(name)
                for line, row in zip(body, table.rows):
                    text = (
                        format(numbers[row, column], table.number_format)
                        if (row, column) in numbers
                        else ""
                    )
                    if numbers is table.ours and (row, column) in table.intervals:
                        text += f" {table.intervals[row, column].text(table.number_format)}"
                    line.append(text)
    return [head, *body]


def markdown(table: Table) -> str:
    """Write a table as Markdown."""
    head, *body = lines(table)
    claims = [claim.line(table.number_format) for claim in table.claims]
    below = ["", *claims] if claims else []
    below += ["", LEGEND] if table.intervals else []
    notes = [f"{note}\n" for note in table.notes]
    return "\n".join([f"### {table.title}", "", *notes, markdown_table(head, body), *below, ""])


def build_parser() -> Parser:
    """Declare the options."""
    parser = Parser(__doc__, "python -m experiments.tables runs --markdown tables.md")
    group = parser.add_argument_group("tables")
    group.add_argument("run", type=some_path, help="what OUT was when the sections' scripts ran")
    group.add_argument(
        "tables", nargs="*", help="names in paper.json; default: all that have numbers"
    )
    group.add_argument(
        "--paper_columns",
        choices=["ours", "all"],
        default="ours",
        help="which of the paper's columns: those that this run has numbers in, or all",
    )
    group.add_argument(
        "--markdown", type=result_file(), metavar="FILE", help="write the tables as Markdown"
    )
    group.add_argument(
        "--csv",
        type=result_file(),
        metavar="FILE",
        help="write one line a number: table, row, column, ours, paper, …",
    )
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables."""
    args = build_parser().parse_args(argv)
    paper, results = read_json(PAPER), Results(args.run)
    if unknown := set(args.tables) - set(paper["tables"]):
        raise InputError(
            f"there is no table {unknown.pop()!r}; known are {', '.join(paper['tables'])}"
        )
    chosen = {
        name: layout
        for name, layout in paper["tables"].items()
        if name in args.tables or not args.tables
    }
    tables = [
        read_table(name, layout, results, layout.get("settings", paper["settings"]))
        for name, layout in chosen.items()
    ]
    tables = [table for table in tables if table.ours]
    if not tables:
        raise InputError(
            f"{results.folder} has no number of these tables; run the scripts in experiments/ first"
        )
    text = "\n".join(
        markdown(table if args.paper_columns == "all" else with_numbers(table)) for table in tables
    )
    print(text)
    keys = [(table, key) for table in tables for key in product(table.rows, table.columns)]
    none = (None, None, None)
    numbers = [
        (
            table.name,
            *key,
            table.ours.get(key),
            table.paper.get(key),
            *table.intervals.get(key, none),
        )
        for table, key in keys
    ]
    names = ("table", "row", "column", "ours", "paper", "low", "high", "between")
    text = f"Paper: {paper['source']}.\n\n{text}"
    save_table(text, [names, *numbers], args.markdown, args.csv)


if __name__ == "__main__":
    main()
