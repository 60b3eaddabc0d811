import io
from typing import Any

import numpy as np
import pytest
from matplotlib import _pylab_helpers

from utils.report.charts import CURVES, Point, curve_figure, spectrum_figure, variance_figure
from utils.report.maps import symbol

REPORT: dict[str, Any] = {
    "var": {
        "target": 4.0,
        "order0": 3.0,
        "order1": 0.5,
        "order2": 0.25,
        "output": 3.5,
        "residual": 0.45,
    },
    "instability": 0.1125,
}


def is_drawn(figure):
    for kind in ("png", "svg"):
        figure.savefig(buffer := io.BytesIO(), format=kind, dpi=30)
        assert len(buffer.getvalue()) > 1000
    return not _pylab_helpers.Gcf.get_all_fig_managers()  # no window belongs to it


def test_variances_are_shares_of_the_targets():
    figure: Any = variance_figure({"A to B": REPORT, "B to A": REPORT}, [0.25, 0.75])
    panels = [axis for axis in figure.axes if axis.patches]
    assert len(panels) == 3
    widths = [bar.get_width() for bar in panels[0].patches]
    # The last: what covariances take off
    assert widths == pytest.approx([75, 12.5, 6.25, 11.25, 100 - 105])
    assert [bar.get_width() for bar in panels[2].patches] == [0.25, 0.75]
    assert "A to B" in panels[0].get_title() and "B to A" in panels[1].get_title()
    assert is_drawn(figure)


def test_variances_of_a_constant_target():
    constant = {"var": dict.fromkeys(REPORT["var"], 0.0), "instability": None}
    figure: Any = variance_figure({"nothing": constant})
    assert {bar.get_width() for bar in figure.axes[0].patches} == {0}
    assert is_drawn(figure)


def test_a_panel_of_other_bars_names_its_own():
    shallow = {"var": {"target": 1.0, "order0": 0.5, "output": 0.5, "residual": 0.5}}
    panels: Any = variance_figure({"three": REPORT, "again": REPORT, "one": shallow}).axes
    labelled = [
        [label.get_text() for label in axis.get_yticklabels() if label.get_visible()]
        for axis in panels
    ]
    assert labelled[0] == [
        *map(symbol, ("order0", "order1", "order2", "residual")),
        "2 Σ covariances",
    ]
    assert labelled[2] == [symbol("order0"), symbol("residual"), "2 Σ covariances"]
    assert (
        panels[0].yaxis.get_tick_params()["labelleft"]
        and panels[2].yaxis.get_tick_params()["labelleft"]
    )
    assert not panels[1].yaxis.get_tick_params()["labelleft"]


def test_the_text_of_a_negative_bar_stands_right_of_zero():
    (axis,) = variance_figure({"A to B": REPORT}).axes
    texts = {text.get_text(): text.xy for text in axis.texts}  # type: ignore[attr-defined]
    assert texts["-0.2  (-5 %)"] == (0, 4)
    assert texts["3  (75 %)"] == (75, 0)


def test_curves_join_their_points_in_the_order_given():
    points = [
        Point(2, 0.5, note="third"),
        Point(0, 0.1, (-0.5, 0.2), (0.05, 0.3), "first"),
        Point(1, 0.2),
    ]
    figure = curve_figure({"conv4_3": points, "conv5_2": [Point(0, 1)]}, "generation", "Var")
    axis: Any = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["conv4_3", "conv5_2"]
    assert axis.lines[0].get_xydata().tolist() == [[2, 0.5], [0, 0.1], [1, 0.2]]
    notes = {text.get_text(): text.xy for text in axis.texts}
    assert notes == {"third": (2, 0.5), "first": (0, 0.1), "": (0, 1)}
    across, along = (bars.get_segments() for bars in axis.collections[:2])
    assert across[1] == pytest.approx(np.array([[-0.5, 0.1], [0.2, 0.1]]))
    assert along[1] == pytest.approx(np.array([[0, 0.05], [0, 0.3]]))
    assert across[0] == pytest.approx(np.array([[2, 0.5], [2, 0.5]]))  # no interval is known
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("generation", "Var")
    assert all(tick == int(tick) for tick in axis.get_xticks())
    assert axis.get_legend() is not None
    (alone,) = curve_figure({"one": [Point(0, 1)]}, "", "").axes
    assert alone.get_legend() is None and alone.get_title() == "one"
    assert is_drawn(figure)


def test_curves_differ_in_colour_and_marker():
    names = [f"curve {number}" for number in range(len(CURVES))]
    lines = (
        curve_figure({name: [Point(0.0, 1.0), Point(0.5, 2.0)] for name in names}, "x", "y")
        .axes[0]
        .lines
    )
    assert [line.get_label() for line in lines] == names
    assert (
        len({line.get_color() for line in lines})
        == len({line.get_marker() for line in lines})
        == len(names)
    )


def test_a_spectrum_shows_what_each_depth_adds():
    rows = [{"layers": 1, "r2": 0.7, "gain": 0.7}, {"layers": 2, "r2": 0.75, "gain": 0.05}]
    rows.append({"layers": 3, "r2": 0.74, "gain": -0.01})
    (axis,) = spectrum_figure(rows).axes
    bars: Any = axis.patches
    assert [bar.get_width() for bar in bars] == pytest.approx([70, 5, -1])
    assert [label.get_text() for label in axis.get_yticklabels()] == [
        "1 layer",
        "2 layers",
        "3 layers",
    ]
    assert [text.get_text() for text in axis.texts][2] == "-1.00 %  (together 74.00 %)"
    assert max(axis.get_xticks()) == 100 and axis.spines["bottom"].get_bounds() == (-1, 100)
    assert is_drawn(spectrum_figure(rows[:1]))
