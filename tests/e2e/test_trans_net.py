"""Training_TransNet.py: the loss, both directions, other layers, other files."""

import shutil

import pytest
import torch

import Calibrate
import ConvOutput
import Training_TransNet
import Variance
from models.classifiers import build, load_classifier
from models.split import split
from models.trans_net import load_trans_net
from tests.e2e.road import FIT, assert_same, data, files, lines_of, run
from tests.mistakes import refused
from utils import checkpoint
from utils.features.cache import open_features
from utils.files import sha256

pytestmark = pytest.mark.e2e


def test_the_trans_nets_losses_are_eq_2(road):
    state, last = (
        checkpoint.load(road.trans_net),
        lines_of(road.out / "logs/folder_resnet18/L1_a0.1")[-1],
    )
    net = load_trans_net(road.trans_net)
    x, target, *_ = open_features(road.features, split="val").__getitems__(list(range(24)))
    with torch.no_grad():
        left, whole = (
            part.double().var((0, 2, 3), correction=0).mean() for part in (target - net(x), target)
        )
    assert float(left / whole) == pytest.approx(last["val_instability"], rel=1e-5)
    assert state["linear_reference"]["instability"] == last["linear_reference"]
    assert state["linear_reference"]["measured_on"] == "held-out images"
    assert last["Loss"] == pytest.approx(last["MSE"] + last["L2_loss"], rel=1e-6)
    assert last["L2_loss"] == pytest.approx(0.1 * (last["p1"] ** 2 + last["p2"] ** 2), rel=1e-3)
    assert (state["epoch"], state["settings"]["alpha"], state["arch"]) == (
        2,
        [0.1, 0.1],
        "resnet18",
    )
    assert state["source"] == open_features(road.features, split="train").provenance.to_record()


def test_alpha_begins_with_the_highest_order(road, tmp_path):
    """Entry 0 belongs to p(K): with [50,0] it is p2 that is pushed down, and the loss is 50·p2²."""
    line = "--alpha [50,0] --optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L1")
    assert (first["p1"], first["p2"], first["L2_loss"]) == (0.5, 0.5, 12.5)
    assert second["p2"] < 0.4 < second["p1"]
    assert second["L2_loss"] == pytest.approx(50 * second["p2"] ** 2, rel=1e-5)


@pytest.mark.parametrize(
    ("flag", "penalised", "moves"), [("--L2", False, True), ("--fix_p", True, False)]
)
def test_switches_of_p(road, tmp_path, flag, penalised, moves):
    line = f"--optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24 --alpha [5,5] {flag}"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L1")
    assert first["L2_loss"] == (2.5 if penalised else 0)
    assert (second["p1"] != 0.5) == moves


@pytest.mark.parametrize("options", ["", "--norm batch --bn --affine --optim SGD"])
def test_a_resumed_fit_equals_an_uninterrupted_one(road, tmp_path, interrupt, options):
    line = f"{FIT} --save_epoch 1 {options}"
    whole, torn = (
        ("--convOut_path", road.features, "--out", tmp_path / name) for name in ("whole", "torn")
    )
    run(Training_TransNet, line, *whole)
    interrupt(Training_TransNet, line, *torn)
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert checkpoint.load(tmp_path / "torn" / path)["epoch"] == 1
    resume = "auto" if options else tmp_path / "torn" / path
    run(Training_TransNet, line, *torn, "--resume", resume)
    assert_same(
        checkpoint.load(tmp_path / "torn" / path), checkpoint.load(tmp_path / "whole" / path)
    )
    logs = "logs/folder_resnet18/L1"
    assert lines_of(tmp_path / "torn" / logs) == lines_of(tmp_path / "whole" / logs)


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
        run(
            Training_TransNet,
            f"{FIT} --suffix {suffix} {reverse}",
            "--convOut_path",
            features,
            "--out",
            tmp_path,
        )
    folder = tmp_path / f"model_checkpoints/folder_{pair}"
    forth, back = (
        folder / f"checkpoint_Lfeatures.8-layer2.1.add_{name}.pth.tar" for name in ("forth", "back")
    )
    shapes = ("in_channels", "out_channels", "out_size")
    assert [load_trans_net(forth).config[key] for key in shapes] == [48, 128, (8, 8)]
    assert [load_trans_net(back).config[key] for key in shapes] == [128, 48, (4, 4)]
    assert checkpoint.load(back)["source"]["checkpoint_a"] == sha256(road.b)

    stored_back = run(Variance, "--reverse", "--convOut_path", features, "--transnet", back)
    live_back = run(
        Variance,
        "--layer layer2.1.add --layer2 features.8",
        "--net_in",
        road.b,
        "--net_tar",
        a,
        *data(photos),
        "--transnet",
        back,
    )
    assert live_back["var"] == pytest.approx(stored_back["var"], rel=1e-5)
    stored_forth = run(Variance, "", "--convOut_path", features, "--transnet", forth)
    targets = [stored.__getitems__(range(24))[net].double() for net in (1, 0)]
    for report, target in zip((stored_forth, stored_back), targets):
        expected = (target - target.mean((0, 2, 3), keepdim=True)).square().mean()
        assert report["var"]["target"] == pytest.approx(float(expected), rel=1e-5)


def test_an_authors_checkpoint_and_fully_connected_features(photos, tmp_path, capsys):
    """PyTorch 1.0's format, `features.module.` keys;
    FC6 of AlexNet is a vector, and g a matrix on it.
    """
    torch.manual_seed(0)
    state = {
        key.replace("features.", "features.module."): value
        for key, value in build("alexnet", 3).state_dict().items()
    }
    net = tmp_path / "authors.pth.tar"
    torch.save(
        {
            "epoch": 300,
            "arch": "alexnet",
            "best_acc1": torch.tensor(56.97),
            "acc1": torch.tensor(56.1),
            "state_dict": {key: value.half() for key, value in state.items()},
            "optimizer": {},
        },
        net,
        _use_new_zipfile_serialization=False,
    )
    nets = ("--resume1", net, "--resume2", net, *data(photos), "--out", tmp_path)
    run(ConvOutput, "--arch alexnet --fc --conv_layer 1 --image_size 64", *nets)
    features = tmp_path / "convOuts/folder_alexnet/folder_Lfc1"
    x, target, *_ = open_features(features, split="train").__getitems__([0, 9, 23])
    assert x.shape == (3, 4096) and torch.equal(x, target) and x.std() > 0.01
    line = "--fc --conv_layer 1 --layers 1 --epochs 1 --optim SGD --momentum 0 --no_reference"
    run(Training_TransNet, line, "--convOut_path", features, "--out", tmp_path)
    path = tmp_path / "model_checkpoints/folder_alexnet/checkpoint_Lfc1.pth.tar"
    assert load_trans_net(path).linear[0].weight.shape == (4096, 4096, 1, 1)
    assert checkpoint.load(path)["linear_reference"] is None
    report = run(Variance, "--t_or_v train", "--convOut_path", features, "--transnet", path)
    assert list(report["var"]) == ["target", "order0", "output", "residual"]
    shutil.rmtree(tmp_path)


@pytest.fixture
def old_features(road, tmp_path):
    """The stored features as the authors stored theirs:
    one file an image, which says nothing of the nets.
    """
    stored = open_features(road.features, split="train")
    folder = tmp_path / "old"
    folder.mkdir()
    for index in range(24):
        (a,), (b,), (target,), _ = stored.__getitems__([index])
        sample = {
            "target": target,
            "pred1": torch.ones(1),
            "pred2": torch.ones(1),
            "convOut1": a,
            "convOut2": b,
        }
        torch.save(sample, folder / f"{index:06d}.pkl", _use_new_zipfile_serialization=False)
    return folder


def test_features_that_the_authors_stored(road, old_features, tmp_path):
    """By the documented command line: the same fit as from our cache of these features."""
    line = "--lr 0.0001 --alpha [0.1,0.1] --epochs 1 --suffix a0.1_lr-4"
    names = "--arch vgg16_bn --device_ids [0,0] --dataset CUB200 --conv_layer 30"
    run(Training_TransNet, f"{names} {line}", "--convOut_path", old_features, "--out", tmp_path)
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    folder = tmp_path / "model_checkpoints"
    old = folder / "CUB200_vgg16_bn/checkpoint_L30_a0.1_lr-4.pth.tar"
    new = folder / "folder_resnet18/checkpoint_L1_a0.1_lr-4.pth.tar"
    assert_same(checkpoint.load(old)["state_dict"], checkpoint.load(new)["state_dict"])
    reports = [
        run(Variance, "--t_or_v train", "--convOut_path", path, "--transnet", net)
        for path, net in ((old_features, old), (road.features, new))
    ]
    assert reports[0]["var"] == reports[1]["var"]


@pytest.mark.parametrize(
    ("line", "label"), [("--conv_layer 0", "0"), ("--fc --conv_layer 0", "fc0"), ("", "40")]
)
def test_old_features_are_called_by_the_layer_that_is_named(old_features, tmp_path, line, label):
    run(
        Training_TransNet,
        f"{line} --one_direction --epochs 1 --layers 1",
        "--convOut_path",
        old_features,
        "--out",
        tmp_path,
    )
    assert files(tmp_path / "model_checkpoints") == [f"CUB200_vgg16_bn/checkpoint_L{label}.pth.tar"]


def test_the_penultimate_feature_can_be_matched(road, tmp_path):
    """Nothing is learned at a rate of 0,
    so the epoch's error is the saved Trans-Net's, through B's own layers.
    """
    line = "--match penultimate --optim SGD --lr 0 --logspace 0 --epochs 1 -b 24"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    path = tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    x, target, *_ = open_features(road.features, split="train").__getitems__(list(range(24)))
    model = load_classifier(road.b)
    _, tail = split(model, "layer1.1.add")
    model.fc = torch.nn.Identity()
    tail.fc = torch.nn.Identity()
    with torch.no_grad():
        error = (tail(load_trans_net(path)(x)) - tail(target)).square().mean()
    (line,) = lines_of(tmp_path / "logs/folder_resnet18/L1")
    assert line["MSE"] == pytest.approx(float(error), rel=1e-4)
    assert checkpoint.load(path)["settings"]["match"] == "penultimate"
    with refused("Calibrate.py", path, "--match penultimate", kind=SystemExit):
        run(Calibrate, "", "--convOut_path", road.features, "--transnet", path)
