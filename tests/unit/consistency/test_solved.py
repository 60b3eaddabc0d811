"""Solved Trans-Nets of a comparison: what they find that no linear layer does, and what is kept."""

import random
import signal

import numpy as np
import pytest
import torch
from torch import nn

import consistency
from consistency import compared_in_memory, solved
from consistency.compared import ComparedImages, ComparedLayer, ComparedNet, LinearSource
from consistency.comparison import Comparing, Effort, Work
from consistency.convergence import Convergence
from consistency.solved import NULL, TRUE, SolvedFits, Thorough
from tests.mistakes import refused
from utils import stopping
from utils.kept import Kept
from utils.progress import Meter
from utils.training.engine import Averages

IMAGES, CHANNELS, SIDE, CLASSES = 240, 3, 1, 2
LABELS = torch.arange(IMAGES) % CLASSES
THOROUGH = Thorough(layers=2, steps=40, batch_size=32)
END = Convergence(100, 2 * CHANNELS, "at its end", 0.01, 0.0, 0.0, ())


def layer(maps: torch.Tensor, name: str) -> ComparedLayer:
    """A layer at its depth, of which half of the images are fitted."""
    half = IMAGES // 2
    return ComparedLayer(name, None, 1.0, tuple(maps.shape[1:]), maps[:half], maps[half:], name)


@pytest.fixture(scope="module")
def layers():
    """x, and |x|: of a symmetric x no linear layer gives its size, and two ReLUs give it whole."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=generator)
    return layer(x, "x"), layer(x.abs(), "|x|")


def solved_fits(layers, kept=None):
    halves = LABELS.split(IMAGES // 2)
    source = LinearSource(layers[0], (SIDE, SIDE), 1)
    meter = Meter("test", quiet=True)
    return SolvedFits(source, layers[1], halves, THOROUGH, {"of": "x"}, Kept(kept), meter)


def share_left(fitted):
    left = fitted.errors.sum(0)
    return left[1] / left[0]


def test_a_trans_net_finds_what_no_linear_layer_does_and_its_null_nothing(layers):
    fits = solved_fits(layers)
    fitted, null = fits.fit(TRUE, END), fits.fit(NULL, END)
    assert share_left(fitted) < 0.2  # a linear layer leaves all of |x|
    assert share_left(null) > 0.9
    assert fitted.record["steps"] == END.steps and not fitted.record["linear"]["taken"]
    assert fitted.record["state"] == END.state


def test_what_is_shown_of_a_fit_is_what_its_errors_are_of(layers):
    fits, shown = solved_fits(layers), []
    fitted = fits.fit(TRUE, END)
    fits.show(fitted.trans_net, lambda *batch: shown.append(batch))
    target, predicted = (torch.cat(rows) for rows in list(zip(*shown))[1:])
    assert [batch[0].start for batch in shown] == [*range(0, IMAGES // 2, 32)]
    assert torch.equal(target, layers[1].held_out.flatten(2).mT)
    left = (target - predicted).flatten(0, 1).var(0, correction=0).sum()
    of_target = target.flatten(0, 1).var(0, correction=0).sum()
    assert float(left / of_target) == pytest.approx(share_left(fitted), rel=1e-4)


def test_a_search_goes_on_behind_its_last_trial(layers, tmp_path, monkeypatch):
    whole = solved_fits(layers, tmp_path / "whole").find_end()
    runs, run = [], solved.Fitting.run

    def interrupted(fitting, label="fit", remains=None):
        runs.append(label)
        if len(runs) == 2:
            raise KeyboardInterrupt
        return run(fitting, label, remains)

    monkeypatch.setattr(solved.Fitting, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        solved_fits(layers, tmp_path / "part").find_end()
    assert len(list((tmp_path / "part").glob("trial_*"))) == 1
    end = solved_fits(layers, tmp_path / "part").find_end()
    assert end == whole and len(runs) == len(whole.trials) + 1


def test_a_search_and_a_fit_go_on_within_a_trial_to_the_bit(layers, tmp_path, monkeypatch):
    """A signal comes in the 60th step, which is in the second trial, and in the 30th of the fit."""
    steps, left = [], []

    def add(averages, metrics, samples):
        steps.append(1)
        original(averages, metrics, samples)

    original = Averages.add
    monkeypatch.setattr(Averages, "add", add)
    monkeypatch.setattr(stopping, "asked", lambda: signal.SIGTERM if len(steps) in left else 0)

    def taken(fits, work):
        """Do some work, interrupted or not; give its result, and the steps that it took."""
        steps.clear()
        for number in left:
            with pytest.raises(KeyboardInterrupt):
                work(fits)
            assert len(steps) == number
        left.clear()
        return work(fits), len(steps)

    whole, torn = (solved_fits(layers, tmp_path / name) for name in ("whole", "torn"))
    end, of_whole = taken(whole, SolvedFits.find_end)
    left[:] = [60]
    assert taken(torn, SolvedFits.find_end) == (end, of_whole)

    def fit(fits):
        return fits.fit(TRUE, END)

    fitted, of_whole = taken(whole, fit)
    left[:] = [30]
    again, of_torn = taken(torn, fit)
    assert of_torn == of_whole and np.array_equal(again.errors, fitted.errors)
    for name, weights in fitted.trans_net.state_dict().items():
        assert torch.equal(again.trans_net.state_dict()[name], weights)
    assert not list((tmp_path / "torn").glob("unfinished*"))


def test_a_fit_is_kept_by_what_it_was_made_of(layers, tmp_path, monkeypatch):
    first = solved_fits(layers, tmp_path).fit(TRUE, END)
    monkeypatch.setattr(solved.Fitting, "run", lambda *_: pytest.fail("fitted again"))
    again = solved_fits(layers, tmp_path).fit(TRUE, END)
    assert np.array_equal(first.errors, again.errors) and again.record == dict(first.record)
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        solved_fits(layers, tmp_path).fit(NULL, END)


def test_the_meter_is_told_what_fits_took_and_nothing_is_left(layers, tmp_path):
    for _ in range(2):  # computed, then read
        fits = solved_fits(layers, tmp_path)
        fits.meter.expect(fits.usual_flops())
        end = fits.find_end()
        fits.fit(TRUE, end), fits.fit(NULL, end)
        assert fits.meter.done == pytest.approx(fits.meter.total)


def test_a_comparison_has_both_and_what_depth_gains(layers):
    images = ComparedImages(*LABELS.split(IMAGES // 2), ["a", "b"])
    logits = torch.randn(IMAGES // 2, CLASSES)
    nets = [ComparedNet(name, name, {}, logits, [of]) for name, of in zip("AB", layers)]
    effort = Effort(shuffles=1, resamples=50, similar_permutations=0)
    (pair,) = Comparing(*nets, images, effort, Work(), thorough=THOROUGH).pairs()
    forth = pair["forth"]
    assert forth["instability"]["value"] > 0.9
    assert forth["trans_net"]["instability"]["value"] < 0.5
    assert forth["trans_net"]["consistency"]["low"] > 0.3
    linear, deep = forth["spectrum"]
    assert (linear["layers"], deep["layers"]) == (1, 2)
    assert deep["gain"] == pytest.approx(
        forth["instability"]["value"] - forth["trans_net"]["instability"]["value"], abs=1e-6
    )
    assert deep["intervals"]["gain"]["low"] > 0.3
    # |x| forgets the sign, which no map finds again.
    assert pair["shared_by_trans_nets"]["value"] < 0.3
    assert forth["trans_net"]["fit"]["record"]["trials"]


def test_from_python_the_callers_random_numbers_stay(monkeypatch):
    monkeypatch.setattr(compared_in_memory, "Thorough", _short)
    torch.manual_seed(0)
    pooled = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, CLASSES)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *pooled)
    batches = [(torch.randn(80, 3, 8, 8), torch.arange(80) % CLASSES)]
    states = random.getstate(), torch.get_rng_state()
    report = consistency.compare(
        net, net, batches, layers=["1"], resamples=50, thorough=True, depth=2
    )
    assert states[0] == random.getstate() and torch.equal(states[1], torch.get_rng_state())
    rows = report.rows()
    assert [row["trans_net_layers"] for row in rows] == [2, 2]
    assert all(row["trans_net_state"] for row in rows)
    assert "Trans-Nets" in str(report)
    with refused("quick", "depth=1"):
        consistency.compare(net, net, batches, layers=["1"], thorough=True, depth=1)


def _short(layers, **others):
    return Thorough(layers, steps=5, **others)
