"""The losses of hierarchical self-supervised augmented distillation (HSAKD,
Yang et al. 2021), and its batches.

An image comes in four rotations; a branch l of a network has one logit a^l[4c + r] for each class c
and rotation r. z are the class logits, z⁰ those of the unrotated images, τ the temperature:

    teacher   CE(z⁰, y) + Σ_l CE(a^l, 4y + r)
    student   CE(z⁰, y) + Σ_l KD(teacher's a^l → a^l) + KD(teacher's z → z)
    online    the teacher's loss of both networks + KD of z and of every a^l in both directions
    KD(t → s) = τ² · KL(softmax(t/τ) ‖ softmax(s/τ)), mean over all rotated images; t is not
    differentiated
"""

from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from utils.errors import InputError
from utils.later import sklearn

ROTATIONS = 4
TAU = 3.0
# Of a network with branches: z (4B, N), [a^1, …] of (4B, 4N) each
Outputs = tuple[Tensor, list[Tensor]]
Terms = dict[str, Tensor]  # scalars by name; the loss is their sum


def rotate(images: Tensor) -> Tensor:
    """Rotate every image by 0, 90, 180 and 270 degrees counter-clockwise,
    (B, C, S, S) → (4B, C, S, S) of any dtype.

    Image b rotated k times is row 4b + k.
    """
    return torch.stack([images.rot90(k, (2, 3)) for k in range(ROTATIONS)], 1).flatten(0, 1)


def joint_labels(labels: Tensor) -> Tensor:
    """Give the joint labels 4y + k of what `rotate` makes of images of the classes y,
    int64 (B,) → (4B,).
    """
    return (ROTATIONS * labels[:, None] + torch.arange(ROTATIONS, device=labels.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:
    """Sum a branch's logits (M, 4N) over the rotations, → (M, N)."""
    return joint.unflatten(1, (-1, ROTATIONS)).sum(2)


def distillation(student: Tensor, teacher: Tensor, tau: float = TAU) -> Tensor:
    """KD(teacher → student) of logits (M, C) at temperature τ > 0."""
    log_teacher = (teacher.detach().float() / tau).log_softmax(1)
    log_student = (student.float() / tau).log_softmax(1)
    return tau**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def teacher_terms(outputs: Outputs, labels: Tensor) -> Terms:
    """Compute a teacher's terms `ce_aux1`, …,
    `ce_class` from its outputs on rotated images and the labels (B,).
    """
    joint = joint_labels(labels)
    terms = {
        f"ce_aux{number}": _cross_entropy(branch, joint)
        for number, branch in enumerate(outputs[1], start=1)
    }
    return terms | {"ce_class": _class_loss(outputs, labels)}


def student_terms(outputs: Outputs, teacher: Outputs, labels: Tensor, tau: float = TAU) -> Terms:
    """Compute a student's terms `ce_class`, `kl_aux1`, …, `kl_class`.

    Args:
        outputs: the student's on rotated images.
        teacher: the teacher's on the same images, in evaluation mode.
        labels: of the unrotated images, int64 (B,).
        tau: temperature.

    Raises:
        InputError: the two have different numbers of branches.
    """
    distilled = _distilled(outputs, teacher, tau)
    return {
        "ce_class": _class_loss(outputs, labels),
        **{f"kl_{name}": term for name, term in distilled.items()},
    }


def online_terms(outputs_1: Outputs, outputs_2: Outputs, labels: Tensor, tau: float = TAU) -> Terms:
    """Compute the terms of two networks that teach each other,
    from their outputs on rotated images.

    The names are `ce_class_net1`, `ce_aux1_net1`, …, `kl_class_net1_learns_from_net2`, ….

    Raises:
        InputError: the two have different numbers of branches.
    """
    terms: Terms = {}
    for own, other, outputs, teacher in (
        (1, 2, outputs_1, outputs_2),
        (2, 1, outputs_2, outputs_1),
    ):
        terms |= {f"{name}_net{own}": term for name, term in teacher_terms(outputs, labels).items()}
        distilled = _distilled(outputs, teacher, tau)
        terms |= {
            f"kl_{name}_net{own}_learns_from_net{other}": term for name, term in distilled.items()
        }
    return terms


def branch_accuracies_percent(branches: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Mean accuracies of branches on rotated images, in percent.

    Args:
        branches: logits (4B, 4N) each.
        labels: of the unrotated images, int64 (B,).

    Returns:
        `ss_aux1`, … of class and rotation together, `class_aux1`, … of the class, the logits summed
        over rotations.
    """
    joint, classes = joint_labels(labels), labels.repeat_interleave(ROTATIONS)
    accuracies = {}
    for number, branch in enumerate(branches, start=1):
        accuracies[f"ss_aux{number}"] = 100.0 * (branch.argmax(1) == joint).float().mean()
        accuracies[f"class_aux{number}"] = (
            100.0 * (class_logits(branch).argmax(1) == classes).float().mean()
        )
    return accuracies


def check_branches(student: int, teacher: int) -> None:
    """Refuse networks that do not teach each other branch by branch.

    Raises:
        InputError: the two have different numbers of branches.
    """
    if student != teacher:
        raise InputError(
            f"the teacher has {teacher} branches and the student {student}; "
            "HSAKD needs equally many (WRN, ResNet and ShuffleNet have 3, the others 4)"
        )


def few_shot_indices(labels: np.ndarray, ratio: float) -> np.ndarray:
    """Choose the training images of the few-shot experiment: the same share of every class.

    Args:
        labels: class ids of the training images in the order of the file, integers (M,).
        ratio: the share, in (0, 1].

    Returns:
        Indices, int64 (about ratio·M,), in scikit-learn's order; all in their own order for ratio
        1.

    Raises:
        InputError: a ratio out of range, or one that leaves a class without images.
    """
    if not 0 < ratio <= 1:
        raise InputError(
            f"--few-ratio is a share of the training images, above 0 and up to 1, not {ratio:g}"
        )
    if ratio == 1:
        return np.arange(len(labels))
    splitter = sklearn.model_selection.StratifiedShuffleSplit(
        n_splits=1, test_size=1 - ratio, random_state=0
    )
    try:
        return next(splitter.split(np.zeros(len(labels)), labels))[0]
    except ValueError as error:
        raise InputError(
            f"--few-ratio {ratio:g} does not split these {len(labels)} images: {error}"
        ) from None


def split_training(
    paths: Sequence[str], labels: np.ndarray, ratio: float, hold_out: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the images that are trained on and those that are held out of them,
    the same share of every class.

    Args:
        paths: of the images; the order of the files' names, which is the archive's, decides what is
            chosen.
        labels: class ids, integers (M,).
        ratio: share of the images that are used at all, as of `few_shot_indices`.
        hold_out: share of these that is held out, in [0, 1).

    Returns:
        Positions of both, int64; none are held out for a share of 0.

    Raises:
        InputError: a share leaves a class without images, or images have several classes.
    """
    if labels.ndim > 1:
        raise InputError(
            "HSAKD needs images of one class each, and these have several; choose another --dataset"
        )
    order = np.array(
        sorted(range(len(paths)), key=lambda i: (PurePosixPath(paths[i]).name, paths[i]))
    )
    few = order[few_shot_indices(labels[order], ratio)]
    if not hold_out:
        return few, few[:0]
    try:
        kept = few_shot_indices(labels[few], 1 - hold_out)
    except InputError:
        raise InputError(
            f"--hold_out {hold_out:g} of {len(few)} images leaves a class without images; choose"
            " another share"
        ) from None
    return few[kept], few[np.setdiff1d(np.arange(len(few)), kept)]


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.float(), labels)


def _class_loss(outputs: Outputs, labels: Tensor) -> Tensor:
    """CE(z⁰, y)."""
    return _cross_entropy(outputs[0][::ROTATIONS], labels)


def _distilled(outputs: Outputs, teacher: Outputs, tau: float) -> Terms:
    """KD of every branch, `aux1`, …, and of the class logits, `class`."""
    check_branches(len(outputs[1]), len(teacher[1]))
    pairs = {
        f"aux{number}": pair for number, pair in enumerate(zip(outputs[1], teacher[1]), start=1)
    }
    pairs["class"] = (outputs[0], teacher[0])
    return {name: distillation(learner, taught, tau) for name, (learner, taught) in pairs.items()}
