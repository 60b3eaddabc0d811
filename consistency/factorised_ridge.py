"""Ridge regressions from one feature to many targets: one factorisation serves all of them.

A regression from patches P of A's feature (one row for each image and position) to B's feature Y
solves (PᵀP + λ) W = PᵀY. To pair the targets with other images' x leaves PᵀP as it is, so that its
Cholesky factor is computed once, and a permutation costs one pass of products PᵀY and PW. Where
there are fewer rows than columns, the same W comes from the dual form Pᵀ(PPᵀ + λ)⁻¹Y.

The penalty λ is given, or each pairing chooses its own: W is fitted to four fifths of the images for
every λ of a grid, and the λ that leaves least of the last fifth serves the fit to all. As every
pairing has the same choice, the true one has no advantage in a test.

The factor, the solutions and the sums of squares are float64; the passes' products, which take
nearly all the time, are in the precision of the features, at least float32.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from consistency.patch_products import PatchProducts
from utils.devices import float64_home

# Of the rows that are multiplied at one time; more would be new pages for each product
CHUNK_BYTES = 1 << 24
# λ to choose from, as shares of the mean diagonal of PᵀP, and the images that choose: every fifth
WEIGHTS = tuple(10.0**exponent for exponent in range(-6, 4))
JUDGES = 5
UNCHOSEN = 0.1  # the share where there are too few rows or images to choose by
FACTORS = 3  # that are kept, each of 8·p² bytes
# Of patches that are kept: to unfold maps takes as long as to multiply them
PATCH_BYTES = 1 << 29


class Rows(Protocol):
    """Maps (N, C, H, W) that are read as they are asked for."""

    shape: tuple[int, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, images: slice | NDArray[np.int64]) -> Tensor: ...


Maps = Tensor | NDArray[np.floating] | Rows  # (N, C, H, W), in memory, memory-mapped or read


class Targets:
    """B's features, of which images are taken in any order, shifted, as rows."""

    def __init__(self, maps: Maps, mean: Tensor) -> None:
        self.maps, self.mean, self.dtype = maps, mean, precision(maps)
        self.bytes_per_image = self.dtype.itemsize * int(np.prod(maps.shape[1:]))

    def rows(self, images: Tensor) -> Tensor:
        """Give images (b, n) as rows (n·H·W, b·D)."""
        # (b, n, D, U)
        maps = take(self.maps, images.flatten().numpy()).flatten(2).unflatten(0, images.shape)
        # (n, U, b, D): the targets of all pairings at one position are one row of a product.
        rows = self.mean.new_empty([maps.shape[axis] for axis in (1, 3, 0, 2)], dtype=self.dtype)
        # To the device, into place
        rows.copy_(maps.permute(1, 3, 0, 2), non_blocking=True)
        return rows.sub_(self.mean).flatten(2).flatten(0, 1)

    def squares(self) -> Tensor:
        """Sum the squares about the channels' means over these images: (N,)."""
        mean = channel_means(self.maps, self.mean.device)
        size = max(1, CHUNK_BYTES // self.bytes_per_image)
        return torch.cat(
            [
                (take(self.maps, slice(start, start + size)).to(mean).flatten(2) - mean[:, None])
                .square()
                .sum((1, 2))
                for start in range(0, len(self.maps), size)
            ]
        )


class Solutions(NamedTuple):
    """Regressions of some pairings.

    Attributes:
        coefficients: W, (p, b·D).
        weights: λ of each pairing, as a share of the mean diagonal of PᵀP.
    """

    coefficients: Tensor
    weights: list[float]


class Reference:
    """The regression from one feature, factorised.

    Args:
        x: A's feature, (N, C, H, W).
        mean: of its channels, float64 (C,).
        weight: λ as a share of the mean diagonal; None: each pairing chooses its own. There must be
            as many rows as columns, or else it is `UNCHOSEN`.
        kernel_size: of the patches, odd.
    """

    def __init__(self, x: Maps, mean: Tensor, weight: float | None, kernel_size: int) -> None:
        self.x, self.mean, self.kernel_size, self.dtype = x, mean, kernel_size, precision(x)
        # p = C·k² columns; the rows are images × positions.
        self.columns = x.shape[1] * kernel_size**2
        self.positions = int(np.prod(x.shape[2:]))
        self.dual = len(x) * self.positions < self.columns
        self.chooses = weight is None and not self.dual and len(x) >= 2 * JUDGES
        self.weight = UNCHOSEN if weight is None else weight
        self._factors: dict[float, Tensor] = {}
        self._kept: list[tuple[Maps, Tensor]] = []
        # Fewer rows than columns: Pᵀ(PPᵀ + λ)⁻¹ Y, with (PPᵀ + λ)⁻¹ P computed once.
        if self.dual:
            # All patches at one time: here their rows are fewer than columns.
            rows = torch.cat([patches.to(mean) for _, patches in self.patches(x, 0)])
            self._gram = rows @ rows.mT
            self._solved = torch.cholesky_solve(rows, self._factor(self.weight)).to(self.dtype)
            return
        # Σ u uᵀ of the images that choose λ, if there are any, and of the others: both (p, p)
        aside, others = self._grams(x)
        self._gram = aside + others
        if self.chooses:
            # Σ u uᵀ = V Λ Vᵀ of the other images: each λ of the grid is then a division, see
            # `_choice`.
            self._scale = float(others.trace()) / self.columns or 1.0
            self._values, self._vectors = torch.linalg.eigh(others)
            # Rounding makes a dead direction's value as negative as this
            self._values.clamp_(min=0)
            # VᵀGV, G being Σ u uᵀ of the images that choose.
            self._aside = self._vectors.mT @ aside @ self._vectors

    def moments(self, x: Maps) -> tuple[Tensor, Tensor]:
        """Give PᵀP and Σ P of some images, float64 (p, p) and (p,)."""
        sums = self.mean.new_zeros(self.columns)
        for _, rows in self.patches(x, 0):
            sums += rows.sum(0, dtype=sums.dtype)
        aside, others = self._grams(x)
        return aside.add_(others), sums

    def _grams(self, x: Maps) -> tuple[Tensor, Tensor]:
        """Give PᵀP of the images that choose λ, and of the others, float64 (p, p) each."""
        products = PatchProducts(x.shape[1], self.kernel_size, 2, self.mean.device)
        # The maps of a chunk, and the two shifts of them that are multiplied
        bytes_per_image = 3 * self.dtype.itemsize * self.positions * x.shape[1]
        size = max(1, CHUNK_BYTES // bytes_per_image)
        for start in range(0, len(x), size):
            images = slice(start, min(start + size, len(x)))
            maps = self._centred(x, images).permute(0, 2, 3, 1).contiguous()
            for fold, part in enumerate(self._parted_images(images, maps)):
                products.add(fold, part)
        return self._in_columns(products, 0), self._in_columns(products, 1)

    def _in_columns(self, products: PatchProducts, fold: int) -> Tensor:
        """Give a fold's Σ u uᵀ in the order of P's columns: offsets within each channel."""
        gram = products.gram(torch.eye(2).to(self.mean)[fold])
        offsets = self.kernel_size**2
        blocks = gram.unflatten(1, (offsets, -1)).unflatten(0, (offsets, -1))
        return blocks.permute(1, 0, 3, 2).reshape(gram.shape)

    def patches(self, x: Maps, bytes_beside: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield images and their rows (n·H·W, p).

        n is such that they and `bytes_beside` an image fit a chunk.
        """
        bytes_per_image = self.dtype.itemsize * self.positions * self.columns
        size = max(1, CHUNK_BYTES // (bytes_per_image + bytes_beside))
        kept = self._kept_patches(x, bytes_per_image)
        for start in range(0, len(x), size):
            images = slice(start, min(start + size, len(x)))
            if kept is None:
                yield images, self._unfolded(x, images)
            else:
                yield images, kept[start * self.positions : images.stop * self.positions]

    def _kept_patches(self, x: Maps, bytes_per_image: int) -> Tensor | None:
        """Give the patches of all images (N·H·W, p); None where `PATCH_BYTES` have no room."""
        # By identity: the same maps, not equal ones.
        for maps, rows in self._kept:
            if maps is x:
                return rows
        room = PATCH_BYTES - sum(rows.nbytes for _, rows in self._kept)
        if bytes_per_image * len(x) > room:
            return None
        rows = self.mean.new_empty(len(x) * self.positions, self.columns, dtype=self.dtype)
        size = max(1, CHUNK_BYTES // bytes_per_image)
        for start in range(0, len(x), size):
            images = slice(start, min(start + size, len(x)))
            rows[start * self.positions : images.stop * self.positions] = self._unfolded(x, images)
        self._kept.append((x, rows))
        return rows

    def _unfolded(self, x: Maps, images: slice) -> Tensor:
        """Give the patches of some images, (n·H·W, p)."""
        maps = self._centred(x, images)
        rows = F.unfold(maps, self.kernel_size, padding=self.kernel_size // 2)  # (n, p, U)
        return rows.mT.flatten(0, 1)

    def _centred(self, x: Maps, images: slice) -> Tensor:
        """Give some images' maps about the channels' means, (n, C, H, W)."""
        return (take(x, images).to(self.mean) - self.mean[:, None, None]).to(self.dtype)

    def solve(self, targets: Targets, inverses: Tensor) -> Solutions:
        """Fit each pairing: x of image j stands beside the target of image inverses[b, j]."""
        # (p, b·D): of the images that choose λ, and of the others
        shape = (self.columns, len(inverses) * len(targets.mean))
        aside, cross = (self.mean.new_zeros(shape, dtype=self.dtype) for _ in range(2))
        for images, patches in self.patches(self.x, targets.bytes_per_image * len(inverses)):
            places = slice(images.start * self.positions, images.stop * self.positions)
            # With (PPᵀ + λ)⁻¹ P in the place of P, the product is W already.
            rows = self._solved[places] if self.dual else patches
            paired = targets.rows(inverses[:, images]).to(self.dtype)
            for total, x_rows, target_rows in zip(
                (aside, cross), self._parted(images, rows), self._parted(images, paired)
            ):
                total.addmm_(x_rows.mT, target_rows)
        weights = list[float]()
        # Each pairing has D columns of the products; its W takes their place.
        for one, of_judges in zip(
            cross.split(len(targets.mean), dim=1), aside.split(len(targets.mean), dim=1)
        ):
            weights.append(self._choice(one, of_judges) if self.chooses else self.weight)
            # The chosen λ serves a fit to all images, those that chose included.
            one.add_(of_judges)
            if not self.dual:
                factor = self._factor(weights[-1])
                one.copy_(torch.cholesky_solve(one.to(factor), factor))
        return Solutions(cross, weights)

    def _parted(self, images: slice, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give the rows of the images that choose λ, and the others."""
        # (n·U, …) → (n, U, …): whole images choose, not single positions.
        parts = self._parted_images(images, rows.unflatten(0, (-1, self.positions)))
        return parts[0].flatten(0, 1), parts[1].flatten(0, 1)

    def _parted_images(self, images: slice, values: Tensor) -> tuple[Tensor, Tensor]:
        """Give the values (n, …) of the images that choose λ, and of the others."""
        if not self.chooses:
            return values[:0], values
        is_judge = torch.arange(images.start, images.stop) % JUDGES == JUDGES - 1
        return values[is_judge], values[~is_judge]

    def _choice(self, cross: Tensor, of_judges: Tensor) -> float:
        """Give the λ whose W, of the other images, leaves least of those that choose.

        In the basis V of Σ u uᵀ = V Λ Vᵀ, W = V (Λ + λ)⁻¹ T with T = Vᵀ Σ u yᵀ. What is left is up
        to a constant tr Wᵀ G W − 2 tr Wᵀ C, G and C the same sums of those that choose. With
        d = diag (Λ + λ)⁻¹ it is dᵀ (VᵀGV ∘ T Tᵀ) d − 2 dᵀ diag(VᵀC Tᵀ): one product for all λ.
        """
        # T and VᵀC, (p, D) each; below, nothing but d depends on λ.
        turned, judged = (self._vectors.mT @ one.to(self._vectors) for one in (cross, of_judges))
        quadratic = self._aside * (turned @ turned.mT)
        linear = (judged * turned).sum(1)

        def rest(weight: float) -> float:
            inverse = 1 / (self._values + weight * self._scale)
            return float(inverse @ (quadratic @ inverse - 2 * linear))

        return min(WEIGHTS, key=rest)

    @property
    def factor(self) -> Tensor:
        """The Cholesky factor at the given weight."""
        return self._factor(self.weight)

    def _factor(self, weight: float) -> Tensor:
        """Give the Cholesky factor of PᵀP + λ, or in the dual form of PPᵀ + λ."""
        if weight not in self._factors:
            # The oldest goes: pairings choose few different λ.
            while len(self._factors) >= FACTORS:
                self._factors.pop(next(iter(self._factors)))
            # A dead feature counts as ones
            # PᵀP and PPᵀ have one trace, so that λ is the same in both forms.
            ridge = weight * (float(self._gram.trace()) / self.columns or 1.0)
            gram = self._gram.clone()
            gram.diagonal().add_(ridge)
            # `cholesky_ex` says that it failed where `cholesky` raises.
            factor, failed = torch.linalg.cholesky_ex(gram)
            self._factors[weight] = self._factor_of_rounded(ridge) if failed else factor
        return self._factors[weight]

    def _factor_of_rounded(self, ridge: float) -> Tensor:
        """Give the factor where rounding has made the sums of squares indefinite.

        Products in float32 leave a direction in which x does not vary slightly negative, by more
        than a small λ. With G₊ = V Λ₊ Vᵀ, no value below 0: G₊ + λ = Bᵀ B = Rᵀ R, B = (Λ₊ + λ)^½ Vᵀ = Q R.
        """
        values, vectors = torch.linalg.eigh(self._gram)
        root = (values.clamp(min=0) + ridge).sqrt()[:, None] * vectors.mT
        # QR of B does not form BᵀB, in which small values would be rounded away. Rᵀ is lower
        # triangular, as Cholesky's factor is, up to signs that cancel.
        return torch.linalg.qr(root, mode="r").R.mT

    def errors(
        self,
        solution: Tensor,
        x: Maps,
        targets: Targets,
        inverses: Tensor,
        watch: Callable[[slice, Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Sum the squared errors of each target's image, (b, N).

        Over the images they add up to the errors about the channels' means.

        `watch` is shown the images, targets and predictions of the first pairing, (n, U, D) each.
        """
        pairings, images = inverses.shape
        sums = self.mean.new_zeros(pairings, images)
        channel_sums = self.mean.new_zeros(pairings, len(targets.mean))
        for chunk, target, predicted in self.predictions(solution, x, targets, inverses):
            if watch is not None:
                watch(chunk, target[:, :, 0], predicted[:, :, 0])
            # (n, U, b, D); of each image and pairing (n, b), turned to (b, n) below
            error = target - predicted
            # Row j of x was beside the target of image inverses[b, j]: the error belongs to that
            # image.
            sums.scatter_(
                1,
                inverses[:, chunk].to(sums.device, non_blocking=True),
                error.square().sum((1, 3)).mT.to(sums),
            )
            channel_sums += error.sum((0, 1))
        # Σ (e − ē)² = Σ e² − (Σ e)² / (N·U), taken off every image in equal parts
        return (
            sums - channel_sums.square().sum(1, keepdim=True) / (images * self.positions) / images
        )

    def predictions(
        self, solution: Tensor, x: Maps, targets: Targets, inverses: Tensor
    ) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Yield images x, the targets beside them and the predictions, (n, U, b, D).

        One pairing may serve all predictions.
        """
        channels = len(targets.mean)
        for chunk, rows in self.patches(
            x, targets.bytes_per_image * (solution.shape[1] // channels)
        ):
            both = targets.rows(inverses[:, chunk]).to(rows), rows @ solution
            # (n·U, b·D) → (n·U, b, D) → (n, U, b, D)
            target, predicted = (
                one.unflatten(1, (-1, channels)).unflatten(0, (-1, self.positions)) for one in both
            )
            yield chunk, target, predicted


class CrossProducts:
    """PᵀY of any pairing, from transforms of the maps that are computed once.

    PᵀY is the correlation of both maps at the lags of the kernel: Σ_i Σ_q x_i(q + l) y_π(i)(q). In
    frequencies it is one product Σ_i X_i(f) Y_π(i)(f)* for each, which for 3×3 takes a third of the
    multiplications of rows of patches. Maps of size H are padded with zeros to H + k // 2, so that
    no lag of the kernel comes around. A 1×1 kernel needs no frequencies: positions serve as such.

    Sums of `IMAGES` images are in the precision of the features, sums of these in float64.

    Args:
        x: maps (N, C, H, W).
        target: maps (N, D, H, W) of the same images.
        x_mean: of the channels, which maps are shifted by.
        target_mean: the same.
        kernel_size: k, odd.
    """

    IMAGES = 500  # of a product
    BYTES = 1 << 31  # of all transforms that are kept in memory; without that room there are none

    def __init__(
        self, x: Maps, target: Maps, x_mean: Tensor, target_mean: Tensor, kernel_size: int
    ) -> None:
        self.kernel_size = kernel_size
        self.height, self.width = (
            max(size + kernel_size // 2, kernel_size) for size in x.shape[2:]
        )
        # (F, C', N) and (F, N, D'), each row of memory whole for a product
        self.x = self._transformed(x, x_mean).transpose(1, 2).contiguous()
        self.target = self._transformed(target, target_mean)

    @classmethod
    def fit(cls, sides: list[tuple[Maps, Maps]], kernel_size: int) -> bool:
        """Say whether the transforms of these pairs of maps have room."""
        border, values = kernel_size // 2, 0
        for maps in (one for side in sides for one in side):
            height, width = (max(size + border, kernel_size) for size in maps.shape[2:])
            # Real inputs have width // 2 + 1 frequencies along rows, two numbers each.
            numbers = height * (2 * (width // 2 + 1) if border else width)
            # Transforms of all images and channels of both maps.
            values += maps.shape[0] * maps.shape[1] * numbers * precision(maps).itemsize
        return values <= cls.BYTES

    def of(self, inverse: Tensor) -> Tensor:
        """Give PᵀY where x of image j stands beside the target of inverse[j], float64 (C, k, k, D)."""
        shape = (*self.x.shape[:2], self.target.shape[2])
        total = self.x.new_zeros(shape, dtype=torch.float64)
        inverse = inverse.to(self.target.device)
        for x, images in zip(self.x.split(self.IMAGES, dim=2), inverse.split(self.IMAGES)):
            # (F, C', n) times (F, n, D'): one product for each frequency
            total += x @ self.target.index_select(1, images)
        # Positions in the place of frequencies: their sum is the only lag, (C, 1, 1, D).
        if self.kernel_size == 1:
            return total.sum(0)[:, None, None]
        # Blocks of the real product: Re·Re and Re·Im above, Im·Re and Im·Im below.
        (both_real, mixed), (turned, both_imaginary) = (
            half.chunk(2, dim=2) for half in total.chunk(2, dim=1)
        )
        spectrum = torch.complex(both_real + both_imaginary, turned - mixed)  # X times Y*
        # (F, C, D) → (C, D, H, W // 2 + 1)
        spectrum = spectrum.permute(1, 2, 0).unflatten(2, (self.height, -1))
        # Back from frequencies to lags, of which the kernel has k × k.
        maps = torch.fft.irfft2(spectrum, s=(self.height, self.width))
        # Lag −b … b lie at the ends
        border = self.kernel_size // 2
        # A roll by b brings them to the front, in the order of the patch's offsets.
        maps = maps.roll((border, border), (2, 3))[..., : self.kernel_size, : self.kernel_size]
        # (C, D, k, k) → (C, k, k, D): the first three axes are the columns of P.
        return maps.permute(0, 2, 3, 1)

    def _transformed(self, maps: Maps, mean: Tensor) -> Tensor:
        """Give every image's values at F frequencies or positions, (F, N, 2·C) or (F, N, C).

        At frequencies the real parts are first, and the imaginary ones follow.
        """
        parts = []
        for start in range(0, len(maps), self.IMAGES):
            centred = take(maps, slice(start, start + self.IMAGES)).to(mean) - mean[:, None, None]
            centred = centred.to(precision(maps))
            if self.kernel_size > 1:
                spectrum = torch.fft.rfft2(centred, s=(self.height, self.width))
                centred = torch.cat([spectrum.real, spectrum.imag], dim=1)
            # (n, C', H, W) → (n, C', F) → (F, n, C')
            parts.append(centred.flatten(2).permute(2, 0, 1))
        return torch.cat(parts, dim=1)


def precision(maps: Maps) -> torch.dtype:
    """Give the features' own type, or float32 where that is wider."""
    return torch.promote_types(take(maps, slice(0, 1)).dtype, torch.float32)


def channel_means(maps: Maps, device: str | torch.device) -> Tensor:
    """Average each channel over images and positions, float64 (C,)."""
    size = max(1, CHUNK_BYTES // (8 * int(np.prod(maps.shape[1:]))))
    total = torch.zeros(maps.shape[1], dtype=torch.float64, device=float64_home(device))
    for start in range(0, len(maps), size):
        # Every image has as many positions, so the mean of their means is that of all.
        total += take(maps, slice(start, start + size)).to(total).mean((2, 3)).sum(0)
    return total / len(maps)


def take(maps: Maps, images: slice | NDArray[np.int64]) -> Tensor:
    """Read some images; those of a memory-mapped file are copied."""
    chosen = maps[images]
    return chosen if isinstance(chosen, Tensor) else torch.from_numpy(np.array(chosen))
