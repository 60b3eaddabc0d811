"""The loss of born-again networks (paper Sec. 4.5)."""

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, tau: float) -> Tensor:
    """Cross-entropy of softened logits (Hinton et al. 2014).

    τ² · mean over samples of −Σ_c softmax(teacher/τ)_c · log_softmax(student/τ)_c. The factor τ²
    keeps the size of the gradient, which softening divides by τ².

    Args:
        student_logits: (N, C).
        teacher_logits: (N, C), not differentiated.
        tau: temperature, > 0.
    """
    teacher = (teacher_logits.detach().float() / tau).softmax(1)
    return tau**2 * F.cross_entropy(student_logits.float() / tau, teacher)
