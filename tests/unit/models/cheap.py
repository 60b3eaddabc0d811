"""Weights and networks that cost little."""

import torch
import torchvision


def thin_state(arch, num_classes, value=None):
    """A state dict of the right shapes that is small on disk: every tensor repeats one number."""
    with torch.device("meta"):
        state = torchvision.models.get_model(arch, num_classes=num_classes).state_dict()
    thin = {}
    for index, (key, tensor) in enumerate(state.items()):
        number = torch.full((), value if value is not None else 0.001 * index)
        thin[key] = number.to(tensor.dtype).expand(tensor.shape)
    return thin


def save(path, contents, zipped=True):
    torch.save(contents, path, _use_new_zipfile_serialization=zipped)
    return path


def untrained(arch, num_classes=5):
    """The network with cheap random weights:
    torchvision's own initialisation of a VGG takes seconds.
    """
    if arch.startswith("swin"):  # its integer buffers are tables
        return torchvision.models.get_model(arch, num_classes=num_classes)
    with torch.device("meta"):
        model = torchvision.models.get_model(arch, num_classes=num_classes)
    for key, value in model.to_empty(device="cpu").state_dict().items():
        if "running_var" in key:
            value.uniform_(0.5, 2)
        elif value.is_floating_point():
            value.uniform_(-0.05, 0.05)
        else:
            value.zero_()
    return model
