"""The sections of a page, cell by cell."""

import pytest

from tests.mistakes import refused
from tests.unit.reports import CALIBRATION, VARIANCE
from utils.report.results import Result, Value
from utils.report.sections import CHANNELS, ONE_DIRECTION, lay_out


def text(cell):
    return (
        cell
        if isinstance(cell, str)
        else cell.text
        if isinstance(cell, Value)
        else "".join(map(text, cell))
    )


def read(kind, content):
    """Lay a result out: the section, and its tables by title as texts."""
    section = lay_out(Result(f"{kind}.json", kind, content))
    return section, {
        table.title: [list(map(text, row)) for row in table.rows] for table in section.tables
    }


def test_a_variance_has_its_headline_and_reference():
    section, _ = read("variance", VARIANCE)
    assert (
        text(section.of)
        == "alexnet features.8 → resnet34 layer3.5.add, 1,355 images of digits (val)"
    )
    assert [tuple(map(text, line)) for line in section.headlines] == [
        ("instability Var(x_Δ)/Var(x*)", "0.0312", "[0.0300, 0.0400]"),
        ("of the linear reference", "0.0625", "held-out images"),
        ("shared", "not measured", ONE_DIRECTION),
    ]
    section, _ = read("variance", VARIANCE | {"linear_reference": None})
    assert len(section.headlines) == 2


def test_every_component_stands_beside_its_share_and_intervals():
    section, tables = read("variance", VARIANCE)
    assert tables["Components"] == [
        ["x*", "8", "–", "100.00", "–"],
        ["x(0)", "7.5", "–", "93.75", "[90.00, 95.00]"],
        ["x_Δ = x* - g(x)", "0.25", "[0.2, 0.3]", "3.12", "[3.00, 4.00]"],
    ]
    note = "Intervals: 95 %, 1,000 resamples of the images, the Trans-Net held as it was fitted."
    assert section.tables[0].note == note
    assert tables["Fuzziness spectrum"] == [
        ["1", "0.9000", "–", "+0.9000", "[+0.8500, +0.9500]"],
        ["2", "0.9688", "–", "+0.0688", "–"],
    ]
    assert tables["Classes"] == [["<7>", "3", "4", "0.2500", "[0.1250, 0.5000]"]]


def test_the_channels_are_those_that_vary_most():
    _, tables = read("variance", VARIANCE)
    assert [row[0] for row in tables["Channels"]] == [
        str(channel) for channel in range(11, 11 - CHANNELS, -1)
    ]
    assert tables["Channels"][0] == ["11", "1.375", "undefined", "–"]


def test_a_report_without_intervals_or_with_a_constant_target_says_so():
    alone = {key: VARIANCE[key] for key in ("images", "mean", "var", "source")} | {
        "instability": None
    }
    section, tables = read("variance", alone | {"var": {"target": 0.0, "residual": 0.0}})
    assert list(tables) == ["Components", "Settings and provenance"]
    assert tables["Components"][1] == ["x_Δ = x* - g(x)", "0", "–", "–", "–"]
    assert section.tables[0].note == "No intervals: no images were resampled."
    assert text(section.headlines[0][1]) == "undefined"


@pytest.mark.parametrize(("kind", "report"), [("variance", VARIANCE), ("calibration", CALIBRATION)])
def test_doubts_stand_before_the_numbers(kind, report):
    section, _ = read(kind, report)
    assert section.doubts == []
    section, _ = read(
        kind, report | {"doubts": ["net B is at chance", "nets A and B are one file"]}
    )
    assert list(map(text, section.doubts)) == ["net B is at chance", "nets A and B are one file"]


def test_a_calibration_has_floors_ceilings_the_test_and_notes():
    section, tables = read("calibration", CALIBRATION)
    assert [tuple(map(text, line)) for line in section.headlines] == [
        ("normalised consistency", "0.8125", "[0.7500, 0.8750]"),
        ("shared", "not measured", ONE_DIRECTION),
    ]
    assert tables["Floor and ceiling"] == [
        ["this Trans-Net", "0.0312", "[0.0300, 0.0400]", "0.0625"],
        ["null: g untrained", "1.5000", "[1.2500, 1.7500]", "–"],
    ]
    assert section.tables[0].note.endswith("held as it was fitted; net B is at chance.")
    assert tables["Test of the linear reference"] == [
        ["permutations within the class", "200", "–"],
        ["p", "0.004975", "–"],
        ["95 % of them leave more than", "0.46", "–"],
        ["consistency from there on", "0.75", "–"],
        ["it leaves", "0.0625", "[0.0600, 0.0700]"],
        ["normalised consistency", "undefined: null and ceiling are the same", "–"],
    ]
    assert tables["Other measures of the same features"] == [
        ["CKA", "undefined: x is constant", "a similarity"]
    ]
    _, untested = read("calibration", CALIBRATION | {"linear": None})
    assert "Test of the linear reference" not in untested


def test_settings_and_hashes_stand_at_the_end():
    for kind, content in (("variance", VARIANCE), ("calibration", CALIBRATION)):
        section, tables = read(kind, content)
        assert section.tables[-1].title == "Settings and provenance"
        rows = dict(tables["Settings and provenance"])
        assert (rows["checkpoint_a"], rows["layer_b"]) == ("a" * 64, "layer3.5.add")
    assert rows["Trans-Net's SHA-256"] == "c" * 64 and rows["epochs of the other fits"] == "0"
    rows = dict(read("variance", VARIANCE)[1]["Settings and provenance"])
    assert (rows["alpha"], rows["ridge of the linear reference"], rows["mean"]) == (
        "0.1, 0.1",
        "0.001",
        "channel",
    )


@pytest.mark.parametrize(
    ("kind", "content", "change"),
    [
        ("calibration", CALIBRATION, {"rows": [3]}),
        ("calibration", CALIBRATION, {"baselines": [{"value": 1.0}]}),
        ("variance", VARIANCE, {"var": 4}),
    ],
)
def test_a_result_that_was_changed_by_hand_is_refused_by_name(kind, content, change):
    with refused(f"{kind}.json"):
        lay_out(Result(f"{kind}.json", kind, content | change))


def test_a_fit_says_how_far_it_got():
    linear = {"taken": False, "linear": 0.42, "deep": 0.33, "unseen": True}
    fitted = {
        "steps": 400,
        "hidden": 64,
        "state": "at its end",
        "of_steps": -0.001,
        "of_width": None,
        "linear": linear,
    }
    _, tables = read("variance", VARIANCE | {"fitted": fitted})
    assert tables["Fit"] == [
        ["steps", "400"],
        ["spare channels M", "64"],
        ["whether it is at its end", "at its end"],
        ["what twice the steps changed", "-0.0010"],
        ["the linear layer took its place", "False"],
        ["what the linear layer left of the images that judge", "0.4200"],
        ["what the Trans-Net left of them", "0.3300"],
    ]
    rows = [
        row | {"steps": 400, "hidden": 64, "is_linear": i == 1}
        for i, row in enumerate(CALIBRATION["rows"])
    ]
    section, tables = read("calibration", CALIBRATION | {"rows": rows})
    assert [row[4:] for row in tables["Floor and ceiling"]] == [
        ["400", "64", "–"],
        ["400", "64", "the linear layer"],
    ]
    assert section.tables[0].head[4:6] == ("steps", "M")
