import copy
import itertools
import json
import math
import shlex

import pytest
import torch
from torch import nn

import transClassifier
from models.classifiers import build, classifier_record
from models.frozen_feature import FrozenFeature
from models.split import split
from models.trans_net import TransNet
from tests.e2e.road import truncate
from utils import checkpoint, runs
from utils.data.images import ImageData, load_images
from utils.data.loaders import make_loader
from utils.files import sha256
from utils.training import classification
from utils.training.classification import classify
from utils.training.engine import evaluate

pytestmark = pytest.mark.e2e
ARCH, LAYER, CHANNELS, SIZE = "mobilenet_v3_small", "features.4", 40, 32
CLASSES = ["blue", "green", "red"]
FOLDER = {"dataset": "folder", "name": "folder", "sample_num": "", "classes": CLASSES, "image_size": SIZE}


def make_classifier(path, seed, num_classes=3):
    """Save an untrained network whose answers differ from image to image."""
    torch.manual_seed(seed)
    model = build(ARCH, num_classes)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    model.train()(torch.randn(32, 3, SIZE, SIZE))  # statistics of its own
    model.classifier[-1].weight.data *= 10
    checkpoint.save(
        path,
        {
            "epoch": 1, "arch": ARCH, "model": classifier_record(ARCH, num_classes), "state_dict": model.state_dict(),
            "data": FOLDER | {"classes": CLASSES[:num_classes]},
        },
    )  # fmt: skip
    return model.eval()


def make_trans_net(path, source, channels=(CHANNELS, CHANNELS), seed=1):
    torch.manual_seed(seed)
    trans_net = TransNet(*channels).eval()
    checkpoint.save(path, {"trans_net": trans_net.config, "state_dict": trans_net.state_dict(), "source": source})
    return trans_net


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with nets A.pth and B.pth and Trans-Nets between them, and what they hold."""
    folder = tmp_path_factory.mktemp("trained")
    models = {net: make_classifier(folder / f"{net}.pth", seed) for net, seed in (("A", 0), ("B", 5))}
    source = {f"checkpoint_{net}": sha256(folder / f"{net.upper()}.pth") for net in "ab"}
    source |= {"layer_a": LAYER, "layer_b": LAYER}
    models["g"] = make_trans_net(folder / "g.pth", source)
    swapped = {"checkpoint_a": source["checkpoint_b"], "checkpoint_b": source["checkpoint_a"]}
    make_trans_net(folder / "reversed.pth", source | swapped)
    make_trans_net(folder / "other_layer.pth", source | {"layer_b": "features.5"})
    make_trans_net(folder / "other_net.pth", source | {"checkpoint_b": "0" * 64})
    make_trans_net(folder / "second.pth", source, seed=2)
    make_trans_net(folder / "narrow.pth", source, channels=(24, CHANNELS))
    return folder, models


@pytest.fixture
def refine(photos, trained, tmp_path, monkeypatch):
    """A function that runs the script in a folder of its own and gives what each validation measured."""
    validated = []

    def describe(metrics):  # as all that is measured is, in the terminal and in the log
        if "val_Loss" in metrics:
            validated.append(metrics)
        return original(metrics)

    original = runs.describe
    monkeypatch.setattr(runs, "describe", describe)
    folder, _ = trained
    options = {
        "--net_A": folder / "A.pth", "--net_B": folder / "B.pth", "--resume_Ys": folder / "g.pth", "--layer": LAYER,
        "--train_path": photos / "train", "--val_path": photos / "val", "-b": 7, "-j": 0, "--out": tmp_path,
        "--lr": 0.001, "--logspace": 0, "--name": "folder",
    }  # fmt: skip

    def run(*words, without=(), **others):
        chosen = {key: value for key, value in options.items() if key not in without}
        chosen |= {f"--{key}": value for key, value in others.items()}
        validated.clear()
        transClassifier.main([str(word) for pair in chosen.items() for word in pair] + [str(word) for word in words])
        return list(validated)

    return run


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def direct_loss(net, photos, cpu):
    """The validation loss of a module of normalised images."""
    data = load_images("folder", "val", data_root="", path=photos / "val", image_size=SIZE)
    return evaluate(net, make_loader(data, 7), classify, cpu)["Loss"]


def components(models, orders):
    def net(images):
        return models["g"].decompose(split(models["A"], LAYER)[0](images))[1][orders].sum(0)

    return net


FEATURES = {
    "A": lambda models: split(models["A"], LAYER)[0],
    "B": lambda models: split(models["B"], LAYER)[0],
    "x(0)": lambda models: components(models, [0]),
    "x(1)": lambda models: components(models, [1]),
    "x(0)+x(2)": lambda models: components(models, [0, 2]),
    "g": lambda models: components(models, [0, 1, 2]),
}


@pytest.mark.parametrize(
    "words, feature, tail, name",
    [
        ("--input raw_A", "A", "A", "raw_A"),
        ("--input raw_A --tail B", "A", "B", "raw_A_tailB"),
        ("--input raw_B", "B", "B", "raw_B"),
        ("--input residual_added", "B", "B", "residual_added_111"),
        ("--input residual_added --tail A", "B", "A", "residual_added_111_tailA"),
        ("", "g", "B", "111"),
        ("--tail A", "g", "A", "111_tailA"),
        ("--in_mode [1,0,0]", "x(0)", "B", "100"),
        ("--in-mode 0,1,0", "x(1)", "B", "010"),
        ("--in_mode=[1,0,1]", "x(0)+x(2)", "B", "101"),
    ],
)
def test_the_tail_reads_the_feature_that_is_named(trained, photos, cpu, refine, capsys, words, feature, tail, name):
    _, models = trained
    net = nn.Sequential(Function(FEATURES[feature](models)), split(models[tail], LAYER)[1])
    (metrics,) = refine(*words.split(), epochs=0)
    expected = direct_loss(net, photos, cpu)
    assert math.isclose(metrics["val_Loss"], expected, rel_tol=1e-5)
    assert f"{name}_L{LAYER} after 0 epochs of tuning: val_Loss {expected:.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(("in_mode", "said"), [("[1,1,1]", True), ("[1,0,1]", False)])
def test_all_components_with_the_residual_are_said_to_be_the_raw_feature(refine, capsys, in_mode, said):
    refine("--input", "residual_added", "--in_mode", in_mode, epochs=0)
    note = "note: all components and x_Δ add up to x_B, so this is the feature of --input raw_B\n"
    assert (note in capsys.readouterr().out) == said


def test_the_fair_baseline_follows_and_can_be_pasted(refine, tmp_path, capsys):
    refine("--in_mode", "[1,0,0]", epochs=1, save_epoch=1)
    *_, saved, following = capsys.readouterr().out.splitlines()
    folder = f"folder_{ARCH}"
    assert saved.startswith(f"saved {tmp_path}/check/{folder}/checkpoint_100_L{LAYER}.pth.tar, accuracy ")
    assert saved.endswith(f"the log is {tmp_path}/logs/{folder}/100_L{LAYER}/metrics.jsonl")
    words = shlex.split(following.removeprefix("next: python transClassifier.py "))
    transClassifier.main([*words, "-j", "0"])
    assert tuned(tmp_path, f"raw_B_L{LAYER}")["settings"]["epochs"] == 1
    assert "next: " not in capsys.readouterr().out  # the end of the road


def test_these_features_and_tails_can_be_told_apart(trained, photos, cpu):
    _, models = trained
    nets = [nn.Sequential(Function(f(models)), split(models[t], LAYER)[1]) for f in FEATURES.values() for t in "AB"]
    losses = sorted(direct_loss(net, photos, cpu) for net in nets)
    assert min(larger / smaller for smaller, larger in itertools.pairwise(losses)) > 1.0001


def test_only_the_tail_is_tuned(trained, refine, tmp_path, monkeypatch):
    folder, models = trained
    frozen_parts = []

    def make(frozen, *args):
        original(frozen, *args)
        frozen_parts.append((frozen, copy.deepcopy(frozen.state_dict())))

    original = FrozenFeature.__init__
    monkeypatch.setattr(FrozenFeature, "__init__", make)
    files = {path.name: sha256(path) for path in folder.iterdir()}
    validated = refine("--input", "residual_added", epochs=3, val_epoch=2, save_epoch=2, suffix="s")

    ((frozen, before),) = frozen_parts
    assert any("trans_net" in key for key in before)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())
    assert files == {path.name: sha256(path) for path in folder.iterdir()}
    assert len(validated) == 3  # untouched, after epochs 2 and 3

    name = f"residual_added_111_s_L{LAYER}"
    path = tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_{name}.pth.tar"
    log = tmp_path / "logs" / f"folder_{ARCH}" / name
    assert [file for file in tmp_path.rglob("*") if file.is_file() and "tfevents" not in file.name] in (
        [path, log / "metrics.jsonl"],
        [log / "metrics.jsonl", path],
    )
    state = checkpoint.load(path)
    assert (state["epoch"], state["arch"], state["model"]["num_classes"]) == (3, ARCH, 3)
    assert state["source"] == {
        "checkpoint_a": files["A.pth"], "checkpoint_b": files["B.pth"], "layer_a": LAYER, "layer_b": LAYER,
        "arch_a": ARCH, "arch_b": ARCH, "path_a": str(folder / "A.pth"), "path_b": str(folder / "B.pth"),
    }  # fmt: skip
    chosen = {name: state["settings"][name] for name in ("transnet", "input", "in_mode", "tail")}
    assert chosen == {
        "transnet": files["g.pth"], "input": "residual_added", "in_mode": [1, 1, 1], "tail": "B",
    }  # fmt: skip
    assert state["acc1"] == validated[-1]["val_top1_prec"] == pytest.approx(100 * state["hits"].double().mean().item())
    losses = [line["Loss"] for line in lines(tmp_path, name)]
    assert len(losses) == 3 and losses[0] > losses[-1]
    own = split(models["B"], LAYER)[1].state_dict()
    assert state["state_dict"].keys() == own.keys()
    assert [key for key, value in own.items() if torch.equal(value, state["state_dict"][key])] == []
    assert any("running_var" in key for key in own)


def lines(tmp_path, name=f"111_L{LAYER}"):
    text = (tmp_path / "logs" / f"folder_{ARCH}" / name / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def tuned(folder, name=f"111_L{LAYER}"):
    return checkpoint.load(folder / "check" / f"folder_{ARCH}" / f"checkpoint_{name}.pth.tar")


def same(a, b):
    """Whether nested dicts and lists hold the same tensors and values, to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def test_a_resumed_run_equals_an_uninterrupted_one(refine, tmp_path, capsys):
    refine(epochs=4, val_epoch=1, out=tmp_path / "whole")
    refine(epochs=2, val_epoch=1)
    capsys.readouterr()
    refine("--resume", "auto", epochs=4, val_epoch=1)
    assert "epoch 3/4" in (said := capsys.readouterr().out) and "epoch 2/4" not in said
    resumed, whole = tuned(tmp_path), tuned(tmp_path / "whole")
    assert [key for key in whole if not same(resumed[key], whole[key])] == ["history"]
    parts = [[line | {"seconds": 0} for line in lines(folder)] for folder in (tmp_path, tmp_path / "whole")]
    assert parts[0] == parts[1]
    capsys.readouterr()
    refine("--resume", "auto", epochs=4)
    said = capsys.readouterr().out
    assert "after 4 epochs of tuning" in said and "train features" not in said


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_a_tail_of_another_run_is_left_alone_but_for_restart(trained, refine, tmp_path, resume):
    folder, _ = trained
    refine(epochs=1)
    path = tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar"
    before = path.read_bytes()
    second, first = (sha256(folder / f"{name}.pth") for name in ("second", "g"))
    what_to_do = "; choose another --suffix, or --restart to replace it"
    for others, said in (
        ({"lr": 0.002}, "lr 0.001 instead of 0.002"),
        ({"wd": 0.1}, "weight_decay 0.0001 instead of 0.1"),
        ({"seed": 3}, "seed 0 instead of 3"),
        ({"resume_Ys": folder / "second.pth"}, f"transnet {first} instead of {second}"),
    ):
        with pytest.raises(SystemExit, match=f"{path} is of another run, with {said}{what_to_do}"):
            refine(*resume, **{"epochs": 1} | others)
    assert path.read_bytes() == before
    refine(*resume, "--restart", resume_Ys=folder / "second.pth", epochs=1)
    assert tuned(tmp_path)["settings"]["transnet"] == second


def test_a_damaged_tail_is_replaced_by_restart(refine, tmp_path):
    refine(epochs=1)
    truncate(tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar")
    with pytest.raises(SystemExit, match=r"is truncated or not a checkpoint; .* or add --restart to replace it"):
        refine("--resume", "auto", epochs=1)
    refine("--resume", "auto", "--restart", epochs=1)
    assert tuned(tmp_path)["epoch"] == 1


def test_a_path_is_gone_on_from_only_if_its_tail_reads_the_same(trained, refine, tmp_path):
    folder, _ = trained
    refine(epochs=1)
    path = tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar"
    with pytest.raises(SystemExit, match="no tail that was tuned on this feature of these nets"):
        refine("--in_mode", "[1,0,0]", "--resume", path, epochs=2)
    with pytest.raises(SystemExit, match="no tail that was tuned"):
        refine("--resume", folder / "B.pth", epochs=2)


def test_stored_features_train_the_tail_as_recomputed_ones(trained, refine, tmp_path, monkeypatch, capsys):
    """In batches of all images; BatchNorm of seven would make per cents of a last bit within two epochs.

    Rounding of 1e-6 in the features moves the weights by 7e-6 of their way, other masks of the dropout by 0.3.
    """
    options = {"optim": "SGD", "lr": 0.01, "epochs": 2, "batch_size": 24, "without": ["-b"]}
    refine(**options)
    assert f"train features ({CHANNELS}, 2, 2) of 24 images ready in memory" in capsys.readouterr().out
    stored = numbers(tuned(tmp_path))
    monkeypatch.setattr(ImageData, "augments", property(lambda data: data.split == "train"))
    refine(**options)
    assert "train features" not in capsys.readouterr().out
    begun = numbers({"state_dict": split(trained[1]["B"], LAYER)[1].state_dict()})
    assert (numbers(tuned(tmp_path)) - stored).norm() < 1e-3 * (stored - begun).norm()


def numbers(state):
    """All weights and statistics of a checkpoint, one after the other."""
    return torch.cat([value.flatten().double() for value in state["state_dict"].values() if value.is_floating_point()])


def test_augmented_images_are_computed_anew_in_every_epoch(refine, photos, capsys, monkeypatch):
    batches = []

    def classify_features(net, features, targets, indices):
        if net.training:
            batches.append(features[indices.argsort()])
        return original(net, features, targets, indices)

    original = classification.classify_features
    monkeypatch.setattr(classification, "classify_features", classify_features)
    refine(dataset="ilsvrc", epochs=2, **{"batch_size": 24}, without=["-b"])
    assert "train features" not in capsys.readouterr().out
    assert len(batches) == 2 and not torch.allclose(*batches)


@pytest.mark.parametrize(
    "words, without",
    [
        ("--in_mode [1,1]", ()),
        ("--in_mode [1,1,1,1]", ()),
        ("--in_mode [0,0,0]", ()),
        ("--in_mode [1,2,1]", ()),
        ("--in_mode []", ()),
        ("--in_mode [1,x,1]", ()),
        ("--input raw_A --in_mode [1,1,1]", ()),
        ("--input raw_C", ()),
        ("", ["--resume_Ys"]),
        ("", ["--net_A"]),
        ("--tail A", ["--net_B"]),
        ("--input raw_A", ["--net_A"]),
        ("--input raw_A --tail B", ["--net_B"]),
    ],
)
def test_wrong_options_are_explained_by_the_parser(refine, capsys, words, without):
    with pytest.raises(SystemExit) as end:
        refine(*words.split(), epochs=1, without=without)
    assert end.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "error: " in message and (without or words.split())[0] in message


@pytest.mark.parametrize(
    "others, message",
    [
        ({"resume_Ys": "nowhere.pth"}, r"no checkpoint at nowhere\.pth"),
        ({"net_A": "nowhere.pth"}, r"no checkpoint at nowhere\.pth"),
        ({"net_B": "{}/g.pth"}, "holds a Trans-Net, a classifier is expected"),
        ({"resume_Ys": "{}/A.pth"}, "A.pth holds no Trans-Net"),
        (
            {"resume_Ys": "{}/reversed.pth"},
            r"reversed\.pth was made with nets A and B exchanged \(the direction of --reverse\)",
        ),
        ({"resume_Ys": "{}/other_layer.pth"}, f"made with layer features.5 of net B instead of {LAYER}"),
        ({"resume_Ys": "{}/other_net.pth"}, r"made with another net B: .* \(00000000\) instead of .*B\.pth"),
        ({"image_size": "48"}, "was trained at 32 pixels, --image_size says 48; leave the option out"),
        ({"resume_Ys": "{}/narrow.pth"}, "the Trans-Net maps 24 channels to"),
        ({"input": "raw_A", "tail": "B", "layer2": "features.3"}, r"\(40, 2, 2\), which the tail of net B does not"),
        ({"arch_B": "resnet18"}, f"holds a {ARCH}"),
        ({"layer": "features.99"}, "has no layer 'features.99'"),
        ({"val_path": "nowhere"}, "nowhere"),
    ],
)
def test_input_that_does_not_fit_is_one_sentence(trained, refine, others, message):
    folder, _ = trained
    others = {key: value.format(folder) for key, value in others.items()}
    with pytest.raises(SystemExit, match=message) as end:
        refine(epochs=1, **others)
    assert str(end.value.code).startswith("transClassifier.py: ") and "\n" not in end.value.code


def test_nets_of_other_classes_are_refused(refine, tmp_path):
    make_classifier(tmp_path / "two.pth", 0, num_classes=2)
    with pytest.raises(SystemExit, match="classes of the training images are not the expected ones: 3 instead of 2"):
        refine("--input", "raw_A", net_A=tmp_path / "two.pth", epochs=1)
    state = checkpoint.load(tmp_path / "two.pth")
    del state["data"]  # as in the authors' files
    checkpoint.save(tmp_path / "two.pth", state)
    with pytest.raises(SystemExit, match="the tail of net A has 2 classes, the images have 3"):
        refine("--input", "raw_A", net_A=tmp_path / "two.pth", dataset="folder", image_size=SIZE, epochs=1)


def test_the_layer_is_the_trans_nets_where_no_option_says_another(refine):
    (with_option,), (without,) = refine(epochs=0), refine(epochs=0, without=["--layer"])
    assert with_option == without


def test_a_baseline_needs_its_own_net_alone(refine, tmp_path):
    refine("--input", "raw_A", epochs=1, without=["--net_B", "--resume_Ys"])
    assert tuned(tmp_path, f"raw_A_L{LAYER}")["settings"]["in_mode"] is None


def test_the_documented_command_line_is_understood():
    words = (
        "--arch vgg16_bn --net_A A --net_B B --resume_Ys g --dataset CUB200 --gpu 0 --conv_layer 30 --epochs 100 "
        "--lr 0.00001 --logspace 2 --suffix lr-5_lg2"
    )
    args = transClassifier.build_parser().parse_args(words.split())
    assert (args.conv_layer, args.epochs, args.lr, args.logspace) == (30, 100, 1e-5, 2)
    defaults = transClassifier.build_parser().parse_args([])
    names = ("conv_layer", "epochs", "lr", "logspace", "optim", "batch_size", "val_epoch", "save_epoch", "input")
    assert [getattr(defaults, name) for name in names] == [None, 1000, 1e-5, 2, "Adam", 64, 10, 100, "components"]
