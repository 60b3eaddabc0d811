"""Which distinctions do not arrive: what a comparison says of one direction.

Pairs of classes, classes and images (`consistency.class_gaps`) are of all held-out images. Places and
directions of channels (`consistency.missing_part`) are of a few at even distances, places also of the
images most lost. While all of them are predicted, `KeptMaps` keeps the maps of these.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistency.bootstrap import bootstrap
from consistency.class_gaps import SHOWN_IMAGES, Distinctions, margins_of, measure_distinctions
from consistency.curves import areas_under_curves
from consistency.missing_part import Carried, carry, directions, rank_correlation
from models.tail import FrozenTail

PLACE_IMAGES = 100  # at even distances; their maps stay in memory
UNTRUE_EVERY = 3  # of these images stands in an untrue pair
PLACE_BYTES = 3e8  # of these maps at most
LIKE_UNTRUE = 0.3  # rank correlation with an untrue pair's map, above which places say nothing
SHOWN_DIRECTIONS, SHOWN_CHANNELS, EXCITED = 5, 5, 5

Array = NDArray[Any]
Kinds = Literal["classes", "answers"]  # of the images, or B's where it tells other classes apart


class Kept(NamedTuple):
    """Maps of some images.

    Attributes:
        numbers: of the images, int64 (n,).
        target: x*, (n, D, h, w).
        output: g(x), (n, D, h, w).
    """

    numbers: Tensor
    target: Tensor
    output: Tensor


class KeptMaps:
    """Keeps maps of images at even distances, and of those most lost, while all pass by.

    Args:
        count: how many images will.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._even: list[Kept] = []
        self._lost: tuple[Tensor, Kept] | None = None
        self._numbers: Tensor | None = None

    def add(self, images: slice, target: Tensor, output: Tensor, z: Tensor, sent: Tensor) -> None:
        """Add a batch.

        Args:
            images: which.
            target: x*, (n, D, h, w).
            output: g(x), (n, D, h, w).
            z: B's logits of x*, (n, K).
            sent: B's logits of g(x), (n, K).
        """
        if self._numbers is None:
            # x* and g(x) of each image
            most = int(PLACE_BYTES / (2 * target.element_size() * target[0].numel()))
            count = min(PLACE_IMAGES, self.count, max(2, most))
            self._numbers = torch.linspace(0, self.count - 1, count).round().long()
        numbers = torch.arange(self.count)[images]
        batch = Kept(numbers, target, output)
        self._even.append(_rows(batch, torch.isin(numbers, self._numbers)))
        margins = margins_of(z, sent).cpu()
        if self._lost is not None:
            margins = torch.cat([self._lost[0], margins])
            batch = Kept(*(torch.cat(pair) for pair in zip(self._lost[1], batch)))
        # The most lost so far, of those that were kept and of this batch
        first = margins.argsort(descending=True, stable=True)[:SHOWN_IMAGES]
        self._lost = margins[first], _rows(batch, first)

    @property
    def even(self) -> Kept:
        """Of images at even distances."""
        return Kept(*(torch.cat(parts) for parts in zip(*self._even)))

    @property
    def lost(self) -> Kept:
        """Of the images most lost, the most first."""
        assert self._lost is not None
        return self._lost[1]


def _rows(kept: Kept, chosen: Tensor) -> Kept:
    numbers = chosen.nonzero()[:, 0] if chosen.dtype == torch.bool else chosen
    return Kept(
        kept.numbers[numbers],
        *(of[numbers.to(of.device)].cpu().clone() for of in (kept.target, kept.output)),
    )


def distinctions_entry(
    z: Tensor,
    sent: Tensor,
    labels: Tensor,
    kinds: Kinds,
    *,
    references: Sequence[Tensor] = (),
    logits_a: Tensor | None = None,
    classes: Sequence[str] = (),
    paths: Sequence[str] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Give what a report says of the pairs of classes, the classes and the images.

    Args:
        z: B's logits of x*, (N, K).
        sent: B's logits of g(x), (N, K).
        labels: the images' classes, (N,).
        kinds: what serves as classes.
        references: B's logits of what each reference net sends, (N, K).
        logits_a: A's answers, (N, K'); None: images are not told that both answer differently.
        classes: their names.
        paths: of the images.
        resamples: of the images.
        seed: of these.

    Raises:
        InputError: see `measure_distinctions`.
    """
    is_labelled = kinds == "classes"
    measured = measure_distinctions(
        z,
        sent,
        labels if is_labelled else None,
        references=references,
        resamples=resamples,
        seed=seed,
    )
    entry = measured.record(classes if is_labelled else (), paths)
    return entry | {"differing": differing_entry(measured, logits_a, z)}


def differing_entry(
    measured: Distinctions, logits_a: Tensor | None, z: Tensor
) -> dict[str, Any] | None:
    """Say how well the margin tells images that A and B answer differently, beside B's confidence."""
    if logits_a is None or logits_a.shape != z.shape:
        return None
    other = (logits_a.argmax(1) != z.argmax(1)).cpu().numpy()
    scores = {"margin": measured.margin, "confidence": -measured.confidence}
    margin, confidence, beyond = areas_under_curves(scores, other).values()
    return {
        "images": int(other.sum()),
        "margin": asdict(margin),
        "confidence": asdict(confidence),
        "beyond_confidence": asdict(beyond),
    }


def places_and_directions(
    kept: KeptMaps, tail: FrozenTail, paths: Sequence[str], resamples: int, seed: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Say where and along which directions of channels the missing part matters.

    Args:
        kept: maps of some images.
        tail: B's.
        paths: of the held-out images.
        resamples: of the images, for the interval of the rank correlation.
        seed: of these.

    Returns:
        What a report says, "places" and "directions"; maps of the images most lost, (n, h, w):
        "carried" by each place, "size" of x_Δ there, and "untrue", what places carry of another
        image's g(x).
    """

    def logits(maps: Tensor) -> Tensor:
        return tail(maps)[1]

    even, lost = kept.even, kept.lost
    carried = carry(logits, even.target, even.output)
    # Another image's g(x) is missing as much everywhere, so what its map shows is of B alone
    few = slice(None, None, UNTRUE_EVERY)
    target, output = even.target[few], even.output[few]
    untrue = carry(logits, target, output.roll(len(target) // 2, 0))
    shown = carry(logits, lost.target, lost.output)
    shown_untrue = carry(logits, lost.target, lost.output.roll(1, 0))
    correlations = rank_correlation(carried.places[few], untrue.places)
    correlations = correlations[np.isfinite(correlations)]
    positions = carried.places[0].numel()
    entry: dict[str, Any] = {"images": len(even.numbers), "positions": positions}
    entry |= {"like_untrue": None, "withdrawn": True}
    if positions > 1 and len(correlations) > 1:
        interval = bootstrap(
            lambda total: {"mean": total[..., 0] / total[..., 1]},
            [np.stack([correlations, np.ones_like(correlations)], 1)],
            resamples=resamples,
            seed=seed,
        )["mean"]
        entry["like_untrue"] = asdict(interval)
        entry["withdrawn"] = bool(interval.value is None or interval.value >= LIKE_UNTRUE)
    maps = {
        "numbers": lost.numbers,
        "carried": shown.places.float(),
        "size": shown.sizes.float(),
        "untrue": shown_untrue.places.float(),
    }
    return {
        "places": entry,
        "directions": directions_entry(carried, even.numbers.tolist(), paths),
    }, maps


def directions_entry(
    carried: Carried, numbers: Sequence[int], paths: Sequence[str]
) -> dict[str, Any]:
    """Give the directions that carry most of the margin, and the images that excite them."""
    split = directions(carried)
    total = float(split.margins.sum())
    rows = []

    def named(images: Array, excited: Array) -> list[dict[str, Any]]:
        return [
            {
                "image": numbers[image],
                "path": str(paths[numbers[image]]) if len(paths) else None,
                "excited": float(excited[image]),
            }
            for image in images
        ]

    for place in range(min(SHOWN_DIRECTIONS, len(split.margins))):
        weights, excited = split.channels[place], split.excited[:, place]
        order = np.argsort(-excited, kind="stable")
        strongest = np.argsort(-np.abs(weights), kind="stable")[:SHOWN_CHANNELS]
        rows.append(
            {
                "margin": float(split.margins[place]),
                "channels": [
                    {"channel": int(channel), "weight": float(weights[channel])}
                    for channel in strongest
                ],
                "most": named(order[:EXCITED], excited),
                "least": named(order[::-1][:EXCITED], excited),
            }
        )
    return {
        "images": len(numbers),
        "lost_margin": total,
        "directions": len(split.margins),
        "shown": rows,
    }
