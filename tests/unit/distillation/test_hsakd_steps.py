import io
import os

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

from distillation import hsakd_steps
from distillation.hsakd import online_terms, rotate, student_terms, teacher_terms
from models.small.auxiliary import build_with_heads
from tests.unit.photos import real_data
from utils.prepare.arrays import CIFAR100_PARTS, read_cifar100
from utils.prepare.unpacking import unpacked

IMAGES = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
TARGETS, INDICES = torch.tensor([1, 0]), torch.tensor([5, 7])


class Branched(nn.Module):
    """Two classes, one branch; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.z, self.a = nn.Linear(48, 2), nn.Linear(48, 8)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return self.z(images.flatten(1)), [self.a(images.flatten(1))]


class Both(nn.Module):
    def __init__(self):
        super().__init__()
        self.net1, self.net2 = Branched(), Branched()

    def forward(self, images):
        return self.net1(images), self.net2(images)


def prepared(images, indices):
    assert indices is INDICES
    return images.float() / 96


def upright(logits, targets):
    assert len(logits) == len(targets) == 2
    return {"top1_prec": 100.0 * (logits.argmax(1) == targets).float().mean()}


def step(function, net, **by_name):
    return function(
        net, IMAGES, TARGETS, INDICES, preprocess=prepared, accuracies=upright, **by_name
    )


ROTATED = rotate(prepared(IMAGES, INDICES))


def total(terms):
    return torch.stack(list(terms.values())).sum()


def test_teach():
    net = Branched()
    loss, metrics = step(hsakd_steps.teach, net)
    assert torch.equal(net.seen[0], ROTATED)
    torch.testing.assert_close(loss, total(teacher_terms(net(ROTATED), TARGETS)))
    assert metrics.keys() == {"ce_aux1", "ce_class", "top1_prec", "ss_aux1", "class_aux1"}


def test_distil():
    net, teacher = Branched(), Branched()
    loss, _ = step(hsakd_steps.distil, net, teacher=teacher, tau=2.0)
    torch.testing.assert_close(
        loss, total(student_terms(net(ROTATED), teacher(ROTATED), TARGETS, 2.0))
    )
    assert torch.equal(teacher.seen[0], net.seen[0])
    loss.backward()
    assert teacher.z.weight.grad is None and net.a.weight.grad is not None


def test_teach_each_other():
    pair = Both()
    loss, metrics = step(hsakd_steps.teach_each_other, pair, tau=2.0)
    torch.testing.assert_close(loss, total(online_terms(*pair(ROTATED), TARGETS, 2.0)))
    assert {"net1_top1_prec", "net2_ss_aux1"} <= metrics.keys()


@pytest.mark.parametrize("kind", ["one", "both"])
def test_measure_gives_the_cross_entropy_of_upright_images(kind):
    net = Branched() if kind == "one" else Both()
    loss, metrics = step(hsakd_steps.measure if kind == "one" else hsakd_steps.measure_both, net)
    nets = [net] if kind == "one" else [net.net1, net.net2]
    images = prepared(IMAGES, INDICES)
    expected = sum(nn.functional.cross_entropy(member(images)[0], TARGETS) for member in nets)
    torch.testing.assert_close(loss, expected)
    assert len(metrics) == 3 * len(nets)


ARCHS = [
    "wrn_16_2",
    "wrn_40_1",
    "wrn_40_2",
    "resnet20",
    "resnet56",
    "resnet8x4",
    "resnet32x4",
    "ResNet50",
    "vgg13_bn",
]
ARCHS += [
    "ShuffleV1",
    "ShuffleV2",
    "mobilenetV2",
    "resnet18_imagenet",
    "resnet34_imagenet",
    "resnet50_imagenet",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two real images of the archive where there is one,
    of its classes 2 and 0; else random ones.
    """
    if "KC_REAL_DATA" not in os.environ:
        return torch.randint(
            256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
    scratch = tmp_path_factory.mktemp("cifar") / "scratch"
    with unpacked([real_data() / "CIFAR100_mini"], CIFAR100_PARTS, scratch) as folders:
        files = read_cifar100(folders, 3).files
    names = [
        next(name for name in files if name.startswith(f"train/0{label}_")) for label in (2, 0)
    ]
    return torch.stack([pil_to_tensor(Image.open(io.BytesIO(files[name]()))) for name in names])


@pytest.mark.parametrize("arch", ARCHS)
def test_one_step_moves_every_weight_of_every_architecture(arch, images):
    net = build_with_heads(f"{arch}_aux", 3, "hsakd")
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    loss, _ = hsakd_steps.teach(
        net,
        images,
        torch.tensor([2, 0]),
        INDICES,
        preprocess=lambda pixels, _: pixels.float() / 128 - 1,
        accuracies=lambda *_: {},
    )
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert [
        name for name, weight in net.named_parameters() if torch.equal(weight, before[name])
    ] == []
