import dataclasses

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.mistakes import check_line
from tests.unit.stored_features import complete, old_folder
from utils.features.cache import open_features
from utils.features.nets import Answers, accuracies, ask, at_chance, differs_from_record, doubts
from utils.normalisation import NORMALISATIONS
from utils.pixels import FromPixels


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
        check_line(found[0], "net B", f"{right / 2:.1f} %", "25.0 %")


@pytest.mark.parametrize(
    ("right", "asked", "chance", "expected"),
    [
        (99, 1000, 0.1, True),  # a net of ten classes after pruning
        (110, 1000, 0.1, True),  # P(X >= 110) = 0.16
        (130, 1000, 0.1, False),  # 0.0013
        (0, 20, 0.5, True),
        (20, 20, 0.5, False),
        (3, 256, 0.001, False),  # of a thousand classes, 0.002
        (1, 256, 0.001, True),  # 0.23
        (500, 1000, 1.0, False),  # one class says nothing
    ],
)
def test_chance_is_an_exact_binomial_test_against_the_most_frequent_class(
    right, asked, chance, expected
):
    most = round(1000 * chance)
    targets = torch.cat([torch.zeros(most, dtype=torch.int64), torch.arange(1, 1001 - most)])
    assert bool(at_chance("net A", Answers(right, asked), targets)) == expected
    if chance < 1:
        assert expected == (binomtest(right, asked, chance, alternative="greater").pvalue > 0.01)


@pytest.mark.parametrize(
    ("right", "asked", "percent", "expected"),
    [
        (2823, 3000, 94.1, False),
        (2826, 3000, 94.1, False),  # three images
        (2830, 3000, 94.1, True),
        (846, 3000, 96.6, True),  # another net's normalisation
        (90, 100, 94.1, True),
        (235, 256, 94.1, False),  # of 3,000: within four deviations of the share
        (200, 256, 94.1, True),
        (1, 3000, None, False),
    ],
)
def test_what_is_measured_is_held_against_what_a_checkpoint_says(right, asked, percent, expected):
    images = 3000 if asked == 256 else asked
    assert differs_from_record(Answers(right, asked), percent, images) == expected


def test_a_difference_from_the_record_is_said_with_both_numbers(provenance):
    recorded = dataclasses.replace(
        provenance, b=dataclasses.replace(provenance.b, top1_percent=96.6)
    )
    (sentence,) = doubts(Stored(recorded, right_b=100))
    check_line(sentence, "net B", "50.0 %", "96.6 %")
    assert (
        doubts(
            Stored(
                dataclasses.replace(
                    provenance, b=dataclasses.replace(provenance.b, top1_percent=90.0)
                )
            )
        )
        == []
    )
    (back,) = doubts(Stored(recorded.reversed(), right_a=100))
    check_line(back, "net A", "50.0 %")


def test_nets_are_asked_from_pixels_to_logits(cpu):
    pixels, targets = torch.randint(0, 256, (50, 3, 4, 4), dtype=torch.uint8), torch.arange(50) % 3
    nets = [
        FromPixels(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), NORMALISATIONS[name])
        for name in ("half", "dcm")
    ]
    batches = TensorDataset(pixels, targets, torch.arange(50))
    answers = ask(nets, DataLoader(batches, 7), cpu)
    expected = [Answers(int((net(pixels).argmax(1) == targets).sum()), 50) for net in nets]
    assert list(answers.items()) == list(zip("AB", expected))


def test_one_file_for_both_nets_is_called_out(provenance):
    same = dataclasses.replace(provenance, b=provenance.a)
    assert "one layer: they are equal" in doubts(Stored(same))[0]
    other = dataclasses.replace(same, b=dataclasses.replace(same.a, layer="deeper"))
    assert (
        "nets A and B are one file" in doubts(Stored(other))[0]
        and "two layers" in doubts(Stored(other))[0]
    )


def test_what_is_not_recorded_is_not_doubted(provenance, tmp_path):
    assert doubts(Stored(provenance, 0, 0, top_k=(3, 5))) == []
    assert doubts(open_features(old_folder(tmp_path / "old"))) == []
    one_class, several = Stored(provenance, 200, 200), Stored(provenance, 0, 0)
    one_class.targets, several.targets = torch.zeros(200), torch.zeros(200, 3)
    assert doubts(one_class) == [] and doubts(several) == []
