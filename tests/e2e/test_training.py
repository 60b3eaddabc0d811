"""Training.py: nets, their checkpoints, their accuracy."""

import pytest
import torch
import torch.nn.functional as F

import Training
from models.classifiers import load_classifier
from tests.e2e.road import NETS, assert_same, board, data, files, lines_of, run
from tests.mistakes import check_some_line
from utils import checkpoint
from utils.data.images import load_images
from utils.normalisation import NORMALISATIONS
from utils.pixels import normalise

pytestmark = pytest.mark.e2e


def test_a_classifiers_checkpoint_says_what_it_is(road, photos):
    state = checkpoint.load(road.a)
    last = lines_of(road.out / "logs/folder_resnet18_sd0")[-1]
    assert (state["epoch"], state["arch"], state["settings"]["seed"]) == (2, "resnet18", 0)
    assert state["data"] == {
        "dataset": "folder",
        "name": "folder",
        "sample_num": "",
        "classes": ["blue", "green", "red"],
        "image_size": 64,
        "resize": "torch",
        "normalisation": NORMALISATIONS["imagenet"],
    }
    assert state["acc1"] == last["val_top1_prec"] <= state["best_acc1"]
    assert state["hits"].dtype == torch.uint8
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    pixels, targets, _ = images.__getitems__(list(range(len(images))))
    with torch.no_grad():
        logits = load_classifier(road.a)(normalise(pixels, *NORMALISATIONS["imagenet"]))
    assert torch.equal(state["hits"], (logits.argmax(1) == targets).byte())
    assert float((logits.argmax(1) == targets).float().mean()) == pytest.approx(
        last["val_top1_prec"] / 100
    )
    assert F.cross_entropy(logits, targets).item() == pytest.approx(last["val_Loss"], rel=1e-5)


def test_seeds_make_different_nets(road):
    a, b = (checkpoint.load(path)["state_dict"]["conv1.weight"] for path in (road.a, road.b))
    assert not torch.allclose(a, b, atol=0.01)


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_resumed_training_equals_an_uninterrupted_one(
    photos, tmp_path, interrupt, resume, capsys
):
    """To the bit, dropout and BatchNorm included."""
    line = f"{NETS} --arch mobilenet_v3_small --seed 3 --logspace 1"
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(Training, line, *data(photos), "--out", whole)
    interrupt(Training, line, *data(photos), "--out", torn)
    own = torn / "model_checkpoints/checkpoint_folder_mobilenet_v3_small.pth.tar"
    assert checkpoint.load(own)["epoch"] == 1
    words = (*data(photos), "--out", torn, "--resume", "auto" if resume == "auto" else own)
    run(Training, line, *words)
    # TensorBoard has a file for each run
    assert files(torn) == files(whole)[:1] * 2 + files(whole)[1:]
    for name in ("checkpoint", "model_best"):
        path = f"model_checkpoints/{name}_folder_mobilenet_v3_small.pth.tar"
        assert_same(checkpoint.load(torn / path), checkpoint.load(whole / path))
    logs = "logs/folder_mobilenet_v3_small"
    assert lines_of(torn / logs) == lines_of(whole / logs)
    assert board(torn / logs) == board(whole / logs)
    capsys.readouterr()
    run(Training, line, *words)
    check_some_line(capsys.readouterr().out, own, "2")
    assert_same(checkpoint.load(own), checkpoint.load(whole / own.relative_to(torn)))


def test_nets_of_two_folders_stand_beside_each_other(photos, tmp_path):
    """Named by their folders, or by --name; with the same suffix."""
    line = (
        f"{NETS} --arch mobilenet_v3_small --dataset folder --image_size 32 --epochs 1 --suffix s"
        f" --out {tmp_path}"
    )
    for folder, name in (("birds", ""), ("dogs", ""), ("dogs", "--name cows")):
        (tmp_path / folder).mkdir(exist_ok=True)
        for split in ("train", "val"):
            if not (tmp_path / folder / split).exists():
                (tmp_path / folder / split).symlink_to(photos / split)
        paths = (
            "--train_path",
            tmp_path / folder / "train",
            "--val_path",
            tmp_path / folder / "val",
        )
        run(Training, f"{line} {name}", *paths)
    nets = {
        path.name: checkpoint.load(path)["data"]["name"]
        for path in tmp_path.glob("model_checkpoints/check*")
    }
    assert nets == {
        f"checkpoint_{name}_mobilenet_v3_small_s.pth.tar": name
        for name in ("birds", "dogs", "cows")
    }


def test_evaluating_a_checkpoint(road, photos, capsys):
    before = files(road.out)
    last = lines_of(road.out / "logs/folder_resnet18_sd0")[-1]
    # Or as the checkpoint says
    for options in (("--image_size", 64, *data(photos)), ("--val_path", photos / "val")):
        run(Training, "--evaluate", *options, "--resume", road.a, "--out", road.out)
        said = capsys.readouterr().out
        for name in ("val_Loss", "val_top1_prec"):
            assert f"{name} {last[name]:.4g}" in said
    assert last["val_top1_prec"] == checkpoint.load(road.a)["acc1"]
    assert files(road.out) == before


def test_weights_of_one_net_begin_another(road, photos, tmp_path):
    line = f"{NETS} --arch resnet18 --epochs 1 --lr 0 --wd 0 --fix_bn"
    run(Training, line, *data(photos), "--weights", road.a, "--out", tmp_path)
    state = checkpoint.load(tmp_path / "model_checkpoints/checkpoint_folder_resnet18.pth.tar")
    assert_same(state["state_dict"], checkpoint.load(road.a)["state_dict"])
