"""The scripts of the findings on CIFAR-10: every net that is compared is one that was trained."""

from pathlib import Path

import pytest

from experiments.cifar_findings import both_halves, net
from tests.e2e.sections import commands, only, run
from utils import runs

pytestmark = pytest.mark.e2e
SETTINGS = {"DATA": "/data", "OUT": "/o", "SEEDS": "0 1", "EPOCHS": "6"}
ALL = "series halves short two first5 random students"


@pytest.fixture(scope="module")
def trained():
    """Names of the classifiers' files that cifar_nets.sh writes, and its commands."""
    found = commands("cifar_nets", **SETTINGS, KINDS=ALL)
    paths = {
        runs.classifier_path(
            options.out, options.name or options.dataset, "resnet20", options.suffix
        )
        for options in only(found, "Training")
    }
    for series in only(found, "BornAgain"):
        for generation in range(series.start_gen, series.generations):
            suffix = f"{series.suffix}_gen{generation}"
            paths.add(runs.classifier_path(series.out, series.dataset, "resnet20", suffix))
    for pruning in only(found, "Pruning"):
        for factor in pruning.sweep:
            level = f"{factor * pruning.s_conv:g}-{factor * pruning.s_fc:g}"
            suffix = f"{pruning.suffix}_pruned{level}"
            paths.add(runs.classifier_path(pruning.out, pruning.dataset, "resnet20", suffix))
    return {path.as_posix() for path in paths}, found


def test_every_net_that_is_read_was_trained(trained):
    paths, found = trained
    for later in [*only(found, "Pruning"), *only(found, "BornAgain")]:
        assert later.resume in paths or "resnet56_aux" in later.resume
    of_run = commands("cifar_run", **SETTINGS)
    compared = {name for comparison in only(of_run, "Compare") for name in comparison.nets}
    tuned = {
        name
        for tail in only(of_run, "transClassifier")
        for name in (tail.net_A, tail.net_B)
        if name
    }
    assert compared and tuned and compared | tuned <= paths
    # What the findings ask for by name is compared.
    stems = {
        Path(name).name.removesuffix(".pth.tar").removeprefix("checkpoint_") for name in compared
    }
    halves = both_halves([0, 1], other_data=True, other_seed=True)
    asked = {net(0), net(1, "gen2"), net(0, "short"), net(1, data="CIFAR10_two"), halves[0][0]}
    assert asked | {net(0, "pruned1.6-1.6")} <= stems


def test_nets_of_a_kind_differ_in_their_seed_alone(trained):
    _, found = trained
    by_kind = {}
    for options in only(found, "Training"):
        kind = options.suffix.lstrip("sd01")
        own = ("seed", "suffix", "weights")
        facts = {key: value for key, value in vars(options).items() if key not in own}
        by_kind.setdefault((options.name, kind), []).append(facts)
    assert len(by_kind) == 8
    for facts in by_kind.values():
        assert all(other == facts[0] for other in facts)


def test_nets_are_judged_on_images_that_none_was_trained_on(trained):
    _, found = trained
    of_training = {
        options.train_path or f"/data/{options.dataset}/train"
        for options in only(found, "Training")
    }
    for comparison in only(commands("cifar_run", **SETTINGS), "Compare"):
        assert comparison.images == "/data/CIFAR10/test" not in of_training


def test_depths_of_others_are_compared_where_their_files_are_named(tmp_path):
    for depth in (20, 32, 44, 56):
        (tmp_path / f"resnet{depth}-abc.th").touch()
    found = commands(
        "cifar_run", ZOO=str(tmp_path), FACTORIES="zoo.py", SECTIONS="stability", **SETTINGS
    )
    pairs = [comparison.nets for comparison in only(found, "Compare")][2:]
    assert len(pairs) == 6 and all(len(pair) == 2 for pair in pairs)


def test_only_the_kinds_and_sections_that_are_named_are_run():
    found = commands("cifar_nets", **SETTINGS | {"KINDS": "short"})
    assert [options.suffix for options in only(found, "Training")] == ["sd0_short", "sd1_short"]
    result = run("cifar_run", "--help")
    assert result.returncode == 0 and "SECTIONS" in result.stdout
