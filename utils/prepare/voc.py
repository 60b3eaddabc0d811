"""PASCAL VOC: the official layout and the authors' object lists, read into the crops to make."""

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
    """VOC2012: every object that is not difficult;
    ImageSets/Main's train in train, its val in test.

    Without ImageSets every second annotated photo goes to test, because the official halves are
    about equal.

    Args:
        folders: where JPEGImages, Annotations and, if at all, ImageSets/Main are.
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
    """VOC2012: exactly the objects of the authors' pickled lists,
    the first for train, the second for test.

    An object's class is the list's number: a few persons bear the name of their last part, "hand"
    or "foot".

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
    return [folder for name, folder in zip(VOC_CLASSES, VOC_FOLDERS) if name in names]


def _first_classes(listing: Listing, limit: int | None) -> Listing:
    """Keep the first `limit` of the classes that have an object."""
    if limit is not None:
        listing.classes = sorted({PurePosixPath(crop.output).parts[1] for crop in listing.crops})[
            :limit
        ]
        listing.crops = [
            crop for crop in listing.crops if PurePosixPath(crop.output).parts[1] in listing.classes
        ]
    return listing


def _add_objects(
    listing: Listing, split: str, root: Path, stem: str, objects: Iterable[tuple[str, Box]]
) -> None:
    """Add the objects of one photo, numbered within their class;
    the annotations' order gives the same names to all.
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
    """Names and boxes of one XML file's objects but the difficult ones;
    None, and a problem, if it cannot be read.
    """
    try:
        root = ET.fromstring(annotation.read_bytes())
        found = []
        for entry in root.iterfind("object"):
            if entry.findtext("difficult", "0").strip() != "1":
                box = _box({edge.tag: edge.text for edge in entry.iterfind("bndbox/*")})
                found.append((entry.findtext("name", "").strip(), box))
    except FileNotFoundError:
        listing.problem("missing annotation", annotation)
    except (ET.ParseError, KeyError, TypeError, ValueError, OSError) as error:
        listing.problem("unreadable annotation", f"{annotation}: {error!r}")
    else:
        return found
    return None


def _box(edges: Mapping[str, Any]) -> Box:
    return float(edges["xmin"]), float(edges["ymin"]), float(edges["xmax"]), float(edges["ymax"])


def lines_of(path: Path) -> list[str]:
    """The lines of a text file that are not blank;
    bytes that are not UTF-8 survive, as in file names.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; take the whole official archive") from None
    return [line.strip() for line in text.split("\n") if line.strip()]
