import dataclasses

import pytest
import torch

from tests.unit.stored_features import complete, old_folder
from utils.features.cache import open_features
from utils.features.nets import accuracies, doubts


class Stored:
    """Features of 200 images of four classes."""

    def __init__(self, provenance, right_a=180, right_b=180, top_k=(3, 1)):
        self.provenance, self.facts = provenance, {"top_k": list(top_k)}
        self.targets = torch.arange(200) % 4
        self.hits_a, self.hits_b = (
            torch.stack([torch.ones(200, dtype=torch.bool), torch.arange(200) < right], 1)
            for right in (right_a, right_b)
        )

    def __len__(self):
        return 200


@pytest.fixture
def provenance(tmp_path):
    return open_features(complete(tmp_path / "train")).provenance


def test_accuracies_are_those_of_the_hits(provenance):
    first, second = accuracies(Stored(provenance, right_b=50), "val")
    assert first == "net A: top-3 100.00 %, top-1 90.00 % of 200 val images"
    assert second == "net B: top-3 100.00 %, top-1 25.00 % of 200 val images"


def test_two_trained_nets_raise_no_doubt(provenance):
    assert doubts(Stored(provenance)) == []


@pytest.mark.parametrize(("right", "doubtful"), [(40, True), (55, True), (75, False)])
def test_an_accuracy_at_chance_is_called_out(provenance, right, doubtful):
    found = doubts(Stored(provenance, right_b=right))
    assert len(found) == doubtful
    if doubtful:
        assert f"net B is right for {right / 2:.1f} %" in found[0] and "25.0 %" in found[0] and "untrained" in found[0]


def test_one_file_for_both_nets_is_called_out(provenance):
    same = dataclasses.replace(provenance, b=provenance.a)
    assert "one layer: they are equal" in doubts(Stored(same))[0]
    other = dataclasses.replace(same, b=dataclasses.replace(same.a, layer="deeper"))
    assert "nets A and B are one file" in doubts(Stored(other))[0] and "two layers" in doubts(Stored(other))[0]


def test_what_is_not_recorded_is_not_doubted(provenance, tmp_path):
    assert doubts(Stored(provenance, 0, 0, top_k=(3, 5))) == []
    assert doubts(open_features(old_folder(tmp_path / "old"))) == []
    one_class, several = Stored(provenance, 200, 200), Stored(provenance, 0, 0)
    one_class.targets, several.targets = torch.zeros(200), torch.zeros(200, 3)
    assert doubts(one_class) == [] and doubts(several) == []
