"""The sources of a data set: folders, or archives that are unpacked for the time of a run."""

import bz2
import contextlib
import errno
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from utils.data.datasets import printable
from utils.errors import InputError
from utils.files import in_words
from utils.presence import check_source

MOST_FREE = 0.9  # of the free room of the disk
# Photos and arrays of pixels unpack to about their own size, lists of boxes to 20 times of it.
MOST_RATIO, SMALL = 100, 100_000_000  # times the archive; so many bytes are always allowed
MOST_FILES = 5_000_000
MOST_AT_ONCE = 1 << 24  # bytes that a tar archive is read by; a header has thousands at most
OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


@contextlib.contextmanager
def unpacked(sources: list[Path], parts: dict[str, str], scratch: Path) -> Iterator[list[Path]]:
    """Unpack archives, and yield the folders to look in.

    An archive is unpacked whole: parallel readers have no random access to a compressed one.
    `scratch` is removed afterwards, and before, if a killed run left it.

    Args:
        sources: folders, tar archives, compressed or not, and zip archives.
        parts: names that the folders must hold, with the official archive of each. That archive is
            unpacked if a folder holds it in place of the name.
        scratch: the folder to unpack into, which need not exist.

    Yields:
        The folders among the sources, and `scratch` if there are archives.

    Raises:
        InputError: a source is missing, is no archive or a damaged one, or would write outside of
            `scratch`.
    """
    for source in sources:
        check_source(source)
    folders = [source for source in sources if source.is_dir()]
    archives = [source for source in sources if not source.is_dir()]
    for name, official in parts.items():
        if not any(_places(folder, name) for folder in folders):
            archives += [folder / official for folder in folders if (folder / official).is_file()]
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for archive in archives:
            print(f"unpacking {printable(archive)} for the time of this run", flush=True)
            _unpack(archive, scratch)
        yield [*folders, scratch] if archives else folders
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _Measure:
    """Count what an archive would write, and refuse it before it is written.

    Args:
        archive: the file.
        folder: where it is unpacked.
    """

    def __init__(self, archive: Path, folder: Path) -> None:
        self._archive, self._files, self._bytes = archive, 0, 0
        packed = archive.stat().st_size
        # Both the disk's room and what such an archive can honestly hold
        self._most = min(
            MOST_FREE * shutil.disk_usage(folder).free, max(SMALL, MOST_RATIO * packed)
        )

    def add(self, size: int) -> None:
        """Count one more file of `size` bytes.

        Raises:
            InputError: there are too many, or no room for them, or more than photos unpack to.
        """
        self._files, self._bytes = self._files + 1, self._bytes + size
        if self._files > MOST_FILES:
            raise InputError(
                f"{self._archive} is refused, because it holds more than {MOST_FILES:,} files"
            )
        if self._bytes > self._most:
            raise InputError(
                f"{self._archive} is refused, because it unpacks to {in_words(self._bytes)} or more,"
                f" and {in_words(int(self._most))} is the most that this disk and an archive of"
                f" {in_words(self._archive.stat().st_size)} allow; make room, or unpack it yourself"
                " and give --src the folder"
            )


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder.

    Raises:
        InputError: it is damaged, would write outside of the folder, or is far larger unpacked.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measure = _Measure(archive, folder)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for member in members.infolist():
                    measure.add(member.file_size)
                    name = member.filename
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise InputError(
                            f"{archive} is refused, because it would write outside its folder:"
                            f" {name!r}"
                        )
                members.extractall(folder)
        else:
            with (
                _opener(archive)(archive, "rb") as file,
                tarfile.open(fileobj=_InPieces(file), mode="r:") as tar,  # type: ignore[call-overload]
            ):
                # "data" refuses paths and links out of the folder
                tar.extractall(folder, _measured(tar, measure), filter="data")
    except tarfile.FilterError as error:
        raise InputError(
            f"{archive} is refused, because it would write outside its folder: {error}"
        ) from None
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        gzip.BadGzipFile,
        zlib.error,
        lzma.LZMAError,
        RuntimeError,
        OSError,
    ) as error:
        # Of the disk; a decompressor names none, and a damaged place lies before the beginning
        if getattr(error, "errno", None) not in (None, errno.EINVAL):
            raise
        reason = str(error).partition(":\n")[0]
        raise InputError(
            f"{archive} is no whole tar or zip archive ({reason}); download it again"
        ) from None


def _opener(archive: Path) -> Callable[..., Any]:
    """Give what opens a tar archive by its first bytes, compressed or not."""
    with archive.open("rb") as file:
        beginning = file.read(6)
    return next((one for begin, one in OPENERS.items() if beginning.startswith(begin)), io.open)


class _InPieces:
    """A file of which nothing large is read at once.

    `tarfile` reads a header of long names (PAX) whole, and looks at its size in no other way.
    """

    def __init__(self, file: Any) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes.

        Raises:
            tarfile.ReadError: they are too many.
        """
        if not 0 <= size <= MOST_AT_ONCE:
            raise tarfile.ReadError(f"it has a header of {in_words(size)}")
        content: bytes = self._read(size)
        return content


def _measured(tar: tarfile.TarFile, measure: _Measure) -> Iterator[tarfile.TarInfo]:
    """Give the members of a tar archive, each measured before it is written.

    A list of all would take a pass of its own over a compressed archive.
    """
    for member in tar:
        measure.add(member.size)
        yield member


def _places(folder: Path, name: str) -> list[Path]:
    """Find `name`: the folder itself, or paths at the first depth, of 0 to 3, that has any."""
    if folder.resolve().name == name:
        return [folder]
    # Official archives hold their content in one or two folders.
    for depth in range(4):
        if paths := sorted(folder.glob("*/" * depth + name)):
            return paths
    return []


def find(folders: list[Path], name: str, official: str) -> Path:
    """Find the one file or folder of a name, in some folders or a few levels below.

    Args:
        folders: are searched.
        name: of the file or folder.
        official: the archive that holds it, for the message.

    Raises:
        InputError: there is none, or more than one.
    """
    # Two of the folders may lead to one place, if one lies in the other: count it once.
    by_real_path = {place.resolve(): place for folder in folders for place in _places(folder, name)}
    places = list(by_real_path.values())
    if not places:
        where = ", ".join(str(folder) for folder in folders) or "nothing"
        raise InputError(
            f"there is no {name} in {where}; give --src the official {official} or its content"
        )
    if len(places) > 1:
        raise InputError(f"{name} is at {places[0]} and at {places[1]}; point --src at one of them")
    return places[0]
