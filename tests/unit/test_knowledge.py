"""The table of what students share with their teacher, from planted sums."""

import numpy as np
import pytest
import torch

from consistency.bootstrap import Interval
from consistency.calibration import save_sums
from consistency.moments import ImageMoments
from experiments import knowledge
from experiments.accuracies import Row
from tests.mistakes import refused

IMAGES = 40


def moments(left, generator):
    """A target whose reconstruction leaves about this share of its variance."""
    target, noise = torch.randn(2, IMAGES, 3, 4, 4, generator=generator)
    found = ImageMoments()
    error = (left**0.5) * noise
    found.update((target * (1 - left) ** 0.5)[None], error, torch.arange(IMAGES))
    return found


def plant(run, method, direction, stage, seed, left):
    generator = torch.Generator().manual_seed(seed)
    path = run / "results/knowledge" / method / f"{direction}_{stage}" / f"sd{seed}.npz"
    three = [moments(share, generator) for share in (left, 0.9, 0.1)]
    save_sums(path, *(part.target_and_residual() for part in three))


@pytest.fixture
def run(tmp_path):
    for seed in (0, 1, 2):
        for method, left in (
            ("alone", 0.5),
            ("kd", 0.5 - 1e-3),
            ("hsakd", 0.3),
            ("dcm_partner", 0.2),
        ):
            for stage in (1, 2):
                plant(tmp_path, method, "teacher-student", stage, seed, left)
        plant(tmp_path, "alone", "student-teacher", 1, seed, 0.5)
    return tmp_path


def test_consistencies_are_between_null_and_ceiling_and_differences_are_of_pairs(run):
    cells = {(c.direction, c.method, c.stage): c for c in knowledge.read_cells(run, resamples=300)}
    assert len(cells) == 9
    alone, kd, hsakd, partner = (
        cells["teacher-student", method, "1"] for method in ("alone", "kd", "hsakd", "dcm_partner")
    )
    assert alone.consistency.value == pytest.approx((0.9 - 0.5) / 0.8, abs=0.05)
    assert hsakd.consistency.value == pytest.approx((0.9 - 0.3) / 0.8, abs=0.05)
    assert (alone.students, alone.gain, partner.gain) == (3, None, None)
    # The same seeds planted the same noise: the difference of pairs is far more certain than either
    # number.
    assert 0 < kd.gain.low < kd.gain.value < kd.gain.high < 0.01
    assert kd.consistency.high - kd.consistency.low > 0.01
    assert hsakd.gain.value == pytest.approx(hsakd.consistency.value - alone.consistency.value)
    assert hsakd.gain.resampled == ("images", "fits")


def test_the_table_the_file_and_the_figure(run, tmp_path):
    cells = knowledge.read_cells(run, resamples=100)
    known = Interval(40.0, 35.0, 45.0, 0.95, "percentile", 100, ("images",), True)
    gain = Interval(5.0, 1.0, 9.0, 0.95, "percentile", 100, ("images",), True)
    text = knowledge.markdown(cells, [Row("small", "hsakd", 3, IMAGES, known, gain)])
    head, _, *lines = text.splitlines()
    assert head.split(" | ")[1:5] == [
        "students",
        "top-1, %",
        "teacher → student, stage 1",
        "teacher → student, stage 2",
    ]
    assert [line.split(" | ")[0] for line in lines] == [
        "| alone",
        "| KD (Hinton et al. 2014)",
        "| … more than alone",
        "| HSAKD",
        "| … more than alone",
        "| DCM, its own partner",
    ]
    assert "+5.0 [+1.0, +9.0]: shows" in lines[4] and ": shows" in lines[2]
    knowledge.draw_figure(cells, [Row("small", "hsakd", 3, IMAGES, known, gain)]).savefig(
        tmp_path / "k.png"
    )
    assert (tmp_path / "k.png").stat().st_size > 10_000
    values = [knowledge.csv_line(cell) for cell in cells]
    assert values[0][:4] == ["teacher-student", "1", "alone", 3] and values[0][7:] == [None] * 3
    assert np.isfinite(values[0][4:7]).all()


def test_a_run_without_calibrations_is_refused(tmp_path):
    with refused(tmp_path, "experiments/distillation_knowledge.sh", kind=SystemExit):
        knowledge.main([str(tmp_path)])
