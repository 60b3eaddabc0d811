"""What people write in a forward pass: each of these is cut right,
or refused by the line that is in the way.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.split import cuts, split, tap
from tests.mistakes import check_some_line, refused


class Base(nn.Module):
    """Two convolutions and a classifier; what is between them is each test's own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn, self.conv2 = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3),
        )
        self.act, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(4, 5)
        self.register_buffer("scale", torch.linspace(1, 2, 4))

    def forward(self, x):
        return self.last(self.between(self.conv1(x)))

    def between(self, x):
        return x

    def last(self, x):
        return self.fc(self.conv2(x).mean((2, 3)))


class Statement(Base):
    def between(self, x):
        self.act(x)
        return x


class StatementFunction(Base):
    def between(self, x):
        F.relu_(x)
        return x


class ThroughViews(Base):
    def between(self, x):
        even, odd = x[:, ::2], x[:, 1::2]
        even.add_(1)
        odd.mul_(even)
        return x


class Masked(Base):
    def between(self, x):
        x[x < 0] = 0.5
        x[:, 0] = 2
        return x * 2


class ChangesImages(Base):
    def forward(self, x):
        x.sub_(0.5)
        return super().forward(x)


class BatchSize(Base):
    def forward(self, x):
        bs = x.size(0)
        x = self.conv2(self.between(self.conv1(x)))
        x = x + torch.zeros(bs, 4, 1, 1, device=x.device)
        return self.fc(x.view(bs, 4, -1).mean(2))


class Len(Base):
    def last(self, x):
        return self.fc(
            self.conv2(x)
            .mean((2, 3))
            .view(len(x), -1)
            .reshape(len(x) * 2, 2)
            .view(int(x.shape[0]), 4)
        )


class Shapes(Base):
    def forward(self, x):
        _, C, H, W = x.shape
        assert isinstance(x, torch.Tensor) and C == 3 and H % 2 == 0, "an even size"
        torch._assert(H == W, "a square")
        x = self.conv1(x)
        for _ in range(H // 4):
            x = x + 0.1
        table = torch.arange(H * W, device=x.device).view(1, 1, H, W) / (H * W) + torch.zeros_like(
            x[:, :1]
        )
        return self.last(x + table)


class FunctionalDropout(Base):
    def last(self, x):
        return self.fc(F.dropout(self.conv2(x), 0.5, self.training).mean((2, 3)))


class CalledTwice(Base):
    def between(self, x):
        return self.bn(self.bn(x).relu())


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.conv(x), {"twice": x * 2, "size": x.shape[2]}


class Tuples(Base):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([Inner()])

    def between(self, x):
        y, more = self.inner[0](x)
        return y + more["twice"] * more["size"]


class Caches(Base):
    """Keeps a table from one pass to the next."""

    table = None

    def between(self, x):
        if self.table is None or len(self.table) != x.shape[2]:
            self.table = torch.linspace(0, 1, x.shape[2])
        return x + self.table[:, None]


class Plain(Base):
    def __init__(self):
        super().__init__()
        self.tables = [torch.ones(4, 1, 1), torch.full((4, 1, 1), 2.0)]

    def between(self, x):
        return x * self.tables[0] + self.tables[1] * self.scale[:, None, None]


class Transposed(Base):
    def between(self, x):
        return F.relu(x.permute(0, 2, 3, 1) * self.scale).permute(0, 3, 1, 2).contiguous()


class DropAndSkip(Base):
    def between(self, x):
        return x + self.conv1(x[:, :3]) if self.scale is None else x + self.drop(x)


CUT = [
    (Statement, "conv1"),
    (Statement, "act"),
    (StatementFunction, "conv1"),
    (ThroughViews, "conv1"),
    (Masked, "conv1"),
    (Masked, "setitem_1"),
    (ChangesImages, "conv1"),
    (BatchSize, "conv1"),
    (BatchSize, "conv2"),
    (Len, "conv1"),
    (Len, "conv2"),
    (Shapes, "conv1"),
    (Shapes, "conv2"),
    (FunctionalDropout, "conv1"),
    (CalledTwice, "bn"),
    (CalledTwice, "bn_1"),
    (Tuples, "conv1"),
    (Caches, "conv1"),
    (Plain, "conv1"),
    (Transposed, "relu"),
    (DropAndSkip, "conv1"),
]


@pytest.mark.parametrize(
    ("kind", "layer"), CUT, ids=[f"{kind.__name__}-{layer}" for kind, layer in CUT]
)
def test_a_cut_net_is_the_net(kind, layer):
    model = kind().eval()
    before = copy.deepcopy(model.state_dict())
    head, tail = split(model, layer, 16)
    tapped = tap(model, [layer], 16)
    assert vars(model).keys() == vars(kind()).keys()
    for count in (1, 3):
        images = torch.randn(count, 3, 16, 16)
        with torch.no_grad():
            expected = model(images.clone())
            kept = images.clone()
            feature = head(images)
            assert torch.equal(images, kept)
            given = feature.clone()
            assert torch.equal(tail(feature), expected)
            assert torch.equal(feature, given)
            again, logits = tapped(images)
            assert torch.equal(again, feature) and torch.equal(logits, expected)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {**head.state_dict(), **tail.state_dict()}.keys() <= before.keys()


def hooked(model, layer, images):
    """What a forward hook sees in the plain net, the first time."""
    seen = []
    with (
        torch.no_grad(),
        model.get_submodule(layer).register_forward_hook(
            lambda *given: seen.append(given[2].clone())
        ),
    ):
        model(images.clone())
    return seen[0]


@pytest.mark.parametrize(
    ("kind", "layer"),
    [
        (Statement, "conv1"),
        (Statement, "act"),
        (ThroughViews, "conv1"),
        (Masked, "conv1"),
        (CalledTwice, "bn"),
    ],
)
def test_a_module_means_what_a_hook_sees(kind, layer):
    model, images = kind().eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(split(model, layer)[0](images), hooked(model, layer, images))


def test_a_tail_in_training_mode_drops_where_the_model_does():
    model = DropAndSkip().train()
    head, tail = split(model, "conv1")
    feature = head(torch.randn(2, 3, 16, 16)).detach()
    torch.manual_seed(1)
    expected = model.last(feature + model.drop(feature))
    torch.manual_seed(1)
    assert torch.equal(tail(feature), expected)


def test_sizes_from_before_the_cut_hold_for_their_images_alone():
    head, tail = split(BatchSize().eval(), "conv1", 16)
    images = torch.randn(2, 3, 24, 24)
    with torch.no_grad():
        assert tail(head(images)).shape == (2, 5)  # only the number of images comes from before
        head, tail = split(Shapes().eval(), "conv1", 16)
        with refused((4, 16, 16), (4, 24, 24)):
            tail(head(images))
        head, _ = split(Shapes().eval(), "conv2", 16)
        with refused((3, 16, 16), (3, 24, 24)):
            head(images)


class OnValues(Base):
    def between(self, x):
        if x.mean() > 0:
            x = x * 2
        return x


class OnWeights(Base):
    def between(self, x):
        return x * self.conv1.weight.sum().item()


class OnBatch(Base):
    def between(self, x):
        return torch.cat([x[i : i + 1] for i in range(len(x))])


class Squared(Base):
    def between(self, x):
        return x * int(x.shape[0]) ** 2


class OfPositions(Base):
    def between(self, x):
        return x[x > 0].view(1, -1)


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        (OnValues, "if x.mean() > 0:"),
        (OnWeights, "self.conv1.weight.sum().item()"),
        (OnBatch, "for i in range(len(x))"),
        (Squared, "int(x.shape[0]) ** 2"),
    ],
)
def test_what_depends_on_values_is_refused_by_its_line(kind, line):
    with refused(kind.__name__, "test_cut_oddities.py", line):
        split(kind(), "conv1")


class AlwaysDrops(Base):
    def last(self, x):
        return self.fc(F.dropout(self.conv2(x), 0.5).mean((2, 3)))


def test_a_dropout_that_is_always_on_is_off_and_said(capsys):
    head, _ = split(AlwaysDrops().eval(), "dropout")
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(head(images), head(images))
    check_some_line(capsys.readouterr().out, "dropout")


def test_a_module_that_gives_several_values_is_no_feature():
    with refused("inner.0", "--layer"):
        split(Tuples(), "inner.0")


def test_what_flows_around_is_named():
    with refused("inner.0.conv", "conv1", "add"):
        split(Tuples(), "inner.0.conv")


class Windows(Base):
    def between(self, x):
        parts = x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 4, 4, 4)
        parts = self.act(parts)
        return parts.view(len(x), -1, 4, 4, 4).mean(1)


def test_windows_of_images_are_no_feature():
    model = Windows().eval()
    with refused("act", (32, 4, 4, 4), "2"):
        split(model, "act", 16)
    assert "act" not in cuts(model, 16) and "conv1" in cuts(model, 16)
