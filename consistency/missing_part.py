"""Where, and along which directions of channels, what g(x) misses of x* matters to B.

x_Δ = x* − g(x). B's tail T answers b to x*, and k is the other class that it prefers at g(x). The
margin m(v) = T_b(v) − T_k(v) is lost on the straight way from x* to g(x), of which each channel c and
position u carries a part (integrated gradients; Sundararajan, Taly, Yan 2017):

    ḡ = ∫₀¹ ∇m(g(x) + s x_Δ) ds
    m(x*) − m(g(x)) = Σ_cu ḡ_cu x_Δ,cu = Σ_u a_u        a_u is what position u carries

*Directions.* Tails read some directions of channels more than others. In their metric
G = mean over images and positions of ḡ ḡᵀ = Wᵀ W, with w = W x_Δ and h = W⁻ᵀ ḡ, so that ḡ · x_Δ = h · w,

    K = mean over images of Σ_u (w hᵀ + h wᵀ) / 2 = Σ_k λ_k q_k q_kᵀ

the direction q_k carries λ_k of the margin, and Σ λ_k is all of it. No invertible map of the channels
before the tail changes this. An image *excites* a direction by the mean over positions of q_k · w.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.later import scipy

STEPS = 8  # of the integral; the midpoints' error is some 1 % of the margin behind ReLUs
BATCH = 64
SMALLEST = 1e-6  # relative to the largest eigenvalue of G: what the tail does not read


@dataclass(frozen=True)
class Carried:
    """What each channel and position carries of the margin that is lost.

    Attributes:
        gradient: ḡ, (N, C, H, W).
        residual: x_Δ, (N, C, H, W).
        answers: b, int64 (N,).
        others: k, int64 (N,).
        lost: m(x*) − m(g(x)), (N,), in units of the logits.
    """

    gradient: Tensor
    residual: Tensor
    answers: Tensor
    others: Tensor
    lost: Tensor

    @property
    def places(self) -> Tensor:
        """What each position carries, a, (N, H, W)."""
        return (self.gradient * self.residual).sum(1)

    @property
    def sizes(self) -> Tensor:
        """The size of x_Δ at each position, its norm over channels, (N, H, W)."""
        return self.residual.norm(dim=1)


def carry(tail: Callable[[Tensor], Tensor], target: Tensor, output: Tensor) -> Carried:
    """Say what each channel and position of x_Δ carries of the margin that is lost.

    Args:
        tail: B's, maps (n, C, H, W) → logits (n, K), two classes or more.
        target: x*, (N, C, H, W).
        output: g(x), (N, C, H, W).
    """
    gradients, answers, others, lost = [], [], [], []
    for x, y in zip(target.split(BATCH), output.split(BATCH)):
        with torch.no_grad():
            z, sent = tail(x), tail(y)
        b = z.argmax(1, keepdim=True)
        k = sent.scatter(1, b, -torch.inf).argmax(1, keepdim=True)

        def margin(logits: Tensor, b: Tensor = b, k: Tensor = k) -> Tensor:
            return (logits.gather(1, b) - logits.gather(1, k))[:, 0]

        total = torch.zeros_like(x)
        for step in range(STEPS):
            # The midpoint of each step of the straight way from g(x) to x*
            between = y + (step + 0.5) / STEPS * (x - y)
            with torch.enable_grad():
                between.requires_grad_(True)
                # A copy, since the tail's first layer may work in place
                (gradient,) = torch.autograd.grad(margin(tail(between.clone())).sum(), between)
            total += gradient
        gradients.append(total / STEPS)
        answers.append(b[:, 0])
        others.append(k[:, 0])
        lost.append(margin(z) - margin(sent))
    return Carried(
        torch.cat(gradients), target - output, *(torch.cat(of) for of in (answers, others, lost))
    )


@dataclass(frozen=True)
class Directions:
    """Directions of channels, ordered by the margin that they carry, the most first.

    Attributes:
        margins: λ, what each carries of an image's margin, float64 (r,), in units of the logits; they
            add up to the mean of the margin lost.
        channels: how much each channel's x_Δ adds to a direction, Wᵀ q_k, float64 (r, C).
        excited: how much each image excites each direction, float64 (N, r).
    """

    margins: NDArray[np.float64]
    channels: NDArray[np.float64]
    excited: NDArray[np.float64]


def directions(carried: Carried) -> Directions:
    """Split the margin that is lost by directions of channels; see the equations above."""
    ways, rest = (
        of.double().flatten(2).mT for of in (carried.gradient, carried.residual)
    )  # (N, U, C)
    count, positions = ways.shape[:2]
    # G, (C, C)
    metric = torch.einsum("nuc,nud->cd", ways, ways) / (count * positions)
    values, vectors = torch.linalg.eigh(metric)
    is_read = values > SMALLEST * values[-1]
    roots = values[is_read].sqrt()
    whitening = roots[:, None] * vectors[:, is_read].mT  # W, (r, C)
    w = rest @ whitening.mT  # (N, U, r)
    # W⁻ᵀ = Λ^(-1/2) Vᵀ, on the directions that the tail reads: (N, U, r)
    h = ways @ (vectors[:, is_read] / roots)
    # (r, r); its symmetric part is K, with the same trace.
    both = torch.einsum("nur,nus->rs", w, h) / count
    margins, q = torch.linalg.eigh((both + both.mT) / 2)
    # `eigh` sorts upwards.
    margins, q = margins.flip(0), q.flip(1)
    excited = w.mean(1) @ q
    # A direction has no sign of its own: most of what excites it shall be positive
    sign = torch.where(excited.pow(3).sum(0) < 0, -1.0, 1.0).double()
    return Directions(
        margins.numpy(),
        (sign[:, None] * (q.mT @ whitening)).numpy(),
        (excited * sign).numpy(),
    )


def rank_correlation(first: Tensor, second: Tensor) -> NDArray[np.float64]:
    """Give Spearman's correlation over the positions of each image's two maps.

    Args:
        first: (N, H, W).
        second: (N, H, W).

    Returns:
        float64 (N,); NaN where a map is constant.
    """
    ranks = [scipy.stats.rankdata(of.flatten(1).double().numpy(), axis=1) for of in (first, second)]
    centred = [of - of.mean(1, keepdims=True) for of in ranks]
    norms = [np.linalg.norm(of, axis=1) for of in centred]
    with np.errstate(invalid="ignore"):
        return (centred[0] * centred[1]).sum(1) / (norms[0] * norms[1])
