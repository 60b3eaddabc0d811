"""What a net's factory says of its images."""

import pytest
from torch import nn

from models.inputs import Inputs, preprocessing_of

HALF = (0.5, 0.5, 0.5)


def test_timms_nets_carry_their_images():
    timm = pytest.importorskip("timm")
    said = Inputs(HALF, HALF, 224, "bicubic", 0.9)
    assert preprocessing_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k") == said
    net = timm.create_model("test_vit", pretrained=False)
    assert preprocessing_of(net) == preprocessing_of("timm:test_vit")
    assert preprocessing_of(net).image_size == 160


def test_a_net_of_ones_own_may_carry_them_too():
    net = nn.Linear(1, 1)
    assert preprocessing_of(net) is None and preprocessing_of("resnet18") is None
    net.default_cfg = {"mean": [0.5, 0.5, 0.5], "std": HALF}
    assert preprocessing_of(net) == Inputs(HALF, HALF)
    net.default_cfg = {"mean": (0.5,), "std": (0.5,), "input_size": (1, 28, 28)}
    assert preprocessing_of(net) is None
