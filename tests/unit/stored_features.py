"""Stored features for the tests of what writes and reads them:
small caches, and a folder of the authors' release.
"""

import os

import numpy as np
import torch

from utils.features.writer import FeatureWriter
from utils.provenance import Provenance

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
# 0xff is no UTF-8
PATHS = [os.fsdecode(f"cow/Kuh_ä{i}_".encode() + b"\xff.jpg") for i in range(COUNT)]
ARRAYS = ["features_a", "features_b", "targets", "hits_a", "hits_b", "written"]


def samples(count=COUNT):
    """Six tensors, one row an image, all rows different."""
    generator = torch.Generator().manual_seed(0)
    features_a = torch.randn(count, *SHAPE_A, generator=generator)
    features_b = torch.randn(count, *SHAPE_B, generator=generator)
    hits_a, hits_b = torch.rand(2, count, len(TOP_K), generator=generator) > 0.5
    return features_a, features_b, torch.arange(count) * 7 % 5, hits_a, hits_b


def writer(folder, dtype=torch.float32, **changes):
    options = {
        "provenance": Provenance.from_record(RECORD),
        "paths": PATHS,
        "shape_a": SHAPE_A,
        "shape_b": SHAPE_B,
        "top_k": TOP_K,
    }
    return FeatureWriter(folder, dtype=dtype, **{**options, **changes})


def fill(target, rows):
    features_a, features_b, targets, hits_a, hits_b = (value[rows] for value in samples())
    target.write("a", rows, features_a, targets, hits_a)
    target.write("b", rows, features_b, targets, hits_b)


def complete(folder, dtype=torch.float32, split="train"):
    provenance = Provenance.from_record(RECORD | {"split": split})
    target = writer(folder, dtype, provenance=provenance)
    for start in range(0, COUNT, 4):  # 4, 4, 3: a ragged last batch
        fill(target, list(range(start, min(start + 4, COUNT))))
    target.finish()
    return folder


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
        # numpy's name in those days
        path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    return folder
