"""A data set is known by the names, labels and contents of its files, and what changed is named."""

import os
import shutil

import numpy as np
import pytest
import torch

from tests.mistakes import check_line
from tests.unit.photos import make_folder, make_photo
from utils import checkpoint
from utils.data import contents
from utils.data.contents import Contents, read_contents
from utils.data.images import load_images


def read(root, cache_dir="/nowhere"):
    data = load_images("folder", "train", data_root="nowhere", path=root)
    return read_contents(data, cache_dir=cache_dir, quiet=True)


@pytest.fixture
def photos(tmp_path):
    return make_folder(tmp_path / "photos", {"a": 4, "b": 3})


CHANGES = {
    "edited": (lambda root: make_photo(root / "a/01.jpg", 99), ("a/01.jpg",)),
    "removed": (lambda root: (root / "a/01.jpg").unlink(), ("a/01.jpg",)),
    "added": (lambda root: make_photo(root / "b/new.jpg", 98), ("b/new.jpg",)),
    "renamed": (
        lambda root: (root / "a/01.jpg").rename(root / "a/x.jpg"),
        ("a/01.jpg", "a/x.jpg"),
    ),
    "moved": (
        lambda root: (root / "a/01.jpg").rename(root / "b/x.jpg"),
        ("a/01.jpg", "b/x.jpg"),
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_every_change_is_named(photos, kind):
    before, (change, names) = read(photos), CHANGES[kind]
    change(photos)
    now = read(photos)
    check_line(before.changes(now), "1", kind, *names)
    assert before.sha256 != now.sha256


def test_several_changes_are_counted(photos):
    before = read(photos)
    for number in range(4):
        make_photo(photos / f"a/{number:02d}.jpg", 50 + number)
    (photos / "b/00.jpg").unlink()
    assert (
        before.changes(read(photos))
        == "4 edited (a/00.jpg, a/01.jpg, a/02.jpg, …), 1 removed (b/00.jpg)"
    )


def test_files_of_one_content_are_told_apart_by_their_names(photos):
    shutil.copy(photos / "a/00.jpg", photos / "a/copy.jpg")
    before = read(photos)
    (photos / "a/copy.jpg").unlink()
    assert before.changes(read(photos)) == "1 removed (a/copy.jpg)"


def test_a_folder_that_was_copied_is_equal(photos, tmp_path):
    before, copied = read(photos), tmp_path / "elsewhere" / "copied"
    shutil.copytree(photos, copied, copy_function=shutil.copyfile)
    for number, path in enumerate(copied.rglob("*.jpg")):
        os.utime(path, (number, number))
    assert before.changes(read(copied)) == "" and before.sha256 == read(copied).sha256


@pytest.mark.parametrize(
    "labels", [torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0], [0, 1], [1, 1]])]
)
def test_a_record_gives_back_what_it_was_made_of(tmp_path, labels):
    names = ["a/ü é 空.png", "b/a\nb.png", r"b/\xff.png"]
    hashes = torch.arange(48, dtype=torch.uint8).view(3, 16)
    before = Contents(names, labels, hashes)
    checkpoint.save(tmp_path / "x.pth", {"images": {"train": before.to_record()}})
    record = checkpoint.load(tmp_path / "x.pth", mmap=True)["images"]["train"]
    now = Contents.from_record(record)
    assert (
        now.names == names
        and record["sha256"] == before.sha256 == now.sha256
        and before.changes(now) == ""
    )
    relabelled = Contents(names, 1 - labels, hashes)
    assert (
        now.changes(relabelled).startswith("3 with another label (a/ü é 空.png, ")
        or labels.ndim == 2
    )
    assert now.changes(relabelled)


def test_a_hundred_thousand_images_take_few_megabytes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    hashes = torch.randint(256, (100_000, 16), dtype=torch.uint8, generator=generator)
    names = [
        f"n{i // 100:08d}/n{i // 100:08d}_{int(hashes[i, 0]) * 256 + i}.JPEG"
        for i in range(100_000)
    ]
    checkpoint.save(
        tmp_path / "x.pth", Contents(names, torch.arange(100_000) // 100, hashes).to_record()
    )
    assert (tmp_path / "x.pth").stat().st_size < 4_000_000


@pytest.fixture
def counted(monkeypatch):
    """Keep the hashes of small folders, too,
    of files however young; gives the files that are read.
    """
    monkeypatch.setattr(contents, "WORTH_KEEPING", 0)
    monkeypatch.setattr(contents, "UNSETTLED_NS", 0)
    digests = []
    original = contents.hashlib.sha256
    monkeypatch.setattr(
        contents.hashlib, "sha256", lambda *data: digests.append(data) or original(*data)
    )
    return lambda: sum(not data for data in digests)


def test_a_file_is_read_again_only_where_size_or_time_changed(photos, tmp_path, counted):
    first = read(photos, tmp_path / "cache")
    assert counted() == 7
    assert read(photos, tmp_path / "cache").changes(first) == "" and counted() == 7
    status = (photos / "a/01.jpg").stat()
    content = bytearray((photos / "a/01.jpg").read_bytes())
    content[-1] ^= 1
    (photos / "a/01.jpg").write_bytes(content)
    # Only the inode's own time tells
    os.utime(photos / "a/01.jpg", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (
        first.changes(read(photos, tmp_path / "cache")) == "1 edited (a/01.jpg)" and counted() == 8
    )


@pytest.mark.parametrize("damage", [b"", b"PK\3\4 cut off"])
def test_damaged_or_unwritable_hashes_are_computed_again(photos, tmp_path, counted, damage):
    first = read(photos, tmp_path / "cache")
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(damage)
    assert read(photos, tmp_path / "cache").changes(first) == "" and counted() == 14
    (tmp_path / "file").write_bytes(b"")
    assert read(photos, tmp_path / "file").changes(first) == ""


def test_files_that_are_young_are_read_again(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "WORTH_KEEPING", 0)
    read(photos, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_files_that_cannot_be_read_are_left_to_whoever_decodes_them(photos):
    (photos / "a/gone.jpg").symlink_to("/nowhere.jpg")
    hashes = read(photos).hashes
    assert (hashes.numpy().any(axis=1) == np.array([True] * 4 + [False] + [True] * 3)).all()
