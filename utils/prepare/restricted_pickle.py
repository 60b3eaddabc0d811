"""Pickled plain data (lists, dicts, strings, numbers,
arrays) without running anything that the file asks for.
"""

import pickle
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from utils.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
    known: ClassVar[dict[tuple[str, str], type]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.known:
            return self.known[module, name]
        raise InputError(
            f"it asks for {module}.{name}, which may run code; only lists, dicts, strings and"
            " numbers do"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(
            "it points at objects outside the file; only lists, dicts, strings and numbers do"
        )


# NumPy's own classes would let a file forge pointers (an object array over chosen bytes). In their
# place the pickle builds these, which understand plain numbers only and are classes with
# `__setstate__`, so that it can change nothing but their instances.


class _DType:
    """Takes the place of `numpy.dtype`."""

    def __init__(self, code: str | bytes, *_: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if not isinstance(code, str) or not re.fullmatch("[fiub][1248]", code):
            raise InputError(
                f"it holds an array of {code!r}; only arrays of plain numbers are read"
            )
        self.numpy = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        order: Any = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.numpy = self.numpy.newbyteorder(order)


class _Array:
    """Takes the place of `numpy.ndarray`,
    and of the function that makes the empty array which the state fills.
    """

    values: np.ndarray | None = None

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran_order, data = state
        self.values = np.frombuffer(data, dtype.numpy).reshape(
            shape, order="F" if fortran_order else "C"
        )


class _ArrayUnpickler(_PlainUnpickler):
    known: ClassVar = {
        ("numpy", "dtype"): _DType,
        ("numpy", "ndarray"): _Array,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }


def load_plain(path: str | Path) -> Any:
    """Read a pickle of plain containers, strings and numbers.

    Raises:
        InputError: the file is missing, is no whole pickle, or asks for a class or function.
    """
    return _load(path, _PlainUnpickler)


def load_arrays(path: str | Path) -> dict[str, Any]:
    """Read a pickled dict of plain values and NumPy arrays of plain numbers,
    as Python 2 wrote the CIFAR archives.

    Returns:
        The dict; its keys are made strings, the strings of Python 2 in its values stay bytes, and
        the arrays are read-only.

    Raises:
        InputError: the file is missing, is no whole pickle, asks for any other class or function,
            or holds no dict.
    """
    value = _load(path, _ArrayUnpickler, encoding="bytes")
    if not isinstance(value, dict):
        raise InputError(f"{path} should hold a dict of arrays, but holds a {type(value).__name__}")
    entries = [entry.values if isinstance(entry, _Array) else entry for entry in value.values()]
    return dict(
        zip(
            (key.decode("latin1") if isinstance(key, bytes) else str(key) for key in value), entries
        )
    )


def _load(path: str | Path, unpickler: type[_PlainUnpickler], encoding: str = "ASCII") -> Any:
    try:
        with Path(path).open("rb") as file:
            return unpickler(file, encoding=encoding).load()
    except InputError as refusal:
        raise InputError(f"{path} is refused: {refusal}") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise InputError(
            f"{path} is not a whole pickle file ({error}); download it again"
        ) from None
