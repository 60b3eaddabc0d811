import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torchvision.models.swin_transformer import ShiftedWindowAttention

from models.classifiers import build, load_classifier
from models.pruning import count_removed, prunable_weights, prune, zero_removed
from tests.unit.models.pruned import train


def test_threshold_is_s_times_the_standard_deviation_of_the_layer():
    layers = nn.Conv2d(1, 4, 1), nn.Linear(4, 1)
    for layer in layers:
        weights = torch.tensor([-3.0, -1.0, 1.0, 3.0]).view_as(layer.weight)  # deviation √5
        layer.load_state_dict(
            {"weight": weights, "bias": torch.full(layer.weight.shape[:1], 0.001)}
        )
    conv, fc = prune(nn.Sequential(*layers), s_conv=0.44, s_fc=0.45)  # √5 · 0.44 < 1 < √5 · 0.45
    assert (conv.name, fc.name) == ("0.weight", "1.weight")
    assert conv.threshold == pytest.approx(0.44 * 5**0.5)
    assert conv.weight.flatten().tolist() == [-3, -1, 1, 3]
    assert fc.weight.flatten().tolist() == [-3, 0, 0, 3]
    assert fc.removed.flatten().tolist() == [False, True, True, False]
    assert layers[1].bias.item() == pytest.approx(0.001)


def test_weights_of_an_earlier_pruning_stay_removed(net):
    first = prune(net, 1.0, 1.0)
    again = prune(net, 0.0, 0.0)
    assert all(torch.equal(before.removed, after.removed) for before, after in zip(first, again))


def test_convolutions_linear_layers_and_attention_are_pruned_and_nothing_else(net):
    attention = nn.MultiheadAttention(8, 2)
    both = nn.ModuleDict({"net": net, "attention": attention})
    kinds = {name: is_convolution for name, (_, is_convolution) in prunable_weights(both).items()}
    assert kinds == {
        "net.conv.weight": True,
        "net.fc.weight": False,
        "attention.in_proj_weight": False,
        "attention.out_proj.weight": False,
    }


def test_counts_are_of_the_whole_network_and_of_every_layer(net):
    with torch.no_grad():
        net.fc.weight.copy_(torch.arange(24.0).view(4, 6))
    layers = prune(net, 0.0, 1.0)  # deviation of 0 … 23: √(575/12) = 6.92
    counted = count_removed(net, layers)
    parameters = 3 * 6 * 9 + 6 + 2 * 6 + 24 + 4
    assert (counted["parameters"], counted["removed"]) == (parameters, 7)
    assert counted["removed_percent"] == pytest.approx(700 / parameters)
    assert counted["layers"][0] == {
        "layer": "conv",
        "weights": 162,
        "kept": 162,
        "removed_percent": 0.0,
        "threshold": 0.0,
    }
    assert counted["layers"][1]["kept"] == 17
    assert counted["layers"][1]["threshold"] == pytest.approx((575 / 12) ** 0.5)


def test_momentum_and_weight_decay_do_not_bring_removed_weights_back(net):
    train(net)  # so that there is something to decay to
    free = copy.deepcopy(net)
    layers = prune(net, 1.0, 1.0)
    train(net, lambda *_: zero_removed(layers))
    assert all(layer.removed.any() and not layer.removed.all() for layer in layers)
    assert all(not layer.weight[layer.removed].any() for layer in layers)
    assert all(layer.weight[~layer.removed].all() for layer in layers)

    unguarded = prune(free, 1.0, 1.0)
    train(free)
    assert any(layer.weight[layer.removed].any() for layer in unguarded)


def test_the_rest_is_trained_as_with_torchs_own_pruning(net):
    reference = copy.deepcopy(net)
    layers = prune(net, 1.0, 1.0)
    train(net, lambda *_: zero_removed(layers))
    for name, layer in zip(("conv", "fc"), layers):
        torch_prune.custom_from_mask(reference.get_submodule(name), "weight", ~layer.removed)
    train(reference)
    for name in ("conv", "fc"):
        torch_prune.remove(reference.get_submodule(name), "weight")
    expected = reference.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_layers_whose_weights_are_used_without_their_forward_stay_pruned():
    torch.manual_seed(0)
    net = ShiftedWindowAttention(8, [2, 2], [0, 0], 2)
    layers = prune(net, 1.0, 1.0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    optimizer.register_step_post_hook(lambda *_: zero_removed(layers))
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(1, 4, 4, 8)).square().sum().backward()
        optimizer.step()
    assert [layer.name for layer in layers] == ["qkv.weight", "proj.weight"]
    assert all(not layer.weight[layer.removed].any() for layer in layers)


def test_a_released_compressed_checkpoint_is_read_with_its_masks(tmp_path):
    weights = build("resnet18", 3).state_dict()
    state = {f"module.{name}": value for name, value in weights.items()}
    name = "layer1.0.conv1.weight"
    mask = (torch.rand_like(weights[name]) > 0.9).float()
    state["module.layer1.0.conv1.mask"] = mask
    path = tmp_path / "compressed.pth.tar"
    stored = {"epoch": 20, "arch": "resnet18", "state_dict": state, "best_acc1": torch.tensor(70.0)}
    torch.save(stored, path, _use_new_zipfile_serialization=False)
    loaded = load_classifier(path)
    assert torch.equal(loaded.state_dict()[name], weights[name] * mask)
    removed = {layer.name: layer.removed for layer in prune(loaded, 0.0, 0.0)}
    assert torch.equal(removed[name], mask == 0)
    # A random number is exactly zero now and then
    assert removed["layer1.0.conv2.weight"].sum() < 3
