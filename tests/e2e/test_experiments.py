"""The sections' scripts: the command lines that they consist of, and how they run them."""

import importlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import tables
from models.layers import Layer
from tests.unit.photos import make_folder
from utils import hsakd_options, runs
from utils.options import data_name

pytestmark = pytest.mark.e2e
ROOT = Path(tables.__file__).parents[1]
SECTIONS = ("diagnosis", "stability", "refinement", "redundancy", "compression", "distillation", "tasks")
SETTINGS = (
    "DATA", "OUT", "BIRDS", "DOGS", "PYTHON", "IMAGE_SIZE", "OPTIM", "LR", "TRANS_EPOCHS", "TRANS_LR", "REFINE_EPOCHS",
    "REFINE_LR", "PRUNE_EPOCHS", "BATCH", "JOBS", "DEVICE_IDS", "ARCHS", "EPOCHS", "SEEDS", "LAYERS", "TARGETS",
    "THRESHOLDS", "GENERATIONS", "KC_DATA", "FIT", "CALIBRATE", "PRETRAINED", "WEIGHTS", "HALF_SEEDS",
    "RELEASED_EPOCHS", "CALIBRATE_PAIRS", "WEAK_SAMPLE", "SHARE_BITS", "LR_resnet18", "EPOCHS_resnet18",
    "LAYERS_resnet18", "TEACHER", "STUDENT", "TEACHER_EPOCHS", "METHODS", "PAIRS", "EPOCH_STEP", "CLASSES",
)  # fmt: skip
ARCHS = ("alexnet", "resnet18")  # those of the tests that compose names, since they have no underscore
# It stands for Python: it notes what it is called with, and fails where FAIL is among its words.
STUB = """#!/usr/bin/env bash
echo "$*" >> "$CALLS"
for line in {1..30}; do echo "line $line of $1"; done
[[ -z "${FAIL:-}" || "$*" != *"$FAIL"* ]]
"""


def run(section, *words, **settings):
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS} | settings
    script = ROOT / "experiments" / f"{section}.sh"
    return subprocess.run(["bash", script, *words], env=environment, capture_output=True, text=True, check=False)


def commands(section, **settings):
    """Give what --dry-run prints as (script, parsed options), links included as ("ln", [target, name])."""
    result = run(section, "--dry-run", PYTHON="python", **settings)
    assert result.returncode == 0, result.stderr
    found = []
    for line in result.stdout.splitlines():
        words = shlex.split(line)
        if words[0] in ("mkdir", "rm"):
            found.append(("rm", words[2]) if words[0] == "rm" else ("ln", words[words.index("-sfn") + 1 :]))
            continue
        assert words[0] == "python"
        module = words[2] if words[1] == "-m" else words[1].removesuffix(".py")
        options = words[3:] if words[1] == "-m" else words[2:]
        found.append((module, importlib.import_module(module).build_parser().parse_args(options)))
    return found


def only(found, script):
    return [options for name, options in found if name == script]


@pytest.fixture
def stub(tmp_path):
    """Settings under which steps run the stub, and the file that it notes its calls in."""
    path = tmp_path / "python"
    path.write_text(STUB)
    path.chmod(0o755)
    calls = tmp_path / "calls"
    return {"PYTHON": str(path), "CALLS": str(calls), "OUT": str(tmp_path / "out")}, calls


def written_by(script, options, labels):
    """Name the checkpoints and folders that a command writes; `labels` remembers what feature folders are of."""
    if script == "Training":
        return [runs.classifier_path(options.out, data_name(options), options.arch, options.suffix)]
    if script == "BornAgain":
        names = [f"{options.suffix}_gen{generation}" for generation in range(options.start_gen, options.generations)]
        return [runs.classifier_path(options.out, options.dataset, options.arch, name) for name in names]
    if script == "Pruning":
        name = f"{options.suffix}_pruned{options.s_conv:g}-{options.s_fc:g}"
        path = runs.classifier_path(options.out, options.dataset, arch_of(options.resume), name)
        return [path, path.with_name(path.name.replace(".pth.tar", ".json"))]
    if script == "Training_TransNet":
        dataset, arch, layer = labels[Path(options.convOut_path)]
        return [runs.trans_net_path(options.out, dataset, arch, layer, "", options.suffix)]
    return compared_by(script, options, labels) if script in ("ConvOutput", "transClassifier") else []


def compared_by(script, options, labels):
    """The same of the scripts that take two nets."""
    nets = (options.resume1, options.resume2) if script == "ConvOutput" else (options.net_A, options.net_B)
    archs = [arch_of(net) for net in nets if net]
    layers = [str(options.conv_layer), str(options.conv_layer2 or options.conv_layer)]
    arch, layer = runs.pair(archs[0], archs[-1]), runs.pair(*layers)
    if script == "ConvOutput":
        split = (options.suffix, options.t_or_v)
        folder = runs.features_folder(options.out, options.dataset, options.sample_num, arch, layer, *split).parent
        labels[folder] = (options.dataset, arch, layer)
        return [folder]
    raw = options.input.startswith("raw")
    feature = runs.join(
        "" if options.input == "components" else options.input,
        "" if raw else "".join(map(str, options.in_mode or [1, 1, 1])),
        "" if options.tail in (None, "A" if options.input == "raw_A" else "B") else f"tail{options.tail}",
    )
    return [runs.refined_path(options.out, options.dataset, "", arch, feature, options.suffix, layer)]


def arch_of(net):
    return next(part for part in Path(net).name.split("_") if part in ARCHS)


def _resolve(target, name):
    return Path(os.path.normpath(Path(name).parent / target))


def read_by(options):
    names = ("resume1", "resume2", "net_in", "net_tar", "transnet", "net_A", "net_B", "resume_Ys", "convOut_path")
    values = [getattr(options, name, None) for name in (*names, "resume")]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [Path(path) for path in paths if path and path != "auto"]


@pytest.mark.parametrize(
    "settings", [{}, {"SEEDS": "0 5 7", "HALF_SEEDS": "0 5", "CALIBRATE": "--brief", "RELEASED_EPOCHS": "9"}]
)
@pytest.mark.parametrize("section", SECTIONS)
def test_every_command_parses_and_reads_what_an_earlier_one_wrote(section, settings):
    found = commands(section, ARCHS=" ".join(ARCHS), **settings)
    assert found[-1][0] == "experiments.tables"
    assert found[-1][1].tables
    written, labels = set(), {}
    for script, options in found[:-1]:
        if script == "ln":
            target, name = options
            # Those of data are tested below; in results is what a step wrote.
            missing = [target] if "/results/" in name and _resolve(target, name) not in written else []
        else:
            missing = [path for path in read_by(options) if path not in written]
            written.update(written_by(script, options, labels))
        assert not missing, f"{script} reads {missing}"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_defaults_are_the_papers(section):
    found = commands(section)
    for net in only(found, "Training"):
        epochs = 150 if net.dataset == "VOC2012_crop" else 300
        assert (net.optim, net.lr, net.momentum, net.epochs, net.epoch_step) == ("SGD", 0.01, 0.9, epochs, epochs // 5)
        assert (net.batch_size, net.image_size, net.save_epoch, net.resume) == (128, 224, 50, "auto")
    fits = only(found, "Training_TransNet")
    assert fits
    for fit in fits:
        alpha = 8.0 if section == "stability" and "alexnet" in fit.convOut_path else 0.1
        assert (fit.lr, fit.logspace, fit.epochs, fit.layers, fit.alpha) == (1e-4, 2, 1000, [3], [alpha, alpha])
        assert fit.resume == "auto"
    for tail in only(found, "transClassifier"):
        assert (tail.epochs, tail.lr, tail.logspace) == (100, 1e-4 if section == "diagnosis" else 1e-5, 2)


def test_stability_compares_the_papers_layers_in_both_cases_and_directions():
    found = commands("stability")
    layers = {("alexnet", 8), ("alexnet", 10), ("vgg16_bn", 30), ("vgg16_bn", 40), ("resnet34", 4)}
    assert {(options.arch, options.conv_layer) for options in only(found, "ConvOutput")} == layers
    nets = {(net.arch, net.seed, net.sample_num, net.suffix) for net in only(found, "Training")}
    assert {net[1:] for net in nets if net[0] == "resnet34"} == {
        (0, "", "sd0"), (5, "", "sd5"), (0, "50par_A", "sd0_50par_A"), (0, "50par_B", "sd0_50par_B")
    }  # fmt: skip
    assert all(not options.sample_num and options.t_or_v == "train" for options in only(found, "ConvOutput"))
    measured = only(found, "Variance")
    assert len(measured) == 5 * 2 * 2
    assert all(options.t_or_v == "val" for options in measured)
    for case, first, second in (("case1", "sd0", "sd5"), ("case2", "sd0_50par_A", "sd0_50par_B")):
        cell = f"runs/results/table1/{case}/alexnet_L10"
        pairs = {
            (Path(options.net_in).name, Path(options.net_tar).name, options.json)
            for options in measured if options.json.startswith(cell + "/")
        }  # fmt: skip
        name = "checkpoint_CUB200_alexnet_{}.pth.tar"
        assert pairs == {
            (name.format(a), name.format(b), f"{cell}/{a}-{b}.json") for a, b in ((first, second), (second, first))
        }
    reverse = [fit for fit in only(found, "Training_TransNet") if fit.reverse]
    assert len(reverse) == 5 * 2
    assert {fit.suffix for fit in reverse if "vgg" in fit.convOut_path} == {
        "sd5-sd0_a0.1", "sd0_50par_B-sd0_50par_A_a0.1"
    }  # fmt: skip


def test_stability_averages_over_all_pairs_of_seeds():
    measured = only(commands("stability", ARCHS="resnet34", SEEDS="0 5 7"), "Variance")
    names = {Path(options.json).stem for options in measured if "case1" in options.json}
    assert names == {f"sd{a}-sd{b}" for a in (0, 5, 7) for b in (0, 5, 7) if a != b}


@pytest.mark.parametrize(
    ("section", "one", "pairs"),
    [
        ("refinement", "0 5", 3),
        ("redundancy", "0 5", 3),
        ("diagnosis", "0", 3),
        ("compression", "0", 3),
        ("tasks", "0", 3),
    ],
)
def test_three_seeds_are_three_pairs(section, one, pairs):
    archs = "alexnet resnet18" if section == "diagnosis" else "resnet18"
    once, all_pairs = (commands(section, ARCHS=archs, SEEDS=seeds, CALIBRATE="--brief") for seeds in (one, "0 5 7"))
    for script in ("ConvOutput", "Training_TransNet", "transClassifier", "Variance", "Calibrate"):
        assert len(only(all_pairs, script)) == pairs * len(only(once, script)), script
    results = [options.json for script in ("Variance", "Calibrate") for options in only(all_pairs, script)]
    assert len(results) == len(set(results))


def test_fits_to_their_end_stand_beside_the_released_procedure():
    found = commands(
        "stability", ARCHS="resnet34", FIT="--standardise --solve", RELEASED_EPOCHS="60", CALIBRATE="--brief"
    )
    fits = [(fit.standardise, fit.solve is not None, fit.epochs) for fit in only(found, "Training_TransNet")]
    assert fits == [(True, True, 1000)] * 2 + [(False, False, 60)] * 2 + [(True, True, 1000)] * 2
    rows = [Path(options.json).parts[-3] for options in only(found, "Variance")]
    assert rows == ["case1"] * 2 + ["case1_released"] * 2 + ["case2"] * 2
    assert [Path(options.json).parts[-3:] for options in only(found, "Calibrate")] == [
        ("resnet34_L4_case1", "calibrate", "sd0-sd5.json"),
        ("resnet34_L4_case2", "calibrate", "sd0_50par_A-sd0_50par_B.json"),
    ]
    assert {options.t_or_v for options in only(found, "ConvOutput")} == {"both"}


def test_pretrained_nets_begin_with_the_weights_of_a_folder():
    settings = {"PRETRAINED": "1", "WEIGHTS": "/w"}
    nets = only(commands("diagnosis", **settings), "Training")
    assert [(net.arch, net.weights) for net in nets] == [
        ("alexnet_ft", "/w/alexnet.pth"), ("resnet34_ft", "/w/resnet34.pth")
    ]  # fmt: skip
    compressed = commands("compression", **settings)
    assert [net.arch for net in only(compressed, "Training")] == ["vgg16_bn_ft"]
    assert {net.share_bits for net in only(compressed, "Pruning")} == {5}
    assert {options.conv_layer for options in only(compressed, "ConvOutput")} == {30, 37}


def test_refinement_tunes_five_inputs_as_long():
    tails = only(commands("refinement"), "transClassifier")
    expected = [("raw_A", "A", None), ("raw_B", "B", None)]
    expected += [("components", None, orders) for orders in ([1, 0, 0], [1, 1, 0], [1, 1, 1])]
    for arch, layer in (("vgg16_bn", 30), ("vgg16_bn", 37), ("resnet18", 3), ("resnet34", 3), ("resnet50", 3)):
        own = [tail for tail in tails if (tail.arch, tail.conv_layer) == (arch, layer)]
        assert [(tail.input, tail.tail, tail.in_mode) for tail in own] == expected


def test_diagnosis_adds_blind_spots_to_the_weak_net_and_removes_unreliable_features():
    found = commands("diagnosis")
    added, noise, strong, removed, raw = only(found, "transClassifier")
    for control, name in ((added, "residual_added"), (noise, "noise_added"), (strong, "raw_B")):
        assert (control.input, control.tail, control.conv_layer, control.conv_layer2) == (name, "A", 10, 3)
        assert (control.net_A, control.net_B) == (added.net_A, added.net_B)
    assert (removed.input, removed.tail, removed.conv_layer, removed.conv_layer2) == ("components", None, 3, 10)
    assert (raw.input, raw.conv_layer) == ("raw_A", 10)
    assert "alexnet" in added.net_A
    assert "alexnet" in removed.net_B
    assert [fit.reverse for fit in only(found, "Training_TransNet")] == [False, True]


def test_redundancy_fits_on_the_new_tasks_images():
    found = commands("redundancy", ARCHS="vgg16_bn")
    assert {(net.dataset, net.seed) for net in only(found, "Training")} == {
        ("VOC2012_crop", 0), ("VOC2012_crop", 5), ("mix320", 0), ("mix320", 16)
    }  # fmt: skip
    tasks = {"VOC2012_animal", "mix320-cub", "mix320-dog"}
    for script in ("ConvOutput", "transClassifier"):
        assert {(options.dataset, options.conv_layer) for options in only(found, script)} == {
            (task, layer) for task in tasks for layer in (30, 37)
        }


def test_compression_and_distillation_are_as_documented():
    pruned = only(commands("compression"), "Pruning")
    assert [(net.s_conv, net.s_fc, net.epochs, net.lr) for net in pruned] == [
        (0.2, 1.0, 20, 1e-4), (0.4, 1.25, 20, 1e-4), (0.6, 1.5, 20, 1e-4), (0.9, 1.75, 20, 1e-4), (1.2, 2.0, 20, 1e-4)
    ]  # fmt: skip
    found = commands("distillation")
    (series,) = only(found, "BornAgain")
    assert (series.start_gen, series.generations, series.seed, series.epochs, series.lr) == (1, 5, 10, 300, 0.01)
    assert (series.tau, series.lambd, series.lambd_end, series.logspace, series.epoch_step) == (1, 0.5, 0.5, 0, 60)
    ends = [(Path(v.net_in).name[27:], Path(v.net_tar).name[27:]) for v in only(found, "Variance")]
    olds = ("sd0", "sd0_gen1", "sd0_gen2", "sd0_gen3")
    assert ends == [(f"{old}.pth.tar", "sd0_gen4.pth.tar") for old in olds]


def test_tasks_make_two_classes_of_links():
    found = commands("tasks", BIRDS="/some/birds", DOGS="/some/dogs", OUT="/out")
    assert only(found, "ln") == [
        ["/some/birds", "/out/mix/CUB200"],
        ["/some/dogs", "/out/mix/DOG120"],
        ["../../CUB200/train", "/out/mix/bird_dog/train/bird"],
        ["../../DOG120/train", "/out/mix/bird_dog/train/dog"],
        ["../../CUB200/test", "/out/mix/bird_dog/test/bird"],
        ["../../DOG120/test", "/out/mix/bird_dog/test/dog"],
    ]
    fine, binary = only(found, "Training")
    assert (fine.dataset, fine.data_root) == ("mix320", "/out/mix")
    assert (binary.dataset, binary.train_path, binary.val_path) == (
        "folder", "/out/mix/bird_dog/train", "/out/mix/bird_dog/test"
    )  # fmt: skip


def test_the_environment_makes_it_smaller():
    small = {"EPOCHS": "3", "TRANS_EPOCHS": "4", "TRANS_LR": "0.001", "REFINE_EPOCHS": "5", "REFINE_LR": "0.0002"}
    small |= {"IMAGE_SIZE": "64", "BATCH": "16", "DATA": "/d", "OUT": "/o", "OPTIM": "Adam", "LR": "0.0003"}
    found = commands("refinement", ARCHS="vgg11_bn", **small)
    for net in only(found, "Training"):
        assert (net.epochs, net.epoch_step, net.image_size, net.batch_size, net.data_root) == (3, 1, 64, 16, "/d")
        assert (net.optim, net.lr) == ("Adam", 0.0003)
    for fit in only(found, "Training_TransNet"):
        assert (fit.epochs, fit.lr, fit.batch_size, fit.out) == (4, 0.001, 16, "/o")
    for tail in only(found, "transClassifier"):
        assert (tail.epochs, tail.lr, tail.batch_size) == (5, 0.0002, 16)
    assert {options.conv_layer for options in only(found, "ConvOutput")} == {18, 25}


def test_an_unknown_architecture_needs_layers():
    why = "the paper has no layer of densenet121; name one by LAYERS\n"
    for section in SECTIONS:
        result = run(section, "--dry-run", ARCHS="resnet18 densenet121", PYTHON="python")
        assert (result.returncode, result.stdout, result.stderr) == (2, "", f"{section}: {why}")
    found = commands("refinement", ARCHS="vgg13", LAYERS="17 24")
    assert {options.conv_layer for options in only(found, "ConvOutput")} == {17, 24}


def test_steps_get_the_gpus_they_are_given():
    together = commands("distillation", DEVICE_IDS="[0,1]")
    assert {tuple(options.device_ids) for script, options in together if script != "experiments.tables"} == {(0, 1)}
    side_by_side = commands("stability", DEVICE_IDS="[2,3]", JOBS="2", ARCHS="alexnet")
    assert [net.gpu for net in only(side_by_side, "Training")] == [2, 3, 2, 3]
    # A chain stays on its GPU.
    stored = [options.gpu for options in only(side_by_side, "ConvOutput")]
    assert stored == [2, 3, 2, 3]
    assert [options.gpu for options in only(side_by_side, "Variance")] == [gpu for gpu in stored for _ in "AB"]


def test_a_run_is_what_the_dry_run_prints(stub):
    settings, calls = stub
    dry = run("distillation", "--dry-run", **settings)
    assert not calls.exists()
    assert not Path(settings["OUT"]).exists()
    assert run("distillation", **settings).returncode == 0
    printed = [" ".join(shlex.split(line)[1:]) for line in dry.stdout.splitlines()]
    assert calls.read_text().splitlines() == printed


def test_a_failed_step_stops_and_shows_its_log(stub):
    settings, calls = stub
    result = run("distillation", FAIL="gen1_a0.1", **settings)
    assert result.returncode == 1
    log = Path(settings["OUT"], "steps/distillation/fit_vgg16_bn_sd0_gen1.log")
    assert str(log) in result.stderr
    assert "line 30 of Training_TransNet.py\n" in result.stderr
    assert "line 10 of Training_TransNet.py\n" not in result.stderr
    assert len(log.read_text().splitlines()) == 30
    assert "--suffix sd0_gen1_a0.1 --alpha '[0.1,0.1]'" in result.stderr
    assert "--suffix sd0_gen1_a0.1" in calls.read_text().splitlines()[-1]


def test_chains_side_by_side_do_all_and_stop_all(stub):
    settings, calls = stub
    assert run("stability", JOBS="3", ARCHS="alexnet", **settings).returncode == 0
    side_by_side = sorted(calls.read_text().splitlines())
    calls.unlink()
    assert run("stability", ARCHS="alexnet", **settings).returncode == 0
    assert side_by_side == sorted(calls.read_text().splitlines())
    calls.unlink()
    result = run("stability", JOBS="3", ARCHS="alexnet", FAIL="--suffix sd5 ", **settings)
    assert result.returncode == 1
    assert "train_CUB200_alexnet_sd5 failed" in result.stderr
    assert all(line.startswith("Training.py") for line in calls.read_text().splitlines())


def test_a_second_run_keeps_the_first_log_of_a_step(stub):
    settings, _ = stub
    for _ in range(2):
        assert run("distillation", **settings).returncode == 0
    log = Path(settings["OUT"], "steps/distillation/fit_vgg16_bn_sd0_gen1.log")
    assert len(log.read_text().splitlines()) == 60


def test_a_python_that_is_not_there_is_said(tmp_path):
    result = run("tasks", "--dry-run", PYTHON=str(tmp_path / "python"))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"tasks: there is no {tmp_path}/python; name the one with torch by PYTHON\n"


def test_a_result_that_was_not_written_stops(stub):
    settings, _ = stub
    result = run("refinement", ARCHS="resnet18", **settings)
    assert result.returncode == 1
    assert "refinement: " in result.stderr
    assert "which is not there" in result.stderr


def test_help_is_the_head_of_the_script():
    result = run("tasks", "--help")
    assert result.returncode == 0
    assert result.stdout.startswith("Sec. 4.6")
    assert run("tasks", "--wrong").returncode == 2
    small = run("small_run", "--help")
    assert small.returncode == 0
    assert small.stdout.startswith("All sections at a size for two CPU cores")
    for words in ((), ("--wrong",)):
        assert (run("small_run", *words).returncode, run("small_run", *words).stdout) == (2, small.stdout)


def test_the_small_run_needs_no_dogs():
    result = run("small_run", "CUB_200_2011", "--dry-run", PYTHON="python")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("-m experiments.tables") == len(SECTIONS) + 2  # stability is run three times
    assert "--image_size 64" in result.stdout
    assert "runs/small/data/dogs runs/small/mix/DOG120" in result.stdout


def test_students_are_compared_with_the_teacher_that_was_trained():
    """Every file that a command of the knowledge experiment reads is one that an earlier one wrote."""
    found = commands("distillation_knowledge", SEEDS="0 1", TEACHER="resnet20", STUDENT="wrn_16_1", EPOCHS="12")
    written, archs = set(), {}
    for script, options in found:
        if script == "HSAKD":
            hsakd_options.fill(importlib.import_module(script).build_parser(), options)
            assert options.milestones == [8] and set(hsakd_options.files(options).values()) <= written
            path = f"{options.checkpoint_dir}/{hsakd_options.run_name(options)}/{options.arch}.pth.tar"
            archs[path] = options.arch.removesuffix("_aux")
        elif script == "BornAgain":
            assert options.resume in written and (options.epoch_step, options.decay_factor) == (8, 0.1)
            path = runs.classifier_path(options.out, "CIFAR100", options.student_arch, f"{options.suffix}_gen1")
            archs[str(path)] = options.student_arch
        elif script == "DCM":
            assert (options.epoch_step, options.normalisation, options.augment) == ([9], "cifar", "zero4")
            archs |= {f"{options.out}/net1.pth.tar": options.net1, f"{options.out}/net2.pth.tar": options.net2}
        elif script == "ConvOutput":
            assert {options.resume1, options.resume2} <= written
            arch = runs.pair(archs[options.resume1], archs[options.resume2])
            label = runs.pair(Layer(options.layer).label, Layer(options.layer2).label)
            place = (options.out, options.dataset or "CIFAR100", "", arch, label)
            features = str(runs.features_folder(*place, options.suffix, "val").parent)
            written.add(features)
        elif script == "Training_TransNet":
            assert options.convOut_path in written
            written.add(str(runs.trans_net_path(options.out, "CIFAR100", arch, label, "", options.suffix)))
            reverse = options.reverse
        elif script == "Calibrate":
            assert {options.convOut_path, options.transnet} <= written and options.reverse == reverse
            assert options.sums not in written
            written.add(options.sums)
        elif script == "rm":
            written.remove(options)
        elif script == "ln":
            assert str(_resolve(*options)) in written
        written |= archs.keys()
    methods = {Path(path).parts[-3] for path in written if path.endswith(".npz")}
    assert methods == {"alone", "kd", "dcm", "dcm_partner", "hsakd"}
    assert sum(path.endswith(".npz") for path in written) == 5 * 2 * 2 * 3  # methods, seeds, directions, stages
    assert found[-1][0] == "experiments.knowledge"


def test_stages_of_other_networks_are_not_known():
    result = run("distillation_knowledge", "--dry-run", TEACHER="vgg13_bn", PYTHON="python")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "distillation_knowledge: the stages of vgg13_bn are not known here; take WRNs and ResNets\n"


def test_the_small_distillation_is_dcm_hsakd_and_their_tables():
    result = run("small_distil", "cifar.tar.gz", "--dry-run", PYTHON="python", SEEDS="4", EPOCHS="10")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("python PrepareData.py CIFAR100 --src /") and "--classes 10" in lines[0]
    assert result.stdout.count("python DCM.py") == 2 * 3 + 1 and result.stdout.count("python HSAKD.py") == 3
    assert "--epoch_step '[7,9]' --batch_size 32" in result.stdout
    tables_of = [line.split()[2] for line in lines if line.startswith("python -m")]
    assert tables_of == ["experiments.tables", "experiments.knowledge", "experiments.accuracies"]
    assert run("small_distil").returncode == 2


def test_a_whole_section_runs(tmp_path):
    """The whole of Sec. 4.6 on photos of two birds and two dogs."""
    for half, names in (("CUB200", ("finch", "gull")), ("DOG120", ("beagle", "pug"))):
        for split in ("train", "test"):
            make_folder(tmp_path / "data" / half / split, dict.fromkeys(names, 3))
    settings = {
        "DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "ARCHS": "resnet18",
        "EPOCHS": "1", "TRANS_EPOCHS": "1", "IMAGE_SIZE": "32", "BATCH": "6", "JOBS": "2",
    }  # fmt: skip
    result = run("tasks", **settings)
    assert result.returncode == 0, result.stderr
    assert "### Fig. 5" in result.stdout
    assert "classes of mix320 4 (320)" in result.stdout
    assert "| fine-grained → binary | " in result.stdout
