"""What every step that trains a classifier shares: its batch, its validation, its checkpoint."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.data.batches import normalise
from utils.runtime import Runtime
from utils.training.engine import Step, evaluate
from utils.training.losses import classification_loss
from utils.training.metrics import accuracies_percent

Loader = DataLoader[tuple[Tensor, ...]]


def classify(
    net: nn.Module, images: Tensor, targets: Tensor, indices: Tensor, *, frozen: nn.Module | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify a batch: a step of the engine.

    Args:
        net: images (or what `frozen` makes of them) → logits (N, C).
        images: uint8 (N, 3, S, S).
        targets: class ids int64 (N,), or multi-label float (N, C).
        indices: of the images.
        frozen: a fixed network between the normalised images and the net.

    Returns:
        The loss and the accuracies in percent.
    """
    normalised = normalise(images)
    return classify_features(net, frozen(normalised) if frozen else normalised, targets, indices)


def classify_features(
    net: nn.Module, features: Tensor, targets: Tensor, _indices: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Classify a batch of what the net takes as it is, images already normalised or features (N, …); see `classify`."""
    logits = net(features)
    return classification_loss(logits, targets), accuracies_percent(logits, targets)


def validate(
    net: nn.Module, loaders: Mapping[str, Loader], runtime: Runtime, step: Step = classify
) -> dict[str, float]:
    """Evaluate a classifier on every part of the validation images.

    Args:
        net: from `runtime.parallel`.
        loaders: one for each part by name; the only part of an unmixed set is called "".
        runtime: device, processes, precision.
        step: what the net does with a batch.

    Returns:
        `val_{metric}` over all images and, of a mixed set, `val_{part}_{metric}` over each part.
    """
    parts = {name: evaluate(net, loader, step, runtime) for name, loader in loaders.items()}
    sizes = {name: len(loader.dataset) for name, loader in loaders.items()}  # type: ignore[arg-type]
    metrics = {}
    for metric in next(iter(parts.values())):
        total = sum(parts[name][metric] * sizes[name] for name in parts)
        metrics[f"val_{metric}"] = total / sum(sizes.values())
        metrics |= {f"val_{name}_{metric}": parts[name][metric] for name in parts if name}
    return metrics
