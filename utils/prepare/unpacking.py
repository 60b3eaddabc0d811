"""Where the parts of a data set lie: in folders as they are,
or in archives unpacked for the time of a run.
"""

import contextlib
import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from utils.data.datasets import printable
from utils.errors import InputError
from utils.presence import check_source


@contextlib.contextmanager
def unpacked(sources: list[Path], parts: dict[str, str], scratch: Path) -> Iterator[list[Path]]:
    """Yield folders to look in: those among `sources`,
    and `scratch` with what the archives among them hold.

    An archive is unpacked whole, because a compressed one gives no random access to parallel
    readers. `scratch` is removed afterwards, and what a killed run left there before.

    Args:
        sources: folders, tar archives, compressed or not, and zip archives.
        parts: names that the folders must hold, and the official archive of each: it is unpacked
            where a folder holds that in place of the part.
        scratch: a folder that is not there.

    Raises:
        InputError: a source is missing, no archive, damaged, or would write outside `scratch`.
    """
    for source in sources:
        check_source(source)
    folders = [source for source in sources if source.is_dir()]
    archives = [source for source in sources if not source.is_dir()]
    for part, official in parts.items():
        if not any(_places(folder, part) for folder in folders):
            archives += [folder / official for folder in folders if (folder / official).is_file()]
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        for archive in archives:
            print(f"unpacking {printable(archive)} for the time of this run", flush=True)
            _unpack(archive, scratch)
        yield [*folders, scratch] if archives else folders
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as members:
                for name in members.namelist():
                    if not (folder / name).resolve().is_relative_to(folder.resolve()):
                        raise InputError(
                            f"{archive} is refused, because it would write outside its folder:"
                            f" {name!r}"
                        )
                members.extractall(folder)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
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
        RuntimeError,
    ) as error:
        reason = str(error).partition(":\n")[0]
        raise InputError(
            f"{archive} is no whole tar or zip archive ({reason}); download it again"
        ) from None


def _places(folder: Path, name: str) -> list[Path]:
    """`folder` itself, or the nearest level below, of three, that has `name`."""
    if folder.resolve().name == name:
        return [folder]
    return next(
        (hits for depth in range(4) if (hits := sorted(folder.glob("*/" * depth + name)))), []
    )


def find(folders: list[Path], name: str, official: str) -> Path:
    """The one file or folder called `name` in or a few levels below `folders`.

    Args:
        folders: where to look.
        name: of the file or folder.
        official: the archive that holds it, for the message.

    Raises:
        InputError: there is none, or more than one.
    """
    # One place can be reached by two ways, as when `folders` hold a folder and one in it.
    places = list(
        {place.resolve(): place for folder in folders for place in _places(folder, name)}.values()
    )
    if not places:
        where = ", ".join(str(folder) for folder in folders) or "nothing"
        raise InputError(
            f"there is no {name} in {where}; give --src the official {official} or its content"
        )
    if len(places) > 1:
        raise InputError(f"{name} is at {places[0]} and at {places[1]}; point --src at one of them")
    return places[0]
