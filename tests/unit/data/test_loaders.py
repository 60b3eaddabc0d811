import pytest
import torch
from torch.utils.data import Dataset

from utils.data.loaders import EpochSampler, make_loader


class Rows(Dataset):
    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitems__(self, indices):
        return torch.tensor(indices) * 10, torch.tensor(indices)


def seen(loader):
    return [batch[1].tolist() for batch in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_stacked_in_order_with_a_ragged_last(workers):
    loader = make_loader(Rows(10), 4, workers=workers)
    batches = list(loader)
    assert [indices.tolist() for _, indices in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert all(torch.equal(values, 10 * indices) for values, indices in batches)
    assert len(loader) == 3
    assert seen(loader) == seen(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_order_depends_on_seed_and_epoch_alone(workers):
    def order(seed, epoch, noise=0):
        loader = make_loader(Rows(30), 7, shuffle=True, seed=seed, workers=workers)
        torch.manual_seed(noise)
        loader.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        return [index for batch in seen(loader) for index in batch]

    reference = order(3, 4)
    assert sorted(reference) == list(range(30)) != reference
    assert order(3, 4, noise=1) == reference
    assert order(3, 5) != reference
    assert order(4, 4) != reference


def shares(length, world_size, batch_size=4, *, shuffle, epoch=0):
    samplers = [
        EpochSampler(length, batch_size, shuffle=shuffle, seed=1, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
        assert all(len(batch) <= batch_size for batch in sampler)
    return [[index for batch in sampler for index in batch] for sampler in samplers]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 17])
def test_an_evaluation_is_shared_out_exactly(length, world_size):
    parts = shares(length, world_size, shuffle=False)
    assert sorted(index for piece in parts for index in piece) == list(range(length))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 7, 8, 9, 17])
def test_training_is_shared_out_evenly(length, world_size):
    """Every process takes as many steps,
    on different samples but for the padding, and all see the whole set.
    """
    parts = shares(length, world_size, shuffle=True)
    assert {len(piece) for piece in parts} == {-(-length // world_size)}
    everything = [index for piece in parts for index in piece]
    assert set(everything) == set(range(length))
    assert len(everything) - length < world_size
    orders = {str(shares(length, world_size, shuffle=True, epoch=epoch)) for epoch in range(12)}
    assert (len(orders) > 1) == (length > 1)


def test_one_process_and_several_agree_on_the_order():
    whole = shares(12, 1, shuffle=True)[0]
    assert shares(12, 3, shuffle=True) == [whole[rank::3] for rank in range(3)]
