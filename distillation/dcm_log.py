"""`log.txt` in the form of DCM's authors, for their tools: a line `json_stats: {…}` an epoch."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.files import replacing
from utils.runs import read_epochs

BEGIN = "json_stats: "
# Ends of the authors' names, and this suite's name of the same head; a network without heads has no
# ep1 and ep2.
_NETS = {"": "net1", "_ep1": "net1_ep1", "_ep2": "net1_ep2", "_another": "net2"}


def stats(
    options: Mapping[str, Any], metrics: Mapping[str, float], **facts: float
) -> dict[str, Any]:
    """Give an epoch's numbers by the authors' names.

    Args:
        options: of the run, by the authors' names.
        metrics: of the epoch by the suite's names: `Loss`, `net1_top1_prec`, … on training images,
            with `val_` in front on test images.
        facts: epoch (counted from 1), num_classes, n_parameters, train_time and test_time
            (seconds).

    Returns:
        All of these with `train_loss`, `train_acc` (network 1's final layer, in percent),
        `train_acc_ep1`, `_ep2` (its heads), `_another` (network 2's final layer), and the same of
        `test_`.
    """
    numbers = dict(options) | facts
    for split, prefix in (("train", ""), ("test", "val_")):
        numbers[f"{split}_loss"] = metrics[f"{prefix}Loss"]
        for end, net in _NETS.items():
            if (metric := f"{prefix}{net}_top1_prec") in metrics:
                numbers[f"{split}_acc{end}"] = metrics[metric]
    return numbers


def read(path: Path) -> list[dict[str, Any]]:
    """Read the epochs; see `utils.runs.read_epochs`.

    Raises:
        InputError: a line is damaged.
    """
    return read_epochs(path, begin=BEGIN)


def write(path: Path, line: Mapping[str, Any]) -> None:
    """Add an epoch's `stats`; lines of this epoch and later ones, of an interrupted run, go."""
    kept = [old for old in read(path) if old["epoch"] < line["epoch"]]
    with replacing(path) as temporary:
        temporary.write_text(
            "".join(f"{BEGIN}{json.dumps(one)}\n" for one in [*kept, line]), encoding="utf-8"
        )
