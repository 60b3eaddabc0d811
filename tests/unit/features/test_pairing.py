import numpy as np
import pytest
import torch

from models.split import as_maps
from tests.unit.stored_features import COUNT, SHAPE_A, complete, samples
from utils.data.storage import TensorStore
from utils.features.cache import open_features
from utils.features.pairing import Pairing, Side, classes_of

ROWS = [3, 0, 10]


@pytest.fixture
def features(tmp_path):
    return open_features(complete(tmp_path / "train"))


def test_pairs_are_those_of_the_images_that_are_named(features):
    a, b, labels, *_ = samples()
    order = torch.arange(COUNT).roll(1)
    for pairing, target, of in (
        (Pairing(features), b, torch.tensor(ROWS)),
        (Pairing(features, order), b, order[ROWS]),
        (Pairing(features, itself=True), a, torch.tensor(ROWS)),
    ):
        found = pairing.__getitems__(ROWS)
        for part, expected in zip(found, (a[ROWS], target[of], labels[of], of)):
            assert torch.equal(part, expected)
        assert len(pairing) == COUNT


def test_another_target_belongs_to_the_same_image(features):
    other = torch.arange(float(COUNT))[:, None]
    x, target, labels, rows = Pairing(features, target=TensorStore(other)).__getitems__(ROWS)
    assert target.flatten().tolist() == rows.tolist() == ROWS
    assert torch.equal(x, samples()[0][ROWS]) and torch.equal(labels, samples()[2][ROWS])


def test_a_side_is_an_array_of_maps(features):
    a, b, *_ = samples()
    sides = [Side(features, 0, lambda x: as_maps(x)[..., :2]), Side(features, 1, as_maps)]
    assert sides[0].shape == (COUNT, *SHAPE_A[:2], 2) and len(sides[1]) == COUNT
    assert torch.equal(sides[0][2:5], a[2:5, ..., :2])
    assert torch.equal(sides[1][np.array(ROWS)], b[ROWS])


def test_several_labels_an_image_are_one_class(features):
    assert torch.equal(classes_of(features), samples()[2])
    features.targets = torch.rand(COUNT, 3)
    assert classes_of(features).tolist() == [0] * COUNT
