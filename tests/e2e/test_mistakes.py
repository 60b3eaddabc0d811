"""What goes wrong is told in one line:
the command lines of mistakes.py, and the same in a shell.
"""

import json
import math
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from filelock import FileLock

from models.classifiers import build, classifier_record
from tests.e2e.mistakes import MISTAKES
from tests.e2e.road import ROOT, run
from tests.mistakes import check_line
from utils import checkpoint
from utils.data.images import ImageData
from utils.sums import VERIFIED

pytestmark = pytest.mark.e2e
LONGEST_LINE = 200


@pytest.fixture(scope="module")
def shelf(road, photos, tmp_path_factory):
    """Files and folders to be wrong with, and command lines that would do but for one option."""
    tmp = tmp_path_factory.mktemp("shelf")
    out = tmp / "out"
    places = {
        "tmp": tmp,
        "road": road.out,
        "a": road.a,
        "b": road.b,
        "g": road.trans_net,
        "features": road.features,
    }
    places |= {name: tmp / name for name in ("empty", "single", "foreign", "incomplete")}
    places |= {
        name: tmp / f"{name}.pth.tar"
        for name in ("cut", "at48", "anonymous", "other", "two", "nan", "odd")
    }
    places["empty"].mkdir()
    shutil.copytree(photos / "train/red", places["single"] / "finch")
    places["foreign"].mkdir()
    (places["foreign"] / "holiday.jpg").touch()
    shutil.copytree(road.features / "train", places["incomplete"] / "train")
    index = json.loads((road.features / "train/index.json").read_text())
    (places["incomplete"] / "train/index.json").write_text(json.dumps(index | {"complete": False}))
    written = np.load(road.features / "train/written.npy")
    written[10:] = False
    np.save(places["incomplete"] / "train/written.npy", written)

    places["cut"].write_bytes(road.a.read_bytes()[:100_000])
    own = road.out / "model_checkpoints/checkpoint_folder_resnet18_cut.pth.tar"
    shutil.copy(places["cut"], own)
    state = checkpoint.load(road.b)
    checkpoint.save(places["at48"], state | {"data": state["data"] | {"image_size": 48}})
    weights = state["state_dict"]
    empty = {
        key: torch.full_like(one, math.nan)
        for key, one in weights.items()
        if one.is_floating_point()
    }
    checkpoint.save(places["nan"], state | {"state_dict": weights | empty})
    checkpoint.save(
        places["odd"],
        {"arch": 5, "model": ["resnet18"], "data": "birds", "state_dict": [1], "epoch": "x"},
    )
    # As the authors' are
    checkpoint.save(places["anonymous"], checkpoint.load(road.trans_net) | {"source": {}})

    for name, classes in (("other", 3), ("two", 2)):
        squeezenet = {"arch": "squeezenet1_1", "model": classifier_record("squeezenet1_1", classes)}
        checkpoint.save(
            places[name], squeezenet | {"state_dict": build("squeezenet1_1", classes).state_dict()}
        )
    hsakd = "train_baseline_cifar_arch_resnet8_dataset_cifar100_seed0/resnet8.pth.tar"
    ours = out / "model_checkpoints"
    nets = (
        ours / f"checkpoint_folder_resnet18_taken_{kind}.pth.tar"
        for kind in ("gen1", "pruned0.2-1")
    )
    for own in (*nets, tmp / "taken/checkpoint.pth.tar", tmp / "taken" / hsakd):
        checkpoint.save(own, {"epoch": 1, "settings": {"lr": 0.5, "resize": "torch"}})
    (tmp / "meadow").symlink_to(photos)

    data = f"--dataset folder --name folder --train_path {photos}/train --val_path {photos}/val"
    lines = {
        "data": data,
        "new": f"--arch resnet18 --image_size 64 {data} --out {out}",
        "old": (
            f"--arch resnet18 --image_size 64 --epochs 2 --batch_size 10 {data} --out {road.out}"
        ),
        "unlayered": f"--resume1 {road.a} --resume2 {road.b} {data} --out {out}",
        "pair": f"--resume1 {road.a} --resume2 {road.b} --conv_layer 1 {data} --out {out}",
        "fit": f"--convOut_path {road.features} --out {road.out}",
        "both": f"--net_A {road.a} --net_B {road.b} {data} --out {road.out}",
        "measure": f"--convOut_path {road.features} --transnet {road.trans_net}",
        "live": f"--net_in {road.a} --net_tar {road.b} {data} --transnet {road.trans_net}",
        "live_in": f"--net_in {road.a} --net_tar {road.b} --transnet {road.trans_net}",
        "meadow": f"--train_path {tmp}/meadow/train --val_path {tmp}/meadow/val",
        "taken": (
            f"baseline --arch resnet8 --checkpoint_dir {tmp}/taken --data {photos} --out {out}"
        ),
        "refine": (
            f"--net_A {road.a} --net_B {road.b} --resume_Ys {road.trans_net} {data} --out {out}"
        ),
        "again": f"--resume {road.a} {data} --out {out}",
        "prune": f"--resume {road.a} {data} --out {out}",
    }
    logs = road.out / "logs/folder_resnet18_locked"
    logs.mkdir()
    lock = FileLock(logs / ".lock")
    lock.acquire()
    (logs / ".lock").write_text("pid 1 on elsewhere, since yesterday")
    yield SimpleNamespace(folders=(tmp, road.out, photos), words=places | lines)
    lock.release()
    shutil.rmtree(logs)
    own.unlink()


def look(folders):
    """Name, size and time of every file below, but for notes on which files were checked."""
    files = [
        path
        for folder in folders
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != VERIFIED
    ]
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@pytest.fixture
def blind(monkeypatch):
    """Whoever decodes an image, in a thread or in a loader's worker, fails."""

    def decode(data, indices):
        raise AssertionError(f"{len(indices)} images are decoded before the mistake is told")

    monkeypatch.setattr(ImageData, "decode", decode)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    ("script", "line", "facts", "code"),
    MISTAKES,
    ids=[f"{script.__name__.split('.')[-1]} {line}" for script, line, *_ in MISTAKES],
)
def test_a_mistake_is_told_in_one_line_before_images_are_decoded_and_changes_nothing(
    shelf, tmp_path, monkeypatch, capsys, script, line, facts, code
):
    monkeypatch.chdir(tmp_path)
    before = look((*shelf.folders, tmp_path))
    with pytest.raises(SystemExit) as exit_:
        run(script, line.format(**shelf.words))
    printed = capsys.readouterr().err
    if isinstance(exit_.value.code, str):  # which Python prints to stderr before it exits with 1
        assert exit_.value.code.startswith(f"{script.__name__.split('.')[-1]}.py: ")
        printed, actual_code = printed + exit_.value.code + "\n", 1
    else:
        actual_code = exit_.value.code
        assert "--help" in printed.splitlines()[-1]
    last = printed.rstrip("\n").splitlines()[-1]
    check_line(last, *(fact.format(**shelf.words) for fact in facts))
    assert actual_code == code
    assert "Traceback" not in printed
    shortened = re.sub(r"/[^\s;:,']*", "/…", last)  # how long a path is, is the user's affair
    assert len(shortened) < LONGEST_LINE
    assert look((*shelf.folders, tmp_path)) == before


def test_every_script_has_its_mistakes():
    scripts = {script.__name__ for script, *_ in MISTAKES}
    assert scripts >= {path.stem for path in ROOT.glob("*.py")}
    assert len({(script, line) for script, line, *_ in MISTAKES}) >= 80


def test_a_mistake_in_a_shell(tmp_path):
    """The exit code is 1, of wrong options 2, and the one line stands on stderr alone."""
    words = [
        sys.executable,
        str(ROOT / "Variance.py"),
        "--convOut_path",
        str(tmp_path),
        "--transnet",
        "none.pth.tar",
    ]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    check_line(done.stderr, "Variance.py", "none.pth.tar")
    done = subprocess.run(
        [*words, "--net_in", "A"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    check_line(done.stderr, "Variance.py", "--net_in", "--convOut_path")
    assert not list(tmp_path.iterdir())
