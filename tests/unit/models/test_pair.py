import shutil

import pytest
import torch

from models.classifiers import load_classifier
from models.pair import find_reverse, open_pair
from models.split import split
from models.trans_net import load_trans_net
from utils import checkpoint
from utils.errors import InputError

LAYER = "layer2.1.add"


@pytest.fixture
def nets(fitted):
    return [fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar" for seed in (0, 5)]


@pytest.fixture
def forth(fitted):
    return fitted / "model_checkpoints/digits_resnet18/checkpoint_L2.pth.tar"


@pytest.fixture
def back(forth):
    return forth.with_name("checkpoint_L2_reverse.pth.tar")


@pytest.mark.parametrize("reverse", [False, True])
def test_images_become_both_features_and_components(nets, forth, back, reverse):
    pair = open_pair(back if reverse else forth)
    torch.manual_seed(0)
    images = torch.randn(3, 3, 32, 32)
    x, target, components = pair(images)
    with torch.no_grad():
        expected_x, expected_target = (split(load_classifier(net), LAYER)[0](images) for net in nets)
        if reverse:
            expected_x, expected_target = expected_target, expected_x
        output = load_trans_net(back if reverse else forth)(expected_x)
    assert torch.equal(x, expected_x) and torch.equal(target, expected_target)
    assert components.shape == (3, 3, 128, 4, 4)
    torch.testing.assert_close(components.sum(0), output, rtol=1e-4, atol=1e-5)
    assert not pair.training and not components.requires_grad
    assert pair.source["layer_a"] == LAYER and pair.source["path_a"] == str(nets[1 if reverse else 0])


def test_what_is_named_replaces_what_is_recorded(nets, forth):
    pair = open_pair(forth, net_a=nets[1], layer_a="layer2.0.add")
    assert pair.source["path_a"] == pair.source["path_b"] == str(nets[1])
    assert (pair.source["layer_a"], pair.source["layer_b"]) == ("layer2.0.add", LAYER)
    images = torch.ones(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(pair(images)[0], split(load_classifier(nets[1]), "layer2.0.add")[0](images))


def test_a_file_that_does_not_say_its_nets_needs_them(nets, forth, tmp_path):
    bare = tmp_path / "bare.pth.tar"
    checkpoint.save(bare, {key: value for key, value in checkpoint.load(forth).items() if key != "source"})
    with pytest.raises(InputError, match=r"bare\.pth\.tar does not say what it was fitted on; name net_a and layer_a"):
        open_pair(bare)
    with pytest.raises(InputError, match="name net_b and layer_b"):
        open_pair(bare, net_a=nets[0], layer_a=LAYER, net_b=nets[1])
    assert open_pair(bare, *nets, LAYER, LAYER).source["path_b"] == str(nets[1])
    assert find_reverse(bare) is None


def test_a_net_that_was_trained_on_is_refused(nets, forth, tmp_path):
    moved, fit = tmp_path / "a.pth.tar", tmp_path / "g.pth.tar"
    shutil.copy(nets[0], moved)
    state = checkpoint.load(forth)
    checkpoint.save(fit, state | {"source": state["source"] | {"path_a": str(moved)}})
    assert open_pair(fit).source["path_a"] == str(moved)
    shutil.copy(nets[1], moved)
    with pytest.raises(InputError, match=r"a\.pth\.tar has changed since .*g\.pth\.tar was fitted on it; fit a new"):
        open_pair(fit)


def test_the_reverse_direction_is_found_by_what_it_was_fitted_on(forth, back, tmp_path):
    assert find_reverse(forth) == back
    assert find_reverse(back) == forth
    state = checkpoint.load(back)
    alone = tmp_path / "checkpoint_L2.pth.tar"
    shutil.copy(forth, alone)
    other_layer = state["source"] | {"layer_a": "layer3.1.add"}
    checkpoint.save(tmp_path / "checkpoint_L3_reverse.pth.tar", state | {"source": other_layer})
    assert find_reverse(alone) is None
    shutil.copy(back, tmp_path / "checkpoint_any_name.pth.tar")
    assert find_reverse(alone) == tmp_path / "checkpoint_any_name.pth.tar"
