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
from utils import checkpoint, opening
from utils.features.cache import open_features
from utils.files import sha256
from utils.runs import RunLog

pytestmark = pytest.mark.e2e


def test_the_trans_nets_losses_are_eq_2(road):
    state, last = checkpoint.load(road.trans_net), lines_of(road.out / "logs/folder_resnet18/L1_a0.1")[-1]
    net = load_trans_net(road.trans_net)
    x, target, *_ = open_features(road.features, split="val").__getitems__(list(range(24)))
    with torch.no_grad():
        left, whole = (part.double().var((0, 2, 3), correction=0).mean() for part in (target - net(x), target))
    assert float(left / whole) == pytest.approx(last["val_instability"], rel=1e-5)
    assert state["linear_reference"]["instability"] == last["linear_reference"]
    assert state["linear_reference"]["measured_on"] == "held-out images"
    assert last["Loss"] == pytest.approx(last["MSE"] + last["L2_loss"], rel=1e-6)
    assert last["L2_loss"] == pytest.approx(0.1 * (last["p1"] ** 2 + last["p2"] ** 2), rel=1e-3)
    assert (state["epoch"], state["settings"]["alpha"], state["arch"]) == (2, [0.1, 0.1], "resnet18")
    assert state["source"] == open_features(road.features, split="train").provenance.to_record()


def test_alpha_begins_with_the_highest_order(road, tmp_path):
    """Entry 0 belongs to p(K): with [50,0] it is p2 that is pushed down, and the loss is 50·p2²."""
    line = "--alpha [50,0] --optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L1")
    assert (first["p1"], first["p2"], first["L2_loss"]) == (0.5, 0.5, 12.5)
    assert second["p2"] < 0.4 < second["p1"]
    assert second["L2_loss"] == pytest.approx(50 * second["p2"] ** 2, rel=1e-5)


@pytest.mark.parametrize(("flag", "penalised", "moves"), [("--L2", False, True), ("--fix_p", True, False)])
def test_switches_of_p(road, tmp_path, flag, penalised, moves):
    line = f"--optim SGD --lr 0.05 --momentum 0 --logspace 0 --epochs 2 -b 24 --alpha [5,5] {flag}"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    first, second = lines_of(tmp_path / "logs/folder_resnet18/L1")
    assert first["L2_loss"] == (2.5 if penalised else 0)
    assert (second["p1"] != 0.5) == moves


@pytest.mark.parametrize("options", ["", "--norm batch --bn --affine --optim SGD"])
def test_a_resumed_fit_equals_an_uninterrupted_one(road, tmp_path, interrupt, options):
    line = f"{FIT} --save_epoch 1 {options}"
    whole, torn = (("--convOut_path", road.features, "--out", tmp_path / name) for name in ("whole", "torn"))
    run(Training_TransNet, line, *whole)
    interrupt(Training_TransNet, line, *torn)
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert checkpoint.load(tmp_path / "torn" / path)["epoch"] == 1
    resume = "auto" if options else tmp_path / "torn" / path
    run(Training_TransNet, line, *torn, "--resume", resume)
    assert_same(checkpoint.load(tmp_path / "torn" / path), checkpoint.load(tmp_path / "whole" / path))
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
    """The stored features as the authors stored theirs: one file an image, which says nothing of the nets."""
    stored = open_features(road.features, split="train")
    folder = tmp_path / "old"
    folder.mkdir()
    for index in range(24):
        (a,), (b,), (target,), _ = stored.__getitems__([index])
        sample = {"target": target, "pred1": torch.ones(1), "pred2": torch.ones(1), "convOut1": a, "convOut2": b}
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


@pytest.mark.parametrize(("line", "label"), [("--conv_layer 0", "0"), ("--fc --conv_layer 0", "fc0"), ("", "40")])
def test_old_features_are_called_by_the_layer_that_is_named(old_features, tmp_path, line, label):
    run(Training_TransNet, f"{line} --epochs 1 --layers 1", "--convOut_path", old_features, "--out", tmp_path)
    assert files(tmp_path / "model_checkpoints") == [f"CUB200_vgg16_bn/checkpoint_L{label}.pth.tar"]


def test_the_penultimate_feature_can_be_matched(road, tmp_path):
    """Nothing is learned at a rate of 0, so the epoch's error is the saved Trans-Net's, through B's own layers."""
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
    with pytest.raises(SystemExit, match="fitted with --match penultimate, which is not repeated here"):
        run(Calibrate, "", "--convOut_path", road.features, "--transnet", path)


# --- several fits in one reading

FAMILY = "--standardise --solve --alpha 0.1 --lr 0.001 --epochs 2 -b 10 --val_epoch 1 --save_epoch 1"
NAMES = [f"layers{n}{way}_seed{seed}" for way in ("", "_reverse") for n in (1, 2) for seed in (3, 4)]


@pytest.fixture(scope="module")
def family(road, tmp_path_factory):
    """Trans-Nets of two depths, both directions and two seeds, from one reading; only to be read."""
    out = tmp_path_factory.mktemp("family")
    words = ("--convOut_path", road.features, "--out", out)
    run(Training_TransNet, f"{FAMILY} --layers 1,2 --both_directions --seeds 3,4", *words)
    return out


def of_family(out, name):
    return checkpoint.load(out / f"model_checkpoints/folder_resnet18/checkpoint_L1_{name}.pth.tar")


def test_each_of_a_family_has_its_own_files(family):
    assert files(family / "model_checkpoints") == sorted(
        f"folder_resnet18/checkpoint_L1_{name}.pth.tar" for name in NAMES
    )
    assert files(family / "logs") == sorted(
        f"folder_resnet18/L1_{name}/{file}" for name in NAMES for file in ("events.out.tfevents", "metrics.jsonl")
    )
    weights = [of_family(family, name)["state_dict"]["linear.1.weight"] for name in NAMES if "layers2" in name]
    assert not any(torch.equal(weights[i], weights[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize(("name", "words"), [
    ("layers2_reverse_seed4", "--layers 2 --reverse --seeds 4"),
    ("layers2_seed3", "--layers 2 --seeds 3"),
    ("layers1_reverse_seed3", "--layers 1 --alpha [] --reverse --seeds 3"),
])  # fmt: skip
def test_one_of_a_family_is_what_it_is_alone(road, family, tmp_path, name, words, epochs, capsys):
    """To the bit: weights, optimiser, settings, provenance, linear reference, log; so the single command knows it."""
    line = f"{FAMILY} {words} --suffix {name}"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    assert_same(of_family(tmp_path, name), of_family(family, name))
    log = f"logs/folder_resnet18/L1_{name}"
    assert lines_of(tmp_path / log) == lines_of(family / log)
    epochs.trained.clear()
    run(Training_TransNet, f"{line} --resume auto", "--convOut_path", road.features, "--out", family)
    assert epochs.trained == [] and "is fitted for 2 epochs already" in capsys.readouterr().out
    for others, said in (("--seeds 9", "initial_seed [34] instead of 9"), ("--seed 9", "seed 0 instead of 9")):
        with pytest.raises(SystemExit, match=f"is of another run, with {said}"):
            run(Training_TransNet, f"{line} --resume auto {others}", "--convOut_path", road.features, "--out", family)


def test_a_family_is_measured_like_single_fits(road, family, capsys):
    folder = family / "model_checkpoints/folder_resnet18"
    there, back = (folder / f"checkpoint_L1_layers2{way}_seed3.pth.tar" for way in ("", "_reverse"))
    for path, direction in ((there, ""), (back, "--reverse")):
        report = run(Variance, direction, "--convOut_path", road.features, "--transnet", path)
        instability = report["var"]["residual"] / report["var"]["target"]
        assert checkpoint.load(path)["held_out"] == pytest.approx(instability, rel=1e-5)
        budget = "--brief --epochs 0 --permutations 0 --bootstrap 100"
        rows = run(Calibrate, f"{budget} {direction}", "--convOut_path", road.features, "--transnet", path)["rows"]
        assert rows[0]["value"] == pytest.approx(instability, rel=1e-4)
    with pytest.raises(SystemExit, match=r"nets A and B exchanged \(the direction of --reverse\)"):
        run(Variance, "", "--convOut_path", road.features, "--transnet", back)


def test_an_interrupted_family_goes_on(road, family, tmp_path, epochs, capsys, monkeypatch):
    """The logs of eight are written in turns: the run ends in the second epoch, before its fourth."""
    words = ("--convOut_path", road.features, "--out", tmp_path)
    line = f"{FAMILY} --layers 1,2 --both_directions --seeds 3,4"
    epochs.stop_at[:] = [8]
    with pytest.raises(SystemExit):
        run(Training_TransNet, line, *words)
    epochs.stop_at.clear()
    assert {of_family(tmp_path, name)["epoch"] for name in NAMES} == {1}
    capsys.readouterr()
    run(Training_TransNet, f"{line} --resume auto", *words)
    for name in NAMES:
        assert_same(of_family(tmp_path, name)["state_dict"], of_family(family, name)["state_dict"])
        assert_same(of_family(tmp_path, name)["optimizer"], of_family(family, name)["optimizer"])
        log = f"logs/folder_resnet18/L1_{name}"
        assert lines_of(tmp_path / log) == lines_of(family / log)
    said = capsys.readouterr().out
    assert sum(line.startswith("saved ") for line in said.splitlines()) == len(NAMES)
    folder = tmp_path / "model_checkpoints/folder_resnet18"
    commands = [line.split() for line in said.splitlines() if line.startswith("next: ")]
    for command, way in zip(commands, ("", "_reverse"), strict=True):
        assert ("--reverse" in command) == bool(way)
        assert command[-2:] == [str(folder / f"checkpoint_L1_layers{n}{way}_seed3.pth.tar") for n in (1, 2)]


def test_all_of_a_family_are_saved_at_once_where_time_is_up(road, tmp_path, monkeypatch):
    """One that is saved an epoch after the others could not go on with them."""
    overdue = iter([False, True] + [False] * 9)
    monkeypatch.setattr(RunLog, "overdue", property(lambda _: next(overdue)))
    saved = []
    monkeypatch.setattr(RunLog, "saved", lambda log, path, epoch: saved.append(epoch))
    line = "--layers 1,2,3 --alpha 0.1 --epochs 2 -b 12 --no_reference"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path)
    assert saved == [1, 1, 1, 2, 2, 2]


def test_the_penultimate_features_of_both_nets_can_be_matched(road, tmp_path):
    line = "--layers 1 --lr 0.001 --epochs 1 -b 10 --match penultimate --draw --hold_out 0.25"
    words = ("--convOut_path", road.features / "train", "--out")
    run(Training_TransNet, f"{line} --both_directions", *words, tmp_path / "both")
    run(Training_TransNet, f"{line} --reverse --suffix reverse", *words, tmp_path / "alone")
    both, alone = (of_family(tmp_path / name, "reverse") for name in ("both", "alone"))
    assert_same(both, alone)
    assert both["held_out"] is not None


# --- features that are computed whenever they are read


LIVE = "--conv_layer 1 -j 0"


@pytest.mark.parametrize(("options", "images"), [
    ("--standardise --solve --layers 1,2 --alpha 0.1 --both_directions", ""),
    ("--match penultimate --draw --layers 1 --alpha []", "--cache_images off"),
])  # fmt: skip
def test_a_live_fit_is_a_stored_one_to_the_bit(road, photos, tmp_path, epochs, capsys, options, images):
    """And whichever it was, the other would go on with it."""
    line = f"{FIT} --save_epoch 1 {options}"
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out", tmp_path / "live")
    run(Training_TransNet, f"{line} {LIVE} {images}", *nets)
    said = capsys.readouterr().out
    assert "these features take 3.15 MB on disk as float32, or 4.5 GFLOP to compute in every epoch\n" in said
    assert ("24 train images of folder ready in memory" in said) != bool(images)
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path / "stored")
    assert "these features take" not in capsys.readouterr().out
    names = files(tmp_path / "stored/model_checkpoints")
    assert files(tmp_path / "live/model_checkpoints") == names
    for name in names:
        ours, theirs = (checkpoint.load(tmp_path / kind / "model_checkpoints" / name) for kind in ("live", "stored"))
        assert_same(ours, theirs)
    epochs.trained.clear()
    run(Training_TransNet, f"{line} --resume auto", "--convOut_path", road.features, "--out", tmp_path / "live")
    assert epochs.trained == [] and "is fitted for 2 epochs already" in capsys.readouterr().out


def test_large_images_come_few_at_a_time_and_give_the_same_fit(road, photos, tmp_path, monkeypatch):
    """Sums over images in order are then of other batches, and rounded otherwise: equal to 1e-6 of the largest."""
    line = f"{FIT} --standardise --solve"
    run(Training_TransNet, line, "--convOut_path", road.features, "--out", tmp_path / "stored")
    monkeypatch.setattr(opening, "PIXELS_AT_ONCE", 3 * 64**2)
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out", tmp_path / "live")
    run(Training_TransNet, f"{line} {LIVE}", *nets)
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    ours, theirs = (checkpoint.load(tmp_path / kind / path) for kind in ("live", "stored"))
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(ours["state_dict"][name], weight, rtol=0, atol=1e-6 * float(weight.abs().max()))
    assert ours["held_out"] == pytest.approx(theirs["held_out"], rel=1e-6)


def test_a_live_fit_holds_images_out_and_names_the_nets_to_measure_it(road, photos, tmp_path, capsys):
    line, out = f"{FIT} {LIVE} --hold_out 0.25 --both_directions", ("--out", tmp_path)
    images = ("--dataset", "folder", "--train_path", photos / "train")
    run(Training_TransNet, line, "--net_A", road.a, "--net_B", road.b, "--name", "folder", *images, *out)
    said = capsys.readouterr().out
    assert "18 images: " in said
    words = [line.removeprefix("next: python Variance.py ") for line in said.splitlines() if line.startswith("next: ")]
    for command, name in zip(words, ("L1", "L1_reverse"), strict=True):
        path = tmp_path / f"model_checkpoints/folder_resnet18/checkpoint_{name}.pth.tar"
        reports = [
            run(Variance, command),
            run(Variance, "--t_or_v train" + " --reverse" * ("reverse" in name), "--transnet", path, "--convOut_path",
                road.features),
        ]  # fmt: skip
        assert reports[0]["var"] == pytest.approx(reports[1]["var"], rel=1e-5)
    held = checkpoint.load(tmp_path / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar")["held_out"]
    stored = ("--convOut_path", road.features / "train", "--out", tmp_path / "stored")
    run(Training_TransNet, f"{FIT} --hold_out 0.25", *stored)
    path = tmp_path / "stored/model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert checkpoint.load(path)["held_out"] == held


def test_an_interrupted_live_fit_goes_on(road, photos, tmp_path, interrupt):
    line = f"{FIT} {LIVE} --save_epoch 1 --cache_images off"
    nets = ("--net_A", road.a, "--net_B", road.b, *data(photos), "--out")
    run(Training_TransNet, line, *nets, tmp_path / "whole")
    interrupt(Training_TransNet, line, *nets, tmp_path / "torn")
    run(Training_TransNet, f"{line} --resume auto", *nets, tmp_path / "torn")
    path = "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    assert_same(checkpoint.load(tmp_path / "torn" / path), checkpoint.load(tmp_path / "whole" / path))
