"""Two nets that were trained on images of other constants:
each sees them as it did, in every step.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import Calibrate
import ConvOutput
import Report
import Training
import Training_TransNet
import transClassifier
import Variance
from models.classifiers import build, classifier_record, load_classifier
from models.split import split
from tests.e2e.refined import ARCH, CLASSES, FOLDER, LAYER, SIZE
from tests.e2e.road import change, data, run
from tests.mistakes import refused
from utils import checkpoint
from utils.data.images import load_images
from utils.features.cache import open_features
from utils.normalisation import NORMALISATIONS
from utils.pixels import FromPixels

pytestmark = pytest.mark.e2e
HALF, PER_IMAGE = NORMALISATIONS["half"], NORMALISATIONS["cifar10_per_image"]
SIX = "0.4914,0.4822,0.4465,0.2023,0.1994,0.2010"
FIT = "--layers 1 --solve --epochs 0 --no_reference -b 7 -j 0"


def images(photos, split_name):
    way = {"image_size": SIZE, "resize": FOLDER["resize"]}
    return load_images("folder", split_name, data_root="", path=photos / split_name, **way)


@torch.no_grad()
def make_net(path, photos, seed, constants, **facts):
    """Save a net whose last layer is solved for all photos
    as `constants` normalise them: it is right of all.
    """
    torch.manual_seed(seed)
    model = build(ARCH, len(CLASSES))
    reader = FromPixels(model, constants)
    both = [images(photos, name).__getitems__(range(24)) for name in ("train", "val")]
    pixels, targets = (torch.cat(parts) for parts in list(zip(*both))[:2])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    reader.train()(pixels)
    last, model.classifier[-1] = model.classifier[-1], nn.Identity()
    feature = reader.eval()(pixels)
    model.classifier[-1] = last
    mean = feature.mean(0)
    last.weight.copy_(
        torch.linalg.lstsq(feature - mean, nn.functional.one_hot(targets).float(), driver="gelsd")[
            0
        ].T
    )
    last.bias.copy_(-(last.weight @ mean))
    assert (reader(pixels).argmax(1) == targets).all()
    state = {
        "epoch": 1,
        "arch": ARCH,
        "model": classifier_record(ARCH, len(CLASSES)),
        "data": FOLDER | facts,
    }
    checkpoint.save(path, state | {"state_dict": model.state_dict()})


def forth(folder):
    """Give the Trans-Net A → B that was fitted; the other direction lies beside it."""
    files = folder.glob("model_checkpoints/*/*.pth.tar")
    (path,) = (file for file in files if not file.name.endswith("_reverse.pth.tar"))
    return path


@pytest.fixture(scope="module")
def nets(photos, tmp_path_factory):
    """Net A says its constants itself, net B's are named by an option;
    features and a Trans-Net, only to be read.
    """
    folder = tmp_path_factory.mktemp("nets")
    a, b = folder / "A.pth.tar", folder / "B.pth.tar"
    make_net(a, photos, 0, HALF, normalisation=HALF)
    make_net(b, photos, 5, PER_IMAGE)
    words = f"--layer {LAYER} --t_or_v both -b 7 -j 0 --normalisation2 {SIX}"
    run(ConvOutput, words, "--resume1", a, "--resume2", b, *data(photos), "--out", folder)
    features = next(folder.glob("convOuts/*/*"))
    run(Training_TransNet, FIT, "--convOut_path", features, "--out", folder)
    trans_net = forth(folder)
    return SimpleNamespace(folder=folder, a=a, b=b, features=features, trans_net=trans_net)


def readers(nets):
    """Both nets from pixels, cut at the layer, each with its own constants."""
    for path, constants in ((nets.a, HALF), (nets.b, PER_IMAGE)):
        head, tail = split(load_classifier(path), LAYER)
        yield (
            FromPixels(head.eval(), constants),
            FromPixels(nn.Sequential(head, tail).eval(), constants),
        )


@torch.no_grad()
def test_stored_features_and_accuracies_are_each_nets_own(nets, photos):
    for name in ("train", "val"):
        stored = open_features(nets.features, split=name)
        pixels, targets, _ = images(photos, name).__getitems__(range(24))
        of_nets = zip(
            readers(nets), stored.__getitems__(range(24))[:2], (stored.hits_a, stored.hits_b)
        )
        for (head, whole), feature, hits in of_nets:
            expected = head(pixels)
            assert (feature - expected).abs().max() < 1e-5 * expected.abs().max()
            assert torch.equal(hits[:, 0], whole(pixels).argmax(1) == targets) and hits[:, 0].all()
        assert (stored.provenance.a.normalisation, stored.provenance.b.normalisation) == (
            HALF,
            PER_IMAGE,
        )


def test_a_wrong_constant_would_be_seen(nets, photos, tmp_path):
    """So the tests here would break if a net were given the other one's."""
    words = f"--layer {LAYER} --t_or_v val -b 7 -j 0 --normalisation half"
    run(
        ConvOutput,
        words,
        "--resume1",
        nets.a,
        "--resume2",
        nets.b,
        *data(photos),
        "--out",
        tmp_path,
    )
    wrong, right = (
        open_features(folder, split="val")
        for folder in (next(tmp_path.glob("convOuts/*/*")), nets.features)
    )
    (_, b, *_), (_, expected, *_) = (
        features.__getitems__(range(24)) for features in (wrong, right)
    )
    assert (b - expected).abs().max() > 0.1 * expected.abs().max()


def test_a_live_fit_is_the_stored_one(nets, photos, tmp_path):
    words = f"{FIT} --layer {LAYER} --normalisation2 {SIX}"
    run(
        Training_TransNet,
        words,
        "--net_A",
        nets.a,
        "--net_B",
        nets.b,
        *data(photos),
        "--out",
        tmp_path,
    )
    live, stored = (checkpoint.load(path) for path in (forth(tmp_path), nets.trans_net))
    assert live["source"] == stored["source"]
    assert live["held_out"] == pytest.approx(stored["held_out"], rel=1e-5)
    assert live["source"]["normalisation_b"] == PER_IMAGE


def test_variances_by_the_nets_are_those_of_the_features_by_what_the_trans_net_says(nets, photos):
    line = "--t_or_v val --bootstrap 0 -b 7 -j 0"
    of_nets = ("--net_in", nets.a, "--net_tar", nets.b, *data(photos))
    live = run(Variance, line, "--transnet", nets.trans_net, *of_nets)
    stored = run(Variance, line, "--transnet", nets.trans_net, "--convOut_path", nets.features)
    assert live["instability"] == pytest.approx(stored["instability"], rel=1e-5)
    assert live["doubts"] == stored["doubts"] == []
    with refused(nets.trans_net, "cifar10_per_image", "net B", "imagenet", kind=SystemExit):
        run(Variance, f"{line} --normalisation2 imagenet", "--transnet", nets.trans_net, *of_nets)


@pytest.mark.parametrize("words", ["--input raw_A", f"--input raw_B --normalisation2 {SIX}"])
def test_a_refined_tail_begins_with_its_nets_accuracy(nets, photos, tmp_path, capsys, words):
    of_nets = ("--net_A", nets.a, "--net_B", nets.b, *data(photos))
    line = f"{words} --layer {LAYER} --epochs 0 -b 7 -j 0"
    run(transClassifier, line, *of_nets, "--out", tmp_path)
    assert "val_top1_prec 100" in capsys.readouterr().out


def test_a_classifiers_accuracy_is_measured_by_its_record(nets, photos, tmp_path, capsys):
    line = ("-e --image_size 32 -j 0", "--resume", nets.a, *data(photos), "--out", tmp_path)
    run(Training, *line)
    assert "val_top1_prec 100" in (printed := capsys.readouterr().out) and "note" not in printed


def test_a_trans_nets_null_sees_the_images_as_the_nets_do(nets, photos, tmp_path):
    """An untrained B reads pixels by B's constants:
    it is found, and no note says that it is left out.
    """
    line = "--bootstrap 100 --permutations 0 -j 0"
    words = ("--convOut_path", nets.features, "--transnet", nets.trans_net, *data(photos)[4:])
    report = run(Calibrate, line, *words)
    assert any("B untrained" in row["pairs"] for row in report["rows"]) and report["notes"] == []


# --- doubts


@pytest.fixture(scope="module")
def chance(nets, photos, tmp_path_factory):
    """Net B with one answer for all images,
    its checkpoint's record of 96 %; features and a Trans-Net of it.
    """
    folder = tmp_path_factory.mktemp("chance")
    b = folder / "B.pth.tar"
    state = checkpoint.load(nets.b)
    state["state_dict"]["classifier.3.bias"] = torch.tensor([0.0, 1e6, 0.0])
    # A record of the images says that the accuracy is of all of them.
    checkpoint.save(b, state | {"acc1": 96.0, "images": {}})
    words = f"--layer {LAYER} --t_or_v both -b 7 -j 0 --normalisation2 {SIX}"
    run(ConvOutput, words, "--resume1", nets.a, "--resume2", b, *data(photos), "--out", folder)
    return SimpleNamespace(a=nets.a, b=b, features=next(folder.glob("convOuts/*/*")), folder=folder)


AT_CHANCE = (
    "net B is right for 33.3 % of these images, and the most frequent class alone makes 33.3 %"
)
OF_RECORD = "net B is right for 33.3 % of these images, its checkpoint says 96.0 %"


def are_said(sentences):
    return [AT_CHANCE in sentences[0], OF_RECORD in sentences[1], len(sentences) == 2]


def test_a_net_at_chance_is_called_out_where_features_are_stored(chance, photos, tmp_path, capsys):
    words = f"--layer {LAYER} --t_or_v val -b 7 -j 0 --normalisation2 {SIX}"
    run(
        ConvOutput,
        words,
        "--resume1",
        chance.a,
        "--resume2",
        chance.b,
        *data(photos),
        "--out",
        tmp_path,
    )
    printed = capsys.readouterr().out
    assert (
        f"doubt: {AT_CHANCE}" in printed
        and f"doubt: {OF_RECORD}" in printed
        and "net A is right" not in printed
    )
    index = json.loads((chance.features / "val" / "index.json").read_text())
    assert all(are_said(index["doubts"])) and index["complete"] is True


@pytest.mark.parametrize("live", [False, True])
def test_a_net_at_chance_is_called_out_by_every_step_that_shows_a_number(
    chance, photos, tmp_path, capsys, live
):
    of_nets = ("--net_A", chance.a, "--net_B", chance.b, *data(photos))
    of_features = ("--convOut_path", chance.features)
    options = f"--layer {LAYER} --normalisation2 {SIX}" if live else ""
    line = f"--layers 1 --solve --epochs 1 -b 7 -j 0 --no_reference {options}"
    run(Training_TransNet, line, *(of_nets if live else of_features), "--out", tmp_path)
    printed = capsys.readouterr().out
    assert (
        f"doubt: {AT_CHANCE}" in printed and f"DOUBTFUL: {AT_CHANCE}" in printed.split("saved ")[1]
    )
    (line_of_log,) = next(tmp_path.glob("logs/**/metrics.jsonl")).read_text().splitlines()
    trans_net = forth(tmp_path)
    assert all(are_said(json.loads(line_of_log)["doubts"])) and all(
        are_said(checkpoint.load(trans_net)["doubts"])
    )

    results = tmp_path / "results"
    results.mkdir()
    where = ("--net_in", chance.a, "--net_tar", chance.b, *data(photos)) if live else of_features
    words = ("--transnet", trans_net, "--json", results / "variance.json")
    run(Variance, "--bootstrap 0 -b 7 -j 0", *where, *words)
    assert f"doubt: {AT_CHANCE}" in capsys.readouterr().out
    assert all(are_said(json.loads((results / "variance.json").read_text())["doubts"]))
    if not live:
        words = ("--transnet", trans_net, "--json", results / "calibration.json")
        run(
            Calibrate,
            "--brief --bootstrap 100 --permutations 0 -j 0",
            *of_features,
            *words,
        )
        assert f"doubt: {AT_CHANCE}" in capsys.readouterr().out
        assert all(are_said(json.loads((results / "calibration.json").read_text())["doubts"]))
    run(Report, "", results, "--out", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert (
        page.count("<strong>Doubtful") == (2 if live else 4) and f">{AT_CHANCE}: it seems" in page
    )
    run(Report, "", results, "--check", tmp_path / "page.html")


def test_what_a_checkpoint_says_of_other_images_is_not_compared(chance, photos, tmp_path, capsys):
    other = tmp_path / "B.pth.tar"
    checkpoint.save(other, checkpoint.load(chance.b))
    change(other, data=FOLDER | {"dataset": "CUB200", "name": None})
    words = f"--layer {LAYER} --t_or_v val -b 7 -j 0 --normalisation2 {SIX}"
    run(
        ConvOutput,
        words,
        "--resume1",
        chance.a,
        "--resume2",
        other,
        *data(photos),
        "--out",
        tmp_path,
    )
    printed = capsys.readouterr().out
    assert AT_CHANCE in printed and OF_RECORD not in printed
