"""The paths of results, and the log of a run: TensorBoard and one JSON line an epoch."""

import contextlib
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from utils.errors import DivergedError, InputError
from utils.files import check_unclaimed, claim, read_text, replacing
from utils.later import tensorboard
from utils.remarks import remark

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SECONDS_BETWEEN_SAVES = 600.0  # the most of a run's work that an interruption may cost


def join(*words: str | int | None) -> str:
    """Join the words of a file name, without empty ones: "CUB200", "", "alexnet" → CUB200_alexnet.

    A foreign architecture's colon becomes a dot, because not every file system takes a colon. Of a
    file's path the stem stays: "../zoo/nets.py:tiny" → "nets.tiny".
    """
    return "_".join(_short(str(word)) for word in words if word not in (None, ""))


def pair(first: str | None, second: str | None) -> str:
    """Name two nets or layers, equal ones once: "alexnet", "alexnet-resnet34"."""
    short = _short(str(first)), _short(str(second))
    return str(first) if short[0] == short[1] else "-".join(short)


def _short(name: str) -> str:
    """Give an architecture's name in a form that a file's name may have."""
    source, colon, factory = name.rpartition(":")
    if not colon:
        return name
    module = PurePath(source).stem if source.endswith(".py") else source
    return f"{module}.{factory}".replace(":", ".")


def classifier_path(out: str, dataset: str, arch: str, suffix: str, *, best: bool = False) -> Path:
    """`model_checkpoints/checkpoint_{dataset}_{arch}_{suffix}.pth.tar`, or `model_best_…`."""
    return Path(
        out,
        "model_checkpoints",
        join("model_best" if best else "checkpoint", dataset, arch, suffix) + ".pth.tar",
    )


def features_folder(
    out: str, dataset: str, sample_num: str, arch: str, layer: str, suffix: str, split: str
) -> Path:
    """`convOuts/{dataset}_{sample_num}_{arch}/{dataset}_L{layer}_{suffix}/{split}`."""
    return Path(
        out, "convOuts", join(dataset, sample_num, arch), join(dataset, f"L{layer}", suffix), split
    )


def trans_net_path(
    out: str,
    dataset: str | None,
    arch: str | None,
    layer: str | None,
    sample_num: str | None,
    suffix: str,
) -> Path:
    """`model_checkpoints/{dataset}_{arch}/checkpoint_L{layer}_{sample_num}_{suffix}.pth.tar`."""
    name = join("checkpoint", f"L{layer}", sample_num, suffix)
    return Path(out, "model_checkpoints", join(dataset, arch), name + ".pth.tar")


def report_folder(out: str, trans_net: Path) -> Path:
    """`reports/{dataset}_{arch}/L{layer}_{sample_num}_{suffix}`, named as the Trans-Net is."""
    return Path(out, "reports", trans_net.parent.name, stem(trans_net))


def refined_path(
    out: str, dataset: str, sample_num: str, arch: str, feature: str, suffix: str, layer: str
) -> Path:
    """`check/{dataset}_{sample_num}_{arch}/checkpoint_{feature}_{suffix}_L{layer}.pth.tar`."""
    name = join("checkpoint", feature, suffix, f"L{layer}")
    return Path(out, "check", join(dataset, sample_num, arch), name + ".pth.tar")


def stem(path: Path) -> str:
    """Give the run's name in a checkpoint's file name: without prefix and ending."""
    return path.name.removeprefix("checkpoint_").removesuffix(".pth.tar")


def net_name(path: Path) -> str:
    """Name a net by its file, without endings: "seed0.pt" → seed0.

    A dot before a digit belongs to the name: "net_pruned0.8-0.8.pth.tar" → net_pruned0.8-0.8.
    """
    return re.sub(r"(\.[A-Za-z]\w*)+$", "", stem(path))


def log_folder(out: str, *parts: str) -> Path:
    """`logs/…`, one folder a run."""
    return Path(out, "logs", *parts)


class RunLog:
    """The metrics of every epoch, written to TensorBoard, to `metrics.jsonl` and to the terminal.

    A resumed run first removes the lines of its first epoch and of later ones; so every epoch has
    one line. As a context manager it also keeps other runs from writing in the same folder.
    """

    def __init__(
        self,
        folder: Path,
        epochs: int,
        *,
        start_epoch: int = 0,
        active: bool = True,
        elsewhere: str = "--suffix",
        again: str = "--resume auto",
        facts: Mapping[str, Any] | None = None,
        title: str = "",
        writes: Sequence[Path] = (),
    ) -> None:
        """Prepare; nothing is written before `with`.

        Args:
            folder: made if missing.
            epochs: the number of epochs of the whole run.
            start_epoch: the first epoch that this run will write, counted from 0.
            active: False in processes that write nothing.
            elsewhere: the option that names another folder, for messages.
            again: the option that resumes an interrupted run, for messages.
            facts: plain values for every line of `metrics.jsonl`, with the metrics.
            title: names the run in its lines on the terminal, where several run together.
            writes: files that the run writes elsewhere; no other run writes them meanwhile.

        Raises:
            InputError: another run is writing there.
        """
        if active:
            check_unclaimed(folder, elsewhere=elsewhere)
            for file in writes:
                check_unclaimed(file, is_file=True, elsewhere=elsewhere)
        self.path = folder / "metrics.jsonl"
        self.epochs, self.start_epoch, self.active = epochs, start_epoch, active
        self._elsewhere, self._again, self.title = elsewhere, again, title
        self._facts, self._writes = dict(facts or {}), writes
        self._open = contextlib.ExitStack()
        self._saved = "nothing was saved yet"
        self._last_saved = time.monotonic()
        if start_epoch and writes and writes[0].exists():
            self.saved(writes[0], start_epoch)

    def __enter__(self) -> "RunLog":
        self._last_write = time.monotonic()
        if not self.active:
            return self
        with contextlib.ExitStack() as opened:  # closed where a write fails
            opened.enter_context(claim(self.path.parent, elsewhere=self._elsewhere))
            for file in self._writes:
                opened.enter_context(claim(file, is_file=True, elsewhere=self._elsewhere))
            # Lines count epochs from 1: `start_epoch` of them came before this run.
            kept = [line for line in read_metrics(self.path) if line["epoch"] <= self.start_epoch]
            with replacing(self.path) as temporary:
                temporary.write_text(
                    "".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8"
                )
            # TensorBoard counts epochs from 1, as the terminal and `metrics.jsonl` do
            self.board = tensorboard.SummaryWriter(
                str(self.path.parent), purge_step=self.start_epoch + 1
            )
            opened.callback(self.board.close)
            self._open = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None = None, *_: object
    ) -> None:
        self._open.close()
        if isinstance(error, DivergedError):
            raise DivergedError(f"{error}; {self._saved}") from None
        if self.active and kind is not None and issubclass(kind, KeyboardInterrupt):
            print(f"interrupted: {self._saved}", flush=True)

    def saved(self, path: Path, epoch: int, step: int = 0) -> None:
        """Note the last checkpoint, which an interrupted run leaves behind.

        Args:
            path: its file.
            epoch: how many are trained.
            step: and how many steps of the next.
        """
        within = f" and {step} steps of the next" if step else ""
        self._saved = (
            f"{path} holds the first {epoch} of {self.epochs} epochs{within}; {self._again} goes on"
            " with it"
        )
        self._last_saved = time.monotonic()

    @property
    def overdue(self) -> bool:
        """Whether the last checkpoint is older than `SECONDS_BETWEEN_SAVES`."""
        return time.monotonic() - self._last_saved > SECONDS_BETWEEN_SAVES

    def write(self, epoch: int, metrics: dict[str, float], words: str | None = None) -> None:
        """Write one epoch, with the seconds since the one before.

        Terminal, TensorBoard and JSON count it from 1. TensorBoard shows `val_NAME` as `val/NAME`,
        beside `train/NAME`.

        Args:
            epoch: counted from 0.
            metrics: of this epoch; in JSON, values that are not finite become null.
            words: the terminal's text in place of the metrics.
        """
        now = time.monotonic()
        metrics = metrics | {"seconds": now - self._last_write}
        self._last_write = now
        if not self.active:
            return
        title = f"{self.title}: " if self.title else ""
        shown = describe(metrics) if words is None else f"{words} · {metrics['seconds']:.1f} s"
        print(f"{title}epoch {epoch + 1}/{self.epochs} · {shown}", flush=True)
        for name, value in metrics.items():
            self.board.add_scalar(board_tag(name), value, epoch + 1)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"epoch": epoch + 1, **finite, **self._facts}) + "\n")

    def figure(self, epoch: int, name: str, figure: "Figure") -> None:
        """Show a picture of this epoch in TensorBoard."""
        if self.active:
            self.board.add_figure(name, figure, epoch + 1)


def board_tag(name: str) -> str:
    """Say where TensorBoard shows a metric: images that are fitted apart from those that are not."""
    split, _, rest = name.partition("_")
    return f"{split}/{rest}" if split in ("val", "test") and rest else f"train/{name}"


def read_metrics(path: str | Path, numbers: Sequence[str] = ()) -> list[dict[str, float]]:
    """Read a `metrics.jsonl`; see `read_epochs`.

    Returns:
        A dictionary an epoch, "epoch" counted from 1. Lines of earlier versions, which counted
        from 0, are counted anew.
    """
    lines = read_epochs(path, numbers=numbers)
    if lines and lines[0]["epoch"] == 0:
        lines = [{**line, "epoch": line["epoch"] + 1} for line in lines]
    return lines


def read_epochs(
    path: str | Path, *, begin: str = "", numbers: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Read a log of a JSON object a line, without a last line that a crash tore, which is said.

    Args:
        path: of the log; a missing one is empty.
        begin: stands before each object.
        numbers: names that each object must have, with numbers.

    Raises:
        InputError: another line is damaged, or has no number of its epoch; the message names it.
    """
    path = Path(path)
    if not path.exists():
        return []
    epochs = list[dict[str, Any]]()
    text = read_text(path)
    lines = text.removesuffix("\n").split("\n") if text else []
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        remedy = "remove the line, or the file if its numbers are of no use"
        try:
            epoch = json.loads(line.removeprefix(begin))
        except (ValueError, RecursionError):
            # Only the last line can be torn: each is appended by one write.
            if number == len(lines) and not text.endswith("\n"):
                remark(f"the last line of {path} was not written to its end, and is left out")
                break
            raise InputError(f"{where} is damaged; {remedy}") from None
        for name in ("epoch", *numbers):
            value = epoch.get(name) if isinstance(epoch, dict) else None
            kinds = (int,) if name == "epoch" else (int, float)
            if not isinstance(value, kinds) or isinstance(value, bool) or value < 0:
                raise InputError(f"{where} has no number {name}; {remedy}")
        epochs.append(epoch)
    return epochs


def describe(metrics: dict[str, float]) -> str:
    """Format metrics for a person: "loss 1.234 · top1_prec 56.7"."""
    return " · ".join(f"{name} {value:.4g}" for name, value in metrics.items())
