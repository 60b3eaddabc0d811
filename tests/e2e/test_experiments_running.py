"""How the sections' scripts run: chains, logs, what fails, and the small runs."""

import shlex
import sys
from pathlib import Path

import pytest

from tests.e2e.sections import SECTIONS, run
from tests.mistakes import check_line
from tests.unit.photos import make_folder

pytestmark = pytest.mark.e2e
# It stands for Python: it notes what it is called with, and fails where FAIL is among its words.
STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
for line in {1..30}; do echo "line $line of $1"; done
[[ -z "${FAIL:-}" || "$*" != *"$FAIL"* ]]
"""


@pytest.fixture
def stub(tmp_path):
    """Settings under which steps run the stub, and the file that it notes its calls in."""
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    calls = tmp_path / "calls"
    return {"PYTHON": str(path), "CALLS": str(calls), "OUT": str(tmp_path / "out")}, calls


def test_a_run_is_what_the_dry_run_prints(stub):
    settings, calls = stub
    dry = run("distillation", "--dry-run", **settings)
    assert not calls.exists()
    assert not Path(settings["OUT"]).exists()
    assert run("distillation", **settings).returncode == 0
    printed = [" ".join(shlex.split(line)[1:]) for line in dry.stdout.splitlines()]
    assert calls.read_text().splitlines() == printed


def test_a_failed_step_stops_and_shows_its_log(stub):
    settings, calls = stub
    result = run("distillation", FAIL="gen1_a0.1", **settings)
    assert result.returncode == 1
    log = Path(settings["OUT"], "steps/distillation/fit_vgg16_bn_sd0_gen1.log")
    assert str(log) in result.stderr
    assert "line 30 of Training_TransNet.py\n" in result.stderr
    assert "line 10 of Training_TransNet.py\n" not in result.stderr
    assert len(log.read_text().splitlines()) == 30
    assert "--suffix sd0_gen1_a0.1 --alpha '[0.1,0.1]'" in result.stderr
    assert "--suffix sd0_gen1_a0.1" in calls.read_text().splitlines()[-1]


def test_chains_side_by_side_do_all_and_stop_all(stub):
    settings, calls = stub
    assert run("stability", JOBS="3", ARCHS="alexnet", **settings).returncode == 0
    side_by_side = sorted(calls.read_text().splitlines())
    calls.unlink()
    assert run("stability", ARCHS="alexnet", **settings).returncode == 0
    assert side_by_side == sorted(calls.read_text().splitlines())
    calls.unlink()
    result = run("stability", JOBS="3", ARCHS="alexnet", FAIL="--suffix sd5 ", **settings)
    assert result.returncode == 1
    assert "train_CUB200_alexnet_sd5 failed" in result.stderr
    assert all(line.startswith("Training.py") for line in calls.read_text().splitlines())


def test_a_second_run_keeps_the_first_log_of_a_step(stub):
    settings, _ = stub
    for _ in range(2):
        assert run("distillation", **settings).returncode == 0
    log = Path(settings["OUT"], "steps/distillation/fit_vgg16_bn_sd0_gen1.log")
    assert len(log.read_text().splitlines()) == 60


def test_a_python_that_is_not_there_is_said(tmp_path):
    result = run("tasks", "--dry-run", PYTHON=str(tmp_path / "python"))
    assert (result.returncode, result.stdout) == (1, "")
    check_line(result.stderr, "tasks", tmp_path / "python", "PYTHON")


def test_a_result_that_was_not_written_stops(stub):
    settings, _ = stub
    result = run("refinement", ARCHS="resnet18", **settings)
    assert result.returncode == 1
    assert "refinement: " in result.stderr
    assert "which is not there" in result.stderr


def test_help_is_the_head_of_the_script():
    result = run("tasks", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Sec. 4.6")
    assert run("tasks", "--wrong").returncode == 2
    small = run("small_run", "--help")
    assert small.returncode == 0
    assert small.stdout.startswith("All sections at a size for two CPU cores")
    for words in ((), ("--wrong",)):
        assert (run("small_run", *words).returncode, run("small_run", *words).stdout) == (
            2,
            small.stdout,
        )


def test_the_small_run_needs_no_dogs():
    result = run("small_run", "CUB_200_2011", "--dry-run", PYTHON="python")
    assert result.returncode == 0, result.stderr
    # Stability is run three times
    assert result.stdout.count("-m experiments.tables") == len(SECTIONS) + 2
    assert "--image_size 64" in result.stdout
    assert "runs/small/data/dogs runs/small/mix/DOG120" in result.stdout


def test_the_small_distillation_is_dcm_hsakd_and_their_tables():
    result = run(
        "small_distil", "cifar.tar.gz", "--dry-run", PYTHON="python", SEEDS="4", EPOCHS="10"
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert (
        lines[0].startswith("python PrepareData.py CIFAR100 --src /") and "--classes 10" in lines[0]
    )
    assert (
        result.stdout.count("python DCM.py") == 2 * 3 + 1
        and result.stdout.count("python HSAKD.py") == 3
    )
    assert "--epoch_step '[7,9]' --batch_size 32" in result.stdout
    tables_of = [line.split()[2] for line in lines if line.startswith("python -m")]
    assert tables_of == ["experiments.tables", "experiments.knowledge", "experiments.accuracies"]
    assert run("small_distil").returncode == 2


def test_a_whole_section_runs(tmp_path):
    """The whole of Sec. 4.6 on photos of two birds and two dogs."""
    for half, names in (("CUB200", ("finch", "gull")), ("DOG120", ("beagle", "pug"))):
        for split in ("train", "test"):
            make_folder(tmp_path / "data" / half / split, dict.fromkeys(names, 3))
    settings = {
        "DATA": str(tmp_path / "data"),
        "OUT": str(tmp_path / "out"),
        "PYTHON": sys.executable,
        "ARCHS": "resnet18",
        "EPOCHS": "1",
        "TRANS_EPOCHS": "1",
        "IMAGE_SIZE": "32",
        "BATCH": "6",
        "JOBS": "2",
    }
    result = run("tasks", **settings)
    assert result.returncode == 0, result.stderr
    assert "### Fig. 5" in result.stdout
    assert "classes of mix320 4 (320)" in result.stdout
    assert "| fine-grained → binary | " in result.stdout
