"""HSAKD's steps: a batch of images in, loss and metrics out, by `distillation.hsakd`.

Every step takes images uint8 (B, 3, S, S), class ids int64 (B,) and indices int64 (B,). By name it
takes `preprocess`, images and indices → float32 (B, 3, S, S), and `accuracies`, logits and targets
→ accuracies in percent. The networks see four rotations of each preprocessed image, 4B in all, made
on their device.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from distillation.hsakd import (
    ROTATIONS,
    Outputs,
    Terms,
    branch_accuracies_percent,
    online_terms,
    rotate,
    student_terms,
    teacher_terms,
)

StepResult = tuple[Tensor, dict[str, Tensor]]
Preprocess = Callable[[Tensor, Tensor], Tensor]
Accuracies = Callable[[Tensor, Tensor], dict[str, Tensor]]


def teach(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocess,
    accuracies: Accuracies,
) -> StepResult:
    """Train a network with branches: CE of upright classes, and of class and rotation in branches."""
    outputs = net(rotate(preprocess(images, indices)))
    return _summed(teacher_terms(outputs, targets), _measured(outputs, targets, accuracies))


def distil(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocess,
    accuracies: Accuracies,
    teacher: nn.Module,
    tau: float,
) -> StepResult:
    """Train a student: CE of upright classes, and KD from a frozen teacher on the same rotations."""
    rotated = rotate(preprocess(images, indices))
    with torch.no_grad():
        teacher_outputs = teacher(rotated)
    outputs = net(rotated)
    terms = student_terms(outputs, teacher_outputs, targets, tau)
    return _summed(terms, _measured(outputs, targets, accuracies))


def teach_each_other(
    pair: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocess,
    accuracies: Accuracies,
    tau: float,
) -> StepResult:
    """Train two networks: the teacher's loss of both, and KD in both directions.

    The names of accuracies begin with net1_ or net2_.
    """
    first, second = pair(rotate(preprocess(images, indices)))
    terms = online_terms(first, second, targets, tau)
    return _summed(terms, _measured_both((first, second), targets, accuracies))


def measure(
    net: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocess,
    accuracies: Accuracies,
) -> StepResult:
    """Evaluate a network: CE and accuracies of upright classes, of branches on all rotations."""
    outputs = net(rotate(preprocess(images, indices)))
    return teacher_terms(outputs, targets)["ce_class"], _measured(outputs, targets, accuracies)


def measure_both(
    pair: nn.Module,
    images: Tensor,
    targets: Tensor,
    indices: Tensor,
    *,
    preprocess: Preprocess,
    accuracies: Accuracies,
) -> StepResult:
    """Evaluate two networks; their CE are added."""
    outputs = pair(rotate(preprocess(images, indices)))
    losses = [teacher_terms(of_net, targets)["ce_class"] for of_net in outputs]
    return torch.stack(losses).sum(), _measured_both(outputs, targets, accuracies)


def _summed(terms: Terms, measured: dict[str, Tensor]) -> StepResult:
    """Give the sum of the terms, the loss, and all numbers as metrics."""
    return torch.stack(list(terms.values())).sum(), terms | measured


def _measured(outputs: Outputs, targets: Tensor, accuracies: Accuracies) -> dict[str, Tensor]:
    """Give accuracies on the upright images, and those of the branches on all rotations."""
    logits, branches = outputs
    # Rows 4b are the upright images.
    upright = accuracies(logits[::ROTATIONS], targets)
    return upright | branch_accuracies_percent(branches, targets)


def _measured_both(
    outputs: Sequence[Outputs], targets: Tensor, accuracies: Accuracies
) -> dict[str, Tensor]:
    """Give the accuracies of two networks; names begin with net1_ or net2_."""
    both = (_measured(of_net, targets, accuracies).items() for of_net in outputs)
    return {
        f"net{number}_{name}": value
        for number, items in enumerate(both, start=1)
        for name, value in items
    }
