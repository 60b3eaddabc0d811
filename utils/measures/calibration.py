"""What a score is worth: pairs that share nothing, and where between them and a perfect pair a score stands.

A *pairing* is an order of images: the target of image i stands beside x of image order[i]. Sums per image belong to
the target's image, so that the null, the score and the ceiling are resampled together. Two kinds:

- *Shuffled* pairings, for a null that is fitted once or a few times: no image keeps its own partner.
- *Permutations*, for a test: all orders are as likely as each other, the true one included, which makes p exact.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from utils.errors import InputError
from utils.files import replacing
from utils.measures.bootstrap import Interval, Statistic, bootstrap

KINDS = ("observed", "null", "ceiling")  # what a normalised consistency is made of

Array = NDArray[Any]


def shuffled(images: int, generator: torch.Generator) -> Tensor:
    """Pair every image with another one: a random cycle through all of them, int64 (N,).

    Raises:
        InputError: Fewer than two images.
    """
    return shuffled_within_class(torch.zeros(images, dtype=torch.int64), generator)


def shuffled_within_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pair every image with another one of its class: a random cycle through each class.

    The only image of its class keeps its own partner: `order == arange(N)` finds such images, which a null leaves out.

    Args:
        labels: the images' classes, integers (N,).
        generator: of the CPU.

    Returns:
        int64 (N,).

    Raises:
        InputError: No class has two images.
    """
    order = torch.arange(len(labels))
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        cycle = members[torch.randperm(len(members), generator=generator)]
        order[cycle] = cycle.roll(1)
    if bool((order == torch.arange(len(labels))).all()):
        raise InputError("pairs can be shuffled only where a class has two images, but none has; take more images.")
    return order


def permutations(labels: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw orders of which each that keeps the classes is as likely: int64 (draws, N).

    Args:
        labels: the images' classes, integers (N,); all equal: any order over all images.
        draws: how many.
        generator: of the CPU.
    """
    by_class = labels.argsort(stable=True)
    keys = torch.rand(draws, len(labels), generator=generator, dtype=torch.float64)
    mixed = keys.argsort(1)
    mixed = mixed.gather(1, labels[mixed].argsort(dim=1, stable=True))  # random within each class, classes in order
    orders = torch.empty_like(mixed)
    orders[:, by_class] = mixed
    return orders


@dataclass(frozen=True)
class Null:
    """An instability and those of the same features under permutations of the images.

    Attributes:
        observed: of the true pairs.
        draws: of the permuted pairs, (B,).
    """

    observed: float
    draws: Array

    @property
    def p_value(self) -> float:
        """(1 + #{null ≤ observed}) / (1 + B): how often a pair without a connection looks as consistent."""
        return (1 + int((self.draws <= self.observed).sum())) / (1 + len(self.draws))

    def zero(self, level: float = 0.05) -> float:
        """Give the instability that the score's zero stands for: an observed one below it has p ≤ level.

        Raises:
            InputError: Too few permutations for this level.
        """
        rank = int(level * (1 + len(self.draws)) + 1e-9)  # 0.05 · 20 is 1
        if rank < 1:
            needed = int(np.ceil(1 / level)) - 1
            raise InputError(f"a level of {level} needs at least {needed} permutations, not {len(self.draws)}.")
        return float(np.sort(self.draws)[rank - 1])


def best_of(nulls: Sequence[Null]) -> Null:
    """Give the null of the best of several layers or depths, whose draws used the same permutations.

    Layers differ in what a null reaches, so each is first divided by its mean over all B + 1 pairings; the observed one
    is among them, so that p stays exact.
    """
    values = np.stack([np.append(null.draws, null.observed) for null in nulls])
    best = (values / values.mean(1, keepdims=True)).min(0)
    return Null(float(best[-1]), best[:-1])


def normalised_consistency(instability: ArrayLike, null: ArrayLike, ceiling: ArrayLike = 0.0) -> Array:
    """Compute (null − I) / (null − ceiling): 0 for pairs that share nothing, 1 for what a perfect pair reaches.

    Args:
        instability: I, a number or an array.
        null: the instability of pairs that share nothing.
        ceiling: the least that can be reached, of A → A.

    Returns:
        NaN where the null is not above the ceiling: there is no scale between them.
    """
    scale = np.subtract(null, ceiling)
    return np.where(scale > 0, np.subtract(null, instability) / np.where(scale > 0, scale, 1), np.nan)


def consistency_interval(
    statistic: Statistic,
    observed: Sequence[Array],
    null: Sequence[Array],
    ceiling: Sequence[Array] | None = None,
    **options: Any,
) -> dict[str, Interval]:
    """Give intervals of an instability, its null, its ceiling and the normalised consistency, resampled together.

    Args:
        statistic: sums over images → numbers, among them "instability".
        observed: sums per image, see `bootstrap`.
        null: of the same target images beside other images' x.
        ceiling: of A → A on the same images; none: 0.
        options: of `bootstrap`.

    Returns:
        "instability", "null", "ceiling" (if there is one), "consistency".
    """
    parts = [list(part) for part in (observed, null, ceiling or ())]
    ends = np.cumsum([len(part) for part in parts])

    def numbers(*totals: Array) -> dict[str, Array]:
        of = {"instability": totals[: ends[0]], "null": totals[ends[0] : ends[1]], "ceiling": totals[ends[1] :]}
        found = {name: statistic(*some)["instability"] for name, some in of.items() if some}
        return found | {"consistency": normalised_consistency(**found)}

    return bootstrap(numbers, [array for part in parts for array in part], **options)


def save_sums(
    path: str | Path, names: Sequence[str], observed: Sequence[Array], null: Sequence[Array], ceiling: Sequence[Array]
) -> None:
    """Write every image's parts of Var(x*) and Var(x_Δ) to an .npz file, for `load_sums`.

    Args:
        path: the file.
        names: of the columns, see `ImageMoments`.
        observed: its `arrays`.
        null: those of the same target images beside other images' x.
        ceiling: those of A → A on the same images.
    """
    columns = [names.index(name) for name in ("target", "residual")]
    sums: dict[str, Array] = {kind: part[:, columns] for kind, (part,) in zip(KINDS, (observed, null, ceiling))}
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **sums)


def load_sums(path: str | Path) -> dict[str, Array]:
    """Read what `save_sums` wrote: float64 (N, 2) by `KINDS`; sums over images are Var(x*) and Var(x_Δ).

    Raises:
        InputError: there is no such file, or it is another one.
    """
    try:
        with np.load(path) as stored:
            return {kind: stored[kind] for kind in KINDS}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no sums per image ({error}); make it by Calibrate.py --sums") from None
