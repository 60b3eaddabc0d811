"""DCM.py: two small networks on a small data set in CIFAR's layout."""

import json
import shlex

import numpy as np
import pytest
import torch
from PIL import Image

import DCM
import PrepareData
from models.classifiers import load_classifier, read_classifier
from models.small.author_keys import load_authors_state
from models.small.auxiliary import build_with_heads
from tests.e2e.road import assert_same
from tests.mistakes import check_some_line, refused
from utils import checkpoint, runs
from utils.normalisation import NORMALISATIONS

pytestmark = pytest.mark.e2e
CLASSES = ("apple", "bear", "clock")
SMALL = "--net1 wrn_16_0.5 --net2 mobilenet32 --batch_size 4 --nthread 0"
DCM_RUN = f"{SMALL} --epochs 3 --epoch_step [2,3]"
FILES = {
    "checkpoint.pth.tar",
    "checkpoint.pth.tar.1",
    "net1.pth.tar",
    "net2.pth.tar",
    "model.pt7",
    "log.txt",
    "metrics.jsonl",
}


@pytest.fixture(scope="module")
def dataroot(tmp_path_factory):
    """`CIFAR100/{train,test}/{class}/*.png`:
    noise of 32 × 32 pixels, six and three images a class.
    """
    root, noise = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for name in CLASSES:
            folder = root / "CIFAR100" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
                    folder / f"{number}.png"
                )
    return root


def run(dataroot, save, line):
    DCM.main(shlex.split(f"{line} --dataroot {dataroot} --save {save}"))
    return save


def lines_of(save):
    """The epochs of log.txt."""
    return [
        json.loads(line.removeprefix("json_stats: "))
        for line in (save / "log.txt").read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def whole(dataroot, tmp_path_factory):
    """Three epochs, the optimiser anew before the second and the third."""
    return run(dataroot, tmp_path_factory.mktemp("out") / "logs" / "whole", DCM_RUN)


def test_what_a_run_leaves(whole):
    names = {path.name for path in whole.iterdir() if "tfevents" not in path.name}
    assert names == FILES
    assert any("tfevents" in path.name for path in whole.iterdir())
    state = checkpoint.load(whole / "checkpoint.pth.tar")
    settings = state["settings"]
    assert (settings["net1"], settings["net2"], settings["method"]) == (
        "wrn_16_0.5",
        "mobilenet32",
        "dcm",
    )
    assert (settings["weight_decay"], settings["momentum"], settings["seed"]) == (5e-4, 0.9, 1)
    assert not {"depth", "note", "out", "workers"} & settings.keys()
    assert state["data"]["normalisation"] == NORMALISATIONS["dcm"]
    assert settings["augment"] == "reflect4"
    (group,) = state["optimizer"]["param_groups"]
    assert (group["nesterov"], group["weight_decay"], group["momentum"]) == (False, 5e-4, 0.9)
    assert len(group["params"]) == len(
        [key for key in state["state_dict"] if key.endswith(("weight", "bias"))]
    )


def test_the_authors_log(whole):
    first, second, third = lines_of(whole)
    options = {
        "depth",
        "width",
        "dataset",
        "dataroot",
        "dtype",
        "nthread",
        "seed",
        "batch_size",
        "lr",
        "epochs",
        "weight_decay",
        "epoch_step",
        "lr_decay_ratio",
        "resume",
        "note",
        "save",
        "ngpu",
        "gpu_id",
    }
    names = ("loss", "acc", "acc_ep1", "acc_ep2", "acc_another")
    measured = {f"{split}_{name}" for split in ("train", "test") for name in names}
    facts = {"epoch", "num_classes", "n_parameters", "train_time", "test_time"}
    assert options | measured | facts <= first.keys()
    assert [line["epoch"] for line in (first, second, third)] == [1, 2, 3]
    assert (first["num_classes"], first["save"]) == (3, str(whole))
    nets = [build_with_heads(arch, 3, "dcm") for arch in ("wrn_16_0.5", "mobilenet32")]
    assert first["n_parameters"] == sum(p.numel() for net in nets for p in net.parameters())
    suite = runs.read_metrics(whole / "metrics.jsonl")
    assert [line["train_loss"] for line in (first, second, third)] == [
        line["Loss"] for line in suite
    ]
    assert third["test_acc_another"] == suite[-1]["val_net2_top1_prec"]
    assert [line["lr"] for line in suite] == pytest.approx([0.1, 0.02, 0.004])
    assert suite[0]["Loss"] == pytest.approx(suite[0]["CE"] + suite[0]["KL"])
    assert suite[0]["KL"] > 0


@pytest.mark.parametrize(("number", "arch"), [(1, "wrn_16_0.5"), (2, "mobilenet32")])
def test_both_networks_are_classifiers_of_the_suite(whole, number, arch):
    net, state = read_classifier(whole / f"net{number}.pth.tar")
    held = checkpoint.load(whole / "checkpoint.pth.tar")
    prefix = f"net{number}.backbone."
    assert_same(
        dict(net.state_dict()),
        {
            key.removeprefix(prefix): value
            for key, value in held["state_dict"].items()
            if key.startswith(prefix)
        },
    )
    assert state["model"] == {"arch": arch, "num_classes": 3, "train_layer": 34}
    assert state["data"]["classes"] == list(CLASSES)
    assert state["settings"] == held["settings"]
    assert state["acc1"] == pytest.approx(100 - held["test_error"][f"net{number}"])
    name = "test_acc" if number == 1 else "test_acc_another"
    assert state["acc1"] == lines_of(whole)[-1][name]
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_the_checkpoint_and_the_authors_file_are_network_1(whole):
    expected = load_classifier(whole / "net1.pth.tar")
    for path, arch in (("checkpoint.pth.tar", None), ("model.pt7", "wrn_16_0.5")):
        assert_same(
            dict(load_classifier(whole / path, arch).state_dict()) | _counters(expected),
            dict(expected.state_dict()),
        )
    theirs = checkpoint.load(whole / "model.pt7")
    assert theirs.keys() == {"params", "epoch", "optimizer"}
    assert theirs["epoch"] == 3
    net = build_with_heads("wrn_16_0.5", 3, "dcm")
    load_authors_state(net, theirs["params"])
    held = checkpoint.load(whole / "checkpoint.pth.tar")
    for key, value in net.named_parameters():
        assert torch.equal(value, held["state_dict"][f"net1.{key}"])
    assert_same(theirs["optimizer"], held["optimizer"])


def _counters(net):
    """The batch counters, which the authors' WRN does not have."""
    return {
        key: value for key, value in net.state_dict().items() if key.endswith("num_batches_tracked")
    }


@pytest.mark.parametrize("stop", [1, 2])
def test_a_run_that_goes_on_equals_one_that_was_not_stopped(
    dataroot, whole, tmp_path, monkeypatch, stop
):
    """Before both optimisers that begin anew."""
    run(dataroot, tmp_path / "run", DCM_RUN.replace("--epochs 3", f"--epochs {stop}"))
    trained = []
    monkeypatch.setattr(DCM, "train_one_epoch", _counting(trained))
    run(dataroot, tmp_path / "run", f"{DCM_RUN} --resume auto")
    assert trained == list(range(stop, 3))
    ours, theirs = (
        checkpoint.load(folder / "checkpoint.pth.tar") for folder in (tmp_path / "run", whole)
    )
    for key in ("state_dict", "optimizer", "epoch", "test_error", "data"):
        assert_same(ours[key], theirs[key])
    assert [entry["epoch"] for entry in ours["history"]] == [stop]
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [1, 2, 3]
    for ours_line, theirs_line in zip(lines_of(tmp_path / "run"), lines_of(whole)):
        assert ours_line["train_loss"] == theirs_line["train_loss"]
        assert ours_line["test_loss"] == theirs_line["test_loss"]


def _counting(trained):
    original = DCM.train_one_epoch

    def train(fit, loader, step, epoch):
        trained.append(epoch)
        return original(fit, loader, step, epoch)

    return train


def test_the_optimiser_begins_anew_unless_momentum_is_kept(dataroot, tmp_path, monkeypatch):
    began = []

    def train(fit, loader, step, epoch):
        began.append((fit.optimizer.param_groups[0]["lr"], len(fit.optimizer.state)))
        return original(fit, loader, step, epoch)

    original = DCM.train_one_epoch
    monkeypatch.setattr(DCM, "train_one_epoch", train)
    line = f"{SMALL} --method alone --epochs 3 --epoch_step [3] --lr_decay_ratio 0.5"
    run(dataroot, tmp_path / "anew", line)
    run(dataroot, tmp_path / "kept", f"{line} --keep_momentum")
    parameters = began[1][1]
    assert parameters > 0
    assert began == [
        (0.1, 0),
        (0.1, parameters),
        (0.05, 0),
        (0.1, 0),
        (0.1, parameters),
        (0.05, parameters),
    ]
    states = [
        checkpoint.load(tmp_path / name / "checkpoint.pth.tar")["state_dict"]
        for name in ("anew", "kept")
    ]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.parametrize(("method", "terms"), [("dml", 2), ("alone", 0)])
def test_the_papers_baselines_have_no_heads(dataroot, tmp_path, method, terms):
    run(dataroot, tmp_path, f"{SMALL} --method {method} --epochs 1")
    (line,) = lines_of(tmp_path)
    assert "test_acc_ep1" not in line
    assert "test_acc_another" in line
    (suite,) = runs.read_metrics(tmp_path / "metrics.jsonl")
    assert (suite["KL"] > 0) == (terms > 0)
    for number in (1, 2):
        assert load_classifier(tmp_path / f"net{number}.pth.tar")(
            torch.zeros(1, 3, 32, 32)
        ).shape == (1, 3)


def test_alone_a_network_is_what_it_is_beside_any_other(dataroot, tmp_path):
    """The same first network beside another second one ends with the same weights."""
    for second in ("mobilenet32", "wrn_16_0.5"):
        run(
            dataroot,
            tmp_path / second,
            f"{SMALL.replace('mobilenet32', second)} --method alone --epochs 1",
        )
    states = [
        load_classifier(tmp_path / name / "net1.pth.tar").state_dict()
        for name in ("mobilenet32", "wrn_16_0.5")
    ]
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key])


def test_mobilenet_is_tested_by_batch_statistics_on_request(dataroot, tmp_path):
    line = f"{SMALL} --method alone --epochs 1"
    run(dataroot, tmp_path / "running", line)
    run(dataroot, tmp_path / "batch", f"{line} --batch_statistics 2")
    states = [
        checkpoint.load(tmp_path / name / "checkpoint.pth.tar")["state_dict"]
        for name in ("running", "batch")
    ]
    differ = [key for key, value in states[0].items() if not torch.equal(value, states[1][key])]
    assert differ
    assert all(
        key.startswith("net2.") and ("running" in key or "num_batches" in key) for key in differ
    )


def test_another_run_is_not_replaced(dataroot, whole, capsys):
    before = (whole / "checkpoint.pth.tar").read_bytes()
    with refused(whole, "method", "dcm", "dml", "--save", "--restart", kind=SystemExit):
        run(dataroot, whole, f"{DCM_RUN} --method dml")
    run(dataroot, whole, f"{DCM_RUN} --resume auto --note again")
    check_some_line(capsys.readouterr().out, whole, "3")
    assert (whole / "checkpoint.pth.tar").read_bytes() == before


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("--depth 10 --width 0.5", ("wrn_10_0.5", "16")),
        ("--depth 17 --width 0.5", ("WRN", "17")),
        ("--net2 alexnet", ("'alexnet'", "resnet8")),
        ("--dataset CIFAR10", ("CIFAR10/train",)),
    ],
)
def test_mistakes_are_one_line(dataroot, tmp_path, line, facts):
    with refused("DCM.py", *facts, kind=SystemExit):
        run(dataroot, tmp_path / "run", line)
    assert not (tmp_path / "run" / "checkpoint.pth.tar").exists()


@pytest.mark.parametrize("name", ["cifar-100-python/meta", "cifar-100-python.tar.gz", "meta"])
def test_the_official_archive_is_to_be_prepared_first(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"")
    with refused("PrepareData.py", tmp_path, kind=SystemExit) as caught:
        run(tmp_path, tmp_path / "run", SMALL)
    command = shlex.split(str(caught.value).partition("python ")[2])
    args = PrepareData.build_parser().parse_args(command[1:])
    assert (command[0], args.dataset, args.src, args.out) == (
        "PrepareData.py",
        "CIFAR100",
        [tmp_path],
        tmp_path,
    )


def test_a_checkpoint_of_other_networks_is_not_gone_on_from(dataroot, whole, tmp_path):
    with refused("wrn_16_0.5", kind=SystemExit):
        run(
            dataroot,
            tmp_path,
            f"--depth 16 --width 0.5 --epochs 1 --resume {whole / 'checkpoint.pth.tar'}",
        )
