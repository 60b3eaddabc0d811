import pytest

from distillation import hsakd_log

EPOCH = {
    "epoch": 1,
    "Loss": 3.5,
    "ce_class": 1.0,
    "ce_aux1": 0.5,
    "kl_aux1": 2.0,
    "ss_aux1": 25.0,
    "class_aux1": 50.0,
    "top1_prec": 12.5,
    "test_Loss": 1.25,
    "test_ss_aux1": 6.25,
    "test_class_aux1": 30.0,
    "test_top1_prec": 40.0,
    "lr": 0.05,
    "seconds": 0.2236,
}


def test_the_log_of_an_epoch(tmp_path):
    hsakd_log.write(tmp_path / "result" / "run.txt", {"lr": 0.05, "arch": "x"}, "cpu", [EPOCH], {})
    assert (tmp_path / "result" / "run.txt").read_text().splitlines() == [
        "==========",
        "Args:Namespace(lr=0.05, arch='x')",
        "device:cpu",
        "==========",
        "Epoch:0\t lr:0.05000\t duration:0.224",
        " train_loss:3.50000\t train_loss_cls:1.50000\t train_loss_div:2.00000",
        "Train Top-1 ss_accuracy: [0.25]",
        "Train Top-1 class_accuracy: [0.5, 0.125]",
        "test epoch:0\t test_loss_cls:1.25000",
        "Top-1 ss_accuracy: [0.0625]",
        "Top-1 class_accuracy: [0.3, 0.4]",
    ]


def test_a_pair_has_a_list_for_each_network_and_a_baseline_no_branches(tmp_path):
    both = {"epoch": 1, "Loss": 1.0, "lr": 0.1, "seconds": 1.0}
    both |= {
        f"net{n}_{name}": 10.0 * n
        for n in (1, 2)
        for name in ("ss_aux1", "class_aux1", "top1_prec")
    }
    alone = {"epoch": 1, "Loss": 1.0, "lr": 0.1, "seconds": 1.0, "top1_prec": 20.0}
    teacher = {"test_Loss": 2.0, "test_top1_prec": 75.0}
    hsakd_log.write(tmp_path / "run.txt", {}, "cpu", [both, alone], teacher)
    lines = (tmp_path / "run.txt").read_text().splitlines()
    assert (
        lines[4] == "teacher\t test_loss_cls:2.00000" and lines[6] == "Top-1 class_accuracy: [0.75]"
    )
    assert "Train Top-1 ss_accuracy: [[0.1], [0.2]]" in lines
    assert "Train Top-1 class_accuracy: [[0.1, 0.1], [0.2, 0.2]]" in lines
    assert lines[-2:] == ["Train Top-1 ss_accuracy: []", "Train Top-1 class_accuracy: [0.2]"]


def test_the_best_epoch_of_each_split():
    def row(epoch, test, val):
        return {
            "epoch": epoch,
            "test_Loss": 1,
            "val_Loss": 1,
            "test_top1_prec": test,
            "val_top1_prec": val,
        }

    best = {}
    for last in (row(0, 50, 60), row(1, 50, 70), row(2, 55, 65)):
        best = hsakd_log.best_of(best, last, "top1_prec")
    assert (best["test"]["epoch"], best["val"]["epoch"]) == (2, 1)
    assert hsakd_log.best_of(
        {}, {"epoch": 0, "test_Loss": 1, "test_top1_prec": 0}, "top1_prec"
    ).keys() == {"test"}


def test_what_decides_is_the_highest_of_its_kind():
    row = {"test_ss_aux1": 10.0, "test_ss_aux2": 30.0, "test_top1_prec": 90.0, "ss_aux1": 99.0}
    assert hsakd_log.decided(row, "test", "ss_aux") == 30
    pair = {"test_net1_top1_prec": 10.0, "test_net2_top1_prec": 20.0, "test_net1_ss_aux1": 90.0}
    assert hsakd_log.decided(pair, "test", "top1_prec") == 20


@pytest.mark.parametrize("probe", [False, True])
def test_closing_words(probe):
    last, better = (
        {"epoch": n, "test_Loss": 1.0, "test_top1_prec": acc} for n, acc in ((9, 50.0), (7, 52.5))
    )
    lines = hsakd_log.closing_words(last, {"test": better, "val": last}, probe).splitlines()
    assert "last epoch (9): test_top1_prec 50" in lines and len(lines) == 3
    assert "best epoch on the test images (7): test_top1_prec 52.5" in lines
    assert lines[-1 if probe else 0].startswith("last epoch")
