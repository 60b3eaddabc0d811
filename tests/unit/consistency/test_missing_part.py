import numpy as np
import pytest
import torch
from torch import nn

from consistency.missing_part import carry, directions, rank_correlation

CLASSES, CHANNELS, SIDE, IMAGES = 4, 6, 3, 40


class Tail(nn.Module):
    """Means over positions and a linear layer, with a ReLU in front where it bends."""

    def __init__(self, bends=False):
        super().__init__()
        self.fc, self.bends = nn.Linear(CHANNELS, CLASSES), bends
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self.fc.weight.copy_(torch.randn(CLASSES, CHANNELS, generator=generator))

    def forward(self, maps):
        return self.fc((maps.relu() if self.bends else maps).mean((2, 3)))


def features(seed=1):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=generator)
    return target, target + 0.3 * torch.randn(target.shape, generator=generator)


@pytest.mark.parametrize(("bends", "error"), [(False, 1e-5), (True, 0.05)])
def test_positions_and_directions_carry_all_of_the_margin(bends, error):
    tail, (target, output) = Tail(bends), features()
    carried = carry(tail, target, output)
    assert carried.places.sum((1, 2)).tolist() == pytest.approx(carried.lost.tolist(), abs=error)
    split = directions(carried)
    assert split.margins.sum() == pytest.approx(float(carried.places.sum((1, 2)).mean()), abs=1e-5)
    assert (np.diff(split.margins) <= 1e-9).all()


def test_of_a_linear_tail_the_margin_is_the_difference_of_two_rows():
    tail, (target, output) = Tail(), features()
    carried = carry(tail, target, output)
    z, sent = tail(target), tail(output)
    assert carried.answers.tolist() == z.argmax(1).tolist()
    rows = (tail.fc.weight[carried.answers] - tail.fc.weight[carried.others]) / SIDE**2
    assert carried.gradient[:, :, 0, 0] == pytest.approx(rows.detach(), abs=1e-6)
    for image in range(IMAGES):
        b, k = carried.answers[image], carried.others[image]
        assert b != k and sent[image, k] >= sent[image].sort().values[-2]


def test_what_is_missing_in_one_place_and_channel_is_found_there():
    target, _ = features()
    output = target.clone()
    output[:, 2, 1, 0] = 0
    carried = carry(Tail(), target, output)
    elsewhere = carried.places.clone()
    elsewhere[:, 1, 0] = 0
    assert elsewhere.abs().max() < 1e-6 and carried.places[:, 1, 0].abs().max() > 0.01
    # Nothing else varies in x_Δ, so the channel excites the direction alone
    split = directions(carried)
    first = np.abs(split.margins).argmax()
    missing = target[:, 2, 1, 0].numpy()
    correlation = np.corrcoef(missing, split.excited[:, first])[0, 1]
    assert abs(correlation) == pytest.approx(1, abs=1e-6)


def test_no_map_of_the_channels_changes_what_directions_carry():
    tail, (target, output) = Tail(), features()
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(3))
    other = Tail()
    with torch.no_grad():
        other.fc.weight.copy_(tail.fc.weight @ torch.linalg.inv(mixing))
        other.fc.bias.copy_(tail.fc.bias)
    mixed = (torch.einsum("cd,ndhw->nchw", mixing, of) for of in (target, output))
    one, two = directions(carry(tail, target, output)), directions(carry(other, *mixed))
    assert two.margins == pytest.approx(one.margins, abs=1e-4)
    assert np.abs(two.excited) == pytest.approx(np.abs(one.excited), abs=1e-3)


def test_directions_of_no_use_to_the_tail_are_left_out():
    tail, (target, output) = Tail(), features()
    with torch.no_grad():
        tail.fc.weight[:, 4:] = 0
    split = directions(carry(tail, target, output))
    assert len(split.margins) <= CLASSES - 1
    assert np.abs(split.channels[:, 4:]).max() < 1e-3


def test_rank_correlations_are_of_each_image():
    first = torch.arange(9.0).reshape(1, 3, 3).repeat(3, 1, 1)
    second = torch.stack([first[0].exp(), -first[0], torch.ones(3, 3)])
    correlations = rank_correlation(first, second)
    assert correlations[:2] == pytest.approx([1, -1]) and np.isnan(correlations[2])
