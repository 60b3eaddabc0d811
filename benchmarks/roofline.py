"""The convolutions of a network alone, in `channels_last` order: what it cannot be faster than."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Pass = tuple[nn.Conv2d, torch.Size]


def passes(net: nn.Module, function: Callable[[Tensor], object], images: Tensor) -> list[Pass]:
    """List the convolutions that a function of a network runs,
    in order, with the shapes of their inputs.
    """
    calls: list[Pass] = []
    handles = [
        module.register_forward_pre_hook(
            lambda module, inputs: calls.append((module, inputs[0].shape))
        )
        for module in net.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        function(images)
    for handle in handles:
        handle.remove()
    return calls


def bare_convolutions(
    net: nn.Module, images: Tensor, function: Callable[[Tensor], object] | None = None
) -> Callable[[], None]:
    """Give a function that runs a network's convolutions alone, without gradients.

    Args:
        net: whose convolutions; their weights are brought into `channels_last` order, so not one
            that is compared.
        images: what it reads, (N, C, H, W).
        function: of the network; None: its forward pass.
    """
    calls = passes(net.to(memory_format=torch.channels_last), function or net, images)
    # One input for each shape: what it holds does not matter.
    inputs = {shape: _values(shape, images) for _, shape in calls}

    @torch.inference_mode()
    def run() -> None:
        for convolution, shape in calls:
            convolution(inputs[shape])

    return run


def bare_training(net: nn.Module, images: Tensor) -> Callable[[], None]:
    """Give a function that runs a network's convolutions forward and backward;
    the first one's input needs no gradient.

    Args: see `bare_convolutions`.
    """
    calls = passes(net.to(memory_format=torch.channels_last), net, images)
    inputs = [
        _values(shape, images).requires_grad_(number > 0) for number, (_, shape) in enumerate(calls)
    ]
    with torch.no_grad():
        gradients = [
            torch.randn_like(convolution(values)) for (convolution, _), values in zip(calls, inputs)
        ]

    def run() -> None:
        for (convolution, _), values, gradient in zip(calls, inputs, gradients):
            # Gradients are made anew; to add to old ones would take time.
            values.grad = convolution.weight.grad = None
            convolution(values).backward(gradient)

    return run


def _values(shape: torch.Size, images: Tensor) -> Tensor:
    return torch.randn(shape, device=images.device).contiguous(memory_format=torch.channels_last)
