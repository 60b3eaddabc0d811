"""What a score is worth: where it stands between a null and a ceiling.

A null is of pairs that share nothing, a ceiling of a perfect pair.

A *pairing* is an order of images: the target of image i stands beside x of image order[i]. Sums per
image belong to the target's image (of a null over all pairs, to the source's as well), so that the
null, the score and the ceiling are resampled together. Two kinds:

- *Shuffled* pairings, for a null that is fitted once or a few times: no image keeps its own partner.
- *Permutations*, for a test: all orders are as likely as each other, the true one included, which makes p exact.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from consistency.bootstrap import Interval, Statistic, bootstrap
from utils.arrays import read_arrays
from utils.devices import has_float64
from utils.errors import InputError
from utils.files import replacing

KINDS = ("observed", "null", "ceiling")  # what a normalised consistency is made of
BACK = "back_"  # before them: of the other direction

Array = NDArray[Any]
# Images, targets (n, U, 1, D), predictions (n, U, b, D)
Predictions = Iterable[tuple[slice | Tensor, Tensor, Tensor]]


def shuffled(images: int, generator: torch.Generator) -> Tensor:
    """Pair every image with another one: a random cycle through all of them, int64 (N,).

    Raises:
        InputError: Fewer than two images.
    """
    return shuffled_within_class(torch.zeros(images, dtype=torch.int64), generator)


def shuffled_within_class(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Pair every image with another one of its class: a random cycle through each class.

    The only image of its class keeps its own partner: `order == arange(N)` finds such images, which
    a null leaves out.

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
        # A cycle has no fixed point, so nobody keeps its partner.
        cycle = members[torch.randperm(len(members), generator=generator)]
        order[cycle] = cycle.roll(1)
    if bool((order == torch.arange(len(labels))).all()):
        raise InputError(
            f"pairs can be shuffled only where a class has two images, but the {len(labels)} images"
            " are of as many classes; take more images."
        )
    return order


def permutations(labels: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draw orders of which each that keeps the classes is as likely: int64 (draws, N).

    Args:
        labels: the images' classes, integers (N,); all equal: any order over all images.
        draws: how many.
        generator: of the CPU.
    """
    by_class = labels.argsort(stable=True)
    # Sorting random keys is a permutation of which each is as likely.
    keys = torch.rand(draws, len(labels), generator=generator, dtype=torch.float64)
    mixed = keys.argsort(1)
    # Random within each class, classes in order
    mixed = mixed.gather(1, labels[mixed].argsort(dim=1, stable=True))
    orders = torch.empty_like(mixed)
    # Place k in the order of classes gets image k of the mixed ones, which is of the same class.
    orders[:, by_class] = mixed
    return orders


def check_pairs(labels: Tensor) -> None:
    """Check that some class has two images.

    Raises:
        InputError: none has.
    """
    if labels.unique(return_counts=True)[1].max() < 2:
        raise InputError(
            f"a null needs two held-out images of a class, but the {len(labels)} images are of as"
            " many classes; take more images."
        )


@torch.no_grad()
def errors_of_untrue_pairs(
    predictions: Callable[[], Predictions],
    labels: Tensor,
    shape: tuple[int, int, int],
    like: Tensor,
    all_reduce: Callable[[Tensor], object] = lambda total: None,
) -> Tensor:
    """Divide the mean squared error over all pairs of two images of a class among the images.

    With means over the other images j of the class, and over its pairs j, k of two,

        |y_i|² + |ŷ_i|² − 2 mean y_i·ŷ_j − 2 mean y_j·ŷ_i + 2 mean y_j·ŷ_k

    is image i's part: it takes part as a target and as a source. So a resample of the images varies
    their sum as other images would, and an image's own squares cancel against those of its true
    pair. The only image of its class is paired with itself.

    Memory: the sums of each class, (b + 1)·U·D numbers a class. Time: two passes.

    Args:
        predictions: begins a pass; each image comes once, in one of the processes.
        labels: the images' classes, integers (N,).
        shape: U positions, b regressions that share the targets, D channels.
        like: a tensor on the device and of the precision of the sums.
        all_reduce: adds up a tensor over processes, in place; default: there is one.

    Returns:
        float64 (N, b); columns add up to the squared errors about the channels' means.
    """
    positions, regressions, channels = shape
    # The class of each image, (N,), and the number of images of each class.
    _, kinds, counts = (
        tensor.to(like.device) for tensor in labels.unique(return_inverse=True, return_counts=True)
    )
    # n_c of each image, (N, 1)
    size = counts[kinds, None]
    target_sums, predicted_sums = (
        like.new_zeros(len(counts), positions, columns, channels) for columns in (1, regressions)
    )
    for images, target, predicted in predictions():
        target_sums.index_add_(0, kinds[images], target)
        predicted_sums.index_add_(0, kinds[images], predicted)
    all_reduce(target_sums)
    all_reduce(predicted_sums)
    # The second pass: y_i·ŷ_j over the others j is y_i·Σ ŷ less the image's true pair.
    # Each entry is written once: float32 keeps what a device without float64 computed.
    dtype = torch.float64 if has_float64(like.device) else like.dtype
    errors, products = (like.new_zeros(len(labels), regressions, dtype=dtype) for _ in range(2))
    for images, target, predicted in predictions():
        # y_i·ŷ_i, (n, b)
        paired = (target * predicted).sum((1, 3))
        # y_i·Σ ŷ_j and ŷ_i·Σ y_j over i's class, with i itself
        both = (target * predicted_sums[kinds[images]], target_sums[kinds[images]] * predicted)
        others = (size[images] - 1).clamp(min=1)
        # An image alone in its class stays with its true pair.
        first, second = (
            torch.where(size[images] > 1, one.sum((1, 3)) - paired, paired) / others for one in both
        )
        squares = target.square().sum((1, 3)) + predicted.square().sum((1, 3))
        errors[images] = (squares - 2 * (first + second)).to(errors)
        products[images] = first.to(products)
    all_reduce(errors)
    all_reduce(products)
    # `products` has the mean of y_i·ŷ_j over j; its mean over i is that over all pairs.
    # The mean of y_j·ŷ_k over pairs of a class.
    means = (
        products.new_zeros(len(counts), regressions).index_add_(0, kinds, products)
        / counts[:, None]
    )
    # What the channels' means explain, which errors about them do not count.
    # |Σ (y − ŷ)|² / (N·U) of all channels, (b,)
    shift = (target_sums - predicted_sums).sum((0, 1)).square().sum(1) / (len(labels) * positions)
    return errors + 2 * means[kinds] - shift / len(labels)


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
        """(1 + #{null ≤ observed}) / (1 + B), of B permutations.

        It says how often a pair without a connection looks as consistent.
        """
        return (1 + int((self.draws <= self.observed).sum())) / (1 + len(self.draws))

    def zero(self, level: float = 0.05) -> float:
        """Give the instability that the score's zero stands for.

        An observed one below it has p ≤ level.

        Raises:
            InputError: Too few permutations for this level.
        """
        rank = int(level * (1 + len(self.draws)) + 1e-9)  # 0.05 · 20 is 1
        if rank < 1:
            needed = int(np.ceil(1 / level)) - 1
            raise InputError(
                f"a level of {level} needs at least {needed} permutations, not {len(self.draws)}."
            )
        # Below the rank-th smallest draw lie rank − 1 at most: p ≤ rank / (1 + B) ≤ level.
        return float(np.sort(self.draws)[rank - 1])


def best_of(nulls: Sequence[Null]) -> Null:
    """Give the null of the best of several layers or depths.

    Their draws must have used the same permutations.

    Layers differ in what a null reaches, so each is first divided by its mean over all B + 1
    pairings; the observed one is among them, so that p stays exact.
    """
    # (layers, B + 1), the true pairing last
    values = np.stack([np.append(null.draws, null.observed) for null in nulls])
    # The smallest of the layers counts, of the true pairs as of the permuted ones.
    best = (values / values.mean(1, keepdims=True)).min(0)
    return Null(float(best[-1]), best[:-1])


def normalised_consistency(
    instability: ArrayLike, null: ArrayLike, ceiling: ArrayLike = 0.0
) -> Array:
    """Compute (null − I) / (null − ceiling).

    It is 0 for pairs that share nothing, and 1 for what a perfect pair reaches.

    Args:
        instability: I, a number or an array.
        null: the instability of pairs that share nothing.
        ceiling: the least that can be reached, of A → A.

    Returns:
        NaN where the null is not above the ceiling: there is no scale between them.
    """
    scale = np.subtract(null, ceiling)
    # The inner `where` divides by 1 what the outer one leaves out.
    return np.where(
        scale > 0, np.subtract(null, instability) / np.where(scale > 0, scale, 1), np.nan
    )


def consistency_interval(
    statistic: Statistic,
    observed: Sequence[Array],
    null: Sequence[Array],
    ceiling: Sequence[Array] | None = None,
    **options: Any,
) -> dict[str, Interval]:
    """Give intervals of an instability, its null, its ceiling and the consistency.

    All four are resampled together.

    Args:
        statistic: sums over images → numbers, among them "instability".
        observed: sums per image, see `bootstrap`.
        null: of the same target images beside other images' x.
        ceiling: of A → A on the same images; none: 0.
        options: of `bootstrap`.

    Returns:
        "instability", "null", "ceiling" (if there is one), "consistency".
    """
    parts = [list(sums) for sums in (observed, null, ceiling or ())]
    # Where each of the three ends among all sums
    ends = np.cumsum([len(sums) for sums in parts])

    def numbers(*totals: Array) -> dict[str, Array]:
        of = {
            "instability": totals[: ends[0]],
            "null": totals[ends[0] : ends[1]],
            "ceiling": totals[ends[1] :],
        }
        instabilities = {name: statistic(*some)["instability"] for name, some in of.items() if some}
        return instabilities | {"consistency": normalised_consistency(**instabilities)}

    return bootstrap(numbers, [array for sums in parts for array in sums], **options)


def instability_of(sums: Array) -> dict[str, Array]:
    """Compute the instability of sums over images: Var(x*) and Var(x_Δ), (…, 2)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return {"instability": sums[..., 1] / sums[..., 0]}


def save_sums(
    path: str | Path,
    observed: Array,
    null: Array,
    ceiling: Array,
    back: Sequence[Array] | None = None,
) -> None:
    """Write every image's parts of Var(x*) and Var(x_Δ) for `load_sums`.

    They are (N, 2) each, in one .npz file; `back` is the same three of the other direction.
    """
    sums = dict[str, Array](zip(KINDS, (observed, null, ceiling)))
    sums |= {f"{BACK}{kind}": array for kind, array in zip(KINDS, back or ())}
    with replacing(path) as temporary:
        np.savez(temporary, allow_pickle=False, **sums)


def load_sums(path: str | Path, *, back: bool = False) -> dict[str, Array]:
    """Read what `save_sums` wrote: float64 (N, 2) by `KINDS`.

    Their sums over the images are Var(x*) and Var(x_Δ).

    Args:
        path: of the file.
        back: of the other direction.

    Raises:
        InputError: there is no such file, it is another one, or it has one direction alone.
    """
    remedy = "make it by Calibrate.py --sums"
    stored = read_arrays(path, remedy)
    if back and f"{BACK}{KINDS[0]}" not in stored and KINDS[0] in stored:
        raise InputError(f"{path} holds one direction alone; {remedy} with both")
    sums = {kind: stored.get(f"{BACK * back}{kind}") for kind in KINDS}
    shapes = {None if array is None else array.shape for array in sums.values()}
    for kind, array in sums.items():
        if array is None or array.shape[1:] != (2,) or len(shapes) > 1 or array.dtype != np.float64:
            raise InputError(f"{path} has no sums per image as {kind}; {remedy}")
        if not np.isfinite(array).all():
            raise InputError(f"{path} has sums that are not finite as {kind}; {remedy}")
    return {kind: array for kind, array in sums.items() if array is not None}
