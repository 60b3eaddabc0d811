"""The project as a package: its steps are listed, and all that they need is installed."""

import subprocess
import sys
from pathlib import Path

import pytest
import tomllib

import consistency
from consistency import steps
from utils.errors import InputError

ROOT = Path(consistency.__file__).parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").exists(), reason="not a clone of the repository")


def setup():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_all_steps_are_listed_and_installed():
    assert set(steps.STEPS) == SCRIPTS == set(setup()["tool"]["setuptools"]["py-modules"])


def test_all_files_of_the_packages_are_installed():
    tables = setup()["tool"]["setuptools"]
    packages = {pattern.rstrip("*") for pattern in tables["packages"]["find"]["include"]}
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"benchmarks", "tests"} <= packages
    for package in packages:
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {path.suffix for path in files} <= {".py", ".jinja"}
        assert all((path.parent / "__init__.py").exists() for path in files)


def command(words, folder):
    """Run the command as its entry does, whose first place to look for modules is not the folder."""
    module, _, function = setup()["project"]["scripts"]["knowledge-consistency"].partition(":")
    path = [str(ROOT), *(entry for entry in sys.path if entry and "site-packages" in entry)]
    program = (
        f"import sys; sys.path[:1] = {path}; from {module} import {function}\n"
        f"sys.argv = ['knowledge-consistency', *{words}]\n{function}(); print('torch' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_list_is_a_line_a_step_and_loads_no_pytorch(tmp_path):
    done = command([], tmp_path)
    _, *listed, _, loaded = done.stdout.splitlines()
    assert (done.returncode, done.stderr, loaded) == (0, "", "False")
    assert [line.split()[0] for line in listed] == list(steps.STEPS)
    assert all(len(line.split()) > 4 and line.endswith((".", ":", ")")) for line in listed)


def test_a_step_runs_in_a_folder_that_has_other_models(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").touch()
    done = command(["Variance", "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and "--transnet" in done.stdout
    wrong = command(["Variance", "--transnet", "no_such_file", "--convOut_path", "nowhere"], tmp_path)
    assert wrong.returncode == 1 and len(wrong.stderr.splitlines()) == 1 and "Variance.py" in wrong.stderr


def test_another_word_than_a_step_is_refused(tmp_path):
    done = command(["Trainning"], tmp_path)
    assert done.returncode == 1 and "Trainning" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_step_that_is_not_there_is_named():
    with pytest.raises(InputError, match="NoSuchStep"):
        steps.summary("NoSuchStep")
