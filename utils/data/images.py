"""The photos of one split: decoded and made square."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from utils.data.batches import Augmentation, Preprocessing
from utils.data.datasets import ImageList, dataset_spec, list_images, printable
from utils.data.storage import TensorStore
from utils.data.sub_samplers import read_sub_sampler
from utils.errors import InputError
from utils.later import torchvision
from utils.normalisation import NORMALISATIONS, Normalisation

# How a photo becomes S×S: the paper's plain resize, and ImageNet's usual pair.
VIEWS: dict[str, Callable[[int], Callable[[Image.Image], Image.Image]]] = {
    "resize": lambda size: torchvision.transforms.Resize((size, size)),
    "random_crop": lambda size: torchvision.transforms.Compose(
        [torchvision.transforms.RandomResizedCrop(size), torchvision.transforms.RandomHorizontalFlip()]
    ),
    "center_crop": lambda size: torchvision.transforms.Compose(
        [torchvision.transforms.Resize(round(size * 256 / 224)), torchvision.transforms.CenterCrop(size)]
    ),
}


class ImageData(Dataset):
    """The photos of one split; a batch is (images uint8 (n, 3, S, S), targets, indices int64 (n,)).

    Attributes:
        name, split: the data set's name in `utils.data.datasets.DATASETS`; "train" or "val".
        sample_num: name of the sub-sampler that chose the images, or None for all.
        root, paths: the folder, and each image's POSIX path below it in printable form (its identity in
            records and messages; `file` opens it).
        targets: int64 (n,), or float32 (n, classes) where `multi_label`.
        classes: one name for each output of the network.
        parts: for the halves of a mixed set the positions of their images; empty otherwise.
        image_size: S, pixels.
        normalisation: mean and standard deviation of the channels, plain tuples, for a net that is trained on these
            images. Nets that are only asked have their own (`utils.pixels.FromPixels`).
        augmentation: what is drawn anew in every epoch on batches of training images (`preprocessing`), or None.
        stored: what batches begin with in place of images that are decoded in every epoch, or None.
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
        self.root, self.targets, self.classes, self.parts = images.root, images.targets, images.classes, images.parts
        self.paths = [printable(file) for file in images.files]
        self.image_size = image_size
        self.multi_label = spec.multi_label
        self.normalisation = normalisation or NORMALISATIONS[spec.normalisation]
        self.augmentation = augmentation if split == "train" else None
        self.stored: TensorStore | None = None
        self._files = images.files
        self._view = spec.train_view if split == "train" else spec.val_view

    @property
    def augments_while_decoding(self) -> bool:
        """Whether decoding draws at random: the pixels differ from epoch to epoch and must not be kept."""
        return self._view == "random_crop"

    @property
    def augments(self) -> bool:
        """Whether a network sees another image in every epoch: nothing that it makes of one must be kept.

        The pixels may be kept even so, where the augmentation runs on batches of them.
        """
        return self.augments_while_decoding or self.augmentation is not None

    @property
    def decoding_record(self) -> dict[str, Any]:
        """What turns a file into pixels, for the record beside those that are kept, and beside results."""
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
        """Return the same data set whose batches begin with the rows of `store`, one for each image.

        They are the decoded images, (len(self), 3, S, S) uint8, or what a frozen network made of them
        (`utils.data.computed_once`).
        """
        stored = copy.copy(self)
        stored.stored = store
        return stored

    def decode(self, indices: Sequence[int]) -> Tensor:
        """Read images from their files.

        Returns:
            uint8 (n, 3, S, S).

        Raises:
            InputError: a file is missing, truncated or no image; the message has its path.
        """
        size = self.image_size
        view = VIEWS[self._view](size)
        batch = np.empty((len(indices), 3, size, size), dtype=np.uint8)
        for row, index in enumerate(indices):
            # numpy's copy keeps to one thread; torch's would start a pool in each of the threads that decode
            batch[row] = np.asarray(view(_open_rgb(self.file(index)))).transpose(2, 0, 1)
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
        path: the folder itself instead (--train_path, --val_path); see `utils.data.datasets.list_images`.
        sample_num: name of a sub-sampler. It chooses training images only; validation stays whole.
        sub_sampler_split: "first" or "random", how `{percent}par_{A,B}` is made; None: as the file that is there.
        seed: of the "random" split.
        normalisation: mean and standard deviation; None: the data set's own.
        augmentation: of batches of training images; validation has none.

    Raises:
        InputError: the name is unknown, the folder or the sub-sampler cannot be used.
    """
    images = list_images(dataset, split, data_root, path)
    sample_num = (sample_num or None) if split == "train" else None
    if sample_num is not None:
        keep = read_sub_sampler(dataset, sample_num, images, data_root=data_root, split=sub_sampler_split, seed=seed)
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


def check_classes(expected: list[str], found: list[str], what: str) -> None:
    """Check that two class lists agree, since an output of the network has no name but its position.

    Args:
        expected: the class names that the network or the training images have.
        found: the class names that came.
        what: where `found` comes from, for the message: "the validation images".

    Raises:
        InputError: they differ; the message has both counts and the first difference.
    """
    if expected == found:
        return
    position = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), min(len(expected), len(found)))
    names = [classes[position] if position < len(classes) else "nothing" for classes in (expected, found)]
    raise InputError(
        f"the classes of {what} are not the expected ones: {len(found)} instead of {len(expected)}, "
        f"class {position} is {names[1]} instead of {names[0]}; use the same class folders"
    )


def check_outputs(count: int, data: ImageData, net: str | Path | None) -> None:
    """Refuse images of more or fewer classes than a network tells apart; the authors' files name none.

    Args:
        count: of the network's classes.
        data: the images.
        net: how the network is called.

    Raises:
        InputError: the numbers differ.
    """
    if count != len(data.classes):
        raise InputError(
            f"{net} has {count} classes, the images have {len(data.classes)}; use a net that was trained on these"
        )


def _open_rgb(path: Path) -> Image.Image:
    """Decode a file completely, as RGB."""
    try:
        with path.open("rb") as file, Image.open(file) as image:
            return image.convert("RGB")
    except Exception as error:  # decoders raise nearly anything on broken bytes
        no_image = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if no_image else getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{printable(path)} cannot be read as an image ({reason}); replace or remove it") from error
