"""Small images whose bytes are at hand, written in parallel: each whole or not at all."""

import io
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from utils.errors import InputError
from utils.files import replacing
from utils.progress import Progress


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 (H, W, 3) RGB, or (H, W) grey, as an RGB PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def write_all(files: Mapping[str, Callable[[], bytes]], target: Path, workers: int) -> int:
    """Write every file below `target` that is not there with the same bytes.

    Args:
        files: by POSIX path below `target` the function that gives the bytes.
        target: the data set's folder.
        workers: threads.

    Returns:
        The number of files that were written.

    Raises:
        InputError: one cannot be written, or its bytes cannot be read.
    """

    def write(name: str) -> bool:
        content, path = files[name](), target / name
        if path.is_file() and path.read_bytes() == content:
            return False
        with replacing(path) as temporary:
            temporary.write_bytes(content)
        return True

    pool = ThreadPoolExecutor(max(1, workers))
    try:
        return sum(Progress(pool.map(write, files), target.name, total=len(files)))
    except OSError as error:
        raise InputError(
            f"cannot write below {target}, or read what should go there ({error}); mend that and"
            " run the same command again"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt must not wait for the whole queue
