import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import Compare
from consistency import compared_nets, comparison, convergence
from consistency.fitting import Fitting
from consistency.solved import Thorough
from tests.e2e.refined import ARCH, make_classifier
from tests.e2e.road import run
from tests.mistakes import refused
from utils import checkpoint

LINE = "-j 0 --bootstrap 100 --side 4 --normalisation imagenet"


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nets")
    for name, seed, classes in (("A", 0, 3), ("B", 5, 3), ("other", 6, 2)):
        make_classifier(folder / f"{name}.pth", seed, classes)
    return folder


def compare(nets, photos, out, line="", pair="AB"):
    files = [nets / f"{name}.pth" for name in pair]
    return run(Compare, f"{LINE} {line}", *files, "--images", photos, "--out", out)


@pytest.fixture(scope="module")
def compared(nets, photos, tmp_path_factory):
    """A whole run, only to be read."""
    out = tmp_path_factory.mktemp("compared")
    compare(nets, photos, out)
    return out


def record(out):
    return json.loads((out / "compare.json").read_text())


def parts(report, cached):
    return [part["name"] for part in report["parts"] if part["cached"] is cached]


def numbers(report):
    """What must be equal however a run came to its end."""
    return {name: report[name] for name in ("nets", "images", "pairs", "answers", "weights")}


def test_a_report_its_table_its_answers_and_its_page(compared, photos):
    report = record(compared)
    assert report["kind"] == "compare" and [net["label"] for net in report["nets"]] == ["A", "B"]
    assert [report["images"][name] for name in ("fitted", "held_out", "per_class_min")] == [
        24,
        24,
        8,
    ]
    assert report["nets"][0]["arch"] == ARCH and report["weights"] == "different"
    assert report["nets"][0]["remarks"]  # nobody trained it
    assert len(report["pairs"]) > 1 and not report["matrix"]
    depths = [pair["a"]["depth"] for pair in report["pairs"]]
    assert depths == sorted(depths)
    for pair in report["pairs"]:
        for way in ("forth", "back"):
            interval = pair[way]["instability"]
            assert interval["low"] <= interval["value"] <= interval["high"]
    table = (compared / "compare.csv").read_text().splitlines()
    assert len(table) == 1 + 2 * len(report["pairs"])
    with np.load(compared / "answers.npz") as answers:
        assert answers["logits_A"].shape == answers["logits_B"].shape == (24, 3)
        assert answers["paths"][0] == "blue/00.jpg" and answers["labels"].tolist()[::8] == [0, 1, 2]
    assert (compared / "page.html").read_text().startswith("<!")


def test_a_second_run_computes_nothing(nets, photos, compared, tmp_path, monkeypatch):
    out = tmp_path / "again"
    shutil.copytree(compared, out)
    for module, name in ((compared_nets, "keep_layers"), (comparison, "measure_direction")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    before = record(out)
    compare(nets, photos, out)
    assert numbers(record(out)) == numbers(before)
    assert not [name for name in parts(record(out), False) if "→" in name or "features" in name]


def test_interrupted_between_directions_it_goes_on(nets, photos, compared, tmp_path, monkeypatch):
    calls, original = [], comparison.measure_direction

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(comparison, "measure_direction", interrupted)
    with pytest.raises(SystemExit) as end:
        compare(nets, photos, tmp_path)
    assert end.value.code == 130 and not (tmp_path / "compare.json").exists()
    compare(nets, photos, tmp_path)
    report = record(tmp_path)
    assert len(calls) == 3 + 2 * len(report["pairs"]) - 2
    assert numbers(report) == numbers(record(compared))


@pytest.fixture
def few_steps(monkeypatch):
    """Searches that begin with two steps and stop at the first doubling."""
    monkeypatch.setattr(Compare, "Thorough", partial(Thorough, steps=2))
    search = partial(convergence.search, doublings=1)
    monkeypatch.setattr("consistency.fitting.search", search)


def test_thorough_fits_trans_nets_and_goes_on_behind_the_last_fit(
    nets, photos, compared, tmp_path, monkeypatch, few_steps
):
    line = "--thorough --depth 2 --at stage:2,stage:3"
    fits, run_fit = [], Fitting.run

    def interrupted(fitting, label="fit", *remains):
        fits.append(label)
        if len(fits) == 7:
            raise KeyboardInterrupt
        return run_fit(fitting, label, *remains)

    monkeypatch.setattr(Fitting, "run", interrupted)
    shutil.copytree(compared / "cache", tmp_path / "cache")
    with pytest.raises(SystemExit):
        compare(nets, photos, tmp_path, line)
    compare(nets, photos, tmp_path, line)
    report, count = record(tmp_path), len(fits)
    # Of each direction the trials of a search, a fit and its null; one was interrupted.
    deep = [pair[way]["trans_net"] for pair in report["pairs"] for way in ("forth", "back")]
    trials = sum(len(of["fit"]["record"]["trials"]) for of in deep)
    assert len(deep) == 4 and count == trials + 2 * len(deep) + 1
    for of in deep:
        assert of["fit"]["layers"] == 2
        assert of["consistency"]["low"] <= of["consistency"]["value"]
    assert deep[-1]["knowledge"]["bits"]["value"] >= 0
    compare(nets, photos, tmp_path, line)
    assert len(fits) == count and numbers(record(tmp_path)) == numbers(report)
    head = (tmp_path / "compare.csv").read_text().splitlines()[0]
    assert "trans_net_consistency" in head and "trans_net_state" in head
    assert "Trans-Nets beside the linear layers" in (tmp_path / "page.html").read_text()
    # The linear numbers are what they are without Trans-Nets.
    alone = {pair["a"]["layer"]: pair for pair in record(compared)["pairs"]}
    for pair in report["pairs"]:
        assert pair["shared"] == alone[pair["a"]["layer"]]["shared"]


def test_interrupted_in_a_pass_it_goes_on_behind_the_last_image(
    nets, photos, compared, tmp_path, monkeypatch
):
    seen, original = [], Compare.opening.image_loader

    def loader(args, data, runtime, **options):
        for batch in original(args, data, runtime, **options):
            if len(seen) == 3:
                seen.append([])
                raise KeyboardInterrupt
            seen.append(batch[-1].tolist())
            yield batch

    monkeypatch.setattr(Compare.opening, "image_loader", loader)
    with pytest.raises(SystemExit):
        compare(nets, photos, tmp_path, "-b 5")
    compare(nets, photos, tmp_path, "-b 5")
    assert sum(map(len, seen)) == 2 * 48  # each image once for each net
    whole, resumed = (numbers(record(out))["pairs"] for out in (compared, tmp_path))
    for one, other in zip(whole, resumed):
        assert one["shared"]["value"] == pytest.approx(other["shared"]["value"], abs=1e-4)


def test_another_image_is_noticed(nets, photos, compared, tmp_path):
    folder, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, folder)
    shutil.copytree(compared, out)
    shutil.copy(folder / "val/red/00.jpg", folder / "val/blue/00.jpg")
    compare(nets, folder, out)
    assert numbers(record(out))["pairs"] != numbers(record(compared))["pairs"]
    assert "features of A" in parts(record(out), False)


def test_class_folders_alone_are_halved(nets, photos, tmp_path):
    compare(nets, photos / "train", tmp_path, "--quick")
    report = record(tmp_path)
    assert (report["images"]["fitted"], report["images"]["held_out"]) == (12, 12)
    assert any("held out" in note for note in report["images"]["notes"])
    assert all(pair["forth"]["null"] is None for pair in report["pairs"])


def test_layers_by_name(nets, photos, tmp_path):
    compare(nets, photos, tmp_path, "--quick --at features.4,stage:-1 --at2 stage:2,stage:-1")
    first, last = record(tmp_path)["pairs"]
    assert (first["a"]["layer"], first["b"]["stage"]) == ("features.4", 2)
    assert last["a"]["layer"] == last["b"]["layer"]


def test_all_layers_make_a_matrix(nets, photos, tmp_path, monkeypatch):
    def some_places(survey):
        return original(survey)[1:4]

    original = compared_nets.Survey.all_places
    monkeypatch.setattr(compared_nets.Survey, "all_places", some_places)
    compare(nets, photos, tmp_path, "--at all --quick")
    report = record(tmp_path)
    matrix = report["matrix"]
    assert len(matrix["rows"]) == 3 and len(report["pairs"]) > 1
    for name in ("shared", "forth", "back", "cka"):
        assert np.array(matrix[name], dtype=float).shape == (len(matrix["rows"]),) * 2


def test_references_are_seen_once_and_kept(nets, photos, tmp_path, monkeypatch):
    for name, seed in (("B1", 8), ("B2", 9), ("C", 12)):
        make_classifier(nets / f"{name}.pth", seed)
    # Nobody trained it: what it answers serves as classes where it knows others than these
    state = checkpoint.load(nets / "C.pth")
    checkpoint.save(nets / "C.pth", state | {"data": state["data"] | {"classes": list("xyz")}})
    pair = "AC"
    line = f"--references {nets}/B1.pth {nets}/B2.pth --quick --side 0 --at stage:-1"
    compare(nets, photos, tmp_path, line, pair)
    report = record(tmp_path)
    assert [net["label"] for net in report["references"]] == ["B1", "B2"]
    forth, back = (report["pairs"][-1][way]["distinctions"] for way in ("forth", "back"))
    assert forth["references"] == 2 and not (back and back["references"])
    assert forth["called"] is not None and all(pair["t"] is not None for pair in forth["pairs"])
    assert "features of B2" in parts(report, False)
    # Pictures of images, and of places where an untrue pair has other ones
    drawn = [f"images_{way}.png" for way, of in (("forth", forth), ("back", back)) if of]
    if not forth["places"]["withdrawn"]:
        drawn.append("places_forth.png")
    files = [picture["file"] for picture in report["pictures"]]
    assert set(drawn) <= set(files) and all((tmp_path / file).is_file() for file in files)
    for module, name in ((compared_nets, "keep_layers"), (comparison, "measure_direction")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("computed again"))
    compare(nets, photos, tmp_path, line, pair)
    assert numbers(record(tmp_path)) == numbers(report)


def test_more_than_two_nets_make_an_atlas(nets, photos, tmp_path):
    make_classifier(nets / "C.pth", 7)
    compare(nets, photos, tmp_path, "--at stage:2,stage:3 --shuffles 1", pair="ABC")
    report = record(tmp_path)
    atlas = report["atlas"]
    assert report["pairs"] == [] and [net["label"] for net in report["nets"]] == atlas["nets"]
    assert np.array(atlas["forth"], dtype=float).shape == (2, 3, 3)
    before = atlas["shared"]
    compare(nets, photos, tmp_path, "--at stage:2,stage:3 --shuffles 1", pair="ABC")
    assert record(tmp_path)["atlas"]["shared"] == before


def test_two_processes_share_an_atlas_and_one_writes_it(nets, photos, tmp_path):
    make_classifier(nets / "C.pth", 7)
    files = [str(nets / f"{name}.pth") for name in "ABC"]
    line = [*LINE.split(), "--at", "stage:2,stage:3", "--shuffles", "1", "--images", str(photos)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = str(Path(Compare.__file__))
    done = subprocess.run(
        [sys.executable, *torchrun, script, *files, *line, "--out", str(tmp_path / "two")],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("saved") == 3  # by one process, once
    run(Compare, " ".join(line), *files, "--out", tmp_path / "one")
    one, two = (record(tmp_path / name) for name in ("one", "two"))
    assert two["atlas"] == one["atlas"] and two["nets"] == one["nets"]
    # The main process computed a part of the rows, and reads the others.
    rows = [part for part in two["parts"] if part["name"].startswith("atlas")]
    assert len(rows) == 3 + 6
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "two" / "cache", again / "cache")
    run(Compare, " ".join(line), *files, "--out", again)
    assert not [name for name in parts(record(again), False) if name.startswith("features of")]


def test_nets_of_other_classes(nets, photos, tmp_path):
    files = nets / "A.pth", nets / "other.pth"
    run(Compare, f"{LINE} --quick", *files, "--images", photos, "--out", tmp_path)
    report = record(tmp_path)
    assert report["nets"][1]["top1_percent"] is None and report["nets"][1]["why_no_accuracy"]
    assert report["answers"] is None and report["pairs"]


def test_one_class(nets, photos, tmp_path):
    folder = tmp_path / "one"
    shutil.copytree(photos / "train/red", folder / "red")
    compare(nets, folder, tmp_path / "out", "--quick")
    report = record(tmp_path / "out")
    assert any("one class" in note for note in report["images"]["notes"])
    assert report["pairs"][0]["per_class"] == []


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("--at nowhere", 1, ["nowhere"]),
        ("--at stage:9", 1, ["9"]),
        ("--at2 stage:1", 2, ["--at2"]),
        ("--at stage:1,stage:2 --at2 stage:1", 1, ["--at2"]),
        ("--quick --permutations 19", 2, ["--permutations"]),
        ("--quick --thorough", 2, ["--thorough"]),
        ("--depth 2", 2, ["--depth"]),
        ("--at all,stage:1", 2, ["--at", "all"]),
        ("--references {nets}/other.pth --quick", 2, ["--references", "other.pth"]),
        ("--references {nets}/other.pth {nets}/B.pth --quick", 1, ["--references", "B.pth"]),
        ("--arch_references vgg11 --quick", 2, ["--arch_references"]),
        (
            "--references {nets}/other.pth {nets}/B.pth --arch_references vgg11 vgg13 vgg16 --quick",
            2,
            ["--arch_references", "3", "2"],
        ),
    ],
)
def test_bad_options(line, code, words, nets, photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        compare(nets, photos, tmp_path, line.format(nets=nets))
    message = end.value.code if isinstance(end.value.code, str) else capsys.readouterr().err
    assert code == (1 if isinstance(end.value.code, str) else end.value.code)
    assert len(message.strip().splitlines()) == 1 and all(word in message for word in words)


def test_bad_input(nets, photos, tmp_path, capsys):
    for files, folder in ((("A",), photos), (("A", "none"), photos), (("A", "B"), tmp_path / "no")):
        with pytest.raises(SystemExit) as end:
            compare(nets, folder, tmp_path / "out", pair=files)
        assert end.value.code
    (tmp_path / "empty").mkdir()
    with refused(tmp_path / "empty", kind=SystemExit):
        compare(nets, tmp_path / "empty", tmp_path / "out")
