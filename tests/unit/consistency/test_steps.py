"""The project as a package: its steps are listed, and all that they need is installed."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import consistency
from consistency import steps
from tests.mistakes import refused

tomllib = pytest.importorskip("tomllib")  # of Python 3.11
ROOT = Path(consistency.__file__).parents[1]
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
pytestmark = pytest.mark.skipif(
    not (ROOT / "pyproject.toml").exists(), reason="not a clone of the repository"
)


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_all_steps_are_listed_and_installed():
    """A new step belongs into `consistency.steps.STEPS` and into `py-modules` of pyproject.toml."""
    assert set(steps.STEPS) == SCRIPTS
    assert set(project()["tool"]["setuptools"]["py-modules"]) == SCRIPTS


def test_a_wheel_holds_all_files_and_needs_all_libraries(tmp_path):
    pytest.importorskip("setuptools", minversion="70.1")
    source = tmp_path / "source"
    source.mkdir()
    packages = ("consistency", "distillation", "models", "utils")
    for path in (
        *ROOT.glob("*.py"),
        *(ROOT / name for name in ("pyproject.toml", "requirements.txt", "README.md")),
    ):
        shutil.copy(path, source)
    for folder in (ROOT / name for name in packages if (ROOT / name).is_dir()):
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    expected = {
        path.relative_to(source).as_posix()
        for path in source.rglob("*")
        if path.suffix in (".py", ".jinja")
    }
    words = [
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(
        [sys.executable, "-m", *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (
            archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")
        )
    assert files == expected
    needed = set(re.findall(r"^Requires-Dist: (\S+)", metadata, re.MULTILINE))
    assert needed == set((ROOT / "requirements.txt").read_text(encoding="utf-8").split())


def command(words, folder):
    """Run the command as its entry does,
    whose first place to look for modules is not the folder.
    """
    module, _, function = project()["project"]["scripts"]["knowledge-consistency"].partition(":")
    path = [str(ROOT), *(entry for entry in sys.path if entry and "site-packages" in entry)]
    program = (
        f"import sys; sys.path[:1] = {path}; from {module} import {function}\nsys.argv ="
        f" ['knowledge-consistency', *{words}]\n{function}(); print('torch' in sys.modules)"
    )
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
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
    wrong = command(
        ["Variance", "--transnet", "no_such_file", "--convOut_path", "nowhere"], tmp_path
    )
    assert (
        wrong.returncode == 1
        and len(wrong.stderr.splitlines()) == 1
        and "Variance.py" in wrong.stderr
    )


def test_another_word_than_a_step_is_refused(tmp_path):
    done = command(["Trainning"], tmp_path)
    assert (
        done.returncode == 1 and "Trainning" in done.stderr and len(done.stderr.splitlines()) == 1
    )


def test_a_step_that_is_not_there_is_named():
    with refused("NoSuchStep"):
        steps.summary("NoSuchStep")
