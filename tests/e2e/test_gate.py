"""Compare.py as a gate: exit codes, what CI reads, and refusals before anything is computed."""

import json
import shutil
from xml.etree import ElementTree

import pytest

import Compare
from tests.e2e.refined import make_classifier
from tests.e2e.road import run

pytestmark = pytest.mark.e2e
LINE = "-j 0 --bootstrap 100 --side 4 --normalisation imagenet"


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    for name, seed in (("old", 0), ("other", 5)):
        make_classifier(folder / f"{name}.pth", seed, 3)
    shutil.copy(folder / "old.pth", folder / "copy.pth")
    return folder


def gate(nets, photos, out, new, line):
    files = [nets / "old.pth", nets / f"{new}.pth"]
    return run(Compare, f"{LINE} {line}", *files, "--images", photos, "--out", out)


def test_a_copy_passes_and_nothing_changed(nets, photos, tmp_path, capsys):
    report = gate(nets, photos, tmp_path, "copy", "--gate default")
    assert report.record["gate"]["verdict"] == "pass"
    assert "Nothing changed" in capsys.readouterr().out
    written = json.loads((tmp_path / "compare.json").read_text())
    assert written["gate"] == json.loads(json.dumps(report.record["gate"]))
    assert "Gate: " in (tmp_path / "page.html").read_text()


def test_another_net_lost_knowledge_and_ci_reads_why(nets, photos, tmp_path):
    junit, markdown = tmp_path / "gate.xml", tmp_path / "gate.md"
    files = f"--gate default --junit {junit} --markdown {markdown}"
    with pytest.raises(SystemExit) as exit_:
        gate(nets, photos, tmp_path / "out", "other", files)
    assert exit_.value.code == 3
    assert int(ElementTree.parse(junit).getroot().get("failures")) > 0
    assert "knowledge lost" in markdown.read_text()
    assert json.loads((tmp_path / "out/compare.json").read_text())["gate"]["exit_code"] == 3


def test_what_was_asked_and_cannot_be_measured_cannot_be_said(nets, photos, tmp_path):
    with pytest.raises(SystemExit) as exit_:
        gate(nets, photos, tmp_path, "other", "--quick --fail_below 0.0")
    assert exit_.value.code in (3, 4)
    checks = json.loads((tmp_path / "compare.json").read_text())["gate"]["checks"]
    features = {check["verdict"] for check in checks if check["name"].startswith("features")}
    assert features == {"cannot say"}


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("--junit gate.xml", 2),
        ("--gate nowhere.json", 1),
        ("--fail_below 1.5", 1),
        ("--fail_above_flips 2", 1),
    ],
)
def test_a_wrong_gate_is_refused_before_anything_is_computed(
    nets, photos, tmp_path, capsys, line, code
):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as exit_:
        gate(nets, photos, out, "copy", line)
    if code == 2:
        assert exit_.value.code == 2
    else:
        assert isinstance(exit_.value.code, str) and "\n" not in exit_.value.code
    assert not out.exists()
