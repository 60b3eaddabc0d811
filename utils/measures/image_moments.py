"""Sums per image of feature components: from them the variances of every resample of the images follow exactly."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import InputError

CHUNK_BYTES = 1 << 26  # float64 copies are made in slices of about this size, whatever the batch is

Array = NDArray[Any]


class ImageMoments:
    """Keep, for each image, sums and co-moments of x(0) … x(K) and x_Δ: M = K + 2 vectors of C channels.

    A resample that takes image i w_i times has, about any origin, with U = H × W and n = Σ w_i:

        Cov(v, u) = [ Σ_i w_i q_i(v, u) − Σ_c (Σ_i w_i s_i(v, c)) (Σ_i w_i s_i(u, c)) / (n U) ] / (n U C)

    where s_i(v, c) sums v over the image's positions, and q_i(v, u) sums v·u over its positions and channels. The
    origin is every channel's mean over the first batch. That makes the second term a small correction for the mean,
    so that s needs no more than float32; q is float64. Memory: N·M·(4·C + 8·M) bytes on the CPU, for 5,000 images,
    5 vectors and 512 channels 52 MB.

    Attributes:
        images: how many images were seen.
        positions: U.
    """

    def __init__(self) -> None:
        self.images = 0
        self.positions = 0
        self._origin = torch.zeros(0)  # (M, C) float64
        self._indices: list[Tensor] = []
        self._sums: list[Tensor] = []  # s, (n, M, C) float32
        self._comoments: list[Tensor] = []  # q, (n, M, M) float64

    def update(self, components: Tensor, residual: Tensor, indices: Tensor) -> None:
        """Add a batch.

        Args:
            components: (K+1, N, C, H, W), any floating dtype.
            residual: x_Δ, (N, C, H, W).
            indices: the images' numbers in their data set, (N,).

        Raises:
            InputError: Other shapes than in the batches before.
        """
        vectors, channels, positions = len(components) + 1, residual.shape[1], residual[0, 0].numel()
        if self.images and (*self._origin.shape, self.positions) != (vectors, channels, positions):
            raise InputError(
                f"all batches must be alike, but {(vectors, channels, positions)} vectors, channels and positions came "
                f"after {(*self._origin.shape, self.positions)}."
            )
        self.positions = positions
        size = max(1, CHUNK_BYTES // (8 * vectors * residual[0].numel()))
        for part, rest in zip(components.split(size, dim=1), residual.split(size)):
            maps = torch.cat([part, rest[None]]).double().flatten(3).transpose(0, 1)  # (n, M, C, U)
            if not self.images:
                self._origin = maps.mean((0, 3)).cpu()
            maps = maps - self._origin.to(maps.device)[..., None]
            self._sums.append(maps.sum(3).float().cpu())
            self._comoments.append((maps.flatten(2) @ maps.flatten(2).mT).cpu())
            self.images += len(rest)
        self._indices.append(indices.cpu())

    def merge(self, other: "ImageMoments") -> None:
        """Add the images that another accumulator saw, for instance in another process."""
        if not other.images:
            return
        if not self.images:
            self._origin, self.positions = other._origin, other.positions
        shift = other._origin - self._origin  # (M, C)
        for sums, comoments in zip(other._sums, other._comoments):
            cross = sums.double() @ shift.mT  # (n, M, M)
            self._sums.append((sums + self.positions * shift).float())
            self._comoments.append(comoments + cross + cross.mT + self.positions * shift @ shift.mT)
        self._indices += other._indices
        self.images += other.images

    def arrays(self) -> list[Array]:
        """Give q (N, M, M) float64 and s (N, M, C) float32, in the order of the images' numbers."""
        order = torch.cat(self._indices).argsort()
        return [torch.cat(parts)[order].numpy() for parts in (self._comoments, self._sums)]

    def statistic(self, mean: str = "channel") -> Callable[[Array, Array], dict[str, Array]]:
        """Give the function of sums over `arrays` that `bootstrap` resamples: see `component_numbers`."""
        return functools.partial(
            component_numbers, images=self.images, positions=self.positions, origin=self._origin.numpy(), mean=mean
        )


def component_numbers(
    comoments: Array, sums: Array, *, images: int, positions: int, origin: Array, mean: str = "channel"
) -> dict[str, Array]:
    """Compute variances, shares and instability from sums over images about an origin.

    Args:
        comoments: Σ q, (…, M, M).
        sums: Σ s, (…, M, C).
        images: how many were summed.
        positions: U.
        origin: (M, C).
        mean: "channel", every channel has its own mean (released code), or "global", one mean over all (the paper).

    Returns:
        (…) each: "var_target", "var_order0" … "var_orderK", "var_output", "var_residual"; the shares of the target's
        variance "share_order0" … "share_output"; "instability", Var(x_Δ)/Var(x*), NaN if x* is constant.
    """
    if mean not in ("channel", "global"):
        raise ValueError(f"mean is 'channel' or 'global', not {mean!r}")
    values = images * positions
    sums = sums.astype(float)
    covariance = (comoments - sums @ np.swapaxes(sums, -1, -2) / values) / (values * origin.shape[1])
    if mean == "global":
        spread = origin + sums / values
        spread = spread - spread.mean(-1, keepdims=True)
        covariance = covariance + spread @ np.swapaxes(spread, -1, -2) / origin.shape[1]
    variances = {f"order{k}": covariance[..., k, k] for k in range(len(origin) - 1)}
    variances["output"] = covariance[..., :-1, :-1].sum((-1, -2))
    variances["residual"] = covariance[..., -1, -1]
    target = covariance.sum((-1, -2))
    numbers = {"var_target": target} | {f"var_{name}": part for name, part in variances.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {f"share_{name}": part / target for name, part in variances.items()}
    shares["instability"] = shares.pop("share_residual")
    return numbers | shares
