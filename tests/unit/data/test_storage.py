import pickle
import warnings

import numpy as np
import pytest
import torch

from utils.data.storage import TensorStore, available_memory_bytes

DTYPES = [torch.uint8, torch.bool, torch.int64, torch.float16, torch.float32, torch.float64]


def rows(dtype=torch.float32):
    return (torch.arange(120).reshape(5, 2, 3, 4) * 2 + 1).to(dtype)


@pytest.fixture(params=["memory", "file", pytest.param("gpu", marks=pytest.mark.gpu)])
def store(request, tmp_path):
    """A function that keeps a tensor in one of the three places."""
    if request.param == "gpu" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")

    def keep(values):
        if request.param == "gpu":
            return TensorStore(values.cuda())
        if request.param == "memory":
            return TensorStore(values.clone())
        np.save(tmp_path / "rows.npy", values.numpy())
        return TensorStore.mapped(tmp_path / "rows.npy")

    return keep


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_come_back_in_the_order_asked_for(store, dtype):
    values = rows(dtype)
    gathered = store(values).gather(torch.tensor([4, 0, 4]))
    assert gathered.dtype == dtype
    assert torch.equal(gathered.cpu(), values[[4, 0, 4]])


def test_a_batch_is_the_callers_own(store):
    stored = store(rows())
    stored.gather(torch.arange(5)).zero_()
    assert torch.equal(stored.gather(torch.arange(5)).cpu(), rows())


def test_a_copy_for_another_process_holds_the_same_rows(store):
    stored = store(rows())
    again = pickle.loads(pickle.dumps(stored))
    assert torch.equal(again.gather(torch.tensor([2])), stored.gather(torch.tensor([2])))
    assert again.device == stored.device


def test_a_mapped_file_is_pickled_by_name(tmp_path):
    np.save(tmp_path / "rows.npy", np.zeros((1000, 100)))
    stored = TensorStore.mapped(tmp_path / "rows.npy")
    assert len(pickle.dumps(stored)) < 1000
    assert len(pickle.dumps(TensorStore(stored.values))) > 100_000


def test_mapping_a_file_needs_no_right_to_write_and_says_nothing(tmp_path):
    np.save(tmp_path / "rows.npy", rows().numpy())
    before = (tmp_path / "rows.npy").read_bytes()
    (tmp_path / "rows.npy").chmod(0o400)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TensorStore.mapped(tmp_path / "rows.npy").gather(torch.arange(5)).zero_()
    assert (tmp_path / "rows.npy").read_bytes() == before


@pytest.mark.gpu
def test_an_index_may_be_on_another_device_than_the_rows():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    for here, there in (("cpu", "cuda"), ("cuda", "cpu")):
        gathered = TensorStore(rows().to(here)).gather(torch.tensor([3, 1], device=there))
        assert gathered.device.type == here
        assert torch.equal(gathered.cpu(), rows()[[3, 1]])


def test_processes_of_one_machine_share_its_memory(monkeypatch):
    alone = available_memory_bytes()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0.2 < available_memory_bytes() / alone < 0.3
    assert alone > 10**8
