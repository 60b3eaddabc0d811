"""What the tests of the steps share: command lines in this process, and what runs leave behind."""

import json
import shlex
from pathlib import Path

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import Training
from utils import checkpoint
from utils.sums import VERIFIED

ROOT = Path(Training.__file__).parent
NETS = "--image_size 64 --epochs 2 --batch_size 10 --lr 0.01 --val_epoch 1"
BOTH = "--alpha [0.1,0.1] --lr 0.001 --epochs 2 --batch_size 10 --val_epoch 1"
FIT = f"{BOTH} --one_direction"
TRANS_NET = "model_checkpoints/folder_resnet18/checkpoint_L1_a0.1.pth.tar"


def run(script, line, *pairs):
    """Run a script in this process as a command line; `pairs` are flags and paths."""
    return script.main([*shlex.split(line), *map(str, pairs)])


def data(photos):
    """The options of a folder of photos, which is called "folder" in file names."""
    paths = "--train_path", photos / "train", "--val_path", photos / "val"
    return "--dataset", "folder", "--name", "folder", *paths


def files(folder):
    """Every file below, with the names of TensorBoard's cut at their changing part."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(
        name[: name.find("tfevents") + 8] if "tfevents" in name else name for name in names
    )


def contents(folder):
    """The bytes of every file below.

    Notes on checked files are left out: a run writes them once files have settled, which on a slow
    machine is sooner.
    """
    return {
        path: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != VERIFIED
    }


def lines_of(log_folder, without=("seconds",)):
    """The epochs of a metrics.jsonl."""
    lines = [json.loads(line) for line in (log_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def board(log_folder):
    """What TensorBoard shows: name → number of points."""
    events = EventAccumulator(str(log_folder))
    events.Reload()
    return {name: len(events.Scalars(name)) for name in events.Tags()["scalars"]}


def change(path, **entries):
    """Change entries of a checkpoint, in place."""
    checkpoint.save(path, checkpoint.load(path) | entries)


def truncate(path):
    """Damage a checkpoint as a full disk does; give what is left of it."""
    left = path.read_bytes()[:1000]
    path.write_bytes(left)
    return left


def assert_same(first, second, where="checkpoint"):
    """Compare two checkpoints to the bit."""
    assert type(first) is type(second), where
    if isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}[{key!r}]")
    elif isinstance(first, list | tuple):
        assert len(first) == len(second), where
        for index, (one, other) in enumerate(zip(first, second)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    else:
        assert first == second, where
