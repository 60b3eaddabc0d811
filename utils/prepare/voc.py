"""PASCAL VOC in its official layout or by the authors' lists, read into a list of crops."""

import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from utils.data.datasets import VOC_CLASSES, VOC_FOLDERS, printable
from utils.errors import InputError
from utils.prepare.cropping import Box, Listing
from utils.prepare.restricted_pickle import load_plain
from utils.prepare.unpacking import find

# What the source must hold, and the official archive of it.
VOC_PARTS = {"JPEGImages": "VOCtrainval_11-May-2012.tar"}
VOC_ANIMALS = ["bird", "cat", "cow", "dog", "horse", "sheep"]


def read_voc(folders: list[Path], names: list[str], limit: int | None = None) -> Listing:
    """VOC2012: every object that is not difficult, in the split of ImageSets/Main.

    Its train becomes train, its val becomes test. Without ImageSets every second annotated photo
    goes to test: the official halves are about equal.

    Args:
        folders: where JPEGImages, Annotations and perhaps ImageSets/Main are.
        names: of `VOC_CLASSES`, the objects to crop.
        limit: only the first so many of them, in the order of `VOC_CLASSES`, that have an object.

    Raises:
        InputError: there is no JPEGImages folder.
    """
    root = find(folders, "JPEGImages", VOC_PARTS["JPEGImages"]).parent
    listing = Listing(_voc_folders(names))
    lists = root / "ImageSets" / "Main"
    if (lists / "train.txt").is_file():
        photos = {"train": lines_of(lists / "train.txt"), "test": lines_of(lists / "val.txt")}
    else:
        stems = sorted(path.stem for path in (root / "Annotations").glob("*.xml"))
        photos = {"train": stems[0::2], "test": stems[1::2]}
        listing.notes.append(
            f"there is no {printable(lists)}/train.txt: every second photo goes to test"
        )
    for file in sorted((root / "JPEGImages").iterdir()):
        if file.suffix != ".jpg" and not file.name.startswith("."):
            listing.problem("file that is no photo", file)
    for split, stems in photos.items():
        for stem in stems:
            objects = read_objects(listing, root / "Annotations" / f"{stem}.xml")
            _add_objects(listing, split, root, stem, objects or [])
    return _first_classes(listing, limit)


def read_voc_lists(
    folders: list[Path], lists: list[Path], names: list[str], limit: int | None = None
) -> Listing:
    """VOC2012: exactly the objects of the authors' pickled lists, of train and of test.

    An object's class is its number in the list, not its name: a few persons have the name of their
    last annotated limb, "hand" or "foot".

    Args:
        folders: where JPEGImages is.
        lists: pickled lists of dicts `source, category, class, bndbox{xmin,ymin,xmax,ymax}`.
        names: of `VOC_CLASSES`, the objects to crop.
        limit: only the first so many of them, in the order of `VOC_CLASSES`, that have an object.

    Raises:
        InputError: there is no JPEGImages folder, or a list is not of this form.
    """
    root = find(folders, "JPEGImages", VOC_PARTS["JPEGImages"]).parent
    listing = Listing(_voc_folders(names))
    classes = dict(enumerate(VOC_CLASSES))
    for split, path in zip(("train", "test"), lists):
        photos: dict[str, list[tuple[str, Box]]] = defaultdict(list)
        try:
            for entry in load_plain(path):
                name, stem = classes[entry["class"]], PurePosixPath(entry["source"]).name
                photos[stem].append((name, _box(entry["bndbox"])))
        except (TypeError, KeyError, ValueError) as error:
            raise InputError(
                f"{path} should be a list of objects with source, class (0 to 19) and bndbox, but"
                f" {error!r}; give the authors' VOC_*.pkl"
            ) from None
        for stem, objects in photos.items():
            _add_objects(listing, split, root, stem, objects)
    return _first_classes(listing, limit)


def _voc_folders(names: Iterable[str]) -> list[str]:
    """Name the class folders of some classes, in the order of their labels."""
    return [folder for name, folder in zip(VOC_CLASSES, VOC_FOLDERS) if name in names]


def _first_classes(listing: Listing, limit: int | None) -> Listing:
    """Keep the first `limit` of the classes that have an object."""
    if limit is not None:
        # An output is `{split}/{class}/{name}.jpg`.
        folders = [PurePosixPath(crop.output).parts[1] for crop in listing.crops]
        listing.classes = sorted(set(folders))[:limit]
        listing.crops = [
            crop for crop, folder in zip(listing.crops, folders) if folder in listing.classes
        ]
    return listing


def _add_objects(
    listing: Listing, split: str, root: Path, stem: str, objects: Iterable[tuple[str, Box]]
) -> None:
    """Add the objects of one photo, numbered within their class in the annotation's order.

    So everybody's crops have the same names.
    """
    seen: Counter[str] = Counter()
    for name, box in objects:
        if name not in VOC_CLASSES:
            listing.problem("unknown class", f"{stem}: {name}")
            continue
        folder = VOC_FOLDERS[VOC_CLASSES.index(name)]
        if folder in listing.classes:
            listing.add(
                split, f"{folder}/{stem}_{seen[name]}.jpg", root / "JPEGImages" / f"{stem}.jpg", box
            )
            seen[name] += 1


def read_objects(listing: Listing, annotation: Path) -> list[tuple[str, Box]] | None:
    """Read the objects of one XML annotation, without the difficult ones.

    Args:
        listing: takes a problem if the file cannot be read.
        annotation: the file.

    Returns:
        Name and box of each object; None if the file cannot be read.
    """
    try:
        root = ET.fromstring(annotation.read_bytes())
        objects = []
        for entry in root.iterfind("object"):
            if entry.findtext("difficult", "0").strip() != "1":
                box = _box({edge.tag: edge.text for edge in entry.iterfind("bndbox/*")})
                objects.append((entry.findtext("name", "").strip(), box))
    except FileNotFoundError:
        listing.problem("missing annotation", annotation)
    except (ET.ParseError, KeyError, TypeError, ValueError, OSError) as error:
        listing.problem("unreadable annotation", f"{annotation}: {error!r}")
    else:
        return objects
    return None


def _box(edges: Mapping[str, Any]) -> Box:
    return float(edges["xmin"]), float(edges["ymin"]), float(edges["xmax"]), float(edges["ymax"])


def lines_of(path: Path) -> list[str]:
    """Read the lines of a text file that are not blank; bytes that are no UTF-8 are kept.

    Raises:
        InputError: there is no such file.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; take the whole official archive") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
