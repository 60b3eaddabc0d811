"""The page of a run: nothing from elsewhere,
nothing unescaped, and no other number than the run's.
"""

import base64
import hashlib
import json
import re

import pytest

from tests.mistakes import refused
from tests.unit.reports import CALIBRATION, SOURCE, VARIANCE, write_run
from utils.report import page
from utils.report.results import Value


@pytest.fixture
def run(tmp_path):
    return write_run(tmp_path / "run")


def test_every_value_of_the_tables_is_on_the_page_with_its_digits_and_place(run):
    found = page.values(page.render(run))
    assert Value("variance.json: instability", "0.03125", "0.0312") in found
    assert Value("variance.json: var.order0", "93.75", "93.75") in found
    assert Value("calibration.json: rows.1.high", "1.75", "1.7500") in found
    assert Value("calibration.json: transnet", "c" * 64, "c" * 64) in found
    assert len(found) == page.render(run).count("<data ") > 70


def test_the_page_loads_nothing_and_escapes_what_it_shows(run):
    found = page.render(run)
    assert "&lt;7&gt;" in found and "<7>" not in found
    assert not re.search(r"<script [^>]*src|<link|@import|url\(|https?://", found)
    digest = hashlib.sha256(re.findall(r"<script>(.*?)</script>", found, re.DOTALL)[0].encode())
    assert f"script-src 'sha256-{base64.b64encode(digest.digest()).decode()}'" in found
    assert set(re.findall(r'src="([^:]*):', found)) == {"data"}
    assert "default-src 'none'" in found
    assert (
        found.startswith("<!doctype html>")
        and found.count("<table>") == found.count("</table>") == 9
    )


def test_the_same_files_give_the_same_page(run):
    first = page.render(run)
    assert first == page.render(run)
    page.check(first, page.render(run))


@pytest.mark.parametrize(
    ("old", "new", "facts"),
    [
        (">0.0312<", ">0.0212<", ("variance.json: instability", "0.0212", "0.0312")),
        ('"0.03125">', '"0.02125">', ("variance.json: instability", "0.02125", "0.03125")),
        ("1,355", "1,356", ("variance.json: images", "1,356", "1,355")),
        (">0.8125<", ">0.9125<", ("calibration.json: consistency.value", "0.9125", "0.8125")),
    ],
)
def test_another_digit_is_found_by_the_name_of_its_value(run, old, new, facts):
    made = page.render(run)
    assert old in made
    with refused(*facts):
        page.check(made.replace(old, new, 1), made)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("the floor.", "the roof."),
        ("base64,", "base64,AAAA"),
        ("</body>", "<p>0.0001</p></body>"),
    ],
)
def test_another_text_is_found_by_its_line(run, old, new):
    made = page.render(run)
    line = made[: made.index(old)].count("\n") + 1
    with refused(line):
        page.check(made.replace(old, new, 1), made)


def test_another_number_in_the_folder_is_found(run):
    made = page.render(run)
    rows = [CALIBRATION["rows"][0], CALIBRATION["rows"][1] | {"high": 2.0}]
    (run / "calibration.json").write_text(json.dumps(CALIBRATION | {"rows": rows}))
    with refused("calibration.json", "rows.1.high", "1.75", "2.0"):
        page.check(made, page.render(run))


def test_a_number_that_is_missing_is_named(run):
    made = page.render(run)
    (run / "variance.json").write_text(json.dumps(VARIANCE | {"classes": []}))
    with refused("variance.json", "classes.0.class", "channels.11.channel"):
        page.check(made, page.render(run))


def test_another_figure_is_found(run):
    made = page.render(run)
    (run / "components.svg").write_text("<svg/>")
    with refused("components.svg"):
        page.check(made, page.render(run))


def test_a_page_of_another_run_and_another_file_are_told_apart(run, tmp_path):
    other = VARIANCE | {"source": SOURCE | {"checkpoint_b": "d" * 64}, "instability": 0.5}
    made = page.render(write_run(tmp_path / "other", variance=other))
    with refused("variance.json", "source.checkpoint_b", "d" * 12, "b" * 12):
        page.check(made, page.render(run))
    with refused("Report.py", "--out"):
        page.check("<html>0.5</html>", made)


def test_a_page_that_would_be_too_large_is_refused(run):
    (run / "photo.png").write_bytes(b"0" * 1_500_000)
    with refused("2.00 MB", run):
        page.render(run)
