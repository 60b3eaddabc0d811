"""The names of tensors in the authors' checkpoints, translated to those of this suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from utils.errors import InputError

_LOGITS = "nonLinearLayers_p_pre"  # logit_p, (K,)
_SCALES = "nonLinearLayers_norm"  # running standard deviations, one row an order (batch mode)
_BATCHES = "running_times"  # batches that these have seen, one number an order


def strip_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the `module` pieces that DataParallel put into the keys.

    `features.module.0.weight` becomes `features.0.weight`, `module.conv1.weight` becomes
    `conv1.weight`.
    """
    return {
        ".".join(piece for piece in key.split(".") if piece != "module"): value
        for key, value in state.items()
    }


def fold_masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Multiply the masks of a compressed net into its weights.

    A mask is a `{layer}.mask` of the same shape as `{layer}.weight`. Any other tensor called `mask`
    stays as it is.
    """
    masks = {
        f"{key.removesuffix('.mask')}.weight": key
        for key, mask in state.items()
        if key.endswith(".mask")
        and (weight := state.get(f"{key.removesuffix('.mask')}.weight")) is not None
        and weight.shape == mask.shape
    }
    # The masks themselves go: the net has no such tensors.
    folded = {key: value for key, value in state.items() if key not in masks.values()}
    for weight_key, mask_key in masks.items():
        folded[weight_key] = state[weight_key] * state[mask_key].to(state[weight_key].dtype)
    return folded


def is_authors_trans_net(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the authors' Trans-Nets, with or without `module` pieces."""
    return _LOGITS in strip_module(state)


def trans_net_from_authors(
    state: Mapping[str, Tensor], path: str | Path
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Translate the state dict of one of the authors' Trans-Nets.

    The authors count the linear layers in the order of application: their layer i is W(K − i), and
    their logits begin with p(K). In batch mode, row i of their divisors is Σ of order K − i, and
    the last row is the input's.

    Args:
        state: the authors' state dict, with or without `module` pieces.
        path: the file that it came from, named in errors.

    Returns:
        The arguments that build the `TransNet` and the state dict that fits it.

    Raises:
        InputError: the state dict is no Trans-Net of the authors, or it is not whole.
    """
    state = strip_module(state)
    if _LOGITS not in state:
        raise InputError(f"{path} holds no Trans-Net: it has no {_LOGITS}")
    highest = len(state[_LOGITS])  # K
    convolutions = [f"linearLayers_conv.{i}.weight" for i in range(highest + 1)]
    norm = "batch" if _SCALES in state else "instance"
    expected = {_LOGITS, *convolutions, *((_SCALES, _BATCHES) if norm == "batch" else ())}
    # Names that only one of both has
    if different := sorted(expected ^ set(state)):
        raise InputError(
            f"{path} is not a whole Trans-Net of {highest + 1} layers: missing or unknown"
            f" {different[:4]}"
        )

    weights = {"logit_p": state[_LOGITS].flip(0)}
    for i, convolution in enumerate(convolutions):
        # Their layer i is applied i-th, and ours is W(k) with k = K − i.
        weights[f"linear.{highest - i}.weight"] = state[convolution]
    if norm == "batch":
        for i in range(highest + 1):
            scale = "input_scale" if i == highest else f"scale.{highest - i - 1}"
            weights[f"{scale}.running_std"] = state[_SCALES][i]
            weights[f"{scale}.batches"] = state[_BATCHES][i]

    # Their first layer is W(K), which reads x; their last is W(0), which writes g(x).
    first, last = state[convolutions[0]], state[convolutions[-1]]
    config = {
        "in_channels": first.shape[1],
        "out_channels": last.shape[0],
        "layers": highest + 1,
        "kernel_size": first.shape[2],
        "norm": norm,
    }
    return config, weights
