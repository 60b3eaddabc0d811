"""Sums over two features of the same images, from one pass, in float64.

Every score of similarity follows from them.

A *row* is one (image, position) where both maps have the same H × W, and one image, its map
averaged over the positions, where they differ; a vector is a map of one position.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from utils.devices import in_float64
from utils.errors import InputError

CHUNK_BYTES = 1 << 26  # float64 copies are made in slices of about this size, whatever the batch is
ROUNDING = 1e-12  # relative: what is smaller beside the whole is the arithmetic's


class PairSums:
    """Keep sums over the rows of two features X (n, p) and Y (n, q).

    Every score follows from them exactly.

    With z = [x − a, y − b, |x − a|², |y − b|², 1] for a row, one matrix Σ z zᵀ holds all of them. The origin
    (a, b) is the mean of the first batch, so that nothing cancels; moving it is a linear map of z. Memory:
    8·(p + q + 3)² bytes.

    Attributes:
        images: how many images were seen.
        rows: "positions" or "pooled", what a row is.
    """

    def __init__(self) -> None:
        self.images = 0
        self.rows = ""
        self.widths = (0, 0)  # p, q
        self._origin = torch.zeros(0)  # (p + q,)
        self._sums = torch.zeros(0)  # (p + q + 3, p + q + 3)

    def update(self, x: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            x: A's feature, (N, p, H, W), (N, p, T) or (N, p), any floating dtype.
            target: B's of the same images, (N, q, …).

        Raises:
            InputError: Other widths, or other rows, than in the batches before, or values that are
                not finite.
        """
        if len(x) != len(target):
            raise InputError(
                f"both features must be of the same images, but there are {len(x)} and"
                f" {len(target)}."
            )
        # (N, p, H, W) → (N, p, U); a vector (N, p) → (N, p, 1)
        x, target = (
            feature.flatten(2) if feature.ndim > 2 else feature[..., None]
            for feature in (x, target)
        )
        rows = "positions" if x.shape[2] == target.shape[2] else "pooled"
        widths = (x.shape[1], target.shape[1])
        if self.images and (self.rows, self.widths) != (rows, widths):
            raise InputError(
                f"all batches must be alike, but {self.widths} channels ({self.rows}) came before"
                f" {widths} ({rows})."
            )
        self.rows, self.widths = rows, widths
        bytes_per_image = 8 * (x[0].numel() + target[0].numel())
        for parts in zip(
            *(chunk.split(max(1, CHUNK_BYTES // bytes_per_image)) for chunk in (x, target))
        ):
            # Pooled: (n, p, U) → (n, p, 1), so that an image is one row
            maps = [
                in_float64(chunk)
                if rows == "positions"
                else in_float64(chunk).mean(2, keepdim=True)
                for chunk in parts
            ]
            pairs = torch.cat(maps, dim=1).mT.flatten(0, 1)  # (n, p + q)
            if not self.images:
                self._origin = pairs.mean(0)
                self._sums = pairs.new_zeros(len(self._origin) + 3, len(self._origin) + 3)
            pairs -= self._origin
            squares = [chunk.square().sum(1, keepdim=True) for chunk in pairs.split(widths, dim=1)]
            # z of the class's docstring, (n, p + q + 3); the ones make sums and the count part of Σ
            # z zᵀ.
            extended = torch.cat([pairs, *squares, torch.ones_like(squares[0])], dim=1)
            self._sums += extended.mT @ extended
            self.images += len(parts[0])
        if not self._sums.isfinite().all():
            raise InputError(
                "features must be finite, but NaN, infinity or a square beyond float64 came; look"
                " at the nets."
            )

    def cpu(self) -> "PairSums":
        """Bring the sums to the CPU, so that another process can read them."""
        self._origin, self._sums = self._origin.cpu(), self._sums.cpu()
        return self

    def merge(self, other: "PairSums") -> None:
        """Add what another accumulator saw, for instance in another process.

        Raises:
            InputError: The other has other widths or rows.
        """
        if not other.images:
            return
        if not self.images:
            self.rows, self.widths, self._origin = other.rows, other.widths, other._origin
            self._sums = torch.zeros_like(other._sums)
        if (self.rows, self.widths) != (other.rows, other.widths):
            raise InputError(
                f"only sums of one pair of layers can be joined, not {self.widths} and"
                f" {other.widths}."
            )
        self.images += other.images
        self._sums = self._sums + other._about(self._origin)

    def _about(self, origin: Tensor) -> Tensor:
        """Give Σ z zᵀ about another origin."""
        shift = self._origin - origin
        # z about the new origin is `move` z: the last entry of z, 1, adds the constants.
        move = torch.eye(len(self._sums), dtype=shift.dtype, device=shift.device)
        start = 0
        for which, width in enumerate(self.widths):
            # |x|² (`which` 0) and |y|² (1) stand behind the p + q channels.
            columns, square = slice(start, start + width), sum(self.widths) + which
            move[columns, -1] = shift[columns]
            move[square, columns] = 2 * shift[columns]  # |x + d|² = |x|² + 2 d·x + |d|²
            move[square, -1] = shift[columns].square().sum()
            start += width
        return move @ self._sums @ move.mT

    def centred(self) -> "Centred":
        """Give the sums about the means of all rows.

        Raises:
            InputError: No image was seen.
        """
        if not self.images:
            raise InputError("two features are compared on images, but 0 came; add a batch first.")
        p, q = self.widths
        count = self._sums[-1, -1]
        # The last row of Σ z zᵀ is Σ z: the means, and the count at its end.
        mean = self._origin + self._sums[-1, : p + q] / count
        sums = self._about(mean).cpu()
        # Blocks of Σ z zᵀ: its rows are p of x, q of y, the two squares, the ones.
        blocks = sums[:p, :p], sums[:p, p : p + q], sums[p : p + q, p : p + q]
        return Centred(
            round(count.item()), mean.cpu(), *blocks, sums[p + q : p + q + 2, p + q : p + q + 2]
        )


@dataclass(frozen=True)
class Centred:
    """Sums over n rows about their means, float64 on the CPU.

    Attributes:
        rows: n.
        mean: (p + q,).
        xx, xy, yy: XᵀX (p, p), XᵀY (p, q), YᵀY (q, q).
        squares: Σ (|x|², |y|²)ᵀ(|x|², |y|²), (2, 2).
    """

    rows: int
    mean: Tensor
    xx: Tensor
    xy: Tensor
    yy: Tensor
    squares: Tensor

    def constant(self) -> str:
        """Name what does not vary, "" where both features do."""
        for name, total, mean in (
            ("x", self.xx, self.mean[: len(self.xx)]),
            ("x*", self.yy, self.mean[len(self.xx) :]),
        ):
            # Rounding alone leaves so much of a constant feature.
            if total.trace() <= self.rows * (ROUNDING * mean).square().sum():
                return f"{name} is constant"
        return ""
