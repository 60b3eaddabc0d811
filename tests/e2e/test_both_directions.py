"""Both directions of one pair: fitted by default, measured, calibrated and on the page."""

import json
import shutil

import numpy as np
import pytest

import Calibrate
import Report
import Training_TransNet
import Variance
from consistency.calibration import load_sums
from tests.e2e.road import BOTH, change, data, run
from utils.report.page import values

pytestmark = pytest.mark.e2e
BRIEF = "--brief --permutations 19 --bootstrap 100"


@pytest.fixture(scope="module")
def both(road, tmp_path_factory):
    """A folder with Trans-Nets of both directions, and one with their results; only to be read."""
    out = tmp_path_factory.mktemp("both")
    run(Training_TransNet, BOTH, "--convOut_path", road.features, "--out", out)
    there = out / "model_checkpoints/folder_resnet18/checkpoint_L1.pth.tar"
    words = ("--convOut_path", road.features, "--transnet", there)
    results = out / "results"
    results.mkdir()
    calibration = ("--json", results / "calibration.json", "--sums", out / "c.npz")
    run(Calibrate, BRIEF, *words, *calibration)
    run(Variance, "--bootstrap 100", *words, "--json", results / "variance.json")
    return there, there.with_name("checkpoint_L1_reverse.pth.tar"), out, words


def read(both, name):
    return json.loads((both[2] / "results" / name).read_text())


def without(report, *names):
    return {key: value for key, value in report.items() if key not in names}


def test_variances_of_both_are_those_of_each_alone(both, road, photos):
    there, back, _, words = both
    report = read(both, "variance.json")
    alone = run(Variance, "--bootstrap 100 --one_direction", *words)
    assert without(report, "back", "shared") == json.loads(json.dumps(alone))
    of_back = ("--convOut_path", road.features, "--reverse", "--transnet", back)
    reverse = run(Variance, "--bootstrap 100", *of_back)
    assert report["back"] == json.loads(json.dumps(without(reverse, "doubts", "notes")))
    r2 = [1 - report["instability"], 1 - report["back"]["instability"]]
    shared = report["shared"]
    assert [shared[name]["value"] for name in ("forth", "back")] == pytest.approx(r2)
    assert shared["shared"]["value"] == min(shared["forth"]["value"], shared["back"]["value"])
    assert shared["shared"]["low"] <= shared["shared"]["value"] <= shared["shared"]["high"]

    nets = ("--net_in", road.a, "--net_tar", road.b, *data(photos), "--transnet", there)
    live = run(Variance, "--conv_layer 1 --bootstrap 0", *nets)
    assert live["back"]["instability"] == pytest.approx(report["back"]["instability"], rel=1e-5)
    assert live["shared"]["shared"]["low"] is None


def test_a_calibration_of_both_is_that_of_each_alone(both, road):
    _, back, out, words = both
    report = read(both, "calibration.json")
    alone = run(Calibrate, f"{BRIEF} --one_direction", *words)
    assert without(report, "back", "shared") == json.loads(json.dumps(alone))
    of_back = ("--convOut_path", road.features, "--reverse", "--transnet", back)
    reverse = run(Calibrate, BRIEF, *of_back)
    assert report["back"]["consistency"] == json.loads(json.dumps(reverse["consistency"]))
    names = [row["pairs"] for row in report["back"]["rows"]]
    assert names[-1] == "ceiling: B → B"
    for one, net in ((report, "B"), (report["back"], "A")):
        senders = [row["sender"] for row in one["still_known"]["rows"]]
        assert senders[:3] == [f"{net} itself", "g", "g fitted within the class"]
        itself = one["still_known"]["rows"][0]
        assert itself["K"]["value"] == pytest.approx(itself["I_B"]["value"], abs=1e-6)
    of = report["shared"]
    assert of["shared"]["value"] == min(of["forth"]["value"], of["back"]["value"])
    for name, one in (("forth", report), ("back", report["back"])):
        assert of[name]["value"] == pytest.approx(one["consistency"]["value"])
    sums = load_sums(out / "c.npz", back=True)
    left = sums["observed"].sum(0)
    assert left[1] / left[0] == pytest.approx(report["back"]["rows"][0]["value"])


def test_what_is_shared_takes_the_nulls_of_a_calibration(both, tmp_path):
    _, _, out, words = both
    options = ("--sums", out / "c.npz")
    report = run(Variance, "--bootstrap 100", *words, *options)
    expected = read(both, "calibration.json")["shared"]["shared"]
    assert report["shared"]["shared"]["value"] == pytest.approx(expected["value"], rel=1e-4)
    with pytest.raises(SystemExit) as exit_:
        run(Variance, "--t_or_v train", *words, *options)
    assert "c.npz" in str(exit_.value.code) and "\n" not in str(exit_.value.code)
    sums = load_sums(out / "c.npz")
    np.savez(tmp_path / "one.npz", **sums)
    for more in ((), ("--one_direction",)):
        with pytest.raises(SystemExit) as exit_:
            run(Variance, " ".join(more), *words, "--sums", tmp_path / "one.npz")
        assert "one direction" in str(exit_.value.code) or "--sums" in str(exit_.value.code)


def test_both_are_on_the_page(both, capsys):
    _, _, out, words = both
    run(Report, "", out / "results")
    found = {value.place for value in values((out / "results/page.html").read_text())}
    for name in ("variance", "calibration"):
        assert f"{name}.json: shared.shared.value" in found
    assert "variance.json: back.instability" in found
    assert "calibration.json: back.consistency.value" in found
    capsys.readouterr()
    run(Variance, "--bootstrap 0", *words)
    said = capsys.readouterr().out
    assert "shared, the smaller direction" in said and "about these two nets" in said
    assert said.count("instability Var(x_Δ)/Var(x*)") == 2 and "what A still knows" in said
    run(Variance, "--bootstrap 0 --one_direction", *words)
    said = capsys.readouterr().out
    assert "about these two nets" in said and said.count("instability Var(x_Δ)/Var(x*)") == 1


def test_a_direction_of_another_fit_is_left_out_or_refused(both, road, tmp_path):
    """Beside it lies one of other options; named, one of other images' features is an error."""
    there, back, _, _ = both
    for path in (there, back):
        shutil.copy(path, tmp_path)
    forth, other = tmp_path / there.name, tmp_path / back.name
    words = ("--convOut_path", road.features, "--transnet", forth)
    change(other, settings={"lr": 1.0})
    report = run(Variance, "--bootstrap 0", *words)
    assert "back" not in report
    named = run(Variance, "--bootstrap 0", *words, "--transnet_back", other)
    assert named["back"]["transnet" if "transnet" in named["back"] else "source"]
    for script in (Variance, Calibrate):
        with pytest.raises(SystemExit) as exit_:
            run(script, "", *words, "--transnet_back", forth)
        assert forth.name in str(exit_.value.code) and "\n" not in str(exit_.value.code)
