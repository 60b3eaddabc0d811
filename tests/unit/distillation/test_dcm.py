import math

import pytest
import torch
import torch.nn.functional as F

from distillation.dcm import EPS, mutual_terms
from tests.mistakes import refused


@pytest.fixture
def outputs():
    """Of two networks with two heads: final logits and head logits, (3, 4) each."""
    torch.manual_seed(0)
    logits = [torch.randn(3, 4, requires_grad=True) for _ in range(6)]
    return (logits[2], logits[:2]), (logits[5], logits[3:5])


LABELS = torch.tensor([0, 3, 2])


def heads_of(*outputs):
    return [logits for final, heads in outputs for logits in (*heads, final)]


def divergence(teacher, learner):
    """KL by hand, in Python's numbers."""
    total = 0.0
    for row_t, row_l in zip(teacher.tolist(), learner.tolist()):
        p, q = ([math.exp(z) / sum(map(math.exp, row)) for z in row] for row in (row_t, row_l))
        p, q = (
            [(u + EPS) / (1 + len(row_t) * EPS) for u in probabilities] for probabilities in (p, q)
        )
        total += sum(a * math.log(a / b) for a, b in zip(p, q))
    return total / len(teacher)


def test_all_24_terms_by_hand(outputs):
    terms = mutual_terms(outputs[0], outputs[1], LABELS)
    heads = heads_of(*outputs)
    assert terms.kl.count_nonzero() == 18
    for i, learner in enumerate(heads):
        assert terms.ce[i].item() == pytest.approx(
            F.cross_entropy(learner, LABELS).item(), rel=1e-6
        )
        for j, teacher in enumerate(heads):
            expected = 0.0 if i // 3 == j // 3 else divergence(teacher, learner)
            assert terms.kl[i, j].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert terms.total.item() == pytest.approx(terms.ce.sum().item() + terms.kl.sum().item())


def test_a_teacher_is_not_differentiated(outputs):
    heads = heads_of(*outputs)
    terms = mutual_terms(outputs[0], outputs[1], LABELS)
    gradients = torch.autograd.grad(terms.kl[1, 5], heads, allow_unused=True)
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [
        False,
        True,
    ] + [False] * 4
    # Of KL without ε, to the learner's logits
    difference = heads[1].softmax(1) - heads[5].softmax(1)
    torch.testing.assert_close(gradients[1], difference / len(LABELS), rtol=1e-4, atol=1e-6)


def test_equal_heads_have_nothing_to_teach():
    logits = torch.randn(3, 4)
    assert mutual_terms((logits, [logits]), (logits, [logits]), LABELS).kl.abs().max() < 1e-7


def test_a_sure_and_wrong_learner_pays_a_finite_price():
    sure = torch.tensor([[200.0, 0.0]])
    terms = mutual_terms((sure, []), (-sure, []), torch.tensor([0]))
    assert terms.kl[0, 1].item() == pytest.approx(math.log(1 / EPS), rel=1e-5)


def test_smoothed_probabilities_sum_to_one():
    """With so many classes that ε adds one percent."""
    first, second = torch.randn(2, 1, 1_000_000)
    p, q = (
        (logits.double().softmax(1) + EPS) / (1 + 1_000_000 * EPS) for logits in (first, second)
    )
    expected = (q * (q / p).log()).sum().item()
    assert mutual_terms((first, []), (second, []), torch.tensor([0])).kl[
        0, 1
    ].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["dml", "alone"])
def test_the_papers_baselines_have_final_heads_only(outputs, method):
    terms = mutual_terms(outputs[0], outputs[1], LABELS, method)
    finals = outputs[0][0], outputs[1][0]
    torch.testing.assert_close(
        terms.ce, torch.stack([F.cross_entropy(final, LABELS) for final in finals])
    )
    kl = [[0.0, divergence(finals[1], finals[0])], [divergence(finals[0], finals[1]), 0.0]]
    torch.testing.assert_close(terms.kl, torch.tensor(kl) * (method == "dml"), rtol=1e-5, atol=1e-7)
    terms.total.backward()
    assert all(head.grad is None for _, heads in outputs for head in heads)
    without = mutual_terms((finals[0], []), (finals[1], []), LABELS, method)
    assert torch.equal(without.total, terms.total)


def test_networks_may_have_different_numbers_of_heads(outputs):
    terms = mutual_terms((outputs[0][0], []), outputs[1], LABELS)
    assert terms.ce.shape == (4,) and terms.kl.shape == (4, 4) and terms.kl.count_nonzero() == 6


def test_half_precision_logits_give_a_float32_loss(outputs):
    half = [(final.bfloat16(), [head.bfloat16() for head in heads]) for final, heads in outputs]
    assert mutual_terms(half[0], half[1], LABELS).total.dtype == torch.float32


def test_another_method_is_refused(outputs):
    with refused("kd"):
        mutual_terms(outputs[0], outputs[1], LABELS, "kd")
