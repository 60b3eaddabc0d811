"""HSAKD.py's command lines: documented, wrong, and those of its experiment."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

import HSAKD
from tests.mistakes import refuses
from utils import checkpoint

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("line", "facts"),
    [
        ("baseline --arch resnet8 --milestones 60 30", ("--milestones", "60 30")),
        ("baseline --arch resnet8 --milestones 3.5", ("--milestones", "0", "'3.5'")),
        ("teacher --freezed", ("--freezed", "--pretrained_backbone")),
        ("online", ("--arch", "WRN_40_2_WRN_40_2")),
        ("baseline", ("--arch",)),
        ("teacher --tarch wrn_40_2", ("--tarch",)),
        ("baseline --arch resnet8 --lr-type cosine", ("--lr_type", "'cosine'")),
    ],
)
def test_usage_errors(line, facts):
    refuses(HSAKD.main, shlex.split(line), *facts, code=2)


IMAGENET = (
    "--data ./data/ImageNet/ --dist-url tcp://127.0.0.1:2222 --dist-backend nccl"
    " --multiprocessing-distributed --world-size 1 --rank 0 --dataset imagenet"
)
DOCUMENTED = {
    "baseline --arch wrn_16_2 --data ./data/ --gpu 0": {
        "lr": 0.05,
        "milestones": [150, 180, 210],
        "device_ids": [0],
    },
    "baseline --arch ShuffleV1 --data ./data/ --init-lr 0.01 --gpu 0": {
        "lr": 0.01,
        "nesterov": True,
    },
    "teacher --arch wrn_40_2_aux --milestones 30 60 90 --epochs 100 --checkpoint-dir ./checkpoint --data ./data --gpu 2 --manual 0 --pretrained-backbone ./pretrained_backbones/wrn_40_2.pth --freezed": {  # noqa: E501
        "milestones": [30, 60, 90],
        "epochs": 100,
        "device_ids": [2],
        "seed": 0,
        "freezed": True,
    },
    "teacher --arch wrn_40_2_aux --checkpoint-dir ./checkpoint --data ./data --gpu 2 --manual 1": {
        "epochs": 240,
        "seed": 1,
        "freezed": False,
        "batch_size": 64,
    },
    "student --tarch wrn_40_2_aux --arch wrn_16_2_aux --tcheckpoint T.pth.tar --checkpoint-dir ./checkpoint --data ./data --gpu 0 --manual 0": {  # noqa: E501
        "tcheckpoint": "T.pth.tar",
        "kd_T": 3,
        "few_ratio": None,
    },
    "student --tarch resnet56_aux --arch resnet20_aux --tcheckpoint T.pth.tar --checkpoint-dir ./checkpoint --data ./data/ --few-ratio 0.25 --gpu 2 --manual 0": {  # noqa: E501
        "few_ratio": 0.25,
        "epochs": 240,
    },
    "online --arch WRN_40_2_WRN_40_2 --checkpoint-dir ./checkpoint": {"lr": 0.05},
    "probe --arch mobilenetV2 --dataset STL-10 --data ./data/ --s-path S.pth.tar": {
        "dataset": "STL10",
        "lr": 0.1,
        "weight_decay": 0,
        "milestones": [30, 60, 90],
        "epochs": 100,
    },
    "probe --arch mobilenetV2 --dataset TinyImageNet --data ./data/tiny-imagenet-200/ --s-path S.pth.tar": {
        "dataset": "TinyImageNet",
        "image_size": 32,
    },
    f"teacher {IMAGENET} --checkpoint-dir ./checkpoint/ --pretrained-backbone B.pth --freezed --gpu 0,1,2,3,4,5,6,7 --manual_seed 0": {  # noqa: E501
        "arch": "resnet34_imagenet_aux",
        "device_ids": list(range(8)),
        "dataset": "ilsvrc",
        "nesterov": False,
        "lr": 0.1,
        "weight_decay": 1e-4,
        "batch_size": 256,
        "image_size": 224,
    },
    f"student {IMAGENET} --arch resnet18_imagenet_aux --tarch resnet34_imagenet_aux --tcheckpoint T.pth.tar --gpu-id 0,1 --manual_seed 1": {  # noqa: E501
        "seed": 1,
        "epochs": 100,
    },
    f"online {IMAGENET} --arch resnet18_resnet18 --gpu-id 0,1": {"arch": "resnet18_resnet18"},
}
NAMES = [
    "train_baseline_cifar_arch_wrn_16_2_dataset_cifar100_seed0",
    "train_baseline_cifar_arch_ShuffleV1_dataset_cifar100_seed0",
    "train_teacher_cifar_arch_wrn_40_2_aux_dataset_cifar100_seed0",
    "train_teacher_cifar_arch_wrn_40_2_aux_dataset_cifar100_seed1",
    "train_student_cifar_tarch_wrn_40_2_aux_arch_wrn_16_2_aux_dataset_cifar100_seed0",
    "train_student_few_shot_tarch_resnet56_aux_arch_resnet20_aux_dataset_cifar100_few_ratio_0.25_seed0",
    "train_online_kd_cifar_arch_WRN_40_2_WRN_40_2_dataset_cifar100_seed0",
    "eval_rep_arch_mobilenetV2_dataset_STL-10_seed0",
    "eval_rep_arch_mobilenetV2_dataset_TinyImageNet_seed0",
    "train_teacher_imagenet_arch_resnet34_imagenet_aux_dataset_imagenet_seed0",
    "train_student_imagenet_tarch_resnet34_imagenet_aux_arch_resnet18_imagenet_aux_dataset_imagenet_seed1",
    "train_online_kd_imagenet_arch_resnet18_resnet18_dataset_imagenet_seed0",
]


@pytest.mark.parametrize(("line", "name"), list(zip(DOCUMENTED, NAMES)), ids=NAMES)
def test_documented_command_lines(line, name):
    parser = HSAKD.build_parser()
    args = parser.parse_args(shlex.split(line))
    assert {key: getattr(args, key) for key in DOCUMENTED[line]} == DOCUMENTED[line]
    assert HSAKD.hsakd_options.run_name(args) == name


COMMON = [
    "--data",
    "--dataset",
    "--arch",
    "--init-lr",
    "--weight-decay",
    "--milestones",
    "--warmup-epoch",
    "--epochs",
    "--batch-size",
    "--num-workers",
    "--gpu-id",
    "--manual_seed",
    "--kd_T",
    "-r",
    "--resume",
    "-e",
    "--evaluate",
    "--checkpoint-dir",
]
RATES, TAUGHT = ["--lr-type", "--sgdr-t"], ["--tarch", "--tcheckpoint"]
LAUNCH = ["--world-size", "--rank", "--dist-url", "--dist-backend", "--multiprocessing-distributed"]


@pytest.mark.parametrize(
    ("command", "own"),
    [
        ("baseline", RATES),
        ("teacher", ["--lr-type", "--freezed", "--pretrained-backbone", *LAUNCH]),
        ("student", [*RATES, *TAUGHT, "--few-ratio", *LAUNCH]),
        ("online", [*RATES, *LAUNCH]),
        ("probe", ["--s-path"]),
    ],
)
def test_every_option_of_the_authors_is_known(command, own):
    (commands,) = [action for action in HSAKD.build_parser()._actions if action.dest == "command"]
    known = set(commands.choices[command]._option_string_actions)
    assert {
        f"--{name[2:].replace('-', '_')}" if name.startswith("--") else name
        for name in COMMON + own
    } <= known


def test_the_documented_folder_of_imagenet_teachers_is_found(tmp_path):
    written = (
        tmp_path
        / "train_teacher_imagenet_arch_resnet34_imagenet_aux_dataset_imagenet_seed0"
        / "x_best.pth.tar"
    )
    checkpoint.save(written, {"net": {}})
    documented = str(written).replace("resnet34_imagenet_aux_dataset", "resnet34_aux_dataset")
    assert HSAKD.hsakd_options.meant_file(documented) == Path(written)


def test_the_experiment_is_made_of_runs_that_find_one_another(tmp_path):
    script = Path(HSAKD.__file__).parent / "experiments" / "hsakd.sh"
    done = subprocess.run(
        ["bash", script, "--dry-run"],
        env=os.environ | {"PYTHON": "python", "OUT": "o", "IMAGENET": "i", "EPOCHS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    written, lines = set(), done.stdout.splitlines()
    for line in lines:
        parser = HSAKD.build_parser()
        args = parser.parse_args(shlex.split(line)[2:])
        read = [path for path in HSAKD.hsakd_options.files(args).values() if "333f7ec4" not in path]
        assert written.issuperset(read), line
        folder = f"o/checkpoint/{HSAKD.hsakd_options.run_name(args)}"
        assert f"{folder}/{args.arch}.pth.tar" not in written, line
        written |= {f"{folder}/{args.arch}{best}.pth.tar" for best in ("", "_best")}
    assert len(lines) == 56
