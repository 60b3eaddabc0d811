import pytest
import torch

from distillation import hsakd_nets
from models.small.hsakd_files import to_authors_state
from tests.mistakes import refused
from utils import checkpoint

CLASSES = 3


@pytest.fixture
def taught(tmp_path):
    """A teacher's file."""
    net, _ = hsakd_nets.teacher(CLASSES, "wrn_10_0.5_aux", None)
    checkpoint.save(tmp_path / "t.pth.tar", {"net": to_authors_state(net)})
    return net, tmp_path / "t.pth.tar"


def test_a_teacher_learns_everything_or_its_branches(taught):
    joint, path = taught
    assert all(parameter.requires_grad for parameter in joint.parameters())
    frozen, none = hsakd_nets.teacher(CLASSES, "wrn_10_0.5_aux", path)
    assert none is None
    assert {name.split(".")[0] for name, p in frozen.named_parameters() if p.requires_grad} == {
        "heads"
    }
    before = {key: value.clone() for key, value in frozen.backbone.state_dict().items()}
    frozen.train()(torch.randn(4, 3, 32, 32))
    assert all(
        torch.equal(value, before[key]) for key, value in frozen.backbone.state_dict().items()
    )
    assert all(
        torch.equal(value, before[key]) for key, value in joint.backbone.state_dict().items()
    )


def test_a_student_begins_alike_whoever_teaches(taught):
    torch.manual_seed(3)
    net, teacher = hsakd_nets.student(CLASSES, "resnet8_aux", "wrn_10_0.5", taught[1])
    assert not teacher.training and not any(
        parameter.requires_grad for parameter in teacher.parameters()
    )
    assert all(
        torch.equal(value, taught[0].state_dict()[key])
        for key, value in teacher.state_dict().items()
    )
    torch.manual_seed(3)
    alone, _ = hsakd_nets.teacher(CLASSES, "resnet8_aux", None)
    assert all(
        torch.equal(value, net.state_dict()[key]) for key, value in alone.state_dict().items()
    )


def test_a_probe_has_a_new_last_layer_alone(taught):
    net, _ = hsakd_nets.probe(7, "wrn_10_0.5_aux", taught[1])
    assert [name for name, p in net.named_parameters() if p.requires_grad] == [
        "fc.weight",
        "fc.bias",
    ]
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    with refused("alexnet"):
        hsakd_nets.probe(7, "alexnet", taught[1])


def test_names_of_what_is_trained():
    pair, _ = hsakd_nets.online(CLASSES, "WRN_40_1_WRN_40_1")
    assert hsakd_nets.bare_arch(pair) == "wrn_40_1"
    assert hsakd_nets.bare_arch(hsakd_nets.teacher(CLASSES, "resnet8_aux", None)[0]) == "resnet8"
    assert hsakd_nets.bare_arch(hsakd_nets.baseline(CLASSES, "resnet8")[0]) == "resnet8"
