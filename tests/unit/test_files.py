import hashlib
import json
import os
import stat

import pytest

from utils.errors import InputError
from utils.files import read_json, replacing, sha256, write_json


def test_a_whole_file_replaces_the_one_before(tmp_path):
    path = tmp_path / "new" / "deep" / "figure.png"
    for content in ("one", "two"):
        with replacing(path) as temporary:
            assert temporary.parent == path.parent
            assert temporary.suffix == ".png"
            assert not path.exists() or path.read_text() == "one"
            temporary.write_text(content)
    assert path.read_text() == "two"
    assert [entry.name for entry in path.parent.iterdir()] == ["figure.png"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt(), ValueError()])
def test_nothing_changes_when_writing_fails(tmp_path, error):
    path = tmp_path / "state.bin"
    path.write_text("before")
    with pytest.raises(type(error)), replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "before"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.bin"]


def test_files_are_as_readable_as_any_other(tmp_path):
    write_json(tmp_path / "a.json", 1)
    (tmp_path / "b.json").write_text("1")
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a.json", "b.json")]
    assert modes[0] == modes[1]


def test_json_comes_back(tmp_path):
    value = {"var": {"order0": 1.25}, "path": os.fsdecode(b"K\xffh.jpg"), "name": "Kühe", "none": None}
    write_json(str(tmp_path / "v.json"), value)
    assert read_json(tmp_path / "v.json") == value
    assert (tmp_path / "v.json").read_bytes().isascii()
    assert json.loads((tmp_path / "v.json").read_text()) == value


def test_json_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"v\.json does not exist"):
        read_json(tmp_path / "v.json")
    for content in (b'{"var": 1', b"\xff\xfe", b""):
        (tmp_path / "v.json").write_bytes(content)
        with pytest.raises(InputError, match=r"v\.json is not valid JSON .*; delete it and make it again"):
            read_json(tmp_path / "v.json")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 7])
def test_the_hash_is_of_all_bytes(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "f").write_bytes(content)
    assert sha256(tmp_path / "f") == hashlib.sha256(content).hexdigest()
