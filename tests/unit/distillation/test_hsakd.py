import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from distillation.hsakd import (
    branch_accuracies_percent,
    class_logits,
    distillation,
    few_shot_indices,
    joint_labels,
    online_terms,
    rotate,
    split_training,
    student_terms,
    teacher_terms,
)
from tests.mistakes import refused

LABELS = torch.tensor([2, 0])
CLASSES = 3


def outputs(branches=2):
    """On two images in four rotations: class logits (8, 3) and branches (8, 12)."""
    return torch.randn(8, CLASSES, requires_grad=True), [
        torch.randn(8, 4 * CLASSES, requires_grad=True) for _ in range(branches)
    ]


def test_rotation_by_hand():
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8)
    rotated = rotate(torch.stack([image, image + 10])[:, None])
    assert rotated.dtype == torch.uint8 and rotated.shape == (8, 1, 2, 2)
    assert rotated[:4, 0].tolist() == [
        [[1, 2], [3, 4]],
        [[2, 4], [1, 3]],
        [[4, 3], [2, 1]],
        [[3, 1], [4, 2]],
    ]
    assert torch.equal(rotated[4:], rotated[:4] + 10)


def test_a_rotation_is_counter_clockwise():
    images = torch.randn(1, 3, 5, 5)
    i, j = torch.meshgrid(torch.arange(5), torch.arange(5), indexing="ij")
    assert torch.equal(rotate(images)[1], images[0][:, j, 4 - i])


def test_joint_labels_and_their_sums():
    assert joint_labels(LABELS).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    joint = torch.arange(12.0)[None]
    assert class_logits(joint).tolist() == [[0 + 1 + 2 + 3, 4 + 5 + 6 + 7, 8 + 9 + 10 + 11]]


@pytest.mark.parametrize("tau", [1.0, 3.0])
def test_distillation_is_tau_squared_times_the_divergence(tau):
    student, teacher = [[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]], [[2.0, 0.0, -1.0], [-4.0, 1.0, 2.0]]
    by_hand = 0.0
    for row_s, row_t in zip(student, teacher):
        q, p = (
            [math.exp(z / tau) / sum(math.exp(u / tau) for u in row) for z in row]
            for row in (row_s, row_t)
        )
        by_hand += tau**2 / 2 * sum(b * math.log(b / a) for a, b in zip(q, p))
    learner, taught = (torch.tensor(rows, requires_grad=True) for rows in (student, teacher))
    loss = distillation(learner, taught, tau)
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    loss.backward()
    assert taught.grad is None
    difference = (learner / tau).softmax(1) - (taught / tau).softmax(1)
    torch.testing.assert_close(learner.grad, tau * difference.detach() / 2)


def test_a_teacher_learns_classes_upright_and_joint_labels_of_all_rotations():
    z, branches = outputs()
    terms = teacher_terms((z, branches), LABELS)
    assert list(terms) == ["ce_aux1", "ce_aux2", "ce_class"]
    torch.testing.assert_close(terms["ce_class"], F.cross_entropy(z[[0, 4]], LABELS))
    for number, branch in enumerate(branches, start=1):
        torch.testing.assert_close(
            terms[f"ce_aux{number}"], F.cross_entropy(branch, joint_labels(LABELS))
        )


def test_a_student_learns_labels_from_upright_images_and_the_rest_from_its_teacher():
    student, teacher = outputs(), outputs()
    terms = student_terms(student, teacher, LABELS, 2.0)
    assert list(terms) == ["ce_class", "kl_aux1", "kl_aux2", "kl_class"]
    torch.testing.assert_close(terms["ce_class"], F.cross_entropy(student[0][[0, 4]], LABELS))
    torch.testing.assert_close(terms["kl_class"], distillation(student[0], teacher[0], 2.0))
    torch.testing.assert_close(terms["kl_aux2"], distillation(student[1][1], teacher[1][1], 2.0))
    torch.stack(list(terms.values())).sum().backward()
    assert teacher[0].grad is None and student[1][0].grad is not None


def test_online_both_networks_learn_as_teachers_and_from_each_other():
    first, second = outputs(), outputs()
    terms = online_terms(first, second, LABELS)
    assert len(terms) == 12
    for name, term in teacher_terms(second, LABELS).items():
        assert torch.equal(terms[f"{name}_net2"], term)
    assert torch.equal(
        terms["kl_aux1_net1_learns_from_net2"], distillation(first[1][0], second[1][0])
    )
    assert torch.equal(terms["kl_class_net2_learns_from_net1"], distillation(second[0], first[0]))


def test_student_and_teacher_need_equally_many_branches():
    with refused("4", "3", "HSAKD"):
        student_terms(outputs(3), outputs(4), LABELS)


def test_accuracies_of_branches():
    right = F.one_hot(joint_labels(LABELS), 4 * CLASSES).float()
    # Another rotation of the right class
    turned = F.one_hot(joint_labels(LABELS) ^ 1, 4 * CLASSES).float()
    accuracies = branch_accuracies_percent([right, turned], LABELS)
    assert {name: value.item() for name, value in accuracies.items()} == {
        "ss_aux1": 100.0,
        "class_aux1": 100.0,
        "ss_aux2": 0.0,
        "class_aux2": 100.0,
    }


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_few_shot_takes_the_same_share_of_every_class(ratio):
    labels = np.repeat(np.arange(5), 8)[::-1]
    indices = few_shot_indices(labels, ratio)
    assert np.bincount(labels[indices]).tolist() == [8 * ratio] * 5
    assert len(set(indices.tolist())) == len(indices)
    assert np.array_equal(few_shot_indices(labels, ratio), indices)


def test_the_whole_set_and_impossible_shares():
    labels = np.repeat(np.arange(5), 8)
    assert few_shot_indices(labels, 1.0).tolist() == list(range(40))
    for ratio in (0.0, -0.5, 1.5):
        with refused("--few-ratio", f"{ratio:g}"):
            few_shot_indices(labels, ratio)
    with refused("--few-ratio", "0.05", "40", "train_size"):
        few_shot_indices(labels, 0.05)


def test_training_images_are_chosen_by_the_archives_order_and_held_out_of_them():
    """Files are named by their place in the archive;
    folders of classes put them in another order.
    """
    labels_in_archive = np.arange(40) % 2
    places = [*range(0, 40, 2), *range(1, 40, 2)]  # class by class
    paths = [f"{place % 2}/{place:05d}.png" for place in places]
    kept, held_out = split_training(paths, labels_in_archive[places], 0.5, 0)
    assert [places[i] for i in kept] == few_shot_indices(labels_in_archive, 0.5).tolist() and len(
        held_out
    ) == 0
    fitted, held_out = split_training(paths, labels_in_archive[places], 0.5, 0.25)
    assert sorted([*fitted, *held_out]) == sorted(kept) and len(held_out) == 5
    everything, none = split_training(paths, labels_in_archive[places], 1, 0)
    assert sorted(everything) == list(range(40)) and len(none) == 0


def test_splits_that_cannot_be_are_refused():
    paths, labels = ["a/1", "a/2", "b/1", "b/2"], np.array([0, 0, 1, 1])
    with refused("--hold_out", "0.1", "4"):
        split_training(paths, labels, 1, 0.1)
    with refused("HSAKD", "--dataset"):
        split_training(paths, np.zeros((4, 2)), 1, 0)
