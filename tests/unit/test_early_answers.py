"""--help, a wrong option and a missing file are answered before PyTorch is loaded."""

import json
import subprocess
import sys

import pytest

import BornAgain
import DCM
import HSAKD
import PrepareData
import Report
import Training
from tests.mistakes import refused
from tests.unit.test_rooms import HEAVY, ROOT, STEPS
from utils.command import answer_early

# What is missing of each step, and the exit code; "nowhere" stands for a file that is not there.
MISSING = {
    "BornAgain": ["--resume", "nowhere"],
    "Calibrate": ["--convOut_path", ".", "--transnet", "nowhere"],
    "Compare": ["nowhere", "nowhere", "--images", "."],
    "ConvOutput": ["--resume1", "nowhere", "--resume2", "nowhere"],
    "DCM": ["--save", ".", "--resume", "nowhere"],
    "HSAKD": ["student", "--tcheckpoint", "nowhere"],
    "PrepareData": ["CUB200", "--src", "nowhere"],
    "Pruning": ["--resume", "nowhere"],
    "Report": ["nowhere"],
    "Training": ["--weights", "nowhere"],
    "Training_TransNet": ["--convOut_path", "nowhere"],
    "Variance": ["--transnet", "nowhere", "--convOut_path", "."],
    "transClassifier": ["--net_A", "nowhere", "--net_B", ".", "--resume_Ys", "."],
}
# Runs command lines one after the other as a script does, and prints of each the exit code, what it
# says, and which of the heavy modules are loaded.
PROGRAM = """
import contextlib, io, json, runpy, sys
answers = []
for words in json.loads(sys.argv[1]):
    sys.argv, said = [f"{words[0]}.py", *words[1:]], io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_module(words[0], run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            code = ended.code
    answers.append([code, said.getvalue(), sorted({HEAVY} & sys.modules.keys())])
print(json.dumps(answers))
""".replace("{HEAVY}", repr({"torch", "numpy", "scipy", *HEAVY} - {"jinja2"}))


def answers(*lines):
    """Give (exit code, output, heavy modules) of each command line."""
    words = [sys.executable, "-c", PROGRAM, json.dumps(lines)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)


def run_program(program):
    """Run Python code in a process of its own, where nothing is imported yet."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_step_is_asked():
    assert set(MISSING) == STEPS


def test_help_needs_no_pytorch():
    for step, (code, output, loaded) in zip(MISSING, answers(*([s, "--help"] for s in MISSING))):
        assert (code, loaded) == (0, []), step
        assert "--help" in output, step


def test_a_wrong_option_needs_no_pytorch():
    lines = ([step, "--no_such_option"] for step in MISSING)
    for step, (code, output, loaded) in zip(MISSING, answers(*lines)):
        assert (code, loaded) == (2, []), step
        assert len(output.splitlines()) == 1, step


def test_a_missing_file_needs_no_pytorch():
    lines = ([step, *words] for step, words in MISSING.items())
    for step, (code, _, loaded) in zip(MISSING, answers(*lines)):
        assert loaded == [], step
        assert isinstance(code, str), step  # the sentence, with which Python ends as with code 1
        assert f"{step}.py: " in code, step
        assert "nowhere" in code, step
        assert len(code.splitlines()) == 1, step


@pytest.mark.parametrize(
    "words", [["--help"], ["Training", "--help"], ["Pruning", "--epochs", "x"]]
)
def test_the_installed_command_needs_no_pytorch(words):
    program = (
        "import sys\n"
        "from consistency import steps\n"
        f"sys.argv = ['knowledge-consistency', *{words}]\n"
        "try: steps.main()\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    run_program(program)


def test_preparing_data_needs_no_pytorch_at_all():
    program = "import sys, PrepareData; assert not {'torch', 'scipy'} & sys.modules.keys()"
    run_program(program)


def answered(monkeypatch, step, *words):
    """Answer a command line early, in this process."""
    monkeypatch.setattr("sys.argv", [f"{step.__name__}.py", *map(str, words)])
    answer_early(step.build_parser())


def test_a_page_is_made_again_in_its_place(monkeypatch, tmp_path):
    page = tmp_path / "page.html"
    page.touch()
    answered(monkeypatch, Report, tmp_path, "--out", page)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Training, ["--out"]),
        (PrepareData, ["digits", "--out"]),
        (DCM, ["--save"]),
        (HSAKD, ["teacher", "--out"]),
        (HSAKD, ["teacher", "--checkpoint_dir"]),
    ],
)
def test_a_folder_below_a_file_is_refused(monkeypatch, tmp_path, step, words):
    (tmp_path / "file").touch()
    with refused(f"{step.__name__}.py", tmp_path / "file", kind=SystemExit):
        answered(monkeypatch, step, *words, tmp_path / "file" / "x")
    answered(monkeypatch, step, *words, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", "auto"])
def test_what_a_run_left_itself_need_not_be_there(monkeypatch, name):
    answered(monkeypatch, Training, "--resume", name)
    answered(monkeypatch, BornAgain, "--resume", name)


def test_the_file_of_an_architecture_must_be_there(monkeypatch, tmp_path):
    (tmp_path / "nets.py").touch()
    for arch in ("vgg16", "package.module:tiny", f"{tmp_path}/nets.py:tiny"):
        answered(monkeypatch, Training, "--arch", arch)
    with refused("Training.py", tmp_path / "lost.py", kind=SystemExit):
        answered(monkeypatch, Training, "--arch", f"{tmp_path}/lost.py:tiny")
