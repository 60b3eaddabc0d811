"""Nets as other people write them:
every usual way to take the number of classes and to give the logits.
"""

from collections import namedtuple

import torch
from torch import Tensor, nn

Outputs = namedtuple("Outputs", "features logits")


class Plain(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8, num_classes)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu().mean((2, 3))

    def forward(self, x: Tensor):
        return self.fc(self.features(x))


def plain(num_classes):
    return Plain(num_classes)


def nclass(depth=20, nclass=100):
    return Plain(nclass)


def n_classes_only(*, n_classes):
    return Plain(n_classes)


def positional(n, /):
    return Plain(n)


def short(nc):
    return Plain(nc)


def keywords(pretrained=False, **kwargs):
    return Plain(**kwargs)


def class_num_and_more(class_num, width=1.0, classifier=None):
    return Plain(class_num)


def ten():
    return Plain(10)


def ten_keywords(**kwargs):
    return NoClasses(**kwargs)


class NoClasses(Plain):
    def __init__(self, width: int = 1) -> None:
        super().__init__(10)


class Many(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(10)


def wrapped(num_classes):
    return nn.DataParallel(Plain(num_classes))


def compiled(num_classes):
    return torch.compile(Plain(num_classes))


def scripted(num_classes):
    layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Flatten(2), Mean(), nn.Linear(8, num_classes)
    return torch.jit.script(nn.Sequential(*layers))


class Mean(nn.Module):
    def forward(self, x: Tensor):
        return x.mean(2)


class TupleInTraining(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.auxiliary = nn.Linear(8, num_classes)

    def forward(self, x: Tensor):
        features = self.features(x)
        return (self.fc(features), self.auxiliary(features)) if self.training else self.fc(features)


class AlwaysTuple(Plain):
    def forward(self, x: Tensor):
        features = self.features(x)
        return self.fc(features), features


class FeaturesFirst(Plain):
    def forward(self, x: Tensor):
        features = self.features(x)
        return features, self.fc(features)


class Dictionary(Plain):
    def forward(self, x: Tensor):
        features = self.features(x)
        return {"features": features, "logits": self.fc(features)}


class NamedTuple(Plain):
    def forward(self, x: Tensor):
        features = self.features(x)
        return Outputs(features, self.fc(features))


class Nested(Plain):
    def forward(self, x: Tensor):
        return {"out": [super().forward(x)], "loss": None}


class AsMaps(Plain):
    def forward(self, x: Tensor):
        return super().forward(x)[:, :, None, None]


class MapsOfLogits(Plain):
    def forward(self, x: Tensor):
        return super().forward(x)[:, :, None, None].expand(-1, -1, *x.shape[2:])


class Grey(Plain):
    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        self.conv = nn.Conv2d(1, 8, 3, padding=1)


class Large(Plain):
    def features(self, x: Tensor) -> Tensor:
        return super().features(nn.functional.max_pool2d(x, 16))


class ConvolutionOfTen(Plain):
    def __init__(self) -> None:
        super().__init__(10)
        self.fc = nn.Conv2d(8, 10, 1)

    def forward(self, x: Tensor):
        return self.fc(self.features(x)[:, :, None, None])


class TiedToItsInput(Plain):
    def __init__(self) -> None:
        super().__init__(10)
        self.back = nn.Linear(8, 10, bias=False)
        self.back.weight = self.fc.weight


class HeadFirst(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(8, num_classes)
        self.conv = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, x: Tensor):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class Lazy(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = (
            nn.LazyConv2d(8, 3),
            nn.LazyBatchNorm2d(),
            nn.LazyLinear(num_classes),
        )

    def forward(self, x: Tensor):
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))


class NoMeta(nn.Module):
    """Asks for a value, which images without values do not have."""

    def forward(self, x: Tensor):
        return x if float(x.sum()) < 1e9 else -x


def large(num_classes):
    return Large(num_classes)


def grey(num_classes):
    return Grey(num_classes)


def maps_of_logits(num_classes):
    return MapsOfLogits(num_classes)


def tuple_in_training(num_classes):
    return TupleInTraining(num_classes)


def always_tuple(num_classes):
    return AlwaysTuple(num_classes)


def features_first(num_classes):
    return FeaturesFirst(num_classes)


def dictionary(num_classes):
    return Dictionary(num_classes)


def named_tuple(num_classes):
    return NamedTuple(num_classes)


def nested(num_classes):
    return Nested(num_classes)


def as_maps(num_classes):
    return AsMaps(num_classes)


def convolution_of_ten():
    return ConvolutionOfTen()


def tied_to_its_input():
    return TiedToItsInput()


def head_first(num_classes):
    return HeadFirst(num_classes)


def lazy(num_classes):
    return Lazy(num_classes)
