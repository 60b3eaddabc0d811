"""Two networks that are trained together, and one that is tested in training mode."""

import pytest
import torch

from models.classifiers import load_classifier
from models.small.auxiliary import build_with_heads
from models.small.couple import Couple, build_couple
from tests.mistakes import refused
from utils import checkpoint

ARCHS = ("wrn_16_0.5", "mobilenet32")


def images(count=2):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_a_couple_is_its_two_networks_in_their_order():
    torch.manual_seed(0)
    couple = build_couple(ARCHS, 5).eval()
    torch.manual_seed(0)
    nets = [build_with_heads(arch, 5, "dcm").eval() for arch in ARCHS]
    for (final, heads), net in zip(couple(images()), nets):
        expected_final, expected_heads = net(images())
        torch.testing.assert_close(final, expected_final, rtol=0, atol=0)
        torch.testing.assert_close(heads, expected_heads, rtol=0, atol=0)
        assert len(heads) == 2


def test_without_heads():
    (_, heads_1), (_, heads_2) = build_couple(ARCHS, 5, heads=False).eval()(images())
    assert heads_1 == heads_2 == []


def test_a_state_fills_the_couple_and_is_net_1_as_a_classifier(tmp_path):
    couple, other = build_couple(ARCHS, 5), build_couple(ARCHS, 5)
    filled = build_couple(ARCHS, 5, state=couple.state_dict())
    for key, value in couple.state_dict().items():
        assert torch.equal(filled.state_dict()[key], value)
    assert any(
        not torch.equal(other.state_dict()[key], value)
        for key, value in couple.state_dict().items()
    )
    checkpoint.save(
        tmp_path / "couple.pth.tar", {"arch": ARCHS[0], "state_dict": couple.state_dict()}
    )
    net = load_classifier(tmp_path / "couple.pth.tar")
    torch.testing.assert_close(net(images()), couple.eval()(images())[0][0])


@pytest.mark.parametrize(
    ("archs", "classes", "heads"), [(ARCHS[::-1], 5, True), (ARCHS, 6, True), (ARCHS, 5, False)]
)
def test_a_state_of_other_networks_is_refused(archs, classes, heads):
    state = build_couple(ARCHS, 5).state_dict()
    with refused(*archs, classes, "DCM.py"):
        build_couple(archs, classes, heads=heads, state=state)


@pytest.mark.parametrize("heads", [True, False])
def test_a_network_that_is_tested_in_training_mode_uses_and_moves_batch_statistics(heads):
    couple = build_couple(ARCHS, 5, heads=heads, in_training=[2]).eval()
    running = {name: buffer.clone() for name, buffer in couple.named_buffers()}
    couple(images())
    moved = {
        name.split(".")[0]
        for name, buffer in couple.named_buffers()
        if not torch.equal(buffer, running[name])
    }
    assert moved == {"net2"}
    assert not any(module.training for module in couple.net1.modules())
    assert all(module.training for module in couple.net2.modules())


def test_both_networks_of_hsakds_online_form_see_the_same_images():
    couple = Couple(*(build_with_heads("wrn_10_0.5", 3, "hsakd") for _ in range(2))).eval()
    first, second = couple(images())
    assert torch.equal(first[0], couple.net1(images())[0]) and torch.equal(
        second[1][2], couple.net2(images())[1][2]
    )
    assert first[0].shape == (2, 3) and second[1][0].shape == (2, 12)
    assert not torch.equal(first[0], second[0])
