import pytest
import torch
from torch import nn

from models.meta import ShapesAlone


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_norm_keeps_shape_and_order(order):
    maps = torch.zeros(2, 5, 4, 4).contiguous(memory_format=order).half().to("meta")
    with ShapesAlone():
        answer = nn.BatchNorm2d(5).eval().to("meta")(maps)
    assert (answer.shape, answer.dtype) == (maps.shape, maps.dtype)
    assert answer.stride() == maps.stride() and answer is not maps


def test_values_are_drawn_where_there_are_some():
    with ShapesAlone():
        weight = nn.init.kaiming_normal_(torch.zeros(4, 4))
        drawn = torch.zeros(4).uniform_(1, 2)
        norm = nn.BatchNorm2d(5).eval()
        answer = norm(3 + torch.zeros(1, 5, 2, 2))
    assert weight.std() > 0 and drawn.min() >= 1
    assert torch.allclose(answer, torch.tensor(3.0), atol=1e-3)


def test_maps_of_other_channels_are_refused():
    with ShapesAlone(), pytest.raises((RuntimeError, ValueError)):
        nn.BatchNorm2d(3).eval().to("meta")(torch.zeros(2, 5, 4, 4, device="meta"))
