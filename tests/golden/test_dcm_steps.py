"""Two networks under DCM's loss: logits, terms,
gradients and three SGD steps of the authors' code.
"""

import numpy as np
import pytest
import torch

import models
from distillation.dcm import mutual_terms
from models.small.author_keys import authors_keys
from tests.golden.authors_nets import (
    assert_gradient_norms,
    assert_logits,
    norms,
    part,
    read,
    tensor,
)

pytestmark = pytest.mark.golden
PAIRS = {
    "dcm_wrn16_wrn16": ("wrn_16_1", "wrn_16_1", 10),
    "dcm_wrn16_mobilenet8": ("wrn_16_0.5", "mobilenet8", 100),
}
HEADS = ("ep1", "ep2", "final")


@pytest.fixture(params=PAIRS)
def run(request):
    """The golden numbers, the two networks as they begin,
    and their tensors by the authors' names.
    """
    golden = read(request.param)
    *archs, num_classes = PAIRS[request.param]
    nets = [models.build_with_heads(arch, num_classes, "dcm") for arch in archs]
    for number, net in enumerate(nets, start=1):
        models.load_authors_state(net, part(golden, f"net{number}/"))
    return golden, nets


def assert_evaluation(golden, prefix, nets, images):
    for number, net in enumerate(nets, start=1):
        with torch.no_grad():
            final, heads = net.eval()(images)
        for name, logits in zip(HEADS, (*heads, final)):
            assert_logits(logits, golden[f"{prefix}/net{number}.{name}"])


def by_authors_names(net):
    names = authors_keys(net)
    return {names[key]: value for key, value in net.named_parameters()}, {
        names[key]: value for key, value in net.named_buffers() if key in names
    }


def assert_close(actual, golden, key):
    """Against what was stored; numbers that differ between float32 and float64 were left out."""
    if key in golden:
        np.testing.assert_allclose(actual, golden[key], rtol=1e-4)
    return key in golden


def test_evaluation_before_training(run):
    golden, nets = run
    assert_evaluation(golden, "eval_logits", nets, tensor(golden, "input"))


def test_three_steps(run):
    golden, nets = run
    images, labels = tensor(golden, "input"), tensor(golden, "labels")
    parameters = [parameter for net in nets for parameter in net.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)
    compared = 0
    for step, rows in enumerate((slice(0, 4), slice(4, 8), slice(0, 4)), start=1):
        first, second = (net.train()(images[rows]) for net in nets)
        terms = mutual_terms(first, second, labels[rows])
        compared += assert_close(terms.ce.detach(), golden, f"step{step}/ce")
        compared += assert_close(terms.kl.detach(), golden, f"step{step}/kl")
        compared += assert_close(terms.total.item(), golden, f"step{step}/total")
        optimizer.zero_grad()
        terms.total.backward()
        for number, net in enumerate(nets, start=1):
            named, _ = by_authors_names(net)
            if f"step{step}/grad_norm/net{number}" in golden:
                assert_gradient_norms(
                    [named[name] for name in golden[f"param_names/net{number}"]],
                    golden[f"step{step}/grad_norm/net{number}"],
                )
                compared += 1
        optimizer.step()
        for number, net in enumerate(nets, start=1):
            named, buffers = by_authors_names(net)
            after = norms(named[name] for name in golden[f"param_names/net{number}"])
            compared += assert_close(after, golden, f"step{step}/param_norm_after/net{number}")
            after = norms(buffers[name] for name in golden[f"buffer_names/net{number}"])
            compared += assert_close(after, golden, f"step{step}/buffer_norm_after/net{number}")
    assert compared == sum(key.startswith("step") for key in golden)
    if "eval_logits_after_3_steps/net1.final" in golden:
        assert_evaluation(golden, "eval_logits_after_3_steps", nets, images)
