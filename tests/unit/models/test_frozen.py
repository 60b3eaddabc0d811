import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import VGG, make_layers

from models.classifiers import fix_batch_norm
from models.frozen import freeze_for_inference
from models.split import split, tap

CPU = torch.device("cpu")
CUTS = [
    ("vgg_bn", "features.7"),  # a convolution whose BatchNorm is in the tail
    ("vgg_bn", "classifier.0"),
    ("vgg", "features.5"),  # a convolution that an in-place ReLU follows
    ("resnet18", "layer3.1.add"),
    ("densenet121", "features.denseblock2.cat"),  # BatchNorm before the convolution
    ("mobilenet_v2", "features.7"),
    ("shufflenet_v2_x0_5", "stage3.1.cat"),
]


def thin_vgg(batch_norm):
    model = VGG(make_layers([8, "M", 16, 16, "M"], batch_norm), num_classes=5, init_weights=False)
    model.classifier = nn.Sequential(nn.Linear(16 * 7 * 7, 8), nn.ReLU(True), nn.Linear(8, 5))
    return model


def untrained(arch):
    """The network in float64 with weights that keep a signal's magnitude,
    and BatchNorms that are no identity.
    """
    with torch.device("meta"):
        model = (
            thin_vgg(arch == "vgg_bn")
            if arch.startswith("vgg")
            else torchvision.models.get_model(arch)
        )
    for value in model.double().to_empty(device="cpu").state_dict().values():
        if value.ndim > 1:
            value.normal_(0, (2 / value[0].numel()) ** 0.5)
        elif value.is_floating_point():
            value.uniform_(0.5, 1.5)
        else:
            value.zero_()
    return model.eval()


def norms(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def photos(dtype=torch.float64, size=64):
    return torch.randn(2, 3, size, size, dtype=dtype)


@torch.no_grad()
@pytest.mark.parametrize(("arch", "layer"), CUTS)
def test_the_frozen_halves_compute_the_same(arch, layer):
    """In float64, where rounding hides nothing."""
    model = untrained(arch)
    head, tail = split(model, layer)
    images = photos()
    expected, given = head(images), images.clone()
    feature = freeze_for_inference(head, CPU)(images)
    torch.testing.assert_close(
        feature, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item()
    )
    assert feature.shape == expected.shape and feature.is_contiguous()
    assert torch.equal(images, given)
    logits = freeze_for_inference(tail, CPU)(expected.clone())
    torch.testing.assert_close(logits, model(images), rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_tokens_and_buffers_of_a_transformer_stay():
    model = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5).eval()
    head, _ = split(model, "encoder.layers.encoder_layer_0.add_1")
    images = photos(torch.float32, 32)
    torch.testing.assert_close(freeze_for_inference(head, CPU)(images), head(images))


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "layer"), [("vgg_bn", "features.7"), ("resnet18", "layer3.1.add")]
)
def test_in_float32_only_rounding_differs(arch, layer):
    head, _ = split(untrained(arch).float(), layer)
    images = photos(torch.float32)
    expected = head(images)
    feature = freeze_for_inference(head, CPU)(images)
    assert (feature - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("layer", ["features.4", "features.7", "classifier.0"])
def test_in_place_layers_of_the_tail_leave_the_feature(layer):
    torch.manual_seed(0)
    model = untrained("vgg_bn")
    both = tap(model, [layer])
    images = photos(size=32)
    feature, logits = both(images)
    frozen_feature, frozen_logits = freeze_for_inference(both, CPU)(images)
    assert (feature < 0).any()
    torch.testing.assert_close(frozen_feature, feature)
    torch.testing.assert_close(frozen_logits, logits)


@pytest.mark.parametrize(
    ("arch", "left"), [("vgg_bn", 0), ("resnet18", 0), ("mobilenet_v2", 0), ("densenet121", 62)]
)
def test_every_batch_norm_behind_a_convolution_is_folded(arch, left):
    model = untrained(arch)
    fix_batch_norm(next(model.children()))
    assert len(norms(freeze_for_inference(model, CPU))) == left < len(norms(model))


class Doubtful(nn.Module):
    """Convolutions with a BatchNorm behind them that must not be folded."""

    def __init__(self):
        super().__init__()
        self.read_twice, self.called_twice, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.norm, self.other = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.of_batch = nn.BatchNorm2d(3, track_running_stats=False)
        for norm in (self.norm, self.other):
            norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]

    def forward(self, x):
        y = self.read_twice(x)
        y = y + self.norm(y)
        y = self.norm(self.called_twice(y)) + self.other(self.called_twice(y))
        return self.of_batch(self.last(y))


@torch.no_grad()
def test_a_convolution_that_others_need_is_not_folded():
    model = Doubtful().double().eval()
    images = photos()
    frozen = freeze_for_inference(model, CPU)
    torch.testing.assert_close(frozen(images), model(images))
    assert len(norms(frozen)) == 3


@torch.no_grad()
def test_the_given_network_stays_as_it_is():
    model = untrained("resnet18").train()
    fix_batch_norm(model.layer1)
    state, modes = (
        copy.deepcopy(model.state_dict()),
        [module.training for module in model.modules()],
    )
    layouts = [weight.stride() for weight in model.parameters()]
    frozen = freeze_for_inference(model, CPU)
    first = frozen(photos())
    assert first.std() > 0
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [weight.stride() for weight in model.parameters()] == layouts
    assert all(weight.requires_grad for weight in model.layer2.parameters())
    images = photos()
    torch.testing.assert_close(frozen(images), model.eval()(images))


def test_the_frozen_network_is_in_evaluation_mode_without_gradients_in_channels_last():
    model = untrained("mobilenet_v2").train()
    frozen = freeze_for_inference(model, CPU)
    assert not any(module.training for module in frozen.modules())
    assert not frozen(photos()).requires_grad
    convolutions = [layer.weight for layer in frozen.modules() if isinstance(layer, nn.Conv2d)]
    assert len(convolutions) == 52
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)


def test_a_head_holds_its_own_weights_alone():
    model = untrained("vgg_bn")
    head, tail = split(model, "features.7")
    frozen = freeze_for_inference(head, CPU)
    before, behind = weakref.ref(model.features[0].weight), weakref.ref(model.classifier[0].weight)
    del model, head, tail
    gc.collect()
    assert before() is None and behind() is None
    assert [name for name, _ in frozen.named_children()] == ["features"]


def test_linear_layers_share_their_weights():
    model = untrained("vgg_bn")
    weight = freeze_for_inference(model, CPU).get_parameter("classifier.0.weight")
    assert weight.data_ptr() == model.classifier[0].weight.data_ptr()
    assert not weight.requires_grad and model.classifier[0].weight.requires_grad
