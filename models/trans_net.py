"""The Trans-Net: reconstruct net B's feature from net A's and split the reconstruction by fuzziness order.

Symbols, used with these meanings everywhere:

    x           A's feature, (N, C_in, H, W)
    target      B's feature x*, (N, C_out, H', W')
    order k     the number of non-linear layers that a component passed, 0 … K
    p           p[k-1] = p(k) = sigmoid(logit_p[k-1]), the weight of what comes from order k
    components  x(0) … x(K), their sum is g(x)
    residual    x_Δ = target − g(x), what A cannot reconstruct

    h(K) = W(K) x,    h(k) = W(k) [ x + p(k+1) · ReLU( Σ(k+1)^(-1/2) h(k+1) ) ],    g(x) = h(0)    (paper Eq. 1)
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.author_keys import trans_net_from_authors
from models.split import as_maps
from utils import checkpoint
from utils.errors import InputError

EPS = 1e-5  # added to a standard deviation, outside the root, as in the released code


class InstanceScale(nn.Module):
    """Standard deviation of each sample and channel over H×W, unbiased, plus EPS; 1 where H×W = 1."""

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor (N, C, 1, 1) in float32 of a feature (N, C, H, W); no gradient flows through it."""
        if h.shape[2] * h.shape[3] == 1:
            return torch.ones_like(h, dtype=torch.float32)
        return h.detach().float().std((2, 3), keepdim=True) + EPS


class BatchScale(nn.Module):
    """Standard deviation of each channel over the images and H×W, as the paper defines Σ.

    The statistics are those of the batch in training and their running average (momentum 0.1) in
    evaluation; the first batch sets the average, so it never starts from an arbitrary value.
    """

    running_std: Tensor
    batches: Tensor

    def __init__(self, channels: int, momentum: float = 0.1) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("running_std", torch.ones(channels))
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, h: Tensor) -> Tensor:
        """Give the divisor (1, C, 1, 1) in float32 of a feature (N, C, H, W); in training the gradient knows it."""
        if self.training and h.numel() > h.shape[1]:  # one vector, as a last batch may be, has no deviation
            std = h.float().std((0, 2, 3))
            # In place: a DataParallel replica shares this buffer with the module that is saved.
            self.running_std.lerp_(std.detach(), torch.where(self.batches == 0, 1.0, self.momentum))
            self.batches += 1
            divisor = std + EPS
        else:
            divisor = self.running_std.clamp_min(EPS)  # no EPS on top in evaluation, as in the released code
        return divisor[None, :, None, None]


class TransNet(nn.Module):
    """g: reconstruct features (N, C_out, H', W') from features (N, C_in, H, W).

    Args:
        in_channels: C_in.
        out_channels: C_out. W(k ≥ 1) map C_in → C_in, W(0) maps C_in → C_out.
        layers: the number of linear layers, K + 1 (3 in the paper: orders 0, 1, 2).
        kernel_size: 3 on feature maps (padding 1), 1 on fully-connected features and tokens.
        norm: what Σ is, "instance" (the released code) or "batch" (the paper's text).
        out_size: (H', W') where B's maps have another size: x is first resized bilinearly, a linear
            step, so orders keep their meaning.
        bn: normalise the input by Instance- or BatchNorm (mean removed) instead of scaling it by Σ.
        affine: that norm has learned weights.
        fix_p: p stays at its initial 0.5.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        layers: int = 3,
        kernel_size: int = 3,
        norm: str = "instance",
        *,
        out_size: tuple[int, int] | None = None,
        bn: bool = False,
        affine: bool = False,
        fix_p: bool = False,
    ) -> None:
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(f"norm is 'instance' or 'batch', not {norm!r}")
        if layers < 1:
            raise ValueError(f"a Trans-Net has at least one linear layer, not {layers}")
        # What rebuilds this module; it travels in the checkpoint.
        self.config: dict[str, Any] = {
            "in_channels": in_channels, "out_channels": out_channels, "layers": layers, "kernel_size": kernel_size,
            "norm": norm, "out_size": out_size, "bn": bn, "affine": affine, "fix_p": fix_p,
        }  # fmt: skip
        self.out_size = out_size
        self.linear = nn.ModuleList(  # linear[k] is W(k)
            nn.Conv2d(
                in_channels, in_channels if k else out_channels, kernel_size, padding=kernel_size // 2, bias=False
            )
            for k in range(layers)
        )
        for weight in self.linear.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu")
        self.logit_p = nn.Parameter(torch.zeros(layers - 1), requires_grad=not fix_p)

        def scale() -> nn.Module:
            return BatchScale(in_channels) if norm == "batch" else InstanceScale()

        self.scale = nn.ModuleList(scale() for _ in range(layers - 1))  # scale[k-1] gives the divisor of h(k)
        self.input_norm: nn.Module | None = None
        if bn:
            norm_class = nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d
            self.input_norm = norm_class(in_channels, affine=affine)
        else:
            self.input_scale = scale()

    @property
    def order(self) -> int:
        """K, the highest order."""
        return len(self.linear) - 1

    @property
    def p(self) -> Tensor:
        """The weights of orders 1 … K, shape (K,), each in (0, 1)."""
        return self.logit_p.sigmoid()

    def _prepare(self, x: Tensor) -> Tensor:
        """Resize x to the target's size and normalise its magnitude, (N, C_in, H, W) → (N, C_in, H', W')."""
        if self.out_size is not None and x.shape[2:] != self.out_size:
            x = F.interpolate(x, self.out_size, mode="bilinear", align_corners=False)
        if self.input_norm is not None:
            return self.input_norm(x)
        return x / self.input_scale(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map A's feature x, (N, C_in, H, W), to its reconstruction of B's, (N, C_out, H', W')."""
        x, p = self._prepare(x), self.p
        h = self.linear[self.order](x)
        for k in range(self.order, 0, -1):
            # ReLU(h/σ) = ReLU(h)/σ for σ > 0: one fused pass over the map instead of three.
            h = self.linear[k - 1](torch.addcmul(x, h.relu(), p[k - 1] / self.scale[k - 1](h)))
        return h

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the forward pass exactly into its orders (paper Eq. 3 and 4) by (K+1)(K+2)/2 convolutions.

        The ReLU's pass states A(k) and the divisors Σ(k) of the forward pass make every layer linear in
        the contributions. So the contributions of all orders go through the layers together, stacked on
        the batch axis; their sum is the forward pass. Meant for `eval()`: in training mode BatchScale
        would count the batch once more.

        Args:
            x: A's feature, (N, C_in, H, W).

        Returns:
            g(x), (N, C_out, H', W'), and the components, (K+1, N, C_out, H', W'), component k first
            axis index k; they sum to g(x) up to rounding.
        """
        x, p = self._prepare(x), self.p
        contributions = x[None]  # axis 0: the number of non-linear layers passed so far
        for k in range(self.order, 0, -1):
            mapped = _apply_stacked(self.linear[k], contributions)
            h = mapped.sum(0)
            passed = mapped * ((h > 0) * (p[k - 1] / self.scale[k - 1](h)))
            contributions = torch.cat([x[None], passed])
        components = _apply_stacked(self.linear[0], contributions)
        return components.sum(0), components


def _apply_stacked(linear: nn.Module, stacked: Tensor) -> Tensor:
    """Apply a layer to (M, N, C, H, W) in one call on M·N samples."""
    return linear(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])


def load_trans_net(path: str | Path) -> TransNet:
    """Load a Trans-Net, ours or the authors', in evaluation mode on the CPU.

    Raises:
        InputError: the file is missing, damaged or holds no Trans-Net.
    """
    return build_from_state(checkpoint.load(path), path)


def build_from_state(state: dict[str, Any], path: str | Path) -> TransNet:
    """Rebuild a Trans-Net from a checkpoint that was read from `path` (named in errors)."""
    if "trans_net" in state:
        config, weights = state["trans_net"], state["state_dict"]
    else:
        config, weights = trans_net_from_authors(state.get("state_dict", state), path)
    try:
        trans_net = TransNet(**config)
        trans_net.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{path} does not hold a whole Trans-Net: {str(error).splitlines()[-1].strip()}") from None
    return trans_net.eval()


def between(
    shape_a: tuple[int, ...], shape_b: tuple[int, ...], *, layers: int, fc: bool = False, **config: Any
) -> TransNet:
    """Make the Trans-Net that maps one image's feature of shape_a to one of shape_b.

    Args:
        shape_a: of x: maps (C, H, W), tokens (T, C) or a vector (C,).
        shape_b: of x*: the same kind.
        layers: K + 1.
        fc: 1×1 convolutions also on maps.
        config: the other arguments of `TransNet`.

    Raises:
        InputError: the shapes are of different kinds, or leave nothing of single values.
    """
    if len(shape_a) != len(shape_b):
        raise InputError(
            f"A's features have shape {shape_a} and B's {shape_b}: "
            "a Trans-Net maps feature maps to feature maps, vectors to vectors, tokens to tokens"
        )
    x, target = (as_maps(torch.empty(1, *shape, device="meta")).shape for shape in (shape_a, shape_b))
    if config.get("bn") and config.get("norm") == "instance" and x[2:].numel() == 1:
        raise InputError("--bn removes the mean of each map, and these features are single values; add --norm batch")
    size = (target[2], target[3])
    return TransNet(x[1], target[1], layers, 1 if fc or len(shape_a) < 3 else 3, out_size=size, **config)


def fill_trans_net(trans_net: TransNet, state: dict[str, Any], path: str | Path) -> None:
    """Give a Trans-Net the weights of a checkpoint that was read from `path`, which must be built alike.

    Raises:
        InputError: it is not.
    """
    stored = build_from_state(state, path)
    if stored.config != trans_net.config:
        raise InputError(
            f"{path} holds a Trans-Net of other options or shapes: {stored.config}, now {trans_net.config}"
        )
    trans_net.load_state_dict(stored.state_dict())


def check_fit(trans_net: TransNet, x: Tensor, target: Tensor) -> None:
    """Check that a Trans-Net maps features x (N, C_in, H, W) onto features target (N, C_out, H', W').

    Raises:
        InputError: it does not.
    """
    config = trans_net.config
    size = tuple(config["out_size"] or x.shape[2:])
    expected = (config["in_channels"], (config["out_channels"], *size))
    if (x.shape[1], tuple(target.shape[1:])) != expected:
        raise InputError(
            f"the Trans-Net maps {expected[0]} channels to {expected[1]}, but these features are "
            f"{tuple(x.shape[1:])} and {tuple(target.shape[1:])}: check the layer, the nets and the direction"
        )
