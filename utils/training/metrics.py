"""Accuracies of logits."""

from collections.abc import Sequence

import torch
from torch import Tensor


def topk_hits(logits: Tensor, targets: Tensor, ks: Sequence[int]) -> Tensor:
    """Whether each sample's label is among its k highest logits.

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
    # (N, widest): whether the answer at each rank is a label
    hits = targets.gather(1, best) > 0.5 if targets.ndim == 2 else best == targets[:, None]
    return torch.stack([hits[:, :k].any(1) for k in ks], dim=1)


def accuracies_percent(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Give each sample's accuracies in percent; their means are the accuracies.

    A sample with one label has 0 or 100, one with several labels the share of right ones.

    Args:
        logits: (N, C).
        targets: class ids int64 (N,), or a multi-label target float (N, C) of zeros and ones.

    Returns:
        `top1_prec` and `top5_prec`, float32 (N,). For a multi-label target `Acc@0`, float32 (N,):
        the share of classes for which the decision logit > 0 is right.
    """
    if targets.ndim == 2:
        return {"Acc@0": 100.0 * ((logits > 0) == (targets > 0.5)).float().mean(1)}
    # (N, 2) → two of (N,)
    top1, top5 = 100.0 * topk_hits(logits, targets, (1, 5)).float().T
    return {"top1_prec": top1, "top5_prec": top5}


def main_accuracy(metrics: dict[str, float], prefix: str = "") -> float:
    """Pick the accuracy, in percent, that decides on the best checkpoint.

    Args:
        metrics: of an epoch.
        prefix: of their names, such as "val_".
    """
    multi_label = f"{prefix}Acc@0"
    return metrics[multi_label] if multi_label in metrics else metrics[f"{prefix}top1_prec"]
