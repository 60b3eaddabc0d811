import torchvision
from torch import nn

from models.graph import cut_nodes, find_cut, flow_around, trace
from tests.mistakes import refused


class Undecided(nn.Module):
    def forward(self, images):
        return images if images.sum() > 0 else -images


def test_a_model_that_cannot_be_traced_is_refused():
    with refused("Undecided", "images.sum()", "test_graph.py"):
        trace(Undecided())


def test_a_trace_names_every_value_and_leaves_the_modes():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    model[1].eval()
    graph, names, *_ = trace(model)
    assert list(names.values()) == ["input", "0", "1", "2"]
    assert [module.training for module in model] == [True, False, True]
    assert cut_nodes(graph) == list(names)[1:] and not any(
        flow_around(graph, node) for node in cut_nodes(graph)
    )


def test_a_branch_is_no_cut():
    model = torchvision.models.resnet18(num_classes=3)
    traced = trace(model)
    graph, names, *_ = traced
    assert names[find_cut(traced, "layer2", model)] == "layer2.1.relu_1"
    branch = next(node for node, name in names.items() if name == "layer2.1.conv1")
    assert [names[node] for node in flow_around(graph, branch)] == ["layer2.0.relu_1"]
    with refused("layer2.1.conv1", "layer2.0.relu_1", "layer2.1.add"):
        find_cut(traced, "layer2.1.conv1", model)


def test_a_name_that_counted_lengths_still_means_its_node():
    model = torchvision.models.vit_b_32(num_classes=3)
    traced = trace(model)
    assert find_cut(traced, "getitem_5", model) is find_cut(traced, "getitem", model)
