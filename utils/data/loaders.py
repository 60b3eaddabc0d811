"""One loader for photos and for features: batches whose order depends on (seed, epoch) alone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import InputError


class Batch(list[int]):
    """The indices of one batch, and what is drawn for its images:
    workers learn the epoch with the indices.

    Attributes:
        seed: of the run.
        epoch: counted from 0.
    """

    def __init__(self, indices: Iterable[int], seed: int = 0, epoch: int = 0) -> None:
        super().__init__(indices)
        self.seed, self.epoch = seed, epoch


class Part(Dataset[Any]):
    """Some samples of a data set, as torch's Subset, but a batch keeps its epoch.

    Args:
        whole: implements `__getitems__`.
        members: positions in it.
    """

    def __init__(self, whole: Dataset[Any], members: Sequence[int]) -> None:
        self.whole, self.members = whole, members

    def __len__(self) -> int:
        return len(self.members)

    def __getitems__(self, indices: Batch) -> Any:
        """Give a batch of the whole set."""
        members = Batch((self.members[index] for index in indices), indices.seed, indices.epoch)
        return self.whole.__getitems__(members)  # type: ignore[attr-defined]


class EpochSampler(Sampler[list[int]]):
    """Batches of indices, the share of one process of a distributed run.

    Shuffled shares are padded from their own beginning to equal length, because gradients are
    averaged in step; unshuffled ones are exact, so that an evaluation sees every sample once.
    """

    def __init__(
        self, length: int, batch_size: int, *, shuffle: bool, seed: int, rank: int, world_size: int
    ) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of this epoch."""
        self.epoch = epoch

    def share(self) -> list[int]:
        """Give the indices that this process visits, in order."""
        if not self.shuffle:
            return list(range(self.rank, self.length, self.world_size))
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**64)
        order = torch.randperm(self.length, generator=generator)
        order = order.repeat(self.world_size)[
            : math.ceil(self.length / self.world_size) * self.world_size
        ]
        return order[self.rank :: self.world_size].tolist()

    def __iter__(self) -> Iterator[Batch]:
        # DataLoader draws a seed for its workers from torch's own generator: once where they
        # persist, in every epoch where there are none. Here it is drawn in every epoch alike, so
        # that what follows it, such as dropout, depends neither on the number of workers nor on the
        # epoch that a run was resumed at.
        torch.empty((), dtype=torch.int64).random_()
        share = self.share()
        for start in range(0, len(share), self.batch_size):
            yield Batch(share[start : start + self.batch_size], self.seed, self.epoch)

    def __len__(self) -> int:
        # The share is order[rank::world_size]; a shuffled one is padded to the length of rank 0's.
        first = 0 if self.shuffle else self.rank
        return math.ceil(len(range(first, self.length, self.world_size)) / self.batch_size)


def make_loader(
    dataset: Dataset[Any],
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin: bool = False,
) -> DataLoader[tuple[Tensor, ...]]:
    """Make a loader over a dataset whose `__getitems__` returns stacked batches.

    Args:
        dataset: implements `__len__` and `__getitems__(indices) -> tuple of tensors`.
        batch_size: samples a step of this process.
        shuffle: a new order every epoch (`loader.batch_sampler.set_epoch`).
        seed: of the order.
        workers: processes that decode; 0 for data that is already in memory.
        rank: this process' number in a distributed run.
        world_size: the number of processes.
        pin: page-locked memory, for copies to a GPU that overlap with computing.

    Raises:
        InputError: there are fewer samples than processes.
    """
    length = len(dataset)  # type: ignore[arg-type]
    if length < world_size:
        raise InputError(
            f"{length} samples cannot be shared by {world_size} processes; start fewer"
        )
    sampler = EpochSampler(
        length, batch_size, shuffle=shuffle, seed=seed, rank=rank, world_size=world_size
    )
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        generator=torch.Generator(),
        num_workers=workers,
        collate_fn=_already_a_batch,
        pin_memory=pin,
        persistent_workers=workers > 0,
    )


def _already_a_batch(batch: Any) -> Any:
    """`__getitems__` stacked it; a named function because workers may be spawned."""
    return batch
