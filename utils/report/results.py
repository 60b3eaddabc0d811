"""What a run's folder holds for a report.

That is the JSON of Compare.py, Variance.py and Calibrate.py, and pictures.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from utils.errors import InputError
from utils.files import read_json, sha256
from utils.presence import check_run_folder

KINDS = {
    "compare": {"kind", "nets", "pairs", "images"},
    "variance": {"var", "instability", "source"},
    "calibration": {"rows", "consistency", "baselines", "source"},
}
# What pages go through of variances and calibrations, wherever it lies in them: lists of text or of
# objects, and objects
LISTS: dict[str, type] = {
    "notes": str,
    "doubts": str,
    "rows": dict,
    "channels": dict,
    "spectrum": dict,
    "baselines": dict,
}
OBJECTS = {"var", "intervals", "source", "settings", "back", "shared"}
TEXTS = {"name"}
PICTURES = {".png": "image/png", ".svg": "image/svg+xml"}  # a browser shows no PDF as a picture


@dataclass(frozen=True)
class Value:
    """One value as it is shown.

    Attributes:
        place: where it comes from: "variance.json: var.order0".
        value: all of its digits.
        text: what is read of it.
    """

    place: str
    value: str
    text: str


Cell: TypeAlias = "str | Value | Sequence[Cell]"  # pieces of a cell stand behind one another


@dataclass(frozen=True)
class Result:
    """One JSON file of a run.

    Attributes:
        name: of the file.
        kind: "compare", "variance" or "calibration", which script wrote it.
        content: the report.
        place: the keys under which `content` lies in the file; none: it is all of it.
    """

    name: str
    kind: str
    content: Mapping[str, Any]
    place: tuple[str, ...] = ()

    def inside(self, key: str) -> "Result":
        """Give what lies under a key, as a result of its own."""
        return Result(self.name, self.kind, self.content[key], (*self.place, key))

    def get(self, *path: str | int) -> Any:
        """Give what lies at a path of keys and indices; None if nothing does."""
        content: Any = self.content
        for key in path:
            inside = isinstance(content, list) and isinstance(key, int) and key < len(content)
            if not inside and not (isinstance(content, dict) and key in content):
                return None
            content = content[key]
        return content

    def value(self, *path: str | int, form: str = "", unit: float = 1) -> str | Value:
        """Give what lies at a path, as it is shown.

        What is undefined comes with its reason where the file has one.

        Args:
            path: keys and indices.
            form: the format of a number.
            unit: numbers are multiplied by it: 100 for per cent.
        """
        content, place = self.get(*path), f"{self.name}: {'.'.join(map(str, (*self.place, *path)))}"
        if content is None:
            reason = self.get(*path[:-1], "reason")
            return f"undefined: {reason}" if reason else "undefined"
        if isinstance(content, int | float) and not isinstance(content, bool):
            content = unit * content if unit != 1 else content
            text = format(content, form)
            # What rounds to zero has no sign: "-0.00" would be read as less than nothing.
            if text.startswith("-") and not text.strip("-0."):
                text = format(0 * abs(content), form)
            return Value(place, repr(content), text)
        if isinstance(content, list):
            return Value(place, json.dumps(content), ", ".join(map(str, content)))
        return Value(place, str(content), str(content))

    def interval(self, *path: str | int, form: str = ".4f", unit: float = 1) -> Cell:
        """Give the interval whose ends lie at a path as it is shown; a dash where there is none."""
        if self.get(*path, "low") is None:
            return "–"
        low, high = (self.value(*path, end, form=form, unit=unit) for end in ("low", "high"))
        return ["[", low, ", ", high, "]"]

    def entries(self, *path: str) -> Iterator[list[Cell]]:
        """Give the settings at a path, as rows of a name and a value.

        Those inside of others are given, too.
        """
        for name, entry in (self.get(*path) or {}).items():
            if isinstance(entry, dict):
                yield from self.entries(*path, name)
            elif entry not in (None, "") and name != "classes":  # which have a table
                yield [" ".join((*path[1:], name)), self.value(*path, name)]


@dataclass(frozen=True)
class Picture:
    """A figure: its name, its SHA-256, and itself as a data URI."""

    name: Value
    uri: str


def read_results(folder: str | Path) -> list[Result]:
    """Read the JSON files of a run, variances first.

    Raises:
        InputError: there is no such folder, no result in it, or a JSON file that is no result.
    """
    check_run_folder(folder)
    results = []
    for path in sorted(Path(folder).glob("*.json")):
        content = read_json(path)
        # A file is of the kind whose keys it has.
        kinds = [
            kind
            for kind, keys in KINDS.items()
            if isinstance(content, dict) and keys <= content.keys()
        ]
        if not kinds:
            raise InputError(
                f"{path} is of none of Compare.py, Variance.py --json and Calibrate.py --json; move"
                " it elsewhere"
            )
        if kinds[0] != "compare" and (place := _misshapen(content)):
            raise InputError(
                f"{path} was changed after it was written: {place} is of another kind than the"
                " script writes; write it anew"
            )
        results.append(Result(path.name, kinds[0], content))
    if not results:
        raise InputError(
            f"{folder} has no results; write some there with Compare.py, Variance.py --json or"
            " Calibrate.py --json"
        )
    return sorted(results, key=lambda result: list(KINDS).index(result.kind))


def _misshapen(content: Mapping[str, Any], place: str = "") -> str:
    """Name the first entry of a report that is of another kind than the constants above say."""
    for key, value in content.items():
        here = f"{place}.{key}" if place else key
        entry = LISTS.get(key)
        is_list = isinstance(value, list) and (
            entry is None or all(isinstance(one, entry) for one in value)
        )
        if value is not None and (
            (entry and not is_list)
            or (key in OBJECTS and not isinstance(value, dict))
            or (key in TEXTS and not isinstance(value, str))
        ):
            return here
        inside = enumerate(value) if isinstance(value, list) else [(None, value)]
        for number, one in inside:
            where = here if number is None else f"{here}.{number}"
            if isinstance(one, dict) and (wrong := _misshapen(one, where)):
                return wrong
    return ""


def holds_results(folder: str | Path) -> bool:
    """Whether a folder is one that `read_results` takes."""
    try:
        return bool(read_results(folder))
    except InputError:
        return False


def read_pictures(folder: str | Path) -> list[Picture]:
    """Read the pictures of a run."""
    pictures = []
    for path in sorted(Path(folder).iterdir()):
        if kind := PICTURES.get(path.suffix.lower()):
            digest = sha256(path)
            encoded = base64.b64encode(path.read_bytes()).decode("ascii")
            pictures.append(
                Picture(Value(path.name, digest, digest[:16]), f"data:{kind};base64,{encoded}")
            )
    return pictures
