"""The loss of dense cross-layer mutual distillation (DCM,
Yao and Sun 2020), of DML, and of training alone.

    L = Σ over heads i  CE(z_i, y)  +  Σ over ordered pairs (i, j) of heads of different networks  KL(p̃_j ‖ p̃_i)

with p̃ = (softmax(z) + ε) / (1 + C·ε); p̃_j, the teacher's, is not differentiated. Two networks of
three heads make 6 + 18 terms. DML (Zhang et al. 2018) has the final heads alone, 2 + 2 terms;
alone, no network sees another's.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from distillation.choices import METHODS
from utils.errors import InputError

EPS = 1e-8
# Of a network with heads: final logits (B, C), head logits (B, C) each
Outputs = tuple[Tensor, list[Tensor]]


class Terms(NamedTuple):
    """The terms of the loss; heads in the order ep1, ep2,
    final of network 1, then of network 2 (DML: final, final).

    Attributes:
        ce: cross-entropy of each head, (H,).
        kl: (H, H), row: the head that learns, column: the head that teaches; 0 for heads of the
            same network.
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
        outputs_1: what network 1 gives for the images: (final logits (B, C), [head logits (B, C),
            …]).
        outputs_2: the same of network 2.
        labels: class ids, int64 (B,).
        method: "dcm": all heads learn and teach. "dml": final heads only. "alone": final heads,
            which do not teach.

    Raises:
        InputError: an unknown method.
    """
    if method not in METHODS:
        raise InputError(f"the methods are {', '.join(METHODS)}, not {method!r}")
    log_p_1, log_p_2 = (
        _log_softmax(outputs, with_heads=method == "dcm") for outputs in (outputs_1, outputs_2)
    )
    every = torch.cat([log_p_1, log_p_2])
    ce = -every[:, torch.arange(len(labels), device=labels.device), labels].mean(1)
    heads = len(log_p_1)
    kl = every.new_zeros(len(every), len(every))
    if method != "alone":
        p_1, p_2 = _smoothed(log_p_1), _smoothed(log_p_2)
        kl[:heads, heads:] = _divergences(p_1, p_2)
        kl[heads:, :heads] = _divergences(p_2, p_1)
    return Terms(ce, kl)


def _log_softmax(outputs: Outputs, *, with_heads: bool) -> Tensor:
    """Stack the heads' log-probabilities, the final one last, float32 (H, B, C)."""
    final, heads = outputs
    return torch.stack([*(heads if with_heads else ()), final]).float().log_softmax(2)


def _smoothed(log_p: Tensor) -> Tensor:
    """p̃, (H, B, C)."""
    return (log_p.exp() + EPS) / (1 + log_p.shape[2] * EPS)


def _divergences(learners: Tensor, teachers: Tensor) -> Tensor:
    """Mean over the batch of KL(teacher ‖ learner) of every pair;
    (L, B, C) and (T, B, C) give (L, T).
    """
    taught = teachers.detach()
    return (taught * (taught.log() - learners.log()[:, None])).sum(3).mean(2)
