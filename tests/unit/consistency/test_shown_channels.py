"""The channels that a comparison shows: ranked by what is left of them over all held-out images."""

import numpy as np
import pytest
import torch

from consistency.compared import ComparedImages, ComparedLayer, ComparedNet
from consistency.comparison import Comparing, Effort, Work
from consistency.shown_channels import PICTURE, ShownChannels, channel_picture
from tests.unit import planted_comparison as planted
from utils.report.compare_page import render_compare

IMAGES, SIDE, CHANNELS = 120, 4, 8
LABELS = torch.arange(IMAGES) % 3


def layer(maps, name):
    half = IMAGES // 2
    return ComparedLayer(name, None, 1.0, tuple(maps.shape[1:]), maps[:half], maps[half:], name)


@pytest.fixture(scope="module")
def comparing():
    """B has A's channels in another order, with noise that grows with the channel's number."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=generator)
    noise = torch.linspace(0, 3, CHANNELS)[:, None, None]
    target = x.flip(1) + noise * torch.randn(x.shape, generator=generator)
    images = ComparedImages(*LABELS.split(IMAGES // 2), list("abc"), paths=["p.png"] * 60)
    logits = torch.randn(IMAGES // 2, 3, generator=generator)
    nets = [
        ComparedNet(label, label, {}, logits, [layer(maps, "conv")])
        for label, maps in zip("AB", (x, target))
    ]
    effort = Effort(shuffles=1, resamples=20, similar_permutations=0)
    compared = Comparing(*nets, images, effort, Work())
    compared.pairs()
    return compared, target


def test_channels_are_ranked_by_what_is_left_of_them(comparing):
    compared, target = comparing
    shown = compared.shown
    assert shown["channels"] == [0, 1, 2, 5, 6, 7]
    assert shown["instability"][0] < 0.3 and shown["instability"][-1] > 0.8
    number = IMAGES // 2 + shown["image"]
    assert torch.allclose(shown["target"], target[number, shown["channels"]], atol=1e-5)
    # Of the channel without noise the map itself is reconstructed.
    left = (shown["target"] - shown["predicted"])[0].square().mean()
    assert float(left) < 0.4 * float(shown["target"][0].square().mean())


def test_the_picture_names_the_channels_and_is_on_the_page(comparing, tmp_path):
    compared, _ = comparing
    photo = torch.zeros(3, 8, 8, dtype=torch.uint8)
    figures, (entry,) = compared.picture(lambda number: photo)
    figure = figures[PICTURE]
    rows = [axis.get_ylabel() for axis in figure.axes if "left" in axis.get_ylabel()]
    assert [row.splitlines()[0] for row in rows] == [
        f"channel {number}" for number in compared.shown["channels"]
    ]
    # B's channels are A's in the reverse order, and the best match says so.
    matches = [axis.get_xlabel() for axis in figure.axes if "r = " in axis.get_xlabel()]
    assert matches[0].startswith("channel 7, r = +")
    assert (
        entry["caption"].count("p.png") == 1
        and "Best, with the share that is left: 0 (0.1" in entry["alternative"]
    )
    figure.savefig(tmp_path / PICTURE)
    made = render_compare(planted.comparison() | {"pictures": [entry]}, tmp_path)
    assert entry["alternative"] in made.replace("&#39;", "'")


def test_without_maps_nothing_is_shown(comparing):
    compared, _ = comparing
    vectors = torch.randn(IMAGES, CHANNELS, 1, 1)
    flat = layer(vectors, "fc")
    flat.shape = (CHANNELS,)
    nets = [ComparedNet(label, label, {}, compared.nets[0].logits, [flat]) for label in "AB"]
    other = Comparing(*nets, compared.images, compared.effort, Work())
    other.pairs()
    assert other.picture() == ({}, [])


def test_variances_of_channels_are_those_of_all_images():
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(30, 4, 8, generator=generator) + 2
    predicted = target * torch.linspace(0.1, 1, 8)
    channels = ShownChannels(torch.zeros(8), (2, 2), 4)
    for some in (slice(0, 20), slice(20, 30)):
        channels(some, target[some], predicted[some])
    state = channels.state(torch.zeros(30, 3, 2, 2))
    assert state["channels"] == [7, 6, 5, 2, 1, 0]
    expected = (1 - np.linspace(0.1, 1, 8)[state["channels"]]) ** 2
    assert state["instability"] == pytest.approx(expected, abs=1e-6)
    assert torch.equal(state["target"][0], target[4, :, 7].reshape(2, 2))
    _, entry = channel_picture(state, ["A", "B"], "conv", None, "")
    assert "image 4" in entry["caption"]
