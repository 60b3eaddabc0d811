"""The listing of a folder of class folders: its images, and what is left out.

The order is that of torchvision's `ImageFolder`: classes, folders below them and files are each
sorted as text. Unlike there, hidden files and files of operating systems are no images, and such
folders are no classes. Each real folder is visited once, however many links lead to it. Everything
that is left out is counted.
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
# Endings of photos and drawings. Pillow reads other files too (PDF, icons, fonts), which are no
# images of a data set.
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
NAMED = 3  # left-out files of each kind that a message names
AGAIN, LOOSE = "links to folders listed already", "images in no class folder"
NO_FILES = "pipes, devices or sockets"

Identity = tuple[int, int]  # device and inode: two paths to one folder have the same


@dataclass
class LeftOut:
    """The files and folders that a listing left out: by kind the names, relative to the root."""

    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Add one file or folder."""
        self.names.setdefault(kind, []).append(name)

    def __str__(self) -> str:
        """One line: "left out: 2 hidden (a/._1.png, .git); 7 .txt (…)"; "" for nothing."""
        kinds = []
        for kind, names in sorted(self.names.items()):
            named = ", ".join(names[:NAMED]) + (", …" if len(names) > NAMED else "")
            kinds.append(f"{len(names):,} {kind} ({named})")
        return f"left out: {'; '.join(kinds)}" if kinds else ""


def readable_endings() -> frozenset[str]:
    """Give the endings of `ENDINGS`, lower case, that the installed Pillow can open."""
    formats = Image.registered_extensions()
    # Pillow registers AVIF even where it was built without the library.
    return frozenset(
        ending
        for ending in ENDINGS
        if formats.get(ending) in Image.OPEN and (ending != ".avif" or features.check("avif"))
    )


def find_class_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Name the class folders of `root`, sorted as text, without hidden ones and junk.

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
        root: the folder of class folders.
        folders: their names; links are followed.
        left_out: takes what is no image, and folders that are visited already.

    Returns:
        (class folder, POSIX path relative to `root`) of each image, class by class, sorted as
        `ImageFolder` does.
    """
    folders, endings = list(folders), readable_endings()
    real_root = Path(os.path.realpath(root))
    # A link to the root or above it would list every class, and other splits, under this one.
    above = {_identity(folder) for folder in (real_root, *real_root.parents)}
    # Know all class folders before walking: an image belongs to its class folder, not to a link
    # that leads there from another class.
    of_classes: dict[Identity, str] = {}
    for name in folders:
        of_classes.setdefault(_identity(root / name), name)
    visited = above | of_classes.keys()
    images = []
    for name in folders:
        identity = _identity(root / name)
        if identity in above or of_classes[identity] != name:
            left_out.add(AGAIN, name)
            continue
        # Sorted by folder, as `os.walk` in `ImageFolder`: files of a folder before those below it.
        for folder, files in sorted(_walk(root, name, visited, endings, left_out)):
            images += [(name, f"{folder}/{file}") for file in files]
    return images


def _walk(
    root: Path, folder: str, visited: set[Identity], endings: frozenset[str], left_out: LeftOut
) -> Iterator[tuple[str, list[str]]]:
    """Walk a folder and those below it, each once.

    Args:
        root: the folder of class folders.
        folder: POSIX path below it.
        visited: folders to skip; those that are visited are added.
        endings: of images.
        left_out: takes everything else.

    Yields:
        A folder's POSIX path below `root`, and the names of its images.
    """
    files, below = [], []
    with os.scandir(root / folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            name = f"{folder}/{entry.name}"
            if entry.is_dir():
                if _is_left_out(entry.name, name, left_out):
                    continue
                status = entry.stat()  # follows a link
                if (identity := (status.st_dev, status.st_ino)) in visited:
                    left_out.add(AGAIN, name)
                else:
                    visited.add(identity)
                    below.append(name)
            elif entry.name.startswith("."):
                left_out.add("hidden", name)
            elif entry.name.lower() in JUNK_FILES:
                left_out.add("of the system", name)
            # To open a pipe waits for ever. A link that leads nowhere is named when it is read.
            elif not entry.is_file() and Path(entry.path).exists():
                left_out.add(NO_FILES, name)
            elif (ending := _ending(entry.name)) in endings:
                files.append(entry.name)
            else:
                unread = ", which this Pillow cannot read" if ending in ENDINGS else ""
                left_out.add(f"{ending or 'without an ending'}{unread}", name)
    yield folder, files
    # A link may lead back up: `visited` ends the recursion.
    for name in below:
        yield from _walk(root, name, visited, endings, left_out)


def _is_left_out(name: str, path: str, left_out: LeftOut) -> bool:
    """Whether a folder is hidden or junk; such a one is added to `left_out`."""
    if name.startswith("."):
        left_out.add("hidden", f"{path}/")
    elif name.lower() in JUNK_FOLDERS:
        left_out.add("of the system", f"{path}/")
    else:
        return False
    return True


def _ending(name: str) -> str:
    """The ending of a file's name in lower case, with its dot."""
    return Path(name).suffix.lower()


def _identity(folder: Path) -> Identity:
    """What two paths to one folder have in common."""
    status = folder.stat()
    return status.st_dev, status.st_ino


def order_note(classes: list[str]) -> str:
    """Warn where class names hold numbers that sort differently as text; "" elsewhere.

    Labels follow the text, as `ImageFolder`'s do: of folders 0 … 11 the third label is folder 10.
    Networks from elsewhere may count by number. Their labels would then be wrong without any sign.
    """
    # Zeros in front make the text sort by number: "2" → "0…02", "10" → "0…010".
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
