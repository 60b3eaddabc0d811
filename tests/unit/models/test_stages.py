"""Where stages end: nets of all kinds, by the names that people read in them."""

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from models.classifiers import build
from models.split import cuts, split
from models.stages import place_of, stages, stages_of


class Inverted(nn.Module):
    """An inverted residual: what shrinks the map stands in its middle,
    behind a layer that widens it.
    """

    def __init__(self, width, stride):
        super().__init__()
        self.widen, self.shrink = (
            nn.Conv2d(width, 2 * width, 1),
            nn.Conv2d(2 * width, width, 3, stride, 1),
        )
        self.stride = stride

    def forward(self, x):
        y = self.shrink(F.relu(self.widen(x)))
        return x + y if self.stride == 1 else y


class Whole(nn.Module):
    """A stem, blocks in one list, and all of it perhaps inside of another module."""

    def __init__(self, deep):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.blocks = nn.Sequential(*(Inverted(4, stride) for stride in (1, 1, 2, 1, 2)))
        self.fc = nn.Linear(4, 2)
        if deep:
            self.net = Whole(deep=False)
            del self.stem, self.blocks, self.fc

    def forward(self, x):
        return (
            self.net(x)
            if hasattr(self, "net")
            else self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))
        )


class Perceptron(nn.Module):
    """Linear layers, functions between them."""

    def __init__(self, hidden):
        super().__init__()
        for number in range(hidden):
            self.add_module(f"fc{number}", nn.Linear(192, 192))
        self.last = nn.Linear(192, 2)

    def forward(self, x):
        x = x.flatten(1)
        for layer in list(self.children())[:-1]:
            x = layer(x).relu()
        return self.last(x)


def plain(*layers, features):
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(features, 2))


def conv(before, after, stride=1, padding=1):
    return nn.Conv2d(before, after, 3, stride, padding)


LENET = (
    nn.Conv2d(3, 6, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Conv2d(6, 16, 5),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Flatten(),
)
BY_HAND = [
    (lambda: plain(conv(3, 4), nn.ReLU(), conv(4, 4, 2), nn.ReLU(), features=4), 32, ["1", "3"]),
    # Nothing shrinks: the quarters of the blocks, with what belongs to them.
    (
        lambda: plain(conv(3, 4), nn.BatchNorm2d(4), nn.ReLU(), conv(4, 4), nn.ReLU(), features=4),
        32,
        ["2", "4"],
    ),
    (lambda: Perceptron(8), 8, ["relu_1", "relu_3", "relu_5", "relu_7"]),
    (lambda: Perceptron(3), 8, ["relu", "relu_1", "relu_2"]),
    (lambda: nn.Sequential(*LENET, nn.Linear(400, 9), nn.ReLU(), nn.Linear(9, 2)), 32, ["1", "4"]),
    # A block that widens the map before it shrinks it belongs to the next stage, in whatever list
    # it stands.
    (lambda: Whole(deep=False), 32, ["blocks.1", "blocks.3", "blocks.4"]),
    (lambda: Whole(deep=True), 32, ["net.blocks.1", "net.blocks.3", "net.blocks.4"]),
    # Odd sides; a map of one pixel is a map where it was halved to that.
    (lambda: plain(conv(3, 4), nn.ReLU(), conv(4, 4, 2, 0), nn.ReLU(), features=4), 15, ["1", "3"]),
    (
        lambda: plain(
            conv(3, 4, 2), nn.ReLU(), conv(4, 4, 2), nn.ReLU(), conv(4, 4, 2), features=4
        ),
        8,
        ["1", "3", "4"],
    ),
]


@pytest.mark.parametrize(("make", "size", "names"), BY_HAND)
def test_stages_of_nets_by_hand(make, size, names):
    assert stages(make(), size) == names


@pytest.mark.parametrize(
    ("arch", "size", "names"),
    [
        ("resnet20", 32, ["layer1", "layer2", "layer3"]),
        ("resnet56", 32, ["layer1", "layer2", "layer3"]),
        ("resnet18", 32, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("resnet50", 64, ["relu", "layer1", "layer2", "layer3", "layer4"]),
        # The last BatchNorm and ReLU stand behind its groups
        ("wrn_16_1", 32, ["group0", "group1", "relu"]),
        ("vgg11_bn", 32, ["features.2", "features.6", "features.13", "features.20", "features.27"]),
        ("alexnet", 64, ["features.1", "features.4", "features.11"]),
        (
            "mobilenet_v2",
            64,
            ["features.1", "features.3", "features.6", "features.13", "features.18"],
        ),
        (
            "densenet121",
            64,
            ["features.relu0", *(f"features.denseblock{number}" for number in (1, 2, 3)), "relu"],
        ),
        ("shufflenet_v2_x0_5", 64, ["conv1", "stage2", "stage3", "conv5"]),
        (
            "regnet_x_400mf",
            64,
            ["stem", *(f"trunk_output.block{number}" for number in (1, 2, 3, 4))],
        ),
        ("convnext_tiny", 64, ["features.1", "features.3", "features.5", "features.7"]),
    ],
)
def test_stages_of_known_nets_are_their_modules(arch, size, names):
    model = build(arch, 2).eval()
    shapes = cuts(model, size)
    ends = stages_of(model, shapes)
    assert list(ends.values()) == names
    images = torch.rand(1, 3, size, size)
    for name in names[-2:]:  # each name means the cut that it stands for
        head, tail = split(model, name)
        with torch.no_grad():
            feature = head(images)
            torch.testing.assert_close(tail(feature), model(images))
        cut = next(cut for cut, readable in ends.items() if readable == name)
        assert tuple(feature.shape[1:]) == shapes[cut]


def test_a_transformer_ends_its_stages_at_the_quarters_of_its_blocks():
    model = torchvision.models.VisionTransformer(16, 8, 12, 2, 8, 16, num_classes=2)
    names = [f"encoder.layers.encoder_layer_{number}" for number in (2, 5, 8, 11)]
    assert stages(model, 16) == names


@pytest.mark.parametrize(
    ("layer", "place"),
    [
        ("1", (1, 1)),
        ("0", (1, 0.5)),
        ("3", (0, 1)),
        ("2", (0, 0.5)),
        ("6", None),
        ("7", None),
    ],
)
def test_a_layer_has_a_place(layer, place):
    model = plain(conv(3, 4), nn.ReLU(), conv(4, 4, 2), nn.ReLU(), features=4)
    assert place_of(model, cuts(model, 32), layer) == place
