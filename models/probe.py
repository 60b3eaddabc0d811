"""Linear probes: one linear layer that is trained on a frozen network's features."""

from torch import nn

from models.classifiers import fix_batch_norm, last_layer
from utils.errors import InputError


def linear_probe(model: nn.Module, num_classes: int) -> nn.Linear:
    """Freeze a classifier and replace its last layer by a new linear one.

    BatchNorm layers are frozen with their statistics. Keep a network with dropout in evaluation
    mode.

    Args:
        model: images (N, 3, S, S) → logits; changed in place: its logits become (N, num_classes).
        num_classes: C.

    Returns:
        The new layer, the only one that is trained.

    Raises:
        InputError: the classifier does not end in a linear layer.
    """
    model.requires_grad_(False)
    fix_batch_norm(model)
    name = last_layer(model)
    old = model.get_submodule(name)
    if not isinstance(old, nn.Linear):
        raise InputError(
            f"a linear probe needs a linear last layer; {name} of this {type(model).__name__} is"
            " none"
        )
    new = nn.Linear(old.in_features, num_classes, device=old.weight.device)
    model.set_submodule(name, new)
    return new
