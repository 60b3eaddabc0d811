"""DCM.py's command lines: documented and wrong."""

import shlex

import pytest

import DCM
from tests.mistakes import refuses

pytestmark = pytest.mark.e2e
DOCUMENTED = (
    "--save ./logs/wrn-28-10 --depth 28 --width 10 --dataroot PATH",
    "--save ./logs/wrn-28-10_mobilenet --dataroot PATH --net2 mobilenet",
)


@pytest.mark.parametrize("line", DOCUMENTED)
def test_documented_command_lines(line, capsys):
    parser = DCM.build_parser()
    args = parser.parse_args(shlex.split(line))
    DCM.fill(args)
    assert args.net1 == "wrn_28_10"
    assert args.net2 == ("mobilenet" if "mobilenet" in line else "wrn_28_10")
    assert (args.dataset, args.data_root, args.batch_size, args.epochs, args.lr) == (
        "CIFAR100",
        "PATH",
        128,
        200,
        0.1,
    )
    assert (args.epoch_step, args.lr_decay_ratio, args.weight_decay, args.seed) == (
        [60, 120, 160],
        0.2,
        5e-4,
        1,
    )
    assert (args.augment, args.normalisation, args.method, args.image_size) == (
        "reflect4",
        "dcm",
        "dcm",
        32,
    )
    assert capsys.readouterr().out == ""


def test_every_documented_option(capsys):
    parser = DCM.build_parser()
    line = (
        "--model resnet --depth 16 --width 0.5 --dataset CIFAR10 --dataroot d --dtype float"
        " --groups 1 --nthread 3 --seed 2 --batch_size 64 --lr 0.2 --epochs 9 --weight_decay 1e-4"
        " --epoch_step '[60, 120]' --lr_decay_ratio 0.1 --resume auto --note 'a note' --cuda --save"
        " s --ngpu 2 --gpu_id 3,1,2"
    )
    args = parser.parse_args(shlex.split(line))
    DCM.fill(args)
    assert (args.net1, args.net2, args.dataset, args.workers) == (
        "wrn_16_0.5",
        "wrn_16_0.5",
        "CIFAR10",
        3,
    )
    assert (args.epoch_step, args.device_ids, args.out, args.note) == (
        [60, 120],
        [3, 1],
        "s",
        "a note",
    )
    said = capsys.readouterr().out
    assert [
        option for option in ("--model", "--groups", "--cuda") if f"{option} has no effect" in said
    ] == ["--model", "--groups", "--cuda"]


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("", ("--save",)),
        ("--save ''", ("--save", "''")),
        (
            "--save s --net1 wrn_16_1 --net2 mobilenet --depth 16",
            ("--depth", "--net1", "--net2"),
        ),
        ("--save s --ngpu 3 --gpu_id 0,1", ("--ngpu 3", "--gpu_id", "2")),
        ("--save s --epoch_step [60,x]", ("--epoch_step", "1", "'x'")),
        ("--save s --batch_statistics 3", ("--batch_statistics", "3")),
    ],
)
def test_usage_errors_are_one_line(line, facts):
    refuses(DCM.main, shlex.split(line), *facts, code=2)
