"""The paper's tables from planted results: their numbers,
and the settings that differ from the paper's.
"""

import csv

import pytest

from experiments import tables
from tests.mistakes import refused
from tests.unit.planted_results import DATA, LAYOUT, by_title, fill, save, variance
from utils.files import write_json


def test_a_cell_is_the_mean_of_its_files_beside_the_papers(tmp_path):
    cell = tmp_path / "results/table1/case1/vgg16_bn_L30"
    variance(cell / "sd0-sd5.json", 0.2)
    variance(cell / "sd5-sd0.json", 0.4)
    variance(tmp_path / "results/table1/case2/vgg16_bn_L40/a.json", 0.7)
    head, rows = by_title(fill(tmp_path, "table1"))
    ours = head.index("conv4_3 @ VGG-16")
    first, second = (
        rows["case 1: two initialisations"],
        rows["case 2: two halves of the training images"],
    )
    assert head[ours + 1] == "paper"
    assert (first[ours], first[ours + 1]) == ("0.300 (0.200 … 0.400)", "0.124")
    assert (second[ours], second[ours + 1]) == ("", "0.121")
    assert second[head.index("conv5_3 @ VGG-16")] == "0.700"
    # What was never measured is empty, the paper's number stays.
    resnet = head.index("last conv @ ResNet-34")
    assert (first[resnet], first[resnet + 1]) == ("", "0.776")


def test_other_networks_follow_without_a_column_of_the_paper(tmp_path):
    for arch in ("resnet18_L4", "alexnet_L8"):
        variance(tmp_path / f"results/table1/case1/{arch}/pair.json", 0.25)
    head, rows = by_title(fill(tmp_path, "table1"))
    assert head[-1] == "resnet18_L4"
    assert rows["case 1: two initialisations"][len(head) - 1] == "0.250"
    assert head.count("paper") == 5


def test_columns_without_a_number_of_ours_are_left_out_and_named(tmp_path):
    for arch in ("vgg16_bn_L30", "resnet18_L4"):
        variance(tmp_path / f"results/table1/case1/{arch}/pair.json", 0.25)
    table = tables.with_numbers(fill(tmp_path, "table1"))
    head, rows = by_title(table)
    assert head == ["", "conv4_3 @ VGG-16", "paper", "resnet18_L4"]
    assert rows["case 1: two initialisations"] == dict(
        enumerate(["case 1: two initialisations", "0.250", "0.124", "0.250"])
    )
    assert table.notes[-1].startswith("Left out, since this run has no number: ")
    assert "last conv @ ResNet-34" in table.notes[-1] and "conv4_3 @ VGG-16" not in table.notes[-1]
    assert tables.with_numbers(table) == table


def test_table_2_is_case_1_by_order(tmp_path):
    cell = tmp_path / "results/table1/case1/alexnet_L10"
    variance(cell / "a.json", order0=400, order1=70, order2=40, residual=80)
    variance(cell / "b.json", order0=500, order1=80, order2=20, residual=60)
    variance(tmp_path / "results/table1/case2/alexnet_L10/a.json", order0=1e9)
    head, rows = by_title(fill(tmp_path, "table2"))
    column = head.index("conv5 @ AlexNet")
    assert {title: (row[column], row[column + 1]) for title, row in rows.items()} == {
        "Var(x(0))": ("450 (400 … 500)", "424.67"),
        "Var(x(1))": ("75 (70 … 80)", "73.73"),
        "Var(x(2))": ("30 (20 … 40)", "43.69"),
        "Var(x_Δ)": ("70 (60 … 80)", "71.37"),
    }
    # The paper's number is unreadable there.
    assert rows["Var(x_Δ)"][head.index("last conv @ ResNet-34") + 1] == ""


def test_a_constant_target_has_no_instability(tmp_path):
    variance(tmp_path / "results/table1/case1/alexnet_L8/a.json", 0.1)
    variance(tmp_path / "results/table1/case1/alexnet_L8/b.json", None)
    assert ("case1", "alexnet_L8") not in fill(tmp_path, "table1").ours


def test_accuracies_come_through_links_and_settings_are_no_row(tmp_path):
    net = save(tmp_path / "model_checkpoints/net.pth.tar", 15, acc1=41.0, data=DATA)
    tail = save(
        tmp_path / "check/a/tail.pth.tar",
        20,
        1e-7,
        acc1=44.5,
        best_acc1=60.0,
        data=DATA,
        settings={"input": "components", "in_mode": [1, 0, 0]},
    )
    for cell, target in (("100/resnet18_L3", tail), ("settings/resnet18_L3", net)):
        folder = tmp_path / "results/table3" / cell
        folder.mkdir(parents=True)
        (folder / "link.pth.tar").symlink_to(target)
    table = fill(tmp_path, "table3")
    assert table.ours == {("100", "resnet18_L3"): 44.5}
    assert list(table.rows) == ["A", "B", "100", "110", "111"]
    (note,) = table.notes
    for said in (
        "classes of CUB200 10 (200)",
        "epochs of nets on CUB200 15 (300)",
        "epochs of tails 20 (100)",
        "pixels to a side 64 (224)",
    ):
        assert said in note
    assert "rate" not in note


def test_settings_of_the_paper_are_not_mentioned(tmp_path):
    data = DATA | {"classes": [str(label) for label in range(200)], "image_size": 224}
    paths = {
        "path_a": save(tmp_path / "a.pth.tar", 300, acc1=1.0, data=data),
        "path_b": save(tmp_path / "b.pth.tar", 20, acc1=1.0, data=data, settings={"s_conv": 1.0}),
        "transnet_path": save(tmp_path / "g.pth.tar", 1000, 1e-6, trans_net={}),
    }
    variance(tmp_path / "results/table1/case1/alexnet_L8/a.json", source=paths)
    assert fill(tmp_path, "table1").notes == []
    paths["transnet_path"] = save(tmp_path / "h.pth.tar", 30, 1e-5, trans_net={})
    variance(tmp_path / "results/table1/case1/alexnet_L8/b.json", source=paths)
    (note,) = fill(tmp_path, "table1").notes
    assert (
        "epochs of Trans-Nets 30, 1000 (1000); last rate of Trans-Nets 1e-06, 1e-05 (1e-06)."
        in note
    )


def test_what_the_files_record_is_held_against_the_paper(tmp_path):
    paper = {"batch_size": 128, "optim": "SGD", "lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}
    fit = {"optim": "Adam", "lr": 1e-4, "alpha": [0.1, 0.1], "batch_size": 64}
    data = DATA | {"classes": [str(label) for label in range(200)], "image_size": 224}

    def notes(of_nets, of_trans_nets):
        paths = {
            "path_a": save(tmp_path / "a.pth.tar", 300, data=data, settings=of_nets),
            "transnet_path": save(
                tmp_path / "g.pth.tar", 1000, 1e-6, trans_net={}, settings=of_trans_nets
            ),
        }
        variance(tmp_path / "results/table1/case1/alexnet_L8/a.json", source=paths)
        return fill(tmp_path, "table1").notes

    assert notes(paper, fit) == []
    (note,) = notes(
        paper | {"batch_size": 32, "lr": 0.1}, fit | {"optim": "SGD", "alpha": [0.5, 8.0]}
    )
    assert (
        note
        == "Settings that differ from the paper's (in brackets): alpha of Trans-Nets [0.5, 8.0]"
        " ([0.1, 0.1]); batch size of nets on CUB200 32 (128); first rate of nets on CUB200 0.1"
        " (0.01); optimiser of Trans-Nets SGD (Adam)."
    )


def test_diagnosis_reads_the_nets_and_subtracts(tmp_path):
    column, results = "alexnet_L10-resnet34_L3", tmp_path / "results/diagnosis"
    paths = {
        "path_a": save(tmp_path / "weak.pth.tar", 300, acc1=50.0, data=DATA),
        "path_b": save(tmp_path / "strong.pth.tar", 300, acc1=70.0, data=DATA),
    }
    variance(results / f"blind_spots/{column}/variance.json", 0.4, paths)
    for row, accuracy in (("raw", 52.0), ("blind_spots_added", 66.5)):
        save(results / row / column / "tail.pth.tar", 100, acc1=accuracy, settings={"input": row})
    _, rows = by_title(fill(tmp_path, "diagnosis"))
    assert {title: (row[1], row[2]) for title, row in rows.items()} == {
        "weak net, as trained": ("50.00", "56.97"),
        "strong net, as trained": ("70.00", "73.09"),
        "weak net's tail on its raw feature": ("52.00", "60.30"),
        "the same, unreliable features removed": ("", "65.60"),
        "the same tail on g(x_A), blind spots added": ("66.50", ""),
        "gained by the blind spots": ("14.50", "16.10"),
    }
    assert fill(tmp_path, "diagnosis_instability").ours == {("blind_spots", column): 0.4}
    for lost in (results / "raw").rglob("*.pth.tar"):
        lost.unlink()
    assert ("gain", column) not in fill(tmp_path, "diagnosis").ours


def test_sweeps_are_in_numerical_order(tmp_path):
    for threshold, removed in (("1.2-2", 93.3), ("0.4-1.25", 70.0), ("0.2-1", 50.0)):
        cell = tmp_path / f"results/compression/vgg16_bn_{threshold}"
        percents = {"before": 61.0, "pruned": 1.0, "retrained": 60.0}
        write_json(
            cell / "pruning/net.json", {"removed_percent": removed, "accuracy_percent": percents}
        )
        variance(cell / "L37/variance.json", residual=removed / 100)
    for generation in (10, 2, 0):
        variance(
            tmp_path / f"results/distillation/vgg16_bn_L30_gen{generation}/variance/v.json",
            0.3,
            residual=4,
        )
    head, *body = tables.lines(fill(tmp_path, "compression"))
    assert head[1:] == [
        "parameters removed, %",
        "accuracy before",
        "accuracy after",
        "Var(x_Δ) at conv5_2",
    ]
    assert body == [
        ["vgg16_bn_0.2-1", "50", "61", "60", "0.5"],
        ["vgg16_bn_0.4-1.25", "70", "61", "60", "0.7"],
        ["vgg16_bn_1.2-2", "93.3", "61", "60", "0.933"],
    ]
    assert list(fill(tmp_path, "distillation").rows) == [
        f"vgg16_bn_L30_gen{generation}" for generation in (0, 2, 10)
    ]


def test_the_command_prints_and_writes(tmp_path, capsys):
    variance(tmp_path / "results/tasks/fine-binary/vgg16_bn_L30/variance.json", 0.25)
    variance(tmp_path / "results/table1/case1/alexnet_L8/pair.json", 0.5)
    (tmp_path / "results/tasks/note.txt").write_text("No dogs.\n")
    words = [str(tmp_path), "--markdown", str(tmp_path / "t.md"), "--csv", str(tmp_path / "t.csv")]
    tables.main(words)
    printed = capsys.readouterr().out
    assert "### Fig. 5" in printed
    assert "No dogs.\n" in printed
    assert "| fine-grained → binary | 0.25 |" in printed
    assert "| case 1: two initialisations | 0.500 | 0.086 |\n" in printed
    assert "Table 4" not in printed
    written, saved = printed.split("saved ", 1)
    assert saved == f"{tmp_path}/t.md\nsaved {tmp_path}/t.csv\n"
    assert written.strip() in (tmp_path / "t.md").read_text(encoding="utf-8")
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == ["table", "row", "column", "ours", "paper", "low", "high", "between"]
    assert ["table1", "case1", "alexnet_L8", "0.5", "0.086", "", "", ""] in lines
    assert ["table1", "case2", "resnet34_L4", "", "0.275", "", "", ""] in lines
    assert ["tasks", "fine-binary", "vgg16_bn_L30", "0.25", "", "", "", ""] in lines

    tables.main([str(tmp_path), "--paper_columns", "all"])
    assert "| case 1: two initialisations | 0.500 | 0.086 |  | 0.116 |" in capsys.readouterr().out
    tables.main([str(tmp_path), "tasks"])
    assert "Table 1" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "facts"),
    [(["table9"], ("'table9'", "diagnosis", "table1")), ([], ("results", "experiments/"))],
)
def test_what_is_not_there_is_named(tmp_path, words, facts):
    with refused("tables.py", *facts, kind=SystemExit):
        tables.main([str(tmp_path), *words])


def test_rows_of_a_calibration_are_found_by_name(tmp_path):
    rows = [
        {"pairs": name, "value": value}
        for name, value in (("null: B untrained", 0.8), ("this Trans-Net", 0.3))
    ]
    baselines = [{"name": "ridge R2", "value": 0.6}]
    cell = tmp_path / "results/calibration/resnet18_L2_case1/calibrate"
    consistency = {"value": 0.7, "low": 0.6, "high": 0.8}  # an only file's own interval is believed
    report = {
        "rows": rows,
        "baselines": baselines,
        "linear": {"p": 0.01},
        "consistency": consistency,
        "transnet": "5f1c",
    }
    write_json(cell / "sd0.json", report)
    head, body = by_title(fill(tmp_path, "calibration"))
    (line,) = body.values()
    assert [(name, line[place]) for place, name in enumerate(head) if name] == [
        ("instability", "0.300"),
        ("null: B untrained", "0.800"),
        ("normalised consistency", "0.700 [0.600, 0.800]"),
        ("p of the linear reference", "0.010"),
        ("ridge R²", "0.600"),
    ]


def test_every_number_of_the_paper_has_its_row_and_column():
    for layout in LAYOUT["tables"].values():
        for row, cells in layout["paper"].items():
            assert row in layout["rows"]
            assert set(cells) <= set(layout["columns"])
        for claim in layout.get("claims", ()):
            assert claim["says"] and len(claim.get("rows", claim.get("columns"))) == 2
            assert set(claim.get("rows", ())) <= set(layout["rows"])
            assert set(claim.get("where", ())) <= set(
                layout["columns" if "rows" in claim else "rows"]
            )
