"""Tables for reading, to the character."""

import json

import pytest

from utils.report.tables import (
    calibration_table,
    closing_words,
    compression_table,
    fit_words,
    linear_lines,
    save_report,
    sweep_table,
    variance_rows,
    variance_table,
)

REPORT = {
    "var": {
        "order0": 6.0,
        "order1": 1.25,
        "order2": 0.5,
        "residual": 0.25,
        "output": 7.75,
        "target": 8.0,
    },
    "instability": 0.03125,
}
PRUNED = {
    "layers": [
        {"layer": "features.0", "weights": 1728, "kept": 432, "removed_percent": 75.0},
        {"layer": "classifier.6", "weights": 819200, "kept": 0, "removed_percent": 100.0},
    ],
    "parameters": 821000,
    "removed": 820496,
    "removed_percent": 99.93861,
    "accuracy_percent": {"before": 61.25, "pruned": 0.5, "retrained": 60.0},
    "options": {"s_conv": 0.4, "s_fc": 1.25},
    "checkpoint": "pruned/a.pth.tar",
}


def test_variances_stand_beside_their_share_of_the_target():
    assert variance_table(REPORT).splitlines() == [
        "component               variance   share of x*",
        "x(0)                           6       75.00 %",
        "x(1)                        1.25       15.62 %",
        "x(2)                         0.5        6.25 %",
        "x_Δ = x* - g(x)             0.25        3.12 %",
        "g(x)                        7.75       96.88 %",
        "x*                             8      100.00 %",
        "instability Var(x_Δ)/Var(x*) = 0.0312",
    ]


def interval(low, high):
    how = {"confidence": 0.95, "resamples": 1000, "resampled": ["images"], "fits_fixed": True}
    return {"low": low, "high": high, **how}


def with_intervals():
    shares = {
        f"share_{name}": interval(0.25, 0.75) for name in ("order0", "order1", "order2", "output")
    }
    rows = [{"layers": 1, "r2": 0.9, "gain": 0.9}, {"layers": 2, "r2": 0.95, "gain": 0.05}]
    rows = [row | {"intervals": {"gain": interval(0.04, 0.06)}} for row in rows]
    classes = [
        {"class": "7", "images": 3, "variance": 4.0, "instability": 0.25, "low": 0.125, "high": 0.5}
    ]
    channels = [{"channel": 0, "variance": 0.0, "instability": None, "low": None, "high": None}]
    intervals = shares | {"instability": interval(0.03, 0.04), "var_residual": interval(0.2, 0.3)}
    return REPORT | {
        "intervals": intervals,
        "spectrum": rows,
        "classes": classes,
        "channels": channels,
    }


def test_intervals_stand_beside_their_numbers():
    assert variance_table(with_intervals()).splitlines() == [
        "component               variance   share of x*       95 % interval",
        "x(0)                           6       75.00 %      [25.00, 75.00]",
        "x(1)                        1.25       15.62 %      [25.00, 75.00]",
        "x(2)                         0.5        6.25 %      [25.00, 75.00]",
        "x_Δ = x* - g(x)             0.25        3.12 %        [3.00, 4.00]",
        "g(x)                        7.75       96.88 %      [25.00, 75.00]",
        "x*                             8      100.00 %",
        "instability Var(x_Δ)/Var(x*) = 0.0312  [0.0300, 0.0400]",
        "1 layer: R² 0.9000, +0.9000 [+0.0400, +0.0600] over the depth before",
        "2 layers: R² 0.9500, +0.0500 [+0.0400, +0.0600] over the depth before",
        "intervals: 95 %, 1,000 resamples of the images, the Trans-Net held as it was fitted",
    ]


def test_a_csv_has_the_instability_of_every_class_and_channel():
    head, *rows = variance_rows(with_intervals())
    assert head == [
        "component",
        "of",
        "variance",
        "low",
        "high",
        "share",
        "share_low",
        "share_high",
    ]
    assert rows[0] == ["order0", "all", 6.0, None, None, 0.75, 0.25, 0.75]
    assert rows[3] == ["residual", "all", 0.25, 0.2, 0.3, 0.03125, 0.03, 0.04]
    assert rows[6:] == [
        ["residual", "class 7", 1.0, None, None, 0.25, 0.125, 0.5],
        ["residual", "channel 0", None, None, None, None, None, None],
    ]
    assert variance_rows(REPORT)[1] == ["order0", "all", 6.0, None, None, 0.75, None, None]


def test_a_constant_target_has_no_shares():
    table = variance_table(
        {"var": {"order0": 0.0, "residual": 0.0, "target": 0.0}, "instability": None}
    )
    assert [line.split()[-1] for line in table.splitlines()[1:4]] == ["-", "-", "-"]
    assert table.endswith("instability Var(x_Δ)/Var(x*) = undefined: x* is constant")


def test_an_instability_above_1_is_explained_in_the_line_below_it():
    table = variance_table(
        {"var": {"residual": 9.0, "target": 8.0}, "instability": 1.125}
    ).splitlines()
    assert table[-2] == "instability Var(x_Δ)/Var(x*) = 1.1250"
    assert table[-1].startswith(
        "above 1: g(x) is further from x* than x*'s own mean is, so this measures a failed fit"
    )
    assert "usual causes: too few epochs, a feature that hardly varies" in table[-1]
    for instability in (1.0, 0.03125):
        assert "above 1" not in variance_table(REPORT | {"instability": instability})


def test_a_report_is_written_and_named_where_files_are(tmp_path, capsys):
    rows = [("component", "variance"), ("x(0)", 6.0)]
    save_report(REPORT, None, None, rows)
    assert capsys.readouterr().out == ""
    files = [str(tmp_path / name) for name in ("r.json", "r.csv")]
    save_report(REPORT, *files, rows)
    assert json.loads((tmp_path / "r.json").read_text()) == REPORT
    assert (tmp_path / "r.csv").read_text().split() == ["component,variance", "x(0),6.0"]
    assert capsys.readouterr().out == f"saved {files[0]}\nsaved {files[1]}\n"


def test_a_compressed_net_has_a_line_a_layer_and_one_for_all():
    assert compression_table(PRUNED).splitlines() == [
        "layer               weights         kept  removed, %",
        "features.0            1,728          432       75.00",
        "classifier.6        819,200            0      100.00",
        "all parameters      821,000          504       99.94",
        "nothing is left of classifier.6: its threshold is too high",
        "accuracy, %: before 61.25, pruned 0.50, retrained 60.00",
    ]


def test_a_net_that_keeps_something_of_every_layer_is_not_warned_of():
    assert "threshold" not in compression_table(PRUNED | {"layers": PRUNED["layers"][:1]})


def test_the_table_is_as_wide_as_the_longest_name():
    name = "features.denseblock3.denselayer24.conv2"
    row = {"layer": name, "weights": 1, "kept": 1, "removed_percent": 0.0}
    head, first, *_ = compression_table(PRUNED | {"layers": [row]}).splitlines()
    assert first == f"{name}              1            1        0.00"
    assert len(head) == len(first)


def test_a_sweep_has_a_line_a_net():
    other = PRUNED | {
        "options": {"s_conv": 1.2, "s_fc": 2.0},
        "removed_percent": 93.3,
        "checkpoint": "b.pth.tar",
    }
    assert sweep_table([PRUNED, other]).splitlines() == [
        "      s_conv        s_fc  removed, %      before      pruned   retrained  checkpoint",
        (
            "         0.4        1.25       99.94       61.25        0.50       60.00 "
            " pruned/a.pth.tar"
        ),
        "         1.2           2       93.30       61.25        0.50       60.00  b.pth.tar",
    ]


def test_a_calibration_has_its_nulls_test_and_notes():
    interval = {"value": 0.8016, "low": 0.79, "high": 0.81}
    row = {
        "pairs": "ceiling: A → A",
        "linear_reference": None,
        "value": 0.01,
        "low": 0.0,
        "high": 0.02,
    }
    test = {
        "permutations": 200,
        "p": 1 / 201,
        "zero": 0.46,
        "above_zero": 0.75,
        "consistency": interval,
    }
    test["instability"] = {"value": 0.1034}
    report = {
        "images": 355,
        "epochs": 10,
        "rows": [row],
        "consistency": interval,
        "linear": test,
        "notes": ["net B is odd"],
        "baselines": [
            {"name": "CKA", "value": None, "reason": "x is constant", "kind": "similarity"}
        ],
    }
    table = calibration_table(report)
    assert "ceiling: A → A                          0.0100    [0.0000, 0.0200]" in table
    assert "p = 0.0050; it leaves 0.1034, 95 % of them more than 0.4600" in table
    assert "consistency from that zero on: 0.7500" in table
    assert "note: net B is odd" in table and "undefined: x is constant  a similarity" in table
    doubtful = calibration_table(report | {"doubts": ["net A is at chance"]})
    assert "doubt: net A is at chance\n" in doubtful
    untested = calibration_table(report | {"linear": None, "notes": []})
    assert "permutations" not in untested and "note" not in untested
    unknown = test | {"consistency": {"value": None, "low": None, "high": None}}
    assert "undefined" in linear_lines(unknown)[0]


FITTED = {"steps": 400, "hidden": 64, "state": "not tried", "linear": None}
REFERENCE = {"instability": 0.1, "ridge": 0.1, "measured_on": "held-out images"}


@pytest.mark.parametrize(
    ("record", "instability", "reference", "said"),
    [
        (
            FITTED,
            0.2,
            REFERENCE,
            ["400 steps, 64 spare channels", "not tried", "WORSE than one linear layer"],
        ),
        (FITTED, 0.1004, REFERENCE, ["0.1004 on held-out images, of the linear reference 0.1000"]),
        (None, None, REFERENCE, ["not recorded", "linear reference 0.1000 by cross-validation"]),
        (FITTED | {"steps": 0}, None, None, ["0 steps", "the linear reference is not known"]),
    ],
)
def test_a_fit_says_how_it_ended(record, instability, reference, said):
    words = closing_words(record, instability, reference)
    assert all(part in words for part in said)
    assert ("WORSE" in words) == ("WORSE than one linear layer" in said)


def test_a_fit_says_what_doublings_changed_and_what_took_its_place():
    linear = {"taken": True, "linear": 0.25, "deep": 0.5, "unseen": True}
    record = FITTED | {
        "state": "width not at its end",
        "of_steps": -0.001,
        "of_width": -0.02,
        "tolerance": 0.002,
        "linear": linear,
    }
    words = "; ".join(fit_words(record))
    assert "width not at its end (twice the steps -0.0010, twice the channels -0.0200" in words
    assert (
        "THE LINEAR LAYER TOOK ITS PLACE: it leaves 0.2500, it 0.5000 of the images that judge"
        in words
    )
    kept = fit_words(FITTED | {"linear": linear | {"taken": False, "unseen": False}})[-1]
    assert kept.startswith("the linear layer leaves 0.2500") and "cross-validation" in kept
