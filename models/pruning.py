"""Magnitude pruning and weight sharing (Han et al. 2016), on an ordinary network in place.

While a pruned network is trained, `zero_removed` follows every step of the optimiser. Once weights
are shared, every step stands between `sum_gradients` and `tie` (`train_centroids`). The hooks of
torch.nn.utils.prune do not serve: they act in a layer's `forward`, which attention layers (ViT,
Swin) never call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from utils.devices import in_float64
from utils.later import sklearn

# k-means clusters a layer's histogram of so many bins: far finer than any clusters, and fast for
# 100 million weights.
BINS = 2**14


@dataclass(frozen=True)
class PrunedWeight:
    """A pruned weight of one layer.

    Attributes:
        name: the parameter's name in the network.
        weight: the parameter itself.
        threshold: weights of a magnitude up to here are removed.
        removed: bool, of the weight's shape: True where a weight is removed.
    """

    name: str
    weight: Tensor
    threshold: float
    removed: Tensor


def prunable_weights(model: nn.Module) -> dict[str, tuple[Tensor, bool]]:
    """Give the weights that pruning takes, by name, and whether each is of a convolution.

    The others are of linear layers and of attention's projections.
    """
    weights: dict[str, tuple[Tensor, bool]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weights[f"{name}.weight"] = (module.weight, isinstance(module, nn.Conv2d))
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            weights[f"{name}.in_proj_weight"] = (module.in_proj_weight, False)
    return weights


@torch.no_grad()
def prune(model: nn.Module, s_conv: float, s_fc: float) -> list[PrunedWeight]:
    """Set the small weights of every layer to zero, in place; biases and BatchNorm stay.

    Args:
        model: on the device where it will be trained.
        s_conv: a convolution loses weights of magnitudes up to s_conv · std. The std is over all
            its weights, zeros of an earlier pruning included.
        s_fc: a linear layer loses weights of magnitudes up to s_fc · std.

    Returns:
        One entry for each layer, in the network's order.
    """
    layers = []
    for name, (weight, is_convolution) in prunable_weights(model).items():
        # The population's deviation: the weights are all there are, no sample.
        threshold = (s_conv if is_convolution else s_fc) * in_float64(weight).std(
            correction=0
        ).item()
        layers.append(PrunedWeight(name, weight, threshold, weight.abs() <= threshold))
    zero_removed(layers)
    return layers


@torch.no_grad()
def zero_removed(layers: Sequence[PrunedWeight]) -> None:
    """Set the removed weights to zero again, after momentum or weight decay moved them."""
    for layer in layers:
        layer.weight.masked_fill_(layer.removed, 0)


@torch.no_grad()
def cluster(layers: Sequence[PrunedWeight], bits: int) -> list[Tensor]:
    """Group the remaining weights of each layer by k-means into at most 2^bits clusters.

    The centroids begin at equal distances from the smallest weight to the largest. That gives
    clusters to the rare large weights (Han et al., Sec. 3.2). Weights with at most 2^bits distinct
    values, as of a network that is shared already, are grouped by value.

    Returns:
        For each layer int32 labels shaped as its weight: 0 where removed, else 1 + the cluster.
    """
    return [_cluster_layer(layer, 2**bits) for layer in layers]


@torch.no_grad()
def tie(layers: Sequence[PrunedWeight], labels: Sequence[Tensor]) -> None:
    """Set each weight to its cluster's mean, the centroid, and the removed ones to 0, in place.

    Args:
        layers: from `prune`.
        labels: from `cluster`.
    """
    for layer, label in zip(layers, labels):
        counts = torch.bincount(label.flatten()).clamp(min=1)  # label 0 may have no member
        # Index 0 collects the removed weights; clusters follow.
        centroids = _cluster_sums(layer.weight, label) / counts
        centroids[0] = 0  # the removed weights
        layer.weight.copy_(centroids[label])


def train_centroids(
    optimizer: Optimizer, layers: Sequence[PrunedWeight], labels: Sequence[Tensor], lr: float
) -> None:
    """Share the weights of each cluster from now on, and let the optimiser train their centroids.

    Before every step, the weights of a cluster get the gradient of their centroid; after it they
    are tied. So an elementwise optimiser such as SGD or Adam treats them as one parameter.
    Momentum and Adam's averages are the centroid's. Weight decay adds weight_decay · centroid once,
    not once for each member.

    Args:
        optimizer: a new one, with one parameter group of the whole network. One that has taken
            steps is refused: its averages differ between the members of a cluster. The shared
            weights become its second group.
        layers: from `prune`.
        labels: from `cluster`.
        lr: the second group's learning rate. Its gradients are sums over up to millions of members;
            so it is far below the rate of single weights.

    Raises:
        ValueError: the optimiser has taken steps.
    """
    if optimizer.state:
        raise ValueError(
            f"shared weights need a new optimiser, and this {type(optimizer).__name__} has taken"
            f" steps of {len(optimizer.state)} parameters"
        )
    (group,) = optimizer.param_groups
    # Frozen weights stay in the first group: without a gradient no step moves them.
    shared = [layer.weight for layer in layers if layer.weight.requires_grad]
    shared_ids = {id(weight) for weight in shared}
    group["params"] = [
        parameter for parameter in group["params"] if id(parameter) not in shared_ids
    ]
    optimizer.add_param_group({"params": shared, "lr": lr})
    tie(layers, labels)
    optimizer.register_step_pre_hook(lambda *_: sum_gradients(layers, labels))
    optimizer.register_step_post_hook(lambda *_: tie(layers, labels))


@torch.no_grad()
def sum_gradients(layers: Sequence[PrunedWeight], labels: Sequence[Tensor]) -> None:
    """Set each weight's gradient to its centroid's, and the removed ones' to 0, in `.grad`.

    The centroid c takes the place of all its members w_i, so ∂L/∂c = Σ_i ∂L/∂w_i (Han et al.,
    Sec. 3.3).

    Args:
        layers: from `prune`; a layer without a gradient is left alone.
        labels: from `cluster`.
    """
    for layer, label in zip(layers, labels):
        if layer.weight.grad is not None:
            sums = _cluster_sums(layer.weight.grad, label)
            sums[0] = 0
            layer.weight.grad.copy_(sums[label])


def count_removed(model: nn.Module, layers: Sequence[PrunedWeight]) -> dict[str, Any]:
    """Count the removed weights.

    Returns:
        `parameters`: the number of parameters of the whole network, biases and BatchNorm included.
        `removed`, `removed_percent`: of these. `layers`: of each layer its `weights`, the number
        `kept`, `removed_percent` and `threshold`.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    removed = [int(layer.removed.sum()) for layer in layers]
    rows = [
        {
            "layer": layer.name.removesuffix(".weight"),
            "weights": layer.weight.numel(),
            "kept": layer.weight.numel() - count,
            "removed_percent": 100 * count / layer.weight.numel(),
            "threshold": layer.threshold,
        }
        for layer, count in zip(layers, removed)
    ]
    total = {
        "parameters": parameters,
        "removed": sum(removed),
        "removed_percent": 100 * sum(removed) / parameters,
    }
    return {**total, "layers": rows}


def _cluster_sums(values: Tensor, label: Tensor) -> Tensor:
    """Sum values by their labels: float64 (1 + clusters,); index 0 is the removed ones."""
    values = in_float64(values.flatten())
    return torch.bincount(label.flatten().to(values.device), values)


def _cluster_layer(layer: PrunedWeight, clusters: int) -> Tensor:
    """Label one layer's weights; see `cluster`."""
    kept = layer.weight[~layer.removed]
    # `unique` sorts: its first value is the smallest weight, its last the largest.
    values, groups = kept.unique(return_inverse=True)
    if len(values) > clusters:
        centroids = _centroids(kept, values[0].item(), values[-1].item(), clusters)
        # A weight belongs to the nearest centroid: the bounds lie half-way between two.
        groups = torch.bucketize(kept, (centroids[1:] + centroids[:-1]) / 2)
    labels = torch.zeros_like(layer.removed, dtype=torch.int32)
    # 0 is for the removed weights.
    labels[~layer.removed] = groups.int() + 1
    return labels


def _centroids(weights: Tensor, lowest: float, highest: float, clusters: int) -> Tensor:
    """Cluster a histogram of weights by k-means, and give the centroids in rising order.

    Args:
        weights: (n,).
        lowest: the smallest weight.
        highest: the largest weight.
        clusters: how many are wanted.

    Returns:
        (min(clusters, number of bins with weights),), of the weights' dtype and device.
    """
    counts = torch.histc(weights, BINS, lowest, highest).cpu().numpy()
    # Every second of 2·BINS + 1 points is the middle of a bin.
    middles = np.linspace(lowest, highest, 2 * BINS + 1)[1::2]
    middles, counts = middles[counts > 0], counts[counts > 0]
    first = np.linspace(lowest, highest, min(clusters, len(middles)))
    k_means = sklearn.cluster.KMeans(len(first), init=first[:, None], n_init=1, tol=1e-6)
    fitted = k_means.fit(middles[:, None], sample_weight=counts)
    return torch.from_numpy(np.sort(fitted.cluster_centers_[:, 0])).to(weights)
