"""No room on the disk is said before the work, with what is needed and what is free."""

import shutil
from types import SimpleNamespace

import pytest

import Training
from tests.e2e.road import data, run
from tests.mistakes import check_line, refused
from tests.unit import stored_features
from utils.files import check_room, in_words

LINE = "--arch resnet8 --image_size 32 --epochs 1 -b 6 -j 0"


@pytest.fixture
def free(monkeypatch):
    """Let a disk have so many bytes."""
    room = SimpleNamespace(free=10**12)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    return room


def test_the_sizes_are_said(tmp_path, free):
    check_room(tmp_path / "new" / "deep", 10**12, "they", "make room")
    free.free = 123_456
    with refused("9.00 GB", "0.12 MB", tmp_path / "new", "make room"):
        check_room(tmp_path / "new", 9_000_000_000, "they", "make room")


@pytest.mark.e2e
def test_checkpoints_are_refused_before_an_epoch(photos, tmp_path, free, capsys):
    """Last and best, and one that is written beside them."""
    run(Training, LINE, *data(photos), "--out", tmp_path / "whole")
    (size, _) = sorted(path.stat().st_size for path in (tmp_path / "whole").rglob("*.pth.tar"))
    assert "epoch 1/1" in capsys.readouterr().out
    free.free = 2 * size
    with pytest.raises(SystemExit) as ended:
        run(Training, LINE, *data(photos), "--out", tmp_path / "other")
    check_line(str(ended.value), in_words(2 * size), tmp_path / "other")
    assert "epoch 1/1" not in capsys.readouterr().out
    assert not [*(tmp_path / "other").rglob("*.pth.tar")]


def test_features_take_their_room_before_the_pass(tmp_path, free):
    """So the next layer of the same pass sees what is left."""
    with stored_features.writer(tmp_path / "train"):
        array = tmp_path / "train" / "features_a.npy"
        assert array.stat().st_blocks * 512 >= array.stat().st_size
    free.free = 100
    with refused("100 bytes", tmp_path / "val"):
        stored_features.writer(tmp_path / "val")
