"""Every step that writes checkpoints, on small data and with relative paths; what it leaves."""

import json
import os
import shlex
from pathlib import Path

import BornAgain
import DCM
import HSAKD
import Pruning
import Training
import Training_TransNet
import transClassifier
from tests.e2e.refined import ARCH, make_classifier
from tests.unit import stored_features
from utils import files
from utils.files import sha256

PHOTOS = "--dataset folder --name folder --train_path photos/train --val_path photos/val"
SMALL = f"{PHOTOS} --image_size 32 -b 8 -j 0 --lr 0.01"
OFTEN = "--save_epoch 1 --val_epoch 1"
# By name: the script, its command line, how it goes on
STEPS = {
    "Training": (
        Training,
        f"-a {ARCH} {SMALL} {OFTEN} --epochs 2 --export net.safetensors",
        "--resume auto",
    ),
    "Training_TransNet": (
        Training_TransNet,
        f"--convOut_path features --layers 1,2 --alpha 0.1 -b 4 --lr 0.01 {OFTEN} --epochs 2",
        "--resume auto",
    ),
    "Training_TransNet in steps": (
        Training_TransNet,
        "--convOut_path features --steps 8 -b 4 --standardise --solve --layers 2 --save_epoch 1"
        " --one_direction",
        "--resume auto",
    ),
    "Training_TransNet until converged": (
        Training_TransNet,
        "--convOut_path features --steps 3 --until converged -b 4 --standardise --solve --layers 2"
        " --save_epoch 1 --one_direction --tolerance 0.001",
        "--resume auto",
    ),
    "DCM": (
        DCM,
        f"--net1 wrn_16_0.5 --net2 mobilenet32 {PHOTOS} --image_size 32 -b 8 --nthread 0 --epochs 2"
        " --save dcm",
        "--resume auto",
    ),
    "HSAKD": (
        HSAKD,
        "baseline --arch resnet8 --batch-size 8 --epochs 2 --warmup-epoch 2 --checkpoint-dir"
        " checkpoint --data photos",
        "--resume",
    ),
    "BornAgain": (BornAgain, f"-a {ARCH} -g 2 {SMALL} {OFTEN} --epochs 2", ""),
    "Pruning": (Pruning, f"--resume given.pth {SMALL} {OFTEN} --epochs 2 --share_bits 2", ""),
    "transClassifier": (
        transClassifier,
        f"--net_A given.pth --input raw_A --layer features.4 {SMALL} {OFTEN} --epochs 2",
        "--resume auto",
    ),
}


def begin(folder, photos):
    """Make a folder with what the steps read, and work in it."""
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    Path("photos").symlink_to(photos)
    for split in ("train", "val"):
        stored_features.complete(folder / "features" / split)
    make_classifier(folder / "given.pth", 0)


def run(name, *, again=False):
    """Run a step in the present folder, or go on with it."""
    files._sweep_once.cache_clear()  # as a process of its own
    script, line, goes_on = STEPS[name]
    script.main(shlex.split(f"{line} {goes_on}" if again else line))


def checkpoints(folder):
    """SHA-256 of every file of weights that a step wrote."""
    return {
        path.relative_to(folder).as_posix(): sha256(path)
        for pattern in ("*.pth.tar", "*.pth.tar.1", "*.pt7", "*.safetensors")
        for path in sorted(folder.rglob(pattern))
    }


def logs(folder):
    """The lines of every log and the authors' results, without times and how the run began."""
    lines = {}
    for path in sorted([*folder.rglob("metrics.jsonl"), *folder.rglob("log.txt")]):
        read = [json.loads(line.removeprefix("json_stats: ")) for line in path.open()]
        # DCM's has all options
        others = {"seconds": 0, "train_time": 0, "test_time": 0, "resume": ""}
        lines[path.relative_to(folder).as_posix()] = [line | others for line in read]
    for path in sorted(folder.glob("result/*.txt")):
        lines[path.name] = path.read_text().count("\n")
    return lines


def leftovers(folder):
    """Half-written files and journals."""
    marks = (".part", files.JOURNAL)
    return [path.name for path in folder.rglob(".*") if any(mark in path.name for mark in marks)]
