"""Accuracies, each defined once."""

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_hits(logits: Tensor, targets: Tensor, ks: Sequence[int]) -> Tensor:
    """Say for each sample whether its label is among the k highest logits.

    Args:
        logits: (N, C).
        targets: class ids, int64 (N,), or a multi-label target float (N, C), where any of its
            labels is a hit.
        ks: the values of k; a k beyond C counts every sample as a hit.

    Returns:
        bool (N, len(ks)).
    """
    widest = min(max(ks), logits.shape[1])
    best = logits.topk(widest, dim=1).indices
    hits = targets.gather(1, best) > 0.5 if targets.ndim == 2 else best == targets[:, None]
    return torch.stack([hits[:, :k].any(1) for k in ks], dim=1)


def accuracies_percent(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Accuracies in percent, of every sample: 0 or 100,
    or the share of its labels; their means are the accuracies.

    Args:
        logits: (N, C).
        targets: class ids int64 (N,), or a multi-label target float (N, C) of zeros and ones.

    Returns:
        `top1_prec` and `top5_prec`, float32 (N,); for a multi-label target `Acc@0`, the element
        accuracy of the decision logit > 0.
    """
    if targets.ndim == 2:
        return {"Acc@0": 100.0 * ((logits > 0) == (targets > 0.5)).float().mean(1)}
    top1, top5 = 100.0 * topk_hits(logits, targets, (1, 5)).float().T
    return {"top1_prec": top1, "top5_prec": top5}


def main_accuracy(metrics: dict[str, float], prefix: str = "") -> float:
    """Pick the accuracy in percent that decides which checkpoint is the best;
    names begin with `prefix`.
    """
    multi_label = f"{prefix}Acc@0"
    return metrics[multi_label] if multi_label in metrics else metrics[f"{prefix}top1_prec"]
