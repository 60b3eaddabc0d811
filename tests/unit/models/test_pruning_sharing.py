"""Weights that are shared after pruning: clusters, and how their centroids train."""

import copy

import pytest
import torch
from torch import nn

from models.pruning import cluster, prune, tie, train_centroids
from tests.mistakes import refused
from tests.unit.models.pruned import train


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
    torch.testing.assert_close(
        net.weight, torch.tensor([[-2.0, -2.0, 0.0, 0.5, 0.5, 1.5, 1.5, 9.0]])
    )


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
    """What `SmallNet` is once its weights are shared,
    with the centroids as parameters: the first of each is zero.
    """

    def __init__(self, net, labels):
        super().__init__()
        self.rest, self.labels = copy.deepcopy(net), labels
        self.codebooks = nn.ParameterList()
        for layer, label in zip((net.conv, net.fc), labels):
            values = [
                layer.weight.detach()[label == index].mean()
                for index in range(1, int(label.max()) + 1)
            ]
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
    [
        (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
        (torch.optim.Adam, {"weight_decay": 0.1}),
    ],
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
            trained(
                torch.randn(2, 3, 8, 8, generator=generator, dtype=torch.float64)
            ).square().sum().backward()
            trainer.step()
    for index, layer in enumerate(layers):
        torch.testing.assert_close(
            layer.weight.detach(), oracle.weight(index).detach(), rtol=1e-9, atol=1e-12
        )
        assert not layer.weight[layer.removed].any()
        assert len(values_of(layer)) == 4
    assert (net.fc.weight - before).abs().max() > 1e-2


def test_members_stay_equal_where_the_optimiser_rounds_them_differently():
    """A fused step computes whole vectors and what remains
    of a layer by instructions that round differently.
    """
    torch.manual_seed(29)
    net = nn.Linear(37, 52)
    layers = prune(net, 0.5, 0.5)
    _, optimizer = share(
        net, layers, 3, torch.optim.SGD, 1e-4, momentum=0.9, weight_decay=0.1, fused=True
    )
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
    with refused("SGD", len(optimizer.state), kind=ValueError):
        train_centroids(optimizer, layers, cluster(layers, 2), 0.1)


def test_a_layer_that_lost_everything_can_be_shared(net):
    layers = prune(net, 100.0, 0.0)
    tie(layers, cluster(layers, 2))
    assert not net.conv.weight.any()
