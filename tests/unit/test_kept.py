"""Kept results: computed once, and anew where their file is not what was written."""

import numpy as np
import pytest
import torch

from utils import checkpoint
from utils.kept import Kept

RESULT = {
    "sums": torch.arange(6.0).reshape(2, 3),
    "array": np.arange(4),
    "number": np.float64(0.1),
    "rows": [(1, "a", None, True), {"b": torch.tensor(2, dtype=torch.bfloat16)}],
    "none": torch.zeros(0, 3),
}


@pytest.fixture
def kept(tmp_path):
    return Kept(tmp_path)


def counted(kept):
    """Ask for the result; say whether it was computed."""
    computed = []
    result = kept.get("sums", {"seed": 1}, lambda: computed.append(1) or RESULT)
    assert torch.equal(torch.as_tensor(result["sums"]), RESULT["sums"])
    assert torch.equal(torch.as_tensor(result["array"]), torch.arange(4))
    return bool(computed)


def test_a_result_is_computed_once(kept):
    assert [counted(kept), counted(kept), counted(kept)] == [True, False, False]


def test_a_whole_file_of_other_values_is_not_taken(kept):
    counted(kept)
    path = kept.path("sums", {"seed": 1})
    state = checkpoint.load(path)
    for change in ({"sums": state["sums"] + 1}, {"rows": [*state["rows"], 1]}, {"more": 0}):
        checkpoint.save(path, state | change)
        assert counted(kept) and not counted(kept)
    checkpoint.save(path, {name: state[name] for name in ("sums", "array")})
    assert counted(kept)


def test_the_sum_tells_types_shapes_names_and_places_apart():
    values = [
        {"a": 1},
        {"b": 1},
        {"a": 1.0},
        {"a": True},
        {"a": "1"},
        {"a": [1]},
        {"a": (1,)},
        {"a": torch.ones(1)},
        {"a": torch.ones(1, 1)},
        {"a": torch.ones(1, dtype=torch.float64)},
        {"a": [1, [2]]},
        {"a": [[1], 2]},
    ]
    assert len({checkpoint.content_sha256(value) for value in values}) == len(values)
    assert checkpoint.content_sha256({"a": np.arange(3)}) == checkpoint.content_sha256(
        {"a": torch.arange(3)}
    )
