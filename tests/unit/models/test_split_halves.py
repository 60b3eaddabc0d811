"""What the halves of a split network share with it: weights, buffers, modes and statistics."""

import copy

import torch
import torchvision
from torch import nn

from models.classifiers import fix_batch_norm
from models.split import feature_shape, split
from tests.unit.models.cheap import untrained


def test_the_halves_share_the_models_weights():
    model = untrained("resnet18").eval()
    head, tail = split(model, "layer3.1.add")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = tail(head(images))
        model.conv1.weight.mul_(2)
        model.fc.bias.add_(1)
        after = tail(head(images))
        assert torch.equal(after, model(images))
    assert not torch.equal(after, before)
    assert set(tail.state_dict()) <= set(model.state_dict())


def test_tracing_leaves_every_modules_mode():
    model = untrained("alexnet")
    model.train()
    model.classifier.eval()
    before = {name: module.training for name, module in model.named_modules()}
    head, _ = split(model, "features.8")
    assert feature_shape(head, 64) == (256, 3, 3)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert head.training


def test_train_and_eval_of_a_half_reach_its_dropout_and_batch_norm():
    model = untrained("mobilenet_v2").eval()
    head, tail = split(model, "features.7")
    with torch.no_grad():
        feature = head(torch.randn(2, 3, 64, 64))
        assert torch.equal(tail(feature), tail(feature))
        tail.train()
        assert not torch.equal(tail(feature), tail(feature))
    assert model.classifier[0].training and model.features[18][1].training
    assert not model.features[0][1].training
    tail.eval()
    assert not model.classifier[0].training


def test_functional_dropout_is_never_active_in_a_half():
    model = torchvision.models.DenseNet(4, (1, 1, 1, 1), 8, drop_rate=0.5, num_classes=5).train()
    head, tail = split(model, "features.transition2")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(tail.eval()(head.eval()(images)), model.eval()(images))


class Shifted(nn.Module):
    """Adds twice its buffer to the images."""

    shift: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.ones(1))
        self.flatten = nn.Flatten()

    def forward(self, x):
        return self.flatten(x + self.shift * 2)


def test_buffers_are_read_when_a_half_runs():
    model = Shifted()
    head, _ = split(model, "flatten")
    model.shift.fill_(5)
    assert torch.equal(head(torch.zeros(1, 3, 2, 2)), torch.full((1, 12), 10.0))
    assert list(vars(model)) == list(vars(Shifted()))


def test_only_the_tail_gets_gradients(resnet18):
    model = copy.deepcopy(resnet18)
    head, tail = split(model, "layer4.1.add")
    with torch.no_grad():
        feature = head(torch.randn(2, 3, 64, 64))
    tail(feature.requires_grad_()).sum().backward()
    assert feature.grad is not None and feature.grad.shape == feature.shape
    assert {name for name, parameter in model.named_parameters() if parameter.grad is not None} == {
        "fc.weight",
        "fc.bias",
    }


def test_a_model_with_fixed_batch_norm_splits(resnet18):
    model = copy.deepcopy(resnet18)
    fix_batch_norm(model)
    head, tail = split(model, "layer3.1.add")
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images)
        head.train()
        assert torch.equal(tail(head(images)), expected)


def test_measuring_a_shape_leaves_running_statistics():
    model = untrained("resnet18").train()
    before = copy.deepcopy(model.state_dict())
    assert feature_shape(split(model, "layer4.1.add")[0], 32) == (512, 1, 1)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
