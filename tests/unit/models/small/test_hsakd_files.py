import pytest
import torch

from models.small.auxiliary import build_bare, build_with_heads
from models.small.couple import Couple
from models.small.hsakd_files import check_own, fill_from_file, to_authors_state
from tests.mistakes import refused
from utils import checkpoint


def with_branches():
    return build_with_heads("wrn_10_0.5", 3, "hsakd")


def pair():
    return Couple(with_branches(), with_branches())


def bare():
    return build_bare("wrn_10_0.5", 3)


def same(first, second):
    return all(
        torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items()
    )


@pytest.mark.parametrize("make", [bare, with_branches, pair])
def test_what_is_written_is_read(make, tmp_path):
    written, empty = make(), make()
    state = to_authors_state(written)
    assert len(state) == len(written.state_dict())
    checkpoint.save(tmp_path / "f.pth.tar", {"net": state, "acc": 0.5, "model": {"arch": "x"}})
    assert not same(written, empty)
    assert fill_from_file(empty, tmp_path / "f.pth.tar") == {"acc": 0.5, "model": {"arch": "x"}}
    assert same(written, empty)


@pytest.mark.parametrize("key", ["net", "state_dict", "model", None])
def test_the_layouts_of_backbones(key, tmp_path):
    written, empty = bare(), bare()
    state = to_authors_state(written)
    checkpoint.save(
        tmp_path / "f.pth", {key: {f"module.{k}": v for k, v in state.items()}} if key else state
    )
    fill_from_file(empty, tmp_path / "f.pth")
    assert same(written, empty)


def test_a_bare_network_takes_the_backbone(tmp_path):
    net, empty = with_branches(), bare()
    checkpoint.save(tmp_path / "f.pth.tar", {"net": to_authors_state(net)})
    fill_from_file(empty, tmp_path / "f.pth.tar")
    assert same(empty, net.backbone)


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "f.pth.tar"
    checkpoint.save(path, {"net": to_authors_state(with_branches())})
    with refused("f.pth.tar", "backbone.fc.weight"):
        fill_from_file(build_with_heads("wrn_10_0.5", 4, "hsakd"), path)
    checkpoint.save(path, {"epoch": 3, "acc": 0.5})
    with refused("f.pth.tar", "epoch", "acc"):
        fill_from_file(with_branches(), path)
    with refused("Linear", kind=TypeError):
        to_authors_state(torch.nn.Linear(1, 1))


def test_a_file_that_is_not_ours_is_left_alone(tmp_path):
    path = tmp_path / "f.pth.tar"
    check_own(path)
    checkpoint.save(path, {"net": {}, "settings": {}})
    check_own(path)
    checkpoint.save(path, {"net": {}, "acc": 0.5})
    with refused("f.pth.tar", "HSAKD.py", "--suffix", "--restart"):
        check_own(path)
