"""HSAKD's text log in its authors' form, result/{run}.txt, and a run's last and best epoch."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from utils.files import replacing
from utils.runs import describe

RULE = "=" * 10
Row = Mapping[str, float]  # an epoch and its evaluations
_BY_NET = ("net1_", "net2_")


def write(
    path: Path,
    settings: Mapping[str, object],
    device: str,
    epochs: Iterable[Mapping[str, float]],
    teacher: Mapping[str, float],
) -> None:
    """Write a whole log.

    Args:
        path: the file, replaced.
        settings: every option that changes the result.
        device: where it was computed.
        epochs: the metrics of each, as `RunLog` keeps them: `epoch` (from 1), `lr`, `seconds`, the
            names of the steps' metrics (accuracies in percent), and those of evaluations behind
            `test_` and `val_`.
        teacher: what the teacher's evaluation on the test images gave, by the same names; nothing
            without a teacher.
    """
    options = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    lines = [RULE, f"Args:Namespace({options})", f"device:{device}", RULE]
    lines += _test(teacher, "test", "teacher") if teacher else []
    for metrics in epochs:
        lines += _epoch(metrics)
    with replacing(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def best_of(best: Mapping[str, Row], last: Row, decides: str) -> dict[str, Row]:
    """Give the best epoch of each split that the last epoch was evaluated on.

    Args:
        best: the best epoch so far, by split: "test", "val".
        last: the last epoch.
        decides: see `decided`.
    """
    splits = [split for split in ("test", "val") if f"{split}_Loss" in last]
    better = {
        split
        for split in splits
        if split not in best or decided(last, split, decides) > decided(best[split], split, decides)
    }
    return {split: last if split in better else best[split] for split in splits}


def decided(row: Mapping[str, float], split: str, decides: str) -> float:
    """Give the accuracy, in percent, that decides on the best epoch: the highest of its kind.

    Args:
        row: an epoch.
        split: "test" or "val".
        decides: is part of the names of that kind.
    """
    return max(
        value for name, value in row.items() if name.startswith(f"{split}_") and decides in name
    )


def closing_words(
    last: Mapping[str, float], best: Mapping[str, Mapping[str, float]], probe: bool
) -> str:
    """Write the test accuracies of the last epoch and of the best ones; of a probe, best first."""
    rows = {"last epoch": last, "best epoch on the test images": best["test"]}
    rows |= {"best epoch on held-out training images": best["val"]} if "val" in best else {}
    lines = []
    for title, row in rows.items():
        shown = {
            name: value
            for name, value in row.items()
            if name.startswith("test_") and name != "test_Loss"
        }
        lines.append(f"{title} ({row['epoch']}): {describe(shown)}")
    return "\n".join(lines[::-1] if probe else lines) + "\n"


def _epoch(metrics: Mapping[str, float]) -> list[str]:
    """Write one epoch; losses are sums of terms, accuracies shares as in the authors' logs."""
    number = metrics["epoch"] - 1  # the authors count epochs from 0
    sums = {"_cls": _sum(metrics, "ce_"), "_div": _sum(metrics, "kl_")}
    losses = {"": metrics["Loss"]}
    losses |= {kind: value for kind, value in sums.items() if value is not None}
    lines = [f"Epoch:{number}\t lr:{metrics['lr']:.5f}\t duration:{metrics['seconds']:.3f}"]
    lines += ["\t".join(f" train_loss{kind}:{value:.5f}" for kind, value in losses.items())]
    lines += _accuracies(metrics, "", "Train Top-1")
    for split in ("val", "test"):
        if f"{split}_Loss" in metrics:
            lines += _test(metrics, split, f"{split} epoch:{number}")
    return lines


def _test(metrics: Mapping[str, float], split: str, title: str) -> list[str]:
    """Write an evaluation."""
    return [
        f"{title}\t test_loss_cls:{metrics[f'{split}_Loss']:.5f}",
        *_accuracies(metrics, f"{split}_", "Top-1"),
    ]


def _sum(metrics: Mapping[str, float], begin: str) -> float | None:
    """Sum the metrics whose names begin so; None where there are none."""
    values = [value for name, value in metrics.items() if name.startswith(begin)]
    return sum(values) if values else None


def _accuracies(metrics: Mapping[str, float], begin: str, title: str) -> list[str]:
    """Write a line for each kind of accuracy: of all branches, then of the network for classes."""
    # A pair's metrics begin with net1_ and net2_, a single network's with neither.
    nets = [net for net in _BY_NET if f"{begin}{net}top1_prec" in metrics] or [""]
    lines = []
    for kind in ("ss", "class"):
        lists = []
        for net in nets:
            names = [name for name in metrics if re.fullmatch(rf"{begin}{net}{kind}_aux\d+", name)]
            names += [f"{begin}{net}top1_prec"] if kind == "class" else []
            lists.append([round(metrics[name] / 100, 4) for name in names])
        lines.append(f"{title} {kind}_accuracy: {lists if len(lists) > 1 else lists[0]}")
    return lines
