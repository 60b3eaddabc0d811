"""The options of HSAKD.py: the authors' names and defaults, by command and data set."""

import argparse
import os
import re
from pathlib import Path
from typing import Any

from distillation.choices import NETS, PAIRS
from utils import options
from utils.parser import (
    LARGEST_IMAGE,
    LARGEST_SEED,
    MOST_PROCESSES,
    Checked,
    Ignored,
    Namespace,
    Parser,
    list_of,
    output_folder,
    plain_name,
    real,
    some_path,
    whole,
)
from utils.presence import check_checkpoint

COMMANDS = {
    "baseline": "Train a network alone, on labels.",
    "teacher": "Train a network and a branch on each of its stages, on classes and rotations.",
    "student": (
        "Train a network and its branches by a teacher's logits; --few_ratio: on a share of the"
        " images."
    ),
    "online": "Train two networks with branches, each by the other's logits.",
    "probe": "Train a linear layer on a frozen network's features.",
}
EXAMPLES = {
    "baseline": "python HSAKD.py baseline --arch wrn_16_2",
    "teacher": "python HSAKD.py teacher --arch wrn_40_2_aux",
    "student": (
        "python HSAKD.py student --tarch wrn_40_2_aux --arch wrn_16_2_aux --tcheckpoint"
        " TEACHER.pth.tar"
    ),
    "online": "python HSAKD.py online --arch WRN_40_2_WRN_40_2",
    "probe": "python HSAKD.py probe --arch wrn_16_2 --s_path STUDENT.pth.tar --dataset STL-10",
}
Recipe = dict[str, Any]
CIFAR: Recipe = {
    "lr": 0.05,
    "weight_decay": 5e-4,
    "milestones": [150, 180, 210],
    "epochs": 240,
    "batch_size": 64,
    "workers": 8,
    "nesterov": True,
    "image_size": 32,
}
IMAGENET: Recipe = {
    "lr": 0.1,
    "weight_decay": 1e-4,
    "milestones": [30, 60, 90],
    "epochs": 100,
    "batch_size": 256,
    "workers": 16,
    "nesterov": False,
    "image_size": 224,
}
PROBE: Recipe = CIFAR | {"lr": 0.1, "weight_decay": 0.0, "milestones": [30, 60, 90], "epochs": 100}
ARCHS = {  # on CIFAR-100, on ImageNet
    "teacher": ("wrn_40_2_aux", "resnet34_imagenet_aux"),
    "student": ("wrn_16_2_aux", "resnet18_imagenet_aux"),
    "online": (None, "resnet18_resnet18"),
    "probe": ("mobilenetV2", "resnet18_imagenet"),
}
# Ours by theirs
DATASETS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "imagenet": "ilsvrc", "STL-10": "STL10"}
FILES = ("pretrained_backbone", "tcheckpoint", "s_path")  # options that name what a command reads


def meant_file(path: str | Path) -> Path:
    """Give the file that is meant:
    the documented folders of ImageNet teachers lack the `imagenet_` of those written.

    Raises:
        InputError: there is no such file.
    """
    written = Path(
        re.sub(
            r"arch_(resnet\d+)_aux_dataset_imagenet",
            r"arch_\1_imagenet_aux_dataset_imagenet",
            str(path),
        )
    )
    meant = written if written.is_file() else Path(path)
    check_checkpoint(meant)
    return meant


documented_file = Checked(meant_file)


def add_options(parser: Parser, command: str) -> None:
    """Add the options that a command has.

    Args:
        parser: of the command.
        command: its name.
    """
    recipe = PROBE if command == "probe" else CIFAR
    _add_data_options(parser, command, recipe)
    _add_training_options(parser, command, recipe)
    if command == "teacher":
        group = parser.add_argument_group("teacher")
        group.add_argument(
            "--freezed", action="store_true", help="load the backbone and train its branches alone"
        )
        group.add_argument(
            "--pretrained_backbone", type=documented_file, metavar="FILE", help="of --freezed"
        )
    if command == "student":
        group = parser.add_argument_group("teacher")
        group.add_argument(
            "--tarch",
            help="its architecture; default: wrn_40_2_aux, ImageNet resnet34_imagenet_aux",
        )
        group.add_argument(
            "--tcheckpoint", type=documented_file, metavar="FILE", help="default: {tarch}.pth.tar"
        )
    if command == "probe":
        group = parser.add_argument_group("student")
        group.add_argument(
            "--s_path",
            type=documented_file,
            required=True,
            metavar="FILE",
            help="checkpoint of the student",
        )
    group = parser.add_argument_group("run")
    group.add_argument(
        "--gpu_id",
        "--gpu",
        "--device_ids",
        neutral=True,
        dest="device_ids",
        type=list_of(whole(0), empty=True),
        default=[],
        metavar="0,1",
        help="GPUs, the main one first",
    )
    group.add_argument(
        "--manual_seed",
        "--manual",
        dest="seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="of everything random",
    )
    group.add_argument(
        "--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision"
    )
    group.add_argument(
        "--compile", neutral=True, action="store_true", help="run models through torch.compile"
    )
    for switch in ("--world_size", "--rank", "--dist_url", "--dist_backend"):
        group.add_argument(
            switch, neutral=True, dest="launcher", action="append", help=argparse.SUPPRESS
        )
    group.add_argument(
        "--multiprocessing_distributed",
        neutral=True,
        dest="launcher",
        action="append_const",
        const="",
        help=argparse.SUPPRESS,
    )
    group.add_argument(
        "-r",
        "--resume",
        neutral=True,
        nargs="?",
        const="auto",
        default="",
        choices=["auto"],
        metavar="auto",
        help="go on with this run's own checkpoint",
    )
    group.add_argument(
        "-e",
        "--evaluate",
        neutral=True,
        action="store_true",
        help="only measure this run's last and best checkpoint",
    )
    options.add_keeping_options(group)
    group.add_argument(
        "--checkpoint_dir",
        neutral=True,
        type=output_folder,
        default="./checkpoint",
        help="folder of the runs' folders",
    )
    options.add_output_options(parser)
    # What functions of all steps read, and HSAKD.py has no option for
    parser.set_defaults(
        command=command,
        gpu=None,
        tf32=False,
        sub_sampler_split=None,
        sample_num="",
        normalisation=None,
        print_freq=10,
    )
    parser.set_neutral("gpu", "print_freq", "train_path", "val_path")


def _add_data_options(parser: Parser, command: str, recipe: Recipe) -> None:
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        "--data_root",
        neutral=True,
        dest="data_root",
        type=some_path,
        default="./data/",
        help=(
            "folder of the data sets as PrepareData.py makes them, or one data set's own, with"
            " train and val in it"
        ),
    )
    group.add_argument(
        "--dataset",
        type=plain_name,
        default="STL-10" if command == "probe" else "cifar100",
        help=f"{', '.join(DATASETS)}, or a name of PrepareData.py",
    )
    group.add_argument(
        "--num_workers",
        "-j",
        neutral=True,
        dest="workers",
        type=whole(0, MOST_PROCESSES),
        help="processes that decode images",
    )
    group.add_argument(
        "--cache_images",
        neutral=True,
        choices=["auto", "ram", "disk", "off"],
        default="auto",
        help="decode every image once",
    )
    group.add_argument(
        "--image_size",
        type=whole(options.SMALLEST_IMAGE, LARGEST_IMAGE),
        help="pixels to a side; default: 32, ImageNet 224",
    )
    group.add_argument(
        "--batch_size",
        type=whole(1),
        help=_with_default(recipe, "batch_size", "images before rotation"),
    )
    if command == "student":
        group.add_argument(
            "--few_ratio",
            type=real(above=0),
            metavar="R",
            help="train on this share of each class, 0.25; 1: all",
        )
    group.add_argument(
        "--select",
        choices=["test", "val"],
        default="test",
        help=(
            "what the best epoch is chosen on: the test images (as the authors do), or held-out"
            " training images"
        ),
    )
    group.add_argument(
        "--hold_out",
        type=real(above=0, below=1),
        default=0.1,
        help="share of the training images for --select val",
    )


def _add_training_options(parser: Parser, command: str, recipe: Recipe) -> None:
    nets = ", ".join(PAIRS) if command == "online" else NETS
    group = parser.add_argument_group("training")
    required = command == "baseline"
    default = ARCHS.get(command, ("none",))[0]
    group.add_argument("--arch", required=required, help=f"one of {nets}; default: {default}")
    group.add_argument(
        "--init_lr",
        dest="lr",
        type=real(above=0),
        help=_with_default(recipe, "lr", "learning rate"),
    )
    group.add_argument(
        "--weight_decay",
        type=real(),
        help=_with_default(recipe, "weight_decay", "of all parameters"),
    )
    group.add_argument(
        "--milestones",
        type=whole(0),
        nargs="+",
        help=_with_default(recipe, "milestones", "epochs of × 0.1"),
    )
    group.add_argument(
        "--epochs", type=whole(1), help=_with_default(recipe, "epochs", "epochs in all")
    )
    group.add_argument(
        "--warmup_epoch", type=whole(0), default=0, help="epochs of a linear warm-up"
    )
    if command in ("student", "online"):
        group.add_argument("--kd_T", type=real(above=0), default=3.0, help="temperature τ")
    else:
        group.add_argument("--kd_T", action=Ignored)
    if command == "probe":
        group.set_defaults(lr_type="multistep")
        return
    group.add_argument(
        "--lr_type", choices=["multistep", "SGDR"], default="multistep", help="learning rates"
    )
    group.add_argument("--sgdr_t", type=whole(1), default=300, help="epochs of SGDR's first cycle")


def _with_default(recipe: Recipe, name: str, what: str) -> str:
    """Describe an option whose default depends on the data set."""
    values = [
        " ".join(map(str, r[name])) if name == "milestones" else f"{r[name]:g}"
        for r in (recipe, IMAGENET)
    ]
    return f"{what}; default: {values[0]}" + (
        f", ImageNet {values[1]}" if values[0] != values[1] else ""
    )


def fill(parser: Parser, args: Namespace) -> None:
    """Fill in the command's and the data set's defaults, and refuse options that make no run.

    `name` becomes the authors' name of the data set, `dataset` ours; `train_path` and `val_path`
    are set where --data is the data set's own folder.
    """
    on_imagenet = args.dataset in ("imagenet", "ilsvrc")
    recipe = PROBE if args.command == "probe" else IMAGENET if on_imagenet else CIFAR
    for name, value in recipe.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)
    # The recipes' 8 and 16 workers are more than small machines have cores.
    args.workers = min(args.workers, os.cpu_count() or 1)
    args.name, args.dataset = args.dataset, DATASETS.get(args.dataset, args.dataset)
    # --data may name one data set's folder instead of the folder of all data sets.
    folder = Path(args.data_root)
    args.train_path = args.val_path = None
    if (folder / "train").is_dir():
        args.train_path, args.val_path = (
            str(folder / "train"),
            str(folder / ("val" if (folder / "val").is_dir() else "test")),
        )
    # False is CIFAR's place in the pair, True is ImageNet's.
    args.arch = args.arch or ARCHS[args.command][on_imagenet]
    if args.arch is None:
        parser.error("online needs --arch, a pair such as WRN_40_2_WRN_40_2")
    if args.milestones != sorted(set(args.milestones)):
        parser.error(
            f"--milestones are epochs in rising order, not {' '.join(map(str, args.milestones))}"
        )
    if args.command == "teacher" and args.freezed != bool(args.pretrained_backbone):
        parser.error(
            "--freezed and --pretrained_backbone FILE belong together: what is frozen is read from"
            " a file"
        )
    if args.command == "student":
        args.tarch = args.tarch or ARCHS["teacher"][on_imagenet]
        args.tcheckpoint = args.tcheckpoint or f"{args.tarch}.pth.tar"


def run_name(args: Namespace) -> str:
    """Give the authors' name of a run.

    It is {script}[_tarch_T]_arch_A_dataset_D[_few_ratio_R]_seed{n}.
    """
    few = getattr(args, "few_ratio", None)
    script = (
        "student_few_shot"
        if few
        else f"{args.command}_{'imagenet' if args.name == 'imagenet' else 'cifar'}"
    )
    script = script.replace("online_", "online_kd_")  # the authors' script is train_online_kd_…
    parts = [f"train_{script}" if args.command != "probe" else "eval_rep"]
    parts += [f"tarch_{args.tarch}"] if args.command == "student" else []
    parts += [
        f"arch_{args.arch}_dataset_{args.name}",
        f"few_ratio_{few}" if few else "",
        f"seed{args.seed}",
    ]
    return "_".join(word for word in [*parts, args.suffix] if word)


def following(args: Namespace, saved: Path, arch: str) -> list[str]:
    """Give the words of the next command: a teacher's is its student's, others' is a probe.

    Args:
        args: filled in.
        saved: this run's checkpoint.
        arch: of the network without branches.
    """
    if args.command == "probe":
        return []
    if args.command == "teacher":
        words = [
            "student",
            "--tarch",
            args.arch,
            "--tcheckpoint",
            str(saved),
            "--dataset",
            args.name,
        ]
    else:
        words = ["probe", "--arch", arch, "--s_path", str(saved)]
        words += ["--dataset", args.name] if args.train_path else []  # no other data set is there
    words += ["--data", args.data_root]
    usual = {
        "checkpoint_dir": "./checkpoint",
        "out": ".",
        "device_ids": [],
        "image_size": (IMAGENET if args.name == "imagenet" else CIFAR)["image_size"],
    }
    given = {name: getattr(args, name) for name in usual}
    return words + [
        word
        for name in usual
        if given[name] != usual[name]
        for word in (f"--{name}", str(given[name]))
    ]


def fill_files(args: Namespace) -> None:
    """Name the files that the options mean, where the authors document them under other names."""
    for option, path in files(args).items():
        setattr(args, option, str(meant_file(path)))


def files(args: Namespace) -> dict[str, str]:
    """Give the files that a command reads, by option."""
    return {option: path for option in FILES if (path := getattr(args, option, None))}
