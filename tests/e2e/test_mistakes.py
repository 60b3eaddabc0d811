"""What goes wrong is told in one line."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

import BornAgain
import ConvOutput
import Pruning
import Training
import Training_TransNet
import transClassifier
import Variance
from tests.e2e.road import ROOT, data, files, run
from utils import checkpoint

pytestmark = pytest.mark.e2e


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
    """One that does not say what it was fitted on, as the authors' do not."""
    state = checkpoint.load(road.trans_net)
    checkpoint.save(tmp_path / "g.pth.tar", state | {"source": {}})
    photos = road.nets[road.nets.index("--train_path") + 1].parent
    return (
        Variance, "--conv_layer 2 --image_size 64", "--net_in", road.a, "--net_tar", road.b, *data(photos),
        "--transnet", tmp_path / "g.pth.tar",
        r"maps 64 channels to \(64, 16, 16\), but these features are \(128, 8, 8\)",
    )  # fmt: skip


def nets_of_two_sizes(road, tmp_path):
    state = checkpoint.load(road.b)
    checkpoint.save(tmp_path / "b.pth.tar", state | {"data": state["data"] | {"image_size": 48}})
    return (
        ConvOutput, "--conv_layer 1", "--resume1", road.a, "--resume2", tmp_path / "b.pth.tar", *road.nets[4:-1],
        tmp_path, "were trained at 48 and 64 pixels, and images have one size: choose by --image_size",
    )  # fmt: skip


OTHER_SIZE = "was trained at 64 pixels, --image_size says 48; leave the option out"
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
        ConvOutput, "--conv_layer 1", "--resume1", road.a, "--resume2", road.trans_net,
        "holds a Trans-Net, a classifier is expected",
    ),
    "no such layer": lambda road, tmp_path: (
        ConvOutput, "--layer layer1.1.ad --image_size 64", *road.nets, r"no layer 'layer1\.1\.ad'.*layer1\.1\.add",
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
        Training_TransNet, "--conv_layer 4", "--convOut_path", road.features, 'have layer = "1", expected "4"',
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
    "features of another image size": lambda road, tmp_path: (
        ConvOutput, "--conv_layer 1 --image_size 48", *road.nets, OTHER_SIZE,
    ),
    "variances at another image size": lambda road, tmp_path: (
        Variance, "--image_size 48", "--net_in", road.a, "--net_tar", road.b, *road.nets[4:-2],
        "--transnet", road.trans_net, OTHER_SIZE,
    ),
    "a tail of another image size": lambda road, tmp_path: (
        transClassifier, "--image_size 48 --epochs 1", "--net_A", road.a, "--net_B", road.b, *road.nets[4:-1], tmp_path,
        "--resume_Ys", road.trans_net, OTHER_SIZE,
    ),
    "an accuracy at another image size": lambda road, tmp_path: (
        Training, "--evaluate --image_size 48", *road.nets[4:-1], tmp_path, "--resume", road.a, OTHER_SIZE,
    ),
    "a series of another image size": lambda road, tmp_path: (
        BornAgain, "--image_size 48 --epochs 1", *road.nets[4:-1], tmp_path, "--resume", road.a, OTHER_SIZE,
    ),
    "a compression at another image size": lambda road, tmp_path: (
        Pruning, "--image_size 48 --epochs 1", *road.nets[4:-1], tmp_path, "--resume", road.a, OTHER_SIZE,
    ),
    "nets of two image sizes": nets_of_two_sizes,
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
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1 and said.endswith(" (--help shows all options)\n")


def test_a_mistake_in_a_shell(tmp_path):
    """The exit code is 1, of wrong options 2, and the one line stands on stderr alone."""
    words = [sys.executable, str(ROOT / "Variance.py"), "--convOut_path", str(tmp_path), "--transnet", "none.pth.tar"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "Variance.py: no checkpoint at none.pth.tar; train it first or correct the path\n"
    done = subprocess.run([*words, "--net_in", "A"], cwd=tmp_path, capture_output=True, text=True, check=False)
    why = "--net_in has no effect beside --convOut_path: those features are stored already"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Variance.py: error: {why} (--help shows all options)\n"
    assert not list(tmp_path.iterdir())


SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_in_a_shell(script):
    words = [sys.executable, str(ROOT / f"{script}.py"), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: {script}.py ")
    assert "(default: " in done.stdout
