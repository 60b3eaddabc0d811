"""transClassifier.py --resume and --restart: a tail goes on only if its run agrees."""

import pytest
import torch

from tests.e2e.refined import ARCH, LAYER, lines, tuned
from tests.e2e.road import truncate
from tests.mistakes import check_some_line, refused
from utils.files import sha256

pytestmark = pytest.mark.e2e


def same(a, b):
    """Whether nested dicts and lists hold the same tensors and values, to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return a == b


def test_a_resumed_run_equals_an_uninterrupted_one(refine, tmp_path, capsys):
    refine(epochs=4, val_epoch=1, out=tmp_path / "whole")
    refine(epochs=2, val_epoch=1)
    capsys.readouterr()
    refine("--resume", "auto", epochs=4, val_epoch=1)
    assert "epoch 3/4" in (said := capsys.readouterr().out) and "epoch 2/4" not in said
    resumed, whole = tuned(tmp_path), tuned(tmp_path / "whole")
    assert [key for key in whole if not same(resumed[key], whole[key])] == ["history"]
    parts = [
        [line | {"seconds": 0} for line in lines(folder)]
        for folder in (tmp_path, tmp_path / "whole")
    ]
    assert parts[0] == parts[1]
    capsys.readouterr()
    refine("--resume", "auto", epochs=4)
    printed = capsys.readouterr().out
    check_some_line(printed, "4 epochs")
    assert "train features" not in printed  # nothing is computed where nothing is trained


@pytest.mark.parametrize("resume", [(), ("--resume", "auto")])
def test_a_tail_of_another_run_is_left_alone_but_for_restart(trained, refine, tmp_path, resume):
    folder, _ = trained
    refine(epochs=1)
    path = tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar"
    before = path.read_bytes()
    second, first = (sha256(folder / f"{name}.pth") for name in ("second", "g"))
    for others, facts in (
        ({"lr": 0.002}, ("lr", 0.001, 0.002)),
        ({"wd": 0.1}, ("weight_decay", 0.0001, 0.1)),
        ({"seed": 3}, ("seed", 0, 3)),
        ({"resume_Ys": folder / "second.pth"}, ("transnet", first, second)),
    ):
        with refused(path, *facts, "--suffix", "--restart", kind=SystemExit):
            refine(*resume, **{"epochs": 1} | others)
    assert path.read_bytes() == before
    refine(*resume, "--restart", resume_Ys=folder / "second.pth", epochs=1)
    assert tuned(tmp_path)["settings"]["transnet"] == second


def test_a_damaged_tail_is_replaced_by_restart(refine, tmp_path):
    refine(epochs=1)
    truncate(tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar")
    with refused(f"checkpoint_111_L{LAYER}.pth.tar", "--restart", kind=SystemExit):
        refine("--resume", "auto", epochs=1)
    refine("--resume", "auto", "--restart", epochs=1)
    assert tuned(tmp_path)["epoch"] == 1


def test_a_path_is_gone_on_from_only_if_its_tail_reads_the_same(trained, refine, tmp_path):
    folder, _ = trained
    refine(epochs=1)
    path = tmp_path / "check" / f"folder_{ARCH}" / f"checkpoint_111_L{LAYER}.pth.tar"
    with refused(path, kind=SystemExit):
        refine("--in_mode", "[1,0,0]", "--resume", path, epochs=2)
    with refused(folder / "B.pth", kind=SystemExit):
        refine("--resume", folder / "B.pth", epochs=2)
