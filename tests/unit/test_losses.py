import math

import pytest
import torch

from utils.losses import classification_loss, distillation_loss, order_penalty


def softmax(logits, tau=1.0):
    powers = [math.exp(logit / tau) for logit in logits]
    return [power / sum(powers) for power in powers]


STUDENT = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
TEACHER = [[2.0, 0.0, -1.0], [-4.0, 1.0, 2.0]]


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_distillation_is_tau_squared_times_the_soft_cross_entropy(tau):
    by_hand = 0.0
    for student, teacher in zip(STUDENT, TEACHER):
        wanted, said = softmax(teacher, tau), softmax(student, tau)
        by_hand -= sum(w * math.log(s) for w, s in zip(wanted, said))
    by_hand *= tau**2 / len(STUDENT)
    loss = distillation_loss(torch.tensor(STUDENT), torch.tensor(TEACHER), tau)
    assert loss.item() == pytest.approx(by_hand, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_an_undecided_student_pays_tau_squared_log_two(tau):
    teacher = torch.tensor([[5.0, 5.0 + tau * math.log(3)]])  # softmax ¼, ¾ at this temperature
    loss = distillation_loss(torch.zeros(1, 2), teacher, tau)
    assert loss.item() == pytest.approx(tau**2 * math.log(2), rel=1e-6)
    decided = distillation_loss(torch.tensor([[0.0, tau * math.log(3)]]), teacher, tau)
    entropy = -(math.log(1 / 4) / 4 + 3 * math.log(3 / 4) / 4)
    assert decided.item() == pytest.approx(tau**2 * entropy, rel=1e-6)


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_distillation_gradient_is_tau_times_the_difference_of_the_softmaxes(tau):
    student = torch.tensor(STUDENT, requires_grad=True)
    teacher = torch.tensor(TEACHER, requires_grad=True)
    distillation_loss(student, teacher, tau).backward()
    differences = [
        [(s - t) * tau / len(STUDENT) for s, t in zip(softmax(said, tau), softmax(wanted, tau))]
        for said, wanted in zip(STUDENT, TEACHER)
    ]
    torch.testing.assert_close(student.grad, torch.tensor(differences))
    assert teacher.grad is None


def test_half_precision_logits_give_a_float32_loss():
    student, teacher = torch.tensor(STUDENT).bfloat16(), torch.tensor(TEACHER).bfloat16()
    assert distillation_loss(student, teacher, 4.0).dtype == torch.float32
    assert classification_loss(student, torch.tensor([0, 1])).dtype == torch.float32


def test_classification_of_one_label_and_of_several():
    one = classification_loss(torch.tensor(STUDENT), torch.tensor([0, 2]))
    by_hand = -(math.log(softmax(STUDENT[0])[0]) + math.log(softmax(STUDENT[1])[2])) / 2
    assert one.item() == pytest.approx(by_hand, rel=1e-6)

    several = classification_loss(torch.tensor(STUDENT[:1]), torch.tensor([[1.0, 0.0, 1.0]]))
    sigmoid = [1 / (1 + math.exp(-logit)) for logit in STUDENT[0]]
    by_hand = -(math.log(sigmoid[0]) + math.log(1 - sigmoid[1]) + math.log(sigmoid[2])) / 3
    assert several.item() == pytest.approx(by_hand, rel=1e-6)


def test_penalty_weighs_the_square_of_every_p():
    p = torch.tensor([0.5, 0.25], requires_grad=True)
    penalty = order_penalty(p, torch.tensor([0.1, 8.0]))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.1 * 0.25 + 8 * 0.0625)
    torch.testing.assert_close(p.grad, torch.tensor([0.1, 4.0]))
