"""CUB-200-2011 and Stanford Dogs in their official layouts, read into a list of crops."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from utils.data.datasets import printable
from utils.errors import InputError
from utils.later import scipy
from utils.prepare.cropping import Box, Listing
from utils.prepare.unpacking import find
from utils.prepare.voc import lines_of, read_objects

# What each data set's source must hold, and the official archive of it.
CUB_PARTS = {"images.txt": "CUB_200_2011.tgz"}
DOG_PARTS = {"Images": "images.tar", "Annotation": "annotation.tar", "train_list.mat": "lists.tar"}


def read_cub(folders: list[Path], limit: int | None = None) -> Listing:
    """CUB-200-2011: every photo of images.txt by its box, in the official split.

    Args:
        folders: where images/, images.txt, bounding_boxes.txt and train_test_split.txt are.
        limit: only the first so many classes that have a folder.

    Raises:
        InputError: a list is missing or malformed.
    """
    root = find(folders, "images.txt", CUB_PARTS["images.txt"]).parent
    # By the photo's number, which all lists share
    paths = {number: path for number, (path,) in _table(root / "images.txt", 1).items()}
    boxes, splits = _table(root / "bounding_boxes.txt", 4), _table(root / "train_test_split.txt", 1)
    listing = Listing(_class_folders(paths.values()))
    present = _present(listing, root / "images", paths.values(), limit)
    for number, path in paths.items():
        if path not in present:
            continue
        if number not in boxes or number not in splits:
            file = "train_test_split.txt" if number in boxes else "bounding_boxes.txt"
            listing.problem("missing list entry", f"{path}: no line {number} in {file}")
            continue
        x, y, width, height = _numbers(boxes[number], root / "bounding_boxes.txt")
        split = "train" if splits[number] == ["1"] else "test"
        # CUB gives corner and size, a crop takes two corners.
        listing.add(split, path, root / "images" / path, (x, y, x + width, y + height))
    return listing


def read_dogs(folders: list[Path], limit: int | None = None) -> Listing:
    """Stanford Dogs: one crop a listed photo, of its largest annotated dog, in the official split.

    Some photos show several dogs. One crop a photo gives the official 12,000 and 8,580 images.

    Args:
        folders: where Images, Annotation, train_list.mat and test_list.mat are.
        limit: only the first so many classes that have a folder.

    Raises:
        InputError: a folder or list is missing, or a list is malformed.
    """
    images, annotations = (
        find(folders, name, DOG_PARTS[name]) for name in ("Images", "Annotation")
    )
    lists = find(folders, "train_list.mat", DOG_PARTS["train_list.mat"]).parent
    splits = {
        path: split
        for split in ("train", "test")
        for path in _file_list(lists / f"{split}_list.mat")
    }
    listing = Listing(_class_folders(splits))
    present = _present(listing, images, splits, limit)
    for path, split in splits.items():
        if path not in present:
            continue
        dogs = read_objects(listing, (annotations / path).with_suffix(""))
        if dogs:
            largest = max((box for _, box in dogs), key=_area)
            listing.add(split, path, images / path, largest)
        elif dogs is not None:
            listing.problem("annotation without a dog", path)
    return listing


def _area(box: Box) -> float:
    """The area of a box (left, top, right, bottom), in pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _class_folders(paths: Iterable[str]) -> list[str]:
    """The class folders of `{class}/{photo}` paths, sorted, which is the order of official ids.

    Raises:
        InputError: a path is not of this form.
    """
    for path in paths:
        parts = PurePosixPath(path).parts
        if len(parts) != 2 or parts[0] in ("..", "/"):
            raise InputError(
                f"the list of photos should name them CLASS/PHOTO, but names {printable(path)!r}"
            )
    return sorted({path.partition("/")[0] for path in paths})


def _present(listing: Listing, images: Path, paths: Iterable[str], limit: int | None) -> set[str]:
    """Cut a listing's classes to the first ones that have a folder.

    A class without a folder makes a smaller data set, which one note says. A file that no list
    names is a problem.

    Args:
        listing: changed in place.
        images: the folder of class folders.
        paths: of the listed photos, `{class}/{photo}`.
        limit: the number of classes; None: all.

    Returns:
        The paths of the listed photos of these classes.
    """
    photos: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        photos[path.partition("/")[0]].add(path)
    present: list[str] = []
    absent: list[str] = []
    for folder in listing.classes:
        if len(present) == limit:
            break
        # A limit counts classes that are there, in the order of their ids.
        (present if (images / folder).is_dir() else absent).append(folder)
    if absent:
        number = sum(len(photos[folder]) for folder in absent)
        listing.notes.append(
            f"{number:,} listed photos of {len(absent)} classes are not in {printable(images)}"
        )
    listing.classes = present
    for folder in present:
        for file in sorted((images / folder).iterdir()):
            if f"{folder}/{file.name}" not in photos[folder] and not file.name.startswith("."):
                listing.problem("file that no list names", file)
    return {path for folder in present for path in photos[folder]}


def _table(path: Path, columns: int) -> dict[str, list[str]]:
    """Read lines `number column …` of a text file, by number; the last column may hold spaces.

    Raises:
        InputError: a line has too few columns.
    """
    table = {}
    for line in lines_of(path):
        number, *values = line.split(maxsplit=columns)
        if len(values) != columns:
            raise InputError(
                f"{path} should hold a number and {columns} columns in each line, but holds"
                f" {printable(line)!r}"
            )
        table[number] = values
    return table


def _numbers(words: list[str], path: Path) -> list[float]:
    """Read words of a file as numbers.

    Raises:
        InputError: one is none.
    """
    try:
        return [float(word) for word in words]
    except ValueError:
        raise InputError(
            f"{path} should hold numbers, but holds {printable(' '.join(words))!r}"
        ) from None


def _file_list(path: Path) -> list[str]:
    """Read the photos' paths in one of the Stanford Dogs lists.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return [str(entry[0].item()) for entry in scipy.io.loadmat(path)["file_list"]]
    except FileNotFoundError:
        raise InputError(
            f"{path} does not exist; give --src the official lists.tar or its content"
        ) from None
    except Exception as error:  # a damaged file fails in many ways inside scipy
        raise InputError(
            f"{path} should be a MATLAB file with a file_list, but {error!r}; download it again"
        ) from None
