"""The released procedure, written plainly: what the suite's speed is held against.

    python -m benchmarks.plain conv_output A.pth.tar B.pth.tar PHOTOS FOLDER
    python -m benchmarks.plain variance A.pth.tar B.pth.tar PHOTOS G.pth.tar

It is no step of the suite. A vgg16_bn runs module by module as it is trained; features go to one
pickle an image, and every epoch reads them one by one; a component is computed from the recorded
pass states alone, after the forward pass; a variance takes two passes over the photos, one for the
mean, first of x* and x_Δ and then of the components.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, models, transforms

LAYER = 30  # of vgg16_bn's features: conv4_3
BATCH_SIZE = 64
ALPHA = 0.1


class PlainTransNet(nn.Module):
    """g (paper Eq. 1), on maps of (N, C, H, W);
    it remembers pass states and divisors of its last forward pass.
    """

    def __init__(self, channels: int, layers: int = 3) -> None:
        super().__init__()
        self.linear = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(layers)
        )
        self.logit_p = nn.Parameter(torch.zeros(layers - 1))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstruct x*."""
        self.x = x / deviation(x)
        self.states: dict[int, Tensor] = {}
        u = self.x
        for k in range(len(self.linear) - 1, 0, -1):
            h = self.linear[k](u)
            # p(k) A(k) Σ(k)^(-1/2) of Eq. 3: one factor for each value
            self.states[k] = torch.sigmoid(self.logit_p[k - 1]) * (h > 0) / deviation(h)
            u = self.x + torch.sigmoid(self.logit_p[k - 1]) * F.relu(h / deviation(h))
        return self.linear[0](u)

    def component(self, order: int) -> Tensor:
        """Give x(k) of the last forward pass (paper Eq. 3)."""
        value = self.x
        for k in range(order, 0, -1):
            value = self.states[k] * self.linear[k](value)
        return self.linear[0](value)


def one_by_one(g: PlainTransNet, x: Tensor) -> list[Tensor]:
    """Give the components of x, each after the other."""
    g(x)
    return [g.component(k) for k in range(len(g.linear))]


def deviation(maps: Tensor) -> Tensor:
    """Give the deviation of each map, (N, C, 1, 1), without gradient."""
    return maps.detach().std((2, 3), keepdim=True) + 1e-5


def open_vgg(path: str | Path) -> Any:
    """Read a vgg16_bn."""
    state = torch.load(path, weights_only=True)["state_dict"]
    model = models.vgg16_bn(num_classes=len(state["classifier.6.bias"]))
    model.load_state_dict(state)
    return model.eval()


def open_trans_net(path: str | Path) -> PlainTransNet:
    """Read a Trans-Net of the suite."""
    state = torch.load(path, weights_only=True)["state_dict"]
    g = PlainTransNet(len(state["linear.0.weight"]))
    g.load_state_dict(state)
    return g


def photos(folder: str, batch_size: int = BATCH_SIZE, *, shuffle: bool = False) -> DataLoader[Any]:
    """Decode a folder of class folders."""
    normalise = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    view = transforms.Compose([transforms.Resize((224, 224)), transforms.ToTensor(), normalise])
    return DataLoader(
        datasets.ImageFolder(folder, view), batch_size, shuffle=shuffle, num_workers=2
    )


def head(model: Any, images: Tensor) -> Tensor:
    """Give the feature, (N, 512, 28, 28)."""
    return model.features[: LAYER + 1](images)


def tail(model: Any, feature: Tensor) -> Tensor:
    """Give the logits of a feature."""
    return model.classifier(model.avgpool(model.features[LAYER + 1 :](feature)).flatten(1))


@torch.no_grad()
def conv_output(net_a: str, net_b: str, folder: str, out: str) -> None:
    """Store both nets' features of all photos, one pickle each."""
    a, b = open_vgg(net_a), open_vgg(net_b)
    Path(out).mkdir()
    number = 0
    for images, targets in photos(folder):
        feature_a, feature_b = head(a, images), head(b, images)
        predicted_a, predicted_b = tail(a, feature_a).argmax(1), tail(b, feature_b).argmax(1)
        for row, target in enumerate(targets):
            sample = {
                "target": target,
                "pred1": predicted_a[row] == target,
                "pred2": predicted_b[row] == target,
            }
            sample |= {"convOut1": feature_a[row].clone(), "convOut2": feature_b[row].clone()}
            torch.save(sample, Path(out, f"{number:06d}.pkl"), _use_new_zipfile_serialization=False)
            number += 1


@torch.no_grad()
def variance(net_a: str, net_b: str, folder: str, trans_net: str) -> list[Tensor]:
    """Print Var(x*), Var(x_Δ) and those of the components, each channel about its own mean."""
    a, b = open_vgg(net_a), open_vgg(net_b)
    g = open_trans_net(trans_net)

    def target_and_residual() -> Iterator[list[Tensor]]:
        for images, _ in photos(folder):
            target = head(b, images)
            yield [target, target - g(head(a, images))]

    def components() -> Iterator[list[Tensor]]:
        for images, _ in photos(folder):
            yield one_by_one(g, head(a, images))

    variances = two_passes(target_and_residual) + two_passes(components)
    print(variances)
    return variances


def two_passes(batches: Callable[[], Iterator[list[Tensor]]]) -> list[Tensor]:
    """Give the variances of some maps,
    from a pass for their means and one for their squares about these.
    """
    count, means = 0, [torch.zeros(1, 512, 1, 1)]
    for maps in batches():
        # All maps of a batch have as many values in each channel.
        count += maps[0][:, 0].numel()
        means = [
            mean + values.sum((0, 2, 3), keepdim=True)
            for mean, values in zip(means * len(maps), maps)
        ]
    means = [mean / count for mean in means]
    squares = [torch.zeros(())] * len(means)
    for maps in batches():
        squares = [
            total + (values - mean).square().sum()
            for total, values, mean in zip(squares, maps, means)
        ]
    # 512 channels: the mean of their variances
    return [total / (count * 512) for total in squares]


class Pickles(Dataset[Any]):
    """The features of `conv_output`, one image at a time."""

    def __init__(self, folder: str | Path) -> None:
        self.paths = sorted(Path(folder).glob("*.pkl"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        sample = torch.load(self.paths[index], weights_only=True)
        return sample["convOut1"], sample["convOut2"]


def pickled(folder: str | Path, batch_size: int = BATCH_SIZE) -> DataLoader[Any]:
    """Read stored features in batches, shuffled."""
    return DataLoader(Pickles(folder), batch_size, shuffle=True)


def store_random(folder: Path, count: int, shape: tuple[int, ...]) -> None:
    """Store random features as `conv_output` does."""
    folder.mkdir()
    for number in range(count):
        a, b = torch.randn(2, *shape)
        sample = {
            "target": torch.tensor(0),
            "pred1": torch.tensor(True),
            "pred2": torch.tensor(True),
        }
        sample |= {"convOut1": a.clone(), "convOut2": b.clone()}
        torch.save(sample, folder / f"{number:06d}.pkl", _use_new_zipfile_serialization=False)


def fit_epoch(g: PlainTransNet, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]) -> float:
    """Train g for one epoch (paper Eq. 2); gives the mean loss."""
    losses = []
    for x, target in loader:
        loss = F.mse_loss(g(x), target) + ALPHA * torch.sigmoid(g.logit_p).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def refine_epoch(
    a: Any, b: Any, g: PlainTransNet, optimizer: torch.optim.Optimizer, loader: DataLoader[Any]
) -> float:
    """Tune B's layers behind the cut on what g makes of A's features; gives the mean loss."""
    losses = []
    for images, targets in loader:
        with torch.no_grad():
            feature = g(head(a, images))
        loss = F.cross_entropy(tail(b, feature), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def tail_parameters(model: Any) -> list[nn.Parameter]:
    """List the weights behind the cut."""
    return [*model.features[LAYER + 1 :].parameters(), *model.classifier.parameters()]


def tail_step(
    tail: nn.Module, optimizer: torch.optim.Optimizer, feature: Tensor, targets: Tensor
) -> None:
    """Train a tail on one batch that lies in memory."""
    loss = F.cross_entropy(tail(feature), targets)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


if __name__ == "__main__":
    {"conv_output": conv_output, "variance": variance}[sys.argv[1]](*sys.argv[2:])
