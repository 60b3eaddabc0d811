"""Pictures of a run: those of the paper by experiments/figures.py, and those in TensorBoard."""

import re
import shutil
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import Variance
from experiments import figures
from experiments.tables import PAPER, Results
from tests.mistakes import refused
from utils.files import read_json, write_json

pytestmark = pytest.mark.e2e
LAYOUT = read_json(PAPER)["tables"]
MAPS = {
    "fig3_blind_spots",
    "fig3_unreliable_features",
    "fig5_binary_to_fine",
    "fig5_fine_to_binary",
}
NUMBERS = {
    "fig4_compression",
    "fig4_distillation",
    "fig5_variances",
    "table2",
    "verdicts",
    "calibration",
}


def report(residual, target=2.0):
    variances = {
        "target": target,
        "order0": 1.0,
        "order1": 0.25,
        "order2": 0.05,
        "output": 1.25,
        "residual": residual,
    }
    nets = {
        "path_a": "lost_a",
        "path_b": "lost_b",
        "transnet_path": "lost_g",
        "layer_a": "layer2",
        "layer_b": "layer2",
    }
    return {
        "images": 24,
        "var": variances,
        "instability": residual / target,
        "source": {"dataset": "digits"} | nets,
    }


@pytest.fixture
def run(tmp_path):
    """RUN with numbers alone."""
    for name, residual in (("sd0-sd5", 0.5), ("sd5-sd0", 0.7)):
        write_json(tmp_path / f"results/table1/case1/vgg16_bn_L30/{name}.json", report(residual))
    write_json(tmp_path / "results/table1/case1/alexnet_L10/sd0-sd5.json", report(0.1))
    write_json(tmp_path / "results/table1/case1/resnet18_L2/sd0-sd5.json", report(0.3))
    for threshold, removed, accuracy in (("0.2-1", 50.2, 60.0), ("1.2-2", 93.3, 40.0)):
        cell = tmp_path / f"results/compression/vgg16_bn_{threshold}"
        percents = {
            "removed_percent": removed,
            "accuracy_percent": {"before": 61.0, "retrained": accuracy},
        }
        write_json(cell / "pruning/net.json", percents)
        write_json(cell / "L30/variance.json", report(removed / 100))
        write_json(cell / "L37/variance.json", report(removed / 50))
    for generation in (0, 1, 2, 10):
        cell = tmp_path / f"results/distillation/vgg16_bn_L30_gen{generation}/variance"
        write_json(cell / "variance.json", report(1 - generation / 20))
    for row, residual in (("fine-binary", 0.2), ("binary-fine", 0.6)):
        write_json(tmp_path / f"results/tasks/{row}/vgg16_bn_L30/variance.json", report(residual))
    for pair, value in (("sd0-sd5", 0.2), ("sd5-sd0", 0.4)):
        rows = [
            {"pairs": name, "linear_reference": 0.5, "value": value}
            for name in ("this Trans-Net", "ceiling: A → A")
        ]
        content = {
            "rows": rows,
            "consistency": {"value": 1 - value},
            "baselines": [{"name": "CKA", "value": 0.75}],
        }
        write_json(
            tmp_path / f"results/calibration/vgg16_bn_L30_case1/calibrate/{pair}.json", content
        )
    return tmp_path


def widths(axis):
    return [bar.get_width() for bar in axis.patches]


def test_table_2_has_the_papers_layers_first_and_means_over_pairs(run):
    axes = figures.draw_table2(Results(run), LAYOUT).axes
    assert [axis.get_title() for axis in axes] == [
        f"{name}\nVar($x^*$) = 2"
        for name in ("conv5 @ AlexNet", "conv4_3 @ VGG-16", "layer2 @ ResNet-18")
    ]
    assert widths(axes[1]) == pytest.approx([50, 12.5, 2.5, 30, 5])


def test_compression_is_accuracy_against_what_is_discarded(run):
    (axis,) = figures.draw_compression(Results(run), LAYOUT).axes
    assert {line.get_label(): line.get_xydata().tolist() for line in axis.lines} == {
        "VGG-16 conv4_3": [pytest.approx([0.502, 60]), pytest.approx([0.933, 40])],
        "VGG-16 conv5_2": [pytest.approx([1.004, 60]), pytest.approx([1.866, 40])],
    }
    assert [text.get_text() for text in axis.texts] == ["50 %", "93 %"] * 2


def test_distillation_is_blind_spots_by_generation(run):
    (axis,) = figures.draw_distillation(Results(run), LAYOUT).axes
    (line,) = axis.lines
    np.testing.assert_allclose(line.get_xydata(), [[0, 1], [1, 0.95], [2, 0.9], [10, 0.5]])
    assert axis.get_title() == "VGG-16 conv4_3"


def test_tasks_stand_beside_each_other(run):
    write_json(run / "results/tasks/fine-binary/vgg11_bn_L18/variance.json", report(0.4))
    axes = figures.draw_tasks(Results(run), LAYOUT).axes
    assert {axis.get_title().rsplit("\n", 1)[0]: widths(axis)[3] for axis in axes} == {
        "fine-grained → binary\nvgg11_bn_L18": pytest.approx(20),
        "fine-grained → binary\nVGG-16 conv4_3": pytest.approx(10),
        "binary → fine-grained\nVGG-16 conv4_3": pytest.approx(30),
    }
    assert axes[0].get_title().startswith("fine-grained → binary\nvgg11_bn_L18")


def test_verdicts_have_a_panel_for_each_table_that_claims_something(run):
    axes = figures.draw_verdicts(Results(run), LAYOUT).axes
    titles = [axis.get_title(loc="left").replace("\n", " ") for axis in axes]
    assert titles == [LAYOUT["table2"]["title"], LAYOUT["tasks"]["title"]]
    assert [label.get_text() for label in axes[1].get_yticklabels()] == [
        "the fine-grained net reconstructs more\nvgg16_bn_L30"
    ]
    # Instabilities of 0.3 and 0.1
    assert axes[1].containers[0][0].get_xdata() == pytest.approx([0.2])
    shutil.rmtree(run / "results")
    with refused(run):
        figures.draw_verdicts(Results(run), LAYOUT)


def test_a_calibration_is_drawn_between_its_ends(run):
    instability, similarity = figures.draw_calibration(Results(run), LAYOUT).axes
    found = [(one.get_label(), one[0].get_xdata().tolist()) for one in instability.containers]
    assert [values for _, values in found] == [[pytest.approx(0.3)], [0.5], [pytest.approx(0.3)]]
    ends = instability.containers[0].lines[2][0].get_segments()[0]  # of the bar
    np.testing.assert_allclose(ends, [[0.2, 0], [0.4, 0]])
    assert [one[0].get_xdata().tolist() for one in similarity.containers] == [
        [pytest.approx(0.7)],
        [0.75],
    ]


def test_what_has_no_data_is_left_out_and_named(run, capsys):
    shutil.rmtree(run / "results/distillation")
    figures.main([str(run)])
    said = capsys.readouterr().out.splitlines()
    (line,) = (line for line in said if line.startswith("left out: "))
    left_out = {name for name in MAPS | NUMBERS if re.search(rf"\b{name}\b[^()]* \(", line)}
    assert left_out == MAPS | {"fig4_distillation"}
    assert any("results/distillation has no results" in line for line in said)
    assert (
        "fig5_fine_to_binary (no checkpoint at lost_g; train it first or correct the path)" in line
    )
    drawn = NUMBERS - left_out
    names = {f"{name}.{ending}" for name in drawn for ending in ("png", "svg")}
    assert {path.name for path in (run / "figures").iterdir()} == names
    for name in drawn:
        with Image.open(run / "figures" / f"{name}.png") as picture:
            assert min(picture.size) > 200
        assert ElementTree.parse(run / "figures" / f"{name}.svg").getroot().tag.endswith("svg")


def test_accuracies_that_are_missing_are_named(run, capsys):
    for path in run.glob("results/compression/*/pruning/net.json"):
        path.unlink()
    figures.main([str(run)])
    assert re.search(r"left out: .*fig4_compression[^()]* \(", capsys.readouterr().out)


def test_maps_are_those_of_the_named_checkpoints(fitted, tmp_path, capsys):
    nets = [
        str(fitted / f"model_checkpoints/checkpoint_digits_resnet18_sd{seed}.pth.tar")
        for seed in (0, 5)
    ]
    for row, (net_in, net_tar), suffix in (
        ("diagnosis/blind_spots", nets, ""),
        ("tasks/binary-fine", nets[::-1], "_reverse"),
    ):
        trans_net = fitted / f"model_checkpoints/digits_resnet18/checkpoint_L2{suffix}.pth.tar"
        words = [
            "--net_in",
            net_in,
            "--net_tar",
            net_tar,
            "--transnet",
            str(trans_net),
            "--conv_layer",
            "2",
        ]
        words += [
            "--data_root",
            str(fitted / "data"),
            "--json",
            str(tmp_path / "results" / row / "net_L2/v.json"),
        ]
        Variance.main(words)
    (tmp_path / "mix").symlink_to(fitted / "data")
    capsys.readouterr()
    figures.main([str(tmp_path), "--data_root", str(fitted / "data"), "--photos", "2"])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("saved ")] == [
        f"saved {tmp_path}/figures/{name}.png and .svg"
        for name in ("fig3_blind_spots", "fig5_binary_to_fine")
    ]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {
        "fig3_blind_spots",
        "fig5_binary_to_fine",
    }

    figure = figures.draw_maps(
        Results(tmp_path), "diagnosis/blind_spots/net_L2", "blind spots", fitted / "data", 2
    )
    assert (
        figure.get_suptitle()
        == "features of resnet18 layer2.1.add, reconstructed from resnet18 layer2.1.add"
    )
    assert r"blind spots $x_\Delta$" in [axis.get_title() for axis in figure.axes]
    assert sum(bool(axis.images) for axis in figure.axes) == 2 * 4

    shutil.copytree(
        tmp_path / "results/tasks/binary-fine/net_L2",
        tmp_path / "results/tasks/binary-fine/other_L2",
    )
    figures.main([str(tmp_path), "--data_root", str(tmp_path / "nowhere"), "--photos", "1"])
    said = capsys.readouterr().out
    assert "fig5_binary_to_fine_net_L2.png" in said and "fig5_binary_to_fine_other_L2.png" in said
    assert re.search(r"left out: .*fig3_blind_spots[^()]* \(there is no folder ", said)


def test_components_are_on_the_board_after_every_validation(fitted):
    """Of the run with --images; the other has none."""
    for name, steps in (("L2", [1, 2]), ("L2_reverse", [])):
        events = EventAccumulator(str(fitted / "logs/digits_resnet18" / name))
        events.Reload()
        shown = [event for tag in events.Tags()["images"] for event in events.Images(tag)]
        assert [event.step for event in shown] == steps
        assert all(event.width > 700 and event.height > 400 for event in shown)
