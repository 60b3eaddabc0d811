import pytest
import torch
from torch import nn

from tests.mistakes import check_some_line, refused
from tests.unit.step_options import parsed
from utils import checkpoint, opening
from utils.option_groups import OutputOptions, RunOptions, TrainingOptions
from utils.runtime import Runtime

# --- the run


def test_a_run_starts_as_the_options_say(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("--seed", "7", "--amp", "bf16", "--compile", "--device_ids", "[9]")
    found = opening.start(RunOptions.of(parsed(*words)))
    assert found == Runtime(torch.device("cpu"), (), 0, 1, torch.bfloat16, True, 7)
    check_some_line(capsys.readouterr().out, "9", "CPU")


# --- what trains


def training(*words):
    return TrainingOptions.of(parsed(*words))


def test_the_optimiser_is_the_options_over_what_is_trained():
    model = nn.Linear(2, 3)
    model.bias.requires_grad_(False)
    words = ["--lr", "0.25", "--momentum", "0.7", "--wd", "0.01"]
    found = opening.optimizer(training(*words), model)
    assert isinstance(found, torch.optim.SGD)
    assert [id(parameter) for parameter in found.param_groups[0]["params"]] == [id(model.weight)]
    assert [found.defaults[name] for name in ("lr", "momentum", "weight_decay")] == [
        0.25,
        0.7,
        0.01,
    ]
    assert isinstance(opening.optimizer(training("--optim", "Adam"), model), torch.optim.Adam)


def test_a_fit_has_all_that_moves_the_model(cpu):
    model = nn.Linear(2, 3)
    fit = opening.fit(training("-p", "4"), model, cpu)
    assert fit.net is model and fit.model is model and fit.runtime is cpu
    assert fit.print_freq == 4
    assert not fit.scaler.is_enabled()
    assert fit.optimizer.defaults["lr"] == 0.5


def test_every_epoch_has_its_rate():
    assert opening.rates(training()) == pytest.approx([0.5, 0.05, 0.005])
    assert opening.rates(training(), 0.1) == pytest.approx([0.1, 0.01, 0.001])
    assert opening.rates(
        training("--logspace", "0", "--epoch_step", "2", "--decay_factor", "0.5")
    ) == [0.5, 0.5, 0.25]


def test_a_run_is_opened_as_the_options_say(cpu, tmp_path):
    path = tmp_path / "model_checkpoints/checkpoint_toy_sd0.pth.tar"

    def opened(*words, settings=None, **others):
        args = parsed(*words)
        output = OutputOptions.of(args, out=str(tmp_path), **others)
        return opening.run(output, TrainingOptions.of(args), cpu, path, settings or {})

    run = opened("--start_epoch", "2")
    assert (run.start_epoch, run.log_path) == (2, tmp_path / "logs/toy_sd0/metrics.jsonl")
    path.parent.mkdir()
    checkpoint.save(path, {"settings": {"epochs": 2}})
    assert opened("--logspace", "0", settings={"epochs": 3}).resumed is None
    assert opened("--logspace", "0", settings={"epochs": 3}, resume="auto").resumed == path
    with refused("epochs", "2", "3", "--suffix"):  # every rate would change
        opened("--logspace", "1", settings={"epochs": 3})


def test_an_output_folder_that_cannot_be_written_to_is_refused(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with refused(tmp_path / "file"):
        opening.start(RunOptions.of(parsed()), OutputOptions(str(tmp_path / "file")))
