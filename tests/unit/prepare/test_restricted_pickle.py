import collections
import os
import pickle
from pathlib import Path

import pytest

from tests.unit.photos import real_data
from utils.errors import InputError
from utils.prepare.restricted_pickle import load_plain


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_comes_back(tmp_path, protocol):
    value = [{"source": "a", "class": 3, "bndbox": {"xmin": "1"}}, (1.5, None, True), 10**30, "é"]
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(value, protocol))
    assert load_plain(tmp_path / "list.pkl") == value


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path, protocol):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([1, Runs(tmp_path / "ran")], protocol))
    with pytest.raises(InputError, match=r"list\.pkl is refused: it asks for .*mkdir, which may run code"):
        load_plain(tmp_path / "list.pkl")
    assert not (tmp_path / "ran").exists()


def test_even_a_harmless_class_is_refused(tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(collections.OrderedDict(a=1)))
    with pytest.raises(InputError, match=r"asks for collections\.OrderedDict"):
        load_plain(tmp_path / "list.pkl")


def test_references_out_of_the_file_are_refused(tmp_path):
    (tmp_path / "list.pkl").write_bytes(b"Poutside\n.")
    with pytest.raises(InputError, match="points at objects outside the file"):
        load_plain(tmp_path / "list.pkl")


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(["long enough to cut"] * 3)[:-9]])
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "list.pkl").write_bytes(content)
    with pytest.raises(InputError, match=r"list\.pkl is not a whole pickle file"):
        load_plain(tmp_path / "list.pkl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"list\.pkl does not exist"):
        load_plain(tmp_path / "list.pkl")


def test_the_authors_lists():
    folder = real_data() / "reference_lists"
    counts = {path.stem: len(load_plain(path)) for path in folder.glob("VOC_*.pkl")}
    assert counts == {
        "VOC_traindata": 13609, "VOC_valdata": 13841, "VOC_Animal_traindata": 2961, "VOC_Animal_valdata": 3001,
    }  # fmt: skip
