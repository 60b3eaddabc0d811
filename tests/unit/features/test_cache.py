import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from tests.mistakes import refused
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
    with refused(tmp_path, "0", "11", "ConvOutput.py"):
        open_features(tmp_path)
    fill(target, [0, 1, 2, 3])
    with refused("4", "11"):
        open_features(tmp_path)
    with refused("4", "11"):
        target.finish()
    with refused("4", "11"):
        open_features(tmp_path)


def test_a_new_run_makes_the_old_cache_incomplete_at_once(tmp_path):
    reading, waiting = open_features(complete(tmp_path)), open_features(tmp_path)
    reading.__getitems__([0])
    target = writer(tmp_path)
    with refused("0", "11"):
        open_features(tmp_path)
    assert torch.equal(reading.__getitems__([3])[0], samples()[0][[3]])
    with refused("features_a.npy", "ConvOutput.py"):
        waiting.__getitems__([3])
    fill(target, list(range(COUNT)))
    target.finish()
    with refused("features_a.npy", "ConvOutput.py"):
        waiting.__getitems__([3])


@pytest.mark.parametrize("name", [f"{name}.npy" for name in ARRAYS])
def test_cut_short_too_long_and_missing_files_are_named(tmp_path, name):
    path = complete(tmp_path) / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", whole + b"\0"):
        path.write_bytes(damaged)
        with refused(name, "ConvOutput.py"):
            open_features(tmp_path)
    path.unlink()
    with refused(name, "ConvOutput.py"):
        open_features(tmp_path)


def test_a_file_of_another_shape_is_refused(tmp_path):
    np.save(complete(tmp_path) / "features_b.npy", np.zeros((COUNT, 1), np.float32))
    with refused("features_b.npy", (11, 1), "index.json", (11, 2, 5, 5)):
        open_features(tmp_path)


def test_an_array_of_python_objects_is_not_unpickled(tmp_path):
    np.save(complete(tmp_path) / "targets.npy", np.array([{}] * COUNT), allow_pickle=True)
    with refused("targets.npy"):
        open_features(tmp_path)


def test_paths_must_match_the_count(tmp_path):
    (complete(tmp_path) / "paths.json").write_text(json.dumps(PATHS[:-1]))
    with refused("paths.json", "11"):
        open_features(tmp_path)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"version": 2}, ("2", "1")),
        ({"format": "photos"}, ("index.json",)),
        ({"dtype": "int4"}, ("index.json",)),
        ({"count": "many"}, ("index.json",)),
        ({"record": None}, ("index.json",)),
        ({"complete": "yes"}, ("index.json",)),
    ],
)
def test_a_foreign_or_damaged_index_is_refused(tmp_path, change, facts):
    index = complete(tmp_path) / "index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with refused(*facts, "ConvOutput.py"):
        open_features(tmp_path)
    index.write_text(index.read_text()[:50])
    with refused(index):
        open_features(tmp_path)


def test_folders_without_features_are_refused(tmp_path):
    with refused("nowhere", "ConvOutput.py"):
        open_features(tmp_path / "nowhere")
    (tmp_path / "photo.jpg").touch()
    with refused(tmp_path, "index.json", "000000.pkl", "ConvOutput.py"):
        open_features(tmp_path)
    complete(tmp_path / "train")
    with refused(tmp_path, "train"):
        open_features(tmp_path)


def test_a_parent_and_a_split_name_the_folder(tmp_path):
    complete(tmp_path / "train")
    assert len(open_features(tmp_path, split="train")) == COUNT
    with refused(tmp_path / "val", "train"):
        open_features(tmp_path, split="val")
    with refused(tmp_path / "train", "split", "val"):
        open_features(tmp_path / "train", split="val")


@pytest.mark.parametrize(
    ("expected", "facts"),
    [
        ({"layer_a": "features.24"}, ("layer_a", "features.30", "features.24")),
        ({"checkpoint_b": "cc33"}, ("checkpoint_b", "bb22", "cc33")),
        ({"shape_b": (2, 5, 6)}, ("shape_b", [2, 5, 5], [2, 5, 6])),
        ({"weather": "fine"}, ("weather", "null", "fine")),
    ],
)
def test_a_value_that_disagrees_is_named(tmp_path, expected, facts):
    complete(tmp_path)
    open_features(tmp_path, expected=RECORD | {"shape_a": SHAPE_A, "count": COUNT})
    with refused(tmp_path, *facts):
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
    with refused(tmp_path, ".pkl"):
        open_features(tmp_path)
