"""PrepareData.py of small images: CIFAR, STL-10 and Tiny ImageNet, from folders and archives."""

import os
import pickle
import shutil
import tarfile

import pytest

from tests.e2e.prepared import images, row
from tests.mistakes import check_line
from tests.unit.photos import real_data
from tests.unit.prepare.array_layouts import (
    FINE,
    WNIDS,
    make_cifar10,
    make_cifar100,
    make_stl10,
    make_tiny_imagenet,
    python2_pickle,
)
from utils.data.images import load_images

pytestmark = pytest.mark.e2e


def pack(folder, archive):
    """Pack a folder as its official archive, beside it."""
    path = folder.parent / archive
    if path.suffix == ".zip":
        shutil.make_archive(str(path.with_suffix("")), "zip", folder.parent, folder.name)
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(folder, folder.name)
    return path


SMALL = {  # maker, folder, archive, closing table, first training image
    "CIFAR100": (make_cifar100, "cifar-100-python", ".tar.gz", [4, 6, 4, 0], "00_apple/00001.png"),
    "CIFAR10": (
        make_cifar10,
        "cifar-10-python",
        ".tar.gz",
        [10, 10, 3, 0],
        "00_airplane/00000.png",
    ),
    "STL10": (make_stl10, "stl10_binary", ".tar.gz", [3, 4, 2, 0], "00_airplane/00002.png"),
    "TinyImageNet": (
        make_tiny_imagenet,
        "tiny-imagenet-200",
        ".zip",
        [3, 6, 3, 0],
        f"{WNIDS[0]}/{WNIDS[0]}_0.JPEG",
    ),
}


@pytest.mark.parametrize("dataset", SMALL)
def test_small_images_from_the_folder_and_from_the_archive(prepare, tmp_path, dataset):
    make, folder, suffix, counts, first = SMALL[dataset]
    source = make(tmp_path / "official" / folder)
    code, output, _ = prepare(dataset, "--src", source)
    assert (code, row(output, dataset)) == (0, counts)
    target = tmp_path / "data" / dataset
    assert next(name for name in images(target) if name.startswith("train/")) == f"train/{first}"
    times = {name: (target / name).stat().st_mtime_ns for name in images(target)}
    archive = pack(source, folder + suffix)
    shutil.rmtree(source)
    for place in (archive, archive.parent):  # itself, or the folder that holds it
        code, output, _ = prepare(dataset, "--src", place)
        assert code == 0
        assert f"0 images made, {len(times)} were there" in output
    assert {name: (target / name).stat().st_mtime_ns for name in images(target)} == times
    assert [path.name for path in (tmp_path / "data").iterdir()] == [dataset]
    data = load_images(dataset, "val", data_root=tmp_path / "data", image_size=32)
    assert (len(data), len(data.classes)) == (
        counts[2],
        len({name.split("/")[0] for name in images(target / "test")}),
    )


def test_prepared_cifar_has_the_official_labels_in_the_suite(prepare, tmp_path):
    prepare("CIFAR100", "--src", make_cifar100(tmp_path / "cifar-100-python"))
    data = load_images("CIFAR100", "train", data_root=tmp_path / "data", image_size=32)
    assert data.classes == [f"{label:02d}_{name}" for label, name in enumerate(FINE)]
    assert data.targets.tolist() == [0, 0, 1, 2, 3, 3]
    assert [path.split("/")[1] for path in data.paths] == [
        f"{number:05d}.png" for number in (1, 4, 2, 3, 0, 5)
    ]
    official = pickle.loads((tmp_path / "cifar-100-python/train").read_bytes(), encoding="latin1")[
        "data"
    ]
    assert (data.decode([4])[0].flatten().numpy() == official[0]).all()  # decoding changes no pixel


class MakesAFolder:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("code", r"train is refused: it asks for posix.mkdir, which may run code"),
        ("cut file", "test is not a whole pickle file"),
        ("cut archive", "cifar-100-python.tar.gz is no whole tar or zip archive"),
        ("label", "has the label 4 for image 0, but there are 4 classes"),
    ],
)
def test_archives_that_cannot_be_used_leave_nothing(prepare, tmp_path, fault, sentence):
    source = make_cifar100(
        tmp_path / "cifar-100-python", train=(4, 0) if fault == "label" else (1, 0)
    )
    if fault == "code":
        (source / "train").write_bytes(python2_pickle({"data": MakesAFolder(tmp_path / "ran")}))
    elif fault == "cut file":
        (source / "test").write_bytes((source / "test").read_bytes()[:-9])
    archive = pack(source, "cifar-100-python.tar.gz")
    if fault == "cut archive":
        archive.write_bytes(archive.read_bytes()[:-2000])
    code, _, message = prepare("CIFAR100", "--src", archive)
    assert code == 1
    assert sentence in message and "\n" not in message
    assert not (tmp_path / "ran").exists()
    assert not images(tmp_path / "data")


def test_an_unfinished_folder_of_small_images_is_completed(prepare, tmp_path):
    source = make_cifar100(tmp_path / "cifar-100-python")
    prepare("CIFAR100", "--src", source)
    target = tmp_path / "data/CIFAR100"
    whole = {name: (target / name).read_bytes() for name in images(target)}
    (target / "train/00_apple/00001.png").unlink()
    (target / "train/00_apple/00004.png").write_bytes(b"torn")
    (target / "train/00_apple/.00001.png.abc.part.png").write_bytes(b"torn")
    assert "2 images made, 8 were there" in prepare("CIFAR100", "--src", source)[1]
    assert {name: (target / name).read_bytes() for name in images(target)} == whole
    code, _, message = prepare("CIFAR100", "--src", source, "--classes", 2)
    assert code == 1
    check_line(message, target, "--out")


def test_real_cifar(prepare, tmp_path):
    code, output, _ = prepare("CIFAR100", "--src", real_data() / "CIFAR100_mini", "--classes", 2)
    assert (code, row(output, "CIFAR100")) == (0, [2, 200, 40, 0])
