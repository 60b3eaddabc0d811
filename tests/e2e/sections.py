"""The sections' scripts by subprocess: what they say, and the commands that --dry-run prints."""

import importlib
import os
import shlex
import subprocess
from pathlib import Path

from experiments import tables

ROOT = Path(tables.__file__).parents[1]
SECTIONS = (
    "diagnosis",
    "stability",
    "refinement",
    "redundancy",
    "compression",
    "distillation",
    "tasks",
)
SETTINGS = (
    "DATA",
    "OUT",
    "BIRDS",
    "DOGS",
    "PYTHON",
    "IMAGE_SIZE",
    "OPTIM",
    "LR",
    "TRANS_EPOCHS",
    "TRANS_LR",
    "REFINE_EPOCHS",
    "REFINE_LR",
    "PRUNE_EPOCHS",
    "BATCH",
    "JOBS",
    "DEVICE_IDS",
    "ARCHS",
    "EPOCHS",
    "SEEDS",
    "LAYERS",
    "TARGETS",
    "THRESHOLDS",
    "GENERATIONS",
    "KC_DATA",
    "FIT",
    "CALIBRATE",
    "PRETRAINED",
    "WEIGHTS",
    "HALF_SEEDS",
    "RELEASED_EPOCHS",
    "CALIBRATE_PAIRS",
    "WEAK_SAMPLE",
    "SHARE_BITS",
    "LR_resnet18",
    "EPOCHS_resnet18",
    "LAYERS_resnet18",
    "TEACHER",
    "STUDENT",
    "TEACHER_EPOCHS",
    "METHODS",
    "PAIRS",
    "EPOCH_STEP",
    "CLASSES",
    "KINDS",
    "SECTIONS",
    "ZOO",
    "FACTORIES",
    "RANDOM_EPOCHS",
    "STUDENT_EPOCHS",
)
# Those of the tests that compose names, since they have no underscore
ARCHS = ("alexnet", "resnet18")


def run(section, *words, **settings):
    environment = {
        key: value for key, value in os.environ.items() if key not in SETTINGS
    } | settings
    script = ROOT / "experiments" / f"{section}.sh"
    return subprocess.run(
        ["bash", script, *words], env=environment, capture_output=True, text=True, check=False
    )


def commands(section, **settings):
    """Give what --dry-run prints as (script, parsed options),
    links included as ("ln", [target, name]).
    """
    result = run(section, "--dry-run", PYTHON="python", **settings)
    assert result.returncode == 0, result.stderr
    found = []
    for line in result.stdout.splitlines():
        words = shlex.split(line)
        if words[0] in ("mkdir", "rm"):
            found.append(
                ("rm", words[2]) if words[0] == "rm" else ("ln", words[words.index("-sfn") + 1 :])
            )
            continue
        assert words[0] == "python"
        module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
        options = words[3:] if words[1] == "-m" else words[2:]
        found.append((module, importlib.import_module(module).build_parser().parse_args(options)))
    return found


def only(found, script):
    return [options for name, options in found if name == script]
