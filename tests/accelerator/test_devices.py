"""Copies from the device, and float64 where it has none."""

import pickle

import pytest
import torch

from tests.accelerator import simulated
from utils import devices
from utils.devices import Column, float64_home, in_float64, to_cpu

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is the accelerator here")
DEVICE = "simulated"


@pytest.fixture
def waits():
    with simulated.accelerator() as counted:
        yield counted


def count(waits):
    return sum(waits.by_line.values())


def test_many_tensors_are_waited_for_once(waits):
    x = torch.arange(3.0, device=DEVICE)
    before = count(waits)
    results = to_cpu(x, x + 1, torch.ones(2))
    assert [result.tolist() for result in results] == [[0, 1, 2], [1, 2, 3], [1, 1]]
    assert count(waits) - before == 1
    to_cpu(torch.ones(2))
    assert count(waits) - before == 1


@pytest.mark.parametrize("device", ["cpu", DEVICE])
@pytest.mark.parametrize("sizes", [[3, 3, 3, 1], [1] * (2 * devices.IN_FLIGHT + 3)])
def test_a_column_gives_its_rows_in_order(waits, device, sizes):
    rows = torch.randn(sum(sizes), 2)
    column = Column()
    assert not column
    on_device = rows.to(device).split(sizes)
    before = count(waits)
    for part in on_device:
        column.append(part.clone())
    # Less than one wait for many batches
    assert count(waits) - before == (len(sizes) // devices.IN_FLIGHT if device == DEVICE else 0)
    assert column and torch.equal(column.joined(), rows)
    assert len(column.parts) <= 8 and column.joined().device.type == "cpu"
    assert torch.equal(pickle.loads(pickle.dumps(column)).joined(), rows)


def test_rows_of_two_devices_keep_their_order(waits):
    column = Column()
    column.append(torch.ones(1, device=DEVICE))
    column.append(torch.full((1,), 2.0))
    column.append(torch.full((1,), 3.0, device=DEVICE))
    assert column.joined().tolist() == [1, 2, 3]


def test_a_sum_stays_on_its_device_until_it_is_read(waits):
    column, row = Column(), torch.ones(1, 2, dtype=torch.float64, device=DEVICE)
    before = count(waits)
    for _ in range(5):
        column.add_up(row)
    assert count(waits) == before
    assert column.joined().tolist() == [[5, 5]]
    assert count(waits) - before == 1


@pytest.mark.parametrize("has_float64", [True, False])
def test_float64_is_computed_where_it_is(has_float64):
    with simulated.accelerator(has_float64=has_float64):
        home = DEVICE if has_float64 else "cpu"
        assert float64_home(DEVICE).type == home
        result = in_float64(torch.ones(2, device=DEVICE))
        assert (result.dtype, result.device.type) == (torch.float64, home)
        assert float64_home("cpu").type == in_float64(torch.ones(2)).device.type == "cpu"
