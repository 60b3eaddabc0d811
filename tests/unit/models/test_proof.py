"""Nets that were planted to be cut or folded into something else, each with the right value."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from models import cut_net
from models.classifiers import FixedBatchNorm2d
from models.cut_net import CutNet
from models.graph import modes_of
from tests.mistakes import refused
from utils import remarks
from utils.later import torchvision
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise
from utils.provenance import NetSource

CPU = torch.device("cpu")
CLASSES, HALF = 5, NORMALISATIONS["half"]


class Planted(nn.Module):
    """Two convolutions, each with a BatchNorm that is no identity behind it."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, CLASSES)

    def features(self, x):
        return functional.relu(self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x))))))

    def forward(self, x):
        return self.fc(self.features(x).mean((2, 3)))


class ActivatingNorm(nn.BatchNorm2d):
    def forward(self, input):
        return functional.relu(super().forward(input)) + 1


class OwnConvolution(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * self.weight.abs().mean() + 3


def norm_that_activates(net):
    net.norm1, net.norm2 = ActivatingNorm(8), ActivatingNorm(8)


def convolution_of_a_subclass(net):
    net.conv2 = OwnConvolution(8, 8, 3, padding=1)


def hook_doubles(net):
    net.conv1.register_forward_hook(lambda module, inputs, output: output * 2)


def hook_of_the_norm(net):
    net.norm2.register_forward_hook(lambda module, inputs, output: output - 1)


def pre_hook_doubles(net):
    net.norm1.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))


def forward_of_one_module(net):
    net.norm2.forward = lambda x: x * 0.5


def old_weight_norm(net):
    nn.utils.weight_norm(net.conv2)


def old_spectral_norm(net):
    nn.utils.spectral_norm(net.conv2)


def weight_norm(net):
    parametrizations.weight_norm(net.conv2)


def spectral_norm(net):
    parametrizations.spectral_norm(net.conv2)


def pruned_by_torch(net):
    from torch.nn.utils import prune

    prune.l1_unstructured(net.conv2, "weight", 0.5)


def norm_of_the_batch(net):
    net.norm2 = nn.BatchNorm2d(8, track_running_stats=False)


def norm_without_scale(net):
    net.norm2 = nn.BatchNorm2d(8, affine=False)


def convolution_twice(net):
    net.conv2, net.norm2 = nn.Identity(), nn.BatchNorm2d(8)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    net.features = lambda x: functional.relu(
        net.norm2(conv_of(net)(conv_of(net)(net.norm1(net.conv1(x)))))
    )
    net.twice = conv


def conv_of(net):
    return net.twice


def norm_twice(net):
    net.norm2 = net.norm1


def same_convolution_by_two_names(net):
    net.other_name = net.conv2


PLANTED = [
    norm_that_activates,
    convolution_of_a_subclass,
    hook_doubles,
    hook_of_the_norm,
    pre_hook_doubles,
    forward_of_one_module,
    old_weight_norm,
    old_spectral_norm,
    weight_norm,
    spectral_norm,
    pruned_by_torch,
    norm_of_the_batch,
    norm_without_scale,
    convolution_twice,
    norm_twice,
    same_convolution_by_two_names,
]


@pytest.fixture(autouse=True)
def _new_run():
    remarks.forget()


def planted(change=None):
    torch.manual_seed(0)
    net = Planted()
    if change:
        change(net)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.2, 3)
            if module.affine:
                module.weight.data.uniform_(-2, 2)
                module.bias.data.normal_()
    return net.train()(torch.randn(4, 3, 8, 8)).sum().backward() or net.eval()


def cut(model, *layers, tapped=False):
    return CutNet(
        model,
        [
            NetSource("planted", layer, "net.pth.tar", normalisation=NORMALISATIONS["half"])
            for layer in layers
        ],
        {},
        tapped=tapped,
    )


def photos(size=8):
    return torch.randint(
        0, 256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )


@torch.no_grad()
def as_its_author_runs_it(model, layer, pixels):
    """Give what a hook sees, and the logits."""
    seen = []
    handle = model.get_submodule(layer).register_forward_hook(
        lambda *args: seen.append(args[2].clone())
    )
    logits = model(normalise(pixels, *HALF))
    handle.remove()
    return seen[0], logits


@pytest.mark.parametrize("layer", ["conv1", "norm1", "norm2"])
@pytest.mark.parametrize("change", [None, *PLANTED])
def test_what_is_cut_and_frozen_computes_what_the_author_wrote(change, layer, capsys):
    model, images = planted(change), photos()
    if change is norm_twice and layer == "norm2":
        pytest.skip("the second name of norm1 is no name of a layer")
    feature, logits = as_its_author_runs_it(model, layer, images)
    net, tapped = cut(model, layer), cut(model, layer, tapped=True)
    for one in (net, tapped):
        one.prove_fast(images)
    assert not capsys.readouterr().out, "the fast form is right, so nothing is said"
    assert torch.equal(net.head(normalise(images, *HALF)), feature)
    torch.testing.assert_close(net.tail(feature), logits, rtol=1e-6, atol=1e-6)
    largest = feature.abs().max().item()
    torch.testing.assert_close(net.frozen(CPU)(images), feature, rtol=0, atol=1e-5 * largest)
    for given, expected in zip(tapped.frozen(CPU)(images), (feature, logits)):
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("change", [None, norm_twice, norm_without_scale])
def test_what_is_exactly_known_is_folded(change):
    net = cut(planted(change), "norm2" if change is not norm_twice else "norm1", tapped=True)
    net.prove_fast(photos())
    assert not [
        module for module in net.frozen(CPU).modules() if isinstance(module, nn.BatchNorm2d)
    ]


def test_our_fixed_batch_norms_are_folded():
    model = planted()
    model.norm1.__class__ = FixedBatchNorm2d
    net = cut(model, "norm2")
    net.prove_fast(photos())
    assert not [
        module for module in net.frozen(CPU).modules() if isinstance(module, nn.BatchNorm2d)
    ]


class OnlyContiguous(nn.Module):
    """Reads memory in the order in which it lies: right in PyTorch's ordinary order alone."""

    def forward(self, x):
        return x.as_strided(x.shape, x.new_empty(x.shape).stride())


def reads_memory(net):
    net.norm1 = nn.Sequential(OnlyContiguous(), net.norm1)


def cannot_be_copied(net):
    net.conv2.lock = threading.Lock()


@pytest.mark.parametrize(
    ("change", "word"), [(reads_memory, "differs by"), (cannot_be_copied, "cannot pickle")]
)
def test_where_the_fast_form_is_wrong_the_plain_one_is_used_and_said(change, word, capsys):
    model, images = planted(change), photos()
    feature, _ = as_its_author_runs_it(model, "norm2", images)
    net = cut(model, "norm2")
    net.prove_fast(images)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and word in lines[0] and "net.pth.tar" in lines[0]
    frozen = net.frozen(CPU)
    assert torch.equal(frozen(images), feature)
    assert not frozen(images).requires_grad


def drop_a_node(monkeypatch, name):
    """Let tracing lose a function, as it may lose what it does not know."""
    original = cut_net.split

    def lossy(*words, **options):
        halves = original(*words, **options)
        for half in halves:
            for node in list(half.graph.nodes):
                if node.name == name:
                    node.replace_all_uses_with(node.args[0])
                    half.graph.erase_node(node)
            half.recompile()
        return halves

    monkeypatch.setattr(cut_net, "split", lossy)


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [("norm2", "feature"), ("relu_1", "logits"), ("conv1", "logits")],
)
def test_a_cut_that_computes_something_else_is_refused_in_one_line(monkeypatch, layer, wrong):
    """Lost before a layer that is a module, before one that is a function, and in the tail."""
    drop_a_node(monkeypatch, "relu")
    net = cut(planted(), layer)
    with refused("net.pth.tar", layer, wrong, "--layer"):
        net.prove(photos())
    with refused("prove()", kind=RuntimeError):
        net.frozen(CPU)


def test_nothing_is_given_that_was_not_proven():
    with refused("prove()", kind=RuntimeError):
        cut(planted(), "norm2").frozen(CPU)


class Counting(Planted):
    """Its last layer counts positions, so it takes images of one size."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8 * 8 * 8, CLASSES)

    def forward(self, x):
        return self.fc(self.features(x).flatten(1))


def test_features_of_a_size_that_only_the_head_takes_are_right_or_refused():
    images = photos(12)
    net = cut(Counting().eval(), "norm2")
    net.prove(images)
    assert net.frozen(CPU)(images).shape == (2, 8, 12, 12)
    with refused("net.pth.tar", "12×12", "--image_size"):
        cut(Counting().eval(), "relu_1").prove(images)


class Random(Planted):
    """Draws at random in evaluation mode too."""

    def forward(self, x):
        return self.fc(functional.dropout(self.features(x), 0.5, True).mean((2, 3)))


def test_a_net_that_draws_at_random_is_held_against_the_same_numbers():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    cut(Random().eval(), "norm2").prove(photos())
    torch.manual_seed(5)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_proof_leaves_no_trace():
    model = planted()
    model.norm1.train()
    before, modes, random = (
        copy.deepcopy(model.state_dict()),
        modes_of(model),
        torch.get_rng_state(),
    )
    cut(model, "norm2").prove_fast(photos())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert modes_of(model) == modes and torch.equal(torch.get_rng_state(), random)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("norm", ["norm1", "norm2"])
def test_a_net_whose_answers_are_no_numbers_is_what_it_is(capsys, norm):
    """Where all of its feature is no number, and where one channel is none."""
    model = planted()
    model.get_submodule(norm).bias.data[0] = float("nan")
    cut(model, "norm2").prove_fast(photos())
    assert not capsys.readouterr().out


def test_layers_of_many_kinds_are_proven_at_once(capsys):
    model = torchvision.models.get_model("shufflenet_v2_x0_5", num_classes=CLASSES).eval()
    names = ["conv1.0", "stage2.0", "stage3.1.cat", "stage4", "conv5"]
    net = cut(model, *names, tapped=True)
    net.prove_fast(photos(64))
    assert not capsys.readouterr().out
