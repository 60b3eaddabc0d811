"""The checkpoints that come with the project are those of their table; packing and checking them."""

import importlib
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from experiments import provided
from experiments.cifar_sets import GROUPS, SPLITS
from models.classifiers import build, classifier_record, read_classifier
from tests.mistakes import check_some_line, refuses
from tests.unit.photos import CIFAR10, make_cifar, real_data
from utils import checkpoint
from utils.data.images import load_images
from utils.files import sha256

ROOT = Path(provided.__file__).parents[1]
FOLDER = ROOT / "model_checkpoints"
ROWS = provided.read_table(FOLDER)
IMAGES = 2  # of a class
MOST_BYTES = 15_000_000
MADE_UP = tuple(
    provided.Net(name, f"CIFAR10_{name}", f"the {name}", "50,000", f"make {name}")
    for name in ("ten", "groups", "first")
)


def test_the_committed_files_are_those_of_the_table_and_no_others():
    files = {path.name for path in (FOLDER / "provided").iterdir() if path.name[0] != "."}
    trans_rows = provided.read_trans_table(FOLDER)
    rows = (*ROWS, *trans_rows)
    assert files == {row.file for row in rows} | {"table.json", "trans_nets.json"}
    for row in rows:
        path = FOLDER / "provided" / row.file
        assert (sha256(path), path.stat().st_size) == (row.sha256, row.bytes), row.file
    assert sum(row.bytes for row in rows) <= MOST_BYTES
    assert (FOLDER / "README.md").read_text(encoding="utf-8") == provided.page(ROWS, trans_rows)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.file)
def test_a_committed_file_opens_as_float32_and_holds_no_more_than_a_net(row):
    path = FOLDER / "provided" / row.file
    net, state = read_classifier(path)
    assert {value.dtype for value in net.state_dict().values()} == {torch.float32, torch.int64}
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, len(state["data"]["classes"]))
    assert set(checkpoint.load(path)) <= {*provided.KEPT, "state_dict"}
    assert (state["settings"]["seed"], state["epoch"]) == (row.seed, row.epochs)


@pytest.mark.parametrize("line", sorted({row.command for row in ROWS}))
def test_a_command_of_the_table_can_be_given(line):
    words = shlex.split(line)
    if words[0] == "python":
        importlib.import_module(Path(words[1]).stem).build_parser().parse_args(words[2:])
        return
    kind = words[0].removeprefix("KINDS=")
    assert f"wanted {kind};" in (ROOT / words[-1]).read_text(encoding="utf-8")


def save(run, name, classes, answer, epoch=3, **more):
    """A net that gives every image one class."""
    torch.manual_seed(0)
    net = build("resnet8", len(classes))
    with torch.no_grad():
        net.fc.weight.zero_()
        net.fc.bias.copy_(torch.nn.functional.one_hot(torch.tensor(answer), len(classes)))
    state = {
        "settings": {"arch": "resnet8", "seed": 7, "epochs": 3},
        "history": [],
        "epoch": epoch,
        "arch": "resnet8",
        "model": classifier_record("resnet8", len(classes)),
        "data": {"dataset": "CIFAR10", "classes": classes, "normalisation": ((0.5,) * 3,) * 2},
        "acc1": 10.0,
        "state_dict": net.state_dict(),
        **more,
    }
    checkpoint.save(run / f"model_checkpoints/checkpoint_CIFAR10_{name}.pth.tar", state)


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A data root with two test images of each class."""
    monkeypatch.setitem(SPLITS, "test", IMAGES * len(CIFAR10))
    make_cifar(tmp_path / "data/CIFAR10/test", IMAGES)
    return tmp_path / "data"


@pytest.fixture
def run(tmp_path):
    run = tmp_path / "run"
    save(run, "ten", CIFAR10, 3, optimizer={}, scaler={}, images={}, hits=torch.ones(20))
    save(run, "groups", list(GROUPS), 1)
    save(run, "first", CIFAR10[:5], 0)
    return run


@pytest.fixture
def packed(run, cifar, tmp_path):
    """A folder of packed nets."""
    provided.pack([str(run)], cifar, tmp_path / "packed", MADE_UP)
    return tmp_path / "packed"


def change(packed, name, **facts):
    """Give a row of the table other facts."""
    path = packed / "provided/table.json"
    rows = json.loads(path.read_text())
    path.write_text(
        json.dumps([row | (facts if row["file"] == f"{name}.pth.tar" else {}) for row in rows])
    )


def refused(packed, cifar, *facts):
    refuses(provided.main, ["--check", "--folder", str(packed), "--data_root", str(cifar)], *facts)


def test_the_accuracies_are_of_all_test_images_of_a_nets_classes(packed):
    rows = {row.file.partition(".")[0]: row for row in provided.read_table(packed)}
    # Each net gives one class: two images of it, or all of four kinds of vehicles.
    assert {name: (row.right, row.images) for name, row in rows.items()} == {
        "ten": (2, 20),
        "groups": (8, 20),
        "first": (2, 10),
    }
    text = (packed / "README.md").read_text()
    # Wilson, E. B. (1927) for 2 of 20, as its formula gives it by hand
    assert "10.00 [2.79, 30.10]" in text
    assert all(row.sha256 in text and row.command in text for row in rows.values())


def test_packing_again_gives_the_same_bytes(run, cifar, packed, tmp_path):
    provided.pack([str(run)], cifar, tmp_path / "again", MADE_UP)
    files = [path.relative_to(packed) for path in packed.rglob("*") if path.is_file()]
    assert len(files) == 6
    for file in files:
        assert (packed / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file


def test_a_packed_file_has_what_steps_read_in_half_the_bytes(run, packed):
    before = checkpoint.load(run / "model_checkpoints/checkpoint_CIFAR10_ten.pth.tar")
    after = checkpoint.load(packed / "provided/ten.pth.tar")
    kept = {"settings", "epoch", "arch", "model", "data", "acc1", "state_dict"}
    assert kept | {"optimizer", "scaler", "images", "hits"} < set(before)
    assert set(after) == kept
    for name, value in after["state_dict"].items():
        original = before["state_dict"][name]
        expected = original.half() if original.ndim > 1 else original
        assert value.dtype == expected.dtype and value.equal(expected), name
    net, _ = read_classifier(packed / "provided/ten.pth.tar")
    weight = before["state_dict"]["conv1.weight"]
    assert net.conv1.weight.dtype == torch.float32
    assert not net.conv1.weight.equal(weight)
    torch.testing.assert_close(net.conv1.weight, weight, rtol=2**-11, atol=2**-25)


@pytest.mark.parametrize("epoch", [0, 2])
def test_a_net_that_no_run_has_finished_stays_as_it_is(epoch, run, cifar, packed, tmp_path, capsys):
    before = provided.read_table(packed)
    other = tmp_path / "other"
    save(other, "ten", CIFAR10, 0, epoch=epoch)
    save(other, "first", CIFAR10[:5], 1)
    rows = provided.pack([str(other)], cifar, packed, MADE_UP)
    assert rows[:2] == before[:2] and rows[2].sha256 != before[2].sha256
    assert provided.pack([str(other), str(run)], cifar, packed, MADE_UP)[2] == rows[2]
    extra = provided.Net("none", "CIFAR10_none", "", "", "")
    assert provided.pack([str(other)], cifar, packed, (*MADE_UP, extra)) == rows
    check_some_line(capsys.readouterr().out, "none.pth.tar", "CIFAR10_none")


def test_a_file_that_was_measured_is_not_measured_again(run, cifar, packed, monkeypatch):
    monkeypatch.setattr(provided, "count_right", lambda *_: pytest.fail("measured again"))
    provided.pack([str(run)], cifar, packed, MADE_UP)


def test_runs_without_any_of_the_nets_are_refused(cifar, tmp_path, monkeypatch):
    words = ["--pack", str(tmp_path / "nowhere"), "--folder", str(tmp_path / "new")]
    refuses(provided.main, [*words, "--data_root", str(cifar)], str(tmp_path / "nowhere"))
    assert not (tmp_path / "new").exists()


def test_a_check_measures_again_where_images_are(packed, cifar, monkeypatch, capsys):
    words = ["--check", "--folder", str(packed)]
    change(packed, "ten", right=2 + provided.TOLERANCE)  # another machine rounds otherwise
    provided.main([*words, "--data_root", str(cifar)])
    check_some_line(capsys.readouterr().out, "groups.pth.tar", "8", "20")
    monkeypatch.chdir(packed)
    monkeypatch.setattr(provided, "count_right", lambda *_: pytest.fail("there are no images"))
    provided.main(words)
    check_some_line(capsys.readouterr().out, "data/CIFAR10", "PrepareData.py")
    monkeypatch.setenv("KC_DATA", str(cifar))
    with pytest.raises(pytest.fail.Exception):
        provided.main(words)


def test_other_files_than_the_tables_are_refused(packed, cifar):
    file = packed / "provided/groups.pth.tar"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    refused(packed, cifar, "groups.pth.tar", sha256(file)[:12])
    file.unlink()
    refused(packed, cifar, "groups.pth.tar")
    (packed / "provided/table.json").write_text('[{"file": "groups.pth.tar"}]')
    refused(packed, cifar, "table.json")
    (packed / "provided/table.json").unlink()
    refused(packed, cifar, "table.json")


def test_another_accuracy_is_refused(packed, cifar):
    change(packed, "ten", right=3 + provided.TOLERANCE)
    refused(packed, cifar, "ten.pth.tar", 2, 20, 3 + provided.TOLERANCE)


def test_other_images_are_refused(packed, cifar, tmp_path, monkeypatch):
    refused(packed, tmp_path / "nowhere", tmp_path / "nowhere/CIFAR10/test", 0)
    (cifar / "CIFAR10/test/truck").rename(cifar / "CIFAR10/test/lorry")
    refused(packed, cifar, "ten.pth.tar", 18, 20)
    (cifar / "CIFAR10/test/lorry/00.png").unlink()
    refused(packed, cifar, cifar / "CIFAR10/test", 19, 20)
    shutil.rmtree(cifar / "CIFAR10/test/lorry")
    monkeypatch.setitem(SPLITS, "test", 18)
    refused(packed, cifar, cifar / "CIFAR10/test", 9, 10)


def test_a_committed_net_is_as_right_on_real_photos_as_its_table_says():
    folder = real_data() / "CIFAR10_mini/test"
    if not folder.is_dir():
        pytest.skip("KC_REAL_DATA has no CIFAR10_mini")
    data = load_images("folder", "val", data_root=folder, path=folder, image_size=32)
    chosen = range(0, len(data), 3)
    names = [data.classes[data.targets[index]] for index in chosen]
    (row,) = (row for row in ROWS if row.file == "born_0.pth.tar")
    photos = provided.Photos(data.decode(chosen), names)
    right, images = provided.count_right(FOLDER / "provided" / row.file, photos)
    # Of 1,000 images an accuracy of 88 % has a standard error of 1.0 points.
    assert images == len(chosen)
    assert abs(right / images - row.right / row.images) < 0.04


def test_git_keeps_the_provided_files_alone():
    lines = (ROOT / ".gitignore").read_text().splitlines()
    rules = [line for line in lines if re.match(r"!?/model_checkpoints", line)]
    assert rules == [
        "/model_checkpoints/*",
        "!/model_checkpoints/README.md",
        "!/model_checkpoints/provided/",
        "/model_checkpoints/provided/.*",
    ]
