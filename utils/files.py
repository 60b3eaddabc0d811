"""Files that appear whole or not at all: atomic replacement, locks, hashes, JSON."""

import contextlib
import csv
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from filelock import BaseFileLock, FileLock, Timeout

from utils.errors import InputError
from utils.presence import check_file
from utils.remarks import remark

STANDARD_OUTPUT = "-"
JOURNAL = ".journal"
KEEP, MOST_KEPT = 2, 100  # states of a run, the last one counted
MOST_TEXT_BYTES = 1 << 30  # the names of 10 million images
# Where results go that are named "-", while `results_alone` keeps other lines away
_output: ContextVar[TextIO | None] = ContextVar("output", default=None)
_OWNER = re.compile(r"\.(?P<host>\w+)-(?P<pid>\d+)-[0-9a-f]{8}\.part")
_LOCK = re.compile(r"pid (?P<pid>\d+) on (?P<host>.+), since .+")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it replaces `path`.

    On any failure it is removed. So a reader sees the old file or the whole new one, also after a
    crash or on a full disk. A link stays, and its target is replaced. A device or a pipe, such as
    /dev/stdout, stays too: the whole new file is written into it. The text "-" is standard output.

    The first file that a process writes into a folder ends what killed ones began there.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    if is_stream(path):
        with _into_stream(path) as temporary:
            yield temporary
        return
    with replacing_together([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_together(
    paths: Sequence[str | Path], *, keep: Mapping[Path, int] | None = None
) -> Iterator[list[Path]]:
    """Yield temporary paths that replace all of `paths`, or none of them: what is one state in
    several files stays one, also where the process is killed between two of them.

    All are written beside their places. Then a journal names them, they move, and the journal goes.
    `settle` ends a move that was broken off. One file alone needs no journal.

    Args:
        paths: of files in one folder, made if missing. A link stays, and its target is replaced.
        keep: of some of them how many are kept, the new one counted; see `earlier`. Of the others
            the new one alone.

    Raises:
        OSError: one cannot be written; the error names a path, and all are as before.
    """
    places = [_target(path) for path in paths]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(place.parent)
    temporaries = [_beside(place) for place in places]
    journal = places[0].with_name(f".{places[0].name}{JOURNAL}")
    try:
        yield temporaries
        # Data first, name second: after a power cut the new name must not mean an empty file.
        for temporary in temporaries:
            _flush(temporary)
        # A process that is killed in between leaves one state under two names.
        for path, count in (keep or {}).items():
            _keep_earlier(_target(path), count)
        if len(places) == 1:
            temporaries[0].replace(places[0])
            return
        # From here on a killed process leaves a journal, by which `settle` ends the move.
        moves = zip(temporaries, places)
        names = [[os.path.relpath(one, journal.parent) for one in move] for move in moves]
        write_json(journal, names)
        _end_move(journal)
    except OSError as error:
        # A full disk is found by a write, which knows no name
        error.filename = error.filename or str(places[0])
        raise
    finally:
        # A journal that stands still needs them
        for temporary in () if journal.exists() else temporaries:
            temporary.unlink(missing_ok=True)


def earlier(path: str | Path, age: int = 1) -> Path:
    """Name the file that `path` held before, or `age` states before: "net.pth.tar.1"."""
    place = _target(path)
    return place.with_name(f"{place.name}.{age}")


def _keep_earlier(place: Path, count: int) -> None:
    """Keep the file at a place, which is replaced next, as one of `count` states."""
    for age in range(count - 1, 1, -1):
        if earlier(place, age - 1).exists():
            earlier(place, age - 1).replace(earlier(place, age))
    if count > 1 and place.exists():
        _name_too(place, earlier(place))
    for age in itertools.count(max(count, 1)):
        if not earlier(place, age).exists():
            break
        earlier(place, age).unlink(missing_ok=True)


def _name_too(path: Path, other: Path) -> None:
    """Let a file be found by another name too, which is free or taken, without a second copy."""
    temporary = _beside(other)
    try:
        _link(path, temporary)
        temporary.replace(other)
    finally:
        # Of two names of one file a move changes nothing
        temporary.unlink(missing_ok=True)


def _link(path: Path, new: Path) -> None:
    try:
        os.link(path, new)
    except OSError:  # some file systems know no second name
        shutil.copyfile(path, new)
        _flush(new)


def put_back(ages: Mapping[Path, int]) -> None:
    """Let files be what they were so many states before, all of them or none."""
    with replacing_together(list(ages)) as temporaries:
        for temporary, (path, age) in zip(temporaries, ages.items()):
            _link(earlier(path, age), temporary)


def _target(path: str | Path) -> Path:
    """Give the file that a path means, which is another one where it is a link."""
    return Path(path).resolve() if Path(path).is_symlink() else Path(path)


def settle(folder: str | Path) -> None:
    """End what a killed process began in a folder: its moves, half-written files and locks.

    Files of processes that live, or of another machine, stay.
    """
    for journal in _journals(Path(folder)):
        _end_move(journal)
    _sweep(Path(folder))


def _sweep(folder: Path) -> None:
    """Remove the half-written files of killed processes of this machine that no journal needs."""
    # Listed before the journals: what a journal names since then is not in the list, or is needed
    temporaries = [(path, _OWNER.search(path.name)) for path in folder.glob(".*.part*")]
    needed = {temporary.name for journal in _journals(folder) for temporary, _ in _moves(journal)}
    for temporary, owner in temporaries:
        if owner is None or owner["host"] != _host() or temporary.name in needed:
            continue
        if not _is_alive(int(owner["pid"])):
            temporary.unlink(missing_ok=True)
    for lock in Path(folder).glob(".*lock"):
        _free(lock)


def _free(path: Path) -> None:
    """Remove the lock of a process that is gone, and say so."""
    with contextlib.suppress(OSError):
        owner = path.read_text(encoding="utf-8")
        written = _LOCK.fullmatch(owner)
        if not written or written["host"] != socket.gethostname() or _is_alive(int(written["pid"])):
            return
        lock = FileLock(path)
        lock.acquire(blocking=False)
        path.unlink(missing_ok=True)
        lock.release()
        remark(f"{path.parent} was locked by a run that is gone ({owner}), and is free again")


def _journals(folder: Path) -> list[Path]:
    """List the journals of a folder; one that was not written to its end is none."""
    return [path for path in folder.glob(f".*{JOURNAL}") if not _OWNER.search(path.name)]


# The first file that a process writes in a folder sweeps it
_sweep_once = functools.cache(_sweep)


def _end_move(journal: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # another process ended it meanwhile
        for temporary, place in _moves(journal):
            if temporary.exists():
                temporary.replace(place)
        journal.unlink()


def _moves(journal: Path) -> list[tuple[Path, Path]]:
    """Read what a journal moves. A file of a stranger's folder moves nothing but half-written files
    to the places that their own names say.
    """
    try:
        moves = [
            tuple(Path(os.path.normpath(journal.parent / name)) for name in (one, other))
            for one, other in json.loads(journal.read_bytes())
        ]
    except (ValueError, TypeError):
        return []
    return [
        (temporary, place)
        for temporary, place in moves
        if temporary.parent == place.parent
        and temporary.name.startswith(f".{place.name}.")
        and _OWNER.search(temporary.name)
    ]


def _beside(path: Path) -> Path:
    """Name a temporary file beside a place, which says whose it is.

    The suffix stays: image and figure writers choose their format by it.
    """
    mark = f"{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    return path.with_name(f".{path.name}.{mark}.part{path.suffix}")


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _flush(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as written:
        os.fsync(written.fileno())


def is_stream(path: str | Path) -> bool:
    """Whether a result goes into standard output, a device or a pipe, beside which nothing lies.

    A file that is called "-" is the path `Path("-")`, or the text "./-".
    """
    if path == STANDARD_OUTPUT:
        return True
    return Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()


@contextlib.contextmanager
def results_alone() -> Iterator[None]:
    """Leave standard output to results that are named "-": other lines go to standard error."""
    token = _output.set(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _output.reset(token)


@contextlib.contextmanager
def _into_stream(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path elsewhere, and then write what stands there into a stream."""
    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder, f"part{Path(path).suffix}")
        yield temporary
        with temporary.open("rb") as written, contextlib.ExitStack() as opened:
            if path == STANDARD_OUTPUT:
                output = _output.get() or sys.stdout
                output.flush()  # what was printed before stands before
                stream: BinaryIO = output.buffer
            else:
                stream = opened.enter_context(Path(path).open("wb"))
            shutil.copyfileobj(written, stream)
            stream.flush()


def normalised_folder(path: str | Path) -> Path:
    """Give a folder's absolute path, with `..` resolved: `a/link/..` need not be `a`."""
    return Path(path).resolve() if ".." in Path(path).parts else Path(path).absolute()


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is computed for it.

    Raises:
        InputError: it lies below a file, or may not be written to.
    """
    absolute = Path(folder).absolute()
    existing = next(place for place in (absolute, *absolute.parents) if place.exists())
    if not existing.is_dir():
        raise InputError(f"nothing can be written to {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK):
        raise InputError(f"nothing can be written to {folder}: {existing} may not be written to")


def check_room(folder: str | Path, needed_bytes: int, what: str, remedy: str) -> None:
    """Refuse work whose results the disk has no room for, before it begins.

    Args:
        folder: where they are written, which need not exist.
        needed_bytes: that they take.
        what: they are, in the plural.
        remedy: what to do.

    Raises:
        InputError: there is no room; the message has both sizes.
    """
    absolute = Path(folder).absolute()
    existing = next(place for place in (absolute, *absolute.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    if needed_bytes > free:
        raise InputError(
            f"{what} need {in_words(needed_bytes)} and the disk of {folder} has {in_words(free)}"
            f" free; {remedy}"
        )


def reserve(path: Path) -> None:
    """Take the room of a sparse file now: a later write into a full disk would lose the work so
    far, and one into a mapped file would end the process by SIGBUS.

    Raises:
        OSError: there is no room.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


@contextlib.contextmanager
def claim(
    place: str | Path, *, is_file: bool = False, elsewhere: str = "--suffix"
) -> Iterator[None]:
    """Keep other runs from writing a file, or into a folder, meanwhile.

    The operating system releases a crashed run's lock.

    Args:
        place: a folder, made if missing.
        is_file: the place is a file, whose folder is made if missing.
        elsewhere: the option that names another place, for the message.

    Raises:
        InputError: another run is writing there; the message names it.
    """
    path = _lock_of(Path(place), is_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    settle(path.parent)
    lock = _acquire(path, place, elsewhere)
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        path.write_text(
            f"pid {os.getpid()} on {socket.gethostname()}, since {since}", encoding="utf-8"
        )
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def check_unclaimed(
    place: str | Path, *, is_file: bool = False, elsewhere: str = "--suffix"
) -> None:
    """Refuse a place that another run is writing, as `claim` does, without claiming it.

    The lock of a killed run is removed: a run that finds its work done claims nothing later.
    """
    path = _lock_of(Path(place), is_file)
    if path.exists():
        _acquire(path, place, elsewhere).release()
        _free(path)


def _lock_of(place: Path, is_file: bool) -> Path:
    """Name the lock of a folder, within it, or of a file, beside it."""
    return place.with_name(f".{place.name}.lock") if is_file else place / ".lock"


def _acquire(path: Path, place: str | Path, elsewhere: str) -> BaseFileLock:
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        owner = path.read_text(encoding="utf-8")
        raise InputError(
            f"another run ({owner}) is writing in {place}; wait for it, or choose another"
            f" {elsewhere}"
        ) from None
    return lock


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, atomically; in ASCII, for file names that are no UTF-8."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="ascii")


def write_text(path: str | Path, text: str) -> None:
    """Write a text as UTF-8, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write the rows of a table as CSV, atomically; the first has the names of the columns."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: the file is missing, is not JSON, or is larger or deeper than any of this
            project.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also of a number of thousands of digits
        raise InputError(
            f"{path} is not valid JSON ({error}); delete it and make it again"
        ) from None


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8.

    Raises:
        InputError: it is no regular file, is too large to be one of this project, or no text.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is no regular file" if path.exists() else "does not exist"
        raise InputError(f"{path} {kind}")
    if path.stat().st_size > MOST_TEXT_BYTES:
        raise InputError(
            f"{path} has {in_words(path.stat().st_size)}, and no text of this project has more than"
            f" {in_words(MOST_TEXT_BYTES)}; remove it and make it again"
        )
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text ({error}); remove it and make it again") from None


def in_words(count: int) -> str:
    """Write a number of bytes in a fitting unit: "512 bytes", "9.44 MB", "12.04 GB"."""
    if count >= 1e9:
        return f"{count / 1e9:.2f} GB"
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} bytes"


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces.

    Raises:
        InputError: there is no such file.
    """
    check_file(path)
    digest = hashlib.sha256()  # not hashlib.file_digest: Python 3.10 lacks it
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
