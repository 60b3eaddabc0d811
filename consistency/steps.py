"""The command `knowledge-consistency`: it lists the steps and runs them.

It is there once the project is installed.
"""

import ast
import importlib.util
import runpy
import sys
from pathlib import Path

from utils.errors import InputError

STEPS = (
    "Compare",
    "PrepareData",
    "Training",
    "ConvOutput",
    "Training_TransNet",
    "Variance",
    "Calibrate",
    "Report",
    "transClassifier",
    "Pruning",
    "BornAgain",
    "DCM",
    "HSAKD",
)


def summary(step: str) -> str:
    """Give the first sentence of a step's docstring.

    The step is read and not imported, because importing PyTorch takes seconds.

    Raises:
        InputError: the step is not installed.
    """
    spec = importlib.util.find_spec(step)
    if spec is None or spec.origin is None:
        raise InputError(
            f"there is no {step}.py; install the project anew, or start Python in its folder"
        )
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def listing() -> str:
    """List all steps in the order in which they follow each other, a line each."""
    width = max(map(len, STEPS))
    lines = [f"  {step:<{width}}  {summary(step)}" for step in STEPS]
    return "\n".join(
        [
            "usage: knowledge-consistency STEP [options]",
            *lines,
            (
                "knowledge-consistency STEP --help shows a step's options; in Python: import"
                " consistency"
            ),
        ]
    )


def main() -> None:
    """Run the step that the command line names, or print all of them.

    A step that is run so finds this project's packages also in a folder that has others of their
    names.
    """
    step, *words = [*sys.argv[1:], ""]
    if step in ("", "-h", "--help"):
        print(listing())
    elif step not in STEPS:
        sys.exit(
            f"knowledge-consistency: there is no step {step!r}; the steps are {', '.join(STEPS)}"
        )
    else:
        sys.argv = [step, *words[:-1]]
        runpy.run_module(step, run_name="__main__", alter_sys=True)
