"""Content hashes of files: stored with them, checked when they are first read, then remembered."""

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from utils.errors import InputError
from utils.files import read_json, write_json
from utils.remarks import remark

CHUNK_BYTES = 1 << 26  # of which each has a hash: what is damaged is named to 64 MB
BLOCK_BYTES = 1 << 20  # read at a time
VERIFIED = ".verified.json"  # beside the files: sizes and times with which they were checked
SUMS, OWN = "sums", "sha256"  # the keys in a record
# A file system's clock is coarse: a younger file can change again unseen, and is not remembered
UNSETTLED_NS = 2_000_000_000
_is_skipped: ContextVar[bool] = ContextVar("is_skipped", default=False)


def skip(*, skipped: bool) -> None:
    """Leave all checks of this run out, or make them."""
    _is_skipped.set(skipped)


def sums_of(folder: Path, names: Iterable[str]) -> dict[str, list[str]]:
    """Give the SHA-256 of every chunk of some files in a folder, by name."""
    return {name: _chunks(folder / name) for name in names}


def signed(record: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a record, plain values, the SHA-256 of the rest of it."""
    return {**record, OWN: _of_record(record)}


def check(path: Path, record: Mapping[str, Any], remedy: str, *, anew: bool = False) -> None:
    """Hold a record, and the files that it has sums of, against their SHA-256.

    Args:
        path: of the record, a JSON file; the files lie beside it.
        record: its content.
        remedy: what to do about a damaged file, for the message.
        anew: also files that were checked before, and although checks are left out.

    Raises:
        InputError: the record or a file is not what was written; all that are not are named.
    """
    if OWN not in record or SUMS not in record:
        remark(f"{path} has no content hashes, as files of earlier versions, and is taken as it is")
        return
    if _is_skipped.get() and not anew:
        return
    rest = {name: value for name, value in record.items() if name != OWN}
    if _of_record(rest) != record[OWN]:
        raise InputError(f"{path} is damaged: it is not what was written; {remedy}")
    known = {} if anew else _read_verified(path.parent)
    stamps = {name: _stamp(path.parent / name) for name in record[SUMS]}
    damaged = [
        words
        for name, expected in record[SUMS].items()
        if known.get(name) != stamps[name] and (words := _damage(path.parent / name, expected))
    ]
    if damaged:
        raise InputError(f"{', '.join(damaged)} of {path.parent} is not what was written; {remedy}")
    _remember(path.parent, known, stamps)


def _damage(path: Path, expected: list[str]) -> str | None:
    """Name a file and the place of its first chunk that is not what was written; None: it is."""
    found = _chunks(path) if path.is_file() else []
    if found == expected:
        return None
    place = next(
        (i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]),
        min(len(found), len(expected)),
    )
    return f"{path.name} (from byte {place * CHUNK_BYTES:,} on)"


def _chunks(path: Path) -> list[str]:
    size = path.stat().st_size
    # Hashing releases the interpreter's lock, so that threads use every core.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(pool.map(lambda start: _chunk(path, start), range(0, size, CHUNK_BYTES)))


def _chunk(path: Path, start: int) -> str:
    digest, left = hashlib.sha256(), CHUNK_BYTES
    with path.open("rb") as file:
        file.seek(start)
        while left and (block := file.read(min(BLOCK_BYTES, left))):
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _of_record(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _stamp(path: Path) -> list[int]:
    """Give what changes when a file is written to: size, time in ns, inode."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _read_verified(folder: Path) -> dict[str, list[int]]:
    with contextlib.suppress(InputError):
        known = read_json(folder / VERIFIED)
        return known if isinstance(known, dict) else {}
    return {}


def _remember(folder: Path, known: dict[str, list[int]], stamps: dict[str, list[int]]) -> None:
    """Keep the stamps of files that were checked; a folder that takes none is checked again."""
    settled = time.time_ns() - UNSETTLED_NS
    more = {name: stamp for name, stamp in stamps.items() if stamp and stamp[1] < settled}
    if any(known.get(name) != stamp for name, stamp in more.items()):
        with contextlib.suppress(OSError):
            write_json(folder / VERIFIED, known | more)
