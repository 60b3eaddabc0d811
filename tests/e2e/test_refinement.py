"""transClassifier.py: the feature that the tail reads, and what is tuned."""

import copy
import itertools
import math
import shlex
from functools import partial

import pytest
import torch
from torch import nn

import transClassifier
from consistency.frozen_feature import FrozenFeature
from models.split import split
from tests.e2e.refined import ARCH, CHANNELS, LAYER, SIZE, lines, tuned
from utils import checkpoint
from utils.data.images import ImageData, load_images
from utils.data.loaders import make_loader
from utils.files import earlier, sha256
from utils.normalisation import NORMALISATIONS
from utils.training import classification
from utils.training.classification import classify
from utils.training.engine import evaluate

pytestmark = pytest.mark.e2e


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
    step = partial(classify, preprocess=data.preprocessing())
    return evaluate(net, make_loader(data, 7), step, cpu)["Loss"]


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
def test_the_tail_reads_the_feature_that_is_named(
    trained, photos, cpu, refine, capsys, words, feature, tail, name
):
    _, models = trained
    net = nn.Sequential(Function(FEATURES[feature](models)), split(models[tail], LAYER)[1])
    (metrics,) = refine(*words.split(), epochs=0)
    expected = direct_loss(net, photos, cpu)
    assert math.isclose(metrics["val_Loss"], expected, rel_tol=1e-5)
    assert (
        f"{name}_L{LAYER} after 0 epochs of tuning: val_Loss {expected:.4g}"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(("in_mode", "said"), [("[1,1,1]", True), ("[1,0,1]", False)])
def test_all_components_with_the_residual_are_said_to_be_the_raw_feature(
    refine, capsys, in_mode, said
):
    refine("--input", "residual_added", "--in_mode", in_mode, epochs=0)
    note = "note: all components and x_Δ add up to x_B, so this is the feature of --input raw_B\n"
    assert (note in capsys.readouterr().out) == said


def test_the_fair_baseline_follows_and_can_be_pasted(refine, tmp_path, capsys):
    refine("--in_mode", "[1,0,0]", epochs=1, save_epoch=1)
    *_, saved, following = capsys.readouterr().out.splitlines()
    folder = f"folder_{ARCH}"
    assert saved.startswith(
        f"saved {tmp_path}/check/{folder}/checkpoint_100_L{LAYER}.pth.tar, accuracy "
    )
    assert saved.endswith(f"the log is {tmp_path}/logs/{folder}/100_L{LAYER}/metrics.jsonl")
    words = shlex.split(following.removeprefix("next: python transClassifier.py "))
    transClassifier.main([*words, "-j", "0"])
    assert tuned(tmp_path, f"raw_B_L{LAYER}")["settings"]["epochs"] == 1
    assert "next: " not in capsys.readouterr().out  # the end of the road


def test_these_features_and_tails_can_be_told_apart(trained, photos, cpu):
    _, models = trained
    nets = [
        nn.Sequential(Function(f(models)), split(models[t], LAYER)[1])
        for f in FEATURES.values()
        for t in "AB"
    ]
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
    written = {file for file in tmp_path.rglob("*") if file.is_file()}
    events = {file for file in written if "tfevents" in file.name}
    assert written - events == {path, earlier(path), log / "metrics.jsonl"}
    state = checkpoint.load(path)
    assert (state["epoch"], state["arch"], state["model"]["num_classes"]) == (3, ARCH, 3)
    assert state["source"] == {
        "checkpoint_a": files["A.pth"],
        "checkpoint_b": files["B.pth"],
        "layer_a": LAYER,
        "layer_b": LAYER,
        "arch_a": ARCH,
        "arch_b": ARCH,
        "path_a": str(folder / "A.pth"),
        "path_b": str(folder / "B.pth"),
        "normalisation_a": NORMALISATIONS["imagenet"],
        "normalisation_b": NORMALISATIONS["imagenet"],
    }
    chosen = {name: state["settings"][name] for name in ("transnet", "input", "in_mode", "tail")}
    assert chosen == {
        "transnet": files["g.pth"],
        "input": "residual_added",
        "in_mode": [1, 1, 1],
        "tail": "B",
    }
    assert (
        state["acc1"]
        == validated[-1]["val_top1_prec"]
        == pytest.approx(100 * state["hits"].double().mean().item())
    )
    losses = [line["Loss"] for line in lines(tmp_path, name)]
    assert len(losses) == 3 and losses[0] > losses[-1]
    own = split(models["B"], LAYER)[1].state_dict()
    assert state["state_dict"].keys() == own.keys()
    assert [key for key, value in own.items() if torch.equal(value, state["state_dict"][key])] == []
    assert any("running_var" in key for key in own)


def test_stored_features_train_the_tail_as_recomputed_ones(
    trained, refine, tmp_path, monkeypatch, capsys
):
    """In batches of all images;
    BatchNorm of seven would make per cents of a last bit within two epochs.

    Rounding of 1e-6 in the features moves the weights by 7e-6 of their way, other masks of the
    dropout by 0.3.
    """
    options = {"optim": "SGD", "lr": 0.01, "epochs": 2, "batch_size": 24, "without": ["-b"]}
    refine(**options)
    assert (
        f"train features ({CHANNELS}, 2, 2) of 24 images ready in memory" in capsys.readouterr().out
    )
    stored = numbers(tuned(tmp_path))
    monkeypatch.setattr(ImageData, "augments", property(lambda data: data.split == "train"))
    refine(**options)
    assert "train features" not in capsys.readouterr().out
    begun = numbers({"state_dict": split(trained[1]["B"], LAYER)[1].state_dict()})
    assert (numbers(tuned(tmp_path)) - stored).norm() < 1e-3 * (stored - begun).norm()


def numbers(state):
    """All weights and statistics of a checkpoint, one after the other."""
    return torch.cat(
        [
            value.flatten().double()
            for value in state["state_dict"].values()
            if value.is_floating_point()
        ]
    )


def test_augmented_images_are_computed_anew_in_every_epoch(refine, photos, capsys, monkeypatch):
    batches = []

    def classify_features(net, features, targets, indices, **options):
        if net.training:
            batches.append(features[indices.argsort()])
        return original(net, features, targets, indices, **options)

    original = classification.classify_features
    monkeypatch.setattr(classification, "classify_features", classify_features)
    refine(dataset="ilsvrc", epochs=2, **{"batch_size": 24}, without=["-b"])
    assert "train features" not in capsys.readouterr().out
    assert len(batches) == 2 and not torch.allclose(*batches)
