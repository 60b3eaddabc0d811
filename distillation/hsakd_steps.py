"""HSAKD's steps: a batch of images in, loss and metrics out;
the losses are of `distillation.hsakd`.

Every step takes uint8 (B, 3, S, S), class ids int64 (B,) and indices int64 (B,), and by name
`preprocess`, which makes float32 (B, 3, S, S) of images and indices, and `accuracies`, which gives
accuracies in percent of logits and targets. The networks see the four rotations of what is
preprocessed, 4B images, made on their device.
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
    """Train a network with branches: CE of classes upright and,
    in every branch, of classes and rotations.
    """
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
    """Train a student: CE of classes upright, and KD from a teacher,
    in evaluation mode, on the same rotated images.
    """
    rotated = rotate(preprocess(images, indices))
    with torch.no_grad():
        taught = teacher(rotated)
    outputs = net(rotated)
    return _summed(
        student_terms(outputs, taught, targets, tau), _measured(outputs, targets, accuracies)
    )


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
    """Train two networks: the teacher's loss of both,
    and KD in both directions; metrics begin with net1_ or net2_.
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
    """Evaluate a network: CE and accuracies of classes upright,
    accuracies of branches on all rotations.
    """
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
    return torch.stack(list(terms.values())).sum(), terms | measured


def _measured(outputs: Outputs, targets: Tensor, accuracies: Accuracies) -> dict[str, Tensor]:
    return accuracies(outputs[0][::ROTATIONS], targets) | branch_accuracies_percent(
        outputs[1], targets
    )


def _measured_both(
    outputs: Sequence[Outputs], targets: Tensor, accuracies: Accuracies
) -> dict[str, Tensor]:
    both = (_measured(of_net, targets, accuracies).items() for of_net in outputs)
    return {
        f"net{number}_{name}": value
        for number, items in enumerate(both, start=1)
        for name, value in items
    }
