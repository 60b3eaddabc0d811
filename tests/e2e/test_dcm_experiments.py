"""DCM.py's experiments: the authors' first steps, the paper's command lines, and its table."""

import pytest

import DCM
from experiments import tables
from models.small.author_keys import load_authors_state
from models.small.couple import build_couple
from tests.e2e.sections import commands, only
from tests.golden.authors_nets import part, read, tensor
from utils import checkpoint, opening
from utils.files import read_json
from utils.option_groups import TrainingOptions

pytestmark = pytest.mark.e2e


def test_the_first_steps_are_the_authors():
    """The script's own step and optimiser, on the golden batches."""
    golden = read("dcm_wrn16_wrn16")
    training = TrainingOptions.of(DCM.build_parser().parse_args(["--save", "unused"]))
    couple = build_couple(("wrn_16_1", "wrn_16_1"), 10)
    for number, net in enumerate((couple.net1, couple.net2), start=1):
        load_authors_state(net, part(golden, f"net{number}/"))
    optimizer = opening.optimizer(training, couple.train())
    for step, rows in ((1, slice(0, 4)), (2, slice(4, 8))):
        images, labels = (tensor(golden, name)[rows] for name in ("input", "labels"))
        loss, metrics = DCM.teach(
            couple, images, labels, labels, preprocess=lambda batch, _: batch, method="dcm"
        )
        assert loss.item() == pytest.approx(float(golden[f"step{step}/total"]), rel=1e-4)
        assert metrics["CE"].item() == pytest.approx(
            float(golden[f"step{step}/ce"].sum()), rel=1e-4
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_the_table_has_both_networks_and_the_papers_settings(tmp_path):
    cell = tmp_path / "results/distil_cifar/dcm/wrn_28_10-mobilenet"
    data = {
        "dataset": "CIFAR100",
        "image_size": 32,
        "classes": [str(label) for label in range(100)],
    }
    facts = {
        "epoch": 200,
        "data": data,
        "optimizer": {"param_groups": [{"lr": 0.0008}]},
        "settings": {"batch_size": 64},
    }
    for seed, errors in ((1, (17.0, 21.0)), (2, (18.0, 22.0))):
        state = facts | {"optimizer": {"param_groups": [{"lr": 0.0008}]}}
        state["test_error"] = dict(zip(("net1", "net2"), errors))
        checkpoint.save(cell / f"sd{seed}.pth.tar", state)
    layout = read_json(tables.PAPER)["tables"]["distil_cifar"]
    table = tables.read_table("distil_cifar", layout, tables.Results(tmp_path), layout["settings"])
    assert table.ours == {("dcm", "wrn_28_10-mobilenet"): 17.5, ("dcm", "mobilenet"): 21.5}
    assert table.paper["dcm", "mobilenet"] == 21.43
    (note,) = table.notes
    assert note.endswith("(in brackets): batch size of nets on CIFAR100 64 (128).")


def test_the_experiments_are_the_papers():
    found = commands("distil_cifar")
    (table,) = only(found, "experiments.tables")
    assert table.tables == ["distil_cifar"]
    lines = only(found, "DCM")
    assert len(lines) == 2 * 3 * 5
    for args in lines:
        DCM.fill(args)
    assert {(args.net1, args.net2, args.method, args.seed) for args in lines} == {
        ("wrn_28_10", second, method, seed)
        for second in ("wrn_28_10", "mobilenet")
        for method in ("alone", "dml", "dcm")
        for seed in (1, 2, 3, 4, 5)
    }
    assert {(args.epochs, args.batch_size, args.resume) for args in lines} == {(200, 128, "auto")}
    saved = {f"{args.out}/checkpoint.pth.tar" for args in lines}
    assert len(saved) == len(lines)
    links = only(found, "ln")
    assert len({name for _, name in links}) == 3 * len(lines)  # the run, and each of its networks
