"""Every step runs on an accelerator: its tensors keep to one device, and it seldom waits.

The waits of a step of training and of a batch of a pass are those of `Waits`; a whole run waits
besides where it begins, where a system of equations is solved, and where a file is written.
"""

import pytest
import torch

from tests.accelerator import simulated, steps
from utils.runtime import Runtime
from utils.training import engine

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is the accelerator here"),
]
BATCH = 4  # of 24 images: six steps an epoch
# Steps that differ under --amp, and those before them
LOW = (
    *("Training", "Training, Adam", "ConvOutput", "Training_TransNet, released", "Pruning"),
    *("DCM", "HSAKD baseline"),
)


def test_every_step_gives_the_numbers_of_the_cpu_to_the_bit_and_seldom_waits(photos, tmp_path):
    # One test, so that the steps run once: each needs what those before it wrote.
    steps.run(tmp_path / "cpu", photos, batch=BATCH, on_cpu=True)
    all_waits = steps.run(tmp_path / "simulated", photos, batch=BATCH)
    assert list(all_waits) == list(steps.STEPS)
    for waits in all_waits.values():
        check_waits(waits)
    assert len(steps.compared(tmp_path / "simulated")) > 100
    assert steps.other_numbers(tmp_path / "cpu", tmp_path / "simulated") == []


def test_mixed_precision_computes_the_same_as_on_the_cpu(photos, tmp_path):
    run = {"batch": BATCH, "amp": "bf16", "only": LOW}
    steps.run(tmp_path / "cpu", photos, on_cpu=True, **run)
    for waits in steps.run(tmp_path / "simulated", photos, **run).values():
        check_waits(waits)
    assert steps.other_numbers(tmp_path / "cpu", tmp_path / "simulated") == []


@pytest.mark.parametrize("fused_on", [("cpu", "simulated"), ("cpu",)])
def test_float16_waits_at_most_once_a_step(photos, tmp_path, monkeypatch, fused_on):
    (waits,) = steps.run(
        tmp_path / "run", photos, batch=BATCH, amp="fp16", only=["Training"], fused_on=fused_on
    ).values()
    assert waits.steps == 6
    of_steps = [times for times in waits.in_training.values() if times >= waits.steps]
    # A fused optimiser leaves the scaler's decision to the device.
    assert of_steps == ([] if simulated.NAME in fused_on else [6])


def test_a_device_without_float64_serves_what_adds_up_in_it(photos, tmp_path):
    only = steps.STEPS[: steps.STEPS.index("Variance") + 1]
    results = steps.run(tmp_path / "run", photos, batch=8, only=only, has_float64=False)
    assert all(waits.on_device for waits in results.values())


def test_a_wait_in_every_step_is_seen(photos, tmp_path, monkeypatch):
    def add(averages, metrics, samples):
        metrics["Loss"].item()
        original(averages, metrics, samples)

    original = engine.Averages.add
    monkeypatch.setattr(engine.Averages, "add", add)
    (waits,) = steps.run(tmp_path / "run", photos, batch=BATCH, only=["Training"]).values()
    here = {line for line in waits.by_line if line.startswith("tests/accelerator/test_steps.py")}
    assert len(here) == 1 and waits.in_training[here.pop()] == waits.steps == 6
    with pytest.raises(AssertionError):
        check_waits(waits)


def test_images_that_stay_on_the_cpu_are_seen(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(Runtime, "to_device", lambda runtime, batch: tuple(batch))
    with pytest.raises(RuntimeError, match="same device"):
        steps.run(tmp_path / "run", photos, batch=BATCH, only=["Training"])


def check_waits(waits):
    """A step of training waits for nothing, a batch of a pass once at most."""
    assert {"aten::convolution", "aten::mm", "aten::addmm"} & waits.on_device
    assert max(waits.in_training.values(), default=0) <= waits.steps / 3
    assert sum(waits.in_batches.values()) <= waits.batches - waits.steps
