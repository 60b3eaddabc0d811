import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from torchvision.models.swin_transformer import ShiftedWindowAttention

from models.classifiers import build, load_classifier
from models.pruning import cluster, count_removed, prunable_weights, prune, tie, train_centroids, zero_removed


class SmallNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 4)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).relu().mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return SmallNet()


def train(net, after_step=lambda *_: None, steps=4):
    """Take steps of SGD with momentum and weight decay, both of which move weights that have no gradient."""
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    optimizer.register_step_post_hook(after_step)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(2, 3, 8, 8, generator=generator)).square().sum().backward()
        optimizer.step()


def test_threshold_is_s_times_the_standard_deviation_of_the_layer():
    layers = nn.Conv2d(1, 4, 1), nn.Linear(4, 1)
    for layer in layers:
        weights = torch.tensor([-3.0, -1.0, 1.0, 3.0]).view_as(layer.weight)  # deviation √5
        layer.load_state_dict({"weight": weights, "bias": torch.full(layer.weight.shape[:1], 0.001)})
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
        "layer": "conv", "weights": 162, "kept": 162, "removed_percent": 0.0, "threshold": 0.0,
    }  # fmt: skip
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


def values_of(layer):
    return layer.weight.detach()[~layer.removed].unique()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_sharing_leaves_at_most_two_to_the_bits_values_and_all_zeros(net, bits):
    layers = prune(net, 0.5, 0.5)
    labels = cluster(layers, bits)
    tie(layers, labels)
    train(net, lambda *_: tie(layers, labels))
    for layer in layers:
        assert not layer.weight[layer.removed].any()
        nonzero = layer.weight[layer.weight != 0].unique()
        assert 1 < len(nonzero) <= 2**bits
        assert layer.weight.count_nonzero() == (~layer.removed).sum()


def test_clusters_are_those_of_k_means():
    net = nn.Linear(8, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-2.1, -1.9, 0.0, 0.4, 0.6, 1.4, 1.6, 9.0]]))
    layers = prune(net, 0.0, 0.0)
    tie(layers, cluster(layers, 2))
    # Began at equal distances, a centroid is on the single large weight.
    torch.testing.assert_close(net.weight, torch.tensor([[-2.0, -2.0, 0.0, 0.5, 0.5, 1.5, 1.5, 9.0]]))


def test_few_values_are_grouped_by_value(net):
    layers = prune(net, 0.5, 0.5)
    labels = cluster(layers, 3)
    tie(layers, labels)
    shared = copy.deepcopy(net.state_dict())
    again = cluster(layers, 3)
    assert all(torch.equal(first, second) for first, second in zip(labels, again))
    tie(layers, again)
    assert all(torch.equal(value, shared[name]) for name, value in net.state_dict().items())


def share(net, layers, bits, optimizer_class, lr, **options):
    """Share the weights and train their centroids at ten times the rate of the rest."""
    labels = cluster(layers, bits)
    optimizer = optimizer_class(net.parameters(), lr, **options)
    train_centroids(optimizer, layers, labels, 10 * lr)
    return labels, optimizer


def test_a_centroid_moves_by_the_sum_of_its_members_gradients():
    net = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[0.0, 1.0, 1.0, 1.0, -2.0, -2.0]]))
    layers = prune(net, 0.0, 0.0)
    _, optimizer = share(net, layers, 1, torch.optim.SGD, 0.01)
    net.weight.grad = torch.tensor([[7.0, 1.0, -2.0, 4.0, 0.25, 0.5]])
    optimizer.step()
    assert net.weight.grad.tolist() == [[0, 3, 3, 3, 0.75, 0.75]]
    centroids = 1 - 0.1 * (1 - 2 + 4), -2 - 0.1 * 0.75
    expected = torch.tensor([[0.0, *3 * centroids[:1], *2 * centroids[1:]]])
    torch.testing.assert_close(net.weight.detach(), expected)
    assert len(net.weight.unique()) == 3 and net.weight[0, 0] == 0


class CodebookNet(nn.Module):
    """What `SmallNet` is once its weights are shared, with the centroids as parameters: the first of each is zero."""

    def __init__(self, net, labels):
        super().__init__()
        self.rest, self.labels = copy.deepcopy(net), labels
        self.codebooks = nn.ParameterList()
        for layer, label in zip((net.conv, net.fc), labels):
            values = [layer.weight.detach()[label == index].mean() for index in range(1, int(label.max()) + 1)]
            self.codebooks.append(nn.Parameter(torch.stack(values)))

    def weight(self, index):
        codebook = self.codebooks[index]
        return torch.cat([codebook.new_zeros(1), codebook])[self.labels[index]]

    def forward(self, images):
        features = nn.functional.conv2d(images, self.weight(0), self.rest.conv.bias)
        features = self.rest.norm(features).relu().mean((2, 3))
        return nn.functional.linear(features, self.weight(1), self.rest.fc.bias)


@pytest.mark.parametrize(
    ("optimizer_class", "options"),
    [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}), (torch.optim.Adam, {"weight_decay": 0.1})],
)
def test_shared_weights_are_trained_as_a_codebook_of_parameters(net, optimizer_class, options):
    net.double()
    layers = prune(net, 0.5, 0.5)
    labels, optimizer = share(net, layers, 2, optimizer_class, 1e-3, **options)
    before = net.fc.weight.detach().clone()
    oracle = CodebookNet(net, labels)
    rest = [oracle.rest.conv.bias, *oracle.rest.norm.parameters(), oracle.rest.fc.bias]
    groups = [{"params": rest, "lr": 1e-3}, {"params": [*oracle.codebooks], "lr": 1e-2}]
    generator = torch.Generator().manual_seed(1)
    for trained, trainer in ((net, optimizer), (oracle, optimizer_class(groups, **options))):
        generator.manual_seed(1)
        for _ in range(5):
            trainer.zero_grad()
            trained(torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)).square().sum().backward()
            trainer.step()
    for index, layer in enumerate(layers):
        torch.testing.assert_close(layer.weight.detach(), oracle.weight(index).detach(), rtol=1e-9, atol=1e-12)
        assert not layer.weight[layer.removed].any()
        assert len(values_of(layer)) == 4
    assert (net.fc.weight - before).abs().max() > 1e-2


def test_members_stay_equal_where_the_optimiser_rounds_them_differently():
    """A fused step computes whole vectors and what remains of a layer by instructions that round differently."""
    torch.manual_seed(29)
    net = nn.Linear(37, 52)
    layers = prune(net, 0.5, 0.5)
    _, optimizer = share(net, layers, 3, torch.optim.SGD, 1e-4, momentum=0.9, weight_decay=0.1, fused=True)
    for _ in range(20):
        optimizer.zero_grad()
        net(torch.randn(4, 37)).square().sum().backward()
        optimizer.step()
        assert len(values_of(layers[0])) == 8


def test_a_frozen_layer_is_shared_and_does_not_move(net):
    net.conv.weight.requires_grad_(False)
    layers = prune(net, 0.5, 0.5)
    _, optimizer = share(net, layers, 2, torch.optim.SGD, 0.1)
    before = copy.deepcopy(net.state_dict())
    assert len(values_of(layers[0])) == 4
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert torch.equal(net.conv.weight, before["conv.weight"])
    assert not torch.equal(net.fc.weight, before["fc.weight"])


def test_an_optimiser_that_remembers_single_weights_is_refused(net):
    layers = prune(net, 0.5, 0.5)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    with pytest.raises(ValueError, match="has taken steps"):
        train_centroids(optimizer, layers, cluster(layers, 2), 0.1)


def test_a_layer_that_lost_everything_can_be_shared(net):
    layers = prune(net, 100.0, 0.0)
    tie(layers, cluster(layers, 2))
    assert not net.conv.weight.any()


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
    assert removed["layer1.0.conv2.weight"].sum() < 3  # a random number is exactly zero now and then
