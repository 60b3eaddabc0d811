"""Report.py: the page of what Variance.py and Calibrate.py wrote, and what --check finds."""

import json

import pytest

import Calibrate
import Report
import Variance
from tests.e2e.road import run
from tests.mistakes import check_line, refused
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


def check_refused(folder, page, *facts):
    """Assert that --check refuses a page that is not the folder's, and names what differs."""
    with refused("Report.py", page, folder, *facts, kind=SystemExit):
        run(Report, "", folder, "--check", page)


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
    check_line(capsys.readouterr().out, page, len(values(page.read_text())), measured)
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
    check_refused(measured, page, value.place, "0.5", value.value)


def test_other_files_are_told_from_the_page(measured, tmp_path):
    report = json.loads((measured / "variance.json").read_text())
    report["source"]["transnet"] = "0" * 64
    (tmp_path / "variance.json").write_text(json.dumps(report))
    run(Report, "", tmp_path, "--out", tmp_path / "other.html")
    facts = "variance.json", "source.transnet", "0" * 12
    check_refused(measured, tmp_path / "other.html", *facts)
    check_refused(measured, measured / "variance.json", "--out")
    check_refused(measured, measured / "components.png")
    with refused(tmp_path / "none.html", "--out", kind=SystemExit):
        run(Report, "", measured, "--check", tmp_path / "none.html")
