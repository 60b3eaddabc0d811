"""TinyImageNet in its official layout: unchanged JPEGs, the validation images in class folders."""

import re
from pathlib import Path

from utils.data.datasets import printable
from utils.errors import InputError
from utils.prepare.cropping import Listing
from utils.prepare.unpacking import find
from utils.prepare.voc import lines_of

# What the source must hold, and the official archive
TINY_IMAGENET_PARTS = {"wnids.txt": "tiny-imagenet-200.zip"}


def read_tiny_imagenet(folders: list[Path], limit: int | None = None) -> Listing:
    """TinyImageNet: `train/{wnid}/images` in train, `val/images` by val_annotations.txt in test.

    The official `test` has no labels and is left out.

    Args:
        folders: where wnids.txt, train and val are.
        limit: only the first so many classes that have a training folder.

    Raises:
        InputError: a list is missing or malformed, or names an image that is not there.
    """
    root = find(folders, "wnids.txt", TINY_IMAGENET_PARTS["wnids.txt"]).parent
    wnids = sorted(lines_of(root / "wnids.txt"))
    if strange := [wnid for wnid in wnids if not re.fullmatch(r"n\d{8}", wnid)]:
        raise InputError(
            f"{root / 'wnids.txt'} should list classes such as n01443537, but has"
            f" {printable(strange[0])!r}"
        )
    present = [wnid for wnid in wnids if (root / "train" / wnid / "images").is_dir()]
    listing = Listing(present[:limit])
    if limit is None and len(present) < len(wnids):
        listing.notes.append(
            f"{len(wnids) - len(present)} of the {len(wnids)} classes are not in {root / 'train'}"
        )
    for wnid in listing.classes:
        for image in sorted((root / "train" / wnid / "images").glob("[!.]*.JPEG")):
            listing.files[f"train/{wnid}/{printable(image.name)}"] = image.read_bytes
    annotations = root / "val" / "val_annotations.txt"
    photos = {path.name: path for path in (root / "val" / "images").glob("[!.]*.JPEG")}
    for line in lines_of(annotations):
        name, wnid, *_ = [*line.split("\t"), ""]
        if wnid not in wnids or name not in photos:
            raise InputError(
                f"{annotations} should name images of val/images and classes of wnids.txt, but has "
                f"{printable(line)!r}; take the whole official archive"
            )
        if wnid in listing.classes:
            listing.files[f"test/{wnid}/{printable(name)}"] = photos[name].read_bytes
    return listing
