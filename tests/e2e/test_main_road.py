"""Train two nets, store their features, fit the Trans-Net: each step by its own command line."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import Calibrate
import ConvOutput
import Training
import Training_TransNet
import Variance
from tests.e2e.road import FIT, ROOT, board, data, lines_of, run
from utils.features.cache import open_features
from utils.runs import board_tag

pytestmark = pytest.mark.e2e
STEPS = {step.__name__: step for step in (Training, ConvOutput, Training_TransNet, Variance)}


def test_training_writes_checkpoints_and_logs(road):
    expected = []
    for name in ("folder_resnet18_sd0", "folder_resnet18_sd5"):
        expected += [
            f"model_checkpoints/{kind}_{name}.pth.tar" for kind in ("checkpoint", "model_best")
        ]
        expected += [f"model_checkpoints/checkpoint_{name}.pth.tar.1"]  # after the first epoch
        expected += [f"logs/{name}/metrics.jsonl", f"logs/{name}/events.out.tfevents"]
    assert road.after_training == sorted(expected)


def test_the_later_steps_write_these_files(road):
    written = {
        name
        for name in set(road.after_all) - set(road.after_training)
        if not Path(name).name.startswith(".")  # which files were checked
    }
    arrays = ["features_a", "features_b", "hashes", "hits_a", "hits_b", "targets", "written"]
    expected = {
        f"convOuts/folder_resnet18/folder_L1/{split_name}/{name}"
        for split_name in ("train", "val")
        for name in ["index.json", "paths.json", *(f"{array}.npy" for array in arrays)]
    }
    expected |= {
        f"logs/folder_resnet18/L1_a0.1/{name}" for name in ("metrics.jsonl", "events.out.tfevents")
    }
    assert written == expected | {"model_checkpoints/folder_resnet18/checkpoint_L1_a0.1.pth.tar"}


@pytest.mark.parametrize(
    ("log", "names"),
    [
        (
            "folder_resnet18_sd0",
            {"Loss", "top1_prec", "top5_prec", "val_Loss", "val_top1_prec", "val_top5_prec"},
        ),
        (
            "folder_resnet18/L1_a0.1",
            {"Loss", "MSE", "L2_loss", "p1", "p2", "val_instability", "linear_reference"},
        ),
    ],
)
def test_metrics_of_every_epoch_are_on_the_board_and_in_a_json_line(road, log, names):
    lines = lines_of(road.out / "logs" / log, without=())
    assert [line["epoch"] for line in lines] == [1, 2]
    for line in lines:  # nets of two epochs are at chance, which their Trans-Net's log says besides
        line.pop("doubts", None)
    assert [set(line) for line in lines] == [names | {"epoch", "lr", "seconds"}] * 2
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    tags = {board_tag(name) for name in names | {"lr", "seconds"}}
    assert board(road.out / "logs" / log) == dict.fromkeys(tags, 2)


def test_each_step_names_what_it_wrote_and_the_next_one_to_paste(photos, tmp_path, capsys):
    """From the first net on, every step by the words that the one before it ends with."""
    out, folder = tmp_path / "runs", tmp_path / "dogs"
    folder.symlink_to(photos)
    line = (
        f"--dataset folder --train_path {folder}/train --val_path {folder}/val --image_size 32"
        f" --out {out}"
    )
    script, words = (
        "Training",
        f"{line} --arch resnet18 --epochs 1 -b 12 -j 0 --seed 3 --suffix x_sd3".split(),
    )
    taken = []
    while script in STEPS:
        before = set(out.rglob("*"))
        STEPS[script].main(words)
        taken.append(script)
        said = capsys.readouterr().out
        for path in set(out.rglob("*")) - before:
            named = any(
                re.search(rf"{re.escape(str(place))}(?=[\s;,])", said)
                for place in (path, path.parent)
            )
            hidden = path.name.startswith(".") or "tfevents" in path.name or path.suffix == ".1"
            assert named or path.is_dir() or hidden, path
        *_, following = said.splitlines()
        assert said.count("next: ") == 1
        script, words = following.removeprefix("next: python ").split(".py ", 1)
        # Of fewer channels
        words = shlex.split(words) + (["--conv_layer", "1"] if script == "ConvOutput" else [])
    assert taken == ["Training", "Training", "ConvOutput", "Training_TransNet", "Variance"]
    nets = sorted(path.name for path in out.glob("model_checkpoints/checkpoint*.tar"))
    assert nets == [f"checkpoint_dogs_resnet18_x_sd{seed}.pth.tar" for seed in (3, 4)]
    assert script == "Calibrate"
    args = Calibrate.build_parser().parse_args(words)
    assert args.convOut_path == str(out / "convOuts/dogs_resnet18/dogs_L1")
    assert args.transnet == str(out / "model_checkpoints/dogs_resnet18/checkpoint_L1.pth.tar")


def test_two_processes_do_the_same(road, photos, tmp_path):
    """ConvOutput, Training_TransNet and Variance under torchrun."""
    script = tmp_path / "road.py"
    features = tmp_path / "convOuts/folder_resnet18/folder_L1"
    steps = {
        "ConvOutput": ["--conv_layer", "1", "--t_or_v", "train", *road.nets[:-1], tmp_path],
        "Training_TransNet": [
            *shlex.split(f"{FIT} --suffix a0.1"),
            "--convOut_path",
            features,
            "--out",
            tmp_path,
        ],
        "Variance": [
            "--conv_layer",
            "1",
            "--net_in",
            road.a,
            "--net_tar",
            road.b,
            *data(photos),
            "--transnet",
            road.trans_net,
            "--json",
            tmp_path / "v.json",
        ],
    }
    # Each step is a process of its own in a shell; here they share one, and its group of processes.
    calls = ["import torch.distributed\ntorch.distributed.destroy_process_group = lambda: None\n"]
    calls += [
        f"import {name}\n{name}.main({[str(word) for word in words]})\n"
        for name, words in steps.items()
    ]
    script.write_text("".join(calls))
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node",
            "2",
            str(script),
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 3
    one, two = (open_features(folder, split="train") for folder in (road.features, features))
    assert one.paths == two.paths
    for ours, theirs in zip(one.__getitems__(range(24)), two.__getitems__(range(24))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    first, second = (lines_of(out / "logs/folder_resnet18/L1_a0.1") for out in (road.out, tmp_path))
    for ours, theirs in zip(first, second):
        assert theirs["MSE"] == pytest.approx(ours["MSE"], rel=1e-3)
    alone = run(Variance, "", "--convOut_path", road.features, "--transnet", road.trans_net)
    assert json.loads((tmp_path / "v.json").read_text())["var"] == pytest.approx(
        alone["var"], rel=1e-5
    )
