"""Calibrate.py: floors and ceilings of planted pairs, and of a fitted Trans-Net."""

import json

import numpy as np
import pytest
import torch

import Calibrate
import Training_TransNet
from experiments import knowledge
from tests.e2e.road import run
from tests.mistakes import check_line, refused
from utils.features.writer import FeatureWriter
from utils.provenance import NetSource, Provenance

pytestmark = pytest.mark.e2e
FIT = "--layers 1 --standardise --solve --epochs 0 --one_direction"
UNTRAINED, UNFITTED = ["null: A untrained", "null: B untrained"], "null: g untrained"
NAMES = [
    "this Trans-Net",
    "null: shuffled within the class",
    "null: shuffled over all images",
    "null: g untrained",
    "the same pairs, another seed",
    "ceiling: A → A",
]


def store(folder, split, x, target, labels):
    nets = [NetSource("net", "layer", f"{name}.pth.tar", name * 64) for name in "ab"]
    provenance = Provenance(*nets, dataset="planted", split=split, arch="net", label="1")
    hits = torch.ones(len(x), 1, dtype=torch.bool)
    with FeatureWriter(
        folder / split,
        provenance=provenance,
        paths=[f"{split}{i}.jpg" for i in range(len(x))],
        top_k=(1,),
        shape_a=x.shape[1:],
        shape_b=target.shape[1:],
        dtype=torch.float32,
    ) as writer:
        writer.write("a", range(len(x)), x, labels, hits)
        writer.write("b", range(len(x)), target, labels, hits)
        writer.finish()


def planted(folder, kind):
    """Features of three classes; B's are A's, in another order or mixed,
    or of a net that saw the classes alone.
    """
    generator = torch.Generator().manual_seed(0)
    means, rotation = (
        torch.randn(3, 8, 1, 1, generator=generator),
        torch.linalg.qr(torch.randn(8, 8))[0],
    )
    mixing = {"itself": torch.eye(8), "permuted": torch.eye(8).roll(3, 0)}.get(kind, rotation)
    for split, count in (("train", 90), ("val", 60)):
        labels = torch.arange(count) % 3
        x, other = (
            means[labels] + torch.randn(count, 8, 4, 4, generator=generator) for _ in range(2)
        )
        target = torch.einsum("dc,nchw->ndhw", mixing, other if kind == "of the class alone" else x)
        store(folder, split, x, target, labels)
    return folder


def trans_net_of(features, out, line=FIT):
    """Fit a Trans-Net to features; give its file."""
    run(Training_TransNet, line, "--convOut_path", features, "--out", out)
    return out / "model_checkpoints/planted_net/checkpoint_L1.pth.tar"


def calibrate(features, out, *words):
    trans_net = trans_net_of(features, out)
    return run(
        Calibrate, "--permutations 39", "--convOut_path", features, "--transnet", trans_net, *words
    )


@pytest.mark.parametrize("kind", ["itself", "permuted", "mixed"])
def test_pairs_that_share_all_are_at_the_ceiling(tmp_path, capsys, kind):
    report = calibrate(
        planted(tmp_path / "features", kind), tmp_path, "--json", tmp_path / "c.json"
    )
    assert [row["pairs"] for row in report["rows"]] == NAMES
    values = {row["pairs"]: row["value"] for row in report["rows"]}
    assert values["this Trans-Net"] < 1e-6 and values["ceiling: A → A"] < 1e-6
    assert (
        0.3 < values["null: shuffled within the class"] < values["null: shuffled over all images"]
    )
    assert values["null: g untrained"] > 1
    assert report["consistency"]["value"] == pytest.approx(1, abs=1e-3)
    assert report["linear"]["consistency"]["value"] == pytest.approx(1, abs=1e-3)
    assert (report["linear"]["p"], report["linear"]["permutations"]) == (1 / 40, 39)
    assert json.loads((tmp_path / "c.json").read_text())["rows"] == json.loads(
        json.dumps(report["rows"])
    )
    scores = {score["name"]: score["value"] for score in report["baselines"]}
    assert scores["CKA"] == pytest.approx(1, abs=0.02) and scores["ridge R2"] == pytest.approx(
        1, abs=1e-3
    )
    rows = {score["name"]: score for score in report["similarities"]}
    assert rows["CKA"]["value"] == pytest.approx(1, abs=0.02) and rows["CKA"]["p"] == 1 / 40
    assert rows["ridge R² x → x*"]["calibrated"] > 0.7 and len(rows) == 7
    printed = capsys.readouterr().out
    assert "images as rows" in printed and "ridge R², smaller way" in printed
    assert (
        all(name in printed for name in NAMES)
        and "normalised consistency" in printed
        and "a similarity" in printed
    )
    assert "under 39 permutations within the class: p = 0.0250" in printed
    # The planted features name no architecture that could be built untrained.
    (note,) = (line for line in printed.splitlines() if "untrained B" in line)
    check_line(note, "layer", 0)


def test_a_brief_run_has_the_consistency_of_a_whole_one(tmp_path):
    features = planted(tmp_path / "features", "of the class alone")
    whole, brief = calibrate(features, tmp_path), calibrate(features, tmp_path / "brief", "--brief")
    kept = [NAMES[0], NAMES[1], NAMES[-1]]
    assert (
        brief["rows"] == [row for row in whole["rows"] if row["pairs"] in kept]
        and len(brief["rows"]) == 3
    )
    assert brief["consistency"] == whole["consistency"] and brief["linear"] == whole["linear"]
    assert brief["notes"] == []


def test_pairs_that_share_their_class_alone_are_at_the_floor(tmp_path):
    report = calibrate(planted(tmp_path / "features", "of the class alone"), tmp_path)
    for consistency in (report["consistency"], report["linear"]["consistency"]):
        assert consistency["low"] < 0 < consistency["high"] and consistency["high"] < 0.2
    assert report["linear"]["p"] > 0.05 and report["linear"]["above_zero"] <= 0
    assert all(row["low"] <= row["value"] <= row["high"] for row in report["rows"])


def test_a_fit_is_repeated_with_its_own_budget(road, tmp_path):
    words = ["--convOut_path", road.features, "--transnet", road.trans_net]
    nowhere = ("--train_path", tmp_path / "nowhere", "--val_path", tmp_path / "nowhere")
    report = run(Calibrate, "--bootstrap 100 --permutations 0", *words, *nowhere)
    assert (report["epochs"], report["images"], report["linear"]) == (2, 24, None)
    with refused(road.trans_net, "--epochs 1", "2", kind=SystemExit):
        run(Calibrate, "--epochs 1", *words)
    again = run(
        Calibrate,
        "--epochs 2 --bootstrap 100 --permutations 19",
        *words,
        "--csv",
        tmp_path / "c.csv",
    )
    first, second = ({row["pairs"]: row["value"] for row in one["rows"]} for one in (report, again))
    assert all(first[name] == second[name] for name in first)
    assert {row["pairs"]: row["steps"] for row in again["rows"]} == dict.fromkeys(second, 6) | {
        UNFITTED: 0
    }
    for untrained in UNTRAINED:  # the stored features know where their images were
        assert untrained in second and untrained not in first
        assert second[untrained] != second["the same pairs, another seed"]
    known = {row["sender"]: row for row in again["still_known"]["rows"]}
    assert {"g", "the linear reference", "g fitted within the class", UNTRAINED[0]} < set(known)
    floor = max(0.0, known[UNTRAINED[0]]["K"]["value"])
    scale = known["g"]["I_B"]["value"] - floor
    share = again["still_known"]["learned_share"]
    assert share is None or share == pytest.approx((known["g"]["K"]["value"] - floor) / scale)
    assert "learned_share" not in report["still_known"]
    assert any("learned share" in note for note in report["still_known"]["notes"])
    assert (tmp_path / "c.csv").read_text().startswith("pairs,linear_reference,value,low,high")
    assert again["linear"]["permutations"] == 19


def test_an_interrupted_calibration_goes_on(tmp_path, monkeypatch, capsys):
    """Every fit that was finished is taken from the file beside --json,
    and that goes when all is written.
    """
    features, target = planted(tmp_path / "features", "mixed"), tmp_path / "c.json"
    whole = calibrate(features, tmp_path / "whole")
    begun, fit = [], Calibrate.fit

    def interrupted(*args, **options):
        begun.append(options["label"])
        if len(begun) == 3:
            raise KeyboardInterrupt
        return fit(*args, **options)

    monkeypatch.setattr(Calibrate, "fit", interrupted)
    with pytest.raises(SystemExit):
        calibrate(features, tmp_path, "--json", target)
    assert (tmp_path / "c.json.fits").exists() and not target.exists()
    capsys.readouterr()
    words = [
        "--convOut_path",
        features,
        "--transnet",
        tmp_path / "model_checkpoints/planted_net/checkpoint_L1.pth.tar",
    ]
    report = run(Calibrate, "--permutations 39", *words, "--json", target)
    assert [label.split(" (")[0] for label in begun] == [*NAMES[1:4], *NAMES[3:]]
    assert capsys.readouterr().out.count("fitted before the interruption") == 2
    assert report["rows"] == whole["rows"] and not (tmp_path / "c.json.fits").exists()


def test_every_fit_beside_one_of_steps_has_its_steps_and_spare_channels(
    tmp_path, monkeypatch, capsys
):
    features = planted(tmp_path / "features", "mixed")
    line = "--standardise --solve --steps 3 --hidden 2 --layers 2 --alpha 0.1 --one_direction"
    run(Training_TransNet, line, "--convOut_path", features, "--out", tmp_path)
    trans_net = tmp_path / "model_checkpoints/planted_net/checkpoint_L1.pth.tar"
    report = run(
        Calibrate,
        "--permutations 0 --bootstrap 100",
        "--convOut_path",
        features,
        "--transnet",
        trans_net,
    )
    rows = {row["pairs"]: row for row in report["rows"]}
    assert {row["steps"] for name, row in rows.items() if name != UNFITTED} == {3}
    assert {row["hidden"] for row in rows.values()} == {2}
    assert (
        rows[NAMES[0]]["is_linear"]
        and rows[NAMES[-1]]["is_linear"]
        and rows[NAMES[-1]]["value"] < 1e-9
    )
    assert (
        report["fitted"]["linear"]["taken"]
        and "the linear layer took its place" in capsys.readouterr().out
    )


def test_a_trans_net_of_other_features_is_refused(road, tmp_path):
    features = planted(tmp_path / "features", "mixed")
    with refused(road.trans_net, kind=SystemExit):
        run(Calibrate, "", "--convOut_path", features, "--transnet", road.trans_net)


def test_the_sums_give_the_same_consistency_elsewhere(tmp_path):
    sums = tmp_path / "c.npz"
    report = calibrate(
        planted(tmp_path / "features", "of the class alone"), tmp_path, "--sums", sums
    )
    drawn = knowledge.draw(sums, resamples=1000)
    assert drawn[0] == pytest.approx(report["consistency"]["value"])
    # Other draws of as many resamples.
    ends = (report["consistency"]["low"], report["consistency"]["high"])
    width = ends[1] - ends[0]
    assert np.quantile(drawn[1:], [0.025, 0.975]) == pytest.approx(ends, abs=0.15 * width)
