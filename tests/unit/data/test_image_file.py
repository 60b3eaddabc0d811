import functools
import multiprocessing
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.mistakes import check_some_line, refused
from tests.unit.photos import make_folder, make_photo
from utils.data.batches import AUGMENTATIONS
from utils.data.image_cache import cache_images
from utils.data.images import ImageData, load_images
from utils.files import read_json, write_json
from utils.normalisation import NORMALISATIONS


def load(root, image_size=16, dataset="folder", split="train") -> ImageData:
    return load_images(dataset, split, data_root="nowhere", path=root, image_size=image_size)


def everything(data):
    return data.__getitems__(list(range(len(data))))


@pytest.fixture
def photos(tmp_path) -> Path:
    """Photos of two classes, more than one chunk of them."""
    return make_folder(tmp_path / "photos", {"a": 40, "b": 5})


@pytest.fixture
def cache(photos, tmp_path):
    """A function that caches the photos, in a folder that stays."""
    return lambda mode, **options: cache_images(
        load(photos), mode, cache_dir=tmp_path / "cache", workers=2, **options
    )


def decoded_in(run, monkeypatch) -> int:
    """Count the images that `run` decodes."""
    decode = ImageData.decode
    decoded: list[int] = []

    def counting(self, indices):
        decoded.extend(indices)
        return decode(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(ImageData, "decode", counting)
        run()
    return len(decoded)


def test_a_file_is_found_by_the_next_run(cache, monkeypatch, capsys):
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 45
    check_some_line(capsys.readouterr().out, "train", "folder", ".npy")
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 0
    assert decoded_in(lambda: cache("ram"), monkeypatch) == 45


def change_content(folder: Path) -> None:
    make_photo(folder / "a" / "03.jpg", 99)


def change_name(folder: Path) -> None:
    (folder / "a" / "03.jpg").rename(folder / "a" / "03x.jpg")


def change_number(folder: Path) -> None:
    make_photo(folder / "b" / "new.jpg", 98)


def change_class(folder: Path) -> None:
    (folder / "a" / "39.jpg").rename(folder / "b" / "39.jpg")


@pytest.mark.parametrize("change", [change_content, change_name, change_number, change_class])
def test_changed_images_are_noticed_and_decoded_again(cache, photos, monkeypatch, change):
    cache("disk")
    change(photos)
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 45 + (change is change_number)
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 0
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])


def test_the_times_of_the_images_do_not_matter(cache, photos, monkeypatch):
    cache("disk")
    os.utime(photos / "a" / "03.jpg", ns=(1, 1))
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 0


def test_an_edit_that_keeps_size_and_time_is_noticed(cache, photos, monkeypatch):
    photo = photos / "a" / "03.jpg"
    cache("disk")
    status, content = photo.stat(), photo.read_bytes()
    make_photo(photo, 99, size=(30 + 3, 45 - 3))
    photo.write_bytes(photo.read_bytes()[: len(content)].ljust(len(content), b"\0"))
    os.utime(photo, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 45


def test_a_file_serves_every_normalisation_and_augmentation(cache, photos, tmp_path, monkeypatch):
    cache("disk")
    options = {"normalisation": NORMALISATIONS["dcm"], "augmentation": AUGMENTATIONS["zero4"]}
    data = load_images(
        "folder", "train", data_root="nowhere", path=photos, image_size=16, **options
    )
    again = functools.partial(cache_images, data, "disk", cache_dir=tmp_path / "cache", workers=2)
    assert decoded_in(again, monkeypatch) == 0


def test_a_file_of_an_earlier_format_is_built_again(cache, photos, tmp_path, capsys):
    cache("disk")
    path = only_file(tmp_path / "cache", "*.json")
    for record in (read_json(path) | {"format": 1}, [1]):
        write_json(path, record)
        capsys.readouterr()
        assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])
        assert (
            "is of another version of the suite; decoding the images again"
            in capsys.readouterr().out
        )


def test_sizes_and_splits_have_files_of_their_own(photos, tmp_path):
    for size, split in ((16, "train"), (8, "train"), (16, "val")):
        data = load(photos, size, split=split)
        cached = cache_images(data, "disk", cache_dir=tmp_path / "cache", workers=1, quiet=True)
        assert torch.equal(everything(cached)[0], everything(data)[0])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def only_file(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize(
    "damage", ["no record", "bad record", "truncated", "other shape", "not npy"]
)
def test_an_incomplete_file_is_built_again(cache, photos, tmp_path, capsys, damage):
    cache("disk")
    pixels, record = only_file(tmp_path / "cache", "*.npy"), only_file(tmp_path / "cache", "*.json")
    if damage == "no record":
        record.unlink()
    elif damage == "bad record":
        record.write_text("{")
    elif damage == "truncated":
        os.truncate(pixels, pixels.stat().st_size - 1)
    elif damage == "other shape":
        np.save(pixels, np.zeros((45, 3, 8, 8), np.uint8))
    else:
        pixels.write_bytes(b"junk")
    capsys.readouterr()
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])
    assert "again" in capsys.readouterr().out


class Interrupted(BaseException):
    """As a KeyboardInterrupt, but no signal to the test run."""


def test_an_interrupted_build_is_not_taken_for_complete(cache, photos, tmp_path, monkeypatch):
    cache("disk")
    change_content(photos)
    decode = ImageData.decode

    def fail(self, indices):
        if 40 in indices:
            raise Interrupted
        return decode(self, indices)

    monkeypatch.setattr(ImageData, "decode", fail)
    with pytest.raises(Interrupted):
        cache("disk")
    monkeypatch.undo()
    assert not list((tmp_path / "cache").glob("*.json")) and not list(
        (tmp_path / "cache").glob(".*part*")
    )
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])


def test_what_a_killed_build_left_is_removed(cache, tmp_path):
    cache("disk")
    pixels = only_file(tmp_path / "cache", "*.npy")
    only_file(tmp_path / "cache", "*.json").unlink()
    orphan = pixels.with_name(f".{pixels.name}.abc.part.npy")
    orphan.write_bytes(b"half")
    other = pixels.with_name(".other.npy.abc.part.npy")
    other.write_bytes(b"of another build")
    cache("disk")
    assert not orphan.exists() and other.exists()


def test_a_full_disk_is_one_sentence(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with refused("--cache_images"):
        cache("disk")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(cache, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with refused("--cache_images"):
        cache("disk")


def in_a_process(target, *arguments):
    def run() -> None:
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        target(*arguments)

    process = multiprocessing.get_context("fork").Process(target=run)
    process.start()
    return process


def test_processes_that_start_together_build_once(cache, photos, capfd):
    processes = [in_a_process(cache, "disk") for _ in range(3)]
    for process in processes:
        process.join()
    printed = capfd.readouterr().out
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert printed.count("once, into") == 1 and printed.count("ready in") == 3
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])


def test_the_stored_images_are_the_pages_of_the_file(cache, tmp_path):
    stored = cache("disk").stored
    assert stored is not None and stored.path == only_file(tmp_path / "cache", "*.npy")
    assert len(pickle.dumps(stored)) < 1000  # a loader's spawned worker maps the file too
