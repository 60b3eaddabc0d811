"""Files of NumPy: what is damaged is named, before memory is taken."""

import io
import os
import tokenize
import zipfile

import numpy as np
import pytest

from tests.mistakes import refused
from utils.arrays import map_array, read_arrays

ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture
def file(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS)
    return tmp_path / "rows.npy"


def header(text):
    """The beginning of a .npy file with any text as its header."""
    padded = text.encode() + b" " * (-len(text) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded


def test_what_is_mapped_is_what_was_saved(file):
    assert np.array_equal(map_array(file, "make it anew"), ROWS)
    with pytest.raises(ValueError):
        map_array(file, "make it anew")[0] = 1
    map_array(file, "make it anew", writable=True)[0] = 7
    assert np.load(file)[0].tolist() == [7, 7, 7]


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    "text",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }{",  # a brace without its end
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 3), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ('4', 3), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 3), }",
        "{'descr': '<U12', 'fortran_order': False, 'shape': (1,), }",
        "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (12,), }",
        "{'descr': '<f4', 'shape': (4, 3), }",
        "[" * 3000,
    ],
)
def test_a_header_that_lies_is_refused_and_the_file_stays_as_it_is(file, text, writable):
    content = header(text) + ROWS.tobytes()
    file.write_bytes(content)
    with refused(file, "make it anew"):
        map_array(file, "make it anew", writable=writable)
    assert file.read_bytes() == content


def test_numpy_itself_fails_in_the_tokenizer_of_some_headers():
    # Otherwise the first header above would test nothing
    with pytest.raises((tokenize.TokenError, ValueError, SyntaxError)):
        np.load(io.BytesIO(header("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 3), }{")))


@pytest.mark.parametrize("change", [-1, 1, -len(ROWS.tobytes())])
def test_another_length_than_the_headers_is_refused(file, change):
    os.truncate(file, file.stat().st_size + change)
    with refused(file):
        map_array(file, "make it anew")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.npy")
    for read in (map_array, read_arrays):
        for name in ("nowhere.npy", "pipe.npy", "."):
            with refused(tmp_path / name, "make it anew"):
                read(tmp_path / name, "make it anew")


def test_arrays_of_an_archive_are_read_with_their_sums(tmp_path):
    path = tmp_path / "sums.npz"
    np.savez(path, a=ROWS, b=np.asfortranarray(ROWS))
    arrays = read_arrays(path, "make it anew")
    assert np.array_equal(arrays["a"], ROWS) and np.array_equal(arrays["b"], ROWS)
    content = bytearray(path.read_bytes())
    place = content.find(ROWS.tobytes())
    content[place + 5] ^= 1
    path.write_bytes(content)
    with refused(path, "a.npy", "make it anew"):
        read_arrays(path, "make it anew")


def test_an_archive_that_unpacks_to_far_more_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("a", "w") as one:
        for _ in range(101):
            one.write(bytes(1_000_000))
    with refused(path, "101.00 MB"):
        read_arrays(path, "make it anew")


def test_any_cut_of_an_archive_is_named(tmp_path):
    path = tmp_path / "sums.npz"
    np.savez(path, a=ROWS)
    content = path.read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with refused(path):
            read_arrays(path, "make it anew")
