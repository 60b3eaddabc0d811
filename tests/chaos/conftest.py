"""The long runs of this folder are asked for by `-m chaos`."""

import pytest


def pytest_collection_modifyitems(config, items):
    """Leave the tests that are marked out, where no expression of marks asks for them."""
    if "chaos" in config.getoption("-m"):
        return
    for item in items:
        if "chaos" in item.keywords and item.get_closest_marker("chaos"):
            item.add_marker(pytest.mark.skip(reason="long: pytest -m chaos"))
