import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torchvision
from PIL import Image

from tests.mistakes import refused
from tests.unit.photos import real_data
from tests.unit.prepare.array_layouts import (
    FINE,
    make_cifar10,
    make_cifar100,
    make_stl10,
    python2_pickle,
)
from utils.prepare.arrays import (
    CIFAR100_PARTS,
    read_cifar10,
    read_cifar100,
    read_digits,
    read_stl10,
)
from utils.prepare.unpacking import unpacked

READERS = {"CIFAR100": read_cifar100, "CIFAR10": read_cifar10, "STL10": read_stl10}
MAKERS = {"CIFAR100": make_cifar100, "CIFAR10": make_cifar10, "STL10": make_stl10}
FOLDERS = {
    "CIFAR100": "cifar-100-python",
    "CIFAR10": "cifar-10-batches-py",
    "STL10": "stl10_binary",
}


def decoded(listing, name) -> np.ndarray:
    with Image.open(io.BytesIO(listing.files[name]())) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def in_archive_order(listing, split) -> list[str]:
    return sorted(
        (name for name in listing.files if name.startswith(split)),
        key=lambda name: name.split("/")[2],
    )


def as_torchvision(dataset, root, monkeypatch):
    """What torchvision reads of a split's official files,
    whose checksums are not the official ones.
    """
    module = {"STL10": torchvision.datasets.stl10}.get(dataset, torchvision.datasets.cifar)
    monkeypatch.setattr(module, "check_integrity", lambda *_: True)
    for split in ("train", "test"):
        choice = {"split": split} if dataset == "STL10" else {"train": split == "train"}
        data = getattr(torchvision.datasets, dataset)(root, **choice)
        yield (
            split,
            [np.asarray(image) for image, _ in data],
            [int(label) for _, label in data],
            data.classes,
        )


@pytest.mark.parametrize("dataset", READERS)
def test_pixels_labels_and_names_are_those_that_torchvision_reads(tmp_path, monkeypatch, dataset):
    MAKERS[dataset](tmp_path / FOLDERS[dataset])
    listing = READERS[dataset]([tmp_path])
    count = 0
    for split, images, labels, classes in as_torchvision(dataset, str(tmp_path), monkeypatch):
        names = in_archive_order(listing, split)
        assert names == [
            f"{split}/{label:02d}_{classes[label]}/{number:05d}.png"
            for number, label in enumerate(labels)
        ]
        for name, image in zip(names, images):
            assert np.array_equal(decoded(listing, name), image)
        count += len(images)
    assert len(listing.files) == count > 5


def test_real_images_are_those_that_plain_unpickling_gives(tmp_path):
    archive = real_data() / "CIFAR100_mini"
    with unpacked([archive], CIFAR100_PARTS, tmp_path / "scratch") as folders:
        listing = read_cifar100(folders)
        official = {}
        for split in ("train", "test"):
            with (tmp_path / "scratch/cifar-100-python" / split).open("rb") as file:
                official[split] = pickle.load(file, encoding="latin1")
    assert (
        len(listing.classes) == 100
        and listing.classes == sorted(listing.classes)
        and listing.notes == []
    )
    for split, count in {"train": 100, "test": 20}.items():
        names = in_archive_order(listing, split)
        labels = [int(name.split("/")[1][:2]) for name in names]
        assert np.bincount(labels).tolist() == [count] * 100
        assert labels == official[split]["fine_labels"]
        for number in range(0, len(names), 97):
            expected = official[split]["data"][number].reshape(3, 32, 32).transpose(1, 2, 0)
            assert np.array_equal(decoded(listing, names[number]), expected)


def test_the_first_classes_are_the_first_that_there_are(tmp_path):
    root = make_cifar100(tmp_path / "cifar", train=(3, 1, 2, 3), test=(3, 2, 1))
    whole, two = read_cifar100([root]), read_cifar100([root], 2)
    assert whole.classes == ["01_aquarium_fish", "02_baby", "03_bear"]
    assert whole.notes == ["1 of the 4 classes have no images"]
    assert two.classes == ["01_aquarium_fish", "02_baby"] and two.notes == []
    assert set(two.files) == {name for name in whole.files if "bear" not in name}
    assert sorted(name.split("/")[2] for name in whole.files if "train/03" in name) == [
        "00000.png",
        "00003.png",
    ]


def test_digits_are_cut_to_the_first(tmp_path):
    whole, three = read_digits(), read_digits(3)
    assert len(whole.files) == 1797 and sum(name.startswith("test/") for name in whole.files) == 355
    assert three.classes == ["0", "1", "2"]
    assert list(three.files) == [name for name in whole.files if name.split("/")[1] in "012"]
    assert decoded(whole, "train/0/0000.png")[0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("file", ["meta", "train", "test"])
def test_code_in_an_archive_is_refused_and_not_run(tmp_path, file):
    root = make_cifar100(tmp_path / "cifar")
    content = pickle.loads((root / file).read_bytes(), encoding="latin1")
    content["filenames"] = [Runs(tmp_path / "ran")]
    (root / file).write_bytes(python2_pickle(content))
    with refused(file, "posix.mkdir"):
        read_cifar100([root])
    assert not (tmp_path / "ran").exists()
    pickle.loads((root / file).read_bytes(), encoding="latin1")
    assert (tmp_path / "ran").exists()  # the payload is a real one


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"data": None}, ("'data'", "uint8", "(N, 3072)")),
        ({"data": [0] * 3072}, ("'data'", "uint8", "(N, 3072)")),
        ({"data": np.zeros((6, 3072))}, ("float64", (6, 3072))),
        ({"data": np.zeros((6, 3071), np.uint8)}, ("uint8", (6, 3071))),
        ({"data": np.zeros((6, 3, 32, 32), np.uint8)}, ("uint8", (6, 3, 32, 32))),
        ({"data": np.zeros(3072, np.uint8)}, ("uint8", (3072,))),
        ({"data": np.array([b"x"], dtype=object)}, ("'O8'",)),
        ({"data": np.zeros((5, 3072), np.uint8)}, ("'fine_labels'", 5, 6)),
        ({"fine_labels": None}, ("'fine_labels'", 6)),
        ({"fine_labels": [0, 1, 2, 3, 4, 0]}, ("label 4", "image 4", "0 … 3")),
        ({"fine_labels": [0, -1, 2, 3, 0, 0]}, ("label -1", "image 1")),
        ({"fine_labels": [0, 1.0, 2, 3, 0, 0]}, ("label 1.0", "image 1")),
        ({"fine_labels": [True] * 6}, ("label True", "image 0")),
        ({"fine_labels": ["0"] * 6}, ("label b'0'", "image 0")),
    ],
)
def test_files_of_another_layout_are_told(tmp_path, change, facts):
    root = make_cifar100(tmp_path / "cifar")
    content = pickle.loads((root / "train").read_bytes(), encoding="latin1") | change
    content = {key: value for key, value in content.items() if value is not None}
    (root / "train").write_bytes(python2_pickle(content))
    with refused("train", *facts):
        read_cifar100([root])


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (None, "[]"),
        (7, "[]"),
        ([], "[]"),
        (["../apple"], "'../apple'"),
        (["a/b"], "'a/b'"),
        ([""], "['']"),
        ([3], "[3]"),
        ([["apple"]], "b'apple'"),
        (["äpfel"], "'äpfel'"),
    ],
)
def test_names_that_are_no_folders_are_refused(tmp_path, names, printed):
    root = make_cifar100(tmp_path / "cifar")
    (root / "meta").write_bytes(
        python2_pickle({"fine_label_names": names} if names is not None else {"names": FINE})
    )
    with refused("meta", printed):
        read_cifar100([root])


@pytest.mark.parametrize("keep", [0, 20, 1000, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    root = make_cifar100(tmp_path / "cifar")
    (root / "test").write_bytes((root / "test").read_bytes()[:keep])
    with refused("test"):
        read_cifar100([root])


def test_missing_files_are_named(tmp_path):
    with refused("meta", tmp_path, "--src", "cifar-100-python.tar.gz"):
        read_cifar100([tmp_path])
    root = make_cifar10(tmp_path / "cifar10")
    (root / "data_batch_4").unlink()
    with refused("data_batch_4"):
        read_cifar10([root])
    (root / "batches.meta").write_bytes(python2_pickle(["airplane"]))
    with refused("batches.meta", "dict", "list"):
        read_cifar10([root])


@pytest.mark.parametrize(
    ("file", "content", "facts"),
    [
        ("train_X.bin", b"1234", ("train_X.bin", "4 images", "4 bytes", "train_y.bin")),
        ("test_y.bin", b"\x01", ("test_X.bin", "1 images", "55,296 bytes", "test_y.bin")),
        ("train_y.bin", b"\x02\x0b\x01\x02", ("train_y.bin", "label 10", "image 1", "0 … 9")),
        ("train_y.bin", b"\x02\x0a\x01\x00", ("train_y.bin", "label -1", "image 3", "0 … 9")),
        ("class_names.txt", b"../up\n", ("class_names.txt", "'../up'")),
        ("test_X.bin", None, ("test_X.bin",)),
        ("class_names.txt", None, ("class_names.txt",)),
    ],
)
def test_stl10_files_that_do_not_fit_are_told(tmp_path, file, content, facts):
    root = make_stl10(tmp_path / "stl10_binary")
    (root / file).unlink()
    if content is not None:
        (root / file).write_bytes(content)
    with refused(*facts):
        read_stl10([root])
