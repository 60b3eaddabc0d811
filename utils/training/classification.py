"""The training of classifiers, common to several steps: batch, validation, recorded hits."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.data.images import ImageData
from utils.runtime import Runtime
from utils.training.engine import Step, evaluate
from utils.training.losses import classification_loss
from utils.training.metrics import accuracies_percent

Loader = DataLoader[tuple[Tensor, ...]]


def classify(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Callable[[Tensor, Tensor], Tensor],
    frozen: nn.Module | None = None,
    smoothing: float = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify a batch: a step of the engine.

    Args:
        net: images (or outputs of `frozen`) → logits (N, C).
        images: uint8 (N, 3, S, S).
        targets: class ids int64 (N,), or multi-label float (N, C).
        indices: of the images, int64 (N,).
        preprocess: images, indices → float32 (N, 3, S, S), augmented and normalised.
        frozen: a frozen network between the images and the net.
        smoothing: of the labels; see `classification_loss`.

    Returns:
        The loss, a scalar, and each sample's accuracies in percent.
    """
    prepared = preprocess(images, indices)
    features = frozen(prepared) if frozen else prepared
    return classify_features(net, features, targets, indices, smoothing=smoothing)


def classify_features(
    net: nn.Module,
    features: Tensor,
    targets: Tensor,
    _indices: Tensor,
    *,
    smoothing: float = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify a batch of the net's inputs: normalised images or features (N, …); see `classify`."""
    logits = net(features)
    loss = classification_loss(logits, targets, smoothing)
    return loss, accuracies_percent(logits, targets)


def validate(
    net: nn.Module,
    loaders: Mapping[str, Loader],
    runtime: Runtime,
    step: Step,
    hits: Tensor | None = None,
) -> dict[str, float]:
    """Evaluate a classifier on every part of the validation images.

    Args:
        net: from `runtime.parallel`.
        loaders: by name, one for each part; the only part of an unmixed set is "".
        runtime: device, processes, precision.
        step: of the engine.
        hits: from `known_hits`, uint8 (N,); filled with 1 where the net is right, 0 elsewhere.

    Returns:
        `val_{metric}` over all images and, of a mixed set, `val_{part}_{metric}` over each part.
    """
    if hits is not None and len(hits):
        # On the device, so that no batch waits to be copied back.
        right = torch.zeros(len(hits), dtype=hits.dtype, device=runtime.device)
        step = partial(_note_hits, step=step, right=right)
    parts = {name: evaluate(net, loader, step, runtime) for name, loader in loaders.items()}
    if hits is not None and len(hits):
        # Each image is in one process alone, so that the sum joins the parts.
        hits.copy_(runtime.sum(right))
    sizes = {name: len(loader.dataset) for name, loader in loaders.items()}  # type: ignore[arg-type]
    metrics = {}
    for metric in next(iter(parts.values())):
        # Parts of several sizes: weigh each mean by its images.
        total = sum(parts[name][metric] * sizes[name] for name in parts)
        metrics[f"val_{metric}"] = total / sum(sizes.values())
        metrics |= {f"val_{name}_{metric}": parts[name][metric] for name in parts if name}
    return metrics


def known_hits(state: Mapping[str, Any], images: ImageData) -> Tensor:
    """Give a checkpoint's hits on the validation images, for `validate` to renew.

    Args:
        state: the checkpoint, or an empty one.
        images: all validation images.

    Returns:
        `hits` as checkpoints have them, uint8 (N,) in the order of the data set: 1 where the label
        is the net's first answer, else 0. All 0 before the first validation; (0,) for images with
        several labels.
    """
    hits = state.get("hits")
    count = 0 if images.multi_label else len(images)
    if hits is None or len(hits) != count:
        return torch.zeros(count, dtype=torch.uint8)
    return hits.clone()


def _note_hits(
    net: nn.Module, *batch: Tensor, step: Step, right: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take a step, and set `right` at the images that the net classifies rightly.

    Args:
        net: see `classify`.
        batch: its last tensor is the images' indices.
        step: of the engine.
        right: (N,), filled in place.
    """
    loss, metrics = step(net, *batch)
    # 0 or 100 for each sample
    right[batch[-1]] = (metrics["top1_prec"] > 0).to(right.dtype)
    return loss, metrics
