"""NumPy's numbers and arrays in pickled files, read without NumPy's own unpickling.

Allowing NumPy's own classes would let a file forge pointers: an array of objects over bytes that the
file chose. A pickle therefore builds these stand-ins, which understand plain numbers only.
"""

import pickle
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor


class DType:
    """Takes the place of `numpy.dtype`."""

    def __init__(self, code: str, *_: Any):
        if not isinstance(code, str) or not re.fullmatch("[fiub][1248]", code):
            # In the words of PyTorch, by which a reader of files names what it refuses
            raise pickle.UnpicklingError(f"Unsupported GLOBAL numpy.dtype[{code}] here")
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.numpy = self.numpy.newbyteorder(state[1])


class Array:
    """Takes the place of `numpy.ndarray`."""

    tensor: Tensor

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        array = np.frombuffer(data, dtype.numpy).reshape(shape, order="F" if fortran_order else "C")
        self.tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))


def reconstruct(*_: Any) -> Array:
    """Take the place of the function that makes the empty array which the state then fills."""
    return Array()


def scalar(dtype: DType, data: bytes) -> int | float:
    """Take the place of the function that makes a NumPy number."""
    return np.frombuffer(data, dtype.numpy, count=1)[0].item()


STAND_INS: list[Any] = [
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    *((scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def tensors_for_arrays(value: Any) -> Any:
    """Put a tensor in the place of every array, in dictionaries, lists and tuples; in place."""
    if isinstance(value, Array):
        return value.tensor
    if isinstance(value, dict):
        for key in value:
            value[key] = tensors_for_arrays(value[key])
    elif isinstance(value, list):
        value[:] = [tensors_for_arrays(entry) for entry in value]
    elif type(value) is tuple:
        return tuple(tensors_for_arrays(entry) for entry in value)
    return value
