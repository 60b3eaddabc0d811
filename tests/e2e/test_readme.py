"""README's five commands on two nets of another author, with real images where they are."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("KC_REAL_DATA", "/nowhere"))
NETS = ("resnet20", "resnet56")
IMAGES = {"train": 12, "test": 6}  # of a class


@pytest.fixture
def folder(tmp_path):
    """A newcomer's folder: the nets' Python file, their checkpoints, and photos in one folder a class."""
    if not (DATA / "zoo").is_dir():
        pytest.skip("KC_REAL_DATA names no folder with zoo/ and CIFAR10_mini/")
    shutil.copy(ROOT / "tests" / "e2e" / "zoo_nets.py", tmp_path / "resnet.py")
    for name in NETS:
        (checkpoint,) = (DATA / "zoo" / "resnet_cifar").glob(f"{name}-*.th")
        shutil.copy(checkpoint, tmp_path / f"{name}.th")
    for split, count in IMAGES.items():
        for source in sorted((DATA / "CIFAR10_mini" / split).iterdir()):
            place = tmp_path / "photos" / split / source.name
            place.mkdir(parents=True)
            for file in sorted(source.iterdir())[:count]:
                shutil.copy(file, place)
    return tmp_path


def run_block(script, folder):
    """Run a fenced block in a folder; gives what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_one_command_that_the_readme_begins_with(folder):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(python Compare\.py resnet20.*?)```", text, re.DOTALL)[1]
    script = block.replace("python Compare.py", f"{sys.executable} {ROOT}/Compare.py")
    run_block(script, folder)
    assert "The answer" in (folder / "comparison" / "page.html").read_text(encoding="utf-8")


def test_five_commands_of_a_newcomer(folder):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```sh\n(python ConvOutput\.py --arch1.*?)```", text, re.DOTALL)[1]
    # As they stand, but for the budget: a few images need no 400 steps.
    block = block.replace("--standardise --solve", "--standardise --solve --steps 6")
    block = block.replace("--brief", "--brief --permutations 19")
    script = re.sub(r"python (\w+\.py)", rf"{sys.executable} {ROOT}/\1", block)
    assert "instability Var(x_Δ)/Var(x*)" in run_block(script, folder)
    assert list(folder.glob("reports/*.html"))
