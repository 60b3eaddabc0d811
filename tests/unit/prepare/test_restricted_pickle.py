import collections
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tests.mistakes import refused
from tests.unit.photos import real_data
from tests.unit.prepare.array_layouts import python2_pickle
from utils.prepare.restricted_pickle import load_arrays, load_plain


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
    with refused("list.pkl"):
        load_plain(tmp_path / "list.pkl")
    assert not (tmp_path / "ran").exists()


def test_even_a_harmless_class_is_refused(tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps(collections.OrderedDict(a=1)))
    with refused("collections.OrderedDict"):
        load_plain(tmp_path / "list.pkl")


def test_references_out_of_the_file_are_refused(tmp_path):
    (tmp_path / "list.pkl").write_bytes(b"Poutside\n.")
    with refused("list.pkl"):
        load_plain(tmp_path / "list.pkl")


@pytest.mark.parametrize(
    "content", [b"", b"no pickle", pickle.dumps(["long enough to cut"] * 3)[:-9]]
)
def test_damaged_files_are_named(tmp_path, content):
    (tmp_path / "list.pkl").write_bytes(content)
    with refused("list.pkl"):
        load_plain(tmp_path / "list.pkl")


def test_a_missing_file_is_named(tmp_path):
    with refused("list.pkl"):
        load_plain(tmp_path / "list.pkl")


def test_the_authors_lists():
    folder = real_data() / "reference_lists"
    counts = {path.stem: len(load_plain(path)) for path in folder.glob("VOC_*.pkl")}
    assert counts == {
        "VOC_traindata": 13609,
        "VOC_valdata": 13841,
        "VOC_Animal_traindata": 2961,
        "VOC_Animal_valdata": 3001,
    }


ARRAYS = [
    np.arange(12, dtype=np.uint8).reshape(3, 4),
    np.arange(12, dtype=">i4").reshape(2, 2, 3),
    np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
    np.array([True, False]),
    np.empty((0, 5)),
    np.array(7),
]


@pytest.mark.parametrize("array", ARRAYS, ids=str)
@pytest.mark.parametrize(
    "dump", [python2_pickle, lambda value: pickle.dumps(value, 4)], ids=["Python 2", "Python 3"]
)
def test_arrays_of_plain_numbers_come_back(tmp_path, array, dump):
    (tmp_path / "batch").write_bytes(dump({"data": array, "labels": [1, 2], "name": "word"}))
    result = load_arrays(tmp_path / "batch")
    assert list(result) == ["data", "labels", "name"]
    assert result["data"].dtype == array.dtype and np.array_equal(result["data"], array)
    assert result["labels"] == [1, 2] and result["name"] in (b"word", "word")


def test_arrays_are_no_plain_data(tmp_path):
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([np.zeros(2)], 2))
    with refused("list.pkl", "multiarray._reconstruct"):
        load_plain(tmp_path / "list.pkl")


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (np.array(["text", {}], dtype=object), "O8"),
        (np.array(["word"]), "U4"),
        (np.array([1j]), "c16"),
        (np.zeros(2, dtype=[("a", "u1")]), "V1"),
    ],
    ids=["objects", "words", "complex", "record"],
)
def test_arrays_of_anything_else_are_refused(tmp_path, array, kind):
    (tmp_path / "batch").write_bytes(python2_pickle({"data": array}))
    with refused("batch", f"'{kind}'"):
        load_arrays(tmp_path / "batch")


def test_code_beside_arrays_is_refused_and_not_run(tmp_path):
    (tmp_path / "batch").write_bytes(
        python2_pickle({"data": np.zeros(2), "more": Runs(tmp_path / "ran")})
    )
    with refused("posix.mkdir"):
        load_arrays(tmp_path / "batch")
    assert not (tmp_path / "ran").exists()


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    "content",
    [
        # Attributes for the stand-in itself
        b"\x80\x02}U\x01a" + RECONSTRUCT + b"}U\x06valuesK\x01sbs.",
        # A state of wrong types
        b"\x80\x02}U\x01a" + RECONSTRUCT + b")R(K\x01K\x05K\x05K\x00U\x04abcdtbs.",
        b"\x80\x02}U\x01acnumpy\ndtype\n(U\x02u1tR(K\x03U\x01?tbs.",  # a byte order that is none
    ],
)
def test_forged_states_are_refused(tmp_path, content):
    (tmp_path / "batch").write_bytes(content)
    with refused("batch"):
        load_arrays(tmp_path / "batch")


def test_an_array_that_was_never_filled_is_nothing(tmp_path):
    (tmp_path / "batch").write_bytes(b"\x80\x02}U\x04data" + RECONSTRUCT + b")Rs.")
    assert load_arrays(tmp_path / "batch") == {"data": None}


def test_arrays_come_in_a_dict(tmp_path):
    (tmp_path / "batch").write_bytes(python2_pickle([1]))
    with refused("batch", "dict", "list"):
        load_arrays(tmp_path / "batch")
