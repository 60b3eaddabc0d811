"""Means and variances of features and of their components, from one pass.

They are exact over the whole set.
"""

import copy
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from consistency.bootstrap import Statistic
from utils.devices import Column, in_float64
from utils.errors import InputError

CHUNK_BYTES = 1 << 26  # float64 copies are made in slices of about this size, whatever the batch is

Array = NDArray[Any]


class FeatureMoments:
    """Accumulate the mean of each channel and one standard deviation of the whole layer.

    Attributes:
        count: values per channel so far, images × H × W.
        mean: of each channel, float64 (C,).
    """

    def __init__(self) -> None:
        # Values, not images: each position of a map counts.
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())  # (C,): Σ (v − mean)²

    def update(self, features: Tensor) -> None:
        """Add a batch (N, C, H, W) of any floating dtype."""
        # An image takes 8 bytes a number in float64; a slice has at least one image.
        for chunk in features.split(max(1, CHUNK_BYTES // (8 * features[0].numel()))):
            values = in_float64(chunk).transpose(0, 1).flatten(1)  # (C, N·H·W)
            mean = values.mean(1)
            self._merge(values.shape[1], mean, (values - mean[:, None]).square().sum(1))

    def cpu(self) -> "FeatureMoments":
        """Bring the sums to the CPU, so that another process can read them."""
        self.mean, self._squares = self.mean.cpu(), self._squares.cpu()
        return self

    def merge(self, other: "FeatureMoments") -> None:
        """Add what another accumulator saw, for instance in another process."""
        self._merge(other.count, other.mean, other._squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        """Chan's update; it begins with the weight of this set in the whole."""
        # Σ (v − mean)² of two sets is that of each, and the means' distance squared times n m / (n
        # + m).
        self.count += count
        # m / (n + m), the new set's weight; `self.count` has both by now.
        share = count / max(1, self.count)
        shift = mean - self.mean
        self._squares = self._squares + squares + shift.square() * (self.count - count) * share
        self.mean = self.mean + shift * share

    @property
    def std(self) -> float:
        """√ of the mean of the channels' variances.

        It says how far values lie from their channel's mean.
        """
        # Every channel has as many values, so the mean of their variances is the layer's.
        return float((self._squares / max(1, self.count)).mean().sqrt())


class ImageMoments:
    """Keep, for each image, sums and products of x(0) … x(K) and x_Δ.

    They are M = K + 2 vectors of C channels.

    All else follows, since g(x) = Σ x(k) + constant and x* = g(x) + x_Δ are linear in them. With U
    = H × W, and about an origin (every channel's mean over the first batch), image i has

        s_i(v, c) = Σ_u v        q_i(v, w) = Σ_cu v w        t_i(v, c) = Σ_u v²  of x* and x_Δ

    and with deviations from any means, which lie d beside the origin, the mean over units of their
    products is

        P_i = (q_i − s_i dᵀ − d s_iᵀ + U d dᵀ) / (U C)        Cov = mean_i P_i        (Var: paper Sec. 4.2)

    The origin makes d a small correction, so that s and t need no more than float32; q is float64. Memory, on the CPU:
    N (4 C (M + 2) + 8 M²) bytes, for 5,000 images, 5 vectors and 512 channels 73 MB.

    Args:
        constant: what g(x) has in each channel beside its components, (C,); None: nothing. It moves
            means alone, so it shows where the mean is "global", as a row of its own.
        per_image: False keeps totals alone: one row in place of N, whose memory does not grow and
            which has no intervals.

    Attributes:
        images: how many images were seen.
        positions: U.
    """

    def __init__(self, constant: Tensor | None = None, *, per_image: bool = True) -> None:
        self.images = 0
        self.positions = 0
        self.per_image = per_image
        self._constant = (
            constant.detach().double().cpu() if constant is not None and constant.any() else None
        )
        self._origin = torch.zeros(0)  # (M, C) float64
        self._numbers = Column()  # of the images in their data set, (n,)
        self._labels = Column()  # their classes, (n,), where they are known
        self._columns = [Column(), Column(), Column()]  # of q (n, M, M), s (n, M, C), t (n, 2, C)

    def update(
        self, components: Tensor, residual: Tensor, numbers: Tensor, labels: Tensor | None = None
    ) -> None:
        """Add a batch.

        Args:
            components: (K+1, N, C, H, W), any floating dtype.
            residual: x_Δ, (N, C, H, W).
            numbers: the images' numbers in their data set, (N,).
            labels: their classes, int64 (N,), if known; several labels an image, (N, classes), are
                no class.

        Raises:
            InputError: Other shapes than in the batches before.
        """
        vectors, channels, positions = (
            len(components) + 1,
            residual.shape[1],
            residual[0, 0].numel(),
        )
        if self.images and (*self._origin.shape, self.positions) != (vectors, channels, positions):
            raise InputError(
                f"all batches must be alike, but {(vectors, channels, positions)} vectors, channels"
                f" and positions came after {(*self._origin.shape, self.positions)}."
            )
        self.positions = positions
        size = max(1, CHUNK_BYTES // (8 * vectors * residual[0].numel()))
        for chunk, rest in zip(components.split(size, dim=1), residual.split(size)):
            maps = (
                # (K+1, n, C, H, W) and x_Δ → (M, n, C, U) → (n, M, C, U)
                in_float64(torch.cat([chunk, rest[None]])).flatten(3).transpose(0, 1)
            )  # (n, M, C, U)
            if not self.images:
                self._origin = maps.mean((0, 3)).cpu()
            # In place: `maps` is a float64 copy of its own.
            maps.sub_(self._origin.to(maps.device, non_blocking=True)[..., None])
            # Σ_u v² of x*, the sum of all vectors, and of x_Δ, the last one: (n, C) each.
            norms = [torch.linalg.vector_norm(ends, dim=2) for ends in (maps.sum(1), maps[:, -1])]
            squares = torch.stack(norms, dim=1).square()
            # q (n, M, M), s (n, M, C) and t (n, 2, C).
            # For q, channels and positions are one axis: (n, M, C·U) times (n, C·U, M).
            self._keep(maps.flatten(2) @ maps.flatten(2).mT, maps.sum(3), squares)
            self.images += len(rest)
        if self.per_image:
            self._numbers.append(numbers)
            if labels is not None and labels.ndim == 1:
                self._labels.append(labels)

    def merge(self, other: "ImageMoments") -> None:
        """Add the images that another accumulator saw, for instance in another process."""
        if not other.images:
            return
        if not self.images:
            self._origin, self.positions = other._origin, other.positions
        # Move the other's sums to this origin: Σ (v + d)(w + d) = q + s dᵀ + d sᵀ + U d dᵀ.
        shift = other._origin - self._origin
        for products, sums, squares in other._rows():
            cross = sums.double() @ shift.mT  # (n, M, M)
            self._keep(
                products + cross + cross.mT + other._cells * shift @ shift.mT,
                sums + other._cells * shift,
                squares
                # Σ (v + d)² = t + 2 d s + U d², for x* and for x_Δ.
                + 2 * _ends(shift, 0) * _ends(sums.double(), 1)
                + other._cells * _ends(shift, 0).square(),
            )
        self.images += other.images
        for column, more in ((self._numbers, other._numbers), (self._labels, other._labels)):
            for rows in more.parts:
                column.append(rows)

    def classes(self) -> Iterator[tuple[int, "ImageMoments"]]:
        """Give each class's label and the moments of its images.

        Nothing is given where labels are unknown.
        """
        if not self._labels:
            return
        labels, numbers = self._labels.joined(), self._numbers.joined()
        columns = [column.joined() for column in self._columns]
        # The origin is that of all images; `_means` takes a class's own means from its sums.
        for label in labels.unique().tolist():
            # Origin, positions and constant are shared; the rest is replaced below.
            kept, of_class = labels == label, copy.copy(self)
            of_class.images = int(kept.sum())
            of_class._numbers, of_class._labels = Column(numbers[kept]), Column(labels[kept])
            of_class._columns = [Column(values[kept]) for values in columns]
            yield label, of_class

    def names(self, mean: str = "channel") -> list[str]:
        """Name the rows of the tables: target, order0 … orderK, output, residual.

        With mean "global", a constant that is not 0 varies between the channels, and is the last
        row.
        """
        orders = [f"order{k}" for k in range(len(self._origin) - 1)]
        constant = ["constant"] if mean == "global" and self._constant is not None else []
        return ["target", *orders, "output", "residual", *constant]

    def products(self, mean: str = "channel") -> Array:
        """Give P of every image, (R, R) products of the named vectors' deviations.

        The mean over the images is their covariances; its diagonal is the variances.

        Args:
            mean: "channel", deviations are from the mean of each channel (released code), or
                "global", from one mean over all (the paper's formula).

        Returns:
            float64 (N, R, R), in the order of the images' numbers; of totals (1, R, R).
        """
        if mean not in ("channel", "global"):
            raise ValueError(f"mean is 'channel' or 'global', not {mean!r}")
        # d, (M, C): how far the means of the channels lie from the origin.
        deviations, more = self._means(), 0
        if mean == "global":
            means = self._origin + deviations
            if self._constant is not None:  # one vector more, which never leaves its origin
                means, deviations, more = (
                    torch.cat([means, self._constant[None]]),
                    F.pad(deviations, (0, 0, 0, 1)),
                    1,
                )
            # The distance of one mean over all channels from the origin, in place of each
            # channel's.
            deviations = deviations + means.mean(1, keepdim=True) - means
        # Rows of `mixing` say which of the M vectors each named row adds up.
        identity = torch.eye(len(deviations), dtype=torch.float64)
        last = len(self._origin) - 1  # x_Δ; g(x) is all but it, x* is all
        # Ones add all vectors up: Σ x(k) + x_Δ = x*. With a 0 for x_Δ they give g(x).
        output = identity.sum(0) - identity[last]
        # Rows: x*, x(0) … x(K), g(x), x_Δ (and the constant), each a sum of the M vectors.
        mixing = torch.stack([identity.sum(0), *identity[:last], output, *identity[last:]])
        rows = []
        for products, sums, _ in self._rows():
            # P_i of the class's docstring: s dᵀ, its transpose, and U d dᵀ.
            cross = F.pad(sums.double(), (0, 0, 0, more)) @ deviations.mT
            about = (
                F.pad(products, (0, more, 0, more))
                - cross
                - cross.mT
                + self._cells * deviations @ deviations.mT
            )
            # Sums of vectors, T v, have the products T P Tᵀ. A unit is one of U·C values.
            rows.append(mixing @ about @ mixing.mT / (self._cells * deviations.shape[1]))
        return self._in_order(rows)

    def channel_squares(self) -> Array:
        """Give every image's mean squared deviation of x* and x_Δ in each channel.

        Deviations are from the channel's mean.

        Returns:
            float64 (N, 2, C), in the order of the images' numbers; of totals (1, 2, C). Their mean
            is the variances.
        """
        deviations = _ends(self._means(), 0)
        rows = [
            squares.double()
            - 2 * deviations * _ends(sums.double(), 1)
            + self._cells * deviations.square()
            for _, sums, squares in self._rows()
        ]
        return self._in_order(rows) / self._cells

    def arrays(self, mean: str = "channel") -> list[Array]:
        """Give what `bootstrap` resamples.

        It is of every image its part of the variances, float64 (N, R).
        """
        squares = np.diagonal(self.products(mean), axis1=1, axis2=2)
        # `bootstrap` takes sums over images: these sum to the variances.
        return [squares / len(squares)]

    def target_and_residual(self, mean: str = "channel") -> Array:
        """Give every image's part of Var(x*) and Var(x_Δ), float64 (N, 2)."""
        names = self.names(mean)
        return self.arrays(mean)[0][:, [names.index("target"), names.index("residual")]]

    def statistic(self, mean: str = "channel") -> Statistic:
        """Give the function of sums over `arrays` that `bootstrap` resamples.

        See `component_numbers`.
        """
        return partial(component_numbers, names=self.names(mean))

    def _keep(self, *parts: Tensor) -> None:
        for column, values, kept_as in zip(
            self._columns, parts, (torch.float64, torch.float32, torch.float32)
        ):
            if self.per_image:
                column.append(values.to(kept_as))
            else:
                # Without images one row of totals takes in every batch.
                column.add_up(in_float64(values).sum(0, keepdim=True))

    def _rows(self) -> Iterator[tuple[Tensor, ...]]:
        """Give q, s and t of some images at a time."""
        return zip(*(column.parts for column in self._columns))

    @property
    def _cells(self) -> int:
        """How many positions a row sums over."""
        # A row of totals sums over the positions of all images.
        return self.positions * (1 if self.per_image else self.images)

    def _means(self) -> Tensor:
        """Give the mean of every vector in every channel, about the origin, float64 (M, C)."""
        return torch.stack([sums.double().sum(0) for sums in self._columns[1].parts]).sum(0) / (
            self.images * self.positions
        )

    def _in_order(self, rows: Sequence[Tensor]) -> Array:
        # Loaders may shuffle, and processes interleave: rows are sorted by the images' numbers.
        joined = torch.cat(list(rows))
        return (joined[self._numbers.joined().argsort()] if self.per_image else joined).numpy()


def _ends(vectors: Tensor, axis: int) -> Tensor:
    """Give x*, the sum of all vectors, and x_Δ, the last one, along an axis."""
    return torch.stack([vectors.sum(axis), vectors.select(axis, -1)], dim=axis)


def component_numbers(variances: Array, names: Sequence[str]) -> dict[str, Array]:
    """Compute shares and instability from variances.

    Args:
        variances: (…, R).
        names: of the R vectors.

    Returns:
        (…) each: "var_target", "var_order0" … "var_orderK", "var_output", "var_residual"; the
        shares of the target's variance "share_order0" … "share_output"; "instability",
        Var(x_Δ)/Var(x*), NaN if x* is constant.
    """
    by_name = {name: variances[..., row] for row, name in enumerate(names)}
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            f"share_{name}": variance / by_name["target"]
            for name, variance in by_name.items()
            if name != "target"
        }
    shares["instability"] = shares.pop("share_residual")
    return {f"var_{name}": variance for name, variance in by_name.items()} | shares
