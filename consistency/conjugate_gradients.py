"""Ridge regression of maps on patches by conjugate gradients.

Many passes over the data take the place of much memory.

It solves what `ridge.NormalEquations` solves, in the memory of a few arrays as large as the
weights. Every step reads the data once: (Σ u uᵀ) Wᵀ is a convolution by W, and the gradient of a
convolution with respect to its weights.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from consistency.ridge import FOLDS, RIDGES, RidgeSolution, check_finite, descend
from utils.devices import float64_home, in_float64

Batches = Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]]
TINY = torch.finfo(torch.float64).tiny


class PassesOverData:
    """Sums over all images, each from one pass.

    The unknowns are (C', C·k² + 1): the weights of every output channel and its constant, which is
    0 unless it is asked for.

    Args:
        batches: starts a pass: inputs (N, C, H, W), targets (N, C', H, W), the images' numbers
            (N,), as `NormalEquations.add` takes them. Every pass must give the same images.
        shape: of the weights, (C', C, k, k), k odd.
        folds: the images whose number is a multiple of it are held out while λ is chosen.
        device: where batches and sums are.
        all_reduce: adds a float64 tensor up over processes, in place.
    """

    def __init__(
        self,
        batches: Batches,
        shape: tuple[int, int, int, int],
        *,
        folds: int = FOLDS,
        device: torch.device | str = "cpu",
        all_reduce: Callable[[Tensor], object] = lambda _: None,
    ) -> None:
        self.batches, self.shape, self.folds, self.device, self.all_reduce = (
            batches,
            shape,
            folds,
            float64_home(device),
            all_reduce,
        )

    @torch.no_grad()
    def solve(
        self,
        ridges: Sequence[float] = RIDGES,
        *,
        constant: bool = False,
        tolerance: float = 1e-10,
        max_steps: int = 1000,
    ) -> RidgeSolution:
        """Choose λ by the error on the held-out images and fit on all of them.

        Args:
            ridges: the λ to choose from, as shares of the mean diagonal of Σ u uᵀ, each > 0.
            constant: fit a constant beside W.
            tolerance: a fit ends when the residual of every output channel is this share of its
                right-hand side.
            max_steps: or after so many steps.

        Raises:
            InputError: the features are not finite.
        """
        out_channels, channels, size, _ = self.shape
        unknowns = torch.zeros(
            out_channels, channels * size**2 + 1, dtype=torch.float64, device=self.device
        )
        # The last unknown is the constant: λ does not shrink it, and without one it stays 0.
        penalised = torch.ones_like(unknowns[0])
        penalised[-1] = 0
        fitted = torch.ones_like(penalised) if constant else penalised

        def fit(ridge: float, start: Tensor, sides: set[bool]) -> Tensor:
            # Σ y uᵀ, and Σ y for the constant. The mask keeps what is not fitted at 0.
            right = self._sum(self._gradient, sides) * fitted
            diagonal = float(self._sum(self._squares, sides)) / (channels * size**2)
            penalty = ridge * (diagonal or 1.0) * penalised

            # (Σ u uᵀ + λ) v without the matrix: map the patches by v, and multiply the results with
            # the patches again.
            def normal(v: Tensor) -> Tensor:
                return (
                    self._sum(lambda x, _: self._gradient(x, self._map(x, v)), sides) * fitted
                    + penalty * v
                )

            return conjugate_gradients(normal, right, start, tolerance, max_steps)

        def held_out(ridge: float) -> float:
            nonlocal unknowns  # the last λ's are near this one's
            unknowns = fit(ridge, unknowns, {False})
            residual = self._sum(lambda x, y: (y - self._map(x, unknowns)).square().sum(), {True})
            return float(residual) / (whole or 1.0)

        # Σ y² and Σ y of each channel over the held-out images: what W = 0 would leave of them.
        energy = self._sum(
            lambda _, y: torch.cat([y.square().sum((0, 2, 3)), y.sum((0, 2, 3))]), {True}
        )
        squares, totals = energy.view(2, out_channels)
        count = self._sum(lambda _, y: y.new_tensor(y[:, 0].numel()), {True}).clamp(min=1)
        # Without a constant the factor `constant`, False, leaves Σ y².
        whole = float((squares - totals.square() / count * constant).sum())
        # The chosen λ once more, now on all images.
        ridge, errors = descend(held_out, ridges)
        unknowns = fit(ridge, unknowns, {True, False})
        return RidgeSolution(
            unknowns[:, :-1].reshape(self.shape), unknowns[:, -1], ridge, errors[ridge], errors
        )

    def _map(self, x: Tensor, unknowns: Tensor) -> Tensor:
        """W u + constant at every position."""
        return F.conv2d(
            x, unknowns[:, :-1].reshape(self.shape), unknowns[:, -1], padding=self.shape[-1] // 2
        )

    def _gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Σ y uᵀ and Σ y, (C', C·k² + 1)."""
        # The gradient of Σ y ∘ (W ∗ x) with respect to W is Σ_q y(q) u(q)ᵀ.
        weight = conv2d_weight(x, self.shape, y, padding=self.shape[-1] // 2)
        return torch.cat([weight.flatten(1), y.sum((0, 2, 3))[:, None]], dim=1)

    def _squares(self, x: Tensor, _: Tensor) -> Tensor:
        """Σ ‖u‖², the sum of the diagonal of Σ u uᵀ."""
        # A box filter adds the squares of each patch up, zeros beyond the border.
        ones = x.new_ones(1, 1, *self.shape[2:])
        return F.conv2d(x.square().sum(1, keepdim=True), ones, padding=self.shape[-1] // 2).sum()

    def _sum(self, term: Callable[[Tensor, Tensor], Tensor], sides: set[bool]) -> Tensor:
        """Add up what `term` makes of inputs and targets, float64.

        `sides` holds True for the images that are held out, and False for the others.
        """
        # A scalar takes the shape of the first term.
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for inputs, targets, indices in self.batches():
            chosen = torch.tensor(
                [(index % self.folds == 0) in sides for index in indices.tolist()]
            )
            images = chosen.nonzero()[:, 0].to(inputs.device, non_blocking=True)
            # float64: the residual is to fall to 1e-10 of the right-hand side.
            total = total + term(
                *(in_float64(maps.index_select(0, images)) for maps in (inputs, targets))
            )
        self.all_reduce(total)
        check_finite(total)
        return total


def conjugate_gradients(
    normal: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor,
    tolerance: float,
    max_steps: int,
) -> Tensor:
    """Solve normal(v) = right for every row of v, (C', M), at once, each with steps of its own."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        # Each output channel is a system of its own, with the same matrix: (C', 1).
        return (a * b).sum(1, keepdim=True)

    # A start near the solution, such as that of a neighbouring λ, saves passes.
    solution, residual = start, right - normal(start)
    direction, square = residual, dot(residual, residual)
    # Hestenes and Stiefel (1952); every step costs one pass over the data.
    for _ in range(max_steps):
        if (square <= tolerance**2 * dot(right, right)).all():
            break
        mapped = normal(direction)
        # A row that has arrived stays where it is: 0 / TINY
        step = square / dot(direction, mapped).clamp(min=TINY)
        solution, residual = solution + step * direction, residual - step * mapped
        before, square = square, dot(residual, residual)
        direction = residual + square / before.clamp(min=TINY) * direction
    return solution
