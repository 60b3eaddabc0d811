"""The loss of born-again networks (paper Sec. 4.5)."""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """τ² · mean over samples of −Σ_c softmax(teacher/τ)_c
    · log_softmax(student/τ)_c (Hinton et al. 2014).

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C), not differentiated.
        tau: temperature, > 0.
    """
    teacher = (teacher_logits.detach().float() / tau).softmax(1)
    return tau**2 * F.cross_entropy(student_logits.float() / tau, teacher)
