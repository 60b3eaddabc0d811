"""The Trans-Net: it reconstructs net B's feature from net A's, split by fuzziness order.

Symbols, used with these meanings everywhere:

    x           A's feature, (N, C_in, H, W)
    target      B's feature x*, (N, C_out, H', W')
    order k     the number of non-linear layers that a component passed, 0 … K
    hidden      M, the number of zero channels behind those of x; they give W(k) room to compute in
    p           p[k-1] = p(k) = sigmoid(logit_p[k-1]), the weight of what comes from order k
    components  x(0) … x(K); g(x) is their sum plus the constant
    constant    one number a channel of g(x), of no order; 0 where nothing is standardised
    residual    x_Δ = target − g(x), what A cannot reconstruct

    h(K) = W(K) x,    h(k) = W(k) [ x + p(k+1) · ReLU( Σ(k+1)^(-1/2) h(k+1) ) ],    g(x) = h(0)    (paper Eq. 1)
"""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.author_keys import trans_net_from_authors
from models.divisors import BatchScale, InstanceScale
from utils import checkpoint
from utils.errors import InputError


class TransNet(nn.Module):
    """g: reconstruct features (N, C_out, H', W') from features (N, C_in, H, W).

    Args:
        in_channels: C_in.
        out_channels: C_out. W(k ≥ 1) map C_in + M → C_in + M, W(0) maps C_in + M → C_out.
        layers: the number of linear layers, K + 1 (3 in the paper: orders 0, 1, 2).
        kernel_size: 3 on feature maps (padding 1), 1 on fully-connected features and tokens.
        norm: what Σ is, "instance" (the released code) or "batch" (the paper's text).
        out_size: (H', W') where B's maps have another size: x is first resized bilinearly, a linear
            step, so orders keep their meaning.
        bn: normalise the input by Instance- or BatchNorm (mean removed) instead of scaling it by Σ.
        affine: that norm has learned weights.
        fix_p: p stays at its initial 0.5.
        standardise: subtract from x and x* the mean of each channel, and divide them by one
            standard deviation of the whole layer (paper, footnote 2), instead of scaling x by Σ.
            `set_standards` sets these numbers, and they travel with the weights. `forward` and
            `decompose` take and give features in the features' units. A ReLU's output is never
            negative; so a learned shift is added to the target's mean.
        hidden: M. Eq. 1 adds ReLU(h) to x, in the channels of x. Where every channel of x carries
            information, W(k) cannot separate the two again. M spare channels, zero in x, have room
            for ReLU(h). M = 0 is the paper's Trans-Net. No equation changes, but an instability
            depends on M.
    """

    x_mean: Tensor
    x_std: Tensor
    target_mean: Tensor
    target_std: Tensor

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
        standardise: bool = False,
        hidden: int = 0,
    ) -> None:
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(f"norm is 'instance' or 'batch', not {norm!r}")
        if layers < 1:
            raise ValueError(f"a Trans-Net has at least one linear layer, not {layers}")
        if bn and standardise:
            raise ValueError(
                "bn and standardise are two normalisations of the same input; choose one"
            )
        if hidden < 0:
            raise ValueError(f"there are no {hidden} spare channels; hidden is at least 0")
        # What rebuilds this module; it travels in the checkpoint.
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "layers": layers,
            "kernel_size": kernel_size,
            "norm": norm,
            "out_size": out_size,
            "bn": bn,
            "affine": affine,
            "fix_p": fix_p,
            "standardise": standardise,
            "hidden": hidden,
        }
        self.out_size, self.standardise, self.hidden = out_size, standardise, hidden
        width = in_channels + hidden
        # linear[k] is W(k), with PyTorch's initialisation: uniform in ±1/√fan_in. No bias: a bias
        # would belong to no order.
        self.linear = nn.ModuleList(
            nn.Conv2d(
                width,
                width if k else out_channels,
                kernel_size,
                padding=kernel_size // 2,
                bias=False,
            )
            for k in range(layers)
        )
        # The sigmoid keeps p in (0, 1) without a constraint; sigmoid(0) = 0.5.
        self.logit_p = nn.Parameter(torch.zeros(layers - 1), requires_grad=not fix_p)
        # In standardised units; without `standardise` g has no constant, as in the paper.
        self.shift = nn.Parameter(torch.zeros(out_channels)) if standardise else None

        # What divides a branch before its ReLU, and the input unless it is normalised otherwise.
        def scale(channels: int) -> nn.Module:
            return BatchScale(channels) if norm == "batch" else InstanceScale()

        # scale[k-1] gives the divisor of h(k)
        self.scale = nn.ModuleList(scale(width) for _ in range(layers - 1))
        self.input_norm: nn.Module | None = None
        if bn:
            norm_class = nn.BatchNorm2d if norm == "batch" else nn.InstanceNorm2d
            self.input_norm = norm_class(in_channels, affine=affine)
        elif not standardise:
            self.input_scale = scale(in_channels)
        for name, channels in (("x", in_channels), ("target", out_channels)):
            # Without `standardise` they are 0 and 1, and checkpoints do not hold them: the state
            # dict stays that of the paper's Trans-Net.
            self.register_buffer(f"{name}_mean", torch.zeros(channels), persistent=standardise)
            self.register_buffer(f"{name}_std", torch.ones(()), persistent=standardise)

    @property
    def order(self) -> int:
        """K, the highest order."""
        return len(self.linear) - 1

    @property
    def last_shape(self) -> tuple[int, int, int, int]:
        """The shape of W(0), the last linear layer: (C_out, C_in + M, k, k)."""
        out_channels, in_channels, height, width = self.linear[0].get_parameter("weight").shape
        return out_channels, in_channels, height, width

    @property
    def p(self) -> Tensor:
        """The weights of orders 1 … K, shape (K,), each in (0, 1)."""
        return self.logit_p.sigmoid()

    @property
    def constant(self) -> Tensor:
        """What belongs to no order, shape (C_out,): g(x) = Σ components + constant."""
        if self.shift is None:
            return self.target_mean
        # The shift is learned in standardised units.
        return self.target_mean + self.target_std * self.shift

    @torch.no_grad()
    def set_standards(
        self, x_mean: Tensor, x_std: float, target_mean: Tensor, target_std: float
    ) -> None:
        """Set the means and deviations of `standardise`, measured on the training images.

        Args:
            x_mean: mean of each channel of x after `resize`, (C_in,).
            x_std: standard deviation of the whole layer about these means, ≥ 0. A dead layer has
                0, which counts as 1.
            target_mean: mean of each channel of the target, (C_out,).
            target_std: standard deviation of the target, as `x_std`.

        Raises:
            ValueError: this Trans-Net does not standardise.
        """
        if not self.standardise:
            raise ValueError("only a Trans-Net with standardise=True has standards to set")
        for name, mean, std in (("x", x_mean, x_std), ("target", target_mean, target_std)):
            self.get_buffer(f"{name}_mean").copy_(mean)
            self.get_buffer(f"{name}_std").fill_(float(std) or 1.0)

    def standard_target(self, target: Tensor) -> Tensor:
        """Give a target (N, C_out, H', W') in standardised units, in which W(0) is solved.

        Training divides its mean squared error by `target_std`² instead, which is the same.

        Returns:
            (x* − mean) / std, (N, C_out, H', W'); unchanged where nothing is standardised.
        """
        if not self.standardise:
            return target
        return (target - self.target_mean[:, None, None]) / self.target_std

    def resize(self, x: Tensor) -> Tensor:
        """Bring x to the target's size, (N, C_in, H, W) → (N, C_in, H', W'), bilinearly."""
        if self.out_size is not None and x.shape[2:] != self.out_size:
            x = F.interpolate(x, self.out_size, mode="bilinear", align_corners=False)
        return x

    def _prepare(self, x: Tensor) -> Tensor:
        """Resize, normalise and pad x, (N, C_in, H, W) → (N, C_in + M, H', W')."""
        x = self.resize(x)
        if self.standardise:
            # One deviation for the whole layer: the channels keep their relative sizes.
            x = (x - self.x_mean[:, None, None]) / self.x_std
        elif self.input_norm is not None:
            x = self.input_norm(x)
        else:
            # Scale only; the mean stays, as in the released code.
            x = x / self.input_scale(x)
        # `F.pad` names the last axis first: none of W, none of H, M zero channels behind.
        return F.pad(x, (0, 0, 0, 0, 0, self.hidden)) if self.hidden else x

    def last_input(self, x: Tensor) -> Tensor:
        """Give u, the input of W(0): `standard_target`(g(x)) = W(0) u + shift.

        Args:
            x: A's feature, (N, C_in, H, W).

        Returns:
            x + p(1) · ReLU( Σ(1)^(-1/2) h(1) ), (N, C_in + M, H', W'). With one layer u is the
            standardised x.
        """
        x, p = self._prepare(x), self.p
        u = x
        # Eq. 1 from the highest order down: h(K) = W(K) x first, W(0) is left to the caller.
        for k in range(self.order, 0, -1):
            h = self.linear[k](u)
            # ReLU(h/σ) = ReLU(h)/σ for σ > 0: one fused pass over the map instead of three.
            u = torch.addcmul(x, h.relu(), p[k - 1] / self.scale[k - 1](h))
        return u

    @torch.no_grad()
    def set_last_weight(self, weight: Tensor, shift: Tensor | None = None) -> None:
        """Set W(0) and the shift as solved from `last_input` and `standard_target`.

        Args:
            weight: (C_out, C_in + M, k, k).
            shift: (C_out,); None: it stays.
        """
        self.linear[0].get_parameter("weight").copy_(weight)
        if shift is not None and self.shift is not None:
            self.shift.copy_(shift)

    @torch.no_grad()
    def set_linear(self, weight: Tensor, shift: Tensor | None = None) -> None:
        """Make g the linear map that was solved for `linear_reference`, with p(1) = 0.

        W(0) cannot remove what random or badly fitted branches add to x. Where the linear map
        alone has the smaller held-out error, it is the better g. This ends a fit: no gradient
        reaches p(1) any more.

        Args:
            weight: (C_out, C_in, k, k).
            shift: (C_out,).
        """
        # The linear map reads the channels of x alone: its axis of inputs gets M zeros behind.
        self.set_last_weight(F.pad(weight, (0, 0, 0, 0, 0, self.hidden)), shift)
        # A slice, since a Trans-Net of one layer has no p(1).
        self.logit_p[:1] = -1e4  # in float32 the sigmoid of −10⁴ is exactly 0

    def linear_reference(self) -> "TransNet":
        """Make a standardised Trans-Net of one layer between the same features.

        Its W(0) is yet to be solved. Its standards are those of this Trans-Net; where this one has
        none, they are yet to be set.
        """
        reference = TransNet(
            **(self.config | {"layers": 1, "bn": False, "standardise": True, "hidden": 0})
        )
        reference.set_standards(
            self.x_mean, float(self.x_std), self.target_mean, float(self.target_std)
        )
        return reference.to(self.x_mean.device)

    def forward(self, x: Tensor) -> Tensor:
        """Map A's feature x, (N, C_in, H, W), to its reconstruction of B's, (N, C_out, H', W')."""
        h = self.linear[0](self.last_input(x))
        return h * self.target_std + self.constant[:, None, None] if self.standardise else h

    def decompose(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split the forward pass exactly into its orders (paper Eq. 3 and 4).

        Fix the ReLU's pass states A(k) and the divisors Σ(k) of the forward pass: every layer is
        then linear in the contributions. So the contributions of all orders go through the layers
        together, stacked on the batch axis, and their sum is the forward pass. This takes
        (K+1)(K+2)/2 convolutions. Use it in `eval()`: in training mode BatchScale would count the
        batch a second time.

        Args:
            x: A's feature, (N, C_in, H, W).

        Returns:
            g(x), (N, C_out, H', W'), and the components, (K+1, N, C_out, H', W'). Index k of the
            first axis is component x(k). With `constant` they sum to g(x) up to rounding.
        """
        x, p = self._prepare(x), self.p
        # (1, N, C_in + M, H', W'); index j of axis 0 passed j non-linear layers so far
        contributions = x[None]
        for k in range(self.order, 0, -1):
            mapped = _apply_stacked(self.linear[k], contributions)
            h = mapped.sum(0)  # h(k) of the forward pass, (N, C_in + M, H', W')
            # A(k) Σ(k)^(-1/2) p(k), the same for all contributions: ReLU(h) = (h > 0) · h
            gate = (h > 0) * (p[k - 1] / self.scale[k - 1](h))
            # Each contribution passed one more non-linear layer; x enters anew at index 0.
            contributions = torch.cat([x[None], mapped * gate])
        components = _apply_stacked(self.linear[0], contributions)
        if not self.standardise:
            return components.sum(0), components
        # Only the factor goes to each order; the constant belongs to none.
        components = components * self.target_std
        return components.sum(0) + self.constant[:, None, None], components


def _apply_stacked(linear: nn.Module, stacked: Tensor) -> Tensor:
    """Apply a layer to J stacked batches, (J, N, C, H, W), in one call on J·N samples."""
    return linear(stacked.flatten(0, 1)).unflatten(0, stacked.shape[:2])


def load_trans_net(path: str | Path) -> TransNet:
    """Load a Trans-Net of this suite or of the authors, in evaluation mode on the CPU.

    Raises:
        InputError: the file is missing, damaged or holds no Trans-Net.
    """
    return build_from_state(checkpoint.load(path), path)


def build_from_state(state: dict[str, Any], path: str | Path) -> TransNet:
    """Rebuild a Trans-Net from a checkpoint that was read from `path` (named in errors)."""
    if "trans_net" in state:
        config, weights = state["trans_net"], state.get("state_dict", {})
    else:  # the authors' files: a state dict, bare or under "state_dict"
        config, weights = trans_net_from_authors(state.get("state_dict", state), path)
    try:
        _check_sizes(config, weights)
        trans_net = TransNet(**config)
        # Strict: a missing or unknown tensor is an error, and becomes one line below.
        trans_net.load_state_dict(weights)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        reason = str(error).rpartition("\n")[2].strip()
        raise InputError(f"{path} does not hold a whole Trans-Net: {reason}") from None
    if name := checkpoint.first_not_finite(trans_net.state_dict()):
        raise InputError(
            f"{path} holds a Trans-Net that diverged: {name} is not finite; fit it anew"
        )
    return trans_net.eval()


def _check_sizes(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
    """Hold the sizes that a file names against the tensors that it holds, before memory is taken.

    Raises:
        ValueError: W(k) of some layer is missing, or has another shape.
    """
    layers, size = config.get("layers", 3), config.get("kernel_size", 3)
    width = config["in_channels"] + config.get("hidden", 0)
    held = sum(name.startswith("linear.") and name.endswith(".weight") for name in weights)
    if held != layers:
        raise ValueError(f"it has {layers} layers, and weights of {held}")
    for k in range(layers):
        shape = (width if k else config["out_channels"], width, size, size)
        if tuple(weights[f"linear.{k}.weight"].shape) != shape:
            raise ValueError(
                f"linear.{k}.weight is {tuple(weights[f'linear.{k}.weight'].shape)}, not {shape}"
            )
