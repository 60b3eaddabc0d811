"""Similarities of two nets with an image as a row, each held against permutations of the images.

Where positions are rows (`consistency.position_similarity`), neighbouring rows are nearly copies,
and two nets of which one is untrained look as alike as two trained ones. Here maps are pooled to 4
× 4 positions and flattened: a row is an image, (C·16,), and a vector stays as it is.

Every number is a similarity, larger for nets that are more alike, so that all are read and calibrated
alike: with s of the true pairs and τ the level that 95 % of permuted pairs stay below (images change
their partners within their class, so τ is what the class alone gives),

    calibrated = (s − τ) / (1 − τ)                                  (Gröger et al. 2026)

| name | what it is here |
|---|---|
| CKA | linear, unbiased HSIC (Song et al. 2012) |
| SVCCA | the mean canonical correlation of the components of 99 % of each variance (Raghu et al. 2017) |
| Procrustes | the nuclear norm of XᵀY, both centred and of norm 1: 1 − the distance of `procrustes` |
| mutual 10-NN | the mean share of 10 nearest neighbours by cosine in common (Huh et al. 2024) |
| ridge R² x → x*, x* → x | of held-out images, penalty 0.1 of the mean variance of a column |
| ridge R², smaller way | the smaller of these two |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from consistency.calibration import Null, permutations
from consistency.position_similarity import unbiased_hsic
from utils.errors import InputError
from utils.later import scipy

SIDE = 4  # of maps that are pooled
NEIGHBOURS = 10
KEPT = 0.99  # of a feature's variance, for SVCCA
WEIGHT = 0.1  # of ridge, as a multiple of the mean variance of a column
ROUNDING = 1e-12

Array = NDArray[Any]


def image_rows(feature: Tensor) -> Tensor:
    """Make each image a row: maps are averaged to at most 4 × 4 positions and flattened.

    Args:
        feature: maps (N, C, H, W), tokens (N, T, C) or vectors (N, C), floating.

    Returns:
        float64 (N, C·positions).
    """
    feature = feature.double()
    # (N, T, C) → (N, C, T), pooled along T to 16 of them at most
    if feature.ndim == 3:
        feature = F.adaptive_avg_pool1d(feature.mT, min(SIDE**2, feature.shape[1]))
    elif feature.ndim == 4:
        height, width = feature.shape[2:]
        feature = F.adaptive_avg_pool2d(feature, (min(SIDE, height), min(SIDE, width)))
    return feature.flatten(1)


class ImageRows:
    """One net's features of images, a row each.

    It holds what every similarity with another net needs of them.

    Args:
        held_out: of the images that nets are compared on, (N, p), floating.
        fitted: of the images that regressions are fitted to, (M, p); none: no ridge R².

    Raises:
        InputError: fewer than four images, or values that are not finite.
    """

    def __init__(self, held_out: Tensor, fitted: Tensor | None = None) -> None:
        if held_out.ndim != 2 or len(held_out) < 4 or not held_out.isfinite().all():
            raise InputError(
                "similarities need finite features of at least four images, a row each, not "
                f"{tuple(held_out.shape)}; look at the nets"
            )
        self.rows = held_out.double()
        self.fitted = None if fitted is None else fitted.double()

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def centred(self) -> Tensor:
        """The rows about their mean, (N, p)."""
        return self.rows - self.rows.mean(0)

    @property
    # Rounding leaves so much of equal rows less their mean.
    def constant(self) -> bool:
        """Whether the rows do not vary."""
        return bool(self.centred.norm() <= ROUNDING * self.rows.norm())

    @cached_property
    def components(self) -> tuple[Tensor, Tensor]:
        """U and S of the centred rows = U S Vᵀ: (N, r) and (r,), r the smaller of N and p."""
        vectors, sizes, _ = torch.linalg.svd(self.centred, full_matrices=False)
        return vectors, sizes

    @cached_property
    def coordinates(self) -> Tensor:
        """U S divided by its norm, (N, r).

        They are the rows, rotated so that there are no more columns than rows.
        """
        vectors, sizes = self.components
        return vectors * sizes / sizes.norm()

    @cached_property
    def leading(self) -> Tensor:
        """The fewest columns of U that hold `KEPT` of the variance, (N, k)."""
        vectors, sizes = self.components
        variances = sizes.square()
        # As SVCCA has it; components of rounding alone are left out.
        count = int((variances.cumsum(0) < KEPT * variances.sum()).sum()) + 1
        return vectors[:, : min(count, int((variances > 1e-10 * variances[0]).sum()))]

    @cached_property
    def gram(self) -> Tensor:
        """Products of the centred rows, (N, N)."""
        # N × N, not p × p: images are usually fewer than the numbers of a row.
        return self.centred @ self.centred.mT

    @cached_property
    def neighbours(self) -> Tensor:
        """The nearest other images of each by the cosine of their rows, int64 (N, NEIGHBOURS)."""
        unit = F.normalize(self.rows, dim=1)
        # No image is its own neighbour.
        cosines = (unit @ unit.mT).fill_diagonal_(-torch.inf)
        return cosines.topk(min(NEIGHBOURS, len(unit) - 1), dim=1).indices

    @cached_property
    def about(self) -> tuple[Tensor, Tensor]:
        """The rows of the fitted and of the held-out images about the mean of the fitted ones."""
        if self.fitted is None:
            raise InputError("a regression needs images to be fitted to; give their rows too")
        mean = self.fitted.mean(0)
        return self.fitted - mean, self.rows - mean

    @cached_property
    def smoother(self) -> Tensor:
        """H (N, M): a ridge regression on the fitted images predicts H Y.

        Y is taken about its mean.
        """
        fitted, rows = self.about
        # H Y = X_h X_fᵀ (X_f X_fᵀ + λ)⁻¹ Y, the dual form: a matrix of images, since rows are wide.
        gram = fitted @ fitted.mT
        # The mean over columns of Σ x², as `gram` sums over the fitted images
        penalty = WEIGHT * gram.trace() / fitted.shape[1]
        gram.diagonal().add_(penalty if penalty > 0 else 1.0)
        return torch.cholesky_solve(fitted @ rows.mT, torch.linalg.cholesky(gram)).mT

    @cached_property
    def smoother_gram(self) -> Tensor:
        """HᵀH (M, M)."""
        return self.smoother.mT @ self.smoother

    @cached_property
    def products(self) -> tuple[Tensor, Tensor, float]:
        """Products about the fitted images' mean.

        Of these (M, M), of rows with them (N, M), and Σ |row|².
        """
        fitted, rows = self.about
        return fitted @ fitted.mT, rows @ fitted.mT, rows.square().sum().item()


Score = Callable[[ImageRows, ImageRows, Tensor | None], float]


def cka(x: ImageRows, y: ImageRows, order: Tensor | None = None) -> float:
    """Compute unbiased linear CKA; `order` (N,) says which image's y stands beside x of image i."""

    def hsic(one: Tensor, other: Tensor) -> Tensor:
        a, b = one.diagonal(), other.diagonal()
        return unbiased_hsic((one * other).sum(), (a * b).sum(), a.sum() * b.sum(), len(one))

    # An order moves rows and columns of the products together.
    permuted = y.gram if order is None else y.gram[order][:, order]
    return float(hsic(x.gram, permuted) / (hsic(x.gram, x.gram) * hsic(y.gram, y.gram)).sqrt())


def svcca(x: ImageRows, y: ImageRows, order: Tensor | None = None) -> float:
    """Compute the mean canonical correlation of the leading components.

    It is NaN where they fill all rows.
    """
    one, other = x.leading, y.leading
    if one.shape[1] + other.shape[1] >= len(x):
        return float("nan")  # as many columns as rows correlate perfectly anyhow
    other = other if order is None else other[order]
    # Columns of U are orthonormal in any order of rows: no whitening is needed.
    return float(torch.linalg.svdvals(one.mT @ other).clamp(max=1).mean())


def procrustes(x: ImageRows, y: ImageRows, order: Tensor | None = None) -> float:
    """Compute the nuclear norm of XᵀY of features of norm 1.

    It is 1 where one is a rotation of the other.

    Rows wider than their number are much alike by chance: read it beside permuted images.
    """
    product = x.coordinates.mT @ (y.coordinates if order is None else y.coordinates[order])
    if order is None:
        return float(scipy.linalg.svdvals(product.numpy()).sum())
    # Of P Pᵀ and Pᵀ P take the smaller one; both have the squares of P's singular values.
    if product.shape[0] > product.shape[1]:
        product = product.mT
    # Twice as fast, and exact to 1e-8: enough for a level that 95 % of the permuted pairs stay
    # below.
    return float(torch.linalg.eigvalsh(product @ product.mT).clamp(min=0).sqrt().sum())


def mutual_neighbours(x: ImageRows, y: ImageRows, order: Tensor | None = None) -> float:
    """Compute the mean share of nearest neighbours that an image has in common in both nets."""
    # near[i, j]: j is among the nearest of i in net B.
    near = torch.zeros(len(y), len(y), dtype=torch.bool).scatter_(1, y.neighbours, True)
    # Beside x of image i stands y of image order[i].
    order = torch.arange(len(x)) if order is None else order
    return float(near[order[:, None], order[x.neighbours]].double().mean())


def ridge_r2(
    x: ImageRows, y: ImageRows, order: Tensor | None = None, fit_order: Tensor | None = None
) -> float:
    """Compute R² of a ridge regression of y on x.

    It is fitted on some images, and judged on the held-out ones.
    """
    of_fitted, across, energy = y.products
    if order is not None and fit_order is not None:
        # Held-out rows move by one order, fitted columns by the other; Σ |y|² stays.
        of_fitted, across = of_fitted[fit_order][:, fit_order], across[order][:, fit_order]
    # Σ |y − H Y|² = Σ |y|² − 2 Σ H ∘ (y Yᵀ) + Σ HᵀH ∘ (Y Yᵀ)
    error = energy - 2 * (x.smoother * across).sum() + (x.smoother_gram * of_fitted).sum()
    return float(1 - error / y.centred.square().sum())


@dataclass(frozen=True)
class Calibrated:
    """A similarity and what permuted images reach.

    Attributes:
        name: see the table of this module.
        value: of the true pairs; None where it is not defined.
        level: τ, which 95 % of the permuted pairs stay below; None without permutations.
        calibrated: (s − τ) / (1 − τ): 0 or less where nothing is shown, 1 where nothing differs.
        p: (1 + #{permuted ≥ s}) / (1 + permutations).
        reason: why there is no value.
    """

    name: str
    value: float | None
    level: float | None = None
    calibrated: float | None = None
    p: float | None = None
    reason: str = ""


SCORES: dict[str, Score] = {
    "CKA": cka,
    "SVCCA": svcca,
    "Procrustes": procrustes,
    f"mutual {NEIGHBOURS}-NN": mutual_neighbours,
}
WAYS = ("ridge R² x → x*", "ridge R² x* → x", "ridge R², smaller way")


def image_similarities(
    x: ImageRows,
    y: ImageRows,
    labels: Sequence[Tensor],
    generator: torch.Generator,
    *,
    draws: int = 39,
) -> list[Calibrated]:
    """Compute every similarity and hold it against permutations of the images within their classes.

    Args:
        x: of net A.
        y: of net B, of the same images.
        labels: the classes of the fitted and of the held-out images, integers (M,) and (N,); all equal:
            images are permuted over all.
        generator: of the CPU.
        draws: permutations; 39 are the fewest for a p of 0.025. Fewer than 19 give no level.

    Raises:
        InputError: the nets saw other images.
    """
    if len(x) != len(y) or len(labels[1]) != len(x):
        raise InputError(
            f"both nets must have seen the same images, but {len(x)} and {len(y)} came"
        )
    regressed = x.fitted is not None and y.fitted is not None
    if x.constant or y.constant:
        reason = f"{'x' if x.constant else 'x*'} is constant"
        names = (*SCORES, *(WAYS if regressed else ()))
        return [Calibrated(name, None, reason=reason) for name in names]
    orders = permutations(labels[1], draws, generator)
    # The same orders for all scores
    similarities = [
        _calibrated(name, score(x, y, None), [score(x, y, order) for order in orders])
        for name, score in SCORES.items()
    ]
    if not regressed:
        return similarities
    fit_orders = permutations(labels[0], draws, generator)

    def way(one: ImageRows, other: ImageRows) -> Array:
        drawn = [ridge_r2(one, other, *both) for both in zip(orders, fit_orders)]
        return np.array([ridge_r2(one, other), *drawn])

    ways = [way(x, y), way(y, x)]
    # The smaller way inside each permutation, too: the level is of the same statistic.
    ways.append(np.minimum(*ways))
    return similarities + [_calibrated(name, of[0], of[1:]) for name, of in zip(WAYS, ways)]


def _calibrated(name: str, observed: float, drawn: Sequence[float] | Array) -> Calibrated:
    if not np.isfinite(observed):
        return Calibrated(name, None, reason="the components are as many as the images: take more")
    if len(drawn) < 19:
        return Calibrated(name, observed, reason="a level needs 19 permutations")
    # `Null` is of numbers that are better when smaller.
    null = Null(1 - observed, 1 - np.array(drawn))
    level = 1 - null.zero()
    scale = 1 - level
    calibrated = (observed - level) / scale if scale > 0 else None
    return Calibrated(name, observed, level, calibrated, null.p_value)
