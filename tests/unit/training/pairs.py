"""Pairs of features in memory, as the feature cache gives them."""

import torch
from torch.utils.data import Dataset

from utils.data.loaders import make_loader


class Pairs(Dataset):
    """Features x and targets in memory, as batches of the feature cache."""

    def __init__(self, x, target):
        self.x, self.target = x, target

    def __len__(self):
        return len(self.x)

    def __getitems__(self, indices):
        rows = torch.as_tensor(indices)
        return self.x[rows], self.target[rows], rows % 3, rows


def loader_of(x, target):
    return make_loader(Pairs(x, target), 16)


def maps(count, channels=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, channels, 1, 1, generator=generator)
    return 2 + 3 * (base + torch.randn(count, channels, 5, 5, generator=generator))
