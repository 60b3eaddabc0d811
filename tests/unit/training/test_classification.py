from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from utils.data.batches import Preprocessing
from utils.data.loaders import make_loader
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.training.classification import classify, classify_features, known_hits, validate
from utils.training.losses import classification_loss
from utils.training.metrics import accuracies_percent


class Numbers(Dataset):
    """Samples (value, index): batches (values (n,), indices (n,))."""

    def __init__(self, values):
        self.values = torch.tensor(values)

    def __len__(self):
        return len(self.values)

    def __getitems__(self, indices):
        return self.values[indices], torch.tensor(indices)


def mean_value(_net, values, _indices):
    return values.mean(), {"square": values.square().mean()}


def loaders(**parts):
    """Batches of two, so that a part of three ends with a ragged one."""
    return {name: make_loader(Numbers(values), 2) for name, values in parts.items()}


def test_parts_count_by_their_sizes(cpu):
    """Parts [1, 2, 3] and [10]: the mean is 4, the mean of the parts' means would be 6."""
    parts = loaders(dogs=[1.0, 2.0, 3.0], birds=[10.0])
    assert validate(nn.Identity(), parts, cpu, mean_value) == pytest.approx(
        {
            "val_Loss": 4.0,
            "val_dogs_Loss": 2.0,
            "val_birds_Loss": 10.0,
            "val_square": 114 / 4,
            "val_dogs_square": 14 / 3,
            "val_birds_square": 100.0,
        }
    )


def test_the_only_part_of_an_unmixed_set_has_no_name(cpu):
    metrics = validate(
        nn.Identity(), {"": make_loader(Numbers([1.0, 2.0, 3.0]), 2)}, cpu, mean_value
    )
    assert metrics == pytest.approx({"val_Loss": 2.0, "val_square": 14 / 3})


def test_a_classifier_is_validated_on_photos(cpu):
    """A grey of 51 is darker than ImageNet's mean: least of all in blue, which is class 2."""

    class Photos(Numbers):
        def __getitems__(self, indices):
            return torch.full(
                (len(indices), 3, 2, 2), 51, dtype=torch.uint8
            ), *super().__getitems__(indices)

    class ChannelMeans(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    net = ChannelMeans().train()
    step = partial(classify, preprocess=Preprocessing(*NORMALISATIONS["imagenet"]))
    metrics = validate(net, {"": make_loader(Photos([2, 2, 2, 0, 1]), 2)}, cpu, step)
    assert not net.training
    logits = torch.tensor(
        [(0.2 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (0.2 - 0.406) / 0.225]
    ).expand(5, 3)
    targets = torch.tensor([2, 2, 2, 0, 1])
    expected = {"Loss": classification_loss(logits, targets), **accuracies_percent(logits, targets)}
    assert metrics == pytest.approx(
        {f"val_{name}": value.mean().item() for name, value in expected.items()}
    )
    assert 60 in metrics.values()


def labelled(_net, values, indices):
    """Right where the value is positive; the batch's labels are not looked at."""
    return values.mean(), {"top1_prec": 100.0 * (values > 0)}


def test_hits_are_noted_by_the_number_of_the_image(cpu):
    data = Numbers([1.0, -1.0, 2.0, -2.0, 3.0])
    parts = {
        name: make_loader(Subset(data, rows), 2)
        for name, rows in (("odd", [1, 3]), ("even", [4, 2, 0]))
    }
    hits = torch.ones(5, dtype=torch.uint8)
    metrics = validate(nn.Identity(), parts, cpu, labelled, hits)
    assert hits.tolist() == [1, 0, 1, 0, 1]
    assert metrics["val_top1_prec"] == 100 * hits.double().mean() == 60
    none = torch.zeros(0, dtype=torch.uint8)
    assert validate(nn.Identity(), parts, cpu, labelled, none) == metrics and not len(none)


class Images(list):
    multi_label = False


def test_what_a_checkpoint_knows_of_these_images_is_kept():
    images = Images([0, 0, 0])
    known = torch.tensor([1, 0, 1], dtype=torch.uint8)
    found = known_hits({"hits": known}, images)
    assert found.tolist() == [1, 0, 1] and found is not known
    for state in ({}, {"hits": known[:2]}):  # of other images
        assert known_hits(state, images).tolist() == [0, 0, 0]
    images.multi_label = True
    assert known_hits({"hits": known}, images).shape == (0,)


@pytest.mark.parametrize("several", [False, True])
def test_a_batch_is_classified_by_its_normalised_pixels(several):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 4))
    pixels = torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8)
    targets = (torch.rand(5, 4) > 0.5).float() if several else torch.tensor([0, 3, 1, 1, 2])
    logits = net(normalise(pixels, *NORMALISATIONS["half"]))
    preprocess = Preprocessing(*NORMALISATIONS["half"])
    loss, metrics = classify(net, pixels, targets, torch.arange(5), preprocess=preprocess)
    assert loss.requires_grad and torch.equal(loss, classification_loss(logits, targets))
    expected = accuracies_percent(logits, targets)
    assert metrics.keys() == expected.keys()
    assert all(torch.equal(metrics[name], value) for name, value in expected.items())


def test_a_fixed_network_may_stand_before_the_net():
    torch.manual_seed(0)
    frozen = nn.Sequential(nn.Flatten(), nn.Linear(3 * 2 * 2, 6)).requires_grad_(False)
    net = nn.Linear(6, 4)
    pixels, targets = (
        torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8),
        torch.tensor([0, 3, 1, 1, 2]),
    )
    preprocess = Preprocessing(*NORMALISATIONS["half"])
    loss, _ = classify(net, pixels, targets, torch.arange(5), preprocess=preprocess, frozen=frozen)
    logits = net(frozen(normalise(pixels, *NORMALISATIONS["half"])))
    assert torch.equal(loss, classification_loss(logits, targets))


def test_features_are_taken_as_they_are():
    net = nn.Linear(6, 4)
    features, targets = torch.randn(3, 6), torch.tensor([2, 0, 1])
    loss, _ = classify_features(net, features, targets, torch.arange(3))
    assert torch.equal(loss, classification_loss(net(features), targets))
