"""HSAKD's teacher, student, online pair,
linear probe and few-shot split: the numbers of the authors' code.
"""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import models
from distillation.hsakd import few_shot_indices, online_terms, rotate, student_terms, teacher_terms
from models.classifiers import fix_batch_norm
from models.probe import linear_probe
from models.small.author_keys import authors_keys, authors_state
from tests.golden.authors_nets import (
    assert_gradient_norms,
    assert_logits,
    filled,
    norms,
    part,
    read,
    tensor,
)

pytestmark = pytest.mark.golden
ROWS = (slice(0, 4), slice(4, 8))
RATIOS = (0.25, 0.5, 0.75)


def load(golden, prefix, arch):
    net = models.build_with_heads(arch, 100, "hsakd")
    models.load_authors_state(net, part(golden, prefix))
    return net


def assert_outputs(golden, prefix, net, images):
    with torch.no_grad():
        logits, branches = net.eval()(images)
    assert_logits(logits, golden[f"{prefix}logits"])
    for number, branch in enumerate(branches, start=1):
        assert_logits(branch, golden[f"{prefix}aux{number}"])


def assert_two_steps(golden, prefix, nets, terms_of):
    """Train for two steps with SGD;
    `nets` have the authors' names with the prefixes that are their keys.
    """
    images, labels = tensor(golden, "input"), tensor(golden, "labels")
    tensors = {
        f"{begin}{name}": (
            net.get_parameter(key) if key in dict(net.named_parameters()) else net.get_buffer(key)
        )
        for begin, net in nets.items()
        for key, name in authors_keys(net).items()
    }
    parameters = [tensors[name] for name in golden["param_names"]]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    for step, rows in enumerate(ROWS, start=1):
        for net in nets.values():
            net.train()
        terms = terms_of(rotate(images[rows]), labels[rows])
        assert terms.keys() == set(golden["term_names"])
        expected = golden[f"{prefix}step{step}/terms"]
        np.testing.assert_allclose(
            [terms[name].item() for name in golden["term_names"]], expected, rtol=1e-4
        )
        total = torch.stack(list(terms.values())).sum()
        np.testing.assert_allclose(total.item(), golden[f"{prefix}step{step}/total"], rtol=1e-4)
        optimizer.zero_grad()
        total.backward()
        if f"{prefix}step{step}/grad_norm" in golden:
            assert_gradient_norms(parameters, golden[f"{prefix}step{step}/grad_norm"])
        optimizer.step()
        after = norms(parameters)
        np.testing.assert_allclose(after, golden[f"{prefix}step{step}/param_norm_after"], rtol=1e-4)
        after = norms(tensors[name] for name in golden["buffer_names"])
        np.testing.assert_allclose(
            after, golden[f"{prefix}step{step}/buffer_norm_after"], rtol=1e-4
        )


@pytest.mark.parametrize(
    "name", ["hsakd_teacher_wrn16", "hsakd_student_resnet8_wrn16", "hsakd_online_wrn10"]
)
def test_rotation(name):
    golden = read(name)
    rotated = rotate(tensor(golden, "input")[:4]).double().flatten(1)
    checksum = (torch.arange(1, rotated.shape[1] + 1) * rotated.abs()).sum(1)
    np.testing.assert_allclose(checksum, golden["rotated_batch1_checksum"], rtol=1e-9)


@pytest.mark.parametrize("way", ["joint", "frozen"])
def test_teacher(way):
    golden = read("hsakd_teacher_wrn16")
    net = load(golden, "net/", "wrn_16_1_aux")
    images = tensor(golden, "input")[:4]
    assert_outputs(golden, "eval/", net, images)
    assert_outputs(golden, "eval_rotated/", net, rotate(images))
    if way == "frozen":
        net.backbone.requires_grad_(False)
        fix_batch_norm(net.backbone)
    # Their `eval_after_2_steps` is the same number for number in both ways, although one froze its
    # backbone: the script ends by loading a best epoch, which accuracy 0 never writes. So it is of
    # neither network and is not compared.
    assert_two_steps(
        golden, f"{way}/", {"": net}, lambda rotated, labels: teacher_terms(net(rotated), labels)
    )


def test_student():
    golden = read("hsakd_student_resnet8_wrn16")
    student, teacher = (
        load(golden, "student/", "resnet8_aux"),
        load(golden, "teacher/", "wrn_16_1_aux").eval(),
    )
    images = tensor(golden, "input")[:4]
    assert_outputs(golden, "eval/", student, images)
    assert_outputs(golden, "eval_rotated/", student, rotate(images))
    assert_outputs(golden, "eval_teacher_rotated/", teacher, rotate(images))

    def terms(rotated, labels):
        with torch.no_grad():
            taught = teacher(rotated)
        return student_terms(student(rotated), taught, labels)

    assert_two_steps(golden, "", {"": student}, terms)
    assert_outputs(golden, "eval_after_2_steps/", student, images)


def test_online():
    golden = read("hsakd_online_wrn10")
    nets = {f"net{number}.": load(golden, f"net/net{number}.", "wrn_10_1_aux") for number in (1, 2)}
    images = tensor(golden, "input")[:4]
    for name, net in nets.items():
        assert_outputs(golden, f"eval/{name}", net, images)
        assert_outputs(golden, f"eval_rotated/{name}", net, rotate(images))

    def terms(rotated, labels):
        first, second = (net(rotated) for net in nets.values())
        return online_terms(first, second, labels)

    assert_two_steps(golden, "", nets, terms)
    for name, net in nets.items():
        assert_outputs(golden, f"eval_after_2_steps/{name}", net, images)


def test_linear_probe():
    golden = read("hsakd_linear_probe")
    student = models.build_with_heads("mobilenetV2_aux", 100, "hsakd")
    models.load_authors_state(
        student, {name: filled(name, value.shape) for name, value in authors_state(student).items()}
    )
    net: Any = student.backbone
    net.conv2[1].weight.data /= 512
    net.conv2[1].bias.data /= 512
    layer = linear_probe(net, 10)
    layer.load_state_dict(
        {
            name: filled(f"classifier.{name}", value.shape)
            for name, value in layer.named_parameters()
        }
    )
    images, labels = tensor(golden, "input"), tensor(golden, "labels")
    with torch.no_grad():
        assert_logits(net.eval()(images), golden["eval_logits"])
    optimizer = torch.optim.SGD(
        [parameter for parameter in net.parameters() if parameter.requires_grad],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    for step, rows in enumerate(ROWS, start=1):
        loss = F.cross_entropy(net(images[rows]), labels[rows])
        np.testing.assert_allclose(loss.item(), golden[f"step{step}/ce"], rtol=1e-4)
        optimizer.zero_grad()
        loss.backward()
        for name in ("weight", "bias"):
            norm = golden[f"step{step}/grad_norm/classifier.{name}"]
            np.testing.assert_allclose(getattr(layer, name).grad.norm().item(), norm, rtol=1e-3)
        optimizer.step()
        np.testing.assert_allclose(
            layer.bias.detach(), golden[f"step{step}/classifier.bias_after"], rtol=1e-4
        )
        norm = golden[f"step{step}/classifier.weight_norm_after"]
        np.testing.assert_allclose(layer.weight.detach().norm().item(), norm, rtol=1e-4)


@pytest.mark.parametrize("ratio", RATIOS)
def test_few_shot_split(ratio):
    golden = read("hsakd_few_shot")
    assert (
        few_shot_indices(golden["small/labels"], ratio).tolist()
        == golden[f"small/indices_{ratio}"].tolist()
    )
    image = np.arange(50_000)
    indices = few_shot_indices((7919 * image + 13 * (image // 100)) % 100, ratio)
    assert indices[:20].tolist() == golden[f"big/first20_{ratio}"].tolist()
    assert len(indices) == golden[f"big/count_{ratio}"]
    assert (
        hashlib.sha256(indices.astype("<i4").tobytes()).hexdigest() == golden[f"big/sha256_{ratio}"]
    )
