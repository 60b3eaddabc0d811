"""The command lines of every step on small photos, and how they run on the accelerator."""

import contextlib
import importlib
import io
import os
import shlex
from collections.abc import Collection
from pathlib import Path
from unittest import mock

from models import memory_order
from tests.accelerator import simulated
from tests.accelerator.simulated import Waits
from tests.same_numbers import compared, differences, make_cifar, read
from utils import pixels
from utils.training import engine

LAYER, LATE = "layer2.0.add", "layer3.0.add"  # of resnet8
A, B = (f"model_checkpoints/checkpoint_folder_resnet8_{name}.pth.tar" for name in ("a", "b"))
TRANS_NET = "model_checkpoints/folder_resnet8/checkpoint_L"
DATA = "--dataset folder --name folder --image_size 32 -j 0 --train_path train --val_path val"
FEATURES = "--convOut_path convOuts/folder_resnet8/folder_L"
HSAKD = "--data cifar --epochs 1 --checkpoint-dir hsakd --manual 0"
# What a run of another device records beside its numbers, and names after them
OTHERWISE = ("created", ".verified.json", "compare/cache/")


def command_lines(batch: int, amp: str) -> dict[str, str]:
    """List the command lines by name, in order; a name begins with the script's.

    Args:
        batch: images of a step.
        amp: "off", "bf16" or "fp16".
    """
    small = f"-b {batch} --amp {amp}"
    data = f"{DATA} {small}"
    pair = f"--net_A {A} --net_B {B} --layer {LAYER}"
    hsakd = f"{HSAKD} --batch-size {batch} --amp {amp}"
    return {
        "Training": f"-a resnet8 {data} --epochs 1 --suffix a --lr 0.05",
        "Training, Adam": (
            f"-a resnet8 {data} --epochs 1 --seed 5 --suffix b --optim Adam --lr 0.003 --augment"
            " zero4"
        ),
        "ConvOutput": f"--resume1 {A} --resume2 {B} --layers {LAYER},{LATE} --t_or_v both {data}",
        "Training_TransNet, released": (
            f"{FEATURES}{LAYER} --alpha [0.1,0.1] --epochs 1 --suffix released --no_reference"
            f" {small}"
        ),
        "Training_TransNet, solved": (
            f"{FEATURES}{LATE} --standardise --solve --optim Adam --lr 1e-3 --logspace 1"
            f" --epochs 1 --hidden 0 --layers 2 --alpha 0.1 {small}"
        ),
        "Variance": (
            f"--net_in {A} --net_tar {B} --transnet {TRANS_NET}{LAYER}_released.pth.tar {data}"
            " --json variance.json"
        ),
        "transClassifier": (
            f"{pair} --resume_Ys {TRANS_NET}{LAYER}_released.pth.tar --epochs 1 --lr 1e-3"
            f" --logspace 0 {data}"
        ),
        "BornAgain": f"--resume {A} {data} -g 1 --epochs 1 --lr 0.05 --suffix born",
        "Pruning": f"--resume {A} {data} --epochs 1 --lr 1e-3 --s_conv 0.5",
        "Calibrate": (
            f"{FEATURES}{LATE} --brief --one_direction --permutations 19 --bootstrap 100"
            f" --transnet {TRANS_NET}{LATE}.pth.tar --train_path train --val_path val"
            f" --json calibrated.json --amp {amp}"
        ),
        "Compare": f"{A} {B} --images val --bootstrap 100 --out compare {small}",
        "DCM": (
            f"--net1 wrn_16_0.5 --net2 mobilenet32 --batch_size {batch} --nthread 0 --epochs 1"
            f" --dataroot cifar --save dcm --lr 0.01 --amp {amp}"
        ),
        "HSAKD baseline": f"baseline --arch resnet8 {hsakd}",
        "HSAKD teacher": f"teacher --arch wrn_10_0.5_aux {hsakd}",
        "HSAKD student": (
            f"student --tarch wrn_10_0.5_aux --arch resnet8_aux {hsakd} --tcheckpoint"
            " hsakd/train_teacher_cifar_arch_wrn_10_0.5_aux_dataset_cifar100_seed0/"
            "wrn_10_0.5_aux.pth.tar"
        ),
    }


STEPS = tuple(command_lines(1, "off"))


def run(
    folder: Path,
    photos: Path,
    *,
    batch: int,
    amp: str = "off",
    only: Collection[str] = STEPS,
    on_cpu: bool = False,
    has_float64: bool = True,
    fused_on: tuple[str, ...] = (*engine.FUSED_ON, simulated.NAME),
) -> dict[str, Waits]:
    """Run steps in this process and in a folder of their own; give what each waited for.

    Args:
        folder: is made.
        photos: `{train,val}/CLASS/*.jpg`.
        batch: see `command_lines`.
        amp: see `command_lines`.
        only: names of the steps.
        on_cpu: run without the accelerator.
        has_float64: see `simulated.accelerator`.
        fused_on: devices with fused optimisers; other ones round otherwise than the CPU's.
    """
    simulated.register()
    pixels._mean_and_std.cache_clear()  # of earlier runs of this process
    lay_out(folder, photos)
    all_waits = {}
    for name, words in command_lines(batch, amp).items():
        if name not in only:
            continue
        with contextlib.ExitStack() as stack:
            all_waits[name] = Waits()
            if not on_cpu:
                all_waits[name] = stack.enter_context(
                    simulated.accelerator(has_float64=has_float64)
                )
                stack.enter_context(mock.patch.object(engine, "FUSED_ON", fused_on))
            run_line(folder, name, words)
    return all_waits


def lay_out(folder: Path, photos: Path) -> None:
    """Make the folder in which the steps run, with links to the photos."""
    folder.mkdir(parents=True)
    for split in ("train", "val"):
        (folder / split).symlink_to(photos / split)
    make_cifar(folder / "cifar" / "data")
    (folder / "cifar" / "CIFAR100").symlink_to("data/CIFAR100")


def run_line(folder: Path, name: str, words: str) -> None:
    """Run one of the `command_lines` quietly, in a folder that `lay_out` made.

    Only on the CPU convolutions are trained channels last, with other roundings: here never.
    """
    script = importlib.import_module(name.partition(",")[0].split()[0])
    before = Path.cwd()
    os.chdir(folder)
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            mock.patch.object(memory_order, "_order"),
        ):
            script.main(shlex.split(words))
    finally:
        os.chdir(before)


def other_numbers(expected: Path, folder: Path) -> list[str]:
    """Name each entry of the files in a folder that is not the same to the bit as in another."""
    before, now = compared(expected), compared(folder)
    wrong = [name for name in {**before, **now} if name not in before or name not in now]
    for name in before.keys() & now.keys():
        wrong += differences(read(before[name]), read(now[name]), name)
    return [line for line in wrong if not any(part in line for part in OTHERWISE)]
