"""What B still knows, and which classes it tells apart, from one pass over the images.

It has B's answers to x*, and to what each sender gives in its place.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from consistency.calibration import shuffled_within_class
from consistency.class_gaps import Distinctions, measure_distinctions
from consistency.knowledge import Knowledge, measure_knowledge
from models.cut_net import CutNet
from models.tail import FrozenTail, open_tail, tail_of
from utils.devices import Column
from utils.errors import InputError
from utils.provenance import NetSource

ITSELF, UNTRUE = "B itself", "another image of the class"
REFUSED_MATCH = (
    "was fitted with --match {}, which had B's layers in its loss: what B still knows says nothing"
    " of A"
)


class Answers:
    """Collect B's answers of all images.

    Memory, on the CPU: 4 (C + d) bytes an image and sender, d the width of B's penultimate feature.

    Args:
        tail: maps (N, C, H, W) → penultimate feature or None, logits; `models.tail.FrozenTail`.
        tail_a: the same of A, for the decision recovery; None: there is none.
    """

    def __init__(self, tail: nn.Module, tail_a: nn.Module | None = None) -> None:
        self.tail, self.tail_a = tail, tail_a
        self._columns: dict[str, Column] = {}

    @torch.no_grad()
    def update(
        self, x: Tensor, target: Tensor, sent: Mapping[str, Tensor], labels: Tensor, numbers: Tensor
    ) -> None:
        """Add a batch.

        Args:
            x: A's maps, for A's answers.
            target: x*, B's maps.
            sent: g(x) of every sender, by its name.
            labels: the images' classes, (N,), or several labels each, (N, classes).
            numbers: the images' numbers in their data set, (N,).
        """
        self._keep("labels", labels)
        self._keep("numbers", numbers)
        for name, maps in {ITSELF: target, **sent}.items():
            self.send(name, maps)
        if self.tail_a is not None:
            self._keep("logits of A", self.tail_a(x.float())[1].float())

    @torch.no_grad()
    def send(self, name: str, maps: Tensor) -> None:
        """Add what one sender gives in the place of x*.

        Args:
            name: of the sender.
            maps: of a batch that `update` saw, or of another pass over the same images in the same
                order.
        """
        penultimate, logits = self.tail(maps.float())
        self._keep(f"logits {name}", logits.float())
        if penultimate is not None:
            self._keep(f"penultimate {name}", penultimate.flatten(1).float())

    def cpu(self) -> "Answers":
        """Forget the nets, so that another process can read the answers."""
        self.tail = nn.Identity()
        self.tail_a = None
        return self

    def merge(self, other: "Answers") -> None:
        """Add the images that another process saw."""
        for name, column in other._columns.items():
            for rows in column.parts:
                self._keep(name, rows)

    def table(
        self, *, permutations: int = 1000, resamples: int = 1000, seed: int = 0
    ) -> dict[str, Knowledge]:
        """Measure every sender: B itself, a first sender's untrue pairs, and each sender.

        Untrue pairs give B what the first sender makes of another image of the class, which is a
        permutation of its answers: what the class alone is worth.

        Args:
            permutations: see `measure_knowledge`.
            resamples: of the images.
            seed: of everything that is drawn.

        Raises:
            InputError: see `measure_knowledge`.
        """
        columns = self._in_order()
        labels, itself = columns.pop("labels"), columns[f"logits {ITSELF}"]
        multi_label = labels.ndim > 1
        senders = _senders(columns)

        def measured(name: str, images: Tensor | slice) -> Knowledge:
            # What B's last layer reads of x*, and of what the sender gives; None behind that layer
            pair = [columns.get(f"penultimate {one}") for one in (ITSELF, name)]
            both = None if pair[0] is None or pair[1] is None else (pair[0], pair[1][images])
            return measure_knowledge(
                itself,
                columns[f"logits {name}"][images],
                labels=None if multi_label else labels,
                penultimate=both,
                logits_a=columns.get("logits of A"),
                multi_label=multi_label,
                permutations=permutations,
                resamples=resamples,
                seed=seed,
            )

        # B itself loses nothing: its row shows what can arrive.
        rows = {ITSELF: measured(ITSELF, slice(None))}
        rows |= {name: measured(name, slice(None)) for name in senders if name != ITSELF}
        if not multi_label and len(senders) > 1:
            try:
                mixed = shuffled_within_class(labels, torch.Generator().manual_seed(seed))
            except InputError:
                return rows  # no class has two images
            rows[UNTRUE] = measured(senders[1], mixed)
        return rows

    def distinctions(self, *, resamples: int = 1000, seed: int = 0) -> Distinctions:
        """Measure which classes B tells apart, and the first sender does not carry.

        Args:
            resamples: of the images.
            seed: of these.

        Raises:
            InputError: images have several labels; see `measure_distinctions`.
        """
        columns = self._in_order()
        labels = columns["labels"]
        if labels.ndim > 1:
            raise InputError(
                "pairs of classes need one class for each image, and these labels have shape"
                f" {tuple(labels.shape)}; take images of one class each"
            )
        # The first name is B itself.
        sender = _senders(columns)[1]
        return measure_distinctions(
            columns[f"logits {ITSELF}"],
            columns[f"logits {sender}"],
            labels,
            resamples=resamples,
            seed=seed,
        )

    def _in_order(self) -> dict[str, Tensor]:
        """Give all columns but the numbers in the data set's order: processes saw other images."""
        numbers = self._columns["numbers"].joined()
        order = None if bool((numbers.diff() > 0).all()) else numbers.argsort()
        for name, column in self._columns.items():
            rows = column.joined()
            # What is in order takes the place of what was not: two copies of one column at most
            self._columns[name] = Column(rows if order is None else rows[order])
        return {
            name: column.joined() for name, column in self._columns.items() if name != "numbers"
        }

    def _keep(self, name: str, values: Tensor) -> None:
        self._columns.setdefault(name, Column()).append(values)


def open_tails(
    sources: Sequence[NetSource],
    archs: Sequence[str | None],
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    nets: Sequence[CutNet] = (),
) -> list[FrozenTail | InputError]:
    """Open the tails behind features of A and B; one that is not at hand is the reason for it.

    Args:
        sources: the features' records of A and B.
        archs: their architectures, where options name them; see `open_net`.
        shapes: of one image's features.
        device: where the tails compute.
        nets: A and B where they are open, cut at the features' layers: their weights are shared, and
            no file is read again.
    """
    tails = list[FrozenTail | InputError]()
    for i, (source, arch, shape) in enumerate(zip(sources, archs, shapes)):
        try:
            tail = tail_of(nets[i], shape) if nets else open_tail(source, arch, shape)
            tails.append(tail.to(device))
        except InputError as error:
            tails.append(error)
    return tails


def answers_by(
    tail_a: FrozenTail | InputError, tail_b: FrozenTail | InputError
) -> tuple[Answers | None, list[str]]:
    """Let tails answer to features of A that stand for those of B; see `open_tails`.

    Returns:
        None where B's tail is not at hand: it is needed; without A's only the decision recovery is
        omitted. And sentences on what is left out.
    """
    if isinstance(tail_b, InputError):
        return None, [f"what B still knows is left out: {tail_b}"]
    without_a = "the decision recovery is left out: "
    if isinstance(tail_a, InputError):
        return Answers(tail_b), [f"{without_a}{tail_a}"]
    # Decisions are compared class by class, so both nets must have the same.
    if tail_a.outputs != tail_b.outputs:
        told_apart = f"A tells {tail_a.outputs} classes apart, B {tail_b.outputs}"
        return Answers(tail_b), [without_a + told_apart]
    return Answers(tail_b, tail_a), []


def _senders(columns: Mapping[str, Tensor]) -> list[str]:
    """Name the senders: B itself, then those that g stands for, in order."""
    names = [name.removeprefix("logits ") for name in columns if name.startswith("logits ")]
    return [name for name in names if name != "of A"]


def knowledge_record(rows: Mapping[str, Knowledge], notes: list[str]) -> dict[str, Any]:
    """Give the table as plain values, for JSON."""
    every = [note for row in rows.values() for note in row.notes]
    return {
        "rows": [{"sender": name, **row.report()} for name, row in rows.items()],
        "notes": list(dict.fromkeys([*notes, *every])),
    }
