import pytest
import torch

from models.pair import read_stored
from tests.unit.stored_features import SHAPE_A, complete
from utils.features.cache import open_features
from utils.features.source import Source, costs, hold_out


def test_the_reverse_exchanges_everything(tmp_path):
    features = open_features(complete(tmp_path))
    source = Source(
        features, read_stored, (features.shape_a, features.shape_b), features.provenance
    )
    back = source.reversed()
    batch = features.__getitems__([0, 2])
    assert all(torch.equal(*pair) for pair in zip(back.read(*batch), reversed(source.read(*batch))))
    assert back.shapes == (features.shape_b, features.shape_a) != source.shapes
    assert back.provenance == features.provenance.reversed()
    assert back.data is features and back.folder == source.folder == features.folder
    assert tuple(SHAPE_A) == back.shapes[1]


@pytest.mark.parametrize(
    ("count", "share", "held"),
    [(10, 0.25, [3, 7]), (10, 0.5, [1, 3, 5, 7, 9]), (6, 0.9, [1, 3, 5]), (10, 0.1, [9])],
)
def test_every_so_many_th_image_is_held_out(count, share, held):
    fitted, measured = hold_out(count, share)
    assert measured.tolist() == held
    assert sorted(fitted.tolist() + held) == [*range(count)]
    assert fitted.tolist() == sorted(fitted.tolist())


def test_nothing_is_held_out_unless_asked_for():
    fitted, measured = hold_out(10, 0)
    assert fitted.tolist() == [*range(10)] and measured.tolist() == []


def test_the_two_numbers_to_choose_by():
    shapes = ((64, 8, 8), (100,))
    said = "these features take 0.08 MB on disk as float32, or {} to compute in every epoch"
    assert costs(shapes, 5, 3 * 10**9) == said.format("15.0 GFLOP")
    assert costs(shapes, 5, None) == said.format("an unknown number of FLOPs")
