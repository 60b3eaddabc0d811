"""What one process finds, two find under torchrun: losses, weights, sums, and who goes first."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from utils import runtime

ROOT = Path(runtime.__file__).parents[1]

TWO_PROCESSES = """
import atexit, copy, dataclasses, json, os, sys, time, torch
from torch import nn
from utils.training.engine import Fit, evaluate, make_optimizer, train_one_epoch
from utils.data.loaders import make_loader
from utils.command import command
from utils.runtime import start

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 13
    def __getitems__(self, indices):
        return torch.tensor(indices)[:, None] / 4, torch.tensor(indices)

def step(net, x, _indices):
    y = net(x)
    return (y - x.square()).square().mean(), {"output": y.mean()}

if "RANK" in os.environ:
    atexit.register(os.abort)  # what threads that torch leaves behind may do, seldom, as the interpreter ends

@command
def main(argv=None):
    runtime = start([], None, 3)
    runtime.say("said")
    def loader(**options):
        return make_loader(Rows(), 4 // runtime.world_size, rank=runtime.rank, world_size=runtime.world_size, **options)
    torch.manual_seed(runtime.rank)  # the wrapper must give every process the weights of the first
    model = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
    net = runtime.parallel(model)
    before = evaluate(net, loader(), step, runtime)
    optimizer = make_optimizer("SGD", model.parameters(), lr=0.05, momentum=0.9, weight_decay=0)
    rows = loader(shuffle=True, seed=3)
    rows.batch_sampler.length = 12  # as many for both, so that one process takes the same steps
    train = train_one_epoch(Fit(net, model, optimizer, runtime.grad_scaler(), runtime), rows, step, 2)
    frozen = runtime.parallel(nn.Linear(1, 1).requires_grad_(False))
    # BatchNorm sees other samples in every process; what is measured is what the first one would save.
    normed = nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    net_normed = runtime.parallel(normed)
    sgd = make_optimizer("SGD", normed.parameters(), lr=0.05, momentum=0, weight_decay=0)
    train_one_epoch(Fit(net_normed, normed, sgd, runtime.grad_scaler(), runtime), rows, step, 0)
    saved = copy.deepcopy(normed)
    with runtime.main_first():
        if runtime.is_main:
            time.sleep(0.5)  # the others would be here long before
            open(f"{argv[0]}.made", "w").close()
        main_was_first = os.path.exists(f"{argv[0]}.made")
    alone = dataclasses.replace(runtime, rank=0, world_size=1)
    found = {
        "normed": evaluate(net_normed, loader(), step, runtime),
        "saved": evaluate(saved, make_loader(Rows(), 4), step, alone),
        "before": before, "train": train, "after": evaluate(net, loader(), step, runtime),
        "weights": [p.flatten().tolist() for p in model.parameters()],
        "sum": runtime.sum(torch.tensor([float(runtime.rank), 1.0])).tolist(),
        "gather": runtime.gather(("rank", runtime.rank)),
        "wrapped": [type(net).__name__, type(frozen).__name__],
        "main_was_first": main_was_first,
        "drawn": float(torch.rand(())),
    }
    runtime.barrier()
    with open(f"{argv[0]}.{runtime.rank}", "w") as file:
        json.dump(found, file)

main(sys.argv[1:])
"""


def test_two_processes_find_what_one_finds(tmp_path, monkeypatch, capsys):
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["two.py", str(tmp_path / "one")])
    runpy.run_path(str(script))
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outputs = [capsys.readouterr().out, done.stdout]
    one, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one.0", "two.0", "two.1")
    )

    assert [output.count("said\n") for output in outputs] == [1, 1]
    assert ", 2 processes, seed 3" in outputs[1] and "processes" not in outputs[0]
    assert first["sum"] == second["sum"] == [1.0, 2.0]
    assert first["gather"] == second["gather"] == [["rank", 0], ["rank", 1]]
    assert first["wrapped"] == ["DistributedDataParallel", "Linear"]
    assert first["drawn"] != second["drawn"]
    assert one["main_was_first"] and first["main_was_first"] and second["main_was_first"]
    assert first["weights"] == second["weights"]
    assert first["normed"] == second["normed"]
    assert first["normed"] == pytest.approx(first["saved"], rel=1e-5)
    for name in ("before", "train", "after"):
        assert first[name] == second[name]
        assert first[name] == pytest.approx(one[name], rel=1e-5)
    assert one["after"]["Loss"] < one["before"]["Loss"]
