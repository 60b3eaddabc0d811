import pytest
import torch
from torch import nn

from tests.mistakes import refused
from utils.normalisation import (
    NORMALISATIONS,
    as_normalisation,
    normalisation_words,
    read_normalisation,
    recorded_normalisation,
)
from utils.pixels import FromPixels, normalise

SIX = "0.4914,0.4822,0.4465,0.2023,0.1994,0.201"


def test_a_name_and_six_numbers_are_read():
    assert read_normalisation("half") == ((0.5,) * 3, (0.5,) * 3)
    assert read_normalisation(SIX) == NORMALISATIONS["cifar10_per_image"]
    assert read_normalisation("[0.1, 0.2, 0.3, 1, 2e-1, .5]") == ((0.1, 0.2, 0.3), (1, 0.2, 0.5))


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_what_is_written_of_constants_is_read_as_the_same(name):
    constants = NORMALISATIONS[name]
    assert normalisation_words(constants) == name
    mean, std = constants
    others = (mean, (std[0] / 3, *std[1:]))
    assert read_normalisation(normalisation_words(others)) == others


@pytest.mark.parametrize(
    "text", ["cifr", "", "0.5", "0.5,0.5,0.5,0.5,0.5", "0.5,0.5,0.5,0.5,0.5,x", "nan,0,0,1,1,1"]
)
def test_anything_else_is_refused_with_what_is_expected(text):
    with refused("imagenet", "cifar10", repr(text), kind=ValueError):
        read_normalisation(text)


@pytest.mark.parametrize(
    "text", ["125.3,123,113.9,63,62.1,66.7", "0.5,0.5,0.5,0.5,0,0.5", "0.5,0.5,0.5,0.5,-1,0.5"]
)
def test_constants_of_other_units_are_refused(text):
    with refused("0 … 1", text, kind=ValueError):
        read_normalisation(text)


def test_records_of_all_kinds_say_the_same():
    constants = NORMALISATIONS["cifar10"]
    mean, std = constants
    assert recorded_normalisation({"normalisation": constants}) == constants
    # As JSON has it
    assert recorded_normalisation({"normalisation": [list(mean), list(std)]}) == constants
    assert (
        recorded_normalisation({"mean": list(mean), "std": list(std), "image_size": 32})
        == constants
    )
    for nothing in ({}, {"normalisation": None}, {"mean": [0.5]}, {"mean": [0.5], "std": [0.5]}):
        assert recorded_normalisation(nothing) is None
    assert as_normalisation([list(mean), list(std)]) == constants


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_net_from_pixels_gives_what_it_gives_of_normalised_images(name):
    torch.manual_seed(0)
    net = nn.Conv2d(3, 4, 3)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    before, reader = pixels.clone(), FromPixels(net, NORMALISATIONS[name])
    assert torch.equal(reader(pixels), net(normalise(pixels, *NORMALISATIONS[name])))
    assert torch.equal(pixels, before)
    assert reader.state_dict().keys() == {"net.weight", "net.bias"}  # the constants are no weights


def test_a_net_from_pixels_leaves_images_of_other_types_as_they_are():
    images = torch.rand(2, 3, 4, 4)
    before = images.clone()
    FromPixels(nn.Identity(), NORMALISATIONS["half"])(images)
    assert torch.equal(images, before)
