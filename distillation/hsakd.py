"""The losses and batches of HSAKD, hierarchical self-supervised augmented distillation.

Each image comes in four rotations (Yang et al. 2021). Branch l of a network has one logit
a^l[4c + r] for each class c and rotation r. z are the class logits, z⁰ those of the unrotated
images, τ is the temperature:

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
# The outputs of a network with branches: z (4B, N), and [a^1, …], (4B, 4N) each
Outputs = tuple[Tensor, list[Tensor]]
Terms = dict[str, Tensor]  # scalars by name; the loss is their sum


def rotate(images: Tensor) -> Tensor:
    """Rotate every image by 0, 90, 180 and 270 degrees counter-clockwise.

    Args:
        images: (B, C, S, S), any dtype.

    Returns:
        (4B, C, S, S); image b rotated k times is row 4b + k.
    """
    # Stacked behind the batch axis, (B, 4, C, S, S), so that an image's rotations are neighbours.
    return torch.stack([images.rot90(k, (2, 3)) for k in range(ROTATIONS)], 1).flatten(0, 1)


def joint_labels(labels: Tensor) -> Tensor:
    """Give the joint labels 4y + k of rotated images of classes y, int64 (B,) → (4B,)."""
    # (B, 1) + (4,) → (B, 4) → (4B,), in the order of `rotate`
    return (ROTATIONS * labels[:, None] + torch.arange(ROTATIONS, device=labels.device)).flatten()


def class_logits(joint: Tensor) -> Tensor:
    """Sum a branch's logits over the rotations, (M, 4N) → (M, N)."""
    # Joint logits 4c + r: (M, 4N) → (M, N, 4)
    return joint.unflatten(1, (-1, ROTATIONS)).sum(2)


def distillation(student: Tensor, teacher: Tensor, tau: float = TAU) -> Tensor:
    """KD(teacher → student) of logits (M, C) at temperature τ > 0."""
    log_teacher = (teacher.detach().float() / tau).log_softmax(1)
    log_student = (student.float() / tau).log_softmax(1)
    # "batchmean" divides the sum by the rows, 4B of rotated images, and not by the classes too.
    return tau**2 * F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)


def teacher_terms(outputs: Outputs, labels: Tensor) -> Terms:
    """Compute a teacher's terms `ce_aux1`, …, `ce_class`.

    Args:
        outputs: on rotated images.
        labels: of the unrotated images, int64 (B,).
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
    """Compute the terms of two networks that teach each other.

    Args:
        outputs_1: of network 1, on rotated images.
        outputs_2: of network 2, on the same images.
        labels: of the unrotated images, int64 (B,).
        tau: temperature.

    Returns:
        `ce_class_net1`, `ce_aux1_net1`, …, `kl_class_net1_learns_from_net2`, ….

    Raises:
        InputError: the two have different numbers of branches.
    """
    terms: Terms = {}
    for learner, teacher, outputs, targets in (
        (1, 2, outputs_1, outputs_2),
        (2, 1, outputs_2, outputs_1),
    ):
        for name, term in teacher_terms(outputs, labels).items():
            terms[f"{name}_net{learner}"] = term
        for name, term in _distilled(outputs, targets, tau).items():
            terms[f"kl_{name}_net{learner}_learns_from_net{teacher}"] = term
    return terms


def branch_accuracies_percent(branches: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
    """Give mean accuracies of branches on rotated images, in percent.

    Args:
        branches: logits (4B, 4N) each.
        labels: of the unrotated images, int64 (B,).

    Returns:
        `ss_aux1`, … of class and rotation together; `class_aux1`, … of the class, by logits that
        are summed over rotations.
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
    """Refuse two networks whose branches do not correspond.

    Args:
        student: its number of branches.
        teacher: its number of branches.

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
        Indices, int64 (about ratio·M,), in scikit-learn's order; for ratio 1 all, in order.

    Raises:
        InputError: a ratio out of range, or one that leaves a class without images.
    """
    if not 0 < ratio <= 1:
        raise InputError(
            f"--few-ratio is a share of the training images, above 0 and up to 1, not {ratio:g}"
        )
    if ratio == 1:
        return np.arange(len(labels))
    # A fixed seed: all runs and all methods train on the same few images.
    splitter = sklearn.model_selection.StratifiedShuffleSplit(
        n_splits=1, test_size=1 - ratio, random_state=0
    )
    try:
        # The split's first half, its training part; it needs labels alone, so zeros stand for
        # images.
        return next(splitter.split(np.zeros(len(labels)), labels))[0]
    except ValueError as error:
        raise InputError(
            f"--few-ratio {ratio:g} does not split these {len(labels)} images: {error}"
        ) from None


def split_training(
    paths: Sequence[str], labels: np.ndarray, ratio: float, hold_out: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the training images and the held-out ones, the same share of every class.

    Args:
        paths: of the images. The choice follows the order of file names, which is the archive's.
        labels: class ids, integers (M,).
        ratio: share of the images that are used at all, as of `few_shot_indices`.
        hold_out: share of these that is held out, in [0, 1).

    Returns:
        Positions of the training and of the held-out images, int64.

    Raises:
        InputError: a share leaves a class without images, or images have several classes.
    """
    if labels.ndim > 1:
        raise InputError(
            "HSAKD needs images of one class each, and these have several; choose another --dataset"
        )
    # File names count through the archive, whatever class folder they are in.
    order = np.array(
        sorted(range(len(paths)), key=lambda i: (PurePosixPath(paths[i]).name, paths[i]))
    )
    # `few_shot_indices` counts along `order`; the result are places in `paths`.
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
    return _cross_entropy(outputs[0][::ROTATIONS], labels)  # rows 4b are unrotated


def _distilled(outputs: Outputs, teacher: Outputs, tau: float) -> Terms:
    """KD of every branch, `aux1`, …, and of the class logits, `class`."""
    (logits, branches), (target_logits, target_branches) = outputs, teacher
    check_branches(len(branches), len(target_branches))
    terms = {
        f"aux{number}": distillation(branch, target, tau)
        for number, (branch, target) in enumerate(zip(branches, target_branches), start=1)
    }
    return terms | {"class": distillation(logits, target_logits, tau)}
