"""Report.py: the page of what Variance.py and Calibrate.py wrote, and what --check finds."""

import json

import pytest

import Calibrate
import Report
import Variance
from tests.e2e.road import run
from utils.report.page import values

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def measured(road, tmp_path_factory):
    """A folder with a page of the road's Trans-Net, measured and calibrated."""
    folder = tmp_path_factory.mktemp("measured")
    words = "--bootstrap 100", "--convOut_path", road.features, "--transnet", road.trans_net
    files = "--json", folder / "variance.json", "--figure", folder / "components.png"
    run(Variance, *words, *files)
    run(
        Calibrate,
        f"--permutations 19 {words[0]}",
        *words[1:],
        "--json",
        folder / "calibration.json",
    )
    run(Report, "", folder)
    return folder


def said_by(folder, page):
    """What --check says of a page that is not the folder's."""
    with pytest.raises(SystemExit) as exit_:
        run(Report, "", folder, "--check", page)
    said = str(exit_.value.code)
    assert said.startswith(f"Report.py: {page} is not the page of {folder}: ") and "\n" not in said
    return said


def test_the_page_has_the_numbers_of_both_scripts(measured, capsys):
    page = measured / "page.html"
    found = {value.place: value.value for value in values(page.read_text())}
    names = ("variance", "calibration")
    variance, calibration = (json.loads((measured / f"{name}.json").read_text()) for name in names)
    assert float(found["variance.json: instability"]) == variance["instability"]
    assert float(found["calibration.json: consistency.low"]) == calibration["consistency"]["low"]
    assert float(found["calibration.json: rows.1.value"]) == calibration["rows"][1]["value"]
    assert (
        found["variance.json: source.transnet"]
        == calibration["transnet"]
        == found["calibration.json: transnet"]
    )
    for name in names:  # the fit's own options
        assert (found[f"{name}.json: settings.lr"], found[f"{name}.json: settings.layers"]) == (
            "0.001",
            "3",
        )
    assert page.stat().st_size < 2_000_000
    before = page.read_bytes()
    run(Report, "", measured, "--check", page)
    assert (
        capsys.readouterr().out
        == f"{page}: all {len(values(page.read_text()))} values are those of {measured}\n"
    )
    assert page.read_bytes() == before
    assert sorted(path.name for path in measured.iterdir()) == [
        "calibration.json",
        "components.png",
        "page.html",
        "variance.json",
    ]


def test_a_changed_number_is_named_with_both_values(measured, tmp_path):
    made = (measured / "page.html").read_text()
    (value,) = (
        value for value in values(made) if value.place == "calibration.json: consistency.value"
    )
    page = tmp_path / "page.html"
    page.write_text(made.replace(f'value="{value.value}">', 'value="0.5">'))
    said = (
        f"{value.place} is {value.text} (0.5) on the page and {value.text} ({value.value}) in"
        " the run"
    )
    assert said in said_by(measured, page)


def test_other_files_are_told_from_the_page(measured, tmp_path):
    report = json.loads((measured / "variance.json").read_text())
    report["source"]["transnet"] = "0" * 64
    (tmp_path / "variance.json").write_text(json.dumps(report))
    run(Report, "", tmp_path, "--out", tmp_path / "other.html")
    said = "it is of another run: variance.json: source.transnet is 0000"
    assert said in said_by(measured, tmp_path / "other.html")
    assert "it is no page of Report.py" in said_by(measured, measured / "variance.json")
    assert "codec can't decode" in said_by(measured, measured / "components.png")
    with pytest.raises(SystemExit, match=r"there is no page .*none\.html; make it by --out"):
        run(Report, "", measured, "--check", tmp_path / "none.html")
