"""The one listing of a folder of class folders: which files are images,
which are left out, and what is said of both.

The order is torchvision's `ImageFolder`: classes, folders below them and files each sorted as text.
Other than that, hidden files and folders and what systems leave behind are no images and no
classes, each real folder is visited once however many links lead to it, and everything that is left
out is counted.
"""

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, features

JUNK_FOLDERS = {
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__pycache__",
}
JUNK_FILES = {"thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
# Photos and drawings; Pillow reads more under further endings, which are no images of a data set.
ENDINGS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".apng",
    ".ppm",
    ".pgm",
    ".pbm",
    ".pnm",
    ".pfm",
    ".bmp",
    ".dib",
    ".tif",
    ".tiff",
    ".webp",
    ".gif",
    ".tga",
    ".jp2",
    ".avif",
    ".heic",
    ".heif",
)
NAMED = 3  # of each kind of what is left out
AGAIN, LOOSE = "links to folders listed already", "images in no class folder"

Identity = tuple[int, int]  # device and inode: two paths to one folder have the same


@dataclass
class LeftOut:
    """What a listing left out: for each kind the names, relative to the root."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Note one file or folder."""
        self.names.setdefault(kind, []).append(name)

    def __str__(self) -> str:
        """Say it in one line, "" where nothing was left out:
        "left out: 2 hidden (a/._1.png, .git), 7 .txt (…)".
        """
        parts = []
        for kind, names in sorted(self.names.items()):
            named = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
            parts.append(f"{len(names):,} {kind} ({named})")
        return f"left out: {'; '.join(parts)}" if parts else ""


def readable_endings() -> frozenset[str]:
    """Give the endings of `ENDINGS` that the installed Pillow can open, lower case."""
    formats = Image.registered_extensions()
    return frozenset(
        ending
        for ending in ENDINGS
        if formats.get(ending) in Image.OPEN and (ending != ".avif" or features.check("avif"))
    )


def find_class_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Give the names of the class folders of `root`, sorted as text; hidden ones and junk are none.

    Raises:
        PermissionError: the folder may not be read.
    """
    folders, endings = [], readable_endings()
    with os.scandir(root) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir():
                if not _is_left_out(entry.name, entry.name, left_out):
                    folders.append(entry.name)
            elif not entry.name.startswith(".") and _ending(entry.name) in endings:
                left_out.add(LOOSE, entry.name)
    return folders


def list_files(root: Path, folders: Iterable[str], left_out: LeftOut) -> list[tuple[str, str]]:
    """List the images of class folders.

    Args:
        root: that the folders are in.
        folders: their names; a link is followed.
        left_out: is told what is no image, and of the folders that were visited before.

    Returns:
        (class folder, POSIX path relative to `root`) of each image, class by class, sorted as
        `ImageFolder` does.
    """
    folders, endings = list(folders), readable_endings()
    real_root = Path(os.path.realpath(root))
    # A link to the root or above it would list every class, and other splits, under this one.
    above = {_identity(folder) for folder in (real_root, *real_root.parents)}
    of_classes: dict[Identity, str] = {}
    # Before what lies below them: an image belongs to its class folder, not to a link to that
    for name in folders:
        of_classes.setdefault(_identity(root / name), name)
    visited = above | of_classes.keys()
    images = []
    for name in folders:
        identity = _identity(root / name)
        if identity in above or of_classes[identity] != name:
            left_out.add(AGAIN, name)
            continue
        for folder, files in sorted(_walk(root, name, visited, endings, left_out)):
            images += [(name, f"{folder}/{file}") for file in files]
    return images


def _walk(
    root: Path, folder: str, visited: set[Identity], endings: frozenset[str], left_out: LeftOut
) -> Iterator[tuple[str, list[str]]]:
    """Give a folder and those below it, each once,
    with the names of their images; `visited` is added to.
    """
    files, below = [], []
    with os.scandir(root / folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                if _is_left_out(entry.name, name, left_out):
                    continue
                status = entry.stat()
                if (identity := (status.st_dev, status.st_ino)) in visited:
                    left_out.add(AGAIN, name)
                else:
                    visited.add(identity)
                    below.append(name)
            elif entry.name.startswith("."):
                left_out.add("hidden", name)
            elif entry.name.lower() in JUNK_FILES:
                left_out.add("of the system", name)
            elif (ending := _ending(entry.name)) in endings:
                files.append(entry.name)
            else:
                unread = ", which this Pillow cannot read" if ending in ENDINGS else ""
                left_out.add(f"{ending or 'without an ending'}{unread}", name)
    yield folder, files
    for name in below:
        yield from _walk(root, name, visited, endings, left_out)


def _is_left_out(name: str, path: str, left_out: LeftOut) -> bool:
    """Say whether a folder is hidden or junk, and note it."""
    if name.startswith("."):
        left_out.add("hidden", f"{path}/")
    elif name.lower() in JUNK_FOLDERS:
        left_out.add("of the system", f"{path}/")
    else:
        return False
    return True


def _ending(name: str) -> str:
    return Path(name).suffix.lower()


def _identity(folder: Path) -> Identity:
    status = folder.stat()
    return status.st_dev, status.st_ino


def order_note(classes: list[str]) -> str:
    """Say how classes are numbered where their names hold numbers that sort as text; "" elsewhere.

    Labels follow the text, as `ImageFolder`'s do: of 0 … 11 the third label is folder 10. Networks
    from elsewhere may count otherwise, and their labels would then be wrong without any sign.
    """
    by_number = sorted(
        classes, key=lambda name: re.sub("[0-9]+", lambda digits: digits[0].zfill(20), name)
    )
    if by_number == classes:
        return ""
    return (
        f"the order of the labels is that of the folders' names as text: {', '.join(classes[:4])},"
        f" …; a network from elsewhere that counts {', '.join(by_number[:4])}, … needs folders"
        " whose numbers are padded with zeros"
    )
