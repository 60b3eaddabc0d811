import io

import numpy as np
import pytest
import torch
from matplotlib import _pylab_helpers

from models.trans_net import TransNet
from utils.report.maps import (
    as_pictures,
    best_match,
    component_figure,
    decomposition_figure,
    heat_colours,
    overlay_figure,
    save_figure,
    strength,
    symbol,
)


@pytest.fixture
def maps():
    """x (2, 4, 6) strong and of fewer channels than the target (5,
    4, 6), and three components of it.
    """
    generator = torch.Generator().manual_seed(0)
    x, target = (
        100 * torch.randn(2, 4, 6, generator=generator),
        3 * torch.randn(5, 4, 6, generator=generator),
    )
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
    assert [symbol(name) for name in names] == [
        "$x^*$",
        "$x^{(0)}$",
        "$x^{(2)}$",
        "$g(x)$",
        r"$x_\Delta$",
    ]


def test_components_stand_in_rows_of_channels(maps):
    x, target, components = maps
    photo = torch.arange(3 * 8 * 8, dtype=torch.uint8).reshape(3, 8, 8)
    figure = component_figure(
        photo,
        x,
        target,
        components.sum(0),
        components,
        [4, 1],
        ["instability 0.10", "instability 0.90"],
    )
    grid = pictures(figure, 2)
    assert grid.shape == (2, 8)
    titles = [axis.get_title() for axis in grid[0]]
    for title, expected in zip(
        titles, ["photo", "$x$", "$x^*$", "$g(x)$", *map(symbol, ("order0", "order1", "order2"))]
    ):
        assert expected in title
    assert symbol("residual") in titles[-1]
    assert {axis.get_title() for axis in grid[1]} == {""}
    assert [axis.get_ylabel() for axis in grid[:, 0]] == [
        "channel 4\ninstability 0.10",
        "channel 1\ninstability 0.90",
    ]
    output = components.sum(0)
    for row, channel in enumerate((4, 1)):
        np.testing.assert_array_equal(shown(grid[row, 0]), photo.permute(1, 2, 0))
        match, r = best_match(x, target[channel])
        np.testing.assert_array_equal(shown(grid[row, 1]), x[match])
        assert grid[row, 1].get_xlabel() == f"channel {match}, r = {r:+.2f}"
        expected_maps = [target, output, *components, target - output]
        for axis, expected_map in zip(grid[row, 2:], expected_maps):
            np.testing.assert_array_equal(shown(axis), expected_map[channel])
        largest = max(float(values[channel].abs().max()) for values in expected_maps)
        assert {axis.images[0].get_clim() for axis in grid[row, 2:]} == {(-largest, largest)}
        assert grid[row, 1].images[0].get_clim() == (float(x[match].min()), float(x[match].max()))
    assert all(axis.get_ylabel() for axis in figure.axes if axis not in set(grid.flat))
    assert is_drawn(figure)


def test_the_best_match_is_the_channel_that_goes_with_the_map_up_or_down():
    torch.manual_seed(0)
    target, noise = torch.randn(4, 6), torch.randn(3, 4, 6)
    x = torch.stack([noise[0], 5 - 3 * target, torch.ones(4, 6), target + 9 * noise[1]])
    match, r = best_match(x, target)
    assert match == 1 and r == pytest.approx(-1)
    large = x.repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert best_match(large, target) == (1, pytest.approx(-1))
    assert best_match(torch.ones(2, 4, 6), target) == (0, 0.0)


def test_components_without_photo_and_notes_and_of_nothing(maps):
    x, target, components = (values.bfloat16() for values in maps)
    assert pictures(
        component_figure(None, x, target, components.sum(0), components, [2]), 1
    ).shape == (1, 7)
    zeros = torch.zeros(1, 2, 2)
    figure = component_figure(None, zeros, zeros, zeros, zeros[None], [0])
    assert pictures(figure, 1)[0, 1].images[0].get_clim() == (-1, 1)


def test_strength_sums_magnitudes_and_is_enlarged():
    maps = torch.tensor([[[[1.0, -2.0]], [[-3.0, 0.5]]]])
    assert torch.equal(strength(maps, 1), torch.tensor([[[3.25]]]))
    both, second = strength(maps, 4), strength(maps, 4, channel=1)
    assert both.shape == second.shape == (1, 4, 4)
    assert both[0, :, 0].tolist() == [4.0] * 4 and both[0, :, -1].tolist() == [2.5] * 4
    assert second[0, :, 0].tolist() == [3.0] * 4 and second[0, :, -1].tolist() == [0.5] * 4


@pytest.mark.parametrize("channel", [None, 2])
def test_overlays_lie_on_grey_photos_and_the_residual_has_a_scale_of_its_own(channel):
    torch.manual_seed(0)
    photos = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    target, output = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    figure = overlay_figure(photos, target, output, "blind spots", channel)
    *rows, scales = grid_of(figure, 3)
    columns = {
        "features $x^*$": target,
        "reconstructed $g(x)$": output,
        r"blind spots $x_\Delta$": target - output,
    }
    assert [axis.get_title() for axis in rows[0]] == ["photo", *columns]
    assert {axis.get_title() for axis in rows[1]} == {""}
    *shared, residual = (strength(values, 16, channel) for values in columns.values())
    limits = [(float(part.min()), float(part.max())) for part in (torch.stack(shared), residual)]
    limits = [limits[0], limits[0], limits[1]]
    for row in range(2):
        np.testing.assert_array_equal(shown(rows[row][0]), photos[row].permute(1, 2, 0))
        for axis, values, scale in zip(rows[row][1:], columns.values(), limits):
            heats = strength(values, 16, channel)
            np.testing.assert_allclose(shown(axis), photos[row].float().mean(0), rtol=1e-6)
            np.testing.assert_array_equal(shown(axis, 1), heats[row])
            assert axis.images[1].get_clim() == scale
    quantity = "sum of |value| over channels" if channel is None else "|value| in channel 2"
    assert [axis.get_xlabel() for axis in scales[1:]] == [quantity] * 2 + [
        f"{quantity}\n(own scale)"
    ]
    for axis, scale in zip(scales[1:], limits):
        assert axis.get_xlim() == pytest.approx(scale)
    assert [bool(axis.collections) for axis in rows[0][1:]] == [False, False, True]
    assert is_drawn(figure)


def test_the_weakest_point_of_an_overlay_leaves_the_photo_bare():
    alphas = heat_colours()(np.linspace(0, 1, 256))[:, 3]
    assert alphas[0] == 0 and (np.diff(alphas) > 0).all() and alphas[-1] < 1


def test_an_overlay_of_nothing_is_drawn():
    photos = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    assert is_drawn(overlay_figure(photos, torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)))


def test_a_constant_of_no_order_is_part_of_what_is_reconstructed(maps):
    x, target, components = maps
    figure = component_figure(None, x, target, components.sum(0) + 7, components, [1])
    residual = pictures(figure, 1)[0, -1]
    np.testing.assert_allclose(shown(residual), target[1] - components.sum(0)[1] - 7, rtol=1e-5)


def test_tokens_lie_on_their_grid_without_the_class_token():
    grid = torch.arange(9.0).view(3, 3)
    tokens = torch.stack([grid.flatten(), -grid.flatten()])[..., None]  # (C, T, 1)
    assert torch.equal(as_pictures(tokens), torch.stack([grid, -grid]))
    with_class = torch.cat([torch.full((2, 1, 1), 99.0), tokens], 1)
    assert torch.equal(as_pictures(with_class), torch.stack([grid, -grid]))
    assert torch.equal(as_pictures(with_class[None])[0], as_pictures(with_class))


def test_other_tokens_are_one_picture_and_maps_and_vectors_stay():
    tokens = torch.randn(4, 7, 1)
    assert torch.equal(as_pictures(tokens), tokens[..., 0].T[None])
    for maps in (torch.randn(4, 5, 6), torch.randn(4, 1, 1)):
        assert torch.equal(as_pictures(maps), maps)
    assert is_drawn(component_figure(None, tokens, tokens, tokens, tokens[None], [3]))


@pytest.mark.parametrize("others", [0, 1])
def test_a_vision_transformers_tokens_are_drawn_as_maps(others):
    """Tokens as `as_maps` gives them, with the class token and without:
    every cell shows the grid of patches.
    """
    torch.manual_seed(0)
    x, target = torch.randn(2, 6, others + 9, 1), torch.randn(2, 6, others + 9, 1)
    figure = decomposition_figure(TransNet(6, 6, 2, 1).eval(), x, target)
    cells = pictures(figure, 4)
    assert {shown(cell).shape for cell in cells.flat} == {(3, 3)}
    channels = [int(axis.get_ylabel().split()[1]) for axis in cells[:, 0]]
    for row, channel in zip(cells, channels):
        np.testing.assert_array_equal(shown(row[1]), target[0, channel, others:, 0].view(3, 3))
    assert is_drawn(figure)
    photos = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    assert is_drawn(overlay_figure(photos, target, target / 2))


def test_a_figure_is_saved_whole_and_named(tmp_path, capsys, maps):
    x, target, components = maps
    save_figure(
        tmp_path / "a.png", component_figure(None, x, target, components.sum(0), components, [0])
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == f"saved {tmp_path / 'a.png'}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
