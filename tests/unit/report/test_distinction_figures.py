import numpy as np
import torch

from utils.report.distinction_figures import photo_rows, place_rows, side_by_side


def test_pictures_lie_side_by_side_with_gaps():
    pictures = torch.arange(3.0).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
    row = side_by_side(pictures, 9)
    assert row.shape == (1, 4, 3 * 4 + 2)
    assert row[0, 0].tolist() == [0] * 4 + [9] + [1] * 4 + [9] + [2] * 4


def test_every_map_has_a_scale_of_its_own_and_losses_below_zero_are_bare():
    photos = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    maps = torch.tensor([[[4.0, -4.0]], [[0.0, 0.1]]]).expand(2, 1, 2)
    figure = place_rows(photos, {"carried": maps, "nothing": torch.zeros(2, 1, 2)})
    _, carried, nothing = [axis.images[-1].get_array() for axis in figure.axes]
    assert np.isclose(carried[0, 0], 1) and carried[0, 7] == 0  # the first photo's two ends
    assert carried[0, 9] == 0 and np.isclose(carried[0, -1], 1)  # the second's
    assert float(nothing.max()) == 0


def test_each_photo_has_its_caption():
    photos = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    figure = photo_rows({"most": (photos, ["cat", "dog"]), "least": (photos[:1], ["cow"])})
    captions = [[text.get_text() for text in axis.texts] for axis in figure.axes]
    assert captions == [["cat", "dog"], ["cow"]]
