import pytest
import torch
from torch import nn

from consistency.answers import ITSELF, UNTRUE, Answers, knowledge_record
from consistency.class_gaps import measure_distinctions
from consistency.knowledge import measure_knowledge
from tests.mistakes import refused

IMAGES = 90


class Tail(nn.Module):
    """Means over positions, and a linear layer."""

    def __init__(self, penultimate=True):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.penultimate = nn.Linear(6, 3), penultimate

    def forward(self, maps):
        pooled = 4 * maps.mean((2, 3))
        return (pooled if self.penultimate else None), self.fc(pooled)


def filled(tail, batch=20, tail_a=None, labels=None, images=range(IMAGES)):
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(IMAGES, 6, 3, 3, generator=generator)
    sent = target + 0.5 * torch.randn(IMAGES, 6, 3, 3, generator=generator)
    labels = torch.arange(IMAGES) % 3 if labels is None else labels
    answers = Answers(tail, tail_a)
    for rows in torch.tensor(images).split(batch):
        senders = {"g": sent[rows], "x*": target[rows]}
        answers.update(sent[rows], target[rows], senders, labels[rows], rows)
    return answers, target, sent


def test_the_table_has_b_itself_each_sender_and_untrue_pairs():
    tail = Tail()
    answers, target, sent = filled(tail, tail_a=tail)
    rows = answers.table(permutations=99, resamples=20)
    assert list(rows) == [ITSELF, "g", "x*", UNTRUE]
    for name in (ITSELF, "x*"):
        assert rows[name]["share"] == pytest.approx(1, abs=1e-6)
        assert rows[name]["penultimate_r2"] == pytest.approx(1, abs=1e-6)
    (v, z), (sent_v, sent_z) = (tail(maps) for maps in (target, sent))
    expected = measure_knowledge(z, sent_z, penultimate=(v, sent_v), permutations=0, resamples=0)
    for name in ("K", "K_c", "rho", "penultimate_r2", "agreement"):
        assert rows["g"][name] == pytest.approx(expected[name], abs=1e-5)
    assert rows[UNTRUE]["K"] < rows["g"]["K"]
    assert rows["g"]["decision_recovery"] == 0  # A's answers are those of g
    assert rows["g"].lost_by_class.keys() == {0, 1, 2}


def test_batches_processes_and_the_order_of_images_do_not_matter():
    whole, *_ = filled(Tail())
    first, *_ = filled(Tail(), images=range(1, IMAGES, 2))
    second, *_ = filled(Tail(), batch=7, images=range(0, IMAGES, 2))
    first.cpu().merge(second.cpu())
    one, other = (part.table(permutations=50, resamples=10) for part in (whole, first))
    for name in one:
        assert one[name]["K"] == pytest.approx(other[name]["K"], abs=1e-6)
        assert one[name].lost == pytest.approx(other[name].lost, abs=1e-5)


def test_multi_label_images_have_neither_classes_nor_untrue_pairs():
    labels = (torch.rand(IMAGES, 3) > 0.5).float()
    rows = filled(Tail(), labels=labels)[0].table(permutations=0, resamples=0)
    assert list(rows) == [ITSELF, "g", "x*"]
    assert "rho" not in rows["g"].numbers and not rows["g"].lost_by_class


def test_classes_of_one_image_have_no_untrue_pairs():
    rows = filled(Tail(), labels=torch.arange(IMAGES))[0].table(permutations=0, resamples=0)
    assert UNTRUE not in rows


def test_distinctions_are_of_the_first_sender_in_the_order_of_the_images():
    _, target, sent = filled(Tail())
    (_, z), (_, sent_z) = (Tail()(maps) for maps in (target, sent))
    kinds = z.argmax(1)  # B tells its own answers apart
    first, _, _ = filled(Tail(), labels=kinds, images=range(1, IMAGES, 2))
    second, _, _ = filled(Tail(), labels=kinds, batch=7, images=range(0, IMAGES, 2))
    first.cpu().merge(second.cpu())
    found, expected = (
        first.distinctions(resamples=0),
        measure_distinctions(z, sent_z, kinds, resamples=0),
    )
    assert [(of.first, of.second) for of in found.pairs] == [
        (of.first, of.second) for of in expected.pairs
    ]
    assert found.margin == pytest.approx(expected.margin, abs=1e-5)


def test_images_of_several_labels_have_no_distinctions():
    labels = (torch.rand(IMAGES, 3) > 0.5).float()
    with refused((IMAGES, 3)):
        filled(Tail(), labels=labels)[0].distinctions(resamples=0)


def test_a_tail_without_a_penultimate_feature_has_no_such_number():
    rows = filled(Tail(penultimate=False))[0].table(permutations=0, resamples=0)
    assert "penultimate_r2" not in rows["g"].numbers


def test_the_record_is_plain_and_says_each_note_once():
    rows = filled(Tail())[0].table(permutations=0, resamples=0)
    record = knowledge_record(rows, ["one", "one"])
    assert [row["sender"] for row in record["rows"]] == list(rows)
    assert record["notes"] == ["one"]
    assert len(record["rows"][1]["lost_bits"]) == IMAGES
