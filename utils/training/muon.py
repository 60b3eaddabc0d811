"""Muon: momentum with orthogonal updates of weight matrices, and Adam for everything else."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# The odd polynomial a·s + b·s³ + c·s⁵, repeated, moves every singular value s in (0, 1] near 1: to
# about 0.7 … 1.2, which serves as well as 1 and takes fewer repetitions (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
REPETITIONS = 5


class Muon(torch.optim.Optimizer):
    """Train the weights of linear layers by orthogonalised momentum, and everything else by Adam.

    A step of a weight W (out, in, …), read as a matrix out × (all the rest):

        M ← β M + (1 − β) ∇,    (1 − β) ∇ + β M = UΣVᵀ (singular value decomposition)
        W ← (1 − lr · weight_decay) W − lr · 0.2 · √max(out, in …) · UVᵀ

    The factor 0.2 · √max(…) gives an update the root mean square of one of Adam's. All directions
    of a matrix move at the same speed, also those of small gradients, which an epoch of Adam hardly
    moves.

    Args:
        parameters: matrices have two or more dimensions; all others are Adam's.
        lr: of the matrices.
        momentum: β, in Nesterov's form.
        weight_decay: decoupled from the gradient; of the matrices alone.
        adam_share: Adam's learning rate in units of `lr`, so that one schedule serves both.
        betas: of Adam.
        eps: of Adam.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 0.04,
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        adam_share: float = 0.075,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "adam_share": adam_share,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take a step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                # A convolution's weight (out, in, k, k) counts as a matrix, too.
                if parameter.ndim >= 2:
                    _step_of_matrix(parameter, parameter.grad, state, group)
                else:
                    _step_of_adam(parameter, parameter.grad, state, group)
        return loss


def _step_of_matrix(
    weight: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Update a weight (out, in, …) in place, by the equations of `Muon`."""
    if not state:
        state["momentum_buffer"] = torch.zeros_like(weight)
    buffer, beta, lr = state["momentum_buffer"], group["momentum"], group["lr"]
    buffer.lerp_(gradient, 1 - beta)  # M ← β M + (1 − β) ∇
    # Nesterov: (1 − β) ∇ + β M, as a matrix (out, all the rest)
    update = orthogonalised(gradient.lerp(buffer, beta).flatten(1))
    weight.mul_(1 - lr * group["weight_decay"])
    # An orthogonal m × n matrix has the root mean square 1 / √max(m, n).
    weight.add_(update.view_as(weight), alpha=-lr * 0.2 * math.sqrt(max(update.shape)))


def _step_of_adam(
    parameter: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """Update a parameter in place by Adam (Kingma and Ba 2015, Algorithm 1)."""
    if not state:
        state |= {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)}
        state["exp_avg_sq"] = torch.zeros_like(parameter)
    state["step"] += 1
    steps, (beta_1, beta_2) = state["step"].item(), group["betas"]
    state["exp_avg"].lerp_(gradient, 1 - beta_1)
    state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta_2)
    # 1 − βᵗ corrects the averages' bias towards their start at 0.
    deviation = (state["exp_avg_sq"] / (1 - beta_2**steps)).sqrt_().add_(group["eps"])
    lr = group["lr"] * group["adam_share"]
    parameter.addcdiv_(state["exp_avg"], deviation, value=-lr / (1 - beta_1**steps))


def orthogonalised(matrix: Tensor) -> Tensor:
    """Give nearly UVᵀ of a matrix UΣVᵀ by five Newton–Schulz steps; of zeros, zeros.

    Args:
        matrix: (m, n), any floating dtype. Products are computed in bfloat16, whose rounding is
            smaller than the polynomial's error.

    Returns:
        The same shape and dtype.
    """
    a, b, c = COEFFICIENTS
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_tall else matrix).bfloat16()  # the smaller of both Gram matrices
    # The Frobenius norm bounds all singular values: they are in [0, 1] now.
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(REPETITIONS):
        gram = x @ x.T
        # a X + (b XXᵀ + c (XXᵀ)²) X applies the polynomial to every singular value.
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.T if is_tall else x).to(matrix.dtype)
