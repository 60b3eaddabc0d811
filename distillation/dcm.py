"""The losses of DCM (Yao and Sun 2020), of DML (Zhang et al. 2018), and of training alone.

DCM is dense cross-layer mutual distillation: every head of one network teaches every head of the
other.

    L = Σ over heads i  CE(z_i, y)  +  Σ over ordered pairs (i, j) of heads of different networks  KL(p̃_j ‖ p̃_i)

with p̃ = (softmax(z) + ε) / (1 + C·ε). The teacher's p̃_j is not differentiated. Two networks of
three heads make 6 + 18 terms. DML has the final heads alone, 2 + 2 terms. Alone, a network has only
its cross-entropy.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from distillation.choices import METHODS
from utils.errors import InputError

EPS = 1e-8
# The outputs of a network with heads: final logits (B, C), and logits (B, C) of each head
Outputs = tuple[Tensor, list[Tensor]]


class Terms(NamedTuple):
    """The terms of the loss.

    The H heads are ep1, ep2 and final of network 1, then those of network 2; in DML the final heads
    alone.

    Attributes:
        ce: cross-entropy of each head, (H,).
        kl: (H, H): row i learns from column j; 0 where both are heads of one network.
    """

    ce: Tensor
    kl: Tensor

    @property
    def total(self) -> Tensor:
        """The loss, a scalar."""
        return self.ce.sum() + self.kl.sum()


def mutual_terms(
    outputs_1: Outputs, outputs_2: Outputs, labels: Tensor, method: str = "dcm"
) -> Terms:
    """Compute the terms of two networks' common loss.

    Args:
        outputs_1: of network 1: (final logits (B, C), [head logits (B, C), …]).
        outputs_2: of network 2, for the same images.
        labels: class ids, int64 (B,).
        method: "dcm": all heads learn and teach. "dml": the final heads learn and teach. "alone":
            the final heads learn from labels only.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"the methods are {', '.join(METHODS)}, not {method!r}")
    log_p_1, log_p_2 = (
        _log_softmax(outputs, with_heads=method == "dcm") for outputs in (outputs_1, outputs_2)
    )
    log_p = torch.cat([log_p_1, log_p_2])  # (H, B, C), of both networks
    # Each head's log-probability of each image's label, (H, B) → (H,)
    ce = -log_p[:, torch.arange(len(labels), device=labels.device), labels].mean(1)
    heads = len(log_p_1)
    kl = log_p.new_zeros(len(log_p), len(log_p))
    if method != "alone":
        # Two blocks beside the diagonal: network 1 learns from 2, and 2 from 1.
        p_1, p_2 = _smoothed(log_p_1), _smoothed(log_p_2)
        kl[:heads, heads:] = _divergences(p_1, p_2)
        kl[heads:, :heads] = _divergences(p_2, p_1)
    return Terms(ce, kl)


def _log_softmax(outputs: Outputs, *, with_heads: bool) -> Tensor:
    """Stack a network's log-probabilities, the final head's last, float32 (heads, B, C)."""
    final, heads = outputs
    return torch.stack([*(heads if with_heads else ()), final]).float().log_softmax(2)


def _smoothed(log_p: Tensor) -> Tensor:
    """p̃ of log-probabilities, (H, B, C); ε keeps the logarithm of a teacher's 0 finite."""
    # C times ε more: the divisor makes the sum 1 again.
    return (log_p.exp() + EPS) / (1 + log_p.shape[2] * EPS)


def _divergences(learners: Tensor, teachers: Tensor) -> Tensor:
    """Give KL(teacher ‖ learner) of every pair of heads, a mean over the batch.

    Args:
        learners: p̃, (L, B, C).
        teachers: p̃, (T, B, C), not differentiated.

    Returns:
        (L, T).
    """
    targets = teachers.detach()
    # (L, 1, B, C) against (T, B, C): every learner with every teacher
    # (L, T, B, C) → (L, T, B) → (L, T)
    return (targets * (targets.log() - learners.log()[:, None])).sum(3).mean(2)
