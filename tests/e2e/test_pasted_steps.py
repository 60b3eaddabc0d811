"""Each step by the words that the one before it ends with, to the end of every road."""

import importlib
import shlex
import sys

import pytest

from tests.e2e.road import run

pytestmark = pytest.mark.e2e
ARCH = "pasted_nets:small"
CODE = """
from torch import nn


def small(num_classes):
    def block(before, after, stride):
        return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.ReLU())

    return nn.Sequential(
        block(3, 4, 1), block(4, 4, 2), block(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, num_classes),
    )
"""
SMALLER = {  # what is appended to pasted words, so that a step is done in seconds
    "Calibrate": "--permutations 0 --bootstrap 100",
    "Training_TransNet": "--epochs 1",
    "transClassifier": "--epochs 1",
    "HSAKD": "--epochs 1 --batch_size 12",
}
TRAINING = "--image_size 16 --epochs 1 -b 12 --val_epoch 1 -j 0"


@pytest.fixture
def folder(photos, tmp_path, monkeypatch):
    """A folder whose name has to be quoted, with images;
    beside it an architecture of the user's own.
    """
    (tmp_path / "my photos").symlink_to(photos)
    (tmp_path / "pasted_nets.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("pasted_nets", None)


@pytest.fixture
def follow(capsys):
    """Run a command line and whatever each says comes next; gives the scripts and their words."""

    def follow(line, *, at_most=9):
        taken = []
        while line and len(taken) < at_most:
            name, _, rest = line.removeprefix("python ").partition(".py ")
            words = shlex.split(rest)
            capsys.readouterr()
            run(importlib.import_module(name), f"{rest} {SMALLER.get(name, '')}")
            taken.append((name, words))
            said = capsys.readouterr().out.splitlines()
            following = [line.removeprefix("next: ") for line in said if line.startswith("next: ")]
            line = following[0] if following else ""
        return taken

    return follow


def names(taken):
    return [name for name, _ in taken]


IMAGES = "--dataset folder --train_path 'my photos/train' --val_path 'my photos/val'"
STORED = ["ConvOutput", "Training_TransNet", "Variance", "Calibrate", "Report"]


def test_from_the_first_net_to_the_page(folder, follow):
    line = (
        f"python Training.py -a {ARCH} {IMAGES} {TRAINING} --normalisation half --suffix 'x y_sd0'"
    )
    taken = follow(line)
    assert names(taken) == ["Training", "Training", *STORED]
    assert "--layers stages" in " ".join(dict(taken)["ConvOutput"])
    assert dict(taken)["Calibrate"].count(ARCH) == 1  # whose untrained form is a null
    (page,) = folder.glob("reports/*/*/page.html")
    assert "B untrained" in page.read_text()


def test_from_torchvisions_nets_and_an_interrupted_run(folder, follow):
    line = f"python Training.py -a resnet18 {IMAGES} --image_size 32 --epochs 1 -b 12 -j 0 --seed 3"
    run(importlib.import_module("Training"), line.removeprefix("python Training.py "))
    taken = follow(f"{line} --resume auto --start_epoch 0 --epochs 2", at_most=3)
    assert names(taken)[:2] == ["Training", "Training"]
    assert not {"--resume", "--start_epoch"} & {*taken[1][1]}


def test_from_nets_of_two_kinds_without_stored_features(folder, follow):
    run(importlib.import_module("Training"), f"-a {ARCH} {IMAGES} {TRAINING} --suffix a")
    run(importlib.import_module("Training"), f"-a resnet8 {IMAGES} {TRAINING} --suffix b")
    nets = [
        folder / f"model_checkpoints/checkpoint_my photos_{name}.pth.tar"
        for name in ("pasted_nets.small_a", "resnet8_b")
    ]
    given = (
        f"--net_A '{nets[0]}' --net_B '{nets[1]}' --arch_A {ARCH} {IMAGES} --layer stage:-1 -j 0"
    )
    for reverse in ("", "--reverse"):
        taken = follow(
            f"python Training_TransNet.py {given} --normalisation2 half {reverse} --epochs 1"
            f" --suffix s{reverse}"
        )
        assert names(taken) == [
            "Training_TransNet",
            "Variance",
            "transClassifier",
            "transClassifier",
        ]
        words = " ".join(taken[1][1])
        own, half = (
            ("--arch_tar", "--normalisation1") if reverse else ("--arch_in", "--normalisation2")
        )
        assert f"{own} {ARCH}" in words and f"{half} half" in words


@pytest.mark.parametrize(
    ("line", "steps"),
    [
        (f"python Pruning.py --resume NET -a {ARCH} {IMAGES} {TRAINING}", ["Pruning", *STORED]),
        (
            f"python BornAgain.py --resume NET -a {ARCH} {IMAGES} {TRAINING} --start_gen 1 -g 2",
            ["BornAgain", *STORED],
        ),
        (
            (
                f"python BornAgain.py --resume NET -a {ARCH} --student_arch resnet8 {IMAGES}"
                f" {TRAINING} --start_gen 1 -g 2"
            ),
            ["BornAgain", *STORED],
        ),
        (
            f"python ConvOutput.py --resume1 NET --resume2 NET -a {ARCH} --list_layers {IMAGES}",
            ["ConvOutput", *STORED],
        ),
    ],
)
def test_from_what_is_made_of_a_net(folder, follow, line, steps):
    run(importlib.import_module("Training"), f"-a {ARCH} {IMAGES} {TRAINING}")
    net = folder / "model_checkpoints/checkpoint_my photos_pasted_nets.small.pth.tar"
    assert names(follow(line.replace("NET", shlex.quote(str(net)), 2), at_most=3)) == steps[:3]


def test_from_dcm_and_hsakd(folder, follow):
    nets = "--net1 wrn_16_0.5 --net2 mobilenet8"
    taken = follow(
        f"python DCM.py --save 'd c m' {nets} {IMAGES} --epochs 1 -b 12 -j 0 --image_size 16",
        at_most=3,
    )
    assert names(taken) == ["DCM", "ConvOutput", "Training_TransNet"]
    teacher = "python HSAKD.py teacher --arch wrn_10_0.5_aux --image_size 16"
    hsakd = f"{teacher} --data 'my photos' --checkpoint_dir 'k p' --out o"
    taken = follow(hsakd)
    assert [words[0] for _, words in taken] == ["teacher", "student", "probe"]
    assert sorted(path.name for path in (folder / "k p").iterdir())[0].startswith(
        "eval_rep_arch_wrn_16_2"
    )


def test_from_an_archive(folder, capsys):
    """The digits come with scikit-learn."""
    run(importlib.import_module("PrepareData"), "digits --out 'my data' --classes 2")
    *_, last = capsys.readouterr().out.splitlines()
    words = shlex.split(last.removeprefix("next: python Training.py "))
    assert words == ["--dataset", "digits", "--data_root", "my data"]
    small = f"-a {ARCH} {TRAINING}"  # the default net takes minutes
    run(importlib.import_module("Training"), f"{shlex.join(words)} {small}")
    assert (folder / "model_checkpoints/checkpoint_digits_pasted_nets.small.pth.tar").exists()
