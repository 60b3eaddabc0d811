from pathlib import Path

import pytest

from distillation import hsakd_options
from tests.mistakes import refused, refuses
from utils.parser import Parser


def parsed(command, line=""):
    parser = Parser("test")
    hsakd_options.add_options(parser, command)
    args = parser.parse_args(line.split())
    hsakd_options.fill(parser, args)
    return args


def test_defaults_are_the_commands_and_the_data_sets():
    cifar, imagenet = parsed("teacher"), parsed("teacher", "--dataset imagenet --epochs 3")
    assert (cifar.arch, cifar.lr, cifar.epochs, cifar.nesterov, cifar.image_size) == (
        "wrn_40_2_aux",
        0.05,
        240,
        True,
        32,
    )
    assert (imagenet.arch, imagenet.lr, imagenet.epochs, imagenet.nesterov) == (
        "resnet34_imagenet_aux",
        0.1,
        3,
        False,
    )
    assert (imagenet.name, imagenet.dataset, cifar.name, cifar.dataset) == (
        "imagenet",
        "ilsvrc",
        "cifar100",
        "CIFAR100",
    )
    probe = parsed("probe", "--s-path S")
    assert (probe.arch, probe.name, probe.weight_decay, probe.lr_type) == (
        "mobilenetV2",
        "STL-10",
        0,
        "multistep",
    )
    student = parsed("student", "--tarch resnet56_aux")
    assert (student.tcheckpoint, student.kd_T, student.few_ratio) == (
        "resnet56_aux.pth.tar",
        3,
        None,
    )


def test_data_is_the_root_or_the_data_sets_own_folder(tmp_path):
    args = parsed("teacher", f"--data {tmp_path}")
    assert (args.data_root, args.train_path, args.val_path) == (str(tmp_path), None, None)
    (tmp_path / "train").mkdir()
    assert parsed("teacher", f"--data {tmp_path}").val_path == str(tmp_path / "test")
    (tmp_path / "val").mkdir()
    args = parsed("teacher", f"--data {tmp_path}")
    assert (args.train_path, args.val_path) == (str(tmp_path / "train"), str(tmp_path / "val"))


def test_files_and_names():
    args = parsed("student", "--tcheckpoint T --suffix s --few-ratio 0.75 --manual 4")
    assert hsakd_options.files(args) == {"tcheckpoint": "T"}
    assert (
        hsakd_options.run_name(args)
        == "train_student_few_shot_tarch_wrn_40_2_aux_arch_wrn_16_2_aux_dataset_cifar100_few_ratio_0.75_seed4_s"
    )
    assert hsakd_options.files(parsed("teacher")) == {}


@pytest.mark.parametrize(
    ("command", "line", "following"),
    [
        (
            "teacher",
            "",
            (
                "student --tarch wrn_40_2_aux --tcheckpoint own.pth.tar --dataset cifar100 --data"
                " ./data/"
            ),
        ),
        (
            "baseline",
            "--arch wrn_16_2",
            "probe --arch wrn_16_2 --s_path own.pth.tar --data ./data/",
        ),
        ("student", "--data D", "probe --arch wrn_16_2 --s_path own.pth.tar --data D"),
        (
            "online",
            "--arch WRN_16_2_WRN_16_2",
            "probe --arch wrn_16_2 --s_path own.pth.tar --data ./data/",
        ),
        ("probe", "--s_path S", ""),
    ],
)
def test_what_follows_can_be_pasted(command, line, following):
    words = hsakd_options.following(parsed(command, line), Path("own.pth.tar"), "wrn_16_2")
    assert words == following.split()
    if words:
        assert parsed(words[0], " ".join(words[1:])).arch


@pytest.mark.parametrize("line", ["--freezed", "--pretrained-backbone B"])
def test_a_frozen_backbone_needs_both_options(line):
    facts = "--freezed", "--pretrained_backbone"
    refuses(lambda words: parsed("teacher", *words), [line], *facts, code=2)


def test_a_missing_file_is_named(tmp_path):
    with refused("absent.pth.tar"):
        hsakd_options.meant_file(tmp_path / "absent.pth.tar")
