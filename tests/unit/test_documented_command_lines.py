"""The command lines of the authors' README parse, and come to what they mean."""

import importlib
import shlex

import pytest

from utils import fit_options

# The command lines of the authors' README, with file names where it has brackets, and what they
# must come to.
DOCUMENTED = [
    (
        (
            "python Training.py --device_ids [0,1] --lr 0.01 --epochs 300 --dataset CUB200"
            " --save_epoch 50 --suffix lr-2_sd0 --seed 0 --batch-size 128 --epoch_step 60 --arch"
            " vgg16_bn"
        ),
        {
            "device_ids": [0, 1],
            "lr": 0.01,
            "epochs": 300,
            "dataset": "CUB200",
            "save_epoch": 50,
            "suffix": "lr-2_sd0",
            "seed": 0,
            "batch_size": 128,
            "epoch_step": 60,
            "arch": "vgg16_bn",
            "optim": "SGD",
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "decay_factor": 0.3,
            "logspace": 0,
        },
    ),
    (
        (
            "python ConvOutput.py --arch vgg16_bn --batch_size 128 --resume1 A.pth.tar --resume2"
            " B.pth.tar --dataset CUB200 --conv_layer 30"
        ),
        {
            "arch": "vgg16_bn",
            "batch_size": 128,
            "resume1": "A.pth.tar",
            "resume2": "B.pth.tar",
            "dataset": "CUB200",
            "conv_layer": 30,
            "t_or_v": "train",
            "topk": None,
            "dtype": "float32",
        },
    ),
    (
        (
            "python Training_TransNet.py --arch vgg16_bn --device_ids [0,0] --dataset CUB200"
            " --conv_layer 30 --convOut_path features --lr 0.0001 --alpha [0.1,0.1] --epochs 1000"
            " --suffix a0.1_lr-4"
        ),
        {
            "arch": "vgg16_bn",
            "device_ids": [0, 0],
            "dataset": "CUB200",
            "conv_layer": 30,
            "convOut_path": "features",
            "lr": 1e-4,
            "alpha": [0.1, 0.1],
            "epochs": 1000,
            "suffix": "a0.1_lr-4",
            "layers": [3],
            "optim": "Adam",
            "weight_decay": 1e-4,
            "batch_size": 64,
            "logspace": 2,
            "L2": False,
            "norm": "instance",
            "fix_p": False,
        },
    ),
    (
        (
            "python transClassifier.py --arch vgg16_bn --net_A A.pth.tar --net_B B.pth.tar"
            " --resume_Ys g.pth.tar --dataset CUB200 --gpu 0 --conv_layer 30 --epochs 100 --lr"
            " 0.00001 --logspace 2 --suffix lr-5_lg2"
        ),
        {
            "arch": "vgg16_bn",
            "net_A": "A.pth.tar",
            "net_B": "B.pth.tar",
            "resume_Ys": "g.pth.tar",
            "dataset": "CUB200",
            "gpu": 0,
            "conv_layer": 30,
            "epochs": 100,
            "lr": 1e-5,
            "logspace": 2,
            "suffix": "lr-5_lg2",
            "optim": "Adam",
            "batch_size": 64,
        },
    ),
    (
        (
            "python BornAgain.py --save_epoch 50 --start_gen 1 --seed 10 --resume teacher.pth.tar"
            " --device_ids [0,1] --gpu_teacher 2 -a vgg16_bn --epochs 300 --lr 0.01 --epoch_step 60"
            " --logspace 0 --tau 1 --lambd 0.5 --lambd_end 0.5"
        ),
        {
            "save_epoch": 50,
            "start_gen": 1,
            "seed": 10,
            "resume": "teacher.pth.tar",
            "device_ids": [0, 1],
            "gpu_teacher": 2,
            "arch": "vgg16_bn",
            "epochs": 300,
            "lr": 0.01,
            "epoch_step": 60,
            "logspace": 0,
            "tau": 1,
            "lambd": 0.5,
            "lambd_end": 0.5,
        },
    ),
    (
        (
            "python Variance.py --arch_in vgg16_bn --arch_tar vgg16_bn --net_in A.pth.tar --net_tar"
            " B.pth.tar --transnet g.pth.tar --dataset CUB200 --gpu 0 --conv_layer 30"
        ),
        {
            "arch_in": "vgg16_bn",
            "arch_tar": "vgg16_bn",
            "net_in": "A.pth.tar",
            "net_tar": "B.pth.tar",
            "transnet": ["g.pth.tar"],
            "dataset": "CUB200",
            "gpu": 0,
            "conv_layer": 30,
            "t_or_v": "val",
            "mean": "channel",
            "batch_size": 64,
        },
    ),
]


@pytest.mark.parametrize(
    ("line", "expected"), DOCUMENTED, ids=[line.split()[1] for line, _ in DOCUMENTED]
)
def test_the_documented_command_lines_parse(line, expected, capsys):
    script, *words = shlex.split(line)[1:]
    parser = importlib.import_module(script.removesuffix(".py")).build_parser()
    parsed = parser.parse_args(words)
    if "steps" in parsed:  # the budget's defaults depend on other options
        fit_options.fill_budget(parsed)
    args = vars(parsed)
    assert {key: args[key] for key in expected} == expected
    assert capsys.readouterr() == ("", "")
