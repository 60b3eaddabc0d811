import pytest
import torch
import torchvision

from models import build_with_heads
from models.small.resnet import basic, describe_imagenet_resnet, describe_resnet


@pytest.mark.parametrize("depth", ["18", "50"])
def test_imagenet_forms_are_torchvisions(depth):
    theirs = torchvision.models.get_model(f"resnet{depth}", num_classes=10).eval()
    ours = build_with_heads(f"resnet{depth}_imagenet", 10, "hsakd", heads=False).backbone.eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


def test_depths_and_strides():
    stages = describe_resnet(56, (16, 16, 32, 64)).stages
    assert [(stage.widths, stage.stride) for stage in stages] == [
        ((16,) * 9, 1),
        ((32,) * 9, 2),
        ((64,) * 9, 2),
    ]
    stages = describe_imagenet_resnet(basic, (64, 128, 256, 512), (3, 4, 6, 3)).stages
    assert [(len(stage.widths), stage.stride) for stage in stages] == [
        (3, 1),
        (4, 2),
        (6, 2),
        (3, 2),
    ]
