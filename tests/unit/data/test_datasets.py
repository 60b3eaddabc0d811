import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import ImageFolder

from tests.mistakes import refused
from tests.unit.photos import make_folder, make_photo, real_data
from utils.data.datasets import DATASETS, VOC_CLASSES
from utils.data.images import ImageData, load_images


def load(root, split="train", dataset="folder", **options) -> ImageData:
    """Load a folder by path."""
    return load_images(dataset, split, data_root=root / "nowhere", path=root, **options)


def everything(data):
    return data.__getitems__(list(range(len(data))))


def test_the_table_has_the_documented_names():
    assert set(DATASETS) == {
        "CUB200",
        "DOG120",
        "VOC2012",
        "VOC2012_crop",
        "VOC2012_animal",
        "mix320",
        "mix320-cub",
        "mix320-dog",
        "ilsvrc",
        "digits",
        "CIFAR100",
        "CIFAR10",
        "STL10",
        "TinyImageNet",
        "folder",
    }


def test_order_is_that_of_image_folder(tmp_path):
    make_folder(tmp_path / "elsewhere", {"real": 2, "other": 1})
    root = tmp_path / "train"
    for name in ("b/2.jpg", "b/10.PNG", "b/deep/er/1.jpg", "a/Z.jpeg", "a/z.jpg"):
        make_photo(root / name)
    (root / "a" / "notes.txt").write_text("not an image")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "real")
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere" / "other")
    expected = ImageFolder(str(root))
    data = load(root)
    assert [str(root / path) for path in data.paths] == [path for path, _ in expected.samples]
    assert data.targets.tolist() == expected.targets and data.classes == expected.classes
    assert data.file(0) == Path(expected.samples[0][0])


def test_splits_are_found_below_the_data_root(tmp_path):
    make_folder(tmp_path / "CUB200" / "train", {"a": 3, "b": 1})
    make_folder(tmp_path / "CUB200" / "test", {"a": 1, "b": 1})
    make_folder(tmp_path / "ilsvrc" / "val", {"a": 1, "b": 2})
    assert [
        len(load_images("CUB200", split, data_root=tmp_path)) for split in ("train", "val")
    ] == [4, 2]
    assert len(load_images("ilsvrc", "val", data_root=tmp_path)) == 3  # no folder "test"


def test_relative_roots_work(tmp_path, monkeypatch):
    make_folder(tmp_path / "data" / "digits" / "train", {"a": 1, "b": 1})
    monkeypatch.chdir(tmp_path)
    data = load_images("digits", "train", data_root="data", image_size=8)
    assert data.paths == ["a/00.jpg", "b/00.jpg"]
    monkeypatch.chdir("/")
    assert len(everything(data)[0]) == 2


def test_voc_animals_keep_six_of_twenty_labels(tmp_path):
    folders = {"06_bird": 1, "02_cat": 1, "00_cow": 2, "07_dog": 1, "05_horse": 1, "13_sheep": 1}
    make_folder(tmp_path / "VOC2012_animal" / "train", folders)
    # Without images: its label stays unused
    (tmp_path / "VOC2012_animal" / "train" / "19_car").mkdir()
    data = load_images("VOC2012_animal", "train", data_root=tmp_path)
    assert data.targets.tolist() == [0, 0, 2, 5, 6, 7, 13]
    assert (
        len(data.classes) == 20 and data.classes[13] == "13_sheep" and data.classes[19] == "19_car"
    )
    assert not data.multi_label and data.parts == {}


def test_voc_crops_refuse_a_folder_that_is_no_voc_class(tmp_path):
    make_folder(tmp_path / "VOC2012_crop" / "train", {"00_cow": 1, "zebra": 1})
    with refused("20", "00_cow", "19_car"):
        load_images("VOC2012_crop", "train", data_root=tmp_path)


def voc_annotation(path: Path, *names: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><part><name>head</name></part></object>" for name in names
    )
    path.write_text(f"<annotation><filename>{path.stem}.jpg</filename>{objects}</annotation>")


@pytest.fixture
def voc(tmp_path) -> Path:
    root = tmp_path / "VOC2012"
    for name, objects in {"p": ["cow", "car", "car"], "q": ["person"], "r": []}.items():
        make_photo(root / "JPEGImages" / f"{name}.jpg")
        voc_annotation(root / "Annotations" / f"{name}.xml", *objects)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("q\np\n")
    (lists / "val.txt").write_text("r\n")
    return root


def test_voc_has_a_vector_of_labels_for_each_photo(voc):
    data = load_images("VOC2012", "train", data_root=voc.parent, image_size=16)
    assert (
        data.multi_label and data.targets.dtype == torch.float32 and data.targets.shape == (2, 20)
    )
    assert [row.nonzero().flatten().tolist() for row in data.targets] == [[10], [0, 19]]
    assert data.paths == ["JPEGImages/q.jpg", "JPEGImages/p.jpg"] and len(data.classes) == 20
    images, targets, _ = everything(data)
    assert images.shape == (2, 3, 16, 16) and torch.equal(targets, data.targets)
    assert not load_images("VOC2012", "val", data_root=voc.parent).targets.any()


def test_voc_without_image_sets_is_taken_whole_when_named_by_path(voc):
    shutil.rmtree(voc / "ImageSets")
    assert load(voc, dataset="VOC2012").paths == [f"JPEGImages/{name}.jpg" for name in "pqr"]
    with refused("ImageSets/Main/train.txt"):
        load_images("VOC2012", "train", data_root=voc.parent)


def test_voc_annotations_that_cannot_be_used_are_named(voc):
    voc_annotation(voc / "Annotations" / "p.xml", "unicorn")
    with refused("p.xml", "VOC"):
        load_images("VOC2012", "train", data_root=voc.parent)
    (voc / "Annotations" / "q.xml").write_text("<annotation>")
    with refused("q.xml", "VOC"):
        load_images("VOC2012", "train", data_root=voc.parent)
    (voc / "ImageSets" / "Main" / "train.txt").write_text("\n")
    with refused("VOC2012"):
        load_images("VOC2012", "train", data_root=voc.parent)


def test_real_voc_photos_have_the_labels_of_their_annotations():
    data = load(real_data() / "VOC2012_mini", dataset="VOC2012")
    assert len(data) == 54
    labels = {
        Path(path).stem: row.nonzero().flatten().tolist()
        for path, row in zip(data.paths, data.targets)
    }
    assert labels["2007_000129"] == [VOC_CLASSES.index("bicycle"), VOC_CLASSES.index("person")]


@pytest.fixture
def mix(tmp_path) -> Path:
    for split, count in {"train": 2, "test": 1}.items():
        make_folder(tmp_path / "CUB200" / split, {"001.a": count, "002.b": 1, "003.c": 1})
        make_folder(tmp_path / "DOG120" / split, {"n01-x": 1, "n02-y": count}, first_seed=20)
    return tmp_path


@pytest.mark.parametrize("split, birds", [("train", [0, 0, 1, 2]), ("val", [0, 1, 2])])
def test_mix_is_birds_then_dogs_without_a_copy(mix, split, birds):
    both, cub, dog = (
        load_images(f"mix320{half}", split, data_root=mix) for half in ("", "-cub", "-dog")
    )
    dogs = [3, 4, 4] if split == "train" else [3, 4]
    assert both.targets.tolist() == birds + dogs
    assert cub.targets.tolist() == birds and dog.targets.tolist() == dogs
    assert (
        both.classes == cub.classes == dog.classes == ["001.a", "002.b", "003.c", "n01-x", "n02-y"]
    )
    assert both.parts["cub"].tolist() == list(range(len(birds)))
    assert both.parts["dog"].tolist() == list(range(len(birds), len(both)))
    assert cub.parts == dog.parts == {}
    assert both.paths == cub.paths + dog.paths
    alone = load_images("DOG120", split, data_root=mix)
    assert torch.equal(everything(both)[0][len(birds) :], everything(alone)[0])


def test_mix_by_path_wants_both_folders(mix):
    paths = [str(mix / name / "train") for name in ("CUB200", "DOG120")]
    both = load_images("mix320", "train", data_root="nowhere", path=os.pathsep.join(paths))
    assert both.paths == load_images("mix320", "train", data_root=mix).paths
    with refused("mix320", "2", "--train_path", "1", "CUB200:DOG120"):
        load_images("mix320", "train", data_root="nowhere", path=paths[0])


def test_sub_sampled_mixtures_keep_their_parts(mix):
    np.save(mix / "sub_sampler_mix320_some.npy", np.array([1, 6, 4]))
    data = load_images("mix320", "train", data_root=mix, sample_num="some")
    assert data.targets.tolist() == [0, 4, 3]
    assert {name: piece.tolist() for name, piece in data.parts.items()} == {
        "cub": [0],
        "dog": [1, 2],
    }


def test_an_unknown_data_set_suggests_the_nearest(tmp_path):
    for given, meant in {
        "cub200": "CUB200",
        "MIX320": "mix320",
        "VOC_animal": "VOC2012_animal",
    }.items():
        with refused(given, meant):
            load_images(given, "train", data_root=tmp_path)
    with refused("CUB200", "DOG120"):
        load_images("?", "train", data_root=tmp_path)


def test_missing_folders(tmp_path):
    with refused("CUB200/train", "CUB200", "PrepareData.py"):
        load_images("CUB200", "train", data_root=tmp_path)
    with refused("DOG120/test"):
        make_folder(tmp_path / "CUB200" / "test", {"a": 1})
        load_images("mix320", "val", data_root=tmp_path)
    with refused("--val_path"):
        load(tmp_path / "nothing", "val", "CUB200")
    with refused("folder", "--train_path"):
        load_images("folder", "train", data_root=tmp_path)


def test_folders_without_classes_or_images(tmp_path):
    with refused(tmp_path, "{class}/"):
        load(tmp_path)
    make_photo(tmp_path / "loose.jpg")
    with refused("loose", "1"):
        load(tmp_path)
    make_folder(tmp_path, {"full": 1})
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("later")
    with refused(tmp_path / "empty"):
        load(tmp_path)
    (tmp_path / "also").mkdir()
    with refused("also", "1"):
        load(tmp_path)
