"""The sources of a data set: folders, or archives that are unpacked for the time of a run."""

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


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar or zip archive into a folder.

    Raises:
        InputError: it is damaged, or would write outside of the folder.
    """
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
                tar.extractall(folder, filter="data")  # refuses paths and links out of the folder
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
    """Find `name`: the folder itself, or paths at the first depth, of 0 to 3, that has any."""
    if folder.resolve().name == name:
        return [folder]
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
