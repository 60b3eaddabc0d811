"""The main road, built once, and runs that are watched and interrupted."""

import shutil
from types import SimpleNamespace

import pytest

import ConvOutput
import Training
import Training_TransNet
from tests.e2e.road import FIT, NETS, TRANS_NET, data, files, run
from utils.runs import RunLog


@pytest.fixture(scope="session")
def road(photos, tmp_path_factory):
    """Everything that the pipeline writes, once, with two ResNet-18 that differ in their seed; only to be read."""
    out = tmp_path_factory.mktemp("road")
    for seed in (0, 5):
        run(Training, f"{NETS} --arch resnet18 --seed {seed} --suffix sd{seed}", *data(photos), "--out", out)
    a, b = (out / f"model_checkpoints/checkpoint_folder_resnet18_sd{seed}.pth.tar" for seed in (0, 5))
    after_training = files(out)
    nets = ("--resume1", a, "--resume2", b, *data(photos), "--out", out)
    for split_name in ("train", "val"):
        run(ConvOutput, f"--conv_layer 1 --t_or_v {split_name} --batch_size 7", *nets)
    features = out / "convOuts/folder_resnet18/folder_L1"
    run(Training_TransNet, f"{FIT} --validate --suffix a0.1", "--convOut_path", features, "--out", out)
    yield SimpleNamespace(
        out=out, a=a, b=b, nets=nets, features=features, trans_net=out / TRANS_NET,
        after_training=after_training, after_all=files(out),
    )  # fmt: skip
    shutil.rmtree(out)


@pytest.fixture
def epochs(monkeypatch):
    """Watch runs by their logs.

    Gives `trained`, the epochs that were logged, in order; `stop_at`, how many of them are logged before a run is
    interrupted (Ctrl-C) in the next one, whose work is lost.
    """
    trained: list[int] = []
    stop_at: list[int] = []

    def write(log, epoch, metrics):
        if len(trained) in stop_at:
            raise KeyboardInterrupt
        trained.append(epoch)
        original(log, epoch, metrics)

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
