"""A signal ends a run after the step in hand, and the run that goes on equals the undisturbed one."""

import json
import shlex
import signal

import pytest
import torch

import DCM
import HSAKD
import Training
import Training_TransNet
from tests.e2e.road import assert_same, data
from tests.unit import stored_features
from utils import checkpoint, stopping
from utils.training.engine import Averages

pytestmark = pytest.mark.e2e
# By name: the script, its command line, {out} its folder, how it goes on. Dropout and momentum make
# the random numbers and the optimiser's state count.
NET = "--arch mobilenet_v3_small --image_size 32 --epochs 2 -b 6 --lr 0.01 -j 0"
FIT = "--convOut_path {out}/features --epochs 2 -b 4 --alpha [0.1,0.1] --lr 0.01"
STEPS = {
    "Training": (Training, f"{NET} --save_epoch 2 --val_epoch 1 --out {{out}}", "--resume auto"),
    "Training in one cycle": (
        Training,
        "--arch resnet8 --image_size 32 --epochs 2 -b 6 --val_epoch 1 -j 0 --augment zero4 --lr 0.1"
        " --one_cycle --label_smoothing 0.1 --out {out}",
        "--resume auto",
    ),
    "Training_TransNet": (
        Training_TransNet,
        f"{FIT} --save_epoch 2 --val_epoch 2 --out {{out}}",
        "--resume auto",
    ),
    "Training_TransNet in steps": (
        Training_TransNet,
        "--convOut_path {out}/features --steps 8 -b 4 --standardise --solve --layers 2 --out {out}",
        "--resume auto",
    ),
    "DCM": (
        DCM,
        "--net1 wrn_16_0.5 --net2 mobilenet32 -b 6 --nthread 0 --epochs 2 --epoch_step [2]"
        " --image_size 32 --save {out}",
        "--resume auto",
    ),
    "HSAKD": (
        HSAKD,
        "baseline --arch resnet8 --batch-size 6 --epochs 2 --warmup-epoch 2"
        " --checkpoint-dir {out} --out {out} --data {photos}",
        "--resume",
    ),
}


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """Every run as it is where nothing happens; made when it is asked for."""
    done = {}

    def of(name):
        if name not in done:
            done[name] = tmp_path_factory.mktemp("undisturbed")
            run(name, photos, done[name])
        return done[name]

    return of


def run(name, photos, out, *more):
    script, line, _ = STEPS[name]
    if script is Training_TransNet and not (out / "features").exists():
        stored_features.complete(out / "features" / "train")
    folder = data(photos) if script in (Training, DCM) else ()
    words = shlex.split(line.format(out=out, photos=photos))
    script.main([*words, *map(str, folder), *more])


def states(out):
    """The content of every checkpoint, without the files' names of what was read."""
    return {
        path.relative_to(out).as_posix(): checkpoint.load(path)
        for path in sorted(out.rglob("*.pth.tar"))
    }


def epochs_of(out):
    """The lines of every log, without the times."""
    lines = {}
    for path in sorted(out.rglob("metrics.jsonl")):
        read = [json.loads(line) for line in path.read_text().splitlines()]
        lines[path.relative_to(out).as_posix()] = [line | {"seconds": 0} for line in read]
    return lines


@pytest.fixture
def signals(monkeypatch):
    """Let a signal come in the n-th step of a run: `signals[n] = signal.SIGTERM`."""
    due, count = {}, []

    def add(averages, metrics, samples):
        original(averages, metrics, samples)
        if due and metrics["Loss"].requires_grad:  # of training
            count.append(1)
            if number := due.pop(len(count), None):
                signal.raise_signal(number)

    original = Averages.add
    monkeypatch.setattr(Averages, "add", add)
    return due


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("steps", "number"),
    [
        ((1,), signal.SIGTERM),
        ((3, 4), signal.SIGINT),  # the second while the run goes on from the first
        ((6,), signal.SIGTERM),
    ],
    ids=["first step", "twice", "second epoch"],
)
def test_a_run_goes_on_within_an_epoch_to_the_bit(
    name, steps, number, photos, tmp_path, undisturbed, signals, capsys
):
    whole = undisturbed(name)
    signals |= dict.fromkeys(steps, number)
    more = ()
    for _ in steps:
        with pytest.raises(SystemExit) as ended:
            run(name, photos, tmp_path, *more)
        assert ended.value.code == 128 + number
        more = shlex.split(STEPS[name][2])
    capsys.readouterr()
    run(name, photos, tmp_path, *more)
    assert "of its steps" in capsys.readouterr().out
    ours, theirs = states(tmp_path), states(whole)
    assert ours.keys() == theirs.keys() and ours
    for file, state in theirs.items():
        for kept in (state, ours[file]):
            kept.pop("source", None)  # names the features' folder
        assert_same(ours[file], state, file)
    assert epochs_of(tmp_path) == epochs_of(whole)


def test_a_signal_between_training_and_saving_costs_no_epoch(
    photos, tmp_path, undisturbed, monkeypatch
):
    """It comes while the epoch is validated; the best epoch is still the best."""
    whole = undisturbed("Training")

    def ended(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr("Training.validate", ended)
        with pytest.raises(SystemExit) as exit_:
            run("Training", photos, tmp_path)
    assert exit_.value.code == 143
    taken = []
    original = Averages.add
    monkeypatch.setattr(
        Averages, "add", lambda *of: (taken.append(of[1]["Loss"].requires_grad), original(*of))
    )
    run("Training", photos, tmp_path, "--resume", "auto")
    assert sum(taken) == 4  # the steps of the second epoch alone
    for file, state in states(whole).items():
        assert_same(states(tmp_path)[file], state, file)


def test_what_was_left_within_an_epoch_is_a_net_of_the_epochs_before(
    photos, tmp_path, signals, capsys
):
    signals[5] = signal.SIGTERM
    with pytest.raises(SystemExit):
        run("Training", photos, tmp_path)
    (file,) = [name for name in states(tmp_path) if "checkpoint_" in name]
    state = states(tmp_path)[file]
    assert (state["epoch"], state["midway"]["epoch"], state["midway"]["step"]) == (1, 1, 1)
    assert "1 of 2 epochs and 1 steps" in capsys.readouterr().out
    # With --start_epoch the epoch begins anew.
    run("Training", photos, tmp_path, "--resume", "auto", "--start_epoch", "1")
    assert "midway" not in states(tmp_path)[file]


def test_a_family_that_was_left_within_an_epoch_goes_on_together(photos, tmp_path, signals, capsys):
    signals[2] = signal.SIGINT
    with pytest.raises(SystemExit):
        run("Training_TransNet", photos, tmp_path)
    with pytest.raises(SystemExit) as refused:
        run("Training_TransNet", photos, tmp_path, "--resume", "auto", "--one_direction")
    assert "checkpoint_L" in str(refused.value.code)


def test_a_second_signal_ends_at_once(tmp_path):
    """In a process of its own, which never comes to the end of its step."""
    import subprocess
    import sys

    program = (
        "import os, signal, time\n"
        "from utils import stopping\n"
        "with stopping.handled(), stopping.after_this_step():\n"
        "    print('ready', flush=True)\n"
        "    while True: time.sleep(0.01)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout and process.stderr
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert "once more" in process.stderr.readline() + process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 143


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_within_a_save_waits_for_its_end(tmp_path, monkeypatch, number):
    """PyTorch's writer would abort the process, or raise another error."""
    path = tmp_path / "net.pth.tar"
    checkpoint.save(path, {"epoch": 1})

    def write(target, data):
        signal.raise_signal(number)
        monkeypatch.undo()
        return original(target, data)

    original = checkpoint._Target.write
    monkeypatch.setattr(checkpoint._Target, "write", write)
    with stopping.handled(), pytest.raises(stopping.Interrupted) as ended:
        checkpoint.save(path, {"epoch": 2, "w": torch.zeros(10)})
    assert ended.value.code == 128 + number
    # The old state or the new one, whole
    assert checkpoint.load(path)["epoch"] in (1, 2)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.pth.tar"]
