"""The books of a run: what it goes on from, what is due, what is the best, what is saved."""

import os

import pytest
import torch
from torch import nn

from tests.mistakes import check_line, refused
from utils import checkpoint, remarks
from utils.files import claim, earlier
from utils.runs import RunLog, read_metrics
from utils.training.engine import Fit
from utils.training.run import Run

SETTINGS = {"epochs": 3, "lr": 0.1}


@pytest.fixture
def make(cpu, tmp_path):
    def made(**options):
        chosen = {"epochs": 3, "settings": SETTINGS, "log_folder": tmp_path / "log"} | options
        return Run(chosen.pop("path", tmp_path / "last.pth.tar"), runtime=cpu, **chosen)

    return made


@pytest.fixture
def fit(cpu):
    def made():
        model = nn.Linear(2, 3)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        return Fit(model, model, optimizer, cpu.grad_scaler(), cpu)

    return made


def train(run, fit, accuracies, **facts):
    """Write and save as a script does; give the numbers of the epochs."""
    epochs = []
    with run:
        for epoch in run.epochs():
            epochs.append(epoch)
            if run.is_due_to_validate(epoch):
                run.measured(accuracies[epoch])
            run.write(epoch, {"Loss": 1.0})
            run.save(epoch, fit.state(epoch + 1, **facts, **run.accuracies))
    return epochs


def test_last_and_best_epoch_are_saved(make, fit, tmp_path):
    best_path = tmp_path / "best.pth.tar"
    run = make(best_path=best_path)
    assert train(run, fit(), [50.0, 70.0, 60.0], arch="toy") == [0, 1, 2]
    last, best = checkpoint.load(run.path), checkpoint.load(best_path)
    assert (last["epoch"], last["acc1"], last["best_acc1"]) == (3, 60.0, 70.0)
    assert (best["epoch"], best["acc1"], best["best_acc1"]) == (2, 70.0, 70.0)
    assert last["settings"] == SETTINGS and last["history"] == [] and "torch" in last["versions"]
    assert last["arch"] == best["arch"] == "toy"
    assert [line["epoch"] for line in read_metrics(run.log_path)] == [1, 2, 3]


def test_an_epoch_without_validation_is_not_the_best_one(make, fit, tmp_path):
    best_path = tmp_path / "best.pth.tar"
    train(make(best_path=best_path, epochs=4, val_epoch=2), fit(), [None, 50.0, None, 40.0])
    assert checkpoint.load(best_path)["epoch"] == 2


def test_a_run_goes_on_where_its_checkpoint_stopped(make, fit, capsys):
    train(make(epochs=2, settings={"epochs": 2}), fit(), [50.0, 40.0])
    capsys.readouterr()
    run, again = make(resume="auto", extendable=True), fit()
    again.optimizer.state.clear()
    assert (run.resumed, run.start_epoch, run.acc1, run.best_acc1) == (run.path, 2, 40.0, 50.0)
    run.restore(again)
    check_line(capsys.readouterr().out, "2 of 3", run.path)
    momentum = [entry["momentum_buffer"] for entry in again.optimizer.state.values()]
    assert momentum and all(buffer.any() for buffer in momentum)
    assert train(run, again, [0, 0, 45.0]) == [2]
    state = checkpoint.load(run.path)
    assert (state["epoch"], state["acc1"], state["best_acc1"]) == (3, 45.0, 50.0)
    assert state["history"] == [{"epoch": 2, "settings": {"epochs": 2}}]
    assert [line["epoch"] for line in read_metrics(run.log_path)] == [1, 2, 3]


def test_a_finished_run_says_so_and_nothing_else(make, fit, capsys):
    train(make(), fit(), [1.0, 2.0, 3.0])
    capsys.readouterr()
    run = make(resume="auto")
    run.restore(fit())
    assert run.is_finished and not list(run.epochs()) and not capsys.readouterr().out


@pytest.mark.parametrize("other", ["another place", "best is gone"])
def test_the_best_of_files_that_are_not_there_is_forgotten(make, fit, tmp_path, other):
    best_path = tmp_path / "best.pth.tar"
    first = make(best_path=best_path)
    train(first, fit(), [90.0, 1.0, 1.0])
    best_path.unlink()
    place = {"path": tmp_path / "other.pth.tar", "resume": str(first.path)}
    run = make(
        **(place if other == "another place" else {"best_path": best_path, "resume": "auto"})
    )
    assert (run.start_epoch, run.acc1, run.best_acc1) == (3, 1.0, 0.0)


def test_a_damaged_best_is_named_and_replaced_by_the_best_to_come(make, fit, tmp_path, capsys):
    best_path = tmp_path / "best.pth.tar"
    train(make(best_path=best_path, epochs=2, settings={"epochs": 2}), fit(), [90.0, 1.0])
    os.truncate(best_path, 100)
    remarks.forget()
    capsys.readouterr()
    run = make(best_path=best_path, resume="auto", extendable=True)
    check_line(capsys.readouterr().out, best_path)
    assert (run.best_acc1, run.has_best) == (0.0, False)
    train(run, fit(), [0, 0, 5.0])
    assert checkpoint.load(best_path)["acc1"] == 5.0


def test_the_checkpoints_before_the_last_are_kept(make, fit):
    path = make().path
    for keep, epochs in ((1, []), (2, [2]), (3, [2, 1])):
        train(make(keep=keep, restart=True), fit(), [1.0, 2.0, 3.0])
        kept = [checkpoint.load(earlier(path, age))["epoch"] for age in range(1, keep)]
        assert kept == epochs and not earlier(path, keep).exists()


def test_another_first_epoch_may_be_asked_for(make, fit):
    train(make(), fit(), [1.0, 2.0, 3.0])
    run = make(resume="auto", start_epoch=1)
    run.restore(fit())
    assert list(run.epochs()) == [1, 2]
    assert make(path=run.path.with_name("new.pth.tar"), start_epoch=2).start_epoch == 2
    with refused("--start_epoch 3", "--epochs 3"):
        make(start_epoch=3, resume="auto")


def test_weights_without_training_state_are_no_run(make, fit, tmp_path):
    checkpoint.save(
        tmp_path / "weights.pth.tar", {"state_dict": fit().model.state_dict(), "epoch": 2}
    )
    run = make(resume=str(tmp_path / "weights.pth.tar"))
    with refused("weights.pth.tar", "--weights"):
        run.restore(fit())


def test_after_each_stage_everything_is_due(make, monkeypatch):
    run = make(epochs=3, stages=2, val_epoch=2, save_epoch=5)
    with run:
        assert [epoch for epoch in run.epochs() if run.is_due_to_validate(epoch)] == [1, 2, 4, 5]
        assert [epoch for epoch in run.epochs() if run.is_due_to_save(epoch)] == [2, 5]
        monkeypatch.setattr(RunLog, "overdue", property(lambda _: True))
        assert [epoch for epoch in run.epochs() if run.is_due_to_save(epoch)] == list(range(6))


def test_what_another_run_left_or_writes_is_refused_early(make, fit):
    run = make()
    train(run, fit(), [1.0, 2.0, 3.0])
    with refused("last.pth.tar", "lr", "0.1", "0.2", "--save"):
        make(settings={"epochs": 3, "lr": 0.2}, elsewhere="--save")
    assert make(settings={"epochs": 3, "lr": 0.2}, restart=True).resumed is None
    with claim(run.log_path.parent), refused(run.log_path.parent, "--save"):
        make(elsewhere="--save", resume="auto")


def test_an_interrupted_run_says_what_goes_on_with_it(make, fit, capsys):
    run = make(again="the same command")
    with pytest.raises(KeyboardInterrupt), run:
        run.save_last(0, fit().state(0))
        raise KeyboardInterrupt
    words = "holds the first 0 of 3 epochs; the same command goes on with it"
    assert f"interrupted: {run.path} {words}" in capsys.readouterr().out


def test_other_processes_write_nothing(make, cpu, fit, tmp_path, monkeypatch):
    monkeypatch.setattr(type(cpu), "is_main", property(lambda _: False))
    assert train(make(best_path=tmp_path / "best.pth.tar"), fit(), [1.0, 2.0, 3.0]) == [0, 1, 2]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
