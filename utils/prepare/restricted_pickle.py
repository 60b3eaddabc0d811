"""Pickled plain data (lists, dicts, strings, numbers) without running anything that the file asks for."""

import pickle
from pathlib import Path
from typing import Any

from utils.errors import InputError


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"it asks for {module}.{name}, which may run code; only lists, dicts, strings and numbers do")

    def persistent_load(self, pid: Any) -> Any:
        raise InputError("it points at objects outside the file; only lists, dicts, strings and numbers do")


def load_plain(path: str | Path) -> Any:
    """Read a pickle of plain containers, strings and numbers.

    Raises:
        InputError: the file is missing, is no whole pickle, or asks for a class or function.
    """
    try:
        with Path(path).open("rb") as file:
            return _PlainUnpickler(file).load()
    except InputError as refusal:
        raise InputError(f"{path} is refused: {refusal}") from None
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise InputError(f"{path} is not a whole pickle file ({error}); download it again") from None
