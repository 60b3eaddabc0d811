"""The notebook opens on any run; what is committed was executed,
is small, and names no place on the author's disk.
"""

import ast
import json
import os
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import ConvOutput
import Training_TransNet
from tests.unit.photos import make_cifar

pytestmark = pytest.mark.notebook
NOTEBOOK = Path(Training_TransNet.__file__).with_name("visualize.ipynb")


def execute(monkeypatch, **environment):
    """Execute a copy of the notebook in the repository's root and give it."""
    for name in [name for name in os.environ if name.startswith("KC_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    return notebook


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(cell):
    return [
        output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})
    ]


def text(notebook):
    """Everything that the cells printed."""
    return "".join(
        output.get("text", "") + output.get("data", {}).get("text/plain", "")
        for cell in code_cells(notebook)
        for output in cell.outputs
    )


def test_it_shows_a_run_with_both_directions(fitted, monkeypatch):
    notebook = execute(monkeypatch, KC_RUN=fitted, KC_DATA=fitted / "nowhere")
    said = text(notebook)
    assert "net A: checkpoint_digits_resnet18_sd0.pth.tar at layer2.1.add" in said
    assert "net B: checkpoint_digits_resnet18_sd5.pth.tar at layer2.1.add" in said
    assert "Trans-Net: checkpoint_L2.pth.tar, orders 0 to 2" in said
    assert "24 validation images of digits, 32 pixels to a side" in said
    assert "24 images, instability 0." in said or "24 images, instability 1." in said
    assert "PrepareData.py CIFAR10" in said
    # Variances, the photo, channels, blind spots; the other direction's variances and unreliable
    # features; nothing of CIFAR-10, which is not there.
    assert [len(pictures(cell)) for cell in code_cells(notebook)] == [
        0,
        0,
        1,
        1,
        1,
        1,
        2,
        0,
        0,
        0,
        0,
        1,
        0,
    ]


def test_it_shows_vectors_of_named_nets_and_one_direction(fitted, photos, tmp_path, monkeypatch):
    nets = {f"KC_NET_{net}": tmp_path / f"{net}.pth.tar" for net in "AB"}
    for seed, path in zip((0, 5), nets.values()):
        shutil.copy(fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar", path)
    words = [
        "--resume1",
        str(nets["KC_NET_A"]),
        "--resume2",
        str(nets["KC_NET_B"]),
        "--layer",
        "flatten",
    ]
    ConvOutput.main([*words, "--train_path", str(photos / "train"), "--out", str(tmp_path)])
    features = tmp_path / "convOuts/digits_resnet18/digits_Lflatten"
    words = ["--convOut_path", str(features), "--one_direction", "--epochs", "1", "--layers", "2"]
    Training_TransNet.main([*words, "--out", str(tmp_path)])
    trans_net = tmp_path / "model_checkpoints/digits_resnet18/checkpoint_Lflatten.pth.tar"
    notebook = execute(
        monkeypatch,
        KC_RUN=tmp_path / "nowhere",
        KC_TRANS_NET=trans_net,
        KC_VAL_PATH=photos / "val",
        KC_DATA=tmp_path / "nowhere",
        **nets,
    )
    said = text(notebook)
    assert "net A: A.pth.tar at flatten" in said and "orders 0 to 1" in said
    assert "Vectors and tokens have no place on a photo." in said
    assert "This run has no Trans-Net B → A." in said
    assert [len(pictures(cell)) for cell in code_cells(notebook)] == [
        0,
        0,
        1,
        1,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
        1,
        0,
    ]


def test_two_provided_nets_look_at_photos_where_they_lie(tmp_path, monkeypatch):
    """The section runs alone, too."""
    make_cifar(tmp_path / "CIFAR10/test", 40)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    begin, end = (
        next(
            i for i, cell in enumerate(notebook.cells) if cell.source.startswith(f"## Two {title}")
        )
        for title in ("provided nets", "nets of your own")
    )
    notebook.cells = notebook.cells[begin:end]
    for cell in code_cells(notebook):
        cell.source = cell.source.replace("EVERY, SHOWN = 10,", "EVERY, SHOWN = 1,")
        cell.outputs = []
    monkeypatch.setenv("KC_DATA", str(tmp_path))
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    printed = text(notebook)
    assert "half_A.pth.tar" in printed and "of 400 photos right" in printed
    shown = re.findall(r"^\w+ +is (\w+) to half_A.pth.tar, (\w+) to", printed, re.MULTILINE)
    assert 4 <= len(shown) <= 8 and all(first != second for first, second in shown)
    assert len(re.findall(r"shared [\d.]+ \[", printed)) == 3
    assert [len(pictures(cell)) for cell in code_cells(notebook)] == [1, 1]


def test_no_photo_of_cifar_10_is_committed():
    """They belong to others; figures of numbers may stand there."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (cell,) = (cell for cell in code_cells(notebook) if "cifar.decode" in cell.source)
    assert not pictures(cell)


def test_two_nets_of_ones_own_need_nothing_but_the_library():
    """The last section runs alone, imports nothing else of this project,
    and gives what it gives in its place.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    begin = next(
        i
        for i, cell in enumerate(notebook.cells)
        if cell.source.startswith("## Two nets of your own")
    )
    del notebook.cells[:begin]
    assert len(notebook.cells) <= 5
    words = "\n".join(cell.source for cell in code_cells(notebook))
    imported = {
        name.split(".")[0] for name in re.findall(r"^(?:from|import) (\S+)", words, re.MULTILINE)
    }
    assert imported == {"consistency", "sklearn", "torch"}
    for cell in code_cells(notebook):
        cell.outputs = []
    NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    printed = text(notebook)
    shared = [float(value) for value in re.findall(r"shared ([\d.]+) \[", printed)]
    (instability,) = re.findall(r"^instability +([\d.]+)", printed, re.MULTILINE)
    assert len(shared) == 2 and min(shared) > 0.8 and 0 < float(instability) < 0.1


def test_it_defines_nothing_that_belongs_into_a_room():
    for cell in code_cells(nbformat.read(NOTEBOOK, as_version=4)):
        source = "\n".join(line for line in cell.source.splitlines() if not line.startswith("%"))
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 15, node.name


def test_what_is_committed_was_executed_from_top_to_bottom():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(len(pictures(cell)) for cell in cells) >= 4
    assert not [
        output for cell in cells for output in cell.outputs if output.output_type == "error"
    ]
    assert not [
        output for cell in cells for output in cell.outputs if output.get("name") == "stderr"
    ]


def test_what_is_committed_is_small_and_names_no_place():
    assert NOTEBOOK.stat().st_size < 1_000_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata.kernelspec == {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    for cell in notebook.cells:
        assert not cell.metadata
        for output in cell.get("outputs", []):
            for content in output.get("data", {}).values():
                if not re.fullmatch(r"[A-Za-z0-9+/=\s]{1000,}", content):  # no picture
                    assert not absolute_paths(content)
            assert not absolute_paths(output.get("text", ""))
    assert not absolute_paths(json.dumps(notebook.metadata))


def absolute_paths(content):
    return re.findall(r"(?<![\w.])(?:/\w[^/\s]*/\S+|[A-Z]:\\)", content)


def test_absolute_paths_are_found():
    assert (
        absolute_paths("at /home/me/demo")
        and absolute_paths("('/tmp/x')")
        and absolute_paths(r"C:\demo")
    )
    assert not absolute_paths("Var(x_Δ)/Var(x*) 0/0036.png demo/model_checkpoints/net.pth.tar A/B")
