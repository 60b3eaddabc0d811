"""Means and variances of features and of their components: exact over the whole set, from one pass, in float64."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_BYTES = 1 << 26  # float64 copies are made in slices of about this size, whatever the batch is


class FeatureMoments:
    """Accumulate the mean of each channel and one standard deviation of the whole layer.

    Attributes:
        count: values per channel so far, images × H × W.
        mean: of each channel, float64 (C,).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self._squares = torch.zeros(())  # (C,): Σ (v − mean)²

    def update(self, features: Tensor) -> None:
        """Add a batch (N, C, H, W) of any floating dtype."""
        for part in features.split(max(1, CHUNK_BYTES // (8 * features[0].numel()))):
            values = part.double().transpose(0, 1).flatten(1)  # (C, N·H·W)
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
        self.count += count
        share = count / max(1, self.count)
        shift = mean - self.mean
        self._squares = self._squares + squares + shift.square() * (self.count - count) * share
        self.mean = self.mean + shift * share

    @property
    def std(self) -> float:
        """√ of the mean of the channels' variances: how far values lie from their channel's mean."""
        return float((self._squares / max(1, self.count)).mean().sqrt())


class ComponentMoments:
    """Accumulate means and co-moments of x(0) … x(K) and x_Δ, per channel.

    Everything else follows from these: g(x) = Σ x(k) + constant and x* = g(x) + x_Δ are linear in them. Batches
    are merged by Chan's update of centred moments, so nothing cancels, and batches may have any size.

        Var(v) = E over images and units of (v − mean)²    (paper Sec. 4.2)

    Args:
        constant: what g(x) has in each channel beside its components, (C,); None: nothing. It moves means alone, so
            it shows where the mean is "global", as a row of its own.

    Attributes:
        images: how many images were seen.
        count: values per channel so far, images × H × W.
    """

    def __init__(self, constant: Tensor | None = None) -> None:
        self._constant = constant.detach().double().cpu() if constant is not None and constant.any() else None
        self.images = 0
        self.count = 0
        self._mean = torch.zeros(0)  # (M, C): component m, channel c
        self._comoment = torch.zeros(0)  # (C, M, M): Σ (v_m − mean_m)(v_n − mean_n)

    def update(self, components: Tensor, residual: Tensor) -> None:
        """Add a batch.

        Args:
            components: (K+1, N, C, H, W), any floating dtype.
            residual: x_Δ, (N, C, H, W).
        """
        self.images += residual.shape[0]
        bytes_per_image = 8 * (len(components) + 1) * residual[0].numel()
        size = max(1, CHUNK_BYTES // bytes_per_image)
        for part, rest in zip(components.split(size, dim=1), residual.split(size)):
            vectors = torch.cat([part, rest[None]]).double().flatten(3).permute(2, 0, 1, 3).flatten(2)  # (C, M, N·H·W)
            mean = vectors.mean(2)
            centred = vectors - mean[:, :, None]
            self._merge(vectors.shape[2], mean.T, centred @ centred.mT)

    def cpu(self) -> "ComponentMoments":
        """Bring the sums to the CPU, so that another process can read them."""
        self._mean, self._comoment = self._mean.cpu(), self._comoment.cpu()
        return self

    def merge(self, other: "ComponentMoments") -> None:
        """Add what another accumulator saw, for instance in another process."""
        self.images += other.images
        self._merge(other.count, other._mean, other._comoment)

    def _merge(self, count: int, mean: Tensor, comoment: Tensor) -> None:
        if count == 0:
            return
        if self.count == 0:
            self.count, self._mean, self._comoment = count, mean, comoment
            return
        total = self.count + count
        shift = mean - self._mean
        self._comoment = (
            self._comoment + comoment + torch.einsum("mc,nc->cmn", shift, shift) * (self.count * count / total)
        )
        self._mean = self._mean + shift * (count / total)
        self.count = total

    def names(self, mean: str = "channel") -> list[str]:
        """Name the rows of the tables: target, order0 … orderK, output, residual.

        With mean "global", a constant that is not 0 varies between the channels, and is the last row.
        """
        orders = [f"order{k}" for k in range(len(self._mean) - 1)]
        constant = ["constant"] if mean == "global" and self._constant is not None else []
        return ["target", *orders, "output", "residual", *constant]

    def covariance(self, mean: str = "channel") -> Tensor:
        """Give the covariances between all named vectors, float64 (R, R), their variances on the diagonal.

        Args:
            mean: "channel", every channel has its own mean (released code), or "global", one mean over all
                (the paper's formula).
        """
        mixing = self._mixing()
        comoment = mixing @ self._comoment.sum(0) @ mixing.T
        if mean == "global":
            means = mixing @ self._mean
            if self._constant is not None:
                constant = self._constant.to(means.device)
                means[[0, -2]] += constant  # target and output
                means, comoment = torch.cat([means, constant[None]]), F.pad(comoment, (0, 1, 0, 1))
            offset = means - means.mean(1, keepdim=True)
            comoment = comoment + self.count * offset @ offset.T
        elif mean != "channel":
            raise ValueError(f"mean is 'channel' or 'global', not {mean!r}")
        return comoment / (self.count * self._mean.shape[1])

    def channel_variances(self) -> Tensor:
        """Give the variance of every named vector in every channel, float64 (M+2, C)."""
        mixing = self._mixing()
        return torch.einsum("im,cmn,in->ic", mixing, self._comoment / self.count, mixing)

    def rank_channels(self, ends: int | None = None) -> tuple[Tensor, Tensor]:
        """Order the channels of x* by their instability, the most consistent first.

        Channels whose variance is below a tenth of the mean are left out: they are nearly dead, and their ratio says
        little about what the nets know.

        Args:
            ends: only so many most consistent and so many least consistent channels.

        Returns:
            Channel numbers, int64 (L,), and the instability Var(x_Δ)/Var(x*) of each, float64 (L,), rising.
        """
        variances = self.channel_variances()
        alive = (variances[0] >= 0.1 * variances[0].mean()).nonzero().flatten()
        instability, order = (variances[-1, alive] / variances[0, alive]).sort()
        ranks = torch.arange(len(order))
        kept = ranks if ends is None else torch.cat([ranks[:ends], ranks[-ends:]]).unique()
        return alive[order[kept]], instability[kept]

    def _mixing(self) -> Tensor:
        """Express target, orders, output, residual in (orders, residual): float64 (M+2, M)."""
        size = len(self._mean)
        identity = torch.eye(size, dtype=torch.float64, device=self._mean.device)
        output = identity[:-1].sum(0, keepdim=True)
        return torch.cat([output + identity[-1:], identity[:-1], output, identity[-1:]])

    def report(self, mean: str = "channel") -> dict[str, Any]:
        """Summarise as plain numbers: images, mean convention, var, instability, covariance."""
        names, matrix = self.names(mean), self.covariance(mean).cpu()
        variance = dict(zip(names, matrix.diagonal().tolist()))
        return {
            "images": self.images,
            "mean": mean,
            "var": variance,
            # A constant target has nothing to reconstruct; NaN would not be JSON.
            "instability": variance["residual"] / variance["target"] if variance["target"] > 0 else None,
            "covariance": {"names": names, "matrix": matrix.tolist()},
        }
