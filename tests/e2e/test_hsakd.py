"""HSAKD.py: every command on 24 photos of 32 pixels, with the smallest networks."""

import json
import os
import shlex

import pytest
import torch

import HSAKD
from models.classifiers import load_classifier
from models.small.author_keys import authors_state
from models.small.auxiliary import build_with_heads
from tests.e2e.road import assert_same
from tests.mistakes import refused
from utils import checkpoint
from utils.files import claim

pytestmark = pytest.mark.e2e
TEACHER = "teacher --arch wrn_10_0.5_aux"
STUDENT = "student --tarch wrn_10_0.5_aux --arch resnet8_aux"
RUNS = {  # by command: the run's folder, the architecture's part of its files
    "baseline": ("train_baseline_cifar_arch_resnet8_dataset_cifar100_seed0", "resnet8"),
    "teacher": ("train_teacher_cifar_arch_wrn_10_0.5_aux_dataset_cifar100_seed1", "wrn_10_0.5_aux"),
    "student": (
        "train_student_cifar_tarch_wrn_10_0.5_aux_arch_resnet8_aux_dataset_cifar100_seed0",
        "resnet8_aux",
    ),
    "few": (
        "train_student_few_shot_tarch_wrn_10_0.5_aux_arch_resnet8_aux_dataset_cifar100_few_ratio_0.5_seed0",
        "resnet8_aux",
    ),
    "online": (
        "train_online_kd_cifar_arch_WRN_40_1_WRN_40_1_dataset_cifar100_seed0",
        "WRN_40_1_WRN_40_1",
    ),
    "probe": ("eval_rep_arch_resnet8_dataset_STL-10_seed0", "resnet8"),
}


def run(photos, out, line):
    words = f"{line} --data {photos} --batch-size 6 --checkpoint-dir {out}/checkpoint --out {out}"
    if "--epochs" not in line:
        words += " --epochs 1"
    HSAKD.main(shlex.split(words))


def path_of(out, command, *, best=False):
    folder, arch = RUNS[command]
    return out / "checkpoint" / folder / f"{arch}{'_best' * best}.pth.tar"


def saved(out, command, *, best=False):
    return checkpoint.load(path_of(out, command, best=best))


def lines_of(out, command):
    return [json.loads(line) for line in (out / "logs" / RUNS[command][0] / "metrics.jsonl").open()]


def text_of(out, command):
    return (out / "result" / f"{RUNS[command][0]}.txt").read_text()


@pytest.fixture(scope="module")
def done(photos, tmp_path_factory):
    """One run of each command; the online pair is of the smallest networks,
    not of those it is called.
    """
    out = tmp_path_factory.mktemp("hsakd")
    run(photos, out, "baseline --arch resnet8 --manual 0")
    run(photos, out, f"{TEACHER} --manual 1 --epochs 2 --warmup-epoch 1")
    taught = f"{STUDENT} --tcheckpoint {path_of(out, 'teacher')}"
    run(photos, out, taught)
    run(photos, out, f"{taught} --few-ratio 0.5 --select val --hold_out 0.25")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("distillation.hsakd_nets.online_pair", lambda _: ("wrn_10_0.5", "wrn_10_0.5"))
        run(photos, out, "online --arch WRN_40_1_WRN_40_1")
    run(
        photos,
        out,
        f"probe --arch resnet8 --dataset STL-10 --s-path {path_of(out, 'student')} --epochs 2",
    )
    return out


@pytest.mark.parametrize("command", RUNS)
def test_every_command_writes_the_authors_files(done, command):
    last, best = saved(done, command), saved(done, command, best=True)
    epochs = 2 if command in ("teacher", "probe") else 1
    assert last["epoch"] == epochs - 1 and len(lines_of(done, command)) == epochs
    assert {
        "net",
        "acc",
        "epoch",
        "optimizer",
        "settings",
        "model",
        "data",
        "versions",
        "last",
        "best",
    } <= last.keys()
    select = "val" if command == "few" else "test"
    assert last["best"][select]["epoch"] == best["epoch"]
    kind = "ss_aux" if command == "teacher" else "top1_prec"
    for state in (last, best):
        reached = [
            v for name, v in state["last"].items() if name.startswith(f"{select}_") and kind in name
        ]
        assert state["acc"] == pytest.approx(max(reached) / 100) and 0 <= state["acc"] <= 1
    assert best["acc"] >= last["acc"]
    assert not any("module." in key for key in last["net"])
    assert sorted(path.name for path in path_of(done, command).parent.glob("*.tar")) == sorted(
        path_of(done, command, best=best).name for best in (False, True)
    )


def test_the_states_have_the_authors_names(done):
    named = {
        "baseline": "conv1.weight",
        "teacher": "backbone.block1.layer.0.conv1.weight",
        "student": "auxiliary_classifier.fc1.weight",
        "online": "net2.auxiliary_classifier.bn3.weight",
        "probe": "fc.weight",
    }
    for command, key in named.items():
        assert key in saved(done, command)["net"]
    assert all(key.startswith(("net1.", "net2.")) for key in saved(done, "online")["net"])
    heads = build_with_heads("wrn_10_0.5", 3, "hsakd")
    assert saved(done, "teacher")["net"].keys() == authors_state(heads).keys()


@pytest.mark.parametrize("command", RUNS)
def test_other_steps_read_the_classifier(done, command):
    net = load_classifier(path_of(done, command))
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_the_log_is_in_the_authors_words(done):
    teacher, student, online = (
        text_of(done, command) for command in ("teacher", "student", "online")
    )
    lines = lines_of(done, "teacher")
    assert teacher.startswith("==========\nArgs:Namespace(") and "device:cpu" in teacher
    assert [line[:8] for line in teacher.splitlines() if line.startswith("Epoch:")] == [
        "Epoch:0\t",
        "Epoch:1\t",
    ]
    ss = [round(lines[1][f"test_ss_aux{number}"] / 100, 4) for number in (1, 2, 3)]
    assert f"Top-1 ss_accuracy: {ss}" in teacher
    classes = [
        round(lines[1][f"test_{name}"] / 100, 4)
        for name in ("class_aux1", "class_aux2", "class_aux3")
    ]
    assert (
        f"Top-1 class_accuracy: {[*classes, round(lines[1]['test_top1_prec'] / 100, 4)]}" in teacher
    )
    assert (
        student.splitlines()[4].startswith("teacher\t test_loss_cls:")
        and "train_loss_div:" in student
    )
    assert "train_loss_div" not in teacher and "Train Top-1 ss_accuracy: [[" in online


def test_the_loss_is_the_sum_of_its_terms(done):
    for command, terms in (("teacher", 4), ("student", 5), ("online", 16)):
        line = lines_of(done, command)[-1]
        found = [value for name, value in line.items() if name.startswith(("ce_", "kl_"))]
        assert len(found) == terms and sum(found) == pytest.approx(line["Loss"], rel=1e-5)


def test_the_warm_up_ends_at_the_rate(done):
    assert [line["lr"] for line in lines_of(done, "teacher")] == [0.05, 0.05]
    teacher = saved(done, "teacher")["settings"]
    assert (teacher["warmup_epoch"], teacher["milestones"], teacher["weight_decay"]) == (
        1,
        [150, 180, 210],
        5e-4,
    )
    group = saved(done, "teacher")["optimizer"]["param_groups"][0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 5e-4)


def test_the_students_teacher_stays_as_it_is(photos, done, tmp_path):
    before = path_of(done, "teacher").read_bytes()
    held = []
    original = HSAKD.train_one_epoch

    def train(fit, loader, step, epoch):
        teacher = step.keywords["teacher"]
        assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
        state = {key: value.clone() for key, value in teacher.state_dict().items()}
        metrics = original(fit, loader, step, epoch)
        assert not teacher.training and all(p.grad is None for p in teacher.parameters())
        assert_same(state, dict(teacher.state_dict()))
        held.append(len(loader.dataset))
        return metrics

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HSAKD, "train_one_epoch", train)
        run(photos, tmp_path, f"{STUDENT} --tcheckpoint {path_of(done, 'teacher')}")
    assert held == [24] and path_of(done, "teacher").read_bytes() == before
    # The same run, the same weights
    assert_same(saved(tmp_path, "student")["net"], saved(done, "student")["net"])


def test_a_frozen_backbone_stays_and_its_branches_learn(photos, done, tmp_path):
    run(photos, tmp_path, "baseline --arch wrn_10_0.5")
    backbone = (
        tmp_path
        / "checkpoint/train_baseline_cifar_arch_wrn_10_0.5_dataset_cifar100_seed0/wrn_10_0.5.pth.tar"
    )
    run(photos, tmp_path, f"{TEACHER} --manual 1 --freezed --pretrained-backbone {backbone}")
    given, frozen = checkpoint.load(backbone)["net"], saved(tmp_path, "teacher")["net"]
    assert_same(
        given,
        {k.removeprefix("backbone."): v for k, v in frozen.items() if k.startswith("backbone.")},
    )
    joint = saved(done, "teacher")["net"]
    branch = "auxiliary_classifier.fc1.weight"
    assert not torch.equal(frozen[branch], joint[branch])
    bare = tmp_path / "published.pth"  # as the authors publish it
    torch.save({"state_dict": given, "epoch": 3, "acc": 0.5}, bare)
    run(photos, tmp_path / "b", f"{TEACHER} --manual 1 --freezed --pretrained-backbone {bare}")
    assert_same(saved(tmp_path / "b", "teacher")["net"], frozen)


def test_a_probe_trains_its_last_layer_alone(done):
    student = saved(done, "student")["net"]
    probed = saved(done, "probe")["net"]
    backbone = {
        key.removeprefix("backbone."): value
        for key, value in student.items()
        if key.startswith("backbone.")
    }
    changed = {key for key, value in probed.items() if not torch.equal(value, backbone[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_few_shot_trains_on_a_share_and_selects_on_held_out_images(photos, done, tmp_path, capsys):
    run(
        photos,
        tmp_path,
        f"{STUDENT} --tcheckpoint {path_of(done, 'teacher')} --few-ratio 0.5 --restart",
    )
    text = capsys.readouterr().out
    assert "12 training and 24 test images" in text
    assert "last epoch (0):" in text and "best epoch on the test images (0):" in text
    chosen = saved(done, "few")
    assert set(chosen["best"]) == {"test", "val"} and "val_top1_prec" in chosen["last"]
    assert set(saved(tmp_path, "few")["best"]) == {"test"}


@pytest.mark.parametrize("command", ["teacher", "student"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(photos, done, tmp_path, command):
    line = {
        "teacher": f"{TEACHER} --manual 1 --warmup-epoch 2",
        "student": (
            f"{STUDENT} --tcheckpoint {path_of(done, 'teacher')} --select val --hold_out 0.25"
        ),
    }[command]
    run(photos, tmp_path / "whole", f"{line} --epochs 2")
    run(photos, tmp_path / "parts", f"{line} --epochs 1")
    run(photos, tmp_path / "parts", f"{line} --epochs 2 --resume")
    whole, parts = saved(tmp_path / "whole", command), saved(tmp_path / "parts", command)
    assert_same(whole["net"], parts["net"])
    assert {key: parts[key] for key in ("acc", "epoch", "last", "best", "teacher")} == {
        key: whole[key] for key in ("acc", "epoch", "last", "best", "teacher")
    }
    for key, state in whole["optimizer"]["state"].items():
        assert torch.equal(
            state["momentum_buffer"], parts["optimizer"]["state"][key]["momentum_buffer"]
        )
    losses = [
        [line["Loss"] for line in lines_of(tmp_path / kind, command)] for kind in ("whole", "parts")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    assert text_of(tmp_path / "parts", command).count("Epoch:") == 2


def test_published_files_teach_and_are_measured_but_not_replaced(photos, done, tmp_path, capsys):
    """A file in the authors' layout: nothing but net, acc, epoch and optimizer."""
    own = saved(done, "teacher")
    path = tmp_path / "checkpoint" / RUNS["teacher"][0] / "wrn_10_0.5_aux.pth.tar"
    checkpoint.save(path, {key: own[key] for key in ("net", "acc", "epoch", "optimizer")})
    run(photos, tmp_path, f"{STUDENT} --tcheckpoint {path}")
    assert_same(saved(tmp_path, "student")["net"], saved(done, "student")["net"])
    capsys.readouterr()
    run(photos, tmp_path, f"{TEACHER} --manual 1 --evaluate")
    assert f"test_top1_prec {own['last']['test_top1_prec']:.4g}" in capsys.readouterr().out
    for option in ("", "--resume"):
        with refused(path, "HSAKD.py", kind=SystemExit):
            run(photos, tmp_path, f"{TEACHER} --manual 1 {option}")


def test_runs_of_other_settings_are_not_replaced(photos, done):
    with refused(path_of(done, "teacher"), "lr", "0.05", "0.01", kind=SystemExit):
        run(photos, done, f"{TEACHER} --manual 1 --epochs 2 --warmup-epoch 1 --init-lr 0.01")


def test_mistakes_are_one_line(photos, done, tmp_path):
    teacher = path_of(done, "teacher")
    wrong = f"student --tarch wrn_16_1 --arch resnet8_aux --tcheckpoint {teacher}"
    for line, facts in (
        (f"{STUDENT} --arch mobilenetV2_aux --tcheckpoint {teacher}", ("3", "4")),
        (f"{STUDENT} --tcheckpoint missing.pth.tar", ("missing.pth.tar",)),
        (wrong, (teacher,)),
        ("teacher --arch resnet9_aux", ("'resnet9'",)),
        ("online --arch resnet8", ("'resnet8'",)),
        (f"{STUDENT} --few-ratio 2 --tcheckpoint {teacher}", ("--few-ratio", "2")),
        ("baseline --arch resnet8 --select val --hold_out 0.01", ("--hold_out 0.01",)),
    ):
        with refused("HSAKD.py", *facts, kind=SystemExit):
            run(photos, tmp_path, line)


def test_torchrun_stands_for_the_authors_processes(photos, tmp_path, capsys):
    run(
        photos,
        tmp_path,
        "baseline --arch resnet8 --multiprocessing-distributed --world-size 1 --kd_T 4",
    )
    text = capsys.readouterr().out
    assert text.count("torchrun --nproc_per_node GPUS HSAKD.py") == 1
    assert "--kd_T has no effect" in text


def test_two_runs_do_not_write_one_checkpoint_whatever_folder_their_logs_are_in(photos, tmp_path):
    path = path_of(tmp_path, "baseline")
    line = (
        "baseline --arch resnet8 --data {} --batch-size 6 --epochs 1 --checkpoint-dir {}/checkpoint"
    )
    words = shlex.split(line.format(photos, tmp_path))
    with claim(path, is_file=True), refused(path, os.getpid(), kind=SystemExit):
        HSAKD.main([*words, "--out", str(tmp_path / "elsewhere")])
    assert not path.exists()
