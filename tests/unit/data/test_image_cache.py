import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import make_folder, make_photo, real_data
from torch.utils.data import DataLoader

from utils.data import image_cache
from utils.data.image_cache import StoredPixels, cache_images
from utils.data.image_file import MappedPixels
from utils.data.images import ImageData, load_images
from utils.errors import InputError


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
    return lambda mode, **options: cache_images(load(photos), mode, cache_dir=tmp_path / "cache", workers=2, **options)


@pytest.mark.parametrize("mode", ["ram", "disk", "auto"])
def test_cached_batches_are_the_decoded_ones(cache, photos, mode):
    decoded, cached = load(photos), cache(mode)
    assert cached.stored is not None and decoded.stored is None
    for ours, theirs in zip(everything(cached), everything(decoded)):
        assert torch.equal(ours, theirs)
    some = [44, 3, 3, 17]
    assert torch.equal(cached.__getitems__(some)[0], decoded.__getitems__(some)[0])
    assert cached.paths == decoded.paths and cached.device == torch.device("cpu") and len(cached) == 45


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_no_file_is_opened_after_the_first_time(cache, photos, mode):
    before = everything(load(photos))[0]
    cached = cache(mode)
    shutil.rmtree(photos)
    assert torch.equal(everything(cached)[0], before)
    batch = cached.__getitems__([0, 1])[0]
    batch.zero_()  # a batch is the caller's own
    assert torch.equal(cached.__getitems__([0, 1])[0], before[:2])


def test_off_and_stored_data_come_back_as_they_are(photos, cache, tmp_path):
    data = load(photos)
    assert cache_images(data, "off", cache_dir=tmp_path, workers=1) is data
    cached = cache("ram")
    assert cache_images(cached, "disk", cache_dir=tmp_path, workers=1) is cached


@pytest.mark.parametrize("mode", ["auto", "ram", "disk"])
def test_augmented_images_are_not_cached(photos, tmp_path, capsys, mode):
    data = load(photos, dataset="ilsvrc")
    assert cache_images(data, mode, cache_dir=tmp_path / "cache", workers=1) is data
    assert "augmented anew" in capsys.readouterr().out and not (tmp_path / "cache").exists()
    val = cache_images(load(photos, dataset="ilsvrc", split="val"), mode, cache_dir=tmp_path / "cache", workers=1)
    assert val.stored is not None


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
    assert "decoding the train images of folder once, into" in capsys.readouterr().out
    assert decoded_in(lambda: cache("disk"), monkeypatch) == 0
    assert "decoding" not in capsys.readouterr().out
    assert decoded_in(lambda: cache("ram"), monkeypatch) == 45


def change_content(folder: Path) -> None:
    make_photo(folder / "a" / "03.jpg", 99)


def change_time(folder: Path) -> None:
    os.utime(folder / "a" / "03.jpg", ns=(1, 1))


def change_name(folder: Path) -> None:
    (folder / "a" / "03.jpg").rename(folder / "a" / "03x.jpg")


def change_number(folder: Path) -> None:
    make_photo(folder / "b" / "new.jpg", 98)


def change_class(folder: Path) -> None:
    (folder / "a" / "39.jpg").rename(folder / "b" / "39.jpg")


@pytest.mark.parametrize("change", [change_content, change_time, change_name, change_number, change_class])
def test_changed_images_are_noticed_and_decoded_again(cache, photos, capsys, change):
    cache("disk")
    change(photos)
    capsys.readouterr()
    again = cache("disk")
    assert "photos changed since" in (said := capsys.readouterr().out) and "decoding them again" in said
    assert torch.equal(everything(again)[0], everything(load(photos))[0])
    cache("disk")
    assert "photos changed" not in capsys.readouterr().out


def test_sizes_and_splits_have_files_of_their_own(photos, tmp_path):
    for size, split in ((16, "train"), (8, "train"), (16, "val")):
        data = load(photos, size, split=split)
        cached = cache_images(data, "disk", cache_dir=tmp_path / "cache", workers=1, quiet=True)
        assert torch.equal(everything(cached)[0], everything(data)[0])
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 3


def only_file(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("damage", ["no record", "bad record", "truncated", "other shape", "not npy"])
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
    assert not list((tmp_path / "cache").glob("*.json")) and not list((tmp_path / "cache").glob(".*part*"))
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])


def test_what_a_killed_build_left_is_removed(cache, tmp_path):
    cache("disk")
    pixels = only_file(tmp_path / "cache", "*.npy")
    only_file(tmp_path / "cache", "*.json").unlink()
    left = pixels.with_name(f".{pixels.name}.abc.part.npy")
    left.write_bytes(b"half")
    other = pixels.with_name(".other.npy.abc.part.npy")
    other.write_bytes(b"of another build")
    cache("disk")
    assert not left.exists() and other.exists()


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_unreadable_images_are_all_counted_and_ten_named(cache, photos, tmp_path, mode):
    broken = [f"a/{number:02d}.jpg" for number in range(12)] + ["b/04.jpg"]
    for name in broken:
        (photos / name).write_text("no photo")
    with pytest.raises(InputError) as caught:
        cache(mode)
    message = str(caught.value)
    assert message.startswith("13 of 45 images in ") and message.endswith(", …; replace or remove them")
    assert all(name in message for name in broken[:10]) and broken[10] not in message
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.json"))
    for name in broken[1:]:
        make_photo(photos / name)
    with pytest.raises(InputError, match=r"1 of 45 images in .* cannot be read: a/00.jpg; replace"):
        cache(mode)


@pytest.mark.parametrize("mode, start", [("ram", "fork"), ("disk", "fork"), ("disk", "spawn")])
def test_loader_workers_read_the_same_images(cache, photos, mode, start):
    loader = DataLoader(cache(mode), batch_size=20, num_workers=1, collate_fn=first_part, multiprocessing_context=start)
    assert torch.equal(torch.cat(list(loader)), everything(load(photos))[0])


def first_part(batch):
    return batch[0]


def test_a_mapped_file_is_pickled_by_name(cache):
    stored = cache("disk").stored
    assert isinstance(stored, MappedPixels) and len(pickle.dumps(stored)) < 1000
    index = torch.tensor([2])
    assert torch.equal(pickle.loads(pickle.dumps(stored)).gather(index), stored.gather(index))


def test_auto_takes_memory_then_disk_then_nothing(cache, photos, tmp_path, monkeypatch, capsys):
    needed = 45 * 3 * 16 * 16
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 2 * needed + 2)
    assert isinstance(cache("auto").stored, StoredPixels)
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 2 * needed)
    assert isinstance(cache("auto").stored, MappedPixels)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, needed))
    assert cache("auto").stored is None
    assert "no room to cache the train images of folder (0.00 GB); decoding in every epoch" in capsys.readouterr().out


def test_more_than_the_memory_is_refused(cache, monkeypatch):
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"take 0.00 GB, of memory 0.00 GB are available; use --cache_images disk"):
        cache("ram")


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = image_cache.available_memory_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0.2 < image_cache.available_memory_bytes() / alone < 0.3
    assert alone > 10**8


def test_a_full_disk_is_one_sentence(cache, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device; it takes .* GB\); free some"):
        cache("disk")
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_a_cache_folder_that_cannot_be_made_is_one_sentence(cache, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match=r"image cache .* cannot be written \(.*\); use --cache_images off"):
        cache("disk")


def test_quiet_processes_say_nothing(cache, capfd):
    for mode in ("disk", "disk", "ram"):
        cache(mode, quiet=True)
    assert capfd.readouterr() == ("", "")


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
    said = capfd.readouterr().out
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert said.count("once, into") == 1 and said.count("ready in") == 3
    assert torch.equal(everything(cache("disk"))[0], everything(load(photos))[0])


# In an interpreter of its own: a fork of this one reuses memory that other tests have freed.
GROWN_BY = """
import sys
from pathlib import Path
from utils.data.images import load_images
from utils.data.image_cache import cache_images

def status_bytes(name):
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[name].removesuffix(" kB")) * 1024

photos, folder, mode = sys.argv[1:]
data = load_images("folder", "train", data_root="", path=photos, image_size=256)
data.decode(range(64))
before = status_bytes("VmRSS")
cached = cache_images(data, mode, cache_dir=folder, workers=2, quiet=True)
print(status_bytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the peak is read from /proc")
@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_memory_grows_by_the_pixels_and_a_constant(tmp_path, mode):
    """900 images of 256 px are 177 MB; the threads with their chunks (6 MB each) take less than 45 MB beside."""
    folder = make_folder(tmp_path / "photos", {"a": 30})
    for copy in range(1, 30):
        shutil.copytree(folder / "a", folder / f"a{copy}")
    words = [sys.executable, "-c", GROWN_BY, str(folder), str(tmp_path / "cache"), mode]
    grown = int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
    pixels = 900 * 3 * 256 * 256
    assert 0.9 * pixels < grown < pixels + 45e6


def test_real_photos_are_the_same_from_a_file(tmp_path):
    source = real_data() / "CUB_200_2011" / "images" / "001.Black_footed_Albatross"
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / source.name).symlink_to(source)
    data = load(tmp_path / "photos", image_size=224)
    cached = cache_images(data, "disk", cache_dir=tmp_path / "cache", workers=2)
    assert torch.equal(everything(cached)[0], everything(data)[0])


@pytest.mark.gpu
def test_auto_keeps_images_on_the_gpu(cache, photos):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device("cuda", 0)
    cached = cache("auto", device=device)
    assert cached.device == device
    images, targets, indices = cached.__getitems__([44, 0, 7])
    assert images.device == device and targets.device.type == indices.device.type == "cpu"
    assert torch.equal(images.cpu(), load(photos).__getitems__([44, 0, 7])[0])
    assert cache("ram", device=device).device.type == "cpu"
