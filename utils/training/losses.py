"""The losses of the paper's steps."""

import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, targets: Tensor, smoothing: float = 0) -> Tensor:
    """Cross-entropy, or binary cross-entropy where the target is multi-label.

    Args:
        logits: (N, C).
        targets: class ids int64 (N,), or float (N, C) of zeros and ones.
        smoothing: E in [0, 1): a class id counts as (1 − E) of its class and E / C of every class
            (Szegedy et al. 2016). Several labels are not smoothed.
    """
    if targets.ndim == 2:
        return F.binary_cross_entropy_with_logits(logits.float(), targets)
    return F.cross_entropy(logits.float(), targets, label_smoothing=smoothing)


def order_penalty(p: Tensor, alpha: Tensor) -> Tensor:
    """Σ_k alpha_k · p(k)², which pushes the reconstruction towards low orders (paper Eq. 2).

    Args:
        p: p(1) … p(K), shape (K,).
        alpha: one weight an order, in the same order as `p`, shape (K,).
    """
    return (alpha * p.square()).sum()
