import torch

from models.small.auxiliary import build_with_heads
from models.small.online import OnlinePair


def test_both_networks_see_the_same_images():
    pair = OnlinePair(*(build_with_heads("wrn_10_0.5", 3, "hsakd") for _ in range(2))).eval()
    images = torch.randn(2, 3, 32, 32)
    first, second = pair(images)
    assert torch.equal(first[0], pair.net1(images)[0]) and torch.equal(second[1][2], pair.net2(images)[1][2])
    assert first[0].shape == (2, 3) and second[1][0].shape == (2, 12)
    assert not torch.equal(first[0], second[0])
