"""Every step that writes state, on the smallest data: what it reads, its command line, how it goes on."""

import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import BornAgain
import Calibrate
import Compare
import ConvOutput
import DCM
import HSAKD
import PrepareData
import Pruning
import Report
import Training
import Training_TransNet
import transClassifier
import Variance
from tests.e2e.road import run
from tests.unit import reports, stored_features
from tests.unit.official_layouts import make_cub
from tests.unit.photos import make_photo

GROUND = "../ground"  # of all steps, seen from the folder in which one runs
CLASSES, LAYER = ("ape", "bat", "cow"), "layer3.0.add"
FOLDERS = f"--dataset folder --name few --train_path {GROUND}/train --val_path {GROUND}/val"
IMAGES = f"{FOLDERS} --image_size 32 -j 0 -b 6"
NETS = [f"{GROUND}/model_checkpoints/checkpoint_few_resnet8_sd{seed}.pth.tar" for seed in (0, 5)]
FEATURES = f"{GROUND}/convOuts/few_resnet8/few_L{LAYER}"
TRANS_NET = f"{GROUND}/model_checkpoints/few_resnet8/checkpoint_L{LAYER}.pth.tar"
SMALL = f"{GROUND}/small"  # features of a few channels
SMALL_TRANS_NET = f"{GROUND}/model_checkpoints/digits_vgg16_bn/checkpoint_L40.pth.tar"
FIT = "--standardise --solve --hidden 0 --layers 1"


@dataclass(frozen=True)
class Step:
    """A command that writes below the folder in which it runs.

    Attributes:
        script: of the step.
        line: its words.
        again: more words, by which it goes on.
    """

    script: ModuleType
    line: str
    again: str = ""


STEPS = {
    "Training": Step(
        Training, f"-a resnet8 {IMAGES} --epochs 3 --lr 0.01 --val_epoch 1", "--resume auto"
    ),
    "ConvOutput": Step(
        ConvOutput,
        f"--resume1 {NETS[0]} --resume2 {NETS[1]} --layers layer2.0.add,{LAYER} --t_or_v both"
        f" {IMAGES}",
    ),
    "Training_TransNet": Step(
        Training_TransNet,
        f"--convOut_path {SMALL} --alpha 0.1 --epochs 3 -b 6 --lr 0.001 --one_direction"
        " --layers 2 --val_epoch 1",
        "--resume auto",
    ),
    "Training_TransNet, a family": Step(
        Training_TransNet,
        f"--convOut_path {SMALL} --standardise --solve --layers 1,2 --steps 9 -b 6",
        "--resume auto",
    ),
    "transClassifier": Step(
        transClassifier,
        f"--net_A {NETS[0]} --net_B {NETS[1]} --resume_Ys {TRANS_NET} --layer {LAYER} {IMAGES}"
        " --epochs 3 --lr 0.001 --logspace 0",
        "--resume auto",
    ),
    "BornAgain": Step(BornAgain, f"--resume {NETS[0]} -g 1 {IMAGES} --epochs 2 --lr 0.01"),
    "Pruning": Step(Pruning, f"--resume {NETS[0]} {IMAGES} --epochs 2 --lr 0.001 --s_conv 0.5"),
    "Variance": Step(
        Variance,
        f"--convOut_path {FEATURES} --transnet {TRANS_NET} --bootstrap 100 --json variance.json"
        " --csv variance.csv",
    ),
    "Calibrate": Step(
        Calibrate,
        f"--convOut_path {SMALL} --transnet {SMALL_TRANS_NET} --brief --permutations 19"
        " --bootstrap 100 --json calibration.json --csv calibration.csv --sums sums.npz",
    ),
    "Compare": Step(
        Compare,
        f"{NETS[0]} {NETS[1]} --images {GROUND} --at {LAYER} -j 0 --bootstrap 100 --side 4 --quick",
    ),
    "DCM": Step(
        DCM,
        "--net1 wrn_16_0.5 --net2 mobilenet32 -b 6 --nthread 0 --epochs 3 --epoch_step [2]"
        f" --image_size 32 --save . {FOLDERS}",
        "--resume auto",
    ),
    "HSAKD": Step(
        HSAKD,
        "baseline --arch resnet8 --batch-size 6 --epochs 3 --warmup-epoch 2"
        f" --checkpoint-dir checkpoint --out . --data {GROUND}/cifar",
        "--resume",
    ),
    "PrepareData": Step(PrepareData, f"CUB200 --src {GROUND}/CUB_200_2011.tgz --out data -j 1"),
    "Report": Step(Report, f"{GROUND}/run --out page.html"),
}


def make_ground(folder: Path) -> None:
    """Make what the steps read: photos, an archive, two nets, their features, a Trans-Net."""
    for number, split in enumerate(("train", "val")):
        for label, name in enumerate(CLASSES):
            for index in range(6):
                seed = 100 * number + 10 * label + index
                make_photo(folder / split / name / f"{index}.jpg", seed, (32, 32))
    for split, place in (("train", "train"), ("val", "test")):
        shutil.copytree(folder / split, folder / "cifar/CIFAR100" / place)
    make_cub(folder / "CUB_200_2011")
    with tarfile.open(folder / "CUB_200_2011.tgz", "w:gz") as archive:
        archive.add(folder / "CUB_200_2011", "CUB_200_2011")
    reports.write_run(folder / "run")
    for seed in (0, 5):
        run(Training, f"-a resnet8 {IMAGES} --epochs 1 --lr 0.01 --seed {seed} --suffix sd{seed}")
    nets = f"--resume1 {NETS[0]} --resume2 {NETS[1]}"
    run(ConvOutput, f"{nets} --layers {LAYER} --t_or_v both {IMAGES}")
    for split in ("train", "val"):
        stored_features.complete(folder / "small" / split, split=split)
    for features in (FEATURES, SMALL):
        run(Training_TransNet, f"--convOut_path {features} {FIT} --epochs 0")
