"""Every file that a command of the sections' scripts reads is one that an earlier one wrote."""

import os
from pathlib import Path

import pytest

from distillation import hsakd_options
from models.layers import Layer
from tests.e2e.sections import ARCHS, SECTIONS, commands
from utils import runs
from utils.option_groups import DataOptions

pytestmark = pytest.mark.e2e


def written_by(script, options, labels):
    """Name the checkpoints and folders that a command writes;
    `labels` remembers what feature folders are of.
    """
    if script == "Training":
        return [
            runs.classifier_path(
                options.out, DataOptions.of(options).label, options.arch, options.suffix
            )
        ]
    if script == "BornAgain":
        names = [
            f"{options.suffix}_gen{generation}"
            for generation in range(options.start_gen, options.generations)
        ]
        return [
            runs.classifier_path(options.out, options.dataset, options.arch, name) for name in names
        ]
    if script == "Pruning":
        name = f"{options.suffix}_pruned{options.s_conv:g}-{options.s_fc:g}"
        path = runs.classifier_path(options.out, options.dataset, arch_of(options.resume), name)
        return [path, path.with_name(path.name.replace(".pth.tar", ".json"))]
    if script == "Training_TransNet":
        return trans_nets(options, *labels[Path(options.convOut_path)])
    return (
        compared_by(script, options, labels) if script in ("ConvOutput", "transClassifier") else []
    )


def trans_nets(options, dataset, arch, layer):
    suffixes = [options.suffix, *[f"{options.suffix}_reverse"] * options.both_directions]
    return [
        runs.trans_net_path(options.out, dataset, arch, layer, "", suffix) for suffix in suffixes
    ]


def compared_by(script, options, labels):
    """The same of the scripts that take two nets."""
    nets = (
        (options.resume1, options.resume2)
        if script == "ConvOutput"
        else (options.net_A, options.net_B)
    )
    archs = [arch_of(net) for net in nets if net]
    first = options.layer or options.conv_layer
    layers = [str(first), str(options.layer2 or options.conv_layer2 or first)]
    arch, layer = runs.pair(archs[0], archs[-1]), runs.pair(*layers)
    if script == "ConvOutput":
        split = (options.suffix, options.t_or_v)
        folder = runs.features_folder(
            options.out, options.dataset, options.sample_num, arch, layer, *split
        ).parent
        labels[folder] = (options.dataset, arch, layer)
        return [folder]
    raw = options.input.startswith("raw")
    feature = runs.join(
        "" if options.input == "components" else options.input,
        "" if raw else "".join(map(str, options.in_mode or [1, 1, 1])),
        (
            ""
            if options.tail in (None, "A" if options.input == "raw_A" else "B")
            else f"tail{options.tail}"
        ),
    )
    return [
        runs.refined_path(options.out, options.dataset, "", arch, feature, options.suffix, layer)
    ]


def arch_of(net):
    return next(part for part in Path(net).name.split("_") if part in ARCHS)


def _resolve(target, name):
    return Path(os.path.normpath(Path(name).parent / target))


def read_by(options):
    names = (
        "resume1",
        "resume2",
        "net_in",
        "net_tar",
        "transnet",
        "net_A",
        "net_B",
        "resume_Ys",
        "convOut_path",
    )
    values = [getattr(options, name, None) for name in (*names, "resume")]
    paths = [path for value in values for path in (value if isinstance(value, list) else [value])]
    return [Path(path) for path in paths if path and path != "auto"]


@pytest.mark.parametrize(
    "settings",
    [{}, {"SEEDS": "0 5 7", "HALF_SEEDS": "0 5", "CALIBRATE": "--brief", "RELEASED_EPOCHS": "9"}],
)
@pytest.mark.parametrize("section", [*SECTIONS, "architectures"])
def test_every_command_parses_and_reads_what_an_earlier_one_wrote(section, settings):
    found = commands(section, ARCHS=" ".join(ARCHS), PAIRS="alexnet:10/resnet18:layer3", **settings)
    assert found[-1][0] == "experiments.tables"
    assert found[-1][1].tables
    written, labels = set(), {}
    for script, options in found[:-1]:
        if script == "ln":
            target, name = options
            # Those of data are tested below; in results is what a step wrote.
            missing = (
                [target] if "/results/" in name and _resolve(target, name) not in written else []
            )
        else:
            missing = [path for path in read_by(options) if path not in written]
            written.update(written_by(script, options, labels))
        assert not missing, f"{script} reads {missing}"


def test_students_are_compared_with_the_teacher_that_was_trained():
    """Every file that a command of the knowledge
    experiment reads is one that an earlier one wrote.
    """
    found = commands(
        "distillation_knowledge", SEEDS="0 1", TEACHER="resnet20", STUDENT="wrn_16_1", EPOCHS="12"
    )
    written, archs = set(), {}
    for script, options in found:
        if script == "HSAKD":
            assert (
                options.milestones == [8] and set(hsakd_options.files(options).values()) <= written
            )
            path = (
                f"{options.checkpoint_dir}/{hsakd_options.run_name(options)}/{options.arch}.pth.tar"
            )
            archs[path] = options.arch.removesuffix("_aux")
        elif script == "BornAgain":
            assert options.resume in written and (options.epoch_step, options.decay_factor) == (
                8,
                0.1,
            )
            path = runs.classifier_path(
                options.out, "CIFAR100", options.student_arch, f"{options.suffix}_gen1"
            )
            archs[str(path)] = options.student_arch
        elif script == "DCM":
            assert (options.epoch_step, options.normalisation, options.augment) == (
                [9],
                "cifar",
                "zero4",
            )
            archs |= {
                f"{options.out}/net1.pth.tar": options.net1,
                f"{options.out}/net2.pth.tar": options.net2,
            }
        elif script == "ConvOutput":
            assert {options.resume1, options.resume2} <= written
            arch = runs.pair(archs[options.resume1], archs[options.resume2])
            label = runs.pair(Layer(options.layer).label, Layer(options.layer2).label)
            place = (options.out, options.dataset or "CIFAR100", "", arch, label)
            features = str(runs.features_folder(*place, options.suffix, "val").parent)
            written.add(features)
        elif script == "Training_TransNet":
            assert options.convOut_path in written
            forwards, backwards = map(str, trans_nets(options, "CIFAR100", arch, label))
            written |= {forwards, backwards}
        elif script == "Calibrate":
            assert {options.convOut_path, options.transnet} <= written
            assert options.transnet == (backwards if options.reverse else forwards)
            assert options.sums not in written
            written.add(options.sums)
        elif script == "rm":
            written.remove(options)
        elif script == "ln":
            assert str(_resolve(*options)) in written
        written |= archs.keys()
    methods = {Path(path).parts[-3] for path in written if path.endswith(".npz")}
    assert methods == {"alone", "kd", "dcm", "dcm_partner", "hsakd"}
    # Methods, seeds, directions, stages
    assert sum(path.endswith(".npz") for path in written) == 5 * 2 * 2 * 3
    assert found[-1][0] == "experiments.knowledge"
