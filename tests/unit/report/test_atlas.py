"""The page of more than two nets: its answer, heat maps and tables follow from the report."""

import copy

import numpy as np
import pytest

from tests.unit import planted_comparison as planted
from tests.unit.report.test_compare_page import as_text
from utils.report.atlas import atlas_answer, atlas_chart, atlas_tables
from utils.report.compare_page import render_compare
from utils.report.results import Result

NETS = 4


def interval(value, width=0.01):
    """An interval's record."""
    return {"value": value, "low": value - width, "high": value + width, "reason": ""}


def table(value, odd=None):
    """What each of four nets shares with each other one."""
    shared = np.full((NETS, NETS), value)
    if odd is not None:
        shared[0, 3] = shared[3, 0] = odd
    return [[None if i == j else shared[i, j] for j in range(NETS)] for i in range(NETS)]


def atlas_report(first=0.8, second=0.4, width=0.01):
    """Four nets at two layers, of which one pair is odd at the second."""
    report = copy.deepcopy(planted.comparison())
    labels = [f"N{number + 1}" for number in range(NETS)]
    report["nets"] = [
        {**report["nets"][0], "label": label, "name": f"seed{number}"}
        for number, label in enumerate(labels)
    ]
    means = [
        {
            name: {"shared": interval(value, width), "forth": interval(value + 0.1, width)}
            for name in ("images_and_nets", "images")
        }
        for value in (first, second)
    ]
    tables = [table(first), table(second, odd=0.1)]
    odd = [{"nets": ["N1", "N4"], "shared": 0.1, "deviations": -7.5}]
    return report | {
        "pairs": [],
        "matrix": None,
        "answers": None,
        "atlas": {
            "layers": ["conv3", "conv7"],
            "nets": labels,
            "names": [net["name"] for net in report["nets"]],
            "forth": tables,
            "shared": tables,
            "intervals": means,
            "order": [[0, 1, 2, 3], [3, 1, 2, 0]],
            "odd": [[], odd],
        },
    }


def sentences(report):
    result = Result("compare.json", "compare", report)
    return [as_text(sentence.text) for sentence in atlas_answer(result)]


def test_the_answer_names_the_layers_and_the_odd_pair():
    mean, odd = sentences(atlas_report())
    assert "0.80 [0.79, 0.81] at conv3" in mean and "0.40 [0.39, 0.41] at conv7" in mean
    assert "seed0 and seed3 at conv7 (0.10)" in odd


@pytest.mark.parametrize(("width", "ordered"), [(0.01, True), (0.3, False)])
def test_layers_are_ordered_where_intervals_tell_them_apart(width, ordered):
    mean = sentences(atlas_report(width=width))[0]
    assert ("where it is least" in mean) == ordered


def test_heat_maps_and_tables_hold_every_pair():
    result = Result("compare.json", "compare", atlas_report())
    assert "4 nets at 2 layers" in atlas_chart(result).alternative
    means, odd, every = atlas_tables(result)
    assert (len(means.rows), len(odd.rows), len(every.rows)) == (2, 1, 2 * NETS * (NETS - 1))


def test_the_page_shows_it_all(tmp_path):
    page = render_compare(atlas_report(), tmp_path)
    assert "What 4 nets share" in page and "Odd pairs" in page
