"""NumPy's numbers and arrays in pickled files, read without NumPy's own unpickling.

NumPy's classes would let a file forge pointers: an array of objects over bytes that the file chose.
So a pickle builds the stand-ins of this module in their place. They understand plain numbers only.
Those of arrays are classes with `__setstate__`: a pickle can change nothing but their instances.
"""

import itertools
import pickle
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from utils.later import torch

if TYPE_CHECKING:
    from torch import Tensor


DEEPEST, MOST_ENTRIES = 100, 5_000_000  # of the containers in a file
# VGG's largest layer takes 411 MB, and may be a constant that is stored as one number
MOST_REPEATED_BYTES = 500_000_000


class NoPlainNumbersError(pickle.UnpicklingError):
    """An array holds something else than plain numbers.

    Attributes:
        code: NumPy's code of the type, such as "O8" for objects.
    """

    def __init__(self, code: object) -> None:
        # PyTorch's words for a class that it refuses, by which `checkpoint.load` names it
        super().__init__(f"Unsupported GLOBAL numpy.dtype[{code}] here")
        self.code = code


class DType:
    """The stand-in of `numpy.dtype`; Python 2's files have bytes where today's have text."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = _text(code)
        if not isinstance(code, str) or not re.fullmatch("[fiub][1248]", code):
            raise NoPlainNumbersError(code)
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.numpy = self.numpy.newbyteorder(_text(state[1]))


class Array:
    """The stand-in of `numpy.ndarray`, and of the function that makes an empty one.

    Attributes:
        values: the array, read-only; None until the state has filled it.
    """

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        flat = np.frombuffer(data, dtype.numpy)
        self.values = flat.reshape(shape, order="F" if fortran_order else "C")

    def tensor(self) -> "Tensor":
        """Copy the values into a tensor, in this machine's byte order.

        Raises:
            ValueError: they were never filled.
        """
        if self.values is None:
            raise ValueError("the file does not fill an array that it makes")
        native = self.values.dtype.newbyteorder("=")
        return torch.from_numpy(self.values.astype(native, order="C"))


def scalar(dtype: DType, data: bytes) -> int | float:
    """Stand in for the function that makes a NumPy number."""
    return np.frombuffer(data, dtype.numpy, count=1)[0].item()


# Each with the name that it stands in for; NumPy 2 renamed `core`.
ARRAYS: list[tuple[Any, str]] = [
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((Array, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
NUMBERS: list[tuple[Any, str]] = [
    (scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")
]


def tensors_for_arrays(value: Any) -> Any:
    """Replace every array in dictionaries, lists and tuples by a tensor, in place.

    Raises:
        RecursionError: they are nested more than `DEEPEST` times, as a list that contains itself,
            or hold more than `MOST_ENTRIES`, as a few lists that hold each other many times.
        ValueError: a tensor repeats its few values to more than `MOST_REPEATED_BYTES`.
    """
    return _replaced(value, itertools.count(), 0)


def _replaced(value: Any, visited: Iterator[int], depth: int) -> Any:
    """Replace arrays; `visited` counts the entries, `depth` the containers around this one."""
    if next(visited) > MOST_ENTRIES or depth > DEEPEST:
        raise RecursionError("it holds lists within lists without end")
    if isinstance(value, Array):
        return value.tensor()
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        # Strides of 0 let a file of one number ask for any memory as soon as the tensor is used.
        more = value.numel() * value.element_size() - value.untyped_storage().nbytes()
        if more > MOST_REPEATED_BYTES:
            raise ValueError(f"a tensor of shape {tuple(value.shape)} is not in the file")
        return value
    if isinstance(value, dict):
        for key in value:
            value[key] = _replaced(value[key], visited, depth + 1)
    elif isinstance(value, list):
        value[:] = [_replaced(entry, visited, depth + 1) for entry in value]
    elif type(value) is tuple:
        return tuple(_replaced(entry, visited, depth + 1) for entry in value)
    return value


def _text(word: Any) -> Any:
    return word.decode("ascii") if isinstance(word, bytes) else word
