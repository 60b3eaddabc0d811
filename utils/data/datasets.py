"""The table of data sets, and the lists of their images: files, labels, class names, halves."""

from __future__ import annotations

import difflib
import os
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from utils.data.listing import ENDINGS, LOOSE, LeftOut, find_class_folders, list_files, order_note
from utils.errors import InputError
from utils.files import normalised_folder
from utils.later import torch  # the table alone needs none, as of PrepareData.py

if TYPE_CHECKING:
    from torch import Tensor

# The position is the label, as in the paper's lists of VOC objects; it is not the alphabet's order.
VOC_CLASSES = [
    "cow",
    "aeroplane",
    "cat",
    "bicycle",
    "tvmonitor",
    "horse",
    "bird",
    "dog",
    "bottle",
    "boat",
    "person",
    "train",
    "motorbike",
    "sheep",
    "sofa",
    "bus",
    "pottedplant",
    "diningtable",
    "chair",
    "car",
]
VOC_FOLDERS = tuple(f"{label:02d}_{name}" for label, name in enumerate(VOC_CLASSES))


@dataclass(frozen=True)
class DatasetSpec:
    """How one data set is read.

    Attributes:
        folders: its folders below `data_root`, each with `train` and `test`. Several folders are
            concatenated: labels of a later one are shifted by the number of classes before it. An
            empty tuple: the data set is read by path only.
        parts: names of the folders, if each is also validated alone.
        only: the name of the part whose images alone are taken; labels stay those of all folders.
        class_ids: names of class folders in the order of their labels. The network has an output
            for each, present or not (VOC2012_animal: six folders, 20 outputs). None: labels as
            ImageFolder's, the position in the sorted list of folders.
        multi_label: targets are 0/1 vectors from VOC annotations instead of class folders.
        train_view: the name in `utils.data.views.VIEWS` that makes training images square.
        val_view: the name for validation images.
        normalisation: the name in `utils.normalisation.NORMALISATIONS` of the usual constants.
    """

    folders: tuple[str, ...]
    parts: tuple[str, ...] = ()
    only: str | None = None
    class_ids: tuple[str, ...] | None = None
    multi_label: bool = False
    train_view: str = "resize"
    val_view: str = "resize"
    normalisation: str = "imagenet"


_MIX = DatasetSpec(("CUB200", "DOG120"), parts=("cub", "dog"))

DATASETS = {
    "CUB200": DatasetSpec(("CUB200",)),
    "DOG120": DatasetSpec(("DOG120",)),
    "VOC2012": DatasetSpec(("VOC2012",), class_ids=VOC_FOLDERS, multi_label=True),
    "VOC2012_crop": DatasetSpec(("VOC2012_crop",), class_ids=VOC_FOLDERS),
    "VOC2012_animal": DatasetSpec(("VOC2012_animal",), class_ids=VOC_FOLDERS),
    "mix320": _MIX,
    "mix320-cub": replace(_MIX, only="cub"),
    "mix320-dog": replace(_MIX, only="dog"),
    "ilsvrc": DatasetSpec(("ilsvrc",), train_view="random_crop", val_view="center_crop"),
    "digits": DatasetSpec(("digits",)),
    "CIFAR100": DatasetSpec(("CIFAR100",), normalisation="cifar"),
    "CIFAR10": DatasetSpec(("CIFAR10",), normalisation="cifar"),
    "STL10": DatasetSpec(("STL10",), train_view="random_crop", normalisation="half"),
    "TinyImageNet": DatasetSpec(("TinyImageNet",), train_view="random_crop"),
    "folder": DatasetSpec(()),
}


@dataclass(frozen=True, eq=False)
class ImageList:
    """The images of one split, in ImageFolder's order.

    Attributes:
        root: folder that `files` are relative to.
        files: relative POSIX names, as the file system has them; bytes that are no UTF-8 are
            surrogates.
        targets: int64 (n,), or float32 (n, classes) of 0 and 1 for a multi-label set.
        classes: one name for each output of the network.
        parts: of each half of a mixed set, by name, the positions of its images, int64; else empty.
        notes: remarks for the user on the listing, a sentence each.
    """

    root: Path
    files: list[str]
    targets: Tensor
    classes: list[str]
    parts: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)

    def subset(self, keep: Tensor) -> ImageList:
        """Return the images at positions `keep` (int64), in that order; the classes stay."""
        return ImageList(
            self.root,
            [self.files[position] for position in keep.tolist()],
            self.targets[keep],
            self.classes,
            {
                # Positions in the subset of what belongs to a half of the whole
                name: torch.isin(keep, members).nonzero().flatten()
                for name, members in self.parts.items()
            },
            self.notes,
        )


def dataset_spec(name: str) -> DatasetSpec:
    """Look up a data set.

    Raises:
        InputError: there is none of that name; the message has the nearest one.
    """
    if name in DATASETS:
        return DATASETS[name]
    by_lower = {listed.lower(): listed for listed in DATASETS}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.4)
    hint = f"did you mean {by_lower[near[0]]}?" if near else f"known are {', '.join(DATASETS)}"
    raise InputError(f"there is no data set {name!r}; {hint}")


def list_images(
    name: str, split: str, data_root: str | Path, path: str | Path | None = None
) -> ImageList:
    """List the images of a data set's split ("train" or "val").

    Args:
        name: a key of `DATASETS`.
        split: "train" reads the folder `train`; "val" reads `test`, or `val` where there is no
            `test`.
        data_root: folder that holds the data sets' folders.
        path: the folder itself, instead of the one below `data_root`. Of a set of several folders:
            their paths joined by ":" (`os.pathsep`), in the table's order.

    Raises:
        InputError: a folder is missing, has no class folders, or has a class folder without images
            (a set with `class_ids` may have some).
    """
    spec = dataset_spec(name)
    if spec.multi_label:
        return _list_voc(
            Path(path or Path(data_root, *spec.folders)), split, spec, use_all=path is not None
        )
    roots = _roots(name, split, Path(data_root), path)
    lists = [_list_class_folders(root, spec.class_ids) for root in roots]
    if not spec.parts:
        return lists[0]
    return _concatenate(lists, spec)


def printable(name: str | Path) -> str:
    r"""Return a file name that can be written as UTF-8; other bytes become `\xff`."""
    text = str(name)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text).decode("utf-8", "backslashreplace")
    return text


def _roots(name: str, split: str, data_root: Path, path: str | Path | None) -> list[Path]:
    """Find the folders of a split, one for each folder of the table.

    Raises:
        InputError: one is missing, or the path names too few or too many.
    """
    folders = dataset_spec(name).folders
    flag = f"--{split}_path"
    if path is not None:
        named = str(path).split(os.pathsep) if len(folders) > 1 else [path]
        roots = [Path(folder) for folder in named]
        if len(roots) != max(1, len(folders)):
            raise InputError(
                f"{name} is made of {len(folders)} folders, {flag} names {len(roots)}; "
                f"join them as {os.pathsep.join(folders)}"
            )
    elif folders:
        roots = [_split_folder(data_root / folder, split) for folder in folders]
    else:
        raise InputError(
            f"the data set {name!r} is any folder of class folders; name it with {flag}"
        )
    for root in roots:
        if root.is_dir():
            continue
        if path is not None:
            raise InputError(f"{flag}: there is no folder {printable(root)}")
        raise InputError(
            f"there is no folder {printable(root)} for the {split} images of {name}; make it as "
            f"`python PrepareData.py --help` says, or name one with --data_root or {flag}"
        )
    return [normalised_folder(root) for root in roots]


def _split_folder(folder: Path, split: str) -> Path:
    """Return the folder `train`; for validation `test`, or `val` where only that exists."""
    if split == "train":
        return folder / "train"
    test, val = folder / "test", folder / "val"
    return val if val.is_dir() and not test.is_dir() else test


def _list_class_folders(root: Path, class_ids: tuple[str, ...] | None) -> ImageList:
    """List `root/{class}/**/*.jpg` in ImageFolder's order; see `utils.data.listing`.

    Args:
        root: the folder of class folders.
        class_ids: see `DatasetSpec`.

    Raises:
        InputError: there is no class folder, an unknown one, or one without images.
    """
    left_out = LeftOut()
    folders = _class_folders(root, left_out)
    labels = _labels_of(folders, class_ids, root)
    images = list_files(root, folders, left_out)
    notes = [printable(str(left_out))] if left_out.names else []
    filled = {folder for folder, _ in images}
    empty = [printable(folder) for folder in folders if folder not in filled]
    # ImageFolder's labels count the folders: without an empty one's images a network would have an
    # output that nothing trains. With ids in the table, an empty folder shifts nothing.
    if empty and (class_ids is None or not filled):
        others = f" and {len(empty) - 1} other class folders have" if len(empty) > 1 else " has"
        raise InputError(
            f"the class folder {printable(root / empty[0])}{others} no images ({', '.join(ENDINGS)}"
            f"{'; ' if notes else ''}{''.join(notes)}); add some or remove it"
        )
    classes = [printable(name) for name in class_ids or folders]
    if class_ids is None and (note := order_note(classes)):
        notes.append(note)
    files = [file for _, file in images]
    targets = torch.tensor([labels[folder] for folder, _ in images])
    return ImageList(root, files, targets, classes, {}, notes)


def _class_folders(root: Path, left_out: LeftOut) -> list[str]:
    """Name the class folders, sorted as text.

    Raises:
        InputError: there is none.
    """
    try:
        folders = find_class_folders(root, left_out)
    except PermissionError:
        folders = []
    if not folders:
        loose = len(left_out.names.get(LOOSE, []))
        raise InputError(
            f"{printable(root)} has no class"
            f" folders{f' but {loose} loose images' if loose else ''}; expected are {{class}}/*.jpg"
            " in it"
        )
    return folders


def _labels_of(folders: list[str], class_ids: tuple[str, ...] | None, root: Path) -> dict[str, int]:
    """Give each class folder its label: its place among the ids, or else among the folders.

    Raises:
        InputError: a folder is no class of the ids.
    """
    if class_ids is None:
        return {folder: label for label, folder in enumerate(folders)}
    if unknown := [folder for folder in folders if folder not in class_ids]:
        raise InputError(
            f"{printable(root)} has a folder {printable(unknown[0])!r}, which is none of the "
            f"{len(class_ids)} classes {class_ids[0]} … {class_ids[-1]}"
        )
    return {folder: class_ids.index(folder) for folder in folders}


def _concatenate(lists: list[ImageList], spec: DatasetSpec) -> ImageList:
    """Join the folders of a mixed set, or take one of them with its labels in the mixture."""
    common = Path(os.path.commonpath([images.root for images in lists]))
    files: list[str] = []
    classes: list[str] = []
    targets, parts, notes = [], {}, list[str]()
    for name, images in zip(spec.parts, lists):
        if spec.only in (None, name):
            parts[name] = torch.arange(len(files), len(files) + len(images.files))
            below = images.root.relative_to(common).as_posix()
            files += [f"{below}/{file}" for file in images.files]
            targets.append(images.targets + len(classes))  # behind the classes of earlier folders
            notes += images.notes
        # Also of a half that is left out: labels count all classes of the mixture.
        classes += images.classes
    parts = parts if spec.only is None else {}
    return ImageList(common, files, torch.cat(targets), classes, parts, notes)


def _list_voc(root: Path, split: str, spec: DatasetSpec, use_all: bool) -> ImageList:
    """List a folder in VOC's layout: JPEGImages, Annotations and ImageSets/Main/{train,val}.txt.

    Args:
        root: the folder.
        split: "train" or "val".
        spec: of the data set.
        use_all: without ImageSets take all annotated images; a folder named by path may lack them.

    Raises:
        InputError: the folder has no such list, or lists no images.
    """
    annotations, image_set = root / "Annotations", root / "ImageSets" / "Main" / f"{split}.txt"
    if image_set.is_file():
        # A line may have a flag behind the name, as in the lists of single classes.
        names = [
            line.split()[0]
            for line in image_set.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    elif use_all and annotations.is_dir():
        names = sorted(file.stem for file in annotations.glob("*.xml") if file.name[0] != ".")
    else:
        raise InputError(
            f"{printable(image_set)} does not exist; VOC2012 needs the official JPEGImages,"
            f" Annotations and ImageSets in {printable(root)}, or another folder with"
            f" --{split}_path"
        )
    if not names:
        raise InputError(f"{printable(root)} lists no {split} images")
    assert spec.class_ids is not None
    targets = torch.zeros(len(names), len(spec.class_ids))  # 1 for each class in the image
    for row, name in enumerate(names):
        targets[row, _voc_labels(annotations / f"{name}.xml")] = 1
    files = [f"JPEGImages/{name}.jpg" for name in names]
    return ImageList(normalised_folder(root), files, targets, list(spec.class_ids), {})


def _voc_labels(annotation: Path) -> list[int]:
    """Return the labels of the objects in one VOC annotation file, difficult ones included.

    Raises:
        InputError: the file cannot be read, or names an object that is no class.
    """
    try:
        names = [
            element.findtext("name", "")
            for element in ET.parse(annotation).getroot().iter("object")
        ]
        return [VOC_CLASSES.index(name) for name in names]
    except (OSError, ET.ParseError) as error:
        raise InputError(
            f"{printable(annotation)} is no readable VOC annotation ({error})"
        ) from None
    except ValueError as error:
        raise InputError(
            f"{printable(annotation)} names an object that is no VOC class ({error})"
        ) from None
