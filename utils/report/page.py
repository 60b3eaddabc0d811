"""A run as one page of HTML for people who did not run it.

Such a page is compared with its run again.

Every value on it is a `<data>` element: `data-from` says where in the run's files it comes from,
`value` has all of its digits, and the text is what is read. The page holds its figures and loads
nothing.
"""

from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

from utils.errors import InputError
from utils.report.compare_page import render_result
from utils.report.results import Value, read_pictures, read_results
from utils.report.sections import lay_out
from utils.report.template import fill

NETS = ("checkpoint_a", "checkpoint_b", "transnet", "sha256")  # whose hashes tell runs apart
GENERATOR = '<meta name="generator"'  # the line that says what drew a page's charts


def render(folder: str | Path) -> str:
    """Make the page of a run.

    Args:
        folder: with what `Variance.py --json/--figure/--spectrum` and `Calibrate.py --json` wrote,
            or what `Compare.py` wrote.

    Returns:
        HTML; the same of the same files.

    Raises:
        InputError: see `read_results`; a comparison beside other results; or the page would be too large.
    """
    results = read_results(folder)
    # A comparison has a page of its own kind.
    comparisons = [result for result in results if result.kind == "compare"]
    if comparisons and len(results) > 1:
        others = ", ".join(result.name for result in results if result is not comparisons[0])
        raise InputError(
            f"{folder} holds a comparison, {comparisons[0].name}, and results beside it ({others});"
            " keep each in a folder of its own"
        )
    if comparisons:
        return render_result(comparisons[0], folder)
    sections = [lay_out(result) for result in results]
    return fill("page.html.jinja", folder, sections=sections, pictures=read_pictures(folder))


class _Values(HTMLParser):
    """Collects the `<data>` elements of a page in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.values: list[Value] = []
        self._open: dict[str, str | None] | None = None
        self._text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "data":
            self._open, self._text = dict(attrs), ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "data" and self._open is not None:
            place, value = (self._open.get(name) or "" for name in ("data-from", "value"))
            self.values.append(Value(place, value, self._text))
            self._open = None


def values(page: str) -> list[Value]:
    """Read the values of a page, in their order."""
    reader = _Values()
    reader.feed(page)
    reader.close()
    return reader.values


def check(page: str, expected: str) -> None:
    """Compare a page with the one that its run gives now.

    Every value, its digits and its text come first, then all the rest.

    Args:
        page: what is checked.
        expected: from `render`.

    Raises:
        InputError: it is no page of this script, of another run, or something differs; the message
            has the first difference and both sides of it.
    """
    shown, expected_values = values(page), values(expected)
    if not shown:
        raise InputError("it is no page of Report.py; name one that --out wrote")
    on_page, in_run = _nets(shown), _nets(expected_values)
    for place in in_run:
        if place not in on_page or on_page[place] != in_run[place]:
            there = on_page.get(place, "not there")
            raise InputError(
                f"it is of another run: {place} is {there[:12]} there and {in_run[place][:12]} in"
                " this one"
            )
    # Numbers first: their difference says more than a line's.
    for one, other in zip_longest(shown, expected_values):
        if one != other:
            raise InputError(_difference(one, other))
    # Then the text around them, and the figures.
    for number, (one_line, other_line) in enumerate(
        zip_longest(page.splitlines(), expected.splitlines()), 1
    ):
        if one_line != other_line and (one_line or "").startswith(GENERATOR):
            raise InputError(
                "its values are the run's, but its charts were drawn by another version of"
                f" matplotlib ({one_line} there, {other_line} here); check it with that one"
            )
        if one_line != other_line:
            raise InputError(
                f"its values are the run's, but line {number} is another than a page made now would"
                " have"
            )


def _nets(values: Sequence[Value]) -> dict[str, str]:
    return {value.place: value.value for value in values if value.place.endswith(NETS)}


def _difference(one: Value | None, other: Value | None) -> str:
    """Say how a page's value and the run's differ; None is one that is not there."""
    if one is None or other is None or one.place != other.place:
        names = [value.place if value else "nothing" for value in (one, other)]
        return f"it has {names[0]} where the run has {names[1]}"
    return (
        f"{one.place} is {one.text} ({one.value}) on the page and {other.text} ({other.value}) in"
        " the run"
    )
