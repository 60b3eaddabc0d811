import pytest
import torch

from utils.training.metrics import accuracies_percent, main_accuracy, topk_hits

# Best classes first: 2 1 0 3, 0 3 1 2, 3 2 1 0.
LOGITS = torch.tensor([[1.0, 2.0, 3.0, 0.0], [9.0, 1.0, 0.0, 5.0], [-4.0, -3.0, -2.0, -1.0]])


def test_hits_by_hand():
    hits = topk_hits(LOGITS, torch.tensor([1, 0, 0]), (1, 2, 3))
    assert hits.dtype == torch.bool
    assert hits.tolist() == [[False, True, True], [True, True, True], [False, False, False]]


def test_k_beyond_the_classes_always_hits():
    assert topk_hits(LOGITS, torch.tensor([3, 2, 0]), (4, 5, 100)).all()
    assert topk_hits(LOGITS, torch.tensor([3, 2, 0]), (1, 5)).tolist() == [[False, True]] * 3


def test_any_label_of_several_is_a_hit():
    targets = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert topk_hits(LOGITS, targets, (1, 2, 4)).tolist() == [
        [False, True, True],
        [False, False, True],
        [False] * 3,
    ]


def test_accuracies_in_percent():
    logits = torch.eye(8)[[0, 1, 2, 3]] + torch.linspace(0, -0.1, 8)  # then classes 0, 1, 2, …
    found = accuracies_percent(logits, torch.tensor([0, 1, 3, 7]))
    expected = {"top1_prec": [100, 100, 0, 0], "top5_prec": [100, 100, 100, 0]}
    assert {name: value.tolist() for name, value in found.items()} == expected


def test_several_labels_have_an_element_accuracy():
    targets = torch.tensor([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]])
    found = accuracies_percent(LOGITS, targets)  # logit > 0: 1110, 1101, 0000
    assert list(found) == ["Acc@0"]
    assert found["Acc@0"].tolist() == pytest.approx([50, 75, 75])


def test_the_accuracy_that_decides():
    assert main_accuracy({"top1_prec": 3.0, "top5_prec": 4.0, "val_top1_prec": 5.0}) == 3.0
    assert main_accuracy({"top1_prec": 3.0, "val_top1_prec": 5.0}, "val_") == 5.0
    assert main_accuracy({"val_Acc@0": 90.0}, "val_") == 90.0
