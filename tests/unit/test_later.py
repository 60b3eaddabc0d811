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


@pytest.mark.parametrize("name", ["json", "colorsys"])  # a package, a single file
def test_a_missing_name_is_missing_as_of_any_object(name):
    with pytest.raises(AttributeError) as caught:
        _ = Later(name).nothing
    assert name in str(caught.value) and "nothing" in str(caught.value)
    assert not hasattr(Later(name), "__wrapped__")
