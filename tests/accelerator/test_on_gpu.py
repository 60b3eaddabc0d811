"""The table of steps on a real GPU: its distances. The table itself takes a GPU."""

import math

import numpy as np
import pytest
import torch

from tests.accelerator.on_gpu import distances


def test_the_largest_distance_names_its_entry():
    cpu = {"net": {"a": torch.tensor([3.0, 4.0]), "b": [np.array([2.0])]}, "seconds": 1.0}
    gpu = {"net": {"a": torch.tensor([3.0, 4.5]), "b": [np.array([2.5])]}, "seconds": 9.0}
    # ‖(0, 0.5)‖ / ‖(3, 4)‖ = 0.1, and 0.5 / 2; seconds are no numbers of the step.
    found = {name: distance for distance, name in distances(cpu, gpu)}
    assert found == pytest.approx({"/net/a": 0.1, "/net/b/0": 0.25})
    assert max(distances(cpu, gpu))[1] == "/net/b/0"


def test_another_shape_is_infinitely_far():
    ((distance, _),) = distances({"a": torch.ones(2)}, {"a": torch.ones(3)})
    assert math.isinf(distance)
