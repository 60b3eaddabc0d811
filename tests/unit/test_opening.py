import pytest
import torch
from torch import nn

from tests.unit.step_options import parsed
from utils import checkpoint, opening
from utils.errors import InputError
from utils.runtime import Runtime

# --- the run


def test_a_run_starts_as_the_options_say(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = opening.start(
        parsed("--seed", "7", "--amp", "bf16", "--compile", "--device_ids", "[9]")
    )
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
    assert [found.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [
        0.25,
        0.7,
        0.01,
    ]
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
    assert opening.rates(
        parsed("--logspace", "0", "--epoch_step", "2", "--decay_factor", "0.5")
    ) == [0.5, 0.5, 0.25]


def test_a_run_is_opened_as_the_options_say(cpu, tmp_path):
    path = tmp_path / "model_checkpoints/checkpoint_toy_sd0.pth.tar"

    def options(*words):
        args = parsed(*words)
        args.out = str(tmp_path)
        return args

    run = opening.run(options("--start_epoch", "2"), cpu, path, {})
    assert (run.start_epoch, run.log_path) == (2, tmp_path / "logs/toy_sd0/metrics.jsonl")
    args = options()
    del args.start_epoch  # which a series and a compression do not have
    assert opening.run(args, cpu, path, {}).start_epoch == 0
    path.parent.mkdir()
    checkpoint.save(path, {"settings": {"epochs": 2}})
    assert opening.run(options("--logspace", "0"), cpu, path, {"epochs": 3}).resumed is None
    with pytest.raises(InputError, match="epochs 2 instead of 3"):  # every rate would change
        opening.run(options("--logspace", "1"), cpu, path, {"epochs": 3})
