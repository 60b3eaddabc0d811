import pytest
import torch
from torch import nn

from tests.unit.step_options import parsed
from utils import checkpoint, opening
from utils.runtime import Runtime

# --- the run


def test_a_run_starts_as_the_options_say(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = opening.start(parsed("--seed", "7", "--amp", "bf16", "--compile", "--device_ids", "[9]"))
    assert found == Runtime(torch.device("cpu"), (), 0, 1, torch.bfloat16, True, 7)
    assert "though 9 was asked for: running on the CPU" in capsys.readouterr().out


# --- what trains


def test_the_optimiser_is_the_options_over_what_is_trained():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    words = ["--lr", "0.25", "--momentum", "0.7", "--wd", "0.01"]
    found = opening.optimizer(parsed(*words), model)
    assert isinstance(found, torch.optim.SGD)
    assert [id(parameter) for parameter in found.param_groups[0]["params"]] == [id(model.weight)]
    assert [found.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [0.25, 0.7, 0.01]
    assert isinstance(opening.optimizer(parsed("--optim", "Adam"), model), torch.optim.Adam)


def test_a_fit_has_all_that_moves_the_model(cpu):
    model = nn.Linear(2, 3)
    fit = opening.fit(parsed("-p", "4"), model, cpu)
    assert fit.net is model and fit.model is model and fit.runtime is cpu
    assert fit.print_freq == 4
    assert not fit.scaler.is_enabled()
    assert fit.optimizer.defaults["lr"] == 0.5


def test_every_epoch_has_its_rate():
    assert opening.rates(parsed()) == pytest.approx([0.5, 0.05, 0.005])
    assert opening.rates(parsed(), 0.1) == pytest.approx([0.1, 0.01, 0.001])
    assert opening.rates(parsed("--logspace", "0", "--epoch_step", "2", "--decay_factor", "0.5")) == [0.5, 0.5, 0.25]


def test_a_run_goes_on_where_its_checkpoint_stopped(cpu, tmp_path, capsys):
    path = tmp_path / "c.pth.tar"
    fit = opening.fit(parsed(), nn.Linear(2, 3), cpu)
    fit.net(torch.ones(1, 2)).sum().backward()
    fit.optimizer.step()
    checkpoint.save(path, fit.state(2))
    state = checkpoint.load(path)

    again = opening.fit(parsed(), nn.Linear(2, 3), cpu)
    assert opening.first_epoch(parsed(), again, state, path) == 2
    assert capsys.readouterr().out == f"going on after epoch 2 of 3: {path}\n"
    momentum = [entry["momentum_buffer"] for entry in again.optimizer.state_dict()["state"].values()]
    assert momentum and all(buffer.any() for buffer in momentum)

    longer = state | {"settings": {"epochs": 2}}
    assert opening.first_epoch(parsed(), again, longer, path) == 2
    assert capsys.readouterr().out == f"going on after epoch 2 of 3: {path}, which was to end after 2\n"
    assert opening.first_epoch(parsed(), again, state, path, 6) == 2  # of a step with a second stage
    assert capsys.readouterr().out == f"going on after epoch 2 of 6: {path}\n"

    assert opening.first_epoch(parsed("--start_epoch", "0"), again, state, path) == 0
    assert "after epoch 0 of 3" in capsys.readouterr().out
    assert opening.first_epoch(parsed("--epochs", "2"), again, state, path) == 2  # nothing is left to do
    assert capsys.readouterr().out == ""


def test_a_new_run_begins_at_the_beginning(cpu, capsys):
    fit = opening.fit(parsed(), nn.Linear(2, 3), cpu)
    assert opening.first_epoch(parsed(), fit, {}, None) == 0
    args = parsed()
    del args.start_epoch  # which a series and a compression do not have
    assert opening.first_epoch(args, fit, {}, None) == 0
    assert opening.first_epoch(parsed("--start_epoch", "2"), fit, {}, None) == 2
    assert capsys.readouterr().out == ""
