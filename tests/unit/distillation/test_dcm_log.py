"""The authors' log.txt."""

import json

import pytest

from distillation import dcm_log
from tests.mistakes import refused

METRICS = {
    "Loss": 9.0,
    "net1_top1_prec": 1.0,
    "net1_ep1_top1_prec": 2.0,
    "net1_ep2_top1_prec": 3.0,
    "net2_top1_prec": 4.0,
    "net2_ep1_top1_prec": 99.0,
    "val_Loss": 8.0,
    "val_net1_top1_prec": 5.0,
    "val_net1_ep1_top1_prec": 6.0,
    "val_net1_ep2_top1_prec": 7.0,
    "val_net2_top1_prec": 8.0,
}


def test_names_are_the_authors():
    assert dcm_log.stats({"lr": 0.1, "save": "logs"}, METRICS, epoch=1, num_classes=100) == {
        "lr": 0.1,
        "save": "logs",
        "epoch": 1,
        "num_classes": 100,
        "train_loss": 9.0,
        "train_acc": 1.0,
        "train_acc_ep1": 2.0,
        "train_acc_ep2": 3.0,
        "train_acc_another": 4.0,
        "test_loss": 8.0,
        "test_acc": 5.0,
        "test_acc_ep1": 6.0,
        "test_acc_ep2": 7.0,
        "test_acc_another": 8.0,
    }


def test_networks_without_heads_have_no_accuracies_of_them():
    metrics = {name: value for name, value in METRICS.items() if "ep" not in name}
    assert not [
        name for name in dcm_log.stats({}, metrics, epoch=1) if "ep1" in name or "ep2" in name
    ]


def test_every_epoch_stands_there_once(tmp_path):
    path = tmp_path / "run" / "log.txt"
    for epoch, loss in ((1, 10), (2, 20), (3, 30), (2, 21)):
        dcm_log.write(path, {"epoch": epoch, "train_loss": loss})
    lines = path.read_text().splitlines()
    assert all(line.startswith("json_stats: {") for line in lines)
    read = [json.loads(line.removeprefix("json_stats: ")) for line in lines]
    assert [(line["epoch"], line["train_loss"]) for line in read] == [(1, 10), (2, 21)]


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "log.txt"
    dcm_log.write(path, {"epoch": 1})
    with pytest.raises(TypeError):
        dcm_log.write(path, {"epoch": 2, "broken": object()})
    assert path.read_text() == 'json_stats: {"epoch": 1}\n'
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.txt"]


def test_a_damaged_line_is_named_and_a_torn_one_left_out(tmp_path):
    path = tmp_path / "log.txt"
    dcm_log.write(path, {"epoch": 1, "train_loss": 10})
    whole = path.read_text()
    path.write_text(whole + whole[:20])
    dcm_log.write(path, {"epoch": 2, "train_loss": 20})
    assert [line["epoch"] for line in dcm_log.read(path)] == [1, 2]
    path.write_text("epoch 1: 3\n" + whole)
    with refused(path, "line 1"):
        dcm_log.read(path)
    with refused(path, "line 1"):
        dcm_log.write(path, {"epoch": 2, "train_loss": 20})
