import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.mistakes import refused
from tests.unit.photos import make_folder, make_photo, real_data
from utils.data import image_cache, storage
from utils.data.batches import AUGMENTATIONS
from utils.data.image_cache import cache_images
from utils.data.images import ImageData, load_images
from utils.errors import InputError
from utils.files import in_words


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


@pytest.mark.parametrize("mode", ["ram", "disk", "auto"])
def test_cached_batches_are_the_decoded_ones(cache, photos, mode):
    decoded, cached = load(photos), cache(mode)
    assert cached.stored is not None and decoded.stored is None
    for ours, theirs in zip(everything(cached), everything(decoded)):
        assert torch.equal(ours, theirs)
    some = [44, 3, 3, 17]
    assert torch.equal(cached.__getitems__(some)[0], decoded.__getitems__(some)[0])
    assert (
        cached.paths == decoded.paths and cached.device == torch.device("cpu") and len(cached) == 45
    )


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
def test_images_that_decoding_augments_are_not_cached(photos, tmp_path, capsys, mode):
    data = load(photos, dataset="ilsvrc")
    assert cache_images(data, mode, cache_dir=tmp_path / "cache", workers=1) is data
    assert "augmented anew" in capsys.readouterr().out and not (tmp_path / "cache").exists()
    val = cache_images(
        load(photos, dataset="ilsvrc", split="val"), mode, cache_dir=tmp_path / "cache", workers=1
    )
    assert val.stored is not None


@pytest.mark.parametrize("mode", ["ram", "disk"])
def test_unreadable_images_are_all_counted_and_ten_named(cache, photos, tmp_path, mode):
    broken = [f"a/{number:02d}.jpg" for number in range(12)] + ["b/04.jpg"]
    for name in broken:
        (photos / name).write_text("no photo")
    with pytest.raises(InputError) as caught:
        cache(mode)
    message = str(caught.value)
    assert message.startswith("13 of 45 images in ") and message.endswith(
        ", …; replace or remove them"
    )
    assert all(name in message for name in broken[:10]) and broken[10] not in message
    assert not list(tmp_path.rglob("*.npy")) and not list(tmp_path.rglob("*.json"))
    for name in broken[1:]:
        make_photo(photos / name)
    with refused("1", "45", "a/00.jpg"):
        cache(mode)


@pytest.mark.parametrize("mode, start", [("ram", "fork"), ("disk", "fork"), ("disk", "spawn")])
def test_loader_workers_read_the_same_images(cache, photos, mode, start):
    loader = DataLoader(
        cache(mode),
        batch_size=20,
        num_workers=1,
        collate_fn=first_part,
        multiprocessing_context=start,
    )
    assert torch.equal(torch.cat(list(loader)), everything(load(photos))[0])


def first_part(batch):
    return batch[0]


def test_auto_takes_memory_then_disk_then_nothing(cache, photos, tmp_path, monkeypatch, capsys):
    needed = 45 * 3 * 16 * 16
    monkeypatch.setattr(storage, "available_memory_bytes", lambda: 2 * needed + 2)
    assert (in_memory := cache("auto").stored) is not None and in_memory.path is None
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(storage, "available_memory_bytes", lambda: 2 * needed)
    assert (
        (mapped := cache("auto").stored) is not None
        and mapped.path is not None
        and mapped.path.is_file()
    )
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, needed))
    assert cache("auto").stored is None
    why = (
        f"no room to cache the train images of folder ({in_words(needed)}); decoding in every epoch"
    )
    assert why in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["auto", "ram", "disk"])
def test_images_are_decoded_once_where_batches_are_augmented(photos, tmp_path, mode):
    options = {
        "data_root": "nowhere",
        "path": photos,
        "image_size": 16,
        "augmentation": AUGMENTATIONS["reflect4"],
    }
    data = load_images("folder", "train", **options)
    cached = cache_images(data, mode, cache_dir=tmp_path / "cache", workers=1)
    assert cached.stored is not None and cached.augments
    expected = [data.preprocessing(7)(*everything(data)[::2], epoch) for epoch in range(2)]
    shutil.rmtree(photos)
    for epoch in range(2):
        images, _, indices = everything(cached)
        assert torch.equal(cached.preprocessing(7)(images, indices, epoch), expected[epoch])
    assert not torch.equal(*expected)


def test_more_than_the_memory_is_refused(cache, monkeypatch):
    monkeypatch.setattr(image_cache, "available_memory_bytes", lambda: 1000)
    with refused("train", "1000", "--cache_images"):
        cache("ram")


def test_quiet_processes_say_nothing(cache, capfd):
    for mode in ("disk", "disk", "ram"):
        cache(mode, quiet=True)
    assert capfd.readouterr() == ("", "")


# In an interpreter of its own: a fork of this one reuses memory that other tests have freed.
GROWN_BY = """
import sys
from pathlib import Path
from utils.data.images import load_images
from utils.data.batches import AUGMENTATIONS
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
    """900 images of 256 px are 177 MB;
    the threads with their chunks (6 MB each) take less than 45 MB beside.
    """
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
