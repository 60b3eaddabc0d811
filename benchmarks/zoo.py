"""Nets that others trained, small nets of one's own,
and what of them is compared: rows, maps, answers.
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from consistency.ridge import RIDGES, NormalEquations
from models.untrained import set_statistics
from utils.data.images import load_images

CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # mean and deviation, of the tiny nets
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# Of each stage: channels, kernel, stride
TINY = (
    (16, 3, 1),
    (16, 3, 1),
    (32, 3, 2),
    (32, 3, 1),
    (32, 3, 1),
    (64, 3, 2),
    (64, 3, 1),
    (64, 1, 1),
)
BATCH = 250


class Staged(nn.Module):
    """A classifier that can be cut behind each of its stages:
    stages, mean over positions, linear layer.
    """

    def __init__(self, stages: Sequence[nn.Module], width: int, classes: int = 10) -> None:
        super().__init__()
        self.stages, self.fc = nn.ModuleList(stages), nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Give logits (N, classes) of normalised images."""
        return self.tail(images, 0)[1]

    def tail(self, maps: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Give the penultimate feature and the logits of maps behind `depth` stages."""
        for stage in self.stages[depth:]:
            maps = stage(maps)
        pooled = maps.mean((2, 3))
        return pooled, self.fc(pooled)

    @torch.no_grad()
    def tail_in_batches(self, maps: Tensor, depth: int) -> tuple[Tensor, Tensor]:
        """Give what `tail` gives, with the memory of a batch."""
        pooled, logits = zip(*(self.tail(batch, depth) for batch in maps.split(BATCH)))
        return torch.cat(pooled), torch.cat(logits)

    @torch.no_grad()
    def maps(self, images: Tensor, depth: int) -> Tensor:
        """Give the maps behind `depth` stages."""
        return torch.cat(
            [nn.Sequential(*self.stages[:depth])(batch) for batch in images.split(BATCH)]
        )


def tiny() -> Staged:
    """Build the recipe of tiny10: eight stages of a convolution, a BatchNorm and a ReLU."""
    widths = [3, *(width for width, _, _ in TINY)]
    stages = [
        nn.Sequential(nn.Conv2d(before, width, kernel, stride), nn.BatchNorm2d(width), nn.ReLU())
        for before, (width, kernel, stride) in zip(widths, TINY)
    ]
    return Staged(stages, widths[-1])


def load_tiny(path: Path) -> Staged:
    """Read one of tiny10's nets."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    places = {f"conv{i}": f"stages.{i - 1}.0" for i in range(1, 9)}
    places |= {f"bn{i}": f"stages.{i - 1}.1" for i in range(1, 9)} | {"fc": "fc"}
    net = tiny()
    net.load_state_dict(
        {f"{places[key.split('.')[0]]}.{key.split('.')[1]}": value for key, value in state.items()}
    )
    return net.eval()


class Block(nn.Module):
    """A basic block of a CIFAR ResNet whose shortcut takes
    every second position and pads channels (option A).
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.stride, self.more = stride, (width - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Give the maps behind the block."""
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        # Option A: the shortcut has no weights; the new channels are zeros on both sides.
        return (
            y + F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        ).relu()


def resnet(depth: int) -> Staged:
    """Build a CIFAR ResNet of 6 n + 2 layers, cut behind its three stages of n blocks."""
    count, stages = (depth - 2) // 6, []
    for before, width, stride in ((16, 16, 1), (16, 32, 2), (32, 64, 2)):
        blocks = [
            Block(before if i == 0 else width, width, stride if i == 0 else 1) for i in range(count)
        ]
        stages.append(nn.Sequential(*blocks))
    stem = (nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    return Staged([nn.Sequential(*stem, *stages[0]), *stages[1:]], 64)


def load_resnet(path: Path, depth: int) -> Staged:
    """Read one of the published ResNets."""
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    ends = {"conv1": "stages.0.0", "bn1": "stages.0.1", "linear": "fc"}

    def place(key: str) -> str:
        first, *rest = key.removeprefix("module.").split(".")
        if first in ends:
            return ".".join([ends[first], *rest])
        stage, block = int(first.removeprefix("layer")) - 1, int(rest[0])
        # Behind the stem
        return ".".join([f"stages.{stage}.{block + 3 * (stage == 0)}", *rest[1:]])

    net = resnet(depth)
    net.load_state_dict({place(key): value for key, value in state.items()})
    return net.eval()


def untrained(net: Staged, images: Tensor | None) -> Staged:
    """Give a net as initialised; with images,
    its BatchNorms have the statistics of one pass over them.
    """
    if images is not None:
        mixed = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        set_statistics(net, (images[numbers] for numbers in mixed.split(BATCH)))
    return net.eval()


def pictures(folder: Path, split: str, per_class: int) -> tuple[Tensor, Tensor]:
    """Give the first images of every class, floats of [0, 1] (N, 3, 32, 32), and their labels."""
    path = folder / {"train": "train", "val": "test"}[split]
    images = load_images("folder", split, data_root=folder, image_size=32, path=path)
    labels = images.targets
    chosen = torch.cat(
        [(labels == label).nonzero().flatten()[:per_class] for label in labels.unique()]
    )
    return images.decode(chosen.tolist()).float() / 255, labels[chosen]


def normalised(images: Tensor, how: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    """Subtract the channels' means and divide by their deviations."""
    mean, deviation = (torch.tensor(numbers)[:, None, None] for numbers in how)
    return (images - mean) / deviation


class PointMap:
    """g: the best linear map of channels at each position with a constant, by ridge regression.

    Args:
        x: A's maps of the fitted images, (M, C, H, W).
        target: B's, (M, D, H, W).
        ridges: the weights to choose from.
    """

    def __init__(self, x: Tensor, target: Tensor, ridges: Sequence[float] = RIDGES) -> None:
        sums = NormalEquations(x.shape[1], target.shape[1], 1, folds=2)
        sums.add(x, target, torch.arange(len(x)))
        solution = sums.solve(ridges, constant=True)
        self.weight, self.constant, self.ridge = (
            solution.weight.float(),
            solution.constant.float(),
            solution.ridge,
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Give g(x), (N, D, H, W)."""
        return F.conv2d(x, self.weight, self.constant)


def layers_of(net: Staged, depth: int) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Give the convolution and the BatchNorm of a stage of the tiny recipe."""
    convolution, norm = (net.get_submodule(f"stages.{depth - 1}.{place}") for place in (0, 1))
    assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    return convolution, norm


def reader_of(net: Staged, depth: int) -> nn.Conv2d | nn.Linear:
    """Give the layer that reads the maps behind `depth` stages."""
    return net.fc if depth == len(net.stages) else layers_of(net, depth + 1)[0]


def permuted(net: Staged, depth: int, order: Tensor) -> Staged:
    """Give a copy that computes the same,
    the channels behind `depth` stages of the tiny recipe in another order.
    """
    net = copy.deepcopy(net)
    for module in layers_of(net, depth):
        for value in (*module.parameters(), *module.buffers()):
            if value.ndim:
                value.data = value.data[order]
    reader = reader_of(net, depth)
    reader.weight.data = reader.weight.data[:, order]
    return net


def rescaled(net: Staged, depth: int, factors: Tensor) -> Staged:
    """Give a copy that computes the same:
    channels behind `depth` stages times factors, undone by what reads them.
    """
    net = copy.deepcopy(net)
    _, norm = layers_of(net, depth)
    # Factors above 0 pass through the ReLU.
    norm.weight.data *= factors
    norm.bias.data *= factors
    reader = reader_of(net, depth)
    # (out, in, …): the axis of inputs
    reader.weight.data /= factors.reshape(1, -1, *[1] * (reader.weight.ndim - 2))
    return net


def folded(net: Staged) -> Staged:
    """Give a copy that computes the same,
    each BatchNorm of the tiny recipe folded into its convolution.
    """
    net = copy.deepcopy(net)
    for depth in range(1, len(net.stages) + 1):
        net.stages[depth - 1] = nn.Sequential(fuse_conv_bn_eval(*layers_of(net, depth)), nn.ReLU())
    return net
