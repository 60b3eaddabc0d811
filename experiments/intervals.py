"""How certain a table's numbers are:
intervals over test images and pairs of nets, and verdicts on what is claimed.

A file gives, for every test image, one value whose mean is the file's number: whether a net is
right (`hits` of a checkpoint), an image's part of a variance (`per_image` of Variance.py's JSON),
its influence on an instability. Means of these are resampled, and two numbers of the same images
are compared image by image. Nets and Trans-Nets stay as they were trained.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consistency.bootstrap import Interval, Verdict, bootstrap, verdict

Facts = Mapping[str, Any]
Key = tuple[str, str]  # row, column
ROUNDING = 1e-4  # relative, between a number and the mean of what its images say

LEGEND = (
    "[low, high]: 95 % interval over the test images and, where a cell has several files, over its"
    " pairs of nets (of fewer than about five it is too narrow); nets and Trans-Nets are held as"
    " they were trained. (low … high): range of files that do not say what single images give."
)


@dataclass(frozen=True)
class ByImage:
    """What single images give to a number.

    Attributes:
        images: which they are: data set, name of the folder, how many.
        values: (F, N) of F files, in the number's unit; their mean is the number.
    """

    images: tuple[Any, ...]
    values: NDArray[np.float64]


class Between(NamedTuple):
    """Two numbers that another one lies between.

    Attributes:
        low, high: the ends.
        kind: an "interval", or the "range" of several files.
    """

    low: float
    high: float
    kind: Literal["interval", "range"]

    def text(self, number_format: str) -> str:
        """Write it as it stands behind a number: "[0.281, 0.319]", "(0.200 … 0.400)"."""
        low, high = (f"{end:{number_format}}" for end in (self.low, self.high))
        return f"[{low}, {high}]" if self.kind == "interval" else f"({low} … {high})"


@dataclass(frozen=True)
class Claim:
    """A number that is said to be larger than another one.

    Attributes:
        says: the claim in words.
        where: the row or column that it is about.
        difference: between the two numbers, the larger one first.
        interval: of the difference; None where it is not known image by image.
        verdict: see `consistency.bootstrap.verdict`.
    """

    says: str
    where: str
    difference: float
    interval: Interval | None
    verdict: Verdict

    def line(self, number_format: str) -> str:
        """Write it as a line of Markdown."""
        between = "(not known image by image)"
        if self.interval and self.interval.low is not None and self.interval.high is not None:
            between = Between(self.interval.low, self.interval.high, "interval").text(
                f"+{number_format}"
            )
        return (
            f"- {self.where}: {self.says}: {self.difference:+{number_format}} {between}:"
            f" {self.verdict}"
        )


@dataclass(frozen=True)
class Number:
    """A cell's number: the mean over its files.

    Attributes:
        files: each file's, (F,); of a difference its mean alone.
        by_image: what single images give to it, or None where that is not known of all files on the
            same images.
        stated: the interval that the only file gives itself.
    """

    files: tuple[float, ...]
    by_image: ByImage | None
    stated: Between | None = None

    @property
    def value(self) -> float:
        """The number."""
        return sum(self.files) / len(self.files)

    def minus(self, other: "Number") -> "Number":
        """Subtract, image by image and file by file, in the order of their names.

        Where the numbers of files differ, each side is first averaged over its files.
        """
        mine, theirs, difference = self.by_image, other.by_image, (self.value - other.value,)
        if mine is None or theirs is None or mine.images != theirs.images:
            return Number(difference, None)
        first, second = mine.values, theirs.values
        if len(first) != len(second):
            first, second = first.mean(0, keepdims=True), second.mean(0, keepdims=True)
        return Number(difference, ByImage(mine.images, first - second))

    def interval(self) -> Interval | None:
        """Resample images, and files where there are several;
        None where single images are not known.
        """
        if self.by_image is None:
            return None
        # `bootstrap` takes sums: parts of 1 / N add up to the mean.
        shares = self.by_image.values / self.by_image.values.shape[1]
        if len(shares) == 1:
            return bootstrap(_total, [shares[0]])["mean"]
        return bootstrap(_total, [shares], crossed="pairs")["mean"]

    def between(self) -> Between | None:
        """Give the interval, or else the range of several files."""
        interval = self.interval()
        if interval and interval.low is not None and interval.high is not None:
            return Between(interval.low, interval.high, "interval")
        return (
            Between(min(self.files), max(self.files), "range")
            if len(self.files) > 1
            else self.stated
        )


def look_up(facts: Facts, name: str) -> float | None:
    """Find the number that a dotted name such as "var.order0" means, or None."""
    value = _inside(facts, name.split("."))
    return None if value is None else float(value)


def _inside(facts: Facts, path: Sequence[str]) -> Any:
    """Find what lies at a path; a list's rows are called as they call themselves."""
    value: Any = facts
    for part in path:
        if isinstance(value, list):
            value = next(
                (row for row in value if part in (row.get("pairs"), row.get("name"))), None
            )
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def measured(files: Sequence[Facts], name: str) -> Number | None:
    """Read a named number of every file of a cell;
    None if there are none, or one does not have it.
    """
    values = [look_up(facts, name) for facts in files]
    given = [value for value in values if value is not None]
    if not given or len(given) < len(values):
        return None
    parts = [part for facts, value in zip(files, given) if (part := _by_image(facts, name, value))]
    # Files without parts, or of other images, cannot be resampled together.
    if len(parts) < len(given) or len({part.images for part in parts}) > 1:
        return Number(tuple(given), None, _stated(files[0], name))
    return Number(
        tuple(given), ByImage(parts[0].images, np.concatenate([part.values for part in parts]))
    )


def _stated(facts: Facts, name: str) -> Between | None:
    """Find the ends that stand beside a number which is the "value" of an interval."""
    *path, last = name.split(".")
    owner = _inside(facts, path)
    if (
        last != "value"
        or not isinstance(owner, Mapping)
        or owner.get("low") is None
        or owner.get("high") is None
    ):
        return None
    return Between(float(owner["low"]), float(owner["high"]), "interval")


def _by_image(facts: Facts, name: str, number: float) -> ByImage | None:
    parts = facts.get("per_image", {})
    owner = _inside(facts, name.split(".")[:-1]) or {}
    if name == "instability" and parts:
        left, whole = (np.array(parts[key]) for key in ("residual", "target"))
        # How it would move if the image weighed more
        values = number + (left - number * whole) / whole.mean()
    elif name.startswith("var.") and name.removeprefix("var.") in parts:
        values = np.array(parts[name.removeprefix("var.")])
    # 0 or 100 of each image: their mean is the accuracy in percent.
    elif name.endswith("acc1") and len(owner.get("hits", ())):
        values = 100.0 * np.asarray(owner["hits"], dtype=float)
    else:
        return None
    # What does not average to the number is of another measurement, and says nothing of it.
    if len(values) < 2 or not math.isclose(values.mean(), number, rel_tol=ROUNDING):
        return None
    data = owner.get("data") or facts.get("source") or {}
    return ByImage((data.get("dataset"), data.get("name"), len(values)), values[None])


def _total(total: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    return {"mean": total}


def decide(
    claims: Sequence[Mapping[str, Any]],
    rows: Mapping[str, str],
    columns: Mapping[str, str],
    numbers: Mapping[Key, Number],
) -> list[Claim]:
    """Decide every claim wherever both of its numbers are ours.

    Args:
        claims: entries of paper.json: `says`, and `rows` or `columns`, the key of the one that is
            claimed to be larger first; `where`: the columns or rows that it is about, by default
            all.
        rows: titles by key.
        columns: the same.
        numbers: ours.
    """
    decided = []
    for claim in claims:
        of_rows = "rows" in claim
        for where, title in (columns if of_rows else rows).items():
            if where not in claim.get("where", [where]):
                continue
            keys = [
                (key, where) if of_rows else (where, key)
                for key in claim["rows" if of_rows else "columns"]
            ]
            larger, smaller = (numbers.get(key) for key in keys)
            if larger and smaller:
                difference = larger.minus(smaller)
                interval = difference.interval()
                judgement = "cannot be said" if interval is None else verdict(interval)
                decided.append(Claim(claim["says"], title, difference.value, interval, judgement))
    return decided
