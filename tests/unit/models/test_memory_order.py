"""Training with channels last: the same numbers, the same files, and only where the net takes it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from models.memory_order import order_channels_last
from utils.data.batches import Preprocessing
from utils.data.loaders import make_loader
from utils.normalisation import NORMALISATIONS
from utils.runtime import start
from utils.training.classification import classify
from utils.training.engine import Fit, make_optimizer, train_one_epoch

SIZE = 16
CPU = torch.device("cpu")


class Noise(Dataset):
    """80 images of noise in four classes."""

    def __len__(self):
        return 80

    def __getitems__(self, indices):
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (80, 3, SIZE, SIZE), generator=generator).byte()
        index = torch.as_tensor(indices)
        return pixels[index], index % 4, index


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * 6 * 6, 4),
    )


class Viewing(nn.Module):
    """Views the maps of a convolution as a row, as many scripts do."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 4)

    def forward(self, x):
        return self.fc(self.conv(x).view(len(x), -1))


def is_last(weight):
    return weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


def new_fit(model, optim):
    optimizer = make_optimizer(optim, model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    runtime = start([], None, 0)
    return Fit(model, model, optimizer, runtime.grad_scaler(), runtime)


def train(fit, epoch):
    loader = make_loader(Noise(), 8, shuffle=True)
    step = partial(classify, preprocess=Preprocessing(*NORMALISATIONS["imagenet"]))
    return train_one_epoch(fit, loader, step, epoch)["Loss"]


@pytest.mark.parametrize("optim", ["SGD", "Adam"])
def test_an_epochs_losses_are_the_same_in_either_order(optim):
    models = [small_net(), small_net()]
    assert order_channels_last(models[1], SIZE, CPU)
    assert is_last(models[1][0].weight) and not is_last(models[0][0].weight)
    of_first, of_last = (
        [train(fit, epoch) for epoch in range(2)] for fit in (new_fit(one, optim) for one in models)
    )
    assert of_last == pytest.approx(of_first, rel=1e-5)


@pytest.mark.parametrize("optim", ["SGD", "Adam"])
@pytest.mark.parametrize("was_last", [True, False])
def test_a_fit_goes_on_in_its_order_whatever_the_file_has(optim, was_last, tmp_path):
    model = small_net()
    if was_last:
        order_channels_last(model, SIZE, CPU)
    fit = new_fit(model, optim)
    train(fit, 0)
    state = copy.deepcopy(fit.state(1))
    moments = [value for of in state["optimizer"]["state"].values() for value in of.values()]
    assert not any(is_last(value) for value in (*state["state_dict"].values(), *moments))
    expected = train(fit, 1)
    resumed = small_net()
    resumed.load_state_dict(state["state_dict"])
    assert order_channels_last(resumed, SIZE, CPU)
    going_on = new_fit(resumed, optim)
    going_on.restore(state, tmp_path)
    loss = train(going_on, 1)
    assert loss == expected if was_last else loss == pytest.approx(expected, rel=1e-5)


def test_a_net_that_views_its_maps_keeps_its_order():
    model = Viewing()
    before = copy.deepcopy(model.state_dict())
    assert not order_channels_last(model, SIZE, CPU)
    assert not is_last(model.conv.weight) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_another_device_and_a_net_without_convolutions_keep_theirs():
    model = small_net()
    assert not order_channels_last(model, SIZE, torch.device("cuda"))
    assert not is_last(model[0].weight)
    assert not order_channels_last(nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), SIZE, CPU)


def test_statistics_and_random_numbers_stay_as_they_are():
    model = small_net()
    model.append(nn.Dropout())
    before, drawn = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    order_channels_last(model, SIZE, CPU)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
