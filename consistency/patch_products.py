"""Σ u uᵀ of the patches u around every position of maps, without making the patches.

Patches of one map are shifts of each other. The block of Σ u uᵀ that pairs offset d of the patch
with offset e is the correlation of the maps at lag e − d, less what the border cuts off: the pairs
in the first rows or columns where both offsets point down or right, in the last ones where both
point up or left. For 3×3, 13 correlations of whole maps and 16 of border strips stand for 81
blocks.
"""

from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

# Along one axis: a lag, and which pairs are meant: 0 all, m the first m, −m the last m
Shift = tuple[int, int]
Strip = tuple[Shift, Shift]  # the same along rows and columns


class PatchProducts:
    """Accumulate Σ u uᵀ, apart for each fold of images, in float64.

    Args:
        channels: C of the maps.
        kernel_size: k of the patches, odd.
        folds: how many.
        device: where the sums are kept; it has float64.
    """

    def __init__(
        self, channels: int, kernel_size: int, folds: int, device: torch.device | str = "cpu"
    ) -> None:
        self.kernel_size = kernel_size
        self._blocks = _blocks(kernel_size)
        self._strips = strips(kernel_size)
        # Σ x(q) x(q + lag)ᵀ of each strip
        shape = (folds, len(self._strips), channels, channels)
        self.lags = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, fold: int, maps: Tensor) -> None:
        """Add images of a fold, channels last, (n, H, W, C); each product has their precision."""
        for total, strip in zip(self.lags[fold], self._strips):
            first, second = _pairs(maps, strip)
            if maps.dtype == total.dtype:
                total.addmm_(first, second)
            else:
                total.add_(first @ second)

    def gram(self, folds: Tensor, *, more: int = 0) -> Tensor:
        """Σ u uᵀ of folds, of which each is weighed.

        Args:
            folds: the weights, float64 (folds,): 1 chooses a fold, 0 leaves it out.
            more: rows and columns behind the patch's, which are left unset.

        Returns:
            float64 (k²·C + more, k²·C + more); the patch's offsets are first, channels within them.
        """
        # One matrix (C, C) for each strip, of the chosen folds together.
        sums = dict(zip(self._strips, torch.tensordot(folds, self.lags, 1)))
        offsets, channels = self.kernel_size**2, self.lags.shape[-1]
        size = offsets * channels
        gram = self.lags.new_empty(size + more, size + more)
        # A view (offset, channel, offset, channel) of the matrix: blocks are written in place.
        blocks = (
            gram[:size, :size].unflatten(1, (offsets, channels)).unflatten(0, (offsets, channels))
        )
        # Inclusion and exclusion: the whole map, less rows, less columns, plus the corner that was
        # taken off twice.
        for (i, j), terms in self._blocks.items():
            # Only blocks with i ≤ j are made; the matrix is symmetric.
            block = torch.stack([sign * sums[strip] for sign, strip in terms]).sum(0)
            blocks[i, :, j], blocks[j, :, i] = block, block.T
        return gram


def strips(kernel_size: int) -> list[Strip]:
    """List the correlations that Σ u uᵀ is made of."""
    return sorted({strip for terms in _blocks(kernel_size).values() for _, strip in terms})


def _blocks(kernel_size: int) -> dict[tuple[int, int], list[tuple[int, Strip]]]:
    """Say which sums make the block of offsets i ≤ j, numbered row by row.

    They are ± strips, the whole maps first.
    """
    border = kernel_size // 2
    offsets = list(product(range(-border, border + 1), repeat=2))

    def along(first: int, second: int) -> list[tuple[int, Shift]]:
        # Both offsets down or right: the first rows drop out; both up or left: the last ones.
        cut = max(0, min(first, second)) + min(0, max(first, second))
        return [(1, (second - first, 0))] + ([(-1, (second - first, cut))] if cut else [])

    return {
        (i, j): [
            (a * b, (row, column))
            for (a, row), (b, column) in product(*map(along, offsets[i], offsets[j]))
        ]
        for i, j in combinations_with_replacement(range(len(offsets)), 2)
    }


def _pairs(maps: Tensor, strip: Strip) -> tuple[Tensor, Tensor]:
    """Give the values at q, (C, M), and at q + lag, (M, C).

    They are for all pairs of a strip of maps (N, H, W, C).
    """
    (rows, rows_on), (columns, columns_on) = map(_span, maps.shape[1:3], strip)
    return maps[:, rows, columns].flatten(0, 2).T, maps[:, rows_on, columns_on].flatten(0, 2)


def _span(size: int, shift: Shift) -> tuple[slice, slice]:
    """Say where, along an axis of `size` values, the first and the second ones of the pairs lie."""
    lag, cut = shift
    # size − |lag| pairs lie along the axis; `cut` keeps the first or the last of them. The first
    # value of a pair lies |lag| further on where the lag is negative, else the second does.
    start, stop, _ = slice(min(cut, 0) or None, max(cut, 0) or None).indices(
        max(0, size - abs(lag))
    )
    before, after = max(0, -lag), max(0, lag)
    return slice(start + before, stop + before), slice(start + after, stop + after)
