"""Train two nets, store their features, fit the Trans-Net, measure the variances: each step by its own command line."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ConvOutput
import Training
import Training_TransNet
import Variance
from models.classifiers import build, load_classifier
from models.layers import layer_name
from models.split import split
from models.trans_net import load_trans_net
from utils import checkpoint
from utils.data.batches import normalise
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.files import sha256

pytestmark = pytest.mark.e2e
ROOT = Path(Training.__file__).parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
VARIANCES = ["target", "order0", "order1", "order2", "output", "residual"]
NETS = "--image_size 64 --epochs 2 --batch_size 10 --lr 0.01 --val_epoch 1"
FIT = "--alpha [0.1,0.1] --lr 0.001 --epochs 2 --batch_size 10 --val_epoch 1"


def run(script, line, *pairs):
    """Run a script in this process as a command line; `pairs` are flags and paths."""
    return script.main([*shlex.split(line), *map(str, pairs)])


def data(photos):
    return "--dataset", "folder", "--train_path", photos / "train", "--val_path", photos / "val"


def files(folder):
    """Every file below, with the names of TensorBoard's cut at their changing part."""
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return sorted(name[: name.find("tfevents") + 8] if "tfevents" in name else name for name in names)


def lines_of(log_folder, without=("seconds",)):
    lines = [json.loads(line) for line in (log_folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in without} for line in lines]


def board(log_folder):
    """What TensorBoard shows: name → number of points."""
    events = EventAccumulator(str(log_folder))
    events.Reload()
    return {name: len(events.Scalars(name)) for name in events.Tags()["scalars"]}


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


@pytest.fixture(scope="module")
def road(photos, tmp_path_factory):
    """Everything that the pipeline writes, once, with two ResNet-18 that differ in their seed."""
    out = tmp_path_factory.mktemp("road")
    for seed in (0, 5):
        run(Training, f"{NETS} --arch resnet18 --seed {seed} --suffix sd{seed}", *data(photos), "--out", out)
    a, b = (out / f"model_checkpoints/checkpoint_folder_resnet18_sd{seed}.pth.tar" for seed in (0, 5))
    after_training = files(out)
    nets = ("--resume1", a, "--resume2", b, *data(photos), "--out", out)
    for split_name in ("train", "val"):
        run(ConvOutput, f"--conv_layer 3 --t_or_v {split_name} --batch_size 7", *nets)
    features = out / "convOuts/folder_resnet18/folder_L3"
    run(Training_TransNet, f"{FIT} --validate --suffix a0.1", "--convOut_path", features, "--out", out)
    trans_net = out / "model_checkpoints/folder_resnet18/checkpoint_L3_a0.1.pth.tar"
    yield SimpleNamespace(
        out=out, a=a, b=b, nets=nets, features=features, trans_net=trans_net, after_training=after_training
    )
    shutil.rmtree(out)


# --- what is written


def test_training_writes_checkpoints_and_logs(road):
    expected = []
    for name in ("folder_resnet18_sd0", "folder_resnet18_sd5"):
        expected += [f"model_checkpoints/{kind}_{name}.pth.tar" for kind in ("checkpoint", "model_best")]
        expected += [f"logs/{name}/metrics.jsonl", f"logs/{name}/events.out.tfevents"]
    assert road.after_training == sorted(expected)


def test_the_later_steps_write_these_files(road):
    written = set(files(road.out)) - set(road.after_training)
    arrays = ["features_a", "features_b", "hits_a", "hits_b", "targets", "written"]
    expected = {
        f"convOuts/folder_resnet18/folder_L3/{split_name}/{name}"
        for split_name in ("train", "val")
        for name in ["index.json", "paths.json", *(f"{array}.npy" for array in arrays)]
    }
    expected |= {f"logs/folder_resnet18/L3_a0.1/{name}" for name in ("metrics.jsonl", "events.out.tfevents")}
    assert written == expected | {"model_checkpoints/folder_resnet18/checkpoint_L3_a0.1.pth.tar"}


@pytest.mark.parametrize(
    ("log", "names"),
    [
        ("folder_resnet18_sd0", {"Loss", "top1_prec", "top5_prec", "val_Loss", "val_top1_prec", "val_top5_prec"}),
        ("folder_resnet18/L3_a0.1", {"Loss", "MSE", "L2_loss", "p1", "p2", "val_MSE"}),
    ],
)
def test_metrics_of_every_epoch_are_on_the_board_and_in_a_json_line(road, log, names):
    lines = lines_of(road.out / "logs" / log, without=())
    assert [line["epoch"] for line in lines] == [0, 1]
    assert all(set(line) == names | {"epoch", "lr", "seconds"} for line in lines)
    assert all(np.isfinite(list(line.values())).all() for line in lines)
    assert board(road.out / "logs" / log) == dict.fromkeys(names | {"lr", "seconds"}, 2)


def test_a_classifiers_checkpoint_says_what_it_is(road, photos):
    state = checkpoint.load(road.a)
    last = lines_of(road.out / "logs/folder_resnet18_sd0")[-1]
    assert (state["epoch"], state["arch"], state["training"]["seed"]) == (2, "resnet18", 0)
    assert state["data"] == {
        "dataset": "folder", "sample_num": "", "classes": ["blue", "green", "red"], "image_size": 64,
    }  # fmt: skip
    assert state["acc1"] == last["val_top1_prec"] <= state["best_acc1"]
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    pixels, targets, _ = images.__getitems__(list(range(len(images))))
    with torch.no_grad():
        logits = load_classifier(road.a)(normalise(pixels))
    assert float((logits.argmax(1) == targets).float().mean()) == pytest.approx(last["val_top1_prec"] / 100)
    assert F.cross_entropy(logits, targets).item() == pytest.approx(last["val_Loss"], rel=1e-5)


def test_seeds_make_different_nets(road):
    a, b = (checkpoint.load(path)["state_dict"]["conv1.weight"] for path in (road.a, road.b))
    assert not torch.allclose(a, b, atol=0.01)


def test_features_are_the_nets_own_at_that_layer(road, photos):
    """The output of layer3 before its last ReLU, row by row in the order of the folder."""
    stored = open_features(road.features, split="val")
    images = load_images("folder", "val", data_root="nowhere", path=photos / "val", image_size=64)
    assert stored.paths == images.paths
    pixels, targets, _ = images.__getitems__(list(range(24)))
    features_a, features_b, stored_targets, _ = stored.__getitems__(list(range(24)))
    assert torch.equal(stored_targets, targets)
    for path, features, hits in ((road.a, features_a, stored.hits_a), (road.b, features_b, stored.hits_b)):
        model = load_classifier(path)
        head, _ = split(model, layer_name(model, 3))
        with torch.no_grad():
            expected, logits = head(normalise(pixels)), model(normalise(pixels))
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)
        assert features.shape == (24, 256, 4, 4) and features.min() < 0
        assert torch.equal(hits[:, 0], logits.argmax(1) == targets) and hits[:, 1].all()
    record = stored.record
    assert (record["checkpoint_a"], record["checkpoint_b"]) == (sha256(road.a), sha256(road.b))
    assert (record["split"], record["layer"], record["layer_a"]) == ("val", "3", "layer3.1.add")


def test_the_trans_nets_losses_are_eq_2(road):
    state, last = checkpoint.load(road.trans_net), lines_of(road.out / "logs/folder_resnet18/L3_a0.1")[-1]
    net = load_trans_net(road.trans_net)
    x, target, *_ = open_features(road.features, split="val").__getitems__(list(range(24)))
    with torch.no_grad():
        assert F.mse_loss(net(x), target).item() == pytest.approx(last["val_MSE"], rel=1e-5)
    assert last["Loss"] == pytest.approx(last["MSE"] + last["L2_loss"], rel=1e-6)
    assert last["L2_loss"] == pytest.approx(0.1 * (last["p1"] ** 2 + last["p2"] ** 2), rel=1e-3)
    assert (state["epoch"], state["alpha"], state["arch"]) == (2, [0.1, 0.1], "resnet18")
    assert state["source"] == open_features(road.features, split="train").record


def test_alpha_begins_with_the_highest_order(road, tmp_path):
    """Entry 0 belongs to p(K): with [50,0] it is p2 that is pushed down, and the loss is 50·p2²."""
    line = "--alpha [50,0] --optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L3")
    assert (first["p1"], first["p2"], first["L2_loss"]) == (0.5, 0.5, 12.5)
    assert second["p2"] < 0.4 < second["p1"]
    assert second["L2_loss"] == pytest.approx(50 * second["p2"] ** 2, rel=1e-5)


@pytest.mark.parametrize(("flag", "penalised", "moves"), [("--L2", False, True), ("--fix_p", True, False)])
def test_switches_of_p(road, tmp_path, flag, penalised, moves):
    line = f"--optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24 --alpha [5,5] {flag}"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L3")
    assert first["L2_loss"] == (2.5 if penalised else 0)
    assert (second["p1"] != 0.5) == moves


# --- variances


def test_variances_from_nets_and_from_stored_features_agree(road, photos, tmp_path, capsys):
    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos))
    live = run(
        Variance, "--conv_layer 3 --batch_size 5", *nets, "--transnet", road.trans_net,
        "--json", tmp_path / "v.json", "--csv", tmp_path / "v.csv", "--figure", tmp_path / "v.png",
    )  # fmt: skip
    output = capsys.readouterr().out
    stored = run(Variance, "", "--convOut_path", road.features, "--transnet", road.trans_net)
    assert live["var"] == pytest.approx(stored["var"], rel=1e-5)
    assert live["instability"] == pytest.approx(stored["instability"], rel=1e-5)
    assert list(live["var"]) == live["covariance"]["names"] == VARIANCES
    assert live["images"] == 24 and live["mean"] == "channel"
    assert json.loads((tmp_path / "v.json").read_text()) == live
    csv = (tmp_path / "v.csv").read_text().split()
    assert csv == ["component,variance", *(f"{name},{value}" for name, value in live["var"].items())]
    assert (tmp_path / "v.png").stat().st_size > 10_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.csv", "v.json", "v.png"]
    for report in (live, stored):
        source = report["source"]
        assert (source["dataset"], source["split"]) == ("folder", "val")
        assert source["layer_a"] == source["layer_b"] == "layer3.1.add"
        assert (source["checkpoint_a"], source["checkpoint_b"]) == (sha256(road.a), sha256(road.b))
        assert source["transnet"] == sha256(road.trans_net)
    assert "24 val images, mean per channel" in output
    assert f"instability Var(x_Δ)/Var(x*) = {live['instability']:.4f}" in output
    for title in ("x*", "x(0)", "x(1)", "x(2)", "g(x)", "x_Δ"):
        assert sum(line.startswith(f"{title} ") for line in output.splitlines()) == 1


@pytest.mark.parametrize("mean", ["channel", "global"])
def test_variances_are_those_of_the_components(road, mean):
    report = run(Variance, f"--mean {mean} -b 7", "--convOut_path", road.features, "--transnet", road.trans_net)
    x, target, *_ = open_features(road.features, split="val").__getitems__(list(range(24)))
    with torch.no_grad():
        output, components = load_trans_net(road.trans_net).decompose(x)
    axes = (0, 2, 3) if mean == "channel" else (0, 1, 2, 3)
    for name, values in zip(VARIANCES, [target, *components, output, target - output]):
        centred = values.double() - values.double().mean(axes, keepdim=True)
        assert report["var"][name] == pytest.approx(float(centred.square().mean()), rel=1e-5)


def test_variances_of_the_training_features(road):
    """`--t_or_v` chooses the set: here the one that the Trans-Net was fitted on."""
    train = run(Variance, "--t_or_v train", "--convOut_path", road.features, "--transnet", road.trans_net)
    val = run(Variance, "--t_or_v val", "--convOut_path", road.features / "val", "--transnet", road.trans_net)
    assert train["source"]["split"] == "train"
    assert train["var"]["target"] != pytest.approx(val["var"]["target"], rel=1e-3)


def test_another_net_than_the_fitted_one_is_noted(road, photos, capsys):
    line = "--conv_layer 3 --image_size 64"
    run(Variance, line, "--net_in", road.b, "--net_tar", road.a, *data(photos), "--transnet", road.trans_net)
    output = capsys.readouterr().out
    assert "was fitted on another net A than this one" in output
    assert "was fitted on another net B than this one" in output


# --- doing it again


def test_features_that_are_there_are_not_computed_again(road, capsys):
    before = {path: path.stat().st_mtime_ns for path in (road.features / "val").iterdir()}
    run(ConvOutput, "--conv_layer 3 --t_or_v val", *road.nets)
    assert f"{road.features / 'val'} has these features already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (road.features / "val").iterdir()} == before


def test_other_types_and_images_are_stored_apart(road, photos, tmp_path, capsys):
    nets = (*road.nets[:-1], tmp_path)
    run(ConvOutput, "--conv_layer 3 --sample_num 50par_A --dtype float16", *nets)
    half = open_features(tmp_path / "convOuts/folder_50par_A_resnet18/folder_L3/train")
    whole = open_features(road.features / "train")
    rows = [whole.paths.index(path) for path in half.paths]
    assert len(rows) == 12 and half.facts["dtype"] == "float16"
    torch.testing.assert_close(half.__getitems__(range(12))[0], whole.__getitems__(rows)[0], rtol=2e-3, atol=2e-3)
    folder = ("--convOut_path", tmp_path / "convOuts/folder_50par_A_resnet18/folder_L3")
    run(Training_TransNet, f"{FIT} --suffix s --save_per_epoch --save_epoch 1", *folder, "--out", tmp_path)
    names = ["", "_epoch1", "_epoch2"]
    assert files(tmp_path / "model_checkpoints") == sorted(
        f"folder_resnet18/checkpoint_L3_50par_A_s{name}.pth.tar" for name in names
    )


@pytest.fixture
def interrupt(monkeypatch):
    """Let a script be interrupted (Ctrl-C) when it begins its second epoch."""

    def interrupted(script, *words):
        def train(*args, epoch, **options):
            if epoch == 1:
                raise KeyboardInterrupt
            return original(*args, epoch=epoch, **options)

        original = script.train_one_epoch
        with monkeypatch.context() as patched, pytest.raises(SystemExit) as exit_:
            patched.setattr(script, "train_one_epoch", train)
            run(script, *words)
        assert exit_.value.code == 130

    return interrupted


@pytest.mark.parametrize("resume", ["auto", "path"])
def test_a_resumed_training_equals_an_uninterrupted_one(photos, tmp_path, interrupt, resume, capsys):
    """To the bit, dropout and BatchNorm included."""
    line = f"{NETS} --arch mobilenet_v3_small --seed 3 --logspace 1"
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    run(Training, line, *data(photos), "--out", whole)
    interrupt(Training, line, *data(photos), "--out", torn)
    own = torn / "model_checkpoints/checkpoint_folder_mobilenet_v3_small.pth.tar"
    assert checkpoint.load(own)["epoch"] == 1
    words = (*data(photos), "--out", torn, "--resume", "auto" if resume == "auto" else own)
    run(Training, line, *words)
    assert files(torn) == files(whole)[:1] * 2 + files(whole)[1:]  # TensorBoard has a file for each run
    for name in ("checkpoint", "model_best"):
        path = f"model_checkpoints/{name}_folder_mobilenet_v3_small.pth.tar"
        assert_same(checkpoint.load(torn / path), checkpoint.load(whole / path))
    logs = "logs/folder_mobilenet_v3_small"
    assert lines_of(torn / logs) == lines_of(whole / logs)
    assert board(torn / logs) == board(whole / logs)
    capsys.readouterr()
    run(Training, line, *words)
    assert "is trained for 2 epochs already" in capsys.readouterr().out
    assert_same(checkpoint.load(own), checkpoint.load(whole / own.relative_to(torn)))


@pytest.mark.parametrize("options", ["", "--norm batch --bn --affine --optim SGD"])
def test_a_resumed_fit_equals_an_uninterrupted_one(road, tmp_path, interrupt, options):
    line = f"{FIT} --save_epoch 1 {options}"
    whole, torn = (("--convOut_path", road.features, "--out", tmp_path / name) for name in ("whole", "torn"))
    run(Training_TransNet, line, *whole)
    interrupt(Training_TransNet, line, *torn)
    path = "model_checkpoints/folder_resnet18/checkpoint_L3.pth.tar"
    assert checkpoint.load(tmp_path / "torn" / path)["epoch"] == 1
    resume = "auto" if options else tmp_path / "torn" / path
    run(Training_TransNet, line, *torn, "--resume", resume)
    assert_same(checkpoint.load(tmp_path / "torn" / path), checkpoint.load(tmp_path / "whole" / path))
    logs = "logs/folder_resnet18/L3"
    assert lines_of(tmp_path / "torn" / logs) == lines_of(tmp_path / "whole" / logs)


def test_evaluating_a_checkpoint(road, photos, capsys):
    before = files(road.out)
    run(Training, "--evaluate --image_size 64", *data(photos), "--resume", road.a, "--out", road.out)
    accuracy = checkpoint.load(road.a)["acc1"]
    assert f"val_top1_prec {accuracy:.4g}" in capsys.readouterr().out
    assert files(road.out) == before


def test_weights_of_one_net_begin_another(road, photos, tmp_path):
    line = f"{NETS} --arch resnet18 --epochs 1 --lr 0 --wd 0 --fix_bn"
    run(Training, line, *data(photos), "--weights", road.a, "--out", tmp_path)
    state = checkpoint.load(tmp_path / "model_checkpoints/checkpoint_folder_resnet18.pth.tar")
    assert_same(state["state_dict"], checkpoint.load(road.a)["state_dict"])


# --- other layers, directions and files


def test_nets_and_layers_that_differ_in_both_directions(road, photos, tmp_path):
    """A: MobileNet's (48, 4, 4), B: ResNet's (128, 8, 8), by the names of their nodes."""
    model = build("mobilenet_v3_small", 3)
    a = tmp_path / "mobile.pth.tar"
    checkpoint.save(a, {"arch": "mobilenet_v3_small", "state_dict": model.state_dict()})
    nets = ("--resume1", a, "--resume2", road.b, *data(photos), "--out", tmp_path)
    run(ConvOutput, "--layer features.8 --layer2 layer2.1.add --t_or_v val --image_size 64", *nets)
    run(ConvOutput, "--layer features.8 --layer2 layer2.1.add --image_size 64", *nets)
    pair = "mobilenet_v3_small-resnet18"
    features = tmp_path / f"convOuts/folder_{pair}/folder_Lfeatures.8-layer2.1.add"
    stored = open_features(features, split="val")
    assert (stored.shape_a, stored.shape_b) == ((48, 4, 4), (128, 8, 8))

    for suffix, reverse in (("forth", ""), ("back", "--reverse")):
        run(Training_TransNet, f"{FIT} --suffix {suffix} {reverse}", "--convOut_path", features, "--out", tmp_path)
    folder = tmp_path / f"model_checkpoints/folder_{pair}"
    forth, back = (folder / f"checkpoint_Lfeatures.8-layer2.1.add_{name}.pth.tar" for name in ("forth", "back"))
    shapes = ("in_channels", "out_channels", "out_size")
    assert [load_trans_net(forth).config[key] for key in shapes] == [48, 128, (8, 8)]
    assert [load_trans_net(back).config[key] for key in shapes] == [128, 48, (4, 4)]
    assert checkpoint.load(back)["source"]["checkpoint_a"] == sha256(road.b)

    stored_back = run(Variance, "--reverse", "--convOut_path", features, "--transnet", back)
    live_back = run(
        Variance, "--layer layer2.1.add --layer2 features.8", "--net_in", road.b, "--net_tar", a, *data(photos),
        "--transnet", back,
    )  # fmt: skip
    assert live_back["var"] == pytest.approx(stored_back["var"], rel=1e-5)
    stored_forth = run(Variance, "", "--convOut_path", features, "--transnet", forth)
    targets = [stored.__getitems__(range(24))[net].double() for net in (1, 0)]
    for report, target in zip((stored_forth, stored_back), targets):
        expected = (target - target.mean((0, 2, 3), keepdim=True)).square().mean()
        assert report["var"]["target"] == pytest.approx(float(expected), rel=1e-5)


def test_an_authors_checkpoint_and_fully_connected_features(photos, tmp_path, capsys):
    """PyTorch 1.0's format, `features.module.` keys; FC6 of AlexNet is a vector, and g a matrix on it."""
    torch.manual_seed(0)
    state = {
        key.replace("features.", "features.module."): value for key, value in build("alexnet", 3).state_dict().items()
    }
    net = tmp_path / "authors.pth.tar"
    torch.save(
        {
            "epoch": 300, "arch": "alexnet", "best_acc1": torch.tensor(56.97), "acc1": torch.tensor(56.1),
            "state_dict": {key: value.half() for key, value in state.items()}, "optimizer": {},
        },
        net,
        _use_new_zipfile_serialization=False,
    )  # fmt: skip
    nets = ("--resume1", net, "--resume2", net, *data(photos), "--out", tmp_path)
    run(ConvOutput, "--arch alexnet --fc --conv_layer 1 --image_size 64", *nets)
    features = tmp_path / "convOuts/folder_alexnet/folder_Lfc1"
    x, target, *_ = open_features(features, split="train").__getitems__([0, 9, 23])
    assert x.shape == (3, 4096) and torch.equal(x, target) and x.std() > 0.01
    line = "--fc --conv_layer 1 --layers 1 --epochs 1 --optim SGD --momentum 0"
    run(Training_TransNet, line, "--convOut_path", features, "--out", tmp_path)
    path = tmp_path / "model_checkpoints/folder_alexnet/checkpoint_Lfc1.pth.tar"
    assert load_trans_net(path).linear[0].weight.shape == (4096, 4096, 1, 1)
    report = run(Variance, "--t_or_v train", "--convOut_path", features, "--transnet", path)
    assert list(report["var"]) == ["target", "order0", "output", "residual"]
    shutil.rmtree(tmp_path)


def test_features_that_the_authors_stored(road, tmp_path):
    """One old file an image, by the documented command line: the same fit as from our cache of these features."""
    stored = open_features(road.features, split="train")
    (tmp_path / "old").mkdir()
    for index in range(24):
        (a,), (b,), (target,), _ = stored.__getitems__([index])
        sample = {"target": target, "pred1": torch.ones(1), "pred2": torch.ones(1), "convOut1": a, "convOut2": b}
        torch.save(sample, tmp_path / f"old/{index:06d}.pkl", _use_new_zipfile_serialization=False)
    line = "--lr 0.0001 --alpha [0.1,0.1] --epochs 1 --suffix a0.1_lr-4"
    names = "--arch vgg16_bn --device_ids [0,0] --dataset CUB200 --conv_layer 30"
    run(Training_TransNet, f"{names} {line}", "--convOut_path", tmp_path / "old", "--out", tmp_path)
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    folder = tmp_path / "model_checkpoints"
    old = folder / "CUB200_vgg16_bn/checkpoint_L30_a0.1_lr-4.pth.tar"
    new = folder / "folder_resnet18/checkpoint_L3_a0.1_lr-4.pth.tar"
    assert_same(checkpoint.load(old)["state_dict"], checkpoint.load(new)["state_dict"])
    reports = [
        run(Variance, "--t_or_v train", "--convOut_path", path, "--transnet", net)
        for path, net in ((tmp_path / "old", old), (road.features, new))
    ]
    assert reports[0]["var"] == reports[1]["var"]


def test_two_processes_do_the_same(road, photos, tmp_path):
    """ConvOutput, Training_TransNet and Variance under torchrun."""
    script = tmp_path / "road.py"
    features = tmp_path / "convOuts/folder_resnet18/folder_L3"
    steps = {
        "ConvOutput": ["--conv_layer", "3", "--t_or_v", "train", *road.nets[:-1], tmp_path],
        "Training_TransNet": [*shlex.split(f"{FIT} --suffix a0.1"), "--convOut_path", features, "--out", tmp_path],
        "Variance": [
            "--conv_layer", "3", "--net_in", road.a, "--net_tar", road.b, *data(photos), "--transnet", road.trans_net,
            "--json", tmp_path / "v.json",
        ],
    }  # fmt: skip
    # Each step is a process of its own in a shell; here they share one, and its group of processes.
    calls = ["import torch.distributed\ntorch.distributed.destroy_process_group = lambda: None\n"]
    calls += [f"import {name}\n{name}.main({[str(word) for word in words]})\n" for name, words in steps.items()]
    script.write_text("".join(calls))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("2 processes") == 3
    one, two = (open_features(folder, split="train") for folder in (road.features, features))
    assert one.paths == two.paths
    for ours, theirs in zip(one.__getitems__(range(24)), two.__getitems__(range(24))):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    first, second = (lines_of(out / "logs/folder_resnet18/L3_a0.1") for out in (road.out, tmp_path))
    for ours, theirs in zip(first, second):
        assert theirs["MSE"] == pytest.approx(ours["MSE"], rel=1e-3)
    alone = run(Variance, "", "--convOut_path", road.features, "--transnet", road.trans_net)
    assert json.loads((tmp_path / "v.json").read_text())["var"] == pytest.approx(alone["var"], rel=1e-5)


# --- what goes wrong


def truncated(road, tmp_path):
    path = tmp_path / "cut.pth.tar"
    path.write_bytes(road.a.read_bytes()[:100_000])
    return ConvOutput, "", "--resume1", path, "--resume2", road.b, r"cut\.pth\.tar is truncated or not a checkpoint"


def incomplete(road, tmp_path):
    shutil.copytree(road.features / "train", tmp_path / "train")
    index = json.loads((tmp_path / "train/index.json").read_text())
    (tmp_path / "train/index.json").write_text(json.dumps(index | {"complete": False}))
    written = np.load(tmp_path / "train/written.npy")
    written[10:] = False
    np.save(tmp_path / "train/written.npy", written)
    return Training_TransNet, "", "--convOut_path", tmp_path, r"train is incomplete: 10 of 24 images were stored before"


def foreign(road, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/holiday.jpg").touch()
    return Variance, "", "--convOut_path", tmp_path / "cache", "--transnet", road.trans_net, "no stored features in"


def trans_net_of_other_channels(road, tmp_path):
    photos = road.nets[road.nets.index("--train_path") + 1].parent
    return (
        Variance, "--conv_layer 2 --image_size 64", "--net_in", road.a, "--net_tar", road.b, *data(photos),
        "--transnet", road.trans_net, r"maps 256 channels to \(256, 4, 4\), but these features are \(128, 8, 8\)",
    )  # fmt: skip


MISTAKES = {
    "missing checkpoint": lambda road, tmp_path: (
        ConvOutput, "", "--resume1", road.out / "model_checkpoints/none.pth.tar", "--resume2", road.b,
        r"no checkpoint at .*none\.pth\.tar; that folder has checkpoint_folder_resnet18_sd0\.pth\.tar",
    ),
    "missing trans-net": lambda road, tmp_path: (
        Variance, "", "--convOut_path", road.features, "--transnet", tmp_path / "g.pth.tar", r"no checkpoint at .*g\.p",
    ),
    "truncated checkpoint": truncated,
    "wrong architecture": lambda road, tmp_path: (
        ConvOutput, "--arch vgg16", "--resume1", road.a, "--resume2", road.b, "holds a resnet18, --arch says vgg16",
    ),
    "a classifier as trans-net": lambda road, tmp_path: (
        Variance, "", "--convOut_path", road.features, "--transnet", road.a, "holds no Trans-Net",
    ),
    "a trans-net as classifier": lambda road, tmp_path: (
        ConvOutput, "", "--resume1", road.a, "--resume2", road.trans_net, "holds a Trans-Net, a classifier is expected",
    ),
    "no such layer": lambda road, tmp_path: (
        ConvOutput, "--layer layer3.1.ad --image_size 64", *road.nets, r"no layer 'layer3\.1\.ad'.*layer3\.1\.add",
    ),
    "no such stage": lambda road, tmp_path: (
        ConvOutput, "--conv_layer 7 --image_size 64", *road.nets, "the layers of a ResNet are 1 to 4 .*, not 7",
    ),
    "missing data": lambda road, tmp_path: (
        Training, "--dataset CUB200", "--data_root", tmp_path / "nowhere", "--out", tmp_path, "nowhere",
    ),
    "empty data": lambda road, tmp_path: (
        Training, "--dataset folder", "--val_path", tmp_path, "--train_path", tmp_path, "--out", tmp_path / "out",
        str(tmp_path),
    ),
    "no such architecture": lambda road, tmp_path: (
        Training, "--arch vgg16bn --image_size 64", *road.nets[4:-1], tmp_path, "the nearest name is vgg16_bn",
    ),
    "incomplete features": incomplete,
    "a foreign folder as features": foreign,
    "features of another layer": lambda road, tmp_path: (
        Training_TransNet, "--conv_layer 4", "--convOut_path", road.features, 'have layer = "3", expected "4"',
    ),
    "a trans-net of other channels": trans_net_of_other_channels,
    "a trans-net of other options": lambda road, tmp_path: (
        Training_TransNet, "--bn", "--convOut_path", road.features, "--resume", road.trans_net, "--out", tmp_path,
        "holds a Trans-Net of other options or shapes",
    ),
    "another optimiser": lambda road, tmp_path: (
        Training, "--optim Adam --epochs 3 --image_size 64", *road.nets[4:-1], tmp_path, "--resume", road.a,
        "was trained with another optimiser",
    ),
    "nothing to evaluate": lambda road, tmp_path: (
        Training, "--evaluate --arch resnet18 --image_size 64", *road.nets[4:-1], tmp_path,
        "--evaluate needs a trained network",
    ),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(road, tmp_path, capsys, mistake):
    script, line, *words, message = MISTAKES[mistake](road, tmp_path)
    before = files(tmp_path)
    with pytest.raises(SystemExit, match=message) as exit_:
        run(script, line, *words)
    assert isinstance(exit_.value.code, str)  # which Python prints to stderr before it exits with 1
    assert exit_.value.code.startswith(f"{script.__name__}.py: ")
    assert "\n" not in exit_.value.code
    assert capsys.readouterr().err == ""
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("script", "line", "message"),
    [
        (Training_TransNet, "--alpha [0.1]", "--alpha has 1 entries, --layers 3 needs 2, highest order first"),
        (Training_TransNet, "--alpha [0.1,0.1,0.1]", "--alpha has 3 entries, --layers 3 needs 2"),
        (Training_TransNet, "--alpha 0.1,0.1 --layers 4", "--alpha has 2 entries, --layers 4 needs 3"),
        (Variance, "--transnet g", "name both --net_in and --net_tar, or --convOut_path"),
        (Variance, "--transnet g --net_in a", "name both --net_in and --net_tar, or --convOut_path"),
        (ConvOutput, "--resume1 a", "--resume2"),
    ],
)
def test_options_that_do_not_fit_together_end_with_2(script, line, message, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(script, line)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_a_mistake_in_a_shell(tmp_path):
    """The exit code is 1, and the one line stands on stderr alone."""
    words = [sys.executable, str(ROOT / "Variance.py"), "--convOut_path", str(tmp_path), "--transnet", "none.pth.tar"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "Variance.py: no checkpoint at none.pth.tar; train it first or correct the path\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_a_shell(script):
    words = [sys.executable, str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script}.py ")
    assert "(default: " in done.stdout


def test_resuming_by_itself_does_not_mix_two_runs(photos, tmp_path):
    words = [
        "--dataset", "folder", "--train_path", f"{photos}/train", "--val_path", f"{photos}/val", "--arch", "resnet18",
        "--image_size", "32", "-b", "12", "-j", "0", "--out", str(tmp_path), "--resume", "auto",
    ]  # fmt: skip
    Training.main([*words, "--epochs", "1"])
    for changed, said in (
        (["--image_size", "48"], "image_size 32 instead of 48"),
        (["--seed", "1"], "seed 0 instead of 1"),
    ):
        with pytest.raises(SystemExit, match=said):
            Training.main([*words, "--epochs", "2", *changed])
