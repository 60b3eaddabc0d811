"""What goes wrong is told in one line: the table of wrong command lines, and the same in a shell."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock

import BornAgain
import Calibrate
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
from experiments import figures, tables
from models.classifiers import build, classifier_record
from tests.e2e.road import ROOT, run
from utils import checkpoint
from utils.data.images import ImageData
from utils.hsakd_options import COMMANDS

pytestmark = pytest.mark.e2e
LONGEST_LINE = 200

# Script, command line, what is said, exit code: 2 where the words themselves are at fault, 1 where it is what they
# name. {…} are files and folders of `shelf`.
MISTAKES = [
    # Numbers out of range.
    (Training, "{new} --epochs -2", "--epochs: expected a whole number of at least 1, got '-2'", 2),
    (Training, "{new} --epochs 0", "--epochs: expected a whole number of at least 1, got '0'", 2),
    (Training, "{new} --epochs 1.5", "--epochs: expected a whole number", 2),
    (Training, "{new} --lr -1", "--lr/--learning_rate: expected a number of at least 0, got '-1'", 2),
    (Training, "{new} --lr nan", "--lr/--learning_rate: expected a number of at least 0, got 'nan'", 2),
    (Training, "{new} --momentum -1", "--momentum: expected a number of at least 0", 2),
    (Training, "{new} --wd -1", "--wd/--weight_decay: expected a number of at least 0", 2),
    (Training, "{new} --logspace -1", "--logspace: expected a number of at least 0", 2),
    (Training, "{new} --logspace nan", "--logspace: expected a number of at least 0, got 'nan'", 2),
    (Training, "{new} --decay_factor 0", "--decay_factor: expected a number above 0", 2),
    (Training, "{new} --epoch_step 0", "--epoch_step: expected a whole number of at least 1", 2),
    (Training, "{new} --save_epoch 0", "--save_epoch: expected a whole number of at least 1", 2),
    (Training, "{new} --val_epoch 0", "--val_epoch: expected a whole number of at least 1", 2),
    (Training, "{new} --print_freq 0", "--print_freq: expected a whole number of at least 1", 2),
    (Training, "{new} --start_epoch -1", "--start_epoch: expected a whole number of at least 0", 2),
    (Training, "{new} --workers -1", "--workers: expected a whole number of at least 0, got '-1'", 2),
    (Training, "{new} --seed -1", "--seed: expected a whole number of at least 0, got '-1'", 2),
    (Training, "{new} --image_size 1", "--image_size: expected a whole number of at least 8, got '1'", 2),
    (Training, "{new} --batch_size 0", "--batch_size: expected a whole number of at least 1", 2),
    (Training, "{new} --train_layer -1", "--train_layer: expected a whole number of at least 0", 2),
    (Training, "{new} --device_ids [-1]", "--device_ids: in a list such as .* at least 0, got '-1'", 2),
    (Training, "{new} --device_ids [a]", "--device_ids: in a list such as .* got 'a'", 2),
    (Training, "{new} --gpu -1", "--gpu: expected a whole number of at least 0", 2),
    (ConvOutput, "{pair} --topk [0]", "--topk: in a list such as .* at least 1, got '0'", 2),
    (ConvOutput, "{pair} --conv_layer -1", "--conv_layer: expected a whole number of at least 0", 2),
    (ConvOutput, "{pair} --conv_layer2 x", "--conv_layer2: expected a whole number", 2),
    (Training_TransNet, "{fit} --alpha [-1,nan]", "--alpha/--alphas: in a list .* got '-1'", 2),
    (Training_TransNet, "{fit} --alpha [0.1,nan]", "--alpha/--alphas: in a list .* got 'nan'", 2),
    (Training_TransNet, "{fit} --logspace nan", "--logspace: expected a number of at least 0, got 'nan'", 2),
    (Training_TransNet, "{fit} --layers 0", "--layers: in a list .* at least 1, got '0'", 2),
    (Training_TransNet, "{fit} --hold_out 1", "--hold_out: expected a number of at least 0 and below 1", 2),
    (Training_TransNet, "{fit} --solve 0", "--solve: expected a whole number of at least 1", 2),
    (Variance, "{measure} --figure_image -1", "--figure_image: expected a whole number of at least 0", 2),
    (transClassifier, "{refine} --epochs -1", "--epochs: expected a whole number of at least 0", 2),
    (transClassifier, "{refine} --in_mode [-1,1,1]", "--in_mode: in a list .* got '-1'", 2),
    (BornAgain, "{again} --generations 0", "--generations: expected a whole number of at least 1", 2),
    (BornAgain, "{again} --tau 0", "--tau: expected a number above 0, got '0'", 2),
    (BornAgain, "{again} --lambd -1", "--lambd: expected a number of at least 0", 2),
    (Pruning, "{prune} --s_conv -1", "--s_conv: expected a number of at least 0", 2),
    (Pruning, "{prune} --sweep []", r"--sweep: expected a list such as \[1,1\], got '\[\]', which is empty", 2),
    (Pruning, "{prune} --sweep -1", "--sweep: in a list such as .*: expected a number of at least 0, got '-1'", 2),
    (Pruning, "{prune} --share_bits 9", "--share_bits: invalid choice: 9", 2),
    (PrepareData, "digits --out {tmp}/new --classes 0", "--classes: expected a whole number of at least 1", 2),
    (PrepareData, "digits --out {tmp}/new --workers 0", "--workers: expected a whole number of at least 1", 2),
    (figures, "{tmp} --photos 0", "--photos: expected a whole number of at least 1", 2),
    # Names, paths and words.
    (Training, "{new} --out ''", "--out: expected a path, got nothing", 2),
    (Training, "{new} --data_root ''", "--data_root: expected a path, got nothing", 2),
    (Training, "{new} --weights ''", "--weights: expected a path, got nothing", 2),
    (Training, "{new} --suffix ../../x", "--suffix: expected a name, not a path, got '../../x'", 2),
    (Training, "{new} --name a/b", "--name: expected a name, not a path, got 'a/b'", 2),
    (Training, "{new} --dataset ..", "--dataset: expected a name, not a path", 2),
    (Training, "{new} --optim RMSprop", "--optim: invalid choice: 'RMSprop'", 2),
    (Training, "{new} --epoch 3", "unrecognized arguments: --epoch 3", 2),
    (ConvOutput, "--resume1 '' --resume2 {b}", "--resume1: expected a path, got nothing", 2),
    (ConvOutput, "--resume1 {a}", "the following arguments are required: --resume2", 2),
    (ConvOutput, "{pair} --layer ''", "--layer: expected a path, got nothing", 2),
    (Training_TransNet, "--convOut_path ''", "--convOut_path: expected a path, got nothing", 2),
    (Variance, "{measure} --transnet ''", "--transnet: expected a path, got nothing", 2),
    (Variance, "{measure} --json {tmp}", "--json: expected a file, and .* is a folder", 2),
    (Variance, "{measure} --csv {tmp}", "--csv: expected a file, and .* is a folder", 2),
    (Variance, "{measure} --figure {tmp}/v.xyz", "--figure: expected a name that ends in .png, .svg, .pdf", 2),
    (Variance, "{measure} --spectrum {tmp}/v.xyz", "--spectrum: expected a name that ends in .png, .svg, .pdf", 2),
    (transClassifier, "--net_A '' --net_B {b}", "--net_A: expected a path, got nothing", 2),
    (Pruning, "--resume ''", "--resume: expected a path, got nothing", 2),
    (PrepareData, "birds --out {tmp}/new", "dataset: invalid choice: 'birds'", 2),
    (PrepareData, "digits --out ''", "--out: expected a path, got nothing", 2),
    (PrepareData, "CUB200 --src '' --out {tmp}/new", "--src: expected a path, got nothing", 2),
    (tables, "{road} --markdown {tmp}", "--markdown: expected a file, and .* is a folder", 2),
    (tables, "{road} --csv {tmp}", "--csv: expected a file, and .* is a folder", 2),
    (tables, "''", "run: expected a path, got nothing", 2),
    (figures, "''", "run: expected a path, got nothing", 2),
    # Options that do not fit together.
    (Training_TransNet, "{fit} --alpha [0.1]", "--alpha has 1 entries, --layers 3 needs 2, highest order first", 2),
    (Training_TransNet, "{fit} --alpha 0.1,0.1 --layers 4", "--alpha has 2 entries, --layers 4 needs 3", 2),
    (Training_TransNet, "{fit} --epochs 0", "--epochs 0 leaves the Trans-Net as it is initialised, unless --solve", 2),
    (Training_TransNet, "{fit} --bn --standardise", "not allowed with argument", 2),
    (Training_TransNet, "{fit} --reverse --both_directions", "not allowed with argument --reverse", 2),
    (Training_TransNet, "{fit} --seeds 0,1,0", "--layers and --seeds name no number twice", 2),
    (Training_TransNet, "{fit} --seeds 0,1 --resume {g}", "--resume PATH goes on with one Trans-Net, and", 2),
    (Training_TransNet, "--net_A {a}", "name both --net_A and --net_B, or --convOut_path", 2),
    (Training_TransNet, "{fit} {both}", "--convOut_path has no effect beside --net_A: features are computed", 2),
    (Training_TransNet, "{both} --fc", "--fc has no effect without --conv_layer", 2),
    (Training_TransNet, "{both} --augment zero4", "--augment has no effect here: features are those of", 2),
    (Training_TransNet, "{fit} --cache_images ram", "--cache_images has no effect on features that are stored", 2),
    (Training_TransNet, "{fit} --image_size 64", "--image_size has no effect on features that are stored already", 2),
    (Training_TransNet, "{both}", "no option names the layer of this ResNet", 1),
    (Training_TransNet, "{both} --conv_layer 1 --image_size 48", "{other_size}", 1),
    (Training_TransNet, "{both} --conv_layer 1 --layer2 no.such", "no.such", 1),
    (Training_TransNet, "{fit} --seeds []", "--seeds: expected a list such as .*, which is empty", 2),
    (Variance, "--transnet {g}", "name both --net_in and --net_tar, or --convOut_path", 2),
    (Variance, "--transnet {g} --net_in {a}", "name both --net_in and --net_tar, or --convOut_path", 2),
    (Variance, "{measure} --net_in {a}", "--net_in has no effect beside --convOut_path", 2),
    (Variance, "{live} --reverse", "--reverse has no effect beside the nets: exchange --net_in and --net_tar", 2),
    (Variance, "{measure} --figure {tmp}/f.png --figure_image 24", "--figure_image 24 is not among the 24 images", 2),
    (Variance, "{measure} --spectrum {tmp}/f.png", "--spectrum compares Trans-Nets of several depths", 2),
    (Variance, "{measure} --fc", "--fc has no effect without --conv_layer, whose number it counts", 2),
    (Variance, "{live} --fc", "--fc has no effect without --conv_layer", 2),
    (transClassifier, "{refine} --fc", "--fc has no effect without --conv_layer", 2),
    (transClassifier, "--net_A {a} --net_B {b}", "--input components .* needs --resume_Ys", 2),
    (transClassifier, "--net_A {a} --input raw_A --in_mode [1,0]", "--in_mode chooses components of a Trans-Net", 2),
    (transClassifier, "{refine} --in_mode [1,1]", r"--in_mode takes 1 or 0 for each of x\(0\) … x\(2\)", 2),
    (BornAgain, "{again} --start_gen 5", "--start_gen 5 is not in the series of generations 0 to 4", 2),
    (BornAgain, "{again} --lambd 0", "--lambd and --lambd_end must both be positive where they differ", 2),
    (Pruning, "{prune} --share_bits 4 --epochs 0", "--share_bits needs --epochs to train the shared weights", 2),
    (PrepareData, "CUB200 --list l.bin --out {tmp}/new", "--list is for VOC2012_crop and VOC2012_animal", 2),
    (PrepareData, "VOC2012_crop --val_list l.bin --out {tmp}/new", "VOC lists are one --list for train", 2),
    (ConvOutput, "{pair} --topk [4]", r"--topk \[4\] asks for more answers than the 3 classes", 2),
    # Places that cannot be written to.
    (Training, "{new} --out {a}/x", "nothing can be written to .*: .* is a file", 1),
    (ConvOutput, "{pair} --out {a}", "nothing can be written to .*: .* is a file", 1),
    (Training_TransNet, "{fit} --out {a}/x/y", "nothing can be written to .*: .* is a file", 1),
    (Variance, "{measure} --json {a}/v.json", "--json: nothing can be written to .*: .* is a file", 2),
    (transClassifier, "{refine} --out {a}/x", "nothing can be written to .*: .* is a file", 1),
    (PrepareData, "digits --out {a}/x", "nothing can be written to .*: .* is a file", 1),
    (tables, "{road} --csv {a}/t.csv", "--csv: nothing can be written to .*: .* is a file", 2),
    # Checkpoints.
    (Training, "{new} --resume {tmp}/none.pth.tar", r"no checkpoint at .*none\.pth\.tar", 1),
    (Training, "{new} --resume {cut}", r"cut\.pth\.tar is truncated or not a checkpoint", 1),
    (Training, "{new} --resume {a} --optim Adam", "was trained with another optimiser", 1),
    (Training, "{new} --resume {a} --evaluate --image_size 48", "{other_size}", 1),
    (Training, "{new} --evaluate", "--evaluate needs a trained network: name one with --resume", 1),
    (Training, "{old} --suffix sd0 --lr 0.02", "is of another run, with lr 0.01 instead of 0.02; choose another", 1),
    (Training, "{old} --suffix cut --resume auto", "cut.pth.tar is truncated .*, or add --restart to replace it", 1),
    (Training, "{old} --suffix cut", "cut.pth.tar is truncated .*, or add --restart to replace it", 1),
    (Training, "{old} --suffix locked", "another run .* is writing in .*; wait for it, or choose another --suffix", 1),
    (Training, "{data} --resume {two} --evaluate", "two.pth.tar has 2 classes, the images have 3; use a net", 1),
    (ConvOutput, "--resume1 {tmp}/none.pth.tar --resume2 {b}", "no checkpoint at .*; that folder has anonymous", 1),
    (ConvOutput, "--resume1 {cut} --resume2 {b}", r"cut\.pth\.tar is truncated or not a checkpoint", 1),
    (ConvOutput, "{pair} --arch vgg16", "holds a resnet18, --arch says vgg16", 1),
    (ConvOutput, "--resume1 {a} --resume2 {g} --conv_layer 1", "holds a Trans-Net, a classifier is expected", 1),
    (ConvOutput, "{pair} --layer layer1.1.ad", r"no layer 'layer1\.1\.ad'.*layer1\.1\.add", 1),
    (ConvOutput, "{pair} --conv_layer 7", "the layers of a ResNet are 1 to 4 .*, not 7", 1),
    (ConvOutput, "{unlayered}", "no option names the layer of this ResNet: use --conv_layer or --layer", 1),
    (ConvOutput, "--resume1 {a} --resume2 {other} --layer layer1.1.add {data}", "own layer is named by --layer2", 1),
    (ConvOutput, "{pair} --image_size 48", "{other_size}", 1),
    (ConvOutput, "--resume1 {a} --resume2 {at48} --conv_layer 1 {data}", "were trained at 48 and 64 pixels", 1),
    (Variance, "{live} --transnet {tmp}/g.pth.tar", r"no checkpoint at .*g\.pth\.tar", 1),
    (Variance, "{measure} --transnet {a}", "holds no Trans-Net", 1),
    (Variance, "{live} --image_size 48", "{other_size}", 1),
    (Variance, "{live} --conv_layer 2", r"was made with .*layer", 1),
    (Variance, "{live_in} {meadow}", "was made with name folder instead of meadow; name what it was made of", 1),
    (Variance, "{live} --transnet {anonymous} --conv_layer 2", r"maps 64 channels to \(64, 16, 16\), but these", 1),
    (transClassifier, "{refine} --image_size 48", "{other_size}", 1),
    (transClassifier, "{refine} --resume_Ys {b}", "holds no Trans-Net", 1),
    (transClassifier, "{refine} --conv_layer 2", "was made with .*layer", 1),
    (BornAgain, "{again} --image_size 48", "{other_size}", 1),
    (BornAgain, "{again} --suffix taken", "taken_gen1.* is of another run, with lr 0.5 .* another --suffix", 1),
    (BornAgain, "{again} --resume {two}", "two.pth.tar has 2 classes, the images have 3", 1),
    (BornAgain, "{again} --resume '' --start_gen 1", "no checkpoint at .*gen0", 1),
    (Pruning, "{prune} --image_size 48", "{other_size}", 1),
    (Pruning, "{prune} --suffix taken --sweep [2,1]", r"taken_pruned0\.2-1.* with lr 0\.5 .* another --suffix", 1),
    (Pruning, "{prune} --resume {two}", "two.pth.tar has 2 classes, the images have 3", 1),
    (Pruning, "--resume {tmp}/none.pth.tar", "no checkpoint at .*none", 1),
    # Networks and devices.
    (Training, "{new} --arch vgg16bn", "the nearest name is vgg16_bn", 1),
    (Training, "{new} --arch vit_b_16", "the network does not take 64×64 images .*224", 1),
    (Training, "{new} --arch densenet121_ft", "have a fine-tuning form", 1),
    (Training, "{new} --weights {tmp}/none.pth", "there is no file .*none.pth; correct the path", 1),
    (Training, "{new} --amp fp16", "--amp fp16 needs a GPU", 1),
    # Images.
    (Training, "--dataset CUB200 --data_root {tmp}/nowhere", "there is no folder .*nowhere", 1),
    (Training, "--dataset CUB20", "there is no data set 'CUB20'", 1),
    (Training, "--dataset folder", "is any folder of class folders; name it with --train_path", 1),
    (Training, "--dataset folder --train_path {empty} --val_path {empty}", "has no class folders", 1),
    (Training, "--dataset folder --train_path {single} --val_path {single}", "has one class, finch", 1),
    (Training, "{new} --sample_num 50par_C", "50par_C", 1),
    (ConvOutput, "--resume1 {a} --resume2 {b} --conv_layer 1 --dataset folder", "name it with --train_path", 1),
    (Pruning, "--resume {a} --dataset folder --train_path {single} --val_path {single}", "finch|classes", 1),
    (PrepareData, "CUB200 --out {tmp}/new", "CUB200 needs --src: the official", 1),
    (PrepareData, "CUB200 --src {tmp}/none.tgz --out {tmp}/new", "none.tgz", 1),
    (PrepareData, "CUB200 --src {empty} --out {tmp}/new", "empty", 1),
    # Stored features and results.
    (Training_TransNet, "--convOut_path {incomplete}", "train is incomplete: 10 of 24 images were stored before", 1),
    (Training_TransNet, "{fit} --conv_layer 4", 'have layer = "1", expected "4"', 1),
    (Training_TransNet, "{fit} --dataset CUB200", 'have dataset = "folder", expected "CUB200"', 1),
    (Training_TransNet, "{fit} --bn --resume {g}", "holds a Trans-Net of other options or shapes", 1),
    (Training_TransNet, "{fit} --suffix a0.1", "is of another run, with .* instead of .*; choose another --suffix", 1),
    (Training_TransNet, "--dataset CUB200", "no stored features at", 1),
    (Variance, "--transnet {g} --convOut_path {foreign}", "no stored features in", 1),
    (tables, "{road}", "has no number of these tables; run the scripts in experiments/ first", 1),
    (tables, "{road} table9", "there is no table 'table9'; known are", 1),
    (figures, "{road}", "has no results; run the scripts in experiments/ first", 1),
    (Report, "{empty} --out {tmp}/page.html --check {tmp}/page.html", "--check: not allowed with argument --out", 2),
    (Report, "{empty} --out {tmp}/page.pdf", "--out: expected a name that ends in .html", 2),
    (Report, "{tmp}/nowhere", "there is no folder .*nowhere; name the one that --json and --figure wrote to", 1),
    (Report, "{empty}", "empty has no results; write some there with Variance.py --json or Calibrate.py --json", 1),
    # Calibration and distillation.
    (Calibrate, "{measure} --bootstrap 5", "--bootstrap: expected a whole number of at least 100, got '5'", 2),
    (Calibrate, "--convOut_path {features} --transnet {tmp}/none.pth.tar", "no checkpoint at .*none", 1),
    (Calibrate, "--convOut_path {tmp}/nowhere --transnet {g}", "nowhere", 1),
    (DCM, "--save {tmp}/dcm --width 0", "--width: expected a number above 0, got '0'", 2),
    (DCM, "--save {tmp}/dcm --method both", "--method: invalid choice: 'both'", 2),
    (DCM, "--save {tmp}/taken", "with lr 0.5 instead of 0.1; choose another --save, or --restart", 1),
    (DCM, "--save {tmp}/dcm --dataroot {tmp}/nowhere", "nowhere", 1),
    (HSAKD, "teacher --freezed", "--freezed and --pretrained_backbone FILE belong together", 2),
    (HSAKD, "online", "online needs --arch, a pair such as", 2),
    (HSAKD, "{taken}", "with lr 0.5 instead of 0.05; choose another --suffix, or --restart", 1),
    (HSAKD, "{taken} --evaluate", "holds neither|holds no network", 1),
    (HSAKD, "teacher --data {tmp}/nowhere", "nowhere", 1),
    (HSAKD, "student --tcheckpoint {tmp}/none.pth.tar --data {tmp}/nowhere", "no checkpoint at .*none", 1),
]  # fmt: skip


@pytest.fixture(scope="module")
def shelf(road, photos, tmp_path_factory):
    """Files and folders to be wrong with, and command lines that would do but for one option."""
    tmp = tmp_path_factory.mktemp("shelf")
    out = tmp / "out"
    places = {"tmp": tmp, "road": road.out, "a": road.a, "b": road.b, "g": road.trans_net, "features": road.features}
    places |= {name: tmp / name for name in ("empty", "single", "foreign", "incomplete")}
    places |= {name: tmp / f"{name}.pth.tar" for name in ("cut", "at48", "anonymous", "other", "two")}
    places["empty"].mkdir()
    shutil.copytree(photos / "train/red", places["single"] / "finch")
    places["foreign"].mkdir()
    (places["foreign"] / "holiday.jpg").touch()
    shutil.copytree(road.features / "train", places["incomplete"] / "train")
    index = json.loads((road.features / "train/index.json").read_text())
    (places["incomplete"] / "train/index.json").write_text(json.dumps(index | {"complete": False}))
    written = np.load(road.features / "train/written.npy")
    written[10:] = False
    np.save(places["incomplete"] / "train/written.npy", written)

    places["cut"].write_bytes(road.a.read_bytes()[:100_000])
    own = road.out / "model_checkpoints/checkpoint_folder_resnet18_cut.pth.tar"
    shutil.copy(places["cut"], own)
    state = checkpoint.load(road.b)
    checkpoint.save(places["at48"], state | {"data": state["data"] | {"image_size": 48}})
    checkpoint.save(places["anonymous"], checkpoint.load(road.trans_net) | {"source": {}})  # as the authors' are

    for name, classes in (("other", 3), ("two", 2)):
        squeezenet = {"arch": "squeezenet1_1", "model": classifier_record("squeezenet1_1", classes)}
        checkpoint.save(places[name], squeezenet | {"state_dict": build("squeezenet1_1", classes).state_dict()})
    hsakd = "train_baseline_cifar_arch_resnet8_dataset_cifar100_seed0/resnet8.pth.tar"
    ours = out / "model_checkpoints"
    nets = (ours / f"checkpoint_folder_resnet18_taken_{kind}.pth.tar" for kind in ("gen1", "pruned0.2-1"))
    for own in (*nets, tmp / "taken/checkpoint.pth.tar", tmp / "taken" / hsakd):
        checkpoint.save(own, {"epoch": 1, "settings": {"lr": 0.5}})
    (tmp / "meadow").symlink_to(photos)

    data = f"--dataset folder --name folder --train_path {photos}/train --val_path {photos}/val"
    lines = {
        "data": data,
        "new": f"--arch resnet18 --image_size 64 {data} --out {out}",
        "old": f"--arch resnet18 --image_size 64 --epochs 2 --batch_size 10 {data} --out {road.out}",
        "unlayered": f"--resume1 {road.a} --resume2 {road.b} {data} --out {out}",
        "pair": f"--resume1 {road.a} --resume2 {road.b} --conv_layer 1 {data} --out {out}",
        "fit": f"--convOut_path {road.features} --out {road.out}",
        "both": f"--net_A {road.a} --net_B {road.b} {data} --out {road.out}",
        "measure": f"--convOut_path {road.features} --transnet {road.trans_net}",
        "live": f"--net_in {road.a} --net_tar {road.b} {data} --transnet {road.trans_net}",
        "live_in": f"--net_in {road.a} --net_tar {road.b} --transnet {road.trans_net}",
        "meadow": f"--train_path {tmp}/meadow/train --val_path {tmp}/meadow/val",
        "taken": f"baseline --arch resnet8 --checkpoint_dir {tmp}/taken --data {photos} --out {out}",
        "refine": f"--net_A {road.a} --net_B {road.b} --resume_Ys {road.trans_net} {data} --out {out}",
        "again": f"--resume {road.a} {data} --out {out}",
        "prune": f"--resume {road.a} {data} --out {out}",
    }
    other_size = "was trained at 64 pixels, --image_size says 48; leave the option out"
    logs = road.out / "logs/folder_resnet18_locked"
    logs.mkdir()
    lock = FileLock(logs / ".lock")
    lock.acquire()
    (logs / ".lock").write_text("pid 1 on elsewhere, since yesterday")
    yield SimpleNamespace(folders=(tmp, road.out, photos), words=places | lines, other_size=other_size)
    lock.release()
    shutil.rmtree(logs)
    own.unlink()


def look(folders):
    """Name, size and time of everything below."""
    found = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in found]


@pytest.fixture
def blind(monkeypatch):
    """Whoever decodes an image, in a thread or in a loader's worker, fails."""

    def decode(data, indices):
        raise AssertionError(f"{len(indices)} images are decoded before the mistake is told")

    monkeypatch.setattr(ImageData, "decode", decode)


@pytest.mark.usefixtures("blind")
@pytest.mark.parametrize(
    ("script", "line", "message", "code"),
    MISTAKES,
    ids=[f"{script.__name__.split('.')[-1]} {line}" for script, line, *_ in MISTAKES],
)
def test_a_mistake_is_told_in_one_line_before_images_are_decoded_and_changes_nothing(
    shelf, tmp_path, monkeypatch, capsys, script, line, message, code
):
    monkeypatch.chdir(tmp_path)
    before = look((*shelf.folders, tmp_path))
    with pytest.raises(SystemExit) as exit_:
        run(script, line.format(**shelf.words))
    said = capsys.readouterr().err
    if isinstance(exit_.value.code, str):  # which Python prints to stderr before it exits with 1
        assert exit_.value.code.startswith(f"{script.__name__.split('.')[-1]}.py: ")
        said, found = said + exit_.value.code + "\n", 1
    else:
        found = exit_.value.code
        assert said.endswith(" (--help shows all options)\n")
    last = said.rstrip("\n").splitlines()[-1]
    assert re.search(message.replace("{other_size}", shelf.other_size), last), last
    assert found == code
    assert "Traceback" not in said
    told = re.sub(r"/[^\s;:,']*", "/…", last)  # how long a path is, is the user's affair
    assert len(told) < LONGEST_LINE
    assert look((*shelf.folders, tmp_path)) == before


def test_every_script_has_its_mistakes():
    scripts = {script.__name__ for script, *_ in MISTAKES}
    assert scripts >= {path.stem for path in ROOT.glob("*.py")}
    assert len({(script, line) for script, line, *_ in MISTAKES}) >= 80


def test_a_mistake_in_a_shell(tmp_path):
    """The exit code is 1, of wrong options 2, and the one line stands on stderr alone."""
    words = [sys.executable, str(ROOT / "Variance.py"), "--convOut_path", str(tmp_path), "--transnet", "none.pth.tar"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr == "Variance.py: no checkpoint at none.pth.tar; train it first or correct the path\n"
    done = subprocess.run([*words, "--net_in", "A"], cwd=tmp_path, capture_output=True, text=True, check=False)
    why = "--net_in has no effect beside --convOut_path: those features are stored already"
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Variance.py: error: {why} (--help shows all options)\n"
    assert not list(tmp_path.iterdir())


PARSERS = [(script, "") for script in (BornAgain, Calibrate, ConvOutput, DCM, HSAKD, PrepareData, Pruning, Training)]
PARSERS += [(script, "") for script in (Report, Training_TransNet, Variance, figures, tables, transClassifier)]
PARSERS += [(HSAKD, command) for command in COMMANDS]


@pytest.mark.parametrize(("script", "command"), PARSERS)
def test_help_has_an_example_and_no_unnamed_group(script, command, capsys):
    with pytest.raises(SystemExit) as exit_:
        run(script, f"{command} --help")
    assert exit_.value.code == 0
    said = capsys.readouterr().out
    headings = re.findall(r"^(\S.*):$", said, re.MULTILINE)
    assert not {"options", "optional arguments", "positional arguments"} & set(headings)
    of_help = said.split("\nhelp:\n")[1].split("\n\n")[0]
    assert re.findall(r"--\w+", of_help) == ["--help"]  # every other option stands in a group of its own
    assert headings[-1] == "example"
    example = said.rsplit("example:\n", 1)[1].split()
    assert example[0] == "python"
    script.build_parser().parse_args(example[3:] if example[1] == "-m" else example[2:])


@pytest.mark.parametrize(("script", "command"), PARSERS)
def test_help_says_one_default_of_an_option(script, command, capsys):
    with pytest.raises(SystemExit):
        run(script, f"{command} --help")
    of_options = re.split(r"\n  (?=-)", capsys.readouterr().out)
    assert [text for text in of_options if text.count("default: ") > 1] == []
