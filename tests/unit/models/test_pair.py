import shutil

import pytest
import torch

from models.classifiers import load_classifier
from models.pair import Decomposition, find_reverse, open_pair
from models.split import split
from models.trans_net import load_trans_net
from tests.mistakes import refused
from utils import checkpoint
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise

LAYER = "layer2.1.add"


@pytest.fixture
def nets(fitted):
    return [
        fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar" for seed in (0, 5)
    ]


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
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    x, target, *_, components = pair(pixels)
    images = normalise(pixels, *NORMALISATIONS["imagenet"])
    with torch.no_grad():
        expected_x, expected_target = (
            split(load_classifier(net), LAYER)[0](images) for net in nets
        )
        if reverse:
            expected_x, expected_target = expected_target, expected_x
        output = load_trans_net(back if reverse else forth)(expected_x)
    assert torch.equal(x, expected_x) and torch.equal(target, expected_target)
    assert components.shape == (3, 3, 128, 4, 4)
    torch.testing.assert_close(components.sum(0), output, rtol=1e-4, atol=1e-5)
    assert not pair.training and not components.requires_grad
    assert pair.provenance.a.layer == LAYER and pair.provenance.a.path == str(
        nets[1 if reverse else 0]
    )
    assert pair.provenance.dataset == "digits" and pair.provenance.image_size == 32


def test_a_pair_reads_pixels_by_the_constants_that_its_features_were_made_with(
    nets, forth, tmp_path
):
    fit, state = tmp_path / "g.pth.tar", checkpoint.load(forth)
    transform = {
        key: value
        for key, value in state["source"]["transform"].items()
        if key not in ("mean", "std")
    }
    named = {
        "normalisation_a": NORMALISATIONS["half"],
        "normalisation_b": NORMALISATIONS["cifar10"],
    }
    checkpoint.save(fit, state | {"source": state["source"] | {"transform": transform} | named})
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    x, target, *_ = open_pair(fit)(pixels)
    heads = [split(load_classifier(net), LAYER)[0] for net in nets]
    with torch.no_grad():
        assert torch.equal(x, heads[0](normalise(pixels, *NORMALISATIONS["half"])))
        assert torch.equal(target, heads[1](normalise(pixels, *NORMALISATIONS["cifar10"])))


def test_a_net_that_is_not_the_fitted_one_is_refused(nets, forth):
    with refused("checkpoint_L2.pth.tar", nets[1], nets[0]):
        open_pair(forth, net_b=nets[0])
    with refused("checkpoint_L2.pth.tar", "--reverse"):
        open_pair(forth, net_a=nets[1], net_b=nets[0])


@pytest.mark.parametrize("role", ["a", "b"])
def test_a_layer_that_is_not_the_fitted_one_is_refused(forth, role):
    with refused(f"{LAYER} of net {role.upper()}", "layer2.0.add"):
        open_pair(forth, **{f"layer_{role}": "layer2.0.add"})


def test_a_moved_copy_is_the_same_net(nets, forth, tmp_path):
    moved = tmp_path / "moved.pth.tar"
    shutil.copy(nets[1], moved)
    pair = open_pair(forth, net_b=moved)
    assert (pair.provenance.a.path, pair.provenance.b.path) == (str(nets[0]), str(moved))
    images = torch.ones(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(pair(images)[1], open_pair(forth)(images)[1])


@torch.no_grad()
def test_a_decomposition_has_the_batch_first(forth):
    torch.manual_seed(0)
    trans_net, x, target = load_trans_net(forth), *torch.randn(2, 5, 128, 4, 4)
    components, residual = Decomposition(trans_net)(x, target)
    assert components.shape == (5, 3, 128, 4, 4)
    torch.testing.assert_close(components.transpose(0, 1), trans_net.decompose(x)[1])
    torch.testing.assert_close(residual + trans_net(x), target, rtol=1e-4, atol=1e-5)


def test_a_file_that_does_not_say_its_nets_needs_them(nets, forth, tmp_path):
    bare = tmp_path / "bare.pth.tar"
    checkpoint.save(
        bare, {key: value for key, value in checkpoint.load(forth).items() if key != "source"}
    )
    with refused("bare.pth.tar", "net_a", "layer_a"):
        open_pair(bare)
    with refused("bare.pth.tar", "net_b", "layer_b"):
        open_pair(bare, net_a=nets[0], layer_a=LAYER, net_b=nets[1])
    assert open_pair(bare, *nets, LAYER, LAYER).provenance.b.path == str(nets[1])
    assert find_reverse(bare) is None


def test_a_net_that_was_trained_on_is_refused(nets, forth, tmp_path):
    moved, fit = tmp_path / "a.pth.tar", tmp_path / "g.pth.tar"
    shutil.copy(nets[0], moved)
    state = checkpoint.load(forth)
    checkpoint.save(fit, state | {"source": state["source"] | {"path_a": str(moved)}})
    assert open_pair(fit).provenance.a.path == str(moved)
    trained_on = checkpoint.load(moved)
    trained_on["state_dict"]["fc.bias"] += 1
    checkpoint.save(moved, trained_on)
    with refused("g.pth.tar", "net A", "a.pth.tar"):
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
