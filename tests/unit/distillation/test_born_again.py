import math

import pytest
import torch

from distillation.born_again import distillation_loss


def softmax(logits, tau=1.0):
    powers = [math.exp(logit / tau) for logit in logits]
    return [power / sum(powers) for power in powers]


STUDENT = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]
TEACHER = [[2.0, 0.0, -1.0], [-4.0, 1.0, 2.0]]


@pytest.mark.parametrize("tau", [1.0, 4.0])
def test_distillation_is_tau_squared_times_the_soft_cross_entropy(tau):
    by_hand = 0.0
    for student, teacher in zip(STUDENT, TEACHER):
        wanted, softened = softmax(teacher, tau), softmax(student, tau)
        by_hand -= sum(w * math.log(s) for w, s in zip(wanted, softened))
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
        [(s - t) * tau / len(STUDENT) for s, t in zip(softmax(softened, tau), softmax(wanted, tau))]
        for softened, wanted in zip(STUDENT, TEACHER)
    ]
    torch.testing.assert_close(student.grad, torch.tensor(differences))
    assert teacher.grad is None


def test_half_precision_logits_give_a_float32_loss():
    student, teacher = torch.tensor(STUDENT).bfloat16(), torch.tensor(TEACHER).bfloat16()
    assert distillation_loss(student, teacher, 4.0).dtype == torch.float32
