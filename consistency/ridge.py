"""The best convolution in closed form, from sums over one pass.

It is a ridge regression of maps on patches.

A convolution without bias is a linear map of patches. With the patches u(q) of an image around
every position q, zero beyond the border, and the targets y(q), the weights that minimise Σ ‖y − W
u‖² + λ ‖W‖² solve

    (Σ u uᵀ + λ I) Wᵀ = Σ u yᵀ

and everything in it is a sum over images. A constant, where one is fitted, is one more entry 1 of
every patch, whose weight costs nothing. The sums are kept apart in folds of images. So the error on
a fold of the weights that were fitted on all others follows from the sums alone, and λ is chosen by
it.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from consistency.patch_products import PatchProducts, strips
from utils.devices import float64_home, in_float64
from utils.errors import InputError

# λ, as shares of the mean diagonal of Σ u uᵀ
RIDGES = tuple(10.0**exponent for exponent in range(-8, 4))
FOLDS = 5


class RidgeSolution(NamedTuple):
    """Fitted weights and how they were chosen.

    Attributes:
        weight: W, float64 (C', C, k, k), fitted on all images.
        constant: what is added to W u, float64 (C',); zeros unless it was asked for.
        ridge: the chosen λ, as a share of the mean diagonal.
        error: Σ ‖y − W u‖² / Σ ‖y‖² on images that W was not fitted on, ≥ 0; with a constant 1 −
            R².
        errors: the same for every λ that was tried.
    """

    weight: Tensor
    constant: Tensor
    ridge: float
    error: float
    errors: dict[float, float]


class NormalEquations:
    """Accumulate what a fit needs in float64, in folds: image i belongs to fold i mod `folds`.

    Kept are what makes Σ u uᵀ, see `patch_products`, then Σ u yᵀ and Σ y of targets with one more
    channel of ones, and Σ ‖y‖².

    Args:
        in_channels: C.
        out_channels: C'.
        kernel_size: k, odd.
        folds: at least 2. Two take the least memory, and fit each time on half of the images.
        device: where the sums are kept, if it has float64; else on the CPU.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        folds: int = FOLDS,
        device: torch.device | str = "cpu",
    ) -> None:
        if kernel_size % 2 == 0 or folds < 2:
            raise ValueError(
                f"an odd kernel and at least 2 folds are needed, not {kernel_size} and {folds}"
            )
        self.kernel_size, self.folds = kernel_size, folds
        home = float64_home(device)

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(folds, *shape, dtype=torch.float64, device=home)

        # Σ u uᵀ, Σ u [y, 1]ᵀ by offset, Σ [y, 1] and Σ ‖y‖².
        self.products = PatchProducts(in_channels, kernel_size, folds, home)
        self.cross = zeros(kernel_size**2, in_channels, out_channels + 1)
        self.totals = zeros(out_channels + 1)
        self.energy = zeros()

    @torch.no_grad()
    def add(self, inputs: Tensor, targets: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            inputs: (N, C, H, W), any floating dtype.
            targets: (N, C', H, W), the same.
            indices: the images' numbers in the data set, int64 (N,), which say their folds.
        """
        # The fold depends on the image's number alone, not on batches or processes. The CPU has to
        # know it: on a device the number of a fold's images would be waited for, fold by fold.
        folds = indices.cpu() % self.folds
        # Channels last, (n, H, W, C): a strip's values are then rows of one product.
        for fold in folds.unique().tolist():
            images = (folds == fold).nonzero()[:, 0].to(inputs.device, non_blocking=True)
            x, y = (
                in_float64(maps.index_select(0, images)).permute(0, 2, 3, 1).contiguous()
                for maps in (inputs, targets)
            )
            self.products.add(fold, x)
            self.energy[fold] += y.square().sum()
            height, width = x.shape[1:3]
            border = self.kernel_size // 2
            # Zeros beyond the border, as the convolution pads, (n, H + 2b, W + 2b, C); targets and
            # ones become rows, (n·H·W, C' + 1).
            padded, y = (
                F.pad(x, (0, 0, border, border, border, border)),
                F.pad(y.flatten(0, 2), (0, 1), value=1.0),
            )
            # Σ u yᵀ, one offset of the patch at a time; the column of ones gives Σ u.
            for total, (row, column) in zip(
                self.cross[fold], product(range(self.kernel_size), repeat=2)
            ):
                # u at one offset is the map shifted by it: one copy at a time, never k² of them.
                total.addmm_(
                    padded[:, row : row + height, column : column + width].flatten(0, 2).T, y
                )
            self.totals[fold] += y.sum(0)

    def sums(self) -> list[Tensor]:
        """Give the sums themselves: added up in place over processes, they are those of all."""
        return [self.products.lags, self.cross, self.totals, self.energy]

    def merge(self, other: "NormalEquations") -> None:
        """Add what another accumulator of the same shape saw."""
        for total, more in zip(self.sums(), other.sums()):
            total.add_(more.to(total.device))

    def solve(
        self,
        ridges: Sequence[float] = RIDGES,
        *,
        constant: bool = False,
        judges: Sequence[int] | None = None,
    ) -> RidgeSolution:
        """Choose λ by the error on held-out folds and fit on all images.

        Args:
            ridges: the λ to choose from, as shares of the mean diagonal, each > 0; see `descend`.
            constant: fit a constant beside W.
            judges: the folds that are held out in turn, and choose λ; None: all.

        Raises:
            InputError: the sums are not finite.
        """
        check_finite(*self.sums())
        # Folds are chosen by a vector of ones and zeros, which weighs their sums.
        all_folds = torch.ones_like(self.energy)
        numbers = list(range(self.folds) if judges is None else judges)
        whole = float(self.energy[numbers].sum())
        # Σ ‖y − ȳ‖² = Σ ‖y‖² − ‖Σ y‖² / n: with a constant the error is 1 − R².
        if constant:
            *totals, count = self.totals[numbers].sum(0).tolist()
            whole -= sum(total**2 for total in totals) / (count or 1.0)

        def fit(folds: Tensor, ridge: float) -> Tensor:
            return _solve(
                self._gram(folds, constant), self._cross(folds, constant), ridge, penalised
            )

        def held_out(ridge: float) -> float:
            error = 0.0
            # Rows of the identity: each chooses one fold alone.
            for fold in all_folds.diag()[numbers]:
                # Σ ‖y − Wᵀ u‖² = Σ ‖y‖² + tr Wᵀ (G W − 2 Σ u yᵀ), all from the held-out fold's
                # sums; here W has a row for each unknown.
                weight = fit(all_folds - fold, ridge)
                change = weight * (
                    self._gram(fold, constant) @ weight - 2 * self._cross(fold, constant)
                )
                # Rounding alone makes it negative
                error += max(0.0, float(fold @ self.energy + change.sum()))
            return error / (whole or 1.0)

        penalised = self.cross.shape[1] * self.cross.shape[2]
        ridge, errors = descend(held_out, ridges)
        # Columns: k²·C weights, then the constant's if it was fitted.
        weight, rest = fit(all_folds, ridge).T.tensor_split([penalised], dim=1)
        # From rows (offset, channel) to a convolution's (C', C, k, k).
        weight = (
            weight.unflatten(1, (self.kernel_size, self.kernel_size, -1))
            .permute(0, 3, 1, 2)
            .contiguous()
        )
        return RidgeSolution(weight, rest.sum(1), ridge, errors[ridge], errors)

    def _cross(self, folds: Tensor, constant: bool) -> Tensor:
        """Σ u yᵀ, (k²·C, C'), over the folds that are 1 in `folds`.

        The patch's offsets are first, the constant is last.
        """
        # k² offsets of C channels each → (k²·C, C' + 1), the last column Σ u.
        cross, totals = torch.tensordot(folds, self.cross, 1).flatten(0, 1), folds @ self.totals
        return torch.cat([cross, totals[None]])[:, :-1] if constant else cross[:, :-1]

    def _gram(self, folds: Tensor, constant: bool) -> Tensor:
        """Σ u uᵀ, (k²·C, k²·C), over the same folds; with a constant Σ u and Σ 1 besides."""
        gram = self.products.gram(folds, more=int(constant))
        # Σ u is the column of ones of Σ u yᵀ, and Σ 1 the number of positions.
        if constant:
            gram[-1, :-1] = gram[:-1, -1] = torch.tensordot(folds, self.cross[..., -1], 1).flatten()
            gram[-1, -1] = folds @ self.totals[:, -1]
        return gram


def bytes_needed(in_channels: int, out_channels: int, kernel_size: int, folds: int = FOLDS) -> int:
    """Say how much memory `NormalEquations` and its `solve` take together at most.

    The batches are not counted.

    The sums are what grows with the folds: for 3×3, 29 C² + 9 C·C' numbers each. Solving takes
    three matrices of (k²·C)² and, for a held-out error, seven of k²·C·C', whatever the folds.
    Counted are tensors: what an allocator and the libraries need for themselves comes on top (tens
    of MB, which a process has once).
    """
    unknowns = kernel_size**2 * in_channels
    outputs = unknowns * (out_channels + 1)
    sums = folds * (len(strips(kernel_size)) * in_channels**2 + outputs)
    return 8 * (sums + 3 * unknowns**2 + 7 * outputs)


def check_finite(*sums: Tensor) -> None:
    """Refuse sums over features that hold NaN or ∞: one such value makes a whole sum so.

    Raises:
        InputError: one is not finite.
    """
    if not all(total.isfinite().all() for total in sums):
        raise InputError(
            "features must be finite, but NaN or infinity came: train the nets again, or store them"
            " anew"
        )


def descend(
    error_of: Callable[[float], float], ridges: Sequence[float]
) -> tuple[float, dict[float, float]]:
    """Walk downhill over the grid of λ, from its middle.

    The walk ends at the first λ that is no worse than its neighbours.

    Returns:
        The λ of the smallest error, and the error of every λ that was tried.
    """
    grid, errors = sorted(ridges), dict[float, float]()
    middle = len(grid) // 2
    while True:
        # Errors are smooth in log λ, so a few of the grid's fits are enough.
        # The middle and its neighbours; at an end of the grid it has one.
        near = grid[max(0, middle - 1) : middle + 2]
        errors |= {ridge: error_of(ridge) for ridge in near if ridge not in errors}
        best = grid.index(min(near, key=errors.__getitem__))
        if errors[grid[best]] == errors[grid[middle]]:
            return grid[middle], errors
        middle = best


def _solve(gram: Tensor, cross: Tensor, ridge: float, penalised: int) -> Tensor:
    """Solve (gram + λ I) W = cross, λ on the first `penalised` unknowns; gram is used up.

    A diagonal of zeros counts as ones, so features that are all 0 get weights of 0.
    """
    # A view: what is added to it changes the matrix.
    diagonal = gram.diagonal()
    diagonal[:penalised] += ridge * (float(diagonal[:penalised].mean()) or 1.0)
    diagonal[penalised:].clamp_(min=1.0)  # how many positions there were
    return torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
