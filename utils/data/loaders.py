"""The loader of photos and features: the order of its batches depends on (seed, epoch) alone."""

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.errors import InputError


class Batch(list[int]):
    """The indices of one batch, with the seed and epoch for what is drawn for its images.

    They travel with the indices because workers live over several epochs.

    Attributes:
        seed: of the run.
        epoch: counted from 0.
    """

    def __init__(self, indices: Iterable[int], seed: int = 0, epoch: int = 0) -> None:
        super().__init__(indices)
        self.seed, self.epoch = seed, epoch


class Part(Dataset[Any]):
    """Some samples of a data set: torch's Subset, but a batch keeps its seed and epoch.

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


def names_of(dataset: Dataset[Any], indices: Sequence[int]) -> list[str]:
    """Name samples by the files that they were made of, or by their places where none are known."""
    if isinstance(dataset, Part):
        return names_of(dataset.whole, [dataset.members[index] for index in indices])
    paths = getattr(dataset, "paths", None)
    return [str(paths[index]) if paths else f"sample {index}" for index in indices]


class EpochSampler(Sampler[list[int]]):
    """Batches of indices for one process of a distributed run.

    Shuffled shares are padded to equal length by samples from the beginning of the order, because
    all processes average their gradients in every step. Unshuffled shares are not padded: an
    evaluation sees every sample exactly once.

    Args:
        length: of the data set.
        batch_size: samples a step of this process.
        shuffle: a new order in every epoch.
        seed: of the order.
        rank: this process' number.
        world_size: the number of processes.
    """

    def __init__(
        self, length: int, batch_size: int, *, shuffle: bool, seed: int, rank: int, world_size: int
    ) -> None:
        self.length, self.batch_size, self.shuffle, self.seed = length, batch_size, shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = self.taken = 0

    def set_epoch(self, epoch: int, taken: int = 0) -> None:
        """Choose the permutation of this epoch, and begin behind its first `taken` batches."""
        self.epoch, self.taken = epoch, taken

    def share(self) -> list[int]:
        """Give the indices that this process visits, in order."""
        if not self.shuffle:
            return list(range(self.rank, self.length, self.world_size))
        # A prime above any number of epochs: no two (seed, epoch) share a generator's seed.
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**64)
        order = torch.randperm(self.length, generator=generator)
        # Every process gets as many samples: the first ones come again.
        padded_length = math.ceil(self.length / self.world_size) * self.world_size
        order = order.repeat(self.world_size)[:padded_length]
        return order[self.rank :: self.world_size].tolist()

    def __iter__(self) -> Iterator[Batch]:
        # DataLoader draws a seed for its workers from torch's generator: once where they persist,
        # in every epoch where there are none. `make_loader` gives it another generator, and the
        # draw happens here in every epoch. So later draws, such as dropout's, depend neither on the
        # number of workers nor on the epoch that a run was resumed at.
        torch.empty((), dtype=torch.int64).random_()
        share = self.share()
        for start in range(self.taken * self.batch_size, len(share), self.batch_size):
            yield Batch(share[start : start + self.batch_size], self.seed, self.epoch)

    def batch(self, step: int) -> list[int]:
        """Give the indices of one batch of this epoch."""
        return self.share()[step * self.batch_size : (step + 1) * self.batch_size]

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
    """Make a loader over a data set whose `__getitems__` returns stacked batches.

    Args:
        dataset: implements `__len__` and `__getitems__(indices) -> tuple of tensors`.
        batch_size: samples a step of this process.
        shuffle: a new order in every epoch (`loader.batch_sampler.set_epoch`).
        seed: of the order.
        workers: processes that decode; 0 for data that is in memory.
        rank: this process' number in a distributed run.
        world_size: the number of processes.
        pin: use page-locked memory, whose copies to a GPU overlap with computing.

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
    """Give a batch of `__getitems__` back; a lambda could not travel to a spawned worker."""
    return batch
