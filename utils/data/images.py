"""The photos of one split: decoded and made square."""

import contextlib
import copy
import math
from collections.abc import Callable, Sequence
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
from utils.errors import InputError
from utils.later import torchvision
from utils.normalisation import NORMALISATIONS, Normalisation

SAMPLED = 36  # files whose size is looked at


def random_crop(image: Image.Image, size: int, generator: np.random.Generator) -> Image.Image:
    """Crop at random, resize to S×S and flip half of the images:
    torchvision's RandomResizedCrop and its flip.

    The area of the crop is 8 to 100 % of the image's, its width 3/4 to 4/3 of its height, uniform
    in the logarithm. Where ten draws do not fit, the largest crop of such a shape is taken from the
    centre.

    Args:
        image: RGB.
        size: S, pixels.
        generator: all that is drawn comes from it, and not from torch's: what torch draws in a
            worker depends on how many there are.
    """
    width, height = image.size
    narrowest, widest = 3 / 4, 4 / 3
    for _ in range(10):
        area = width * height * generator.uniform(0.08, 1)
        ratio = math.exp(generator.uniform(math.log(narrowest), math.log(widest)))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            left = int(generator.integers(width - across + 1))
            top = int(generator.integers(height - down + 1))
            break
    else:
        across = min(width, round(height * widest))
        down = min(height, round(width / narrowest))
        left, top = (width - across) // 2, (height - down) // 2
    functions = torchvision.transforms.functional
    crop = functions.resized_crop(image, top, left, down, across, [size, size])
    return functions.hflip(crop) if generator.random() < 0.5 else crop


# How a photo becomes S×S: the paper's plain resize, and ImageNet's usual pair.
VIEWS: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "resize": lambda image, size, _: torchvision.transforms.Resize((size, size))(image),
    "random_crop": random_crop,
    "center_crop": lambda image, size, _: torchvision.transforms.CenterCrop(size)(
        torchvision.transforms.Resize(round(size * 256 / 224))(image)
    ),
}


class ImageData(Dataset):
    """The photos of one split; a batch is (images uint8 (n, 3, S, S), targets, indices int64 (n,)).

    Attributes:
        name, split: the data set's name in `utils.data.datasets.DATASETS`; "train" or "val".
        sample_num: name of the sub-sampler that chose the images, or None for all.
        root, paths: the folder, and each image's POSIX path below it in printable form (its
            identity in records and messages; `file` opens it).
        targets: int64 (n,), or float32 (n, classes) where `multi_label`.
        classes: one name for each output of the network.
        parts: for the halves of a mixed set the positions of their images; empty otherwise.
        image_size: S, pixels.
        normalisation: mean and standard deviation of the channels, plain tuples, for a net that is
            trained on these images. Nets that are only asked have their own
            (`utils.pixels.FromPixels`).
        augmentation: what is drawn anew in every epoch on batches of training images
            (`preprocessing`), or None.
        stored: what batches begin with in place of images that are decoded in every epoch, or None.
        notes: what the user should know of the listing, a sentence each.
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
        self.image_size = image_size
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
        """Whether decoding draws at random:
        the pixels differ from epoch to epoch and must not be kept.
        """
        return self._view == "random_crop"

    @property
    def augments(self) -> bool:
        """Whether a network sees another image in every epoch:
        nothing that it makes of one must be kept.

        The pixels may be kept even so, where the augmentation runs on batches of them.
        """
        return self.augments_while_decoding or self.augmentation is not None

    @property
    def decoding_record(self) -> dict[str, Any]:
        """What turns a file into pixels,
        for the record beside those that are kept, and beside results.
        """
        return {"view": self._view, "image_size": self.image_size, "interpolation": "bilinear"}

    def preprocessing(self, seed: int = 0) -> Preprocessing:
        """Give what makes the network's input of a batch; `seed` is the augmentation's."""
        return Preprocessing(*self.normalisation, augmentation=self.augmentation, seed=seed)

    @property
    def device(self) -> torch.device:
        """Where batches of images arrive: the CPU, unless they are stored on a GPU."""
        return torch.device("cpu") if self.stored is None else self.stored.device

    def file(self, index: int) -> Path:
        """Return the path that opens image `index`."""
        return self.root / self._files[index]

    def with_stored(self, store: TensorStore) -> "ImageData":
        """Return the same data set whose batches begin with the rows of `store`,
        one for each image.

        They are the decoded images, (len(self), 3, S, S) uint8, or what a frozen network made of
        them (`utils.data.computed_once`).
        """
        stored = copy.copy(self)
        stored.stored = store
        return stored

    def decode(self, indices: Sequence[int]) -> Tensor:
        """Read images from their files.

        What is drawn for an image depends on the seed and the epoch of the batch
        (`utils.data.loaders.Batch`) and on the image's index alone; a plain list of indices is of
        seed 0 and epoch 0.

        Returns:
            uint8 (n, 3, S, S).

        Raises:
            InputError: a file is missing, truncated or no image; the message has its path.
        """
        size = self.image_size
        view = VIEWS[self._view]
        seed, epoch = getattr(indices, "seed", 0), getattr(indices, "epoch", 0)
        batch = np.empty((len(indices), 3, size, size), dtype=np.uint8)
        for row, index in enumerate(indices):
            # numpy's copy keeps to one thread; torch's would start a pool in each of the threads
            # that decode
            image = open_rgb(self.file(index))
            batch[row] = np.asarray(
                view(image, size, np.random.default_rng((seed, epoch, index)))
            ).transpose(2, 0, 1)
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
        path: the folder itself instead (--train_path, --val_path); see
            `utils.data.datasets.list_images`.
        sample_num: name of a sub-sampler. It chooses training images only; validation stays whole.
        sub_sampler_split: "first" or "random", how `{percent}par_{A,B}` is made; None: as the file
            that is there.
        seed: of the "random" split.
        normalisation: mean and standard deviation; None: the data set's own.
        augmentation: of batches of training images; validation has none.

    Raises:
        InputError: the name is unknown, the folder or the sub-sampler cannot be used.
    """
    images = list_images(dataset, split, data_root, path)
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
        sample_num=sample_num,
        normalisation=normalisation,
        augmentation=augmentation,
    )


def load_folder(folder: str | Path, image_size: int) -> tuple[ImageData, ImageData]:
    """List the images of a folder, those to fit to and held-out ones; none is decoded yet.

    A folder with `train` and `test` (or `val`) gives these. Of one with class folders alone every
    second image of a class is held out.

    Args:
        folder: of images.
        image_size: S, pixels.

    Returns:
        The fitted and the held-out images; the notes of the latter say how they were parted.

    Raises:
        InputError: there are no class folders, or the classes of both are others.
    """
    root = Path(folder)
    splits = [name for name in ("train", "test", "val") if (root / name).is_dir()]
    if "train" in splits and len(splits) > 1:
        fitted = load_images(
            "folder", "train", data_root=root, image_size=image_size, path=root / "train"
        )
        held_out = load_images(
            "folder", "val", data_root=root, image_size=image_size, path=root / splits[1]
        )
        check_classes(fitted.classes, held_out.classes, f"the images in {root / splits[1]}")
        return fitted, held_out
    listed = list_images("folder", "val", root, root / splits[0] if splits else root)
    is_held = every_second(listed.targets)
    if not is_held.any():
        raise InputError(f"{root} has one image of each class; half of two or more are held out")
    halves = [
        ImageData(
            listed.subset(part.nonzero()[:, 0]), name="folder", split=split, image_size=image_size
        )
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


def files_side(data: ImageData) -> int | None:
    """Say how many pixels to a side the files have; None where they are not all one square.

    Only the headers of some are read.
    """
    sizes = set()
    for index in range(0, len(data), max(1, len(data) // SAMPLED)):
        with contextlib.suppress(Exception), Image.open(data.file(index)) as image:
            sizes.add(image.size)
    (width, height), *others = sizes or {(0, 0)}
    return width if width == height and width and not others else None


def size_note(data: ImageData) -> str:
    """Say where files are less than half as large as what they become;
    "" elsewhere. Only their headers are read.
    """
    sides, every = [], max(1, len(data) // SAMPLED)
    for index in range(0, len(data), every):
        # Named when it is decoded
        with contextlib.suppress(Exception), Image.open(data.file(index)) as image:
            sides.append(max(image.size))
    if not sides or 2 * max(sides) >= data.image_size:
        return ""
    return (
        f"these files have {max(sides)} pixels to a side and are enlarged to {data.image_size}; a"
        f" net of their own size is trained by --image_size {max(sides)}"
    )


def check_classes(expected: list[str], found: list[str], what: str) -> None:
    """Check that two class lists agree,
    since an output of the network has no name but its position.

    Args:
        expected: the class names that the network or the training images have.
        found: the class names that came.
        what: where `found` comes from, for the message: "the validation images".

    Raises:
        InputError: they differ; the message has both counts and the first difference.
    """
    if expected == found:
        return
    position = next(
        (i for i, (a, b) in enumerate(zip(expected, found)) if a != b),
        min(len(expected), len(found)),
    )
    names = [
        classes[position] if position < len(classes) else "nothing" for classes in (expected, found)
    ]
    raise InputError(
        f"the classes of {what} are not the expected ones: {len(found)} instead of {len(expected)},"
        f" class {position} is {names[1]} instead of {names[0]}; use the same class folders"
    )


def check_outputs(count: int, data: ImageData, net: str | Path | None) -> None:
    """Refuse images of more or fewer classes than a network tells apart;
    the authors' files name none.

    Args:
        count: of the network's classes.
        data: the images.
        net: how the network is called.

    Raises:
        InputError: the numbers differ.
    """
    if count != len(data.classes):
        raise InputError(
            f"{net} has {count} classes, the images have {len(data.classes)}; use a net that was"
            " trained on these"
        )
