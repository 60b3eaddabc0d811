import os

import numpy as np
import pytest
import torch

from tests.mistakes import refused
from tests.unit.stored_features import ARRAYS, COUNT, PATHS, complete, fill, samples, writer
from utils.features.cache import open_features


def test_the_files_are_plain_numpy(tmp_path):
    folder = complete(tmp_path)
    stored = np.load(folder / "features_a.npy", mmap_mode="r")
    assert np.array_equal(stored, samples()[0].numpy())
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{name}.npy" for name in ARRAYS] + ["index.json", "paths.json"]
    )


def test_several_labels_an_image_and_flat_features(tmp_path):
    target = writer(
        tmp_path, shape_a=(6,), shape_b=(2,), top_k=(), target_shape=(20,), paths=PATHS[:3]
    )
    features_a, features_b, labels = torch.randn(3, 6), torch.randn(3, 2), torch.rand(3, 20)
    no_hits = torch.empty(3, 0, dtype=torch.bool)
    target.write("a", [2, 0, 1], features_a, labels, no_hits)
    target.write("b", [2, 0, 1], features_b, labels, no_hits)
    target.finish()
    batch = open_features(tmp_path).__getitems__([2, 0, 1])
    assert all(torch.equal(got, put) for got, put in zip(batch, (features_a, features_b, labels)))


def test_processes_fill_disjoint_rows(tmp_path):
    first = writer(tmp_path)
    second = writer(tmp_path, create=False)
    fill(second, list(range(1, COUNT, 2)))
    fill(first, list(range(0, COUNT, 2)))
    second.close()
    first.finish()
    assert torch.equal(open_features(tmp_path).__getitems__(range(COUNT))[0], samples()[0])
    with refused(tmp_path):
        writer(tmp_path, torch.float16, create=False)


def test_all_rows_without_finish_are_not_complete(tmp_path):
    target = writer(tmp_path)
    fill(target, list(range(COUNT)))
    target.close()
    with refused("11"):
        open_features(tmp_path)


def test_the_writer_refuses_what_it_cannot_keep(tmp_path):
    with refused("float64", "float32"):
        writer(tmp_path, torch.float64)
    with refused("0", "float32"):
        writer(tmp_path, paths=[])
    with refused("44000.00 GB", "float16"):
        writer(tmp_path, shape_a=(10**6, 10**6))
    target = writer(tmp_path / "small", torch.float16)
    features_a, _, *others = (value[:2] for value in samples()[:4])
    with refused("net A", "float16", "float32"):
        target.write("a", [0, 1], features_a * 1e6, *others)
    with refused("features_a", (2, 1, 4, 4), (2, 3, 4, 4), kind=ValueError):
        target.write("a", [0, 1], features_a[:, :1], *others)
    with refused("10", "11", kind=ValueError):
        target.write("a", [10, 11], features_a, *others)
    with refused("0", "11"):
        open_features(tmp_path / "small")


def test_the_writer_leaves_other_folders_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with refused(tmp_path, "thesis.tex"):
        writer(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_batch_that_is_refused_counts_no_row(tmp_path):
    target = writer(tmp_path)
    features_a, features_b, targets, hits_a, hits_b = samples()
    target.write("a", range(COUNT), features_a, targets, hits_a)
    with refused("hits_b", (11, 1), (11, 2), kind=ValueError):
        target.write("b", range(COUNT), features_b, targets, hits_b[:, :1])
    with refused("0", "11"):
        target.finish()


def test_rows_may_come_in_any_order_and_again(tmp_path):
    target = writer(tmp_path)
    values = samples()
    target.write("a", range(COUNT), values[0].flip(0), values[2], values[3])
    for rows in ([3, 4, 5, 0, 10, 9], [8, 1, 2, 7, 6]):
        fill(target, rows)
    target.finish()
    assert torch.equal(open_features(tmp_path).__getitems__(range(COUNT))[0], values[0])


def test_a_row_counts_once_both_nets_are_there(tmp_path):
    target = writer(tmp_path)
    features_a, features_b, targets, hits_a, hits_b = samples()
    target.write("b", range(COUNT), features_b, targets, hits_b)
    target.write("a", range(COUNT - 1), features_a[:-1], targets[:-1], hits_a[:-1])
    with refused("10", "11"):
        target.finish()


def test_two_runs_do_not_fill_one_cache(tmp_path):
    with writer(tmp_path) as target:
        fill(target, [0, 1])
        with refused(tmp_path, os.getpid()):
            writer(tmp_path)
        fill(target, list(range(2, COUNT)))
        target.finish()
    assert torch.equal(open_features(tmp_path).__getitems__(range(COUNT))[0], samples()[0])
    with writer(tmp_path):
        pass


def test_a_writer_that_fails_lets_the_folder_go(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with refused(tmp_path, "thesis.tex"):
        writer(tmp_path)
    (tmp_path / "thesis.tex").unlink()
    with pytest.raises(ZeroDivisionError), writer(tmp_path):
        raise ZeroDivisionError
    with writer(tmp_path):
        pass
