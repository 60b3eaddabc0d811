import errno
import os
import pickle
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.mistakes import refused
from utils import checkpoint, numpy_values
from utils.errors import InputError


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
def test_both_formats_are_read(tmp_path, zipped):
    state = {
        "epoch": 3,
        "arch": "alexnet",
        "best_acc1": torch.tensor(57.5),
        "state_dict": {"w": torch.arange(6.0)},
    }
    path = tmp_path / "old.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load(str(path))
    assert torch.equal(loaded.pop("state_dict")["w"], torch.arange(6.0))
    assert loaded == {"epoch": 3, "arch": "alexnet", "best_acc1": torch.tensor(57.5)}


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
def test_tensors_may_stay_in_the_file_where_the_format_lets_them(tmp_path, zipped):
    path = tmp_path / "big.pth.tar"
    torch.save({"w": torch.arange(100_000.0)}, path, _use_new_zipfile_serialization=zipped)
    weights = checkpoint.load(path, mmap=True)["w"]
    assert torch.equal(weights, torch.arange(100_000.0))
    maps = Path("/proc/self/maps")
    if maps.exists():
        assert (str(path) in maps.read_text()) == zipped


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
@pytest.mark.parametrize("share", [0, 0.3, 0.5, 0.999])
def test_a_truncated_file_is_named_also_where_it_is_mapped(tmp_path, zipped, share):
    path = tmp_path / "cut.pth.tar"
    torch.save({"w": torch.randn(50, 50)}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * path.stat().st_size))
    with refused(path):
        checkpoint.load(path, mmap=True)


def test_a_failed_save_leaves_the_file_before(tmp_path):
    path = tmp_path / "new" / "net.pth.tar"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, {"epoch": 2, "function": lambda: None})
    assert checkpoint.load(path) == {"epoch": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["net.pth.tar"]


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_truncated_file_is_named(tmp_path, zipped, share):
    path = tmp_path / "cut.pth.tar"
    state = {"state_dict": {f"layer{i}.weight": torch.randn(20, 20) for i in range(5)}, "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * path.stat().st_size))
    with refused(path):
        checkpoint.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"<!DOCTYPE html><html>not found</html>", b"\x80\x02", bytes(1000)]
)
def test_something_else_is_named(tmp_path, content):
    (tmp_path / "page.pth.tar").write_bytes(content)
    with refused("page.pth.tar"):
        checkpoint.load(tmp_path / "page.pth.tar")


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "evil.pth.tar"
    torch.save(
        {"epoch": 1, "more": Runs(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped
    )
    with refused(path, f"{os.mkdir.__module__}.mkdir", "state_dict"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused_with_advice(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with refused("whole.pth", "torch.nn.modules.linear.Linear", "state_dict"):
        checkpoint.load(tmp_path / "whole.pth")


def test_a_tensor_alone_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with refused("tensor.pth", "Tensor"):
        checkpoint.load(tmp_path / "tensor.pth")


def test_a_missing_file_names_its_neighbours(tmp_path):
    with refused("a.pth.tar"):
        checkpoint.load(tmp_path / "a.pth.tar")
    for name in "bcdef":
        checkpoint.save(tmp_path / f"{name}.pth.tar", {})
    with refused("a.pth.tar", "b.pth.tar", "c.pth.tar", "d.pth.tar", "e.pth.tar", "…"):
        checkpoint.load(tmp_path / "a.pth.tar")
    with refused(tmp_path):
        checkpoint.load(tmp_path)


@pytest.fixture
def small_files():
    """No file may grow beyond 20 kB: what a full disk does, at a place that is known."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_finds_no_room_names_its_file_and_leaves_what_was_there(tmp_path, small_files):
    path = tmp_path / "net.pth.tar"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises(OSError) as raised:
        checkpoint.save(path, {"epoch": 2, "weights": torch.zeros(10_000)})
    assert (raised.value.errno, raised.value.filename) == (errno.EFBIG, str(path))
    assert checkpoint.load(path) == {"epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["net.pth.tar"]


def test_equal_states_give_equal_files(tmp_path):
    for name in ("one.pth.tar", "other.pth.tar"):
        checkpoint.save(tmp_path / name, {"epoch": 1, "weights": torch.arange(100.0)})
    assert (tmp_path / "one.pth.tar").read_bytes() == (tmp_path / "other.pth.tar").read_bytes()


def test_what_was_read_is_written_as_what_was_made(tmp_path):
    """Whatever objects are shared: a run that goes on leaves the files of one that never ended."""
    net, name = nn.Linear(2, 3), "".join(["lin", "ear"])
    facts = {"arch": name, "model": {"arch": name, "sizes": (2, 3)}, "others": [("a", 0.5)] * 2}
    state = {"epoch": 1, **facts, "state_dict": net.state_dict()}
    checkpoint.save(tmp_path / "made.pth.tar", state)
    for mapped in (False, True):
        stored = checkpoint.load(tmp_path / "made.pth.tar", mmap=mapped)
        checkpoint.save(tmp_path / "read.pth.tar", stored)
        net.load_state_dict(stored.pop("state_dict"))
        checkpoint.save(tmp_path / "again.pth.tar", stored | {"state_dict": net.state_dict()})
        files = [(tmp_path / f"{one}.pth.tar").read_bytes() for one in ("made", "read", "again")]
        assert len(set(files)) == 1


def test_equal_weights_give_equal_files_for_other_programs(tmp_path):
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        weights = {"ü": torch.ones(3), "b": torch.zeros(2, 2)}
        checkpoint.save_safetensors(path, weights, {"arch": "Kühe", "model": {"classes": 3}})
        contents.add(path.read_bytes())
    assert len(contents) == 1
    assert checkpoint.load(path)["arch"] == "Kühe"


@pytest.mark.parametrize("kind", ["pth.tar", "safetensors"])
def test_no_changed_byte_of_a_tensor_is_taken_for_whole(tmp_path, kind):
    path = tmp_path / f"net.{kind}"
    weights = torch.arange(300, dtype=torch.uint8).float()
    if kind == "safetensors":
        checkpoint.save_safetensors(path, {"weights": weights}, {"arch": "toy"})
    else:
        checkpoint.save(path, {"weights": weights})
    whole = path.read_bytes()
    start = whole.index(weights.numpy().tobytes())
    for place in range(start, start + 1200, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 8]) + whole[place + 1 :])
        with refused(path):
            checkpoint.load(path, mmap=True)
    path.write_bytes(whole)
    assert torch.equal(next(iter(tensors_of(checkpoint.load(path)))), weights)


@pytest.mark.parametrize("change", [(b"resnet8", b"resnet9"), (b'"record"', b'"rEcord"')])
def test_no_changed_record_of_a_file_for_other_programs_is_taken_for_whole(tmp_path, change):
    path = tmp_path / "net.safetensors"
    checkpoint.save_safetensors(path, {"w": torch.ones(3)}, {"arch": "resnet8"})
    whole = path.read_bytes()
    assert change[0] in whole
    path.write_bytes(whole.replace(*change))
    with refused(path):
        checkpoint.load(path)


def tensors_of(state):
    """The tensors of a state, one level down."""
    return [
        value
        for value in {**state, **state.get("state_dict", {})}.values()
        if value is not None and isinstance(value, torch.Tensor)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_damage_is_named_or_harmless(tmp_path, seed):
    """Bytes are changed anywhere; a file is refused, or it says what was saved."""
    path, generator = tmp_path / "net.pth.tar", random.Random(seed)
    state = {"epoch": 3, "state_dict": {"w": torch.arange(64.0), "b": torch.ones(3)}}
    checkpoint.save(path, state)
    whole = path.read_bytes()
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(generator.choice([1, 1, 8])):
            damaged[generator.randrange(len(whole))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            read = checkpoint.load(path)
        except InputError:
            continue
        assert read["epoch"] == 3
        assert all(torch.equal(read["state_dict"][key], state["state_dict"][key]) for key in "wb")


def test_numpys_numbers_are_read_and_its_objects_refused(tmp_path):
    """An array of objects over chosen bytes would be pointers of the file's making."""
    path = tmp_path / "net.pth.tar"
    state = {
        "epoch": np.int64(3),
        "curve": [np.array([[1.5, 2.5]])],
        "big": np.arange(3, dtype=">i2"),
    }
    torch.save(state, path)
    read = checkpoint.load(path)
    assert read["epoch"] == 3
    assert torch.equal(read["curve"][0], torch.tensor([[1.5, 2.5]], dtype=torch.float64))
    assert read["big"].tolist() == [0, 1, 2]
    values = (np.array([object], dtype="O"), np.zeros(2, dtype=[("a", "O")]), np.dtype("O"))
    for value, kind in zip(values, ("O8", "V8", "O8")):
        torch.save({"epoch": value}, path)
        with refused(path, f"numpy.dtype[{kind}]"):
            checkpoint.load(path)


def endless(kind):
    """Lists that contain themselves, lie deep in each other, or hold each other many times."""
    inner = []
    if kind == "itself":
        inner.append(inner)
    for _ in range({"deep": 150, "doubled": 60}.get(kind, 0)):
        inner = [inner, inner] if kind == "doubled" else [inner]
    return inner


@pytest.mark.parametrize("kind", ["itself", "deep", "doubled"])
def test_lists_without_end_are_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(numpy_values, "MOST_ENTRIES", 1000)
    torch.save({"settings": endless(kind)}, tmp_path / "net.pth")
    with refused(tmp_path / "net.pth"):
        checkpoint.load(tmp_path / "net.pth")


def test_a_tensor_that_repeats_one_number_to_any_size_is_refused(tmp_path):
    for size in (10**3, 10**6):
        values = {"small": torch.zeros(()).expand(7, 8), "w": torch.zeros(()).expand(size, size)}
        torch.save(values, tmp_path / f"{size}.pth")
    assert checkpoint.load(tmp_path / "1000.pth")["w"].shape == (1000, 1000)
    with refused(tmp_path / "1000000.pth"):
        checkpoint.load(tmp_path / "1000000.pth")
