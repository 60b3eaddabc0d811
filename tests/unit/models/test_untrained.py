import torch
from torch import nn

from models.classifiers import build
from models.untrained import set_statistics


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5))


def test_statistics_are_those_of_the_images():
    model, images = net(), 3 * torch.randn(60, 3, 6, 6) + 2
    set_statistics(model, images.split(20))
    values = model[0](images).transpose(0, 1).flatten(1)
    assert torch.allclose(model[1].running_mean, values.mean(1), atol=1e-5)
    assert torch.allclose(model[1].running_var, values.var(1), rtol=0.05)
    assert not any(module.training for module in model.modules())
    assert model[1].momentum == 0.1


def test_what_dropout_draws_does_not_matter():
    images, found = torch.randn(8, 3, 6, 6), []
    for seed in (1, 2):
        model = nn.Sequential(nn.Dropout(0.5), net())
        torch.manual_seed(seed)
        set_statistics(model, [images])
        found.append(model(images))
    assert torch.equal(*found)


def test_a_second_pass_changes_nothing():
    model, images = net(), torch.randn(20, 3, 6, 6)
    set_statistics(model, [images])
    first = model(images)
    set_statistics(model, [images])
    assert torch.equal(model(images), first)


def test_a_last_batch_of_one_image_is_passed_over():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4))
    set_statistics(model, torch.randn(9, 3, 2, 2).split(4))
    assert model[2].num_batches_tracked == 2


def test_a_deep_net_keeps_its_activations():
    torch.manual_seed(0)
    model, images = build("resnet8", 10).eval(), torch.randn(64, 3, 32, 32)
    spread = [model(images).std()]
    set_statistics(model, [images])
    spread.append(model(images).std())
    assert spread[1] != spread[0] and torch.isfinite(spread[1])


def test_a_net_without_batch_norm_is_left_as_it_is():
    model = nn.Linear(3, 2)
    set_statistics(model, iter(lambda: 1 / 0, None))
    assert not model.training
