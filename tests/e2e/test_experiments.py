"""The sections' scripts: the command lines that they consist of."""

from pathlib import Path

import pytest

from tests.e2e.sections import SECTIONS, commands, only, run
from tests.mistakes import check_line

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("section", SECTIONS)
def test_the_defaults_are_the_papers(section):
    found = commands(section)
    for net in only(found, "Training"):
        epochs = 150 if net.dataset == "VOC2012_crop" else 300
        assert (net.optim, net.lr, net.momentum, net.epochs, net.epoch_step) == (
            "SGD",
            0.01,
            0.9,
            epochs,
            epochs // 5,
        )
        assert (net.batch_size, net.image_size, net.save_epoch, net.resume) == (
            128,
            224,
            50,
            "auto",
        )
    fits = only(found, "Training_TransNet")
    assert fits
    for fit in fits:
        alpha = 8.0 if section == "stability" and "alexnet" in fit.convOut_path else 0.1
        assert (fit.lr, fit.logspace, fit.epochs, fit.layers, fit.alpha) == (
            1e-4,
            2,
            1000,
            [3],
            [alpha, alpha],
        )
        assert fit.resume == "auto"
    for tail in only(found, "transClassifier"):
        assert (tail.epochs, tail.lr, tail.logspace) == (
            100,
            1e-4 if section == "diagnosis" else 1e-5,
            2,
        )


def test_stability_compares_the_papers_layers_in_both_cases_and_directions():
    found = commands("stability")
    layers = {("alexnet", 8), ("alexnet", 10), ("vgg16_bn", 30), ("vgg16_bn", 40), ("resnet34", 4)}
    assert {(options.arch, options.conv_layer) for options in only(found, "ConvOutput")} == layers
    nets = {(net.arch, net.seed, net.sample_num, net.suffix) for net in only(found, "Training")}
    assert {net[1:] for net in nets if net[0] == "resnet34"} == {
        (0, "", "sd0"),
        (5, "", "sd5"),
        (0, "50par_A", "sd0_50par_A"),
        (0, "50par_B", "sd0_50par_B"),
    }
    assert all(
        not options.sample_num and options.t_or_v == "train"
        for options in only(found, "ConvOutput")
    )
    measured = only(found, "Variance")
    assert len(measured) == 5 * 2 * 2
    assert all(options.t_or_v == "val" for options in measured)
    for case, first, second in (("case1", "sd0", "sd5"), ("case2", "sd0_50par_A", "sd0_50par_B")):
        cell = f"runs/results/table1/{case}/alexnet_L10"
        pairs = {
            (Path(options.net_in).name, Path(options.net_tar).name, options.json)
            for options in measured
            if options.json.startswith(cell + "/")
        }
        name = "checkpoint_CUB200_alexnet_{}.pth.tar"
        assert pairs == {
            (name.format(a), name.format(b), f"{cell}/{a}-{b}.json")
            for a, b in ((first, second), (second, first))
        }
    reverse = [fit for fit in only(found, "Training_TransNet") if fit.reverse]
    assert len(reverse) == 5 * 2
    assert {fit.suffix for fit in reverse if "vgg" in fit.convOut_path} == {
        "sd5-sd0_a0.1",
        "sd0_50par_B-sd0_50par_A_a0.1",
    }


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
    once, all_pairs = (
        commands(section, ARCHS=archs, SEEDS=seeds, CALIBRATE="--brief") for seeds in (one, "0 5 7")
    )
    for script in ("ConvOutput", "Training_TransNet", "transClassifier", "Variance", "Calibrate"):
        assert len(only(all_pairs, script)) == pairs * len(only(once, script)), script
    results = [
        options.json for script in ("Variance", "Calibrate") for options in only(all_pairs, script)
    ]
    assert len(results) == len(set(results))


def test_fits_to_their_end_stand_beside_the_released_procedure():
    found = commands(
        "stability",
        ARCHS="resnet34",
        FIT="--standardise --solve",
        RELEASED_EPOCHS="60",
        CALIBRATE="--brief",
    )
    fits = [
        (fit.standardise, fit.solve is not None, fit.epochs)
        for fit in only(found, "Training_TransNet")
    ]
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
        ("alexnet_ft", "/w/alexnet.pth"),
        ("resnet34_ft", "/w/resnet34.pth"),
    ]
    compressed = commands("compression", **settings)
    assert [net.arch for net in only(compressed, "Training")] == ["vgg16_bn_ft"]
    assert {net.share_bits for net in only(compressed, "Pruning")} == {5}
    assert {options.conv_layer for options in only(compressed, "ConvOutput")} == {30, 37}


def test_refinement_tunes_five_inputs_as_long():
    tails = only(commands("refinement"), "transClassifier")
    expected = [("raw_A", "A", None), ("raw_B", "B", None)]
    expected += [("components", "B", orders) for orders in ([1, 0, 0], [1, 1, 0], [1, 1, 1])]
    for arch, layer in (
        ("vgg16_bn", 30),
        ("vgg16_bn", 37),
        ("resnet18", 3),
        ("resnet34", 3),
        ("resnet50", 3),
    ):
        own = [tail for tail in tails if (tail.arch, tail.conv_layer) == (arch, layer)]
        assert [(tail.input, tail.tail, tail.in_mode) for tail in own] == expected


def test_diagnosis_adds_blind_spots_to_the_weak_net_and_removes_unreliable_features():
    found = commands("diagnosis")
    added, noise, strong, removed, raw = only(found, "transClassifier")
    for control, name in ((added, "residual_added"), (noise, "noise_added"), (strong, "raw_B")):
        assert (control.input, control.tail, control.conv_layer, control.conv_layer2) == (
            name,
            "A",
            10,
            3,
        )
        assert (control.net_A, control.net_B) == (added.net_A, added.net_B)
    assert (removed.input, removed.tail, removed.conv_layer, removed.conv_layer2) == (
        "components",
        "B",
        3,
        10,
    )
    assert (raw.input, raw.conv_layer) == ("raw_A", 10)
    assert "alexnet" in added.net_A
    assert "alexnet" in removed.net_B
    assert [fit.reverse for fit in only(found, "Training_TransNet")] == [False, True]


def test_redundancy_fits_on_the_new_tasks_images():
    found = commands("redundancy", ARCHS="vgg16_bn")
    assert {(net.dataset, net.seed) for net in only(found, "Training")} == {
        ("VOC2012_crop", 0),
        ("VOC2012_crop", 5),
        ("mix320", 0),
        ("mix320", 16),
    }
    tasks = {"VOC2012_animal", "mix320-cub", "mix320-dog"}
    for script in ("ConvOutput", "transClassifier"):
        assert {(options.dataset, options.conv_layer) for options in only(found, script)} == {
            (task, layer) for task in tasks for layer in (30, 37)
        }


def test_compression_and_distillation_are_as_documented():
    pruned = only(commands("compression"), "Pruning")
    assert [(net.s_conv, net.s_fc, net.epochs, net.lr) for net in pruned] == [
        (0.2, 1.0, 20, 1e-4),
        (0.4, 1.25, 20, 1e-4),
        (0.6, 1.5, 20, 1e-4),
        (0.9, 1.75, 20, 1e-4),
        (1.2, 2.0, 20, 1e-4),
    ]
    found = commands("distillation")
    (series,) = only(found, "BornAgain")
    assert (series.start_gen, series.generations, series.seed, series.epochs, series.lr) == (
        1,
        5,
        10,
        300,
        0.01,
    )
    assert (series.tau, series.lambd, series.lambd_end, series.logspace, series.epoch_step) == (
        1,
        0.5,
        0.5,
        0,
        60,
    )
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
        "folder",
        "/out/mix/bird_dog/train",
        "/out/mix/bird_dog/test",
    )


def test_the_environment_makes_it_smaller():
    small = {
        "EPOCHS": "3",
        "TRANS_EPOCHS": "4",
        "TRANS_LR": "0.001",
        "REFINE_EPOCHS": "5",
        "REFINE_LR": "0.0002",
    }
    small |= {
        "IMAGE_SIZE": "64",
        "BATCH": "16",
        "DATA": "/d",
        "OUT": "/o",
        "OPTIM": "Adam",
        "LR": "0.0003",
    }
    found = commands("refinement", ARCHS="vgg11_bn", **small)
    for net in only(found, "Training"):
        assert (net.epochs, net.epoch_step, net.image_size, net.batch_size, net.data_root) == (
            3,
            1,
            64,
            16,
            "/d",
        )
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
    assert {
        tuple(options.device_ids) for script, options in together if script != "experiments.tables"
    } == {(0, 1)}
    side_by_side = commands("stability", DEVICE_IDS="[2,3]", JOBS="2", ARCHS="alexnet")
    assert [net.gpu for net in only(side_by_side, "Training")] == [2, 3, 2, 3]
    # A chain stays on its GPU.
    stored = [options.gpu for options in only(side_by_side, "ConvOutput")]
    assert stored == [2, 3, 2, 3]
    assert [options.gpu for options in only(side_by_side, "Variance")] == [
        gpu for gpu in stored for _ in "AB"
    ]


def test_stages_of_other_networks_are_not_known():
    result = run("distillation_knowledge", "--dry-run", TEACHER="vgg13_bn", PYTHON="python")
    assert (result.returncode, result.stdout) == (2, "")
    check_line(result.stderr, "distillation_knowledge", "vgg13_bn")


def test_nets_of_different_architectures_are_calibrated_in_both_directions():
    found = commands(
        "architectures", PAIRS="alexnet:10/resnet18:layer3", SEEDS="0 5", OPTIM_alexnet="Adam"
    )
    nets = [(net.arch, net.seed, net.optim) for net in only(found, "Training")]
    assert nets == [
        ("alexnet", 0, "Adam"),
        ("alexnet", 5, "Adam"),
        ("resnet18", 0, "SGD"),
        ("resnet18", 5, "SGD"),
    ]
    assert [fit.both_directions for fit in only(found, "Training_TransNet")] == [True, True]
    calibrated = [
        (options.reverse, *Path(options.json).parts[-3:]) for options in only(found, "Calibrate")
    ]
    assert calibrated == [
        (reverse, row, "calibrate", f"sd{seed}.json")
        for seed in (0, 5)
        for reverse, row in (
            (False, "alexnet_L10_to_resnet18_Llayer3"),
            (True, "resnet18_Llayer3_to_alexnet_L10"),
        )
    ]
    folders = {options.convOut_path for options in only(found, "Calibrate")}
    assert folders == {
        f"runs/convOuts/CUB200_alexnet-resnet18/CUB200_L10-layer3_sd{seed}" for seed in (0, 5)
    }
