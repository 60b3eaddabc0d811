"""Prove that another checkout computes the same numbers,
to the bit: a change of form changed nothing else.

    git worktree add /tmp/before HEAD~1
    python -m tests.same_numbers /tmp/before          # five minutes; exit 1 where a number differs

Both checkouts run the same command lines, each in an empty folder of its own: data, classifiers,
features, Trans-Nets of several kinds, variances, a calibration, a refined tail, a born-again net, a
pruned net, DCM and HSAKD. Then every checkpoint, JSON file and log is compared entry by entry. What
may differ is what names a moment or a file's bytes: seconds and versions (`VOLATILE`), and SHA-256
of archives, which carry a random name. An entry that only the newer checkout writes is listed, not
refused.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
VOLATILE = {"seconds", "versions", "date", "command"}
HASH = re.compile("[0-9a-f]{64}")
DIGITS = "--dataset digits --data_root data --image_size 32 -j 0"
A, B = (f"model_checkpoints/checkpoint_digits_resnet8_sd{seed}.pth.tar" for seed in (0, 5))
FEATURES = "convOuts/digits_resnet8/digits_L{0}"
TRANS_NETS = "model_checkpoints/digits_resnet8"
SOLVED = "--standardise --solve --optim Adam --lr 1e-3 --logspace 1 --epochs 1 --hidden 0"
RELEASED = "--alpha [0.1,0.1] --epochs 1"
SMALL = "--data_root data/few --image_size 32 -j 0 --batch_size 16"


def command_lines(layer: str, late: str) -> list[str]:
    """List the command lines of a proof, in order.

    Args:
        layer: of resnet8, where maps are compared.
        late: a later layer, whose features are small.
    """
    fit = f"Training_TransNet.py --convOut_path {FEATURES.format(layer)}"
    fit_late = f"Training_TransNet.py --convOut_path {FEATURES.format(late)}"
    trans_net = f"{TRANS_NETS}/checkpoint_L{layer}"
    pair = f"--net_A {A} --net_B {B} --layer {layer} {DIGITS}"
    hsakd = "--data data/cifar --batch-size 16 --epochs 1 --checkpoint-dir checkpoint --manual 0"
    return [
        "PrepareData.py digits --out data",
        f"Training.py -a resnet8 {DIGITS} --epochs 1 --seed 0 --suffix sd0 --lr 0.05",
        (
            f"Training.py -a resnet8 {DIGITS} --epochs 1 --seed 5 --suffix sd5 --optim Adam --lr"
            " 0.003 --augment zero4"
        ),
        f"ConvOutput.py --resume1 {A} --resume2 {B} --layers {layer},{late} --t_or_v both {DIGITS}",
        f"{fit} {RELEASED} --suffix released",
        f"{fit} --layers 2 --alpha 0.1 --epochs 1 --norm batch --bn --affine --suffix batch",
        f"{fit} {SOLVED} --layers 1,2,3 --alpha 0.1",
        f"{fit} {SOLVED} --reverse --alpha [0.1,0.1] --suffix reverse",
        (
            f"{fit_late} --standardise --solve --optim Adam --epochs 0 --layers 2 --hidden 0"
            " --alpha 0.1"
        ),
        (
            f"Variance.py --net_in {A} --net_tar {B} --transnet {trans_net}_released.pth.tar"
            f" {DIGITS} --json released.json --csv released.csv"
        ),
        (
            f"Variance.py --convOut_path {FEATURES.format(layer)} --transnet"
            f" {trans_net}_layers1.pth.tar {trans_net}_layers2.pth.tar {trans_net}_layers3.pth.tar"
            " --json spectrum.json --bootstrap 100"
        ),
        (
            f"Calibrate.py --convOut_path {FEATURES.format(late)} --brief --permutations 19"
            f" --bootstrap 100 --transnet {TRANS_NETS}/checkpoint_L{late}.pth.tar --data_root data"
            " --json calibrated.json"
        ),
        (
            f"transClassifier.py {pair} --resume_Ys {trans_net}_released.pth.tar --epochs 1 --lr"
            " 1e-3 --logspace 0"
        ),
        f"BornAgain.py --resume {A} {DIGITS} -g 1 --epochs 1 --lr 0.05 --suffix born",
        f"Pruning.py --resume {A} {DIGITS} --epochs 1 --lr 1e-3 --s_conv 0.5",
        (
            "DCM.py --net1 wrn_16_0.5 --net2 mobilenet32 --batch_size 16 --nthread 0 --epochs 1"
            " --dataroot data/cifar --save dcm"
        ),
        f"HSAKD.py baseline --arch resnet8 {hsakd}",
        f"HSAKD.py teacher --arch wrn_10_0.5_aux {hsakd}",
        (
            f"HSAKD.py student --tarch wrn_10_0.5_aux --arch resnet8_aux {hsakd} --tcheckpoint"
            " checkpoint/"
            "train_teacher_cifar_arch_wrn_10_0.5_aux_dataset_cifar100_seed0/wrn_10_0.5_aux.pth.tar"
        ),
    ]


def make_cifar(folder: Path) -> None:
    """Make a data set in CIFAR-100's layout:
    noise of 32×32 pixels, three classes of 16 and 8 images.
    """
    from PIL import Image

    noise = np.random.default_rng(0)
    for split, count in (("train", 16), ("test", 8)):
        for name in ("apple", "bear", "clock"):
            place = folder / "CIFAR100" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")


def run(checkout: Path, work: Path, lines: Sequence[str]) -> None:
    """Run command lines of a checkout in a folder; the first that fails ends the proof."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    make_cifar(work / "data" / "cifar")
    for line in lines:
        script, *words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, checkout / script, *words],
            cwd=work,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{checkout}: {line}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
        print(".", end="", flush=True)
    print()


def read(path: Path) -> Any:
    """Read a file that the steps write, as plain values, arrays and tensors."""
    if path.name.endswith((".pth.tar", ".pth")):
        return torch.load(path, map_location="cpu", weights_only=True)
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path))
    if path.suffix == ".json":
        return json.loads(path.read_text())
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    return path.read_text()


def differences(before: Any, now: Any, where: str) -> Iterator[str]:
    """Name each entry that is not the same to the bit;
    entries that are new are named with a "+".
    """
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before:
            if str(key) in VOLATILE:
                continue
            if key in now:
                yield from differences(before[key], now[key], f"{where}[{key!r}]")
            else:
                yield f"{where}[{key!r}] is missing"
        yield from (f"+ {where}[{key!r}]" for key in now if key not in before)
    elif isinstance(before, list | tuple) and isinstance(now, list | tuple):
        if len(before) != len(now):
            yield f"{where} has {len(now)} entries instead of {len(before)}"
        for index, (one, other) in enumerate(zip(before, now)):
            yield from differences(one, other, f"{where}[{index}]")
    elif isinstance(before, torch.Tensor) and isinstance(now, torch.Tensor):
        if before.dtype != now.dtype or not torch.equal(before, now):
            yield f"{where} differs"
    elif HASH.fullmatch(str(before)) and HASH.fullmatch(str(now)):
        return
    elif before != now and not (before != before and now != now):  # noqa: PLR0124, NaN equals NaN here
        yield f"{where}: {str(now)[:60]} instead of {str(before)[:60]}"


def compared(folder: Path) -> dict[str, Path]:
    """List the files whose contents are compared, by their path in a work folder."""
    endings = (".pth.tar", ".pth", ".npy", ".json", ".jsonl", ".csv")
    paths = sorted(path for path in folder.rglob("*") if path.name.endswith(endings))
    return {
        path.relative_to(folder).as_posix(): path for path in paths if "/.cache/" not in str(path)
    }


def main() -> None:
    """Run both checkouts and compare what they wrote."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="checkout to compare with")
    parser.add_argument("--layer", default="layer2.0.add", help="of resnet8")
    parser.add_argument("--late", default="layer3.0.add", help="a later layer of resnet8")
    parser.add_argument(
        "--without", default="", help="a flag that the other checkout does not have, as --hidden 0"
    )
    parser.add_argument(
        "--work",
        type=Path,
        help="keep both runs there; a run that is there is compared, not repeated",
    )
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp())
    lines = [line.replace(args.without, "") for line in command_lines(args.layer, args.late)]
    for name, checkout in (("before", args.other), ("now", ROOT)):
        if not (work / name).exists():
            (work / name).mkdir(parents=True)
            run(checkout.absolute(), work / name, lines)
    before, now = compared(work / "before"), compared(work / "now")
    names = [f"{name} is missing" for name in before if name not in now]
    names += [f"+ {name}" for name in now if name not in before]
    for name, path in before.items():
        if name in now:
            names += differences(read(path), read(now[name]), name)
    print("\n".join(names))
    wrong = [name for name in names if not name.startswith("+")]
    print(
        f"{len(before)} files compared, {len(wrong)} differences, {len(names) - len(wrong)} new"
        " entries"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
