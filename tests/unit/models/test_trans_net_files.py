"""Checkpoints of Trans-Nets: what is rebuilt from them, and what is refused."""

import pytest
import torch

import models
from models.trans_net import load_trans_net
from tests.mistakes import refused
from tests.unit.models.lively import lively, maps
from utils import checkpoint


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": 1},
        {"norm": "batch", "bn": True, "affine": True},
        {"out_size": (3, 5), "fix_p": True},
        {"standardise": True},
        {"standardise": True, "norm": "batch"},
    ],
)
def test_a_checkpoint_rebuilds_the_same_net(tmp_path, options):
    net = lively(4, 6, **options)
    checkpoint.save(
        tmp_path / "g.pth.tar", {"trans_net": net.config, "state_dict": net.state_dict()}
    )
    loaded = models.load_trans_net(tmp_path / "g.pth.tar")
    assert loaded.config == net.config
    assert not loaded.training
    assert loaded.logit_p.requires_grad == net.logit_p.requires_grad
    with torch.no_grad():
        x = maps(2, 4)
        assert torch.equal(loaded(x), net(x))


def test_a_checkpoint_from_before_there_were_standards_loads(tmp_path):
    net = lively(4, 6)
    config = {name: value for name, value in net.config.items() if name != "standardise"}
    checkpoint.save(tmp_path / "g.pth.tar", {"trans_net": config, "state_dict": net.state_dict()})
    loaded = load_trans_net(tmp_path / "g.pth.tar")
    assert loaded.config == net.config
    assert not any(name.endswith(("_mean", "_std")) for name in net.state_dict())
    assert torch.equal(loaded.constant, torch.zeros(6))


def test_what_is_no_whole_trans_net_is_refused(tmp_path):
    net = lively(4, 4)
    path = tmp_path / "g.pth.tar"
    states = [
        (net.config, {"logit_p": net.logit_p}, ("3", "0")),
        (
            net.config | {"in_channels": 5},
            net.state_dict(),
            ("linear.0.weight", (4, 4, 3, 3), (4, 5, 3, 3)),
        ),
        (net.config | {"wings": 2}, net.state_dict(), ("'wings'",)),
    ]
    for config, state_dict, facts in states:
        checkpoint.save(path, {"trans_net": config, "state_dict": state_dict})
        with refused("g.pth.tar", *facts):
            load_trans_net(path)
    checkpoint.save(path, {"state_dict": {"fc.weight": torch.ones(2)}})
    with refused("g.pth.tar", "nonLinearLayers_p_pre"):
        load_trans_net(path)
