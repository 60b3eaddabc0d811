import json
import math
import os
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.mistakes import check_line, refused
from utils import remarks, runs
from utils.runs import RunLog, board_tag, read_metrics


def test_names_leave_out_what_says_nothing():
    assert runs.join("CUB200", "", None, "vgg16_bn", 0) == "CUB200_vgg16_bn_0"
    assert runs.pair("alexnet", "alexnet") == "alexnet"
    assert runs.pair("alexnet", "resnet34") == "alexnet-resnet34"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (
            runs.classifier_path("out", "CUB200", "vgg16_bn", "lr-2_sd0"),
            "out/model_checkpoints/checkpoint_CUB200_vgg16_bn_lr-2_sd0.pth.tar",
        ),
        (
            runs.classifier_path("out", "CUB200", "vgg16_bn", "", best=True),
            "out/model_checkpoints/model_best_CUB200_vgg16_bn.pth.tar",
        ),
        (
            runs.features_folder("out", "CUB200", "50par_A", "vgg16_bn", "30", "s", "val"),
            "out/convOuts/CUB200_50par_A_vgg16_bn/CUB200_L30_s/val",
        ),
        (
            runs.features_folder(".", "CUB200", "", "alexnet-resnet34", "10-3", "", "train"),
            "convOuts/CUB200_alexnet-resnet34/CUB200_L10-3/train",
        ),
        (
            runs.trans_net_path("out", "CUB200", "vgg16_bn", "30", "50par_A", "a0.1_lr-4"),
            "out/model_checkpoints/CUB200_vgg16_bn/checkpoint_L30_50par_A_a0.1_lr-4.pth.tar",
        ),
        (
            runs.refined_path("out", "CUB200", "", "vgg16_bn", "100", "lg2", "30"),
            "out/check/CUB200_vgg16_bn/checkpoint_100_lg2_L30.pth.tar",
        ),
        (runs.log_folder("out", "CUB200_vgg16_bn", "L30"), "out/logs/CUB200_vgg16_bn/L30"),
    ],
)
def test_documented_paths(path, expected):
    assert path == Path(expected)


def write(folder, epochs, values, *, start_epoch=0, **options):
    with RunLog(folder, epochs, start_epoch=start_epoch, **options) as log:
        for epoch, value in enumerate(values, start_epoch):
            log.write(epoch, {"Loss": value, "p1": 0.5})
    return log


def board(folder):
    """What TensorBoard shows: name → [(epoch, value)]."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_every_epoch_is_one_line_everywhere(tmp_path, capsys):
    log = write(tmp_path / "logs" / "run", 2, [1.5, 0.25])
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert log.path.name == "metrics.jsonl"
    assert [{**line, "seconds": 0} for line in lines] == [
        {"epoch": 1, "Loss": 1.5, "p1": 0.5, "seconds": 0},
        {"epoch": 2, "Loss": 0.25, "p1": 0.5, "seconds": 0},
    ]
    assert all(line["seconds"] >= 0 for line in lines)
    assert read_metrics(log.path) == lines
    shown = board(log.path.parent)
    assert set(shown) == {"train/Loss", "train/p1", "train/seconds"}
    assert shown["train/Loss"] == [(1, 1.5), (2, 0.25)]
    output = capsys.readouterr().out.splitlines()
    assert len(output) == 2
    assert output[0].startswith("epoch 1/2 · Loss 1.5 · p1 0.5 · seconds ")


def test_a_resumed_run_forgets_what_it_will_write_again(tmp_path):
    write(tmp_path, 4, [1.0, 2.0, 3.0])
    log = write(tmp_path, 4, [20.0, 30.0, 40.0], start_epoch=1)
    assert [(line["epoch"], line["Loss"]) for line in read_metrics(log.path)] == [
        (1, 1),
        (2, 20),
        (3, 30),
        (4, 40),
    ]
    assert board(tmp_path)["train/Loss"] == [(1, 1), (2, 20), (3, 30), (4, 40)]


def test_a_new_run_forgets_all(tmp_path):
    write(tmp_path, 3, [1.0, 2.0, 3.0])
    log = write(tmp_path, 1, [9.0])
    assert [line["Loss"] for line in read_metrics(log.path)] == [9.0]


def test_a_torn_last_line_is_left_out(tmp_path):
    log = write(tmp_path, 3, [1.0, 2.0])
    with log.path.open("a") as file:
        file.write('{"epoch": 2, "Lo')
    assert [line["epoch"] for line in read_metrics(log.path)] == [1, 2]
    write(tmp_path, 3, [3.0], start_epoch=2)
    assert [line["Loss"] for line in read_metrics(log.path)] == [1.0, 2.0, 3.0]


def test_a_log_of_an_earlier_version_is_counted_from_1_too(tmp_path):
    old = [{"epoch": epoch, "Loss": float(epoch)} for epoch in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in old))
    log = write(tmp_path, 3, [7.0], start_epoch=2)
    lines = [(line["epoch"], line["Loss"]) for line in read_metrics(log.path)]
    assert lines == [(1, 0.0), (2, 1.0), (3, 7.0)]


@pytest.mark.parametrize(
    ("name", "tag"),
    [("Loss", "train/Loss"), ("val_Loss", "val/Loss"), ("test_top1_prec", "test/top1_prec")],
)
def test_the_board_shows_held_out_images_apart(name, tag):
    assert board_tag(name) == tag


def test_what_is_no_number_is_null(tmp_path):
    log = write(tmp_path, 2, [math.nan, math.inf])
    assert [line["Loss"] for line in read_metrics(log.path)] == [None, None]
    assert "NaN" not in log.path.read_text()


def test_a_picture_of_an_epoch_is_on_the_board(tmp_path):
    for name, active in (("main", True), ("other", False)):
        with RunLog(tmp_path / name, 3, active=active) as log:
            log.figure(2, "components", Figure(figsize=(1, 1)))
    events = EventAccumulator(str(tmp_path / "main"))
    events.Reload()
    assert [image.step for image in events.Images("components")] == [3]
    assert not (tmp_path / "other").exists()


def test_other_processes_write_nothing(tmp_path, capsys):
    write(tmp_path / "run", 2, [1.0, 2.0], active=False)
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == []


def test_nothing_is_written_before_the_run_begins(tmp_path):
    write(tmp_path, 3, [1.0, 2.0])
    RunLog(tmp_path, 3)
    assert [line["Loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


def test_two_runs_do_not_write_the_same_log(tmp_path):
    with RunLog(tmp_path, 3) as log:
        log.write(0, {"Loss": 1.0})
        with (
            refused(os.getpid(), tmp_path),
            RunLog(tmp_path, 3),
        ):
            pass
        with RunLog(tmp_path, 3, active=False):  # another process of the same run
            pass
        log.write(1, {"Loss": 2.0})
    assert [line["Loss"] for line in read_metrics(log.path)] == [1.0, 2.0]


def test_a_run_that_fails_keeps_its_lines_and_lets_the_folder_go(tmp_path):
    with pytest.raises(ValueError, match="boom"), RunLog(tmp_path, 3) as log:
        log.write(0, {"Loss": 1.0})
        raise ValueError("boom")
    assert board(tmp_path)["train/Loss"] == [(1, 1)]
    write(tmp_path, 3, [5.0], start_epoch=1)
    assert [line["Loss"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1.0, 5.0]
    assert not (tmp_path / ".lock").exists()


def test_another_run_is_named_before_anything_is_done_for_this_one(tmp_path):
    with (
        RunLog(tmp_path, 3),
        refused(tmp_path, "--save"),
    ):
        RunLog(tmp_path, 3, elsewhere="--save")


@pytest.mark.parametrize("again", ["--resume auto", "the same command"])
@pytest.mark.parametrize("saves", [0, 3])
def test_an_interrupted_run_says_what_is_saved_and_how_it_goes_on(tmp_path, capsys, saves, again):
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, 9, again=again) as log:
        if saves:
            log.saved(Path("net.pth.tar"), saves)
        raise KeyboardInterrupt
    (line,) = capsys.readouterr().out.splitlines()
    check_line(line, *(("net.pth.tar", 3, 9, again) if saves else ()))
    assert ("net.pth.tar" in line) == bool(saves)


def test_a_run_is_saved_by_time_too(tmp_path, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(runs.time, "monotonic", lambda: now[0])
    log = RunLog(tmp_path, 9)
    now[0] += runs.SECONDS_BETWEEN_SAVES
    assert not log.overdue
    now[0] += 1
    assert log.overdue
    log.saved(Path("net.pth.tar"), 1)
    assert not log.overdue


WHOLE = '{"epoch": 1, "Loss": 3.0}\n{"epoch": 2, "Loss": 2.0}\n'


@pytest.mark.parametrize(
    ("text", "line", "name"),
    [
        ('{"epoch": 1, "Lo\n' + WHOLE, 1, ""),
        (WHOLE + "[1]\n", 3, "epoch"),
        (WHOLE + '{"Loss": 1.0}\n', 3, "epoch"),
        (WHOLE + '{"epoch": "3"}\n', 3, "epoch"),
        (WHOLE + '{"epoch": true}\n', 3, "epoch"),
        (WHOLE + '{"epoch": -1}\n', 3, "epoch"),
        (WHOLE + "[" * 100_000 + "\n", 3, ""),
        (WHOLE + '{"epoch": 3, "Loss": null}\n', 3, "Loss"),
    ],
)
def test_a_damaged_line_of_a_log_is_named(tmp_path, text, line, name):
    (tmp_path / "metrics.jsonl").write_text(text)
    with refused(tmp_path / "metrics.jsonl", f"line {line}", name):
        read_metrics(tmp_path / "metrics.jsonl", ["Loss"])


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\xfe")
    with refused(tmp_path / "metrics.jsonl"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_torn_last_line_is_left_out_and_said(tmp_path, capsys):
    remarks.forget()
    for length in range(len(WHOLE) // 2 + 1, len(WHOLE) - 2):
        (tmp_path / "metrics.jsonl").write_text(WHOLE[:length])
        assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert str(tmp_path / "metrics.jsonl") in capsys.readouterr().out
    # A line that is whole but for its end is whole.
    (tmp_path / "metrics.jsonl").write_text(WHOLE[:-1])
    assert [line["epoch"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


@pytest.mark.parametrize(
    ("file", "name"),
    [
        (
            "checkpoint_CIFAR10_resnet20_sd0_pruned0.8-0.8.pth.tar",
            "CIFAR10_resnet20_sd0_pruned0.8-0.8",
        ),
        ("seed0.pt", "seed0"),
        ("resnet20-12fca82f.th", "resnet20-12fca82f"),
        ("model.safetensors", "model"),
        ("net_1.5", "net_1.5"),
    ],
)
def test_a_net_is_named_by_its_file_with_the_dots_of_numbers(file, name):
    assert runs.net_name(Path("folder", file)) == name
