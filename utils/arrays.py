"""Files of NumPy, .npy and .npz: header and length are looked at before memory is taken."""

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import InputError
from utils.files import in_words

NUMBERS = "fiub"  # NumPy's kinds of plain numbers
MOST_RATIO, SMALL = 100, 100_000_000  # bytes in an .npz to one of the file; so many are always read


def map_array(path: str | Path, remedy: str, *, writable: bool = False) -> np.memmap:
    """Map a .npy file of plain numbers.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.
        writable: what is written into the array goes to the file.

    Raises:
        InputError: it is missing, its header is damaged, or its length is not what the header says.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is missing; {remedy}")
    try:
        # Never writable at first: NumPy would make a short file as long as its header says
        array = np.lib.format.open_memmap(path, mode="r")
    except PermissionError:
        raise
    except Exception as error:  # a damaged header lets NumPy raise nearly anything
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is truncated or damaged ({reason}); {remedy}") from None
    if array.dtype.kind not in NUMBERS:
        raise InputError(f"{path} holds {array.dtype}, and no plain numbers; {remedy}")
    # A file that grew, as by a second writer, maps without an error.
    size, expected = path.stat().st_size, array.offset + array.nbytes
    if size != expected:
        raise InputError(f"{path} has {size} bytes instead of {expected}; {remedy}")
    return np.lib.format.open_memmap(path, mode="r+") if writable else array


def read_arrays(path: str | Path, remedy: str) -> dict[str, NDArray[Any]]:
    """Read the arrays of an .npz file, and hold each against the sum that the archive has of it.

    Args:
        path: the file.
        remedy: what to do about a damaged one, for the message.

    Returns:
        By name, read-only.

    Raises:
        InputError: it is missing or damaged, or would take far more memory than it has bytes.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no file {path}; {remedy}")
    arrays = dict[str, NDArray[Any]]()
    where = "its table of contents"
    try:
        with zipfile.ZipFile(path) as archive:
            # By the table of contents, before an entry is unpacked: a bomb costs no memory.
            unpacked = sum(entry.file_size for entry in archive.infolist())
            if unpacked > max(SMALL, MOST_RATIO * path.stat().st_size):
                raise InputError(
                    f"{path} is refused, because it unpacks to {in_words(unpacked)}; {remedy}"
                )
            for entry in archive.infolist():
                where = entry.filename
                arrays[where.removesuffix(".npy")] = _parse(archive.read(entry))
    except (InputError, PermissionError):
        raise
    except Exception as error:  # zipfile and NumPy raise nearly anything on broken bytes
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged: {where} ({reason}); {remedy}") from None
    return arrays


def _parse(content: bytes) -> NDArray[Any]:
    """Read the content of a .npy file.

    Raises:
        ValueError: it is damaged, or holds no plain numbers.
    """
    stream = io.BytesIO(content)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    version = np.lib.format.read_magic(stream)
    shape, is_fortran, dtype = readers[version](stream)
    # What follows the header; the array looks into these bytes and copies none.
    values = memoryview(content)[stream.tell() :]
    if dtype.kind not in NUMBERS or math.prod(shape) * dtype.itemsize != len(values):
        raise ValueError(f"{len(values)} bytes for {dtype} {shape}")
    return np.frombuffer(values, dtype).reshape(shape, order="F" if is_fortran else "C")
