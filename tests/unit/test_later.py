import sys

import pytest

from utils.later import Later


def test_a_module_is_loaded_by_the_first_use_of_a_name():
    sys.modules.pop("colorsys", None)
    later = Later("colorsys")
    assert "colorsys" not in sys.modules
    assert later.rgb_to_hsv(1, 0, 0) == (0, 1, 1)
    assert "colorsys" in sys.modules


def test_a_module_inside_is_loaded_too():
    sys.modules.pop("xml.sax.handler", None)
    assert Later("xml").sax.handler.ContentHandler


def test_a_missing_name_is_named():
    with pytest.raises(ModuleNotFoundError, match=r"json\.nothing"):
        _ = Later("json").nothing
