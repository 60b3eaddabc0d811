import os

import numpy as np
import pytest
import torch

from tests.mistakes import refused
from tests.unit.stored_features import SHAPE_A, SHAPE_B, old_folder, samples
from utils.features.cache import open_features
from utils.features.old_folder import OldFeatureFolder
from utils.provenance import Provenance


@pytest.mark.parametrize("as_numpy", [False, True])
def test_old_files_read_like_a_cache(tmp_path, as_numpy):
    folder = old_folder(tmp_path / "val", as_numpy)
    features_a, features_b, targets, *_ = samples(5)
    features = open_features(
        tmp_path, split="val", expected={"layer_a": "unknown to old files", "shape_a": SHAPE_A}
    )
    assert isinstance(features, OldFeatureFolder) and len(features) == 5
    assert (features.shape_a, features.shape_b) == (SHAPE_A, SHAPE_B)
    assert torch.equal(features.targets, targets)
    batch = features.__getitems__([3, 0])
    wanted = (features_a[[3, 0]], features_b[[3, 0]], targets[[3, 0]], torch.tensor([3, 0]))
    assert all(
        torch.equal(got, want) and got.dtype == want.dtype for got, want in zip(batch, wanted)
    )
    swapped = open_features(folder, reverse=True)
    assert swapped.shape_a == SHAPE_B and torch.equal(swapped.__getitems__([2])[1], features_a[[2]])
    with refused(folder, "shape_a", [*SHAPE_A], [*SHAPE_B]):
        open_features(folder, expected={"shape_a": SHAPE_B})


def test_old_files_say_nothing_of_their_origin(tmp_path):
    features = OldFeatureFolder(old_folder(tmp_path))
    assert features.provenance == Provenance() and features.provenance.to_record() == {}
    assert features.facts == {"shape_a": [*SHAPE_A], "shape_b": [*SHAPE_B], "count": 5}
    assert features.paths == [f"{i:06d}.pkl" for i in range(5)]
    assert features.hits_a.shape == features.hits_b.shape == (5, 0)


def test_several_labels_an_image_are_numbers_of_their_own(tmp_path):
    labels = [torch.tensor([1.0, 0.0, 1.0]), torch.tensor([0.0, 1.0, 1.0])]
    for i, target in enumerate(labels):
        sample = {
            "target": target,
            "convOut1": torch.zeros(SHAPE_A),
            "convOut2": torch.zeros(SHAPE_B),
        }
        torch.save(sample, tmp_path / f"{i:06d}.pkl", _use_new_zipfile_serialization=False)
    assert torch.equal(OldFeatureFolder(tmp_path).targets, torch.stack(labels))


def test_big_endian_and_fortran_arrays(tmp_path):
    old_folder(tmp_path, count=1)
    array = np.asfortranarray(np.arange(24).reshape(2, 3, 4))
    sample = {
        "target": np.zeros(20),
        "convOut1": array.astype(">f4", order="F"),
        "convOut2": array.astype("f2"),
    }
    torch.save(sample, tmp_path / "000000.pkl", _use_new_zipfile_serialization=False)
    a, b, target, _ = open_features(tmp_path).__getitems__([0])
    assert torch.equal(a[0], torch.arange(24.0).reshape(2, 3, 4)) and torch.equal(b, a)
    assert target.shape == (1, 20) and target.dtype == torch.float32


def test_a_gap_in_the_old_sequence_is_named(tmp_path):
    (old_folder(tmp_path) / "000003.pkl").unlink()
    with refused("000003.pkl", "4", "000004.pkl"):
        open_features(tmp_path)


def test_damaged_old_files_are_named(tmp_path):
    path = old_folder(tmp_path) / "000002.pkl"
    features, whole = open_features(tmp_path), path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with refused("000002.pkl"):
            features.__getitems__([2])
    torch.save({"target": 1, "convOut1": torch.zeros(SHAPE_A)}, path)
    with refused("000002.pkl", "convOut2", "convOut1"):
        features.__getitems__([2])
    torch.save({"target": 1, "convOut1": torch.zeros(1), "convOut2": torch.zeros(SHAPE_B)}, path)
    with refused("000002.pkl", (1,), SHAPE_A):
        features.__getitems__([1, 2])
    torch.save(
        {"target": "cow", "convOut1": torch.zeros(SHAPE_A), "convOut2": torch.zeros(SHAPE_B)}, path
    )
    with refused("000002.pkl", "str"):
        features.__getitems__([2])


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_old_files_run_no_code(tmp_path):
    path, marker = old_folder(tmp_path / "old") / "000000.pkl", tmp_path / "ran"
    torch.save(
        {"convOut1": Reduced(os.system, f"touch {marker}")},
        path,
        _use_new_zipfile_serialization=False,
    )
    with refused("000000.pkl", "posix.system"):
        open_features(tmp_path / "old")
    assert not marker.exists()


@pytest.mark.parametrize(
    "forged",
    [
        # Numpy would follow these bytes as a pointer
        Reduced(np.ndarray, (1,), np.dtype("O"), b"\x10" + b"\0" * 7),
        np.array([{}], dtype=object),
    ],
)
def test_old_files_hold_arrays_of_numbers_only(tmp_path, forged):
    path = old_folder(tmp_path) / "000000.pkl"
    sample = {"target": 0, "convOut1": forged, "convOut2": torch.zeros(1)}
    torch.save(sample, path, _use_new_zipfile_serialization=False)
    with refused("000000.pkl", "numpy.dtype[O8]"):
        open_features(tmp_path)
