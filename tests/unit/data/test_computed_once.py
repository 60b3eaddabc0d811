import errno
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.mistakes import refused
from utils.data import computed_once
from utils.data.computed_once import compute_once
from utils.data.images import load_images
from utils.data.loaders import make_loader
from utils.runtime import Runtime, start

SIZE = 8


def open_photos(photos):
    return load_images("folder", "train", data_root="", path=photos / "train", image_size=SIZE)


def channel_means(images):
    """A function of images that tells them apart, (n, 3)."""
    return images.double().mean((2, 3))


def expected(data):
    return channel_means(data.decode(range(len(data)))).float()


@pytest.fixture
def store(photos, cpu, tmp_path):
    """A function that stores the photos' channel means;
    further functions and places may be chosen.
    """

    def run(function=channel_means, shape=(3,), runtime=cpu, batch_size=5):
        loader = make_loader(open_photos(photos), batch_size)
        return compute_once(
            function, loader, shape, runtime, folder=tmp_path / "new", label="means"
        )

    return run


def place(monkeypatch, where):
    monkeypatch.setattr(computed_once, "choose_place", lambda *_: where)


@pytest.mark.parametrize("where, printed", [("ram", "in memory"), ("disk", "in a file in ")])
def test_every_image_has_its_own_row_wherever_it_is_kept(
    store, photos, tmp_path, monkeypatch, capsys, where, printed
):
    place(monkeypatch, where)
    stored, means = store(), expected(open_photos(photos))
    assert f"means of 24 images ready {printed}" in capsys.readouterr().out
    assert stored.values.dtype == torch.float32 and stored.device.type == "cpu"
    assert torch.equal(stored.values, means)
    chosen = torch.tensor([23, 0, 7, 0])
    assert torch.equal(stored.gather(chosen), means[chosen])
    stored.gather(chosen).zero_()  # a batch is the caller's own
    assert torch.equal(stored.values, means)
    assert not any(tmp_path.rglob("*.*"))  # the file has no name any more


def test_each_image_is_computed_once_without_gradients(store):
    weight, seen = torch.ones(3, requires_grad=True), []

    def function(images):
        seen.append(len(images))
        return channel_means(images) * weight

    stored = store(function)
    for _ in range(3):
        assert not stored.gather(torch.arange(24)).requires_grad
    assert seen == [5, 5, 5, 5, 4]


def test_the_function_runs_under_autocast_and_its_result_is_kept_in_float32(store):
    runtime = Runtime(torch.device("cpu"), (), 0, 1, torch.bfloat16, False, 0)
    types = []

    def function(images):
        means = channel_means(images).float() @ torch.eye(3)
        types.append(means.dtype)
        return means

    assert store(function, runtime=runtime).values.dtype == torch.float32
    assert set(types) == {torch.bfloat16}


def test_a_data_set_gives_the_tensors_in_place_of_its_pixels(store, photos):
    data = open_photos(photos)
    loader = make_loader(data.with_stored(store()), 7, shuffle=True)
    batches = list(loader)
    assert sorted(torch.cat([indices for *_, indices in batches]).tolist()) == list(range(24))
    for means, targets, indices in batches:
        assert torch.equal(means, expected(data)[indices])
        assert torch.equal(targets, data.targets[indices])


def test_no_room_is_told(store, monkeypatch):
    place(monkeypatch, "off")
    with refused("24", "38.40 MB", "--out"):
        store(shape=(400_000,))


def test_a_full_disk_is_told_and_nothing_stays(store, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    place(monkeypatch, "disk")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with refused("new", "--out"):
        store()
    assert list((tmp_path / "new").iterdir()) == []


def compute_share(rank, world_size, photos, folder):
    """One process of several: store the means, then compare all rows with the decoded images."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size
    )
    runtime, data, seen = start([], None, seed=0), open_photos(photos), []

    def function(images):
        seen.append(len(images))
        return channel_means(images)

    loader = make_loader(data, 5, rank=rank, world_size=world_size)
    stored = compute_once(function, loader, (3,), runtime, folder=folder / "new", label="means")
    assert sum(seen) == 12
    assert torch.equal(stored.values, expected(data))
    assert list((folder / "new").iterdir()) == []
    dist.destroy_process_group()


def test_processes_share_the_work_and_its_result(photos, tmp_path):
    torch.multiprocessing.spawn(compute_share, (2, photos, tmp_path), nprocs=2)


@pytest.mark.gpu
def test_a_gpu_keeps_what_it_has_room_for(store, photos):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    stored = store(runtime=start([], 0, seed=0))
    assert stored.device.type == "cuda"
    torch.testing.assert_close(
        stored.gather(torch.tensor([3, 1])).cpu(), expected(open_photos(photos))[[3, 1]]
    )
