import io
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers

from utils.report.figures import (
    CURVES,
    HEAT,
    component_figure,
    curve_figure,
    overlay_figure,
    strength,
    symbol,
    variance_figure,
)

REPORT: dict[str, Any] = {
    "var": {"target": 4.0, "order0": 3.0, "order1": 0.5, "order2": 0.25, "output": 3.5, "residual": 0.45},
    "instability": 0.1125,
}


@pytest.fixture
def maps():
    """x (2, 4, 6) strong and of fewer channels than the target (5, 4, 6), and three components of it."""
    generator = torch.Generator().manual_seed(0)
    x, target = 100 * torch.randn(2, 4, 6, generator=generator), 3 * torch.randn(5, 4, 6, generator=generator)
    return x, target, torch.randn(3, 5, 4, 6, generator=generator)


def pictures(figure, rows):
    """The cells that show a picture, row by row; a colour bar is no picture."""
    return np.array([axis for axis in figure.axes if axis.images], dtype=object).reshape(rows, -1)


def grid_of(figure, rows):
    """All cells, row by row, the scales in the last row."""
    return np.array(figure.axes, dtype=object).reshape(rows, -1)


def shown(axis, layer=0):
    return np.asarray(axis.images[layer].get_array())


def is_drawn(figure):
    for kind in ("png", "svg"):
        figure.savefig(buffer := io.BytesIO(), format=kind, dpi=30)
        assert len(buffer.getvalue()) > 1000
    return not _pylab_helpers.Gcf.get_all_fig_managers()  # no window belongs to it


def test_symbols_are_the_papers():
    names = ["target", "order0", "order2", "output", "residual"]
    assert [symbol(name) for name in names] == ["$x^*$", "$x^{(0)}$", "$x^{(2)}$", "$g(x)$", r"$x_\Delta$"]


def test_components_stand_in_rows_of_channels(maps):
    x, target, components = maps
    photo = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
    figure = component_figure(photo, x, target, components, [4, 1], ["instability 0.10", "instability 0.90"])
    grid = pictures(figure, 2)
    assert grid.shape == (2, 8)
    titles = [axis.get_title() for axis in grid[0]]
    for title, expected in zip(
        titles, ["photo", "$x$", "$x^*$", "$g(x)$", *map(symbol, ("order0", "order1", "order2"))]
    ):
        assert expected in title
    assert symbol("residual") in titles[-1]
    assert {axis.get_title() for axis in grid[1]} == {""}
    assert [axis.get_ylabel() for axis in grid[:, 0]] == ["channel 4\ninstability 0.10", "channel 1\ninstability 0.90"]
    output = components.sum(0)
    for row, channel in enumerate((4, 1)):
        np.testing.assert_array_equal(shown(grid[row, 0]), photo.permute(1, 2, 0))
        np.testing.assert_array_equal(shown(grid[row, 1]), x[1])  # the last that x has
        expected_maps = [target, output, *components, target - output]
        for axis, expected_map in zip(grid[row, 2:], expected_maps):
            np.testing.assert_array_equal(shown(axis), expected_map[channel])
        largest = max(float(values[channel].abs().max()) for values in expected_maps)
        assert {axis.images[0].get_clim() for axis in grid[row, 2:]} == {(-largest, largest)}
        assert grid[row, 1].images[0].get_clim() == (float(x[1].min()), float(x[1].max()))
    assert is_drawn(figure)


def test_components_without_photo_and_notes_and_of_nothing(maps):
    x, target, components = (values.bfloat16() for values in maps)
    assert pictures(component_figure(None, x, target, components, [2]), 1).shape == (1, 7)
    zeros = torch.zeros(1, 2, 2)
    figure = component_figure(None, zeros, zeros, zeros[None], [0])
    assert pictures(figure, 1)[0, 1].images[0].get_clim() == (-1, 1)


def test_strength_sums_magnitudes_and_is_enlarged():
    maps = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert torch.equal(strength(maps, 1), torch.tensor([[[3.25]]]))
    both, second = strength(maps, 4), strength(maps, 4, channel=1)
    assert both.shape == second.shape == (1, 4, 4)
    assert both[0, :, 0].tolist() == [4.0] * 4 and both[0, :, -1].tolist() == [2.5] * 4
    assert second[0, :, 0].tolist() == [3.0] * 4 and second[0, :, -1].tolist() == [0.5] * 4


@pytest.mark.parametrize("channel", [None, 2])
def test_overlays_lie_on_grey_photos_on_a_scale_a_column(channel):
    torch.manual_seed(0)
    photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    target, components = torch.randn(2, 3, 4, 4), torch.randn(3, 2, 3, 4, 4)
    figure = overlay_figure(photos, target, components, "blind spots", channel)
    *rows, scales = grid_of(figure, 3)
    output = components.sum(0)
    columns = {
        "features $x^*$": target, "reconstructed $g(x)$": output, r"blind spots $x_\Delta$": target - output,
    }  # fmt: skip
    assert [axis.get_title() for axis in rows[0]] == ["photo", *columns]
    assert {axis.get_title() for axis in rows[1]} == {""}
    for row in range(2):
        np.testing.assert_array_equal(shown(rows[row][0]), photos[row].permute(1, 2, 0))
        for axis, values in zip(rows[row][1:], columns.values()):
            heats = strength(values, 16, channel)
            np.testing.assert_allclose(shown(axis), photos[row].float().mean(0), rtol=1e-6)
            np.testing.assert_array_equal(shown(axis, 1), heats[row])
            assert axis.images[1].get_clim() == (float(heats.min()), float(heats.max()))
    quantity = "sum of |value| over channels" if channel is None else "|value| in channel 2"
    assert [axis.get_xlabel() for axis in scales[1:]] == [quantity] * 3
    for axis, values in zip(scales[1:], columns.values()):
        heats = strength(values, 16, channel)
        assert axis.get_xlim() == pytest.approx((float(heats.min()), float(heats.max())))
    assert is_drawn(figure)


def test_the_weakest_point_of_an_overlay_leaves_the_photo_bare():
    alphas = HEAT(np.linspace(0, 1, 256))[:, 3]
    assert alphas[0] == 0 and (np.diff(alphas) > 0).all() and alphas[-1] < 1


def test_an_overlay_of_nothing_is_drawn():
    photos = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert is_drawn(overlay_figure(photos, torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 2, 1, 1)))


def test_variances_are_shares_of_the_targets():
    figure: Any = variance_figure({"A to B": REPORT, "B to A": REPORT}, [0.25, 0.75])
    panels = [axis for axis in figure.axes if axis.patches]
    assert len(panels) == 3
    widths = [bar.get_width() for bar in panels[0].patches]
    assert widths == pytest.approx([75, 12.5, 6.25, 11.25, 100 - 105])  # the last: what covariances take off
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
    labelled = [[label.get_text() for label in axis.get_yticklabels() if label.get_visible()] for axis in panels]
    assert labelled[0] == [*map(symbol, ("order0", "order1", "order2", "residual")), "2 Σ covariances"]
    assert labelled[2] == [symbol("order0"), symbol("residual"), "2 Σ covariances"]
    assert panels[0].yaxis.get_tick_params()["labelleft"] and panels[2].yaxis.get_tick_params()["labelleft"]
    assert not panels[1].yaxis.get_tick_params()["labelleft"]


def test_the_text_of_a_negative_bar_stands_right_of_zero():
    (axis,) = variance_figure({"A to B": REPORT}).axes
    texts = {text.get_text(): text.xy for text in axis.texts}  # type: ignore[attr-defined]
    assert texts["-0.2  (-5 %)"] == (0, 4)
    assert texts["3  (75 %)"] == (75, 0)


def test_curves_join_their_points_in_the_order_given():
    figure = curve_figure(
        {"conv4_3": [(2, 0.5), (0, 0.1), (1, 0.2)], "conv5_2": [(0, 1)]},
        "generation",
        "Var",
        {"conv4_3": ["third", "first", "second"]},
    )
    axis: Any = figure.axes[0]
    assert [line.get_label() for line in axis.lines] == ["conv4_3", "conv5_2"]
    assert axis.lines[0].get_xydata().tolist() == [[2, 0.5], [0, 0.1], [1, 0.2]]
    notes = {text.get_text(): text.xy for text in axis.texts}
    assert notes == {"third": (2, 0.5), "first": (0, 0.1), "second": (1, 0.2)}
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("generation", "Var")
    assert all(tick == int(tick) for tick in axis.get_xticks())
    assert axis.get_legend() is not None
    (alone,) = curve_figure({"one": [(0, 1)]}, "", "").axes
    assert alone.get_legend() is None and alone.get_title() == "one"
    assert is_drawn(figure)


def test_curves_differ_in_colour_and_marker():
    names = [f"curve {number}" for number in range(len(CURVES))]
    lines = curve_figure({name: [(0.0, 1.0), (0.5, 2.0)] for name in names}, "x", "y").axes[0].lines
    assert [line.get_label() for line in lines] == names
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == len(names)
