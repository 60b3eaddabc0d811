import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests.unit.stored_features import (
    ARRAYS,
    COUNT,
    PATHS,
    RECORD,
    SHAPE_A,
    SHAPE_B,
    complete,
    fill,
    old_folder,
    samples,
    writer,
)
from utils.errors import InputError
from utils.features.cache import FeatureCache, open_features


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_everything_comes_back_in_order(tmp_path, dtype):
    cache = open_features(complete(tmp_path / "train", dtype))
    features_a, features_b, targets, hits_a, hits_b = samples()
    assert isinstance(cache, FeatureCache) and len(cache) == COUNT
    assert (cache.shape_a, cache.shape_b) == (SHAPE_A, SHAPE_B)
    assert cache.provenance.to_record() == RECORD
    assert cache.facts["dtype"] == str(dtype).removeprefix("torch.") and cache.facts["top_k"] == [
        1,
        3,
    ]
    assert cache.paths == PATHS and os.fsencode(cache.paths[0]).endswith(b"\xff.jpg")
    assert torch.equal(cache.targets, targets)
    assert torch.equal(cache.hits_a, hits_a) and torch.equal(cache.hits_b, hits_b)
    for rows in ([0, 1, 2, 3], [10, 0, 7, 7], list(range(COUNT))):
        batch_a, batch_b, batch_targets, indices = cache.__getitems__(rows)
        assert batch_a.dtype == torch.float32 and indices.tolist() == rows
        assert torch.equal(batch_a, features_a[rows].to(dtype).float())
        assert torch.equal(batch_b, features_b[rows].to(dtype).float())
        assert torch.equal(batch_targets, targets[rows])


def test_batches_are_copies_that_a_fit_may_change(tmp_path):
    cache = open_features(complete(tmp_path))
    cache.__getitems__([1])[0].zero_()
    assert torch.equal(cache.__getitems__([1])[0], samples()[0][[1]])


def test_reverse_swaps_the_networks_everywhere(tmp_path):
    cache = open_features(
        complete(tmp_path), reverse=True, expected={"layer_a": "layer3", "shape_a": SHAPE_B}
    )
    features_a, features_b, _, hits_a, hits_b = samples()
    assert (cache.shape_a, cache.shape_b) == (SHAPE_B, SHAPE_A)
    assert (cache.provenance.a.sha256, cache.provenance.b.sha256) == ("bb22", "aa11")
    assert (cache.provenance.a.layer, cache.provenance.b.layer) == ("layer3", "features.30")
    assert cache.provenance.dataset == "digits"
    batch_a, batch_b, *_ = cache.__getitems__([4, 2])
    assert torch.equal(batch_a, features_b[[4, 2]]) and torch.equal(batch_b, features_a[[4, 2]])
    assert torch.equal(cache.hits_a, hits_b) and torch.equal(cache.hits_b, hits_a)


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
    with pytest.raises(
        InputError, match=r"features_b.npy holds float32 \(11, 1\).*\(11, 2, 5, 5\)"
    ):
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
        for net in "ab":
            target.write(net, range(start, start + batch), features, torch.zeros(batch), no_hits)
        seen.append(resident_bytes())
    target.finish()
    cache = open_features(tmp_path)
    order = torch.randperm(rows).tolist()
    for start in range(0, rows, batch):
        cache.__getitems__(order[start : start + batch])
        seen.append(resident_bytes())
    assert max(seen) - before < 60e6


def test_two_formats_in_one_folder_are_refused(tmp_path):
    old_folder(complete(tmp_path))
    with pytest.raises(InputError, match=r"mixes a feature cache and old .pkl files"):
        open_features(tmp_path)
