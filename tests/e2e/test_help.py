"""--help of every script and command: an example that parses,
named groups, one default of an option.
"""

import re

import pytest

import BornAgain
import Calibrate
import ConvOutput
import DCM
import HSAKD
import PrepareData
import Pruning
import Report
import Training
import Training_TransNet
import transClassifier
import Variance
from distillation.hsakd_options import COMMANDS
from experiments import figures, provided, tables
from tests.e2e.road import run

pytestmark = pytest.mark.e2e
PARSERS = [
    (script, "")
    for script in (BornAgain, Calibrate, ConvOutput, DCM, HSAKD, PrepareData, Pruning, Training)
]
PARSERS += [
    (script, "")
    for script in (Report, Training_TransNet, Variance, figures, provided, tables, transClassifier)
]
PARSERS += [(HSAKD, command) for command in COMMANDS]


@pytest.mark.parametrize(("script", "command"), PARSERS)
def test_help_has_an_example_and_no_unnamed_group(script, command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(script, f"{command} --help")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    headings = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert not {"options", "optional arguments", "positional arguments"} & set(headings)
    of_help = said.split("\nhelp:\n")[1].split("\n\n")[0]
    # Every other option stands in a group of its own
    assert re.findall(r"--\w+", of_help) == ["--help"]
    assert headings[-1] == "example"
    example = said.rsplit("example:\n", 1)[1].split()
    assert example[0] == "python"
    script.build_parser().parse_args(example[3:] if example[1] == "-m" else example[2:])


@pytest.mark.parametrize(("script", "command"), PARSERS)
def test_help_says_one_default_of_an_option(script, command, capsys):
    with pytest.raises(SystemExit):
        run(script, f"{command} --help")
    of_options = re.split(r"\n  (?=-)", capsys.readouterr().out)
    assert [text for text in of_options if text.count("default: ") > 1] == []
