import math

import pytest
import torch

from utils.training.losses import classification_loss, order_penalty


def softmax(logits, tau=1.0):
    powers = [math.exp(logit / tau) for logit in logits]
    return [power / sum(powers) for power in powers]


STUDENT = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]


def test_half_precision_logits_give_a_float32_loss():
    assert (
        classification_loss(torch.tensor(STUDENT).bfloat16(), torch.tensor([0, 1])).dtype
        == torch.float32
    )


def test_classification_of_one_label_and_of_several():
    one = classification_loss(torch.tensor(STUDENT), torch.tensor([0, 2]))
    by_hand = -(math.log(softmax(STUDENT[0])[0]) + math.log(softmax(STUDENT[1])[2])) / 2
    assert one.item() == pytest.approx(by_hand, rel=1e-6)

    several = classification_loss(torch.tensor(STUDENT[:1]), torch.tensor([[1.0, 0.0, 1.0]]))
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in STUDENT[0]]
    by_hand = -(math.log(sigmoid[0]) + math.log(1 - sigmoid[1]) + math.log(sigmoid[2])) / 3
    assert several.item() == pytest.approx(by_hand, rel=1e-6)


def test_a_smoothed_label_counts_a_little_as_every_class():
    logits, targets = torch.tensor(STUDENT), torch.tensor([0, 2])
    logs = [[math.log(p) for p in softmax(row)] for row in STUDENT]
    true, even = -(logs[0][0] + logs[1][2]) / 2, -sum(map(sum, logs)) / 6
    smoothed = classification_loss(logits, targets, 0.3).item()
    assert smoothed == pytest.approx(0.7 * true + 0.3 * even, rel=1e-6)


def test_penalty_weighs_the_square_of_every_p():
    p = torch.tensor([0.5, 0.25], requires_grad=True)
    penalty = order_penalty(p, torch.tensor([0.1, 8.0]))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.1 * 0.25 + 8 * 0.0625)
    torch.testing.assert_close(p.grad, torch.tensor([0.1, 4.0]))
