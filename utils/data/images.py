"""The photos of one split: decoded and made square."""

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.batches import Augmentation, Preprocessing
from utils.data.contents import Contents
from utils.data.datasets import ImageList, dataset_spec, list_images, printable
from utils.data.decoding import open_rgb
from utils.data.storage import TensorStore
from utils.data.sub_samplers import read_sub_sampler
from utils.data.views import RESIZES, VIEWS
from utils.errors import InputError
from utils.normalisation import NORMALISATIONS, Normalisation
from utils.provenance import RESIZED_BEFORE

SAMPLED = 36  # files whose size `size_note` reads


class ImageData(Dataset):
    """The photos of one split; a batch is (images uint8 (n, 3, S, S), targets, indices int64 (n,)).

    Attributes:
        name: the data set's key in `utils.data.datasets.DATASETS`.
        split: "train" or "val".
        sample_num: name of the sub-sampler that chose the images; None: all.
        root: the folder of the images.
        paths: each image's POSIX path below `root` in printable form, its name in records and
            messages; `file` opens it.
        targets: int64 (n,), or float32 (n, classes) where `multi_label`.
        classes: one name for each output of the network.
        parts: of each half of a mixed set, by name, the positions of its images; else empty.
        image_size: S, pixels.
        resize: what resizes, "torch" or "pillow" (`utils.data.views`).
        normalisation: mean and standard deviation of the channels for a net that is trained on
            these images. Frozen nets have constants of their own (`utils.pixels.FromPixels`).
        augmentation: of batches of training images, drawn anew in every epoch; None: none.
        stored: rows that batches begin with, in place of images decoded in every epoch; None: none.
        notes: remarks for the user on the listing, a sentence each.
        contents: names, labels and hashes of the files, once `utils.data.contents.read_contents`
            has read them.
    """

    def __init__(
        self,
        images: ImageList,
        *,
        name: str,
        split: str,
        image_size: int = 224,
        resize: str = "torch",
        sample_num: str | None = None,
        normalisation: Normalisation | None = None,
        augmentation: Augmentation | None = None,
    ):
        spec = dataset_spec(name)
        self.name, self.split, self.sample_num = name, split, sample_num
        self.root, self.targets, self.classes, self.parts = (
            images.root,
            images.targets,
            images.classes,
            images.parts,
        )
        self.paths = [printable(file) for file in images.files]
        self.image_size, self.resize = image_size, resize
        self.multi_label = spec.multi_label
        self.normalisation = normalisation or NORMALISATIONS[spec.normalisation]
        self.augmentation = augmentation if split == "train" else None
        self.stored: TensorStore | None = None
        self.notes = images.notes
        self.contents: Contents | None = None
        self._files = images.files
        self._view = spec.train_view if split == "train" else spec.val_view

    @property
    def augments_while_decoding(self) -> bool:
        """Whether decoding crops at random, so that pixels must not be kept over epochs."""
        return self._view == "random_crop"

    @property
    def augments(self) -> bool:
        """Whether a network sees another image in every epoch, so that no output may be kept.

        The pixels may be kept even so, if the augmentation runs on batches of them.
        """
        return self.augments_while_decoding or self.augmentation is not None

    @property
    def decoding_record(self) -> dict[str, Any]:
        """The way from a file to pixels, for the records of kept pixels and of results."""
        record = {"view": self._view, "image_size": self.image_size, "interpolation": "bilinear"}
        # Records of earlier versions do not say it: Pillow resized, and does so where they are read.
        return record | ({"resize": self.resize} if self.resize != RESIZED_BEFORE else {})

    def preprocessing(self, seed: int = 0) -> Preprocessing:
        """Give the way from a batch's pixels to the network's input; `seed` is of augmentation."""
        return Preprocessing(*self.normalisation, augmentation=self.augmentation, seed=seed)

    @property
    def device(self) -> torch.device:
        """The device of batches: the CPU, unless the images are stored on a GPU."""
        return torch.device("cpu") if self.stored is None else self.stored.device

    def file(self, index: int) -> Path:
        """Return the path that opens image `index`."""
        return self.root / self._files[index]

    def with_stored(self, store: TensorStore) -> "ImageData":
        """Return this data set with batches that begin with rows of a store.

        Args:
            store: one row an image: the decoded images, uint8 (n, 3, S, S), or a frozen network's
                outputs (`utils.data.computed_once`).
        """
        stored = copy.copy(self)
        stored.stored = store
        return stored

    def decode(self, indices: Sequence[int]) -> Tensor:
        """Read images from their files.

        A random crop depends on (seed, epoch, index) alone. Seed and epoch are those of the batch
        (`utils.data.loaders.Batch`); a plain list of indices has seed 0 and epoch 0.

        Args:
            indices: positions of n images.

        Returns:
            uint8 (n, 3, S, S).

        Raises:
            InputError: a file is missing, truncated or no image; the message has its path.
        """
        size = self.image_size
        view, show = VIEWS[self._view], RESIZES[self.resize]
        seed, epoch = getattr(indices, "seed", 0), getattr(indices, "epoch", 0)
        batch = np.empty((len(indices), 3, size, size), dtype=np.uint8)
        for row, index in enumerate(indices):
            # A generator of its own for each image: neither batch nor worker matters.
            generator = np.random.default_rng((seed, epoch, index))
            photo = open_rgb(self.file(index))
            frame = view(photo.height, photo.width, size, generator)
            # NumPy copies in this thread; torch would start a pool of threads in each of the
            # threads that decode.
            batch[row] = show(photo, frame, size)
        return torch.from_numpy(batch)

    def __len__(self) -> int:
        return len(self._files)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return one stacked batch: images, targets, indices."""
        index = torch.as_tensor(indices)
        images = self.decode(indices) if self.stored is None else self.stored.gather(index)
        return images, self.targets[index], index


def load_images(
    dataset: str,
    split: str,
    *,
    data_root: str | Path,
    image_size: int = 224,
    resize: str = "torch",
    path: str | Path | None = None,
    sample_num: str | None = None,
    sub_sampler_split: str | None = None,
    seed: int = 0,
    normalisation: Normalisation | None = None,
    augmentation: Augmentation | None = None,
) -> ImageData:
    """Open one split of a data set.

    Args:
        dataset: a key of `utils.data.datasets.DATASETS`.
        split: "train" or "val".
        data_root: folder that holds `{dataset}/{train,test}/{class}/*.jpg`.
        image_size: S, pixels.
        resize: what resizes, "torch" or "pillow".
        path: the folder itself instead (--train_path, --val_path); see
            `utils.data.datasets.list_images`.
        sample_num: name of a sub-sampler, which chooses training images; validation has none.
        sub_sampler_split: "first" or "random", the way in which `{percent}par_{A,B}` is made; None:
            as an existing file was.
        seed: of the "random" split.
        normalisation: mean and standard deviation; None: the data set's.
        augmentation: of batches of training images; validation has none.

    Raises:
        InputError: the name is unknown, or the folder or the sub-sampler cannot be used.
    """
    images = list_images(dataset, split, data_root, path)
    # "" is the documented default of --sample_num: all images.
    sample_num = (sample_num or None) if split == "train" else None
    if sample_num is not None:
        keep = read_sub_sampler(
            dataset, sample_num, images, data_root=data_root, split=sub_sampler_split, seed=seed
        )
        images = images.subset(keep)
    return ImageData(
        images,
        name=dataset,
        split=split,
        image_size=image_size,
        resize=resize,
        sample_num=sample_num,
        normalisation=normalisation,
        augmentation=augmentation,
    )


def load_folder(
    folder: str | Path, image_size: int, resize: str = "torch"
) -> tuple[ImageData, ImageData]:
    """List the images of a folder, those to fit to and held-out ones; none is decoded yet.

    A folder with `train` and `test` (or `val`) gives these. Of one with class folders alone every
    second image of a class is held out.

    Args:
        folder: of images.
        image_size: S, pixels.
        resize: what resizes, "torch" or "pillow".

    Returns:
        The fitted and the held-out images; the notes of the latter say how they were parted.

    Raises:
        InputError: there are no class folders, or the classes of both are others.
    """
    root = Path(folder)
    way: dict[str, Any] = {"image_size": image_size, "resize": resize}
    splits = [name for name in ("train", "test", "val") if (root / name).is_dir()]
    if "train" in splits and len(splits) > 1:
        fitted = load_images("folder", "train", data_root=root, path=root / "train", **way)
        held_out = load_images("folder", "val", data_root=root, path=root / splits[1], **way)
        check_classes(fitted.classes, held_out.classes, f"the images in {root / splits[1]}")
        return fitted, held_out
    listed = list_images("folder", "val", root, root / splits[0] if splits else root)
    is_held = every_second(listed.targets)
    if not is_held.any():
        raise InputError(f"{root} has one image of each class; half of two or more are held out")
    halves = [
        ImageData(listed.subset(part.nonzero()[:, 0]), name="folder", split=split, **way)
        for part, split in ((~is_held, "train"), (is_held, "val"))
    ]
    halves[1].notes = [
        *halves[1].notes,
        "the folder has no train and test: every second image of each class was held out",
    ]
    return halves[0], halves[1]


def every_second(labels: Tensor) -> Tensor:
    """Choose every second image of each class, bool (N,): those that are held out."""
    order, places = labels.argsort(stable=True), torch.arange(len(labels))
    first = torch.searchsorted(labels[order], labels[order])  # images of other classes before
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[order] = (places - first) % 2 == 1
    return held


def held_out_images(chosen: Any, labels: Tensor) -> Tensor:
    """Give the images that are judged, bool (N,).

    Args:
        chosen: a bool for each image; None: every second one of each class is held out.
        labels: their classes, (N,).

    Raises:
        InputError: `chosen` is no such mask, or has none or all of the images; or no class has two
            images.
    """
    if chosen is None:
        mask = every_second(labels)
        if not mask.any():
            raise InputError(
                f"{len(labels)} images of {len(labels)} classes leave none to hold out; say which by"
                " held_out"
            )
        return mask
    mask = torch.as_tensor(chosen).cpu()
    if mask.shape != labels.shape or mask.dtype != torch.bool or mask.all() or not mask.any():
        raise InputError(
            f"held_out must be a bool for each of {len(labels)} images, True for some of them"
        )
    return mask


def files_side(data: ImageData) -> int | None:
    """Say how many pixels to a side the files have; None where they are not all one square.

    Only the headers of some are read.
    """
    sizes = set()
    for index in range(0, len(data), max(1, len(data) // SAMPLED)):
        with contextlib.suppress(Exception), Image.open(data.file(index)) as image:
            sizes.add(image.size)
    # Without a readable file: no side
    (width, height), *others = sizes or {(0, 0)}
    return width if width == height and width and not others else None


def size_note(data: ImageData) -> str:
    """Remark that files are enlarged to more than twice their size; "" where they are not.

    Only the headers of `SAMPLED` files are read.
    """
    sides, every = [], max(1, len(data) // SAMPLED)
    for index in range(0, len(data), every):
        # A broken file is refused when it is decoded.
        with contextlib.suppress(Exception), Image.open(data.file(index)) as image:
            sides.append(max(image.size))
    if not sides or 2 * max(sides) >= data.image_size:
        return ""
    return (
        f"these files have {max(sides)} pixels to a side and are enlarged to {data.image_size}; a"
        f" net of their own size is trained by --image_size {max(sides)}"
    )


def check_classes(expected: list[str], actual: list[str], what: str) -> None:
    """Check that two lists of classes agree: an output of a network is known by position alone.

    Args:
        expected: class names of the network or the training images.
        actual: class names of other images.
        what: names the other images in the message: "the validation images".

    Raises:
        InputError: they differ; the message has both counts and the first difference.
    """
    if expected == actual:
        return
    # The first difference; where one list continues the other, it is behind the shorter one.
    position = next(
        (i for i, (a, b) in enumerate(zip(expected, actual)) if a != b),
        min(len(expected), len(actual)),
    )
    names = [
        classes[position] if position < len(classes) else "nothing"
        for classes in (expected, actual)
    ]
    raise InputError(
        f"the classes of {what} are not the expected ones: {len(actual)} instead of"
        f" {len(expected)}, class {position} is {names[1]} instead of {names[0]}; use the same"
        " class folders"
    )


def check_outputs(count: int, data: ImageData, net: str | Path | None) -> None:
    """Refuse images with another number of classes than a network.

    Args:
        count: the network's number of classes; the authors' files do not name them.
        data: the images.
        net: the network, for the message.

    Raises:
        InputError: the numbers differ.
    """
    if count != len(data.classes):
        raise InputError(
            f"{net} has {count} classes, the images have {len(data.classes)}; use a net that was"
            " trained on these"
        )
