"""Pickles of plain data (lists, dicts, strings, numbers, arrays), read without running code."""

import pickle
from pathlib import Path
from typing import Any, ClassVar

from utils.errors import InputError
from utils.numpy_values import ARRAYS, Array, NoPlainNumbersError


class _PlainUnpickler(pickle.Unpickler):
    """Refuses every class and function that a file asks for, but the stand-ins of `allowed`."""

    allowed: ClassVar[dict[str, Any]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (full_name := f"{module}.{name}") in self.allowed:
            return self.allowed[full_name]
        raise InputError(
            f"it asks for {full_name}, which may run code; only lists, dicts, strings and numbers"
            " do"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise InputError(
            "it points at objects outside the file; only lists, dicts, strings and numbers do"
        )


class _ArrayUnpickler(_PlainUnpickler):
    allowed: ClassVar = {name: stand_in for stand_in, name in ARRAYS}


def load_plain(path: str | Path) -> Any:
    """Read a pickle of plain containers, strings and numbers.

    Raises:
        InputError: the file is missing, is no whole pickle, or asks for a class or function.
    """
    return _load(path, _PlainUnpickler)


def load_arrays(path: str | Path) -> dict[str, Any]:
    """Read a pickled dict of plain values and NumPy arrays of plain numbers.

    Python 2 wrote the CIFAR archives so.

    Returns:
        The dict. Its keys become strings. Python 2's strings in its values stay bytes. The arrays
        are read-only.

    Raises:
        InputError: the file is missing, is no whole pickle, asks for any other class or function,
            or holds no dict.
    """
    # "bytes": Python 2's strings may be any bytes, an array's among them.
    content = _load(path, _ArrayUnpickler, encoding="bytes")
    if not isinstance(content, dict):
        raise InputError(
            f"{path} should hold a dict of arrays, but holds a {type(content).__name__}"
        )
    return {
        key.decode("latin1") if isinstance(key, bytes) else str(key): (
            entry.values if isinstance(entry, Array) else entry
        )
        for key, entry in content.items()
    }


def _load(path: str | Path, unpickler: type[_PlainUnpickler], encoding: str = "ASCII") -> Any:
    """Read a pickle; see `load_plain` and `load_arrays`."""
    try:
        with Path(path).open("rb") as file:
            return unpickler(file, encoding=encoding).load()
    except InputError as refusal:
        raise InputError(f"{path} is refused: {refusal}") from None
    except NoPlainNumbersError as error:
        raise InputError(
            f"{path} is refused: it holds an array of {error.code!r}; only arrays of plain numbers"
            " are read"
        ) from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise InputError(
            f"{path} is not a whole pickle file ({error}); download it again"
        ) from None
