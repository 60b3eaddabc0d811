import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from torchvision.transforms.functional import pil_to_tensor

from tests.mistakes import refused
from tests.unit.photos import make_folder, make_photo, real_data
from utils.data.batches import AUGMENTATIONS, Preprocessing
from utils.data.images import ImageData, check_classes, check_outputs, load_images
from utils.data.loaders import Batch
from utils.errors import InputError
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise


def torchvision_transform(resize, *first):
    """torchvision's transforms of an image of Pillow, or of a tensor of uint8."""
    ways = {
        "pillow": [*first, transforms.ToTensor()],
        "torch": [transforms.PILToTensor(), *first, lambda pixels: pixels.float().div(255)],
    }
    normalising = transforms.Normalize(*NORMALISATIONS["imagenet"])
    return transforms.Compose([*ways[resize], normalising])


def load(root, split="train", dataset="folder", **options) -> ImageData:
    """Load a folder by path."""
    return load_images(dataset, split, data_root=root / "nowhere", path=root, **options)


def everything(data):
    return data.__getitems__(list(range(len(data))))


@pytest.mark.parametrize("size", [(40, 30), (224, 224), (640, 333), (1, 1)])
@pytest.mark.parametrize(
    "mode, suffix", [("RGB", "jpg"), ("L", "jpg"), ("CMYK", "jpg"), ("RGBA", "png"), ("P", "png")]
)
@pytest.mark.parametrize("resize", ["torch", "pillow"])
def test_pixels_are_bit_identical_to_torchvision(tmp_path, resize, size, mode, suffix):
    make_photo(tmp_path / "a" / f"x.{suffix}", 3, size, mode)
    transform = torchvision_transform(resize, v2.Resize((64, 64)))
    expected = ImageFolder(str(tmp_path), transform)
    images, targets, indices = everything(load(tmp_path, image_size=64, resize=resize))
    assert images.dtype == torch.uint8 and images.shape == (1, 3, 64, 64)
    assert torch.equal(normalise(images, *NORMALISATIONS["imagenet"])[0], expected[0][0])
    assert targets.tolist() == indices.tolist() == [0]


@pytest.mark.parametrize("resize", ["torch", "pillow"])
def test_real_photos_are_bit_identical_to_torchvision(resize):
    folder = real_data() / "CUB_200_2011" / "images"
    transform = torchvision_transform(resize, v2.Resize((224, 224)))
    expected = ImageFolder(str(folder), transform)
    data = load(folder, resize=resize)
    assert data.paths == [Path(path).relative_to(folder).as_posix() for path, _ in expected.samples]
    assert data.targets.tolist() == expected.targets
    some = list(range(0, len(data), 500))
    images, targets, _ = data.__getitems__(some)
    assert torch.equal(
        normalise(images, *NORMALISATIONS["imagenet"]),
        torch.stack([expected[index][0] for index in some]),
    )
    assert targets.tolist() == [expected[index][1] for index in some]


def test_batches_keep_order_and_repeats_and_go_through_a_loader_with_workers(tmp_path):
    data = load(make_folder(tmp_path, {"a": 2, "b": 3}), image_size=16)
    images, targets, indices = data.__getitems__([4, 0, 4])
    assert targets.tolist() == [1, 0, 1] and indices.tolist() == [4, 0, 4]
    assert torch.equal(images[0], images[2]) and not torch.equal(images[0], images[1])
    loader = DataLoader(data, batch_size=2, num_workers=1, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert torch.equal(torch.cat([batch[0] for batch in batches]), everything(data)[0])
    assert torch.cat([batch[2] for batch in batches]).tolist() == list(range(5))


def test_a_data_set_survives_pickling(tmp_path):
    data = load(make_folder(tmp_path, {"a": 2}), image_size=8)
    assert torch.equal(everything(pickle.loads(pickle.dumps(data)))[0], everything(data)[0])


def test_ilsvrc_is_augmented_in_training_only(tmp_path):
    make_folder(tmp_path / "train", {"a": 2})
    train, val = (
        load(tmp_path / "train", "train", "ilsvrc"),
        load(tmp_path / "train", "val", "ilsvrc"),
    )
    assert train.augments and train.augments_while_decoding
    assert not val.augments and not val.augments_while_decoding
    first, second = (train.__getitems__(Batch([0, 1], seed=3, epoch=epoch))[0] for epoch in (4, 5))
    assert (
        first.dtype == torch.uint8
        and first.shape == (2, 3, 224, 224)
        and not torch.equal(first, second)
    )
    assert train.decoding_record["view"] != val.decoding_record["view"]


@pytest.mark.parametrize("resize", ["torch", "pillow"])
@pytest.mark.parametrize("photo", [(300, 200), (200, 301)])
@pytest.mark.parametrize("size, resized", [(224, 256), (112, 128), (48, 55)])
def test_ilsvrc_validation_is_a_scaled_centre_crop(tmp_path, resize, photo, size, resized):
    make_photo(tmp_path / "a" / "x.jpg", 1, photo)
    views = v2.Resize(resized), v2.CenterCrop(size)
    whole = ImageFolder(str(tmp_path), torchvision_transform(resize, *views))
    images, *_ = everything(load(tmp_path, "val", "ilsvrc", image_size=size, resize=resize))
    assert torch.equal(normalise(images, *NORMALISATIONS["imagenet"])[0], whole[0][0])


def test_both_ways_to_resize_agree_within_one_level(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "x.png")
    for dataset, split in (("folder", "val"), ("ilsvrc", "train"), ("ilsvrc", "val")):
        torch_, pillow = (
            load(tmp_path, split, dataset, image_size=100, resize=way)
            for way in ("torch", "pillow")
        )
        levels = (everything(torch_)[0].int() - everything(pillow)[0].int()).abs()
        assert levels.max() <= 1 and (levels > 0).float().mean() < 0.05
        assert torch_.decoding_record == pillow.decoding_record | {"resize": "torch"}


def test_files_of_their_own_size_are_not_resized(tmp_path):
    make_photo(tmp_path / "a" / "x.png", 2, (24, 24))
    pixels = pil_to_tensor(Image.open(tmp_path / "a" / "x.png"))
    for resize in ("torch", "pillow"):
        assert torch.equal(everything(load(tmp_path, image_size=24, resize=resize))[0][0], pixels)


def break_photo(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif how == "text":
        path.write_text("I am no photo")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()


@pytest.mark.parametrize(
    "how, reason",
    [
        ("truncated", "truncated"),
        ("text", "unknown format"),
        ("empty", "unknown format"),
        ("gone", "No such file"),
    ],
)
def test_an_unreadable_image_is_named_when_it_is_decoded(tmp_path, how, reason):
    data = load(make_folder(tmp_path, {"a": 3}), image_size=16)
    break_photo(tmp_path / "a" / "01.jpg", how)
    assert len(data.__getitems__([0, 2])[0]) == 2
    with refused("/a/01.jpg", reason) as caught:
        data.__getitems__([0, 1])
    assert "\n" not in str(caught.value)


def test_file_names_that_are_no_utf8_are_read_and_printable(tmp_path):
    folder = tmp_path / os.fsdecode(b"gr\xfcn")
    make_photo(folder / os.fsdecode(b"caf\xe9.png"), 4)
    make_photo(folder / "schön.png", 5)
    data = load(tmp_path, image_size=16)
    assert data.classes == ["gr\\xfcn"] and sorted(data.paths) == [
        "gr\\xfcn/caf\\xe9.png",
        "gr\\xfcn/schön.png",
    ]
    assert everything(data)[0].shape == (2, 3, 16, 16)
    break_photo(data.file(0), "text")
    break_photo(data.file(1), "text")
    with pytest.raises(InputError) as caught:
        everything(data)
    str(caught.value).encode()  # can be printed


def test_images_of_another_number_of_classes_are_refused(tmp_path):
    make_folder(tmp_path, {"a": 1, "b": 1, "c": 1})
    check_outputs(3, load(tmp_path), "net.pth.tar")
    with refused("net.pth.tar", "2", "3"):
        check_outputs(2, load(tmp_path), "net.pth.tar")


def test_check_classes_names_the_first_difference():
    check_classes(["a", "b"], ["a", "b"], "the validation images")
    with refused("1", "2", "nothing", "b"):
        check_classes(["a", "b"], ["a"], "the validation images")
    with refused("2", "0", "x", "a"):
        check_classes(["a", "b"], ["x", "b"], "net.pth.tar")
    with refused("2", "c", "nothing"):
        check_classes(["a", "b"], ["a", "b", "c"], "net.pth.tar")


def test_sub_samplers_choose_training_images_only(tmp_path):
    make_folder(tmp_path / "CUB200" / "train", {"a": 4, "b": 3})
    make_folder(tmp_path / "CUB200" / "test", {"a": 2, "b": 2})
    np.save(tmp_path / "sub_sampler_CUB200_few.npy", np.array([5, 0]))
    data = load_images("CUB200", "train", data_root=tmp_path, sample_num="few", image_size=16)
    whole = load_images("CUB200", "train", data_root=tmp_path, image_size=16)
    assert data.paths == ["b/01.jpg", "a/00.jpg"] and data.targets.tolist() == [1, 0]
    assert data.sample_num == "few" and data.classes == whole.classes
    images, _, indices = everything(data)
    assert torch.equal(images, whole.__getitems__([5, 0])[0]) and indices.tolist() == [0, 1]
    val = load_images("CUB200", "val", data_root=tmp_path, sample_num="few")
    assert len(val) == 4 and val.sample_num is None
    assert load_images("CUB200", "train", data_root=tmp_path, sample_num="").sample_num is None


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("folder", "imagenet"), ("CIFAR100", "cifar"), ("CIFAR10", "cifar"), ("STL10", "half")],
)
def test_images_are_normalised_as_the_table_says_or_as_is_chosen(tmp_path, dataset, name):
    make_folder(tmp_path, {"a": 2})
    data, chosen = (
        load(tmp_path, dataset=dataset),
        load(tmp_path, dataset=dataset, normalisation=NORMALISATIONS["dcm"]),
    )
    for images, constants in ((data, NORMALISATIONS[name]), (chosen, NORMALISATIONS["dcm"])):
        assert images.normalisation == constants
        assert images.preprocessing() == Preprocessing(*constants)
    assert data.decoding_record == chosen.decoding_record  # the pixels are the same


def test_batches_of_training_images_are_augmented_where_that_is_chosen(tmp_path):
    make_folder(tmp_path, {"a": 2})
    train, val = (
        load(tmp_path, split, augmentation=AUGMENTATIONS["zero4"], image_size=16)
        for split in ("train", "val")
    )
    assert train.augments and not train.augments_while_decoding
    assert not val.augments and val.augmentation is None
    assert train.preprocessing(seed=3) == Preprocessing(
        *NORMALISATIONS["imagenet"], augmentation=AUGMENTATIONS["zero4"], seed=3
    )
    assert train.decoding_record == val.decoding_record
