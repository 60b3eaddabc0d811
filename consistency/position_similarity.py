"""Similarities of two features: CKA, SVCCA, Procrustes, ridge R².

The suite's numbers are read beside them.

All follow from the sums of one pass (`PairSums`), so that their memory does not grow with the
images. Rows of one image are alike, and none of these scores knows that: their own corrections for
few rows count rows, not images.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from consistency.pair_sums import ROUNDING, PairSums
from utils.errors import InputError
from utils.later import scipy

# Of ridge, as a multiple of the mean of X's variances
WEIGHTS = tuple(10.0**exponent for exponent in range(-4, 3))


@dataclass(frozen=True)
class Score:
    """One number about two features, and how to read it.

    Attributes:
        name: "CKA", "SVCCA", "Procrustes" or "ridge R2".
        value: None where it is not defined.
        kind: a similarity is larger, a distance smaller for features that are more alike.
        bounds: the smallest and the largest possible value; None: unbounded.
        reason: why there is no value.
        convention: which of the definitions that go by this name it is.
    """

    name: str
    value: float | None
    kind: Literal["similarity", "distance"]
    bounds: tuple[float | None, float]
    reason: str = ""
    convention: str = ""


def linear_cka(sums: PairSums) -> Score:
    """Compute unbiased linear CKA (Song et al. 2012).

    HSIC₁(K, L) / √(HSIC₁(K, K) · HSIC₁(L, L)), with K = XXᵀ and L = YYᵀ

    About the means, where rows of K sum to 0, HSIC₁ needs no n × n matrix; with a = |x|², b = |y|²
    of a row:

        n (n−3) HSIC₁ = ‖XᵀY‖² − n/(n−2) Σ a b + (Σ a)(Σ b) / ((n−1)(n−2))

    Its expectation is 0 for independent rows, whatever the widths, so that single values can be
    below 0.
    """

    def score(value: float | None, reason: str = "") -> Score:
        return Score("CKA", value, "similarity", (-1.0, 1.0), reason, "linear, unbiased")

    of = sums.centred()
    n = of.rows
    if n < 4:
        return score(None, f"the unbiased estimate needs 4 rows, there are {n}")
    if of.constant():
        return score(None, of.constant())
    totals = torch.stack([of.xx.trace(), of.yy.trace()])  # Σ a, Σ b
    # ‖XᵀX‖², ‖XᵀY‖² and ‖YᵀY‖² as a 2 × 2 matrix: all three HSIC at one time.
    norms = torch.stack([block.square().sum() for block in (of.xx, of.xy, of.xy, of.yy)]).reshape(
        2, 2
    )
    hsic = unbiased_hsic(norms, of.squares, totals.outer(totals), n)
    for name, hsic_of_one, total in zip(("x", "x*"), hsic.diagonal(), totals):
        if hsic_of_one <= ROUNDING * total.square():
            return score(None, f"{name} differs in one row alone")
    return score((hsic[0, 1] / hsic.diagonal().prod().sqrt()).item())


def unbiased_hsic(norms: Tensor, squares: Tensor, totals: Tensor, n: int) -> Tensor:
    """Give n (n − 3) HSIC₁ of n rows about their mean, see `linear_cka`.

    Args:
        norms: ‖XᵀY‖², any shape.
        squares: Σ a b, a = |x|² and b = |y|² of a row.
        totals: (Σ a)(Σ b).
        n: at least 4.
    """
    return norms - n / (n - 2) * squares + totals / ((n - 1) * (n - 2))


def svcca(sums: PairSums, kept: float = 0.99) -> Score:
    """Compute the mean canonical correlation of leading principal components.

    They are of both features (Raghu et al. 2017).

    Args:
        sums: of the pair.
        kept: of each feature the fewest components that hold this share of its variance, at least
            1; with 1 all, that is CCA, but for those below 1e-10 of the largest variance.
    """

    def score(value: float | None, reason: str = "") -> Score:
        named = f"mean correlation of the components of {kept:.0%} of the variance"
        return Score("SVCCA" if kept < 1 else "CCA", value, "similarity", (0.0, 1.0), reason, named)

    of = sums.centred()
    if of.constant():
        return score(None, of.constant())
    whitening = []
    for covariance in (of.xx, of.yy):
        # `eigh` sorts upwards; flipped, the largest variance is the first.
        variances, directions = (tensor.flip(-1) for tensor in torch.linalg.eigh(covariance))
        # The fewest components that hold the share, less those that are rounding alone.
        size = int((variances.cumsum(0) < kept * variances.sum()).sum()) + 1
        size = min(size, int((variances > 1e-10 * variances[0]).sum()))
        # XᵀX = V Λ Vᵀ: the columns of X V Λ^(-1/2) are orthonormal.
        whitening.append(directions[:, :size] / variances[:size].sqrt())
    sizes = [tensor.shape[1] for tensor in whitening]
    if sum(sizes) >= of.rows:
        return score(
            None,
            f"{sizes[0]} and {sizes[1]} components of only {of.rows} rows correlate perfectly"
            " anyhow",
        )
    # Singular values of the whitened cross-covariance are the canonical correlations.
    correlations = torch.linalg.svdvals(whitening[0].mT @ of.xy @ whitening[1]).clamp(max=1)
    return score(correlations.mean().item())


def procrustes(sums: PairSums) -> Score:
    """Compute the orthogonal Procrustes distance ½ min_R ‖X̂R − Ŷ‖² = 1 − ‖X̂ᵀŶ‖_*, R orthogonal.

    X̂ and Ŷ are centred and have norm 1; the narrower is widened by channels of zeros. 0: equal but
    for a rotation and one scale; 1: uncorrelated.
    """

    def score(value: float | None, reason: str = "") -> Score:
        return Score(
            "Procrustes",
            value,
            "distance",
            (0.0, 1.0),
            reason,
            "1 − nuclear norm, features of norm 1",
        )

    of = sums.centred()
    if of.constant():
        return score(None, of.constant())
    if of.rows <= max(sums.widths):
        return score(
            None, f"{max(sums.widths)} channels of only {of.rows} rows can be rotated onto anything"
        )
    # tr XᵀX = ‖X‖²: features of norm 1 have a nuclear norm of at most 1.
    overlap = (
        scipy.linalg.svdvals(of.xy.numpy()).sum() / (of.xx.trace() * of.yy.trace()).sqrt().item()
    )
    return score(float(max(0.0, 1 - overlap)))


def ridge_r2(fit: PairSums, held_out: PairSums) -> Score:
    """Compute the R² with which a ridge regression on some images predicts x* from x on others.

    R² = 1 − Σ |y − ŷ|² / Σ |y − mean y|² over the held-out rows. The weight is the one of `WEIGHTS`
    with the least generalised cross-validation error on the fitting images (Golub et al. 1979).

    Args:
        fit: sums of the images that the regression is fitted to.
        held_out: sums of the images on which it is judged.
    """

    def score(value: float | None, reason: str = "") -> Score:
        return Score(
            "ridge R2",
            value,
            "similarity",
            (None, 1.0),
            reason,
            "x → x*, weight by cross-validation",
        )

    if (fit.rows, fit.widths) != (held_out.rows, held_out.widths):
        raise InputError(
            f"a regression of {fit.widths} channels cannot be judged on {held_out.widths}."
        )
    of, on = fit.centred(), held_out.centred()
    if of.constant() or on.constant():
        return score(None, of.constant() or on.constant())
    # In the eigenbasis of XᵀX the regression of every weight is a division.
    variances, directions = torch.linalg.eigh(of.xx)
    # T = Vᵀ XᵀY, (p, q): W = V (Λ + weight)⁻¹ T
    cross = directions.mT @ of.xy
    power = cross.square().sum(1)

    def validation_error(weight: float) -> float:
        damped = variances + weight * variances.mean()
        # With d = λ + weight, Σ |y − ŷ|² = Σ |y|² − Σ |t|² (2 d − λ) / d², t the rows of T.
        error = of.yy.trace() - (power * (2 * damped - variances) / damped.square()).sum()
        # The trace of the hat matrix, and 1 for the mean, are the degrees of freedom used.
        freedom = of.rows - 1 - (variances / damped).sum()
        return (error / freedom.square()).item()

    weight = min(WEIGHTS, key=validation_error)
    regression = directions @ (cross / (variances + weight * variances.mean())[:, None])
    p = fit.widths[0]
    # The regression's constant is of the fitting images' means: held-out means differ from it.
    bias = (on.mean - of.mean)[p:] - (on.mean - of.mean)[:p] @ regression
    # Σ |y|² − 2 tr WᵀXᵀY + tr WᵀXᵀX W about the held-out means
    error = (
        on.yy.trace() - 2 * (regression * on.xy).sum() + (regression * (on.xx @ regression)).sum()
    )
    return score((1 - (error + on.rows * bias.square().sum()) / on.yy.trace()).item())
