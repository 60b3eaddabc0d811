"""The device "meta", whose tensors have a shape and no values, without what takes long there.

PyTorch draws numbers and computes a BatchNorm by Python code there, which loads SymPy: half a second
for a tensor of the same shape.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_DRAWS = (Tensor.normal_, Tensor.uniform_)


class ShapesAlone(TorchFunctionMode):
    """While it is entered, tensors on "meta" are not initialised, and BatchNorms leave them alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch, or give a tensor of the shape that its result has."""
        kwargs = kwargs or {}
        tensor = args[0] if args else kwargs.get("tensor")
        if isinstance(tensor, Tensor) and tensor.is_meta:
            if func in _DRAWS or getattr(func, "__module__", None) == nn.init.__name__:
                return tensor
            if func is functional.batch_norm and not kwargs["training"]:
                mean = args[1]
                # Others are refused by PyTorch itself
                if mean is not None and tensor.ndim > 1 and tensor.shape[1] == len(mean):
                    return torch.empty_strided(
                        tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
                    )
        return func(*args, **kwargs)
