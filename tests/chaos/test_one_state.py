"""What is one state in several files: equal in two runs, whole whenever a run is killed, and the
state before it where the newest file was damaged.
"""

import os
import shutil
from pathlib import Path

import pytest

from tests.chaos import saving
from tests.mistakes import check_some_line
from utils import checkpoint, files, remarks
from utils.files import earlier, settle

pytestmark = pytest.mark.e2e


class Killed(BaseException):
    """The process is no more."""


class Moves:
    """Count a run's moves of files, and kill it before one: nothing is tidied up then."""

    def __init__(self, monkeypatch, left=-1):
        self.left, self.names, self.killed = left, [], False
        replace, unlink, link = Path.replace, Path.unlink, os.link

        def moved(path, target):
            if self.killed or self.left == 0:
                self.killed = True
                raise Killed
            self.left -= 1
            self.names.append(Path(target).name)
            return replace(path, target)

        def unlinked(path, missing_ok=False):
            if not self.killed:
                unlink(path, missing_ok=missing_ok)

        def linked(*paths):
            if self.killed:
                raise Killed
            link(*paths)

        monkeypatch.setattr(Path, "replace", moved)
        monkeypatch.setattr(Path, "unlink", unlinked)
        monkeypatch.setattr(os, "link", linked)
        # Of a process that is no more
        monkeypatch.setattr(files, "_is_alive", lambda _: False)

    def revive(self):
        """Let further moves be."""
        self.killed, self.left = False, -1


@pytest.fixture(scope="module")
def undisturbed(photos, tmp_path_factory):
    """By step the folder where nothing happens, and the number of its moves of files."""
    done = {}

    def of(name):
        if name not in done:
            folder = tmp_path_factory.mktemp("undisturbed")
            saving.begin(folder, photos)
            with pytest.MonkeyPatch.context() as patch:
                moves = Moves(patch)
                saving.run(name)
            done[name] = folder, len(moves.names)
        return done[name]

    before = Path.cwd()
    yield of
    os.chdir(before)


@pytest.fixture
def folder(photos, tmp_path, undisturbed):
    """Another folder with what the steps read; work is done in it."""
    before = Path.cwd()
    saving.begin(tmp_path / "run", photos)
    yield tmp_path / "run"
    os.chdir(before)


@pytest.mark.parametrize("name", saving.STEPS)
def test_two_runs_of_one_command_write_equal_checkpoints(name, undisturbed, folder):
    whole, _ = undisturbed(name)
    os.chdir(folder)
    saving.run(name)
    ours = saving.checkpoints(folder)
    assert ours == saving.checkpoints(whole) and ours
    assert any(file.endswith(".1") for file in ours)  # the state before the last


FEW = 6  # moves before which a run is killed: the last ones, of which the last state is made
SEVERAL = ["Training", "Training_TransNet", "DCM", "HSAKD"]  # whose state is several files


@pytest.mark.parametrize("name", SEVERAL)
def test_a_run_that_is_killed_before_a_move_goes_on_to_equal_files(
    name, undisturbed, photos, tmp_path, monkeypatch
):
    _, count = undisturbed(name)
    kill(name, range(max(0, count - FEW), count), undisturbed, photos, tmp_path, monkeypatch)


@pytest.mark.chaos
@pytest.mark.parametrize("name", saving.STEPS)
def test_a_run_that_is_killed_before_any_move_goes_on_to_equal_files(
    name, undisturbed, photos, tmp_path, monkeypatch
):
    _, count = undisturbed(name)
    kill(name, range(count), undisturbed, photos, tmp_path, monkeypatch)


def kill(name, numbers, undisturbed, photos, tmp_path, monkeypatch):
    """Kill a step before each of some moves, and go on."""
    whole, before = undisturbed(name)[0], Path.cwd()
    for number in numbers:
        folder = tmp_path / str(number)
        saving.begin(folder, photos)
        with monkeypatch.context() as patch:
            moves = Moves(patch, number)
            with pytest.raises(Killed):
                saving.run(name)
            moves.revive()
            check_one_state(name, folder)
            saving.run(name, again=True)
        assert saving.checkpoints(folder) == saving.checkpoints(whole), number
        assert saving.logs(folder) == saving.logs(whole), number
        assert not saving.leftovers(folder), number
        shutil.rmtree(folder)
    os.chdir(before)


def check_one_state(name, folder):
    """Assert that what a killed run left is of one epoch."""
    for place in {path.parent for path in folder.rglob("*.pth.tar")}:
        settle(place)
    states = {path.name: checkpoint.load(path) for path in folder.rglob("*.pth.tar")}
    if name == "Training" and states:
        (last,) = (state for file, state in states.items() if file.startswith("checkpoint_"))
        (best,) = (state for file, state in states.items() if file.startswith("model_best_"))
        assert last["best_acc1"] == best["acc1"]
    if name in ("Training_TransNet", "DCM"):
        assert len({state["epoch"] for state in states.values()}) <= 1
    if name == "HSAKD" and states:
        (best,) = (state for file, state in states.items() if "_best" in file)
        (last,) = (state for file, state in states.items() if "_best" not in file)
        assert last["best"] == best["best"]


def newest(name, folder):
    """Give the checkpoints that a step goes on from."""
    apart = ("model_best", "net1", "net2")
    return [
        path
        for path in sorted(folder.rglob("*.pth.tar"))
        if earlier(path).exists() and not path.name.startswith(apart)
    ]


@pytest.mark.parametrize("name", saving.STEPS)
def test_a_damaged_file_gives_way_to_the_state_before_it(name, undisturbed, tmp_path, capsys):
    """The last epoch is trained again, to the bit, and the line names file and epoch."""
    whole, _ = undisturbed(name)
    folder = tmp_path / "copy"
    shutil.copytree(whole, folder, symlinks=True)
    os.chdir(folder)
    path = newest(name, folder)[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    epoch = checkpoint.load(earlier(path)).get("epoch") + (name == "HSAKD")
    remarks.forget()
    capsys.readouterr()
    saving.run(name, again=True)
    output = capsys.readouterr().out
    check_some_line(output, path.relative_to(folder), earlier(path).name, epoch)
    assert saving.checkpoints(folder) == saving.checkpoints(whole)
    assert saving.logs(folder) == saving.logs(whole)
