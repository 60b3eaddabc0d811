"""Content hashes: written with a file, checked when it is first read, and then remembered."""

import json
import os

import pytest
import torch

import PrepareData
from tests.mistakes import check_line, refused, refuses
from tests.unit import stored_features
from utils import checkpoint, remarks, sums
from utils.features.cache import open_features


@pytest.fixture
def folder(tmp_path):
    """A small cache, old enough to be remembered."""
    folder = stored_features.complete(tmp_path / "train")
    for path in folder.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    return folder


def change(path, place=-1):
    """Change one byte, and leave size and time as they are, as a disk that forgets does."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


NAMES = [f"{name}.npy" for name in stored_features.ARRAYS]


@pytest.mark.parametrize("name", [*NAMES, "paths.json", "index.json"])
def test_one_changed_byte_is_found_at_the_first_reading(folder, name):
    open_features(folder)
    (folder / sums.VERIFIED).unlink()
    if name == "index.json":
        index = json.loads((folder / name).read_text())
        index["record"]["layer_a"] = "features.31"
        (folder / name).write_text(json.dumps(index))
    else:
        change(folder / name, -5 if name == "paths.json" else -1)
    with refused(name if name == "index.json" else folder):
        open_features(folder)
    if name == "written.npy":  # which says itself that an image is missing
        return
    sums.skip(skipped=True)
    try:
        open_features(folder)
    finally:
        sums.skip(skipped=False)


def test_what_was_checked_is_remembered_by_size_and_time(folder, monkeypatch):
    read = []
    original = sums._chunk
    monkeypatch.setattr(sums, "_chunk", lambda *of: (read.append(of[0].name), original(*of))[1])
    open_features(folder)
    assert sorted(read) == sorted([*NAMES, "paths.json"])
    read.clear()
    open_features(folder)
    assert read == []
    os.utime(folder / "features_a.npy", ns=(10**18, 10**18 + 1))
    open_features(folder)
    assert read == ["features_a.npy"]


def test_all_bad_files_and_the_place_are_named(folder, monkeypatch):
    monkeypatch.setattr(sums, "CHUNK_BYTES", 512)
    index = json.loads((folder / "index.json").read_text())
    index[sums.SUMS] = sums.sums_of(folder, index[sums.SUMS])
    del index[sums.OWN]
    (folder / "index.json").write_text(json.dumps(sums.signed(index)))
    change(folder / "features_a.npy", 1200)
    change(folder / "targets.npy")
    with refused("features_a.npy", "1,024", "targets.npy"):
        open_features(folder)


def test_files_without_hashes_open_and_that_is_said_once(folder, capsys):
    index = json.loads((folder / "index.json").read_text())
    del index[sums.SUMS], index[sums.OWN]
    (folder / "index.json").write_text(json.dumps(index))
    remarks.forget()
    for _ in range(2):
        open_features(folder)
    check_line(capsys.readouterr().out, folder / "index.json")


def test_a_folder_that_takes_no_file_is_checked_again(folder, monkeypatch):
    monkeypatch.setattr(sums, "write_json", lambda *_: (_ for _ in ()).throw(PermissionError()))
    open_features(folder)
    assert not (folder / sums.VERIFIED).exists()


def test_one_command_names_every_bad_file(folder, capsys):
    root = folder.parent
    for name in ("a", "b"):
        checkpoint.save(root / f"{name}.pth.tar", {"state_dict": {"w": torch.zeros(9)}})
    checkpoint.save(root / "c.pth.tar", {"state_dict": {"w": torch.full((9,), torch.nan)}})
    PrepareData.main(["verify", "--src", str(folder)])
    assert "0 damaged" in capsys.readouterr().out
    # Remembered or not: every byte is read anew.
    change(folder / "features_b.npy")
    change(root / "b.pth.tar", root.joinpath("b.pth.tar").stat().st_size // 2)
    refuses(PrepareData.main, ["verify", "--src", str(root)], 3)
    said = capsys.readouterr().out
    for name in ("features_b.npy", "b.pth.tar", "c.pth.tar"):
        assert name in said
    assert "a.pth.tar" not in said
