"""The report of a comparison: numbers as plain values, a table, a figure, and files."""

import contextlib
import importlib
import importlib.metadata
import importlib.util
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from consistency.bootstrap import Interval, accuracy, bootstrap
from consistency.compared import ComparedImages, ComparedNet, equality
from consistency.gate import mcnemar
from utils.features.nets import Answers, at_chance
from utils.files import replacing, write_csv, write_json, write_text
from utils.later import matplotlib

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JSON, CSV, PAGE, ANSWERS = "compare.json", "compare.csv", "page.html", "answers.npz"
COLUMNS = ("value", "low", "high")
LEAST_DRAWN, MOST_DRAWN = -0.6, 1.6  # of a consistency


@dataclass
class Comparison:
    """What a comparison says.

    Attributes:
        record: everything as plain values: what `compare.json` holds.
        logits: of each net by its label, of the held-out images, (N', K).
        labels: classes of the held-out images, int64 (N',).
        paths: of these images; none where nobody named them.
        maps: of each way where in the images most lost the missing part matters; see
            `consistency.compared_distinctions.places_and_directions`.
        pictures: figures that the report names, by their files' names.
    """

    record: dict[str, Any]
    logits: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    paths: Sequence[str] = ()
    maps: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    pictures: dict[str, "Figure"] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """Give a row for each pair of layers and direction, as `compare.csv` has them."""
        labels = [net["label"] for net in self.record["nets"]]
        rows = []
        for pair in self.record["pairs"]:
            # Of B → A, x is B's layer: the same pair, read the other way.
            for way, order in (("forth", (0, 1)), ("back", (1, 0))):
                layers = [pair[("a", "b")[place]]["layer"] for place in order]
                row: dict[str, Any] = {
                    "direction": " → ".join(labels[place] for place in order),
                    "layer_x": layers[0],
                    "layer_target": layers[1],
                }
                for name in ("consistency", "instability", "null", "ceiling"):
                    of = pair[way][name] or {}
                    row |= {_column(name, end): of.get(end) for end in COLUMNS}
                row |= {name: pair[way][name] for name in ("floor", "between", "within", "p")}
                row |= {_column("shared", end): pair["shared"].get(end) for end in COLUMNS}
                row |= {"ridge": pair[way]["fit"]["ridge"]}
                if "trans_net" in pair[way]:
                    row |= _trans_net_columns(pair, way)
                rows.append(row)
        return rows

    def table(self) -> Any:
        """Give the rows as a pandas data frame where pandas is installed, else as a list."""
        if importlib.util.find_spec("pandas") is None:
            return self.rows()
        return importlib.import_module("pandas").DataFrame(self.rows())

    def figure(self) -> "Figure":
        """Draw the consistency of both directions and what is shared, by depth."""
        pairs = self.record["pairs"]
        figure = matplotlib.figure.Figure(figsize=(6, 4), layout="constrained")
        axes, depths = figure.subplots(), [pair["b"]["depth"] for pair in pairs]
        first, second = [net["label"] for net in self.record["nets"][:2]]
        lines = {
            "shared": [pair["shared"] for pair in pairs],
            f"{first} → {second}": [pair["forth"]["consistency"] for pair in pairs],
            f"{second} → {first}": [pair["back"]["consistency"] for pair in pairs],
        }
        for name, numbers in lines.items():
            points = [
                (depth, of["value"], of["low"], of["high"])
                for depth, of in zip(depths, numbers)
                if of and of["value"] is not None
            ]
            if not points:
                continue
            x, values, lows, highs = (np.array(column, dtype=float) for column in zip(*points))
            # Lengths below and above the point; an end that is not there has none.
            reach = np.abs(np.nan_to_num(np.stack([values - lows, highs - values])))
            axes.errorbar(x, values, reach, marker="o", capsize=3, label=name)
        # An interval of few images may reach a hundred times as far.
        low, high = axes.get_ylim()
        axes.set_ylim(max(low, LEAST_DRAWN), min(high, MOST_DRAWN))
        axes.set_xlabel(f"depth in net {second}, share of its layers")
        axes.set_ylabel("consistency: 0 the class alone, 1 all")
        axes.set_title("what both nets share, by depth")
        axes.legend()
        return figure

    def save(self, folder: str | Path) -> list[Path]:
        """Write the report, its table, the answers and the page; give the files."""
        folder = Path(folder)
        write_json(folder / JSON, self.record)
        rows = self.rows()
        if rows:
            write_csv(folder / CSV, [list(rows[0]), *(list(row.values()) for row in rows)])
        files = [folder / JSON, *([folder / CSV] if rows else [])]
        if self.logits:
            arrays = {f"logits_{label}": logits.numpy() for label, logits in self.logits.items()}
            arrays |= {
                "labels": self.labels.numpy(),
                "paths": np.array(list(self.paths), dtype=str),
            }
            # Logits beside the report: other questions about the answers need no net.
            with replacing(folder / ANSWERS) as temporary:
                np.savez(temporary, allow_pickle=False, **arrays)
            files.append(folder / ANSWERS)
        for name, figure in self.pictures.items():
            with replacing(folder / name) as temporary:
                figure.savefig(temporary, dpi=90)
            files.append(folder / name)
        if (render := page_renderer()) is not None:
            write_text(folder / PAGE, render(self.record, folder))
            files.append(folder / PAGE)
        return files

    def __str__(self) -> str:
        lines = []
        atlas = self.record["atlas"] or {"layers": [], "intervals": []}
        for layer, intervals in zip(atlas["layers"], atlas["intervals"]):
            shared = _words(intervals["images_and_nets"]["shared"])
            lines.append(f"{layer}: shared by two nets {shared}, on average over all pairs")
        for pair in self.record["pairs"]:
            ways = " ".join(
                f"{name} {_words(pair[way]['instability'])}"
                for name, way in (("A → B leaves", "forth"), ("B → A leaves", "back"))
            )
            both = "" if pair["a"]["layer"] == pair["b"]["layer"] else f" and {pair['b']['layer']}"
            lines.append(f"{pair['a']['layer']}{both}: shared {_words(pair['shared'])}; {ways}")
            if "shared_by_trans_nets" in pair:
                states = [
                    f"{name} {pair[way]['trans_net']['fit']['record']['state']}"
                    for name, way in (("A → B", "forth"), ("B → A", "back"))
                ]
                shared = _words(pair["shared_by_trans_nets"])
                lines.append(f"    by Trans-Nets: shared {shared}; {', '.join(states)}")
        return "\n".join(lines)


def page_renderer() -> Callable[[Mapping[str, Any], Path], str] | None:
    """Give what makes the page."""
    try:
        return importlib.import_module("utils.report.compare_page").render_compare
    except ModuleNotFoundError as error:
        # A page is not part of every installation.
        if error.name != "utils.report.compare_page":
            raise
        return None


def _column(name: str, end: str) -> str:
    return name if end == "value" else f"{name}_{end}"


def _trans_net_columns(pair: Mapping[str, Any], way: str) -> dict[str, Any]:
    """Give what a row says of one direction's Trans-Net: its numbers, and how far it was fitted."""
    deep = pair[way]["trans_net"]
    numbers = {
        "trans_net_consistency": deep["consistency"],
        "trans_net_instability": deep["instability"],
        "trans_net_null": deep["null"],
        "shared_by_trans_nets": pair["shared_by_trans_nets"],
    }
    row = {_column(name, end): of.get(end) for name, of in numbers.items() for end in COLUMNS}
    fit = {f"trans_net_{name}": deep["fit"][name] for name in ("layers", "hidden", "steps")}
    return row | fit | {"trans_net_state": deep["fit"]["record"]["state"]}


def _words(interval: Mapping[str, Any] | None) -> str:
    if not interval or interval["value"] is None:
        return "not defined"
    if interval["low"] is None or interval["high"] is None:
        return f"{interval['value']:.4f}"
    return f"{interval['value']:.4f} [{interval['low']:.4f}, {interval['high']:.4f}]"


def net_entry(
    net: ComparedNet, images: ComparedImages, resamples: int, seed: int
) -> dict[str, Any]:
    """Give what a report says of a net: its accuracy, and whether it seems untrained."""
    entry = {"label": net.label, "name": net.name, **net.facts}
    remarks = list(net.facts.get("remarks", ()))
    if not net.knows_classes:
        entry.setdefault("why_no_accuracy", "it tells other classes apart than these images have")
        return entry | {"top1_percent": None, "remarks": remarks}
    hits = net.logits.argmax(1) == images.held_out
    top1 = accuracy(hits.double().numpy(), resamples=resamples, seed=seed)
    answers = Answers(int(hits.sum()), len(hits))
    # A net at chance was not trained, or on other classes: then all its numbers mean little.
    remarks += at_chance(f"net {net.label}", answers, images.held_out)
    return entry | {"top1_percent": asdict(top1), "remarks": remarks}


def answers_entry(
    net_a: ComparedNet, net_b: ComparedNet, images: ComparedImages, resamples: int, seed: int
) -> dict[str, Any] | None:
    """Give where both nets answer alike, and which images are right for one of them alone.

    A negative flip is right for A and wrong for B. All are shares of the held-out images.

    Returns:
        None where the nets tell other classes apart.
    """
    if net_a.logits.shape != net_b.logits.shape:
        return None
    answers = [net.logits.argmax(1) for net in (net_a, net_b)]
    columns = {"agreement": answers[0] == answers[1]}
    if net_a.knows_classes and net_b.knows_classes:
        right = [answer == images.held_out for answer in answers]
        # Right before and wrong now, and the other way round: bool (N',).
        columns |= {"negative_flips": right[0] & ~right[1], "positive_flips": ~right[0] & right[1]}
    count = len(images.held_out)
    sums = [column.double().numpy() for column in columns.values()]

    def statistic(*totals: Any) -> dict[str, Any]:
        # Each total is a count of images, or of resampled ones.
        return {name: total / count for name, total in zip(columns, totals)}

    numbers: dict[str, Interval] = bootstrap(statistic, sums, resamples=resamples, seed=seed)
    entry: dict[str, Any] = {
        name: asdict(numbers[name]) if name in numbers else None
        for name in ("agreement", "negative_flips", "positive_flips")
    }
    entry |= {"mcnemar_p": None, "per_class": []}
    if "negative_flips" not in columns:
        return entry
    negative, positive = (int(columns[name].sum()) for name in ("negative_flips", "positive_flips"))
    entry["mcnemar_p"] = mcnemar(negative, positive)
    for label in images.held_out.unique().tolist():
        members = images.held_out == label
        flips = {
            name: float(columns[name][members].double().mean())
            for name in ("negative_flips", "positive_flips")
        }
        entry["per_class"].append({"class": images.classes[label], **flips})
    return entry


def weights_of(net_a: ComparedNet, net_b: ComparedNet) -> str:
    """Say whether the weights of two nets are "equal", "equal but for rounding" or "different"."""
    # Equal files need no look at their tensors.
    digests = [net.facts.get("sha256") for net in (net_a, net_b)]
    if digests[0] is not None and digests[0] == digests[1]:
        return "equal"
    if net_a.state is None or net_b.state is None:
        return "different"
    return equality(net_a.state(), net_b.state())


def make_record(
    nets: Sequence[ComparedNet],
    images: ComparedImages,
    *,
    pairs: list[dict[str, Any]],
    weights: str,
    parts: list[dict[str, Any]],
    command: str,
    resamples: int,
    seed: int,
    matrix: dict[str, Any] | None = None,
    atlas: dict[str, Any] | None = None,
    references: Sequence[ComparedNet] = (),
    pictures: Sequence[Mapping[str, str]] = (),
) -> dict[str, Any]:
    """Put together what `compare.json` holds."""
    answers = answers_entry(nets[0], nets[1], images, resamples, seed) if len(nets) == 2 else None
    return {
        "kind": "compare",
        "command": command,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "nets": [net_entry(net, images, resamples, seed) for net in nets],
        "references": [net_entry(net, images, resamples, seed) for net in references],
        "images": images.record(),
        "weights": weights,
        "pairs": pairs,
        "matrix": matrix,
        "answers": answers,
        "pictures": list(pictures),
        "parts": parts,
        "gate": None,
        "atlas": atlas,
    }


def versions() -> dict[str, str]:
    """Give the versions of what computed this."""
    installed = {"python": platform.python_version(), "torch": str(torch.__version__)}
    names = {"torchvision": "torchvision", "project": "knowledge-consistency"}
    for name, package in names.items():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # it is not installed
            installed[name] = importlib.metadata.version(package)
    return installed
