"""Results of a run, planted: checkpoints, JSON of Variance.py,
and the tables that are read from them.
"""

import torch
from torch import nn

from experiments import tables
from experiments.tables import PAPER, Results, read_table
from utils import checkpoint
from utils.files import read_json, write_json
from utils.runtime import Runtime
from utils.training.engine import Fit

LAYOUT = read_json(PAPER)
DATA = {
    "dataset": "CUB200",
    "sample_num": "",
    "classes": [str(label) for label in range(10)],
    "image_size": 64,
}


def save(path, epoch, lr=0.01, **facts):
    """Write a checkpoint with an optimiser, as the scripts do."""
    net = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    cpu = Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)
    checkpoint.save(path, Fit(net, net, optimizer, cpu.grad_scaler(), cpu).state(epoch, **facts))
    return str(path)


def variance(path, instability=0.5, source=None, **var):
    write_json(path, {"images": 9, "instability": instability, "var": var, "source": source or {}})


def fill(run, name):
    return read_table(name, LAYOUT["tables"][name], Results(run), LAYOUT["settings"])


def by_title(table):
    """The rows of a table as text, by the title that they begin with."""
    head, *body = tables.lines(table)
    return head, {line[0]: dict(enumerate(line)) for line in body}
