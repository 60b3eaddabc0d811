"""Every architecture of DCM and HSAKD has its authors' keys,
shapes and parameter counts, and computes their logits.
"""

import numpy as np
import pytest
import torch

import models
from models.small.author_keys import authors_state
from tests.golden.authors_nets import assert_logits, filled, read, shapes_of, tensor

pytestmark = pytest.mark.golden
FILES = {"dcm": read("dcm_architectures"), "hsakd": read("hsakd_architectures")}
WITH_HEADS = [
    (method, arch)
    for method, golden in FILES.items()
    for arch in sorted({key.split("/")[0] for key in golden if key.endswith("/params")})
    if method == "dcm" or arch.endswith("_aux")
]
BARE = sorted(
    {key.split("/")[0] for key in FILES["hsakd"] if key.endswith("/params")}
    - {arch for _, arch in WITH_HEADS}
)
# Parameters of network and heads apart, as the papers count them: 100 classes, 1000 of ImageNet's.
APART = {
    ("dcm", "wrn_28_10"): (36_536_884, 20_145_060, 107_464_420),
    ("dcm", "mobilenet"): (3_309_476, 2_637_668, 5_484_132),
    ("dcm", "wrn_16_1"): (180_916, 97_156, 497_316),
    ("hsakd", "wrn_16_1"): (180_916,),
    ("hsakd", "wrn_16_2"): (703_284, 1_928_304),
    ("hsakd", "wrn_40_1"): (569_780, 1_484_432),
    ("hsakd", "wrn_40_2"): (2_255_156, 5_769_328),
    ("hsakd", "resnet8"): (83_892,),
    ("hsakd", "resnet20"): (278_324, 762_992),
    ("hsakd", "resnet56"): (861_620, 2_206_064),
    ("hsakd", "resnet8x4"): (1_233_540, 3_557_296),
    ("hsakd", "resnet32x4"): (7_433_860, 18_907_056),
    ("hsakd", "ResNet50"): (23_705_252, 76_976_704),
    ("hsakd", "vgg13_bn"): (9_462_180, 37_049_664),
    ("hsakd", "ShuffleV1"): (949_258, 3_118_740),
    ("hsakd", "ShuffleV2"): (1_355_528, 4_519_988),
    ("hsakd", "mobilenetV2"): (812_836, 4_671_496),
    ("hsakd", "resnet18_imagenet"): (11_689_512, 47_555_456),
    ("hsakd", "resnet34_imagenet"): (21_797_672, 76_474_240),
    ("hsakd", "resnet50_imagenet"): (25_557_032, 106_482_304),
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def structure(arch, num_classes, method):
    with torch.device("meta"):
        return models.build_with_heads(arch.replace("-", "_"), num_classes, method)


def input_of(golden, arch):
    """The images, and the number of classes that goes with them."""
    return (
        (tensor(golden, "input64"), 1000)
        if "_imagenet" in arch
        else (tensor(golden, "input32"), 100)
    )


@pytest.mark.parametrize("method", FILES)
def test_the_fill_rule(method):
    golden = FILES[method]
    for name in ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
        shape = (16, 3, 3, 3) if name == "conv1.weight" else (16,)
        assert np.array_equal(filled(name, shape).flatten()[:8], golden[f"fill_check/{name}"])


@pytest.mark.parametrize(("method", "arch"), WITH_HEADS)
def test_with_heads(method, arch):
    golden = FILES[method]
    images, num_classes = input_of(golden, arch)
    net = structure(arch, num_classes, method)
    shapes = shapes_of(golden, arch)
    assert {key: tuple(value.shape) for key, value in authors_state(net).items()} == shapes
    assert count(net) == golden[f"{arch}/params"]
    # Its 164 million weights take long, and wrn-16-1 and wrn-40-2 are its like
    if arch == "wrn-28-10":
        return

    net.to_empty(device="cpu").eval()
    models.load_authors_state(net, {key: filled(key, shape) for key, shape in shapes.items()})
    with torch.no_grad():
        logits, heads = net(images)
    final, head = ("final", "ep") if method == "dcm" else ("logits", "aux")
    assert_logits(logits, golden[f"{arch}/{final}"])
    assert {f"{head}{number + 1}" for number in range(len(heads))} | {
        final,
        "params",
        "keys",
        "shapes",
    } == {key.split("/")[1] for key in golden if key.startswith(f"{arch}/")}
    for number, of_head in enumerate(heads, start=1):
        assert_logits(of_head, golden[f"{arch}/{head}{number}"])


@pytest.mark.parametrize("arch", BARE)
def test_bare(arch):
    golden = FILES["hsakd"]
    images, num_classes = input_of(golden, arch)
    with torch.device("meta"):
        net = models.build(arch, num_classes)
    shapes = shapes_of(golden, arch)
    assert count(net) == golden[f"{arch}/params"]
    assert sorted(tuple(value.shape) for value in net.state_dict().values()) == sorted(
        shapes.values()
    )
    net.to_empty(device="cpu").eval()
    models.load_authors_state(net, {key: filled(key, shape) for key, shape in shapes.items()})
    with torch.no_grad():
        assert_logits(net(images), golden[f"{arch}/logits"])


@pytest.mark.parametrize(("method", "arch"), APART)
def test_parameters_of_network_and_heads(method, arch):
    net = structure(arch, 1000 if "imagenet" in arch else 100, method)
    backbone, *of_heads = APART[method, arch]
    assert count(net.backbone) == backbone
    found = [count(head) for head in net.heads.values()]
    if of_heads:  # of DCM's heads each one's is published, of HSAKD's the sum
        assert (found if method == "dcm" else [sum(found)]) == of_heads
