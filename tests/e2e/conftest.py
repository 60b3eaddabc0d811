"""The main road, built once; runs that are watched and interrupted;
what refines features and prepares data.
"""

import shutil
from types import SimpleNamespace

import pytest

import ConvOutput
import PrepareData
import Training
import Training_TransNet
import transClassifier
from tests.e2e.refined import CHANNELS, LAYER, make_classifier, make_trans_net
from tests.e2e.road import FIT, NETS, TRANS_NET, data, files, run
from utils import runs
from utils.files import sha256
from utils.runs import RunLog


@pytest.fixture(scope="session")
def road(photos, tmp_path_factory):
    """Everything that the pipeline writes, once,
    with two ResNet-18 that differ in their seed; only to be read.
    """
    out = tmp_path_factory.mktemp("road")
    for seed in (0, 5):
        run(
            Training,
            f"{NETS} --arch resnet18 --seed {seed} --suffix sd{seed}",
            *data(photos),
            "--out",
            out,
        )
    a, b = (
        out / f"model_checkpoints/checkpoint_folder_resnet18_sd{seed}.pth.tar" for seed in (0, 5)
    )
    after_training = files(out)
    nets = ("--resume1", a, "--resume2", b, *data(photos), "--out", out)
    for split_name in ("train", "val"):
        run(ConvOutput, f"--conv_layer 1 --t_or_v {split_name} --batch_size 7", *nets)
    features = out / "convOuts/folder_resnet18/folder_L1"
    run(
        Training_TransNet,
        f"{FIT} --validate --suffix a0.1",
        "--convOut_path",
        features,
        "--out",
        out,
    )
    yield SimpleNamespace(
        out=out,
        a=a,
        b=b,
        nets=nets,
        features=features,
        trans_net=out / TRANS_NET,
        after_training=after_training,
        after_all=files(out),
    )
    shutil.rmtree(out)


@pytest.fixture
def epochs(monkeypatch):
    """Watch runs by their logs.

    Gives `trained`, the epochs that were logged, in order; `stop_at`, how many of them are logged
    before a run is interrupted (Ctrl-C) in the next one, whose work is lost.
    """
    trained: list[int] = []
    stop_at: list[int] = []

    def write(log, epoch, metrics, words=None):
        if len(trained) in stop_at:
            raise KeyboardInterrupt
        trained.append(epoch)
        original(log, epoch, metrics, words)

    original = RunLog.write
    monkeypatch.setattr(RunLog, "write", write)
    return SimpleNamespace(trained=trained, stop_at=stop_at)


@pytest.fixture
def interrupt(epochs):
    """Let a script be interrupted in its second epoch."""

    def interrupted(script, *words):
        epochs.trained.clear()
        epochs.stop_at[:] = [1]
        with pytest.raises(SystemExit) as exit_:
            run(script, *words)
        assert exit_.value.code == 130 and epochs.trained == [0]
        epochs.stop_at.clear()

    return interrupted


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with nets A.pth and B.pth and Trans-Nets between them,
    and what they hold; only to be read.
    """
    folder = tmp_path_factory.mktemp("trained")
    models = {
        net: make_classifier(folder / f"{net}.pth", seed) for net, seed in (("A", 0), ("B", 5))
    }
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
    """A function that runs transClassifier.py in a folder
    of its own and gives what each validation measured.
    """
    validated = []

    def describe(metrics):  # as all that is measured is, in the terminal and in the log
        if "val_Loss" in metrics:
            validated.append(metrics)
        return original(metrics)

    original = runs.describe
    monkeypatch.setattr(runs, "describe", describe)
    folder, _ = trained
    options = {
        "--net_A": folder / "A.pth",
        "--net_B": folder / "B.pth",
        "--resume_Ys": folder / "g.pth",
        "--layer": LAYER,
        "--train_path": photos / "train",
        "--val_path": photos / "val",
        "-b": 7,
        "-j": 0,
        "--out": tmp_path,
        "--lr": 0.001,
        "--logspace": 0,
        "--name": "folder",
    }

    def run(*words, without=(), **others):
        chosen = {key: value for key, value in options.items() if key not in without}
        chosen |= {f"--{key}": value for key, value in others.items()}
        validated.clear()
        transClassifier.main(
            [str(word) for pair in chosen.items() for word in pair] + [str(word) for word in words]
        )
        return list(validated)

    return run


@pytest.fixture
def prepare(tmp_path, capsys):
    """Run PrepareData.py into `tmp_path/data`; returns its exit code, output and error line."""

    def run(*words):
        code, message = 0, ""
        try:
            PrepareData.main([str(word) for word in (*words, "--out", tmp_path / "data", "-j", 2)])
        except SystemExit as end:
            code, message = (1, end.code) if isinstance(end.code, str) else (end.code, "")
        output, errors = capsys.readouterr()
        return code, output, message or errors.rpartition("error: ")[2]

    return run
