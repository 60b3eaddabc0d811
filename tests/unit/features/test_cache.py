import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from utils.errors import InputError
from utils.features.cache import FeatureCache, open_features
from utils.features.old_folder import OldFeatureFolder
from utils.features.writer import FeatureWriter

SHAPE_A, SHAPE_B, TOP_K, COUNT = (3, 4, 4), (2, 5, 5), (1, 3), 11
RECORD = {
    "dataset": "digits",
    "split": "train",
    "layer_a": "features.30",
    "layer_b": "layer3",
    "checkpoint_a": "aa11",
    "checkpoint_b": "bb22",
    "transform": {"resize": [224, 224]},
}
PATHS = [os.fsdecode(f"cow/Kuh_ä{i}_".encode() + b"\xff.jpg") for i in range(COUNT)]  # 0xff is no UTF-8
ARRAYS = ["features_a", "features_b", "targets", "hits_a", "hits_b", "written"]


def samples(count=COUNT):
    """Six tensors, one row an image, all rows different."""
    generator = torch.Generator().manual_seed(0)
    features_a = torch.randn(count, *SHAPE_A, generator=generator)
    features_b = torch.randn(count, *SHAPE_B, generator=generator)
    hits_a, hits_b = torch.rand(2, count, len(TOP_K), generator=generator) > 0.5
    return features_a, features_b, torch.arange(count) * 7 % 5, hits_a, hits_b


def writer(folder, dtype=torch.float32, **changes):
    options = {"record": RECORD, "paths": PATHS, "shape_a": SHAPE_A, "shape_b": SHAPE_B, "top_k": TOP_K}
    return FeatureWriter(folder, dtype=dtype, **{**options, **changes})


def fill(target, rows):
    values = samples()
    target.write(rows, *(value[rows] for value in values))


def complete(folder, dtype=torch.float32):
    target = writer(folder, dtype)
    for start in range(0, COUNT, 4):  # 4, 4, 3: a ragged last batch
        fill(target, list(range(start, min(start + 4, COUNT))))
    target.finish()
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_comes_back_in_order(tmp_path, dtype):
    cache = open_features(complete(tmp_path / "train", dtype))
    features_a, features_b, targets, hits_a, hits_b = samples()
    assert isinstance(cache, FeatureCache) and len(cache) == COUNT
    assert (cache.shape_a, cache.shape_b) == (SHAPE_A, SHAPE_B)
    assert cache.record == RECORD
    assert cache.facts["dtype"] == str(dtype).removeprefix("torch.") and cache.facts["top_k"] == [1, 3]
    assert cache.paths == PATHS and os.fsencode(cache.paths[0]).endswith(b"\xff.jpg")
    assert torch.equal(cache.targets, targets)
    assert torch.equal(cache.hits_a, hits_a) and torch.equal(cache.hits_b, hits_b)
    for rows in ([0, 1, 2, 3], [10, 0, 7, 7], list(range(COUNT))):
        batch_a, batch_b, batch_targets, indices = cache.__getitems__(rows)
        assert batch_a.dtype == torch.float32 and indices.tolist() == rows
        assert torch.equal(batch_a, features_a[rows].to(dtype).float())
        assert torch.equal(batch_b, features_b[rows].to(dtype).float())
        assert torch.equal(batch_targets, targets[rows])


def test_the_files_are_plain_numpy(tmp_path):
    folder = complete(tmp_path)
    stored = np.load(folder / "features_a.npy", mmap_mode="r")
    assert np.array_equal(stored, samples()[0].numpy())
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{name}.npy" for name in ARRAYS] + ["index.json", "paths.json"]
    )


def test_batches_are_copies_that_a_fit_may_change(tmp_path):
    cache = open_features(complete(tmp_path))
    cache.__getitems__([1])[0].zero_()
    assert torch.equal(cache.__getitems__([1])[0], samples()[0][[1]])


def test_several_labels_an_image_and_flat_features(tmp_path):
    target = writer(tmp_path, shape_a=(6,), shape_b=(2,), top_k=(), target_shape=(20,), paths=PATHS[:3])
    features_a, features_b, labels = torch.randn(3, 6), torch.randn(3, 2), torch.rand(3, 20)
    no_hits = torch.empty(3, 0, dtype=torch.bool)
    target.write([2, 0, 1], features_a, features_b, labels, no_hits, no_hits)
    target.finish()
    batch = open_features(tmp_path).__getitems__([2, 0, 1])
    assert all(torch.equal(got, put) for got, put in zip(batch, (features_a, features_b, labels)))


def test_reverse_swaps_the_networks_everywhere(tmp_path):
    cache = open_features(complete(tmp_path), reverse=True, expected={"layer_a": "layer3", "shape_a": SHAPE_B})
    features_a, features_b, _, hits_a, hits_b = samples()
    assert (cache.shape_a, cache.shape_b) == (SHAPE_B, SHAPE_A)
    assert cache.record["checkpoint_a"] == "bb22" and cache.record["checkpoint_b"] == "aa11"
    assert cache.record["dataset"] == "digits"
    batch_a, batch_b, *_ = cache.__getitems__([4, 2])
    assert torch.equal(batch_a, features_b[[4, 2]]) and torch.equal(batch_b, features_a[[4, 2]])
    assert torch.equal(cache.hits_a, hits_b) and torch.equal(cache.hits_b, hits_a)


def test_processes_fill_disjoint_rows(tmp_path):
    first = writer(tmp_path)
    second = writer(tmp_path, create=False)
    fill(second, list(range(1, COUNT, 2)))
    fill(first, list(range(0, COUNT, 2)))
    second.close()
    first.finish()
    assert torch.equal(open_features(tmp_path).__getitems__(range(COUNT))[0], samples()[0])
    with pytest.raises(InputError, match="made for other features"):
        writer(tmp_path, torch.float16, create=False)


def test_an_interrupted_cache_is_refused_with_its_counts(tmp_path):
    target = writer(tmp_path)
    with pytest.raises(InputError, match=r"0 of 11 images .* run it again"):
        open_features(tmp_path)
    fill(target, [0, 1, 2, 3])
    with pytest.raises(InputError, match="4 of 11 images"):
        open_features(tmp_path)
    with pytest.raises(InputError, match="4 of 11 images"):
        target.finish()
    with pytest.raises(InputError, match="4 of 11 images"):
        open_features(tmp_path)


def test_all_rows_without_finish_are_not_complete(tmp_path):
    target = writer(tmp_path)
    fill(target, list(range(COUNT)))
    target.close()
    with pytest.raises(InputError, match="incomplete"):
        open_features(tmp_path)


def test_a_new_run_makes_the_old_cache_incomplete_at_once(tmp_path):
    reading, waiting = open_features(complete(tmp_path)), open_features(tmp_path)
    reading.__getitems__([0])
    target = writer(tmp_path)
    with pytest.raises(InputError, match="0 of 11"):
        open_features(tmp_path)
    assert torch.equal(reading.__getitems__([3])[0], samples()[0][[3]])
    with pytest.raises(InputError, match=r"features_a.npy was replaced while it was in use"):
        waiting.__getitems__([3])
    fill(target, list(range(COUNT)))
    target.finish()
    with pytest.raises(InputError, match=r"features_a.npy was replaced while it was in use"):
        waiting.__getitems__([3])


@pytest.mark.parametrize("name", [f"{name}.npy" for name in ARRAYS])
def test_cut_short_too_long_and_missing_files_are_named(tmp_path, name):
    path = complete(tmp_path) / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=name):
            open_features(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=f"{name} is missing"):
        open_features(tmp_path)


def test_a_file_of_another_shape_is_refused(tmp_path):
    np.save(complete(tmp_path) / "features_b.npy", np.zeros((COUNT, 1), np.float32))
    with pytest.raises(InputError, match=r"features_b.npy holds float32 \(11, 1\).*\(11, 2, 5, 5\)"):
        open_features(tmp_path)


def test_an_array_of_python_objects_is_not_unpickled(tmp_path):
    np.save(complete(tmp_path) / "targets.npy", np.array([{}] * COUNT), allow_pickle=True)
    with pytest.raises(InputError, match=r"targets.npy"):
        open_features(tmp_path)


def test_paths_must_match_the_count(tmp_path):
    (complete(tmp_path) / "paths.json").write_text(json.dumps(PATHS[:-1]))
    with pytest.raises(InputError, match=r"paths.json does not list 11 images"):
        open_features(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "format version 2, this program reads 1"),
        ({"format": "photos"}, "not of a feature cache"),
        ({"dtype": "int4"}, "damaged"),
        ({"count": "many"}, "damaged"),
        ({"record": None}, "damaged"),
        ({"complete": "yes"}, "damaged"),
    ],
)
def test_a_foreign_or_damaged_index_is_refused(tmp_path, change, message):
    index = complete(tmp_path) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_features(tmp_path)
    index.write_text(index.read_text()[:50])
    with pytest.raises(InputError, match="not valid JSON"):
        open_features(tmp_path)


def test_folders_without_features_are_refused(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        open_features(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match="no stored features"):
        open_features(tmp_path)
    complete(tmp_path / "train")
    with pytest.raises(InputError, match="it has train inside"):
        open_features(tmp_path)


def test_a_parent_and_a_split_name_the_folder(tmp_path):
    complete(tmp_path / "train")
    assert len(open_features(tmp_path, split="train")) == COUNT
    with pytest.raises(InputError, match=r"no stored features in .* or .*val"):
        open_features(tmp_path, split="val")
    with pytest.raises(InputError, match='split = "train", expected "val"'):
        open_features(tmp_path / "train", split="val")


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"layer_a": "features.24"}, 'layer_a = "features.30", expected "features.24"'),
        ({"checkpoint_b": "cc33"}, 'checkpoint_b = "bb22", expected "cc33"'),
        ({"shape_b": (2, 5, 6)}, r"shape_b = \[2, 5, 5\], expected \[2, 5, 6\]"),
        ({"weather": "fine"}, 'weather = null, expected "fine"'),
    ],
)
def test_a_value_that_disagrees_is_named(tmp_path, expected, message):
    complete(tmp_path)
    open_features(tmp_path, expected=RECORD | {"shape_a": SHAPE_A, "count": COUNT})
    with pytest.raises(InputError, match=message):
        open_features(tmp_path, expected=expected)


def test_the_writer_refuses_what_it_cannot_keep(tmp_path):
    with pytest.raises(InputError, match="float64"):
        writer(tmp_path, torch.float64)
    with pytest.raises(InputError, match="0 images"):
        writer(tmp_path, paths=[])
    with pytest.raises(InputError, match="GB free"):
        writer(tmp_path, shape_a=(10**6, 10**6))
    target = writer(tmp_path / "small", torch.float16)
    features_a, *others = (value[:2] for value in samples())
    with pytest.raises(InputError, match="net A is not finite as float16"):
        target.write([0, 1], features_a * 1e6, *others)
    with pytest.raises(ValueError, match="shape"):
        target.write([0, 1], features_a[:, :1], *others)
    with pytest.raises(ValueError, match="rows 10 to 11"):
        target.write([10, 11], features_a, *others)
    with pytest.raises(InputError, match="0 of 11"):
        open_features(tmp_path / "small")


def test_the_writer_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match=r"holds other files \(thesis.tex\)"):
        writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def identity(batch):
    return batch


@pytest.mark.parametrize("old", [False, True])
def test_worker_processes_read_it(tmp_path, old):
    features = open_features(old_folder(tmp_path) if old else complete(tmp_path))
    features.__getitems__([0])  # maps made before the workers start must not confuse them
    batches = BatchSampler(SequentialSampler(features), batch_size=4, drop_last=False)
    loader = DataLoader(features, batch_sampler=batches, collate_fn=identity, num_workers=2)
    for _ in range(2):
        got = [torch.cat(parts) for parts in zip(*loader)]
        assert torch.equal(got[0], samples(len(features))[0])
        assert got[3].tolist() == list(range(len(features)))


def test_a_pickled_cache_carries_no_features(tmp_path):
    cache = open_features(complete(tmp_path))
    cache.__getitems__([0])
    pickled = pickle.dumps(cache)
    assert torch.equal(pickle.loads(pickled).__getitems__([5, 1])[1], samples()[1][[5, 1]])
    assert samples()[0][5].numpy().tobytes() not in pickled


def resident_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_memory_stays_at_one_batch(tmp_path):
    batch, shape, batches = 8, (64, 32, 32), 72  # 2 MB a batch and network, 302 MB in all
    rows = batch * batches
    paths = [f"{i}.jpg" for i in range(rows)]
    target = writer(tmp_path, shape_a=shape, shape_b=shape, paths=paths, top_k=())
    features, no_hits = torch.randn(batch, *shape), torch.empty(batch, 0, dtype=torch.bool)
    before, seen = resident_bytes(), []
    for start in range(0, rows, batch):
        target.write(range(start, start + batch), features, features, torch.zeros(batch), no_hits, no_hits)
        seen.append(resident_bytes())
    target.finish()
    cache = open_features(tmp_path)
    order = torch.randperm(rows).tolist()
    for start in range(0, rows, batch):
        cache.__getitems__(order[start : start + batch])
        seen.append(resident_bytes())
    assert max(seen) - before < 60e6


def old_folder(folder, as_numpy=False, count=5):
    """What the authors' release wrote: one dictionary an image, in the format before zip."""
    folder.mkdir(exist_ok=True)
    convert = torch.Tensor.numpy if as_numpy else torch.clone
    features_a, features_b, targets, hits_a, hits_b = samples(count)
    for i in range(count):
        sample = {
            "target": np.int64(targets[i]) if as_numpy else targets[i],
            "pred1": convert(hits_a[i].byte()),
            "pred2": convert(hits_b[i].byte()),
            "convOut1": convert(features_a[i]),
            "convOut2": convert(features_b[i]),
        }
        path = folder / f"{i:06d}.pkl"
        torch.save(sample, path, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))  # numpy's name in those days
    return folder


@pytest.mark.parametrize("as_numpy", [False, True])
def test_old_files_read_like_a_cache(tmp_path, as_numpy):
    folder = old_folder(tmp_path / "val", as_numpy)
    features_a, features_b, targets, *_ = samples(5)
    features = open_features(tmp_path, split="val", expected={"layer_a": "unknown to old files", "shape_a": SHAPE_A})
    assert isinstance(features, OldFeatureFolder) and len(features) == 5
    assert (features.shape_a, features.shape_b) == (SHAPE_A, SHAPE_B)
    assert torch.equal(features.targets, targets)
    batch = features.__getitems__([3, 0])
    wanted = (features_a[[3, 0]], features_b[[3, 0]], targets[[3, 0]], torch.tensor([3, 0]))
    assert all(torch.equal(got, want) and got.dtype == want.dtype for got, want in zip(batch, wanted))
    swapped = open_features(folder, reverse=True)
    assert swapped.shape_a == SHAPE_B and torch.equal(swapped.__getitems__([2])[1], features_a[[2]])
    with pytest.raises(InputError, match="shape_a"):
        open_features(folder, expected={"shape_a": SHAPE_B})


def test_big_endian_and_fortran_arrays(tmp_path):
    old_folder(tmp_path, count=1)
    array = np.asfortranarray(np.arange(24).reshape(2, 3, 4))
    sample = {"target": np.zeros(20), "convOut1": array.astype(">f4", order="F"), "convOut2": array.astype("f2")}
    torch.save(sample, tmp_path / "000000.pkl", _use_new_zipfile_serialization=False)
    a, b, target, _ = open_features(tmp_path).__getitems__([0])
    assert torch.equal(a[0], torch.arange(24.0).reshape(2, 3, 4)) and torch.equal(b, a)
    assert target.shape == (1, 20) and target.dtype == torch.float32


def test_a_gap_in_the_old_sequence_is_named(tmp_path):
    (old_folder(tmp_path) / "000003.pkl").unlink()
    with pytest.raises(InputError, match=r"has no 000003.pkl, though 4 files .*000004.pkl"):
        open_features(tmp_path)


def test_damaged_old_files_are_named(tmp_path):
    path = old_folder(tmp_path) / "000002.pkl"
    features, whole = open_features(tmp_path), path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"000002.pkl"):
            features.__getitems__([2])
    torch.save({"target": 1, "convOut1": torch.zeros(SHAPE_A)}, path)
    with pytest.raises(InputError, match=r"000002.pkl has no convOut2, only target, convOut1"):
        features.__getitems__([2])
    torch.save({"target": 1, "convOut1": torch.zeros(1), "convOut2": torch.zeros(SHAPE_B)}, path)
    with pytest.raises(InputError, match=r"000002.pkl has features of shape \(1,\)"):
        features.__getitems__([1, 2])
    torch.save({"target": "cow", "convOut1": torch.zeros(SHAPE_A), "convOut2": torch.zeros(SHAPE_B)}, path)
    with pytest.raises(InputError, match=r"000002.pkl holds a str"):
        features.__getitems__([2])


class Reduced:
    """Pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_old_files_run_no_code(tmp_path):
    path, marker = old_folder(tmp_path / "old") / "000000.pkl", tmp_path / "ran"
    torch.save({"convOut1": Reduced(os.system, f"touch {marker}")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"000000.pkl .* is refused, because loading it could run code"):
        open_features(tmp_path / "old")
    assert not marker.exists()


@pytest.mark.parametrize(
    "forged",
    [
        Reduced(np.ndarray, (1,), np.dtype("O"), b"\x10" + b"\0" * 7),  # numpy would follow these bytes as a pointer
        np.array([{}], dtype=object),
    ],
)
def test_old_files_hold_arrays_of_numbers_only(tmp_path, forged):
    path = old_folder(tmp_path) / "000000.pkl"
    sample = {"target": 0, "convOut1": forged, "convOut2": torch.zeros(1)}
    torch.save(sample, path, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match=r"000000.pkl"):
        open_features(tmp_path)


def test_two_formats_in_one_folder_are_refused(tmp_path):
    old_folder(complete(tmp_path))
    with pytest.raises(InputError, match=r"mixes a feature cache and old .pkl files"):
        open_features(tmp_path)
