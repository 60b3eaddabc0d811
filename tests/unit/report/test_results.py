"""Results of a run's folder, read for a page."""

import base64
import hashlib
import json

import pytest

from tests.mistakes import refused
from tests.unit.reports import CALIBRATION, VARIANCE, write_run
from utils.report.results import Result, Value, read_pictures, read_results


@pytest.fixture
def variance():
    return Result("v.json", "variance", VARIANCE)


def test_variances_come_before_calibrations(tmp_path):
    found = read_results(write_run(tmp_path))
    assert [(result.name, result.kind) for result in found] == [
        ("variance.json", "variance"),
        ("calibration.json", "calibration"),
    ]
    assert found[1].content == CALIBRATION


@pytest.mark.parametrize(
    "content", ["[1]", '{"images": 3}', json.dumps({"rows": [], "consistency": {}}), '"var"']
)
def test_json_of_something_else_is_refused(tmp_path, content):
    (write_run(tmp_path) / "pruned.json").write_text(content)
    with refused("pruned.json", "Compare.py", "Variance.py", "Calibrate.py"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"notes": [0.5]}, "notes"),
        ({"notes": "x"}, "notes"),
        ({"rows": [[1]]}, "rows"),
        ({"baselines": [{"name": 0.5}]}, "baselines.0.name"),
        ({"source": [1]}, "source"),
        ({"shared": 1}, "shared"),
        ({"back": {"rows": 7}}, "back.rows"),
    ],
)
def test_what_is_of_another_kind_than_it_was_written_is_named(tmp_path, change, place):
    write_run(tmp_path, calibration=CALIBRATION | change)
    with refused("calibration.json", place):
        read_results(tmp_path)


def test_a_folder_without_results_is_told_from_one_that_is_missing(tmp_path):
    with refused(tmp_path, "Compare.py"):
        read_results(tmp_path)
    with refused("nowhere", "--json"):
        read_results(tmp_path / "nowhere")
    (tmp_path / "cut.json").write_text('{"var": ')
    with refused("cut.json"):
        read_results(tmp_path)


def test_a_value_has_its_place_all_digits_and_its_text(variance):
    assert variance.value("instability", form=".2f") == Value(
        "v.json: instability", "0.03125", "0.03"
    )
    assert variance.value("var", "order0", form=".1f", unit=12.5) == Value(
        "v.json: var.order0", "93.75", "93.8"
    )
    assert variance.value("spectrum", 1, "layers") == Value("v.json: spectrum.1.layers", "2", "2")
    assert variance.value("source", "p") == Value("v.json: source.p", "[0.5, 0.25]", "0.5, 0.25")
    assert variance.value("settings", "standardise").text == "True"


def test_what_is_undefined_says_why_where_that_is_known(variance):
    assert variance.value("channels", 0, "instability", form=".4f") == "undefined"
    assert (
        Result("c.json", "calibration", CALIBRATION).value("baselines", 0, "value")
        == "undefined: x is constant"
    )
    for path in (("spectrum", 2, "r2"), ("spectrum", "r2"), ("var", "order0", "mean")):
        assert variance.get(*path) is None


def test_an_interval_is_two_values_or_a_dash(variance):
    low, high = (
        Value("v.json: classes.0.low", "0.125", "0.1250"),
        Value("v.json: classes.0.high", "0.5", "0.5000"),
    )
    assert variance.interval("classes", 0) == ["[", low, ", ", high, "]"]
    assert variance.interval("channels", 0) == variance.interval("intervals", "share_output") == "–"


def test_settings_are_rows_without_what_is_not_set():
    calibration = Result("c.json", "calibration", CALIBRATION)
    rows = {name: value.text for name, value in calibration.entries("source")}
    assert (rows["transform image_size"], rows["transform mean"], rows["arch_a"]) == (
        "64",
        "0.5, 0.25",
        "alexnet",
    )
    assert "classes" not in rows
    assert list(calibration.entries("settings")) == []  # the authors' Trans-Nets record none
    assert [name for name, _ in Result("v", "variance", VARIANCE).entries("settings")] == [
        "epochs",
        "standardise",
        "alpha",
    ]


def test_pictures_are_data(tmp_path):
    (picture,) = read_pictures(write_run(tmp_path))
    content = (tmp_path / "components.svg").read_bytes()
    kind, encoded = picture.uri.split(",")
    assert kind == "data:image/svg+xml;base64" and base64.b64decode(encoded) == content
    digest = hashlib.sha256(content).hexdigest()
    assert picture.name == Value("components.svg", digest, digest[:16])
