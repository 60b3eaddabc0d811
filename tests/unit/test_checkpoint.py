import functools
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from utils import checkpoint
from utils.errors import InputError


def trained(optim=torch.optim.SGD, **options):
    """A small network after two steps, with its optimiser and scaler."""
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = optim(net.parameters(), lr=0.1, **options)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.ones(4, 3)).square().mean().backward()
        optimizer.step()
    return net, optimizer, torch.amp.GradScaler("cpu", enabled=False)


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
def test_both_formats_are_read(tmp_path, zipped):
    state = {"epoch": 3, "arch": "alexnet", "best_acc1": torch.tensor(57.5), "state_dict": {"w": torch.arange(6.0)}}
    path = tmp_path / "old.pth.tar"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    loaded = checkpoint.load(str(path))
    assert torch.equal(loaded.pop("state_dict")["w"], torch.arange(6.0))
    assert loaded == {"epoch": 3, "arch": "alexnet", "best_acc1": torch.tensor(57.5)}


def test_a_failed_save_leaves_the_file_before(tmp_path):
    path = tmp_path / "new" / "net.pth.tar"
    checkpoint.save(path, {"epoch": 1})
    with pytest.raises((AttributeError, pickle.PicklingError, TypeError)):
        checkpoint.save(path, {"epoch": 2, "function": lambda: None})
    assert checkpoint.load(path) == {"epoch": 1}
    assert [entry.name for entry in path.parent.iterdir()] == ["net.pth.tar"]


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.1, 0.3, 0.5, 0.8, 0.95, 0.999])
def test_a_truncated_file_is_named(tmp_path, zipped, share):
    path = tmp_path / "cut.pth.tar"
    state = {"state_dict": {f"layer{i}.weight": torch.randn(20, 20) for i in range(5)}, "epoch": 3}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(share * path.stat().st_size))
    with pytest.raises(InputError, match=r"cut\.pth\.tar is truncated or not a checkpoint; make or download it again"):
        checkpoint.load(path)


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>not found</html>", b"\x80\x02", bytes(1000)])
def test_something_else_is_named(tmp_path, content):
    (tmp_path / "page.pth.tar").write_bytes(content)
    with pytest.raises(InputError, match=r"page\.pth\.tar is truncated or not a checkpoint"):
        checkpoint.load(tmp_path / "page.pth.tar")


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False], ids=["today", "PyTorch 1.0"])
def test_code_is_refused_and_not_run(tmp_path, zipped):
    path = tmp_path / "evil.pth.tar"
    torch.save({"epoch": 1, "more": Runs(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"holds more than tensors and plain values \(.*mkdir\) and is refused"):
        checkpoint.load(path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_network_is_refused_with_advice(tmp_path):
    torch.save({"model": nn.Linear(2, 2)}, tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"Linear\) and is refused, .*; save its state_dict alone"):
        checkpoint.load(tmp_path / "whole.pth")


def test_a_tensor_alone_is_no_checkpoint(tmp_path):
    torch.save(torch.ones(3), tmp_path / "tensor.pth")
    with pytest.raises(InputError, match="holds a Tensor, a checkpoint is a dictionary"):
        checkpoint.load(tmp_path / "tensor.pth")


def test_a_missing_file_names_its_neighbours(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint at .*a\.pth\.tar; train it first or correct the path"):
        checkpoint.load(tmp_path / "a.pth.tar")
    for name in "bcdef":
        checkpoint.save(tmp_path / f"{name}.pth.tar", {})
    with pytest.raises(InputError, match=r"that folder has b\.pth\.tar, c\.pth\.tar, d\.pth\.tar, e\.pth\.tar, …$"):
        checkpoint.load(tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match="no checkpoint at"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(("optim", "options"), [(torch.optim.SGD, {"momentum": 0.9}), (torch.optim.Adam, {})])
def test_training_goes_on_where_it_stopped(tmp_path, optim, options):
    net, optimizer, scaler = trained(optim, **options)
    state = checkpoint.training_state(net, optimizer, scaler, 7, arch="linear", acc1=3.5)
    assert (state["epoch"], state["arch"], state["acc1"]) == (7, "linear", 3.5)
    checkpoint.save(tmp_path / "c.pth.tar", state)
    loaded = checkpoint.load(tmp_path / "c.pth.tar")
    again = nn.Linear(3, 2)
    again.load_state_dict(loaded["state_dict"])
    fresh = optim(again.parameters(), lr=9.0, **options)
    assert checkpoint.restore_training(loaded, "c.pth.tar", fresh, scaler) == 7
    for model, used in ((net, optimizer), (again, fresh)):
        used.zero_grad()
        model(torch.arange(3.0)[None]).sum().backward()
        used.step()
    assert torch.equal(again.weight, net.weight)


def test_weights_alone_and_another_optimiser_cannot_be_resumed():
    net, optimizer, scaler = trained(momentum=0.9)
    state = checkpoint.training_state(net, optimizer, scaler, 1)
    other = torch.optim.SGD([*net.parameters(), nn.Parameter(torch.ones(1))], lr=0.1)
    with pytest.raises(InputError, match=r"w\.pth was trained with another optimiser or other"):
        checkpoint.restore_training(state, "w.pth", other, scaler)
    for missing in ("optimizer", "epoch"):
        rest = {key: value for key, value in state.items() if key != missing}
        with pytest.raises(InputError, match=r"w\.pth holds weights but no training state.*use it as --weights"):
            checkpoint.restore_training(rest, "w.pth", optimizer, scaler)


@pytest.mark.parametrize("momentum", [0, 0.9])
@pytest.mark.parametrize("adam_first", [True, False])
def test_another_kind_of_optimiser_cannot_be_resumed(adam_first, momentum):
    sgd, adam = functools.partial(torch.optim.SGD, momentum=momentum), torch.optim.Adam
    first, second = (adam, sgd) if adam_first else (sgd, adam)
    net, optimizer, scaler = trained(first)
    state = checkpoint.training_state(net, optimizer, scaler, 1)
    with pytest.raises(InputError, match="was trained with another optimiser"):
        checkpoint.restore_training(state, "w.pth", second(net.parameters(), lr=0.1), scaler)


@pytest.mark.parametrize("optim", [torch.optim.SGD, torch.optim.Adam])
def test_the_optimiser_of_an_older_pytorch_is_resumed(optim):
    net, optimizer, scaler = trained(optim)
    state = checkpoint.training_state(net, optimizer, scaler, 4)
    known = {"params", "lr", "betas", "eps", "weight_decay", "amsgrad", "momentum", "dampening", "nesterov"}
    state["optimizer"]["param_groups"] = [
        {key: value for key, value in group.items() if key in known} for group in state["optimizer"]["param_groups"]
    ]
    fresh = optim(net.parameters(), lr=0.5)
    assert checkpoint.restore_training({**state, "scaler": None}, "w.pth", fresh, scaler) == 4
    net(torch.ones(1, 3)).sum().backward()
    fresh.step()


def test_what_resume_means(tmp_path):
    own = tmp_path / "own.pth.tar"
    assert checkpoint.to_resume("", own) is None
    assert checkpoint.to_resume("auto", own) is None
    assert checkpoint.to_resume("other.pth.tar", own) == Path("other.pth.tar")
    own.touch()
    assert checkpoint.to_resume("auto", own) == own
    assert checkpoint.to_resume("", own) is None


def test_own_progress_is_of_the_same_command(tmp_path):
    own, facts = tmp_path / "own.pth.tar", {"lr": 0.1, "teacher": None, "sweep": [1, 2]}
    assert checkpoint.own_progress(own, "pruning", facts) == {}
    state = {"epoch": 3, "pruning": facts}
    checkpoint.save(own, state)
    assert checkpoint.own_progress(own, "pruning", dict(facts)) == state
    with pytest.raises(InputError, match=r"own\.pth\.tar is of another run, with lr 0\.1 instead of 0\.2; repeat that"):
        checkpoint.own_progress(own, "pruning", facts | {"lr": 0.2})
    with pytest.raises(InputError, match=r"with lr None instead of 0\.1; .* choose another --suffix"):
        checkpoint.own_progress(own, "born_again", facts)
