"""The findings on the CIFAR-10 nets: intervals over seeds, and what the verdicts are made of."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import cifar_findings, cifar_sets
from experiments.cifar_findings import Atlas, Estimate, Finding, both_halves, jackknife, mean_of
from tests.mistakes import refused
from utils import checkpoint

SEEDS, LAYERS = 5, ["layer1", "layer2", "layer3"]


def test_the_jackknife_of_a_mean_is_students_interval():
    values = np.random.default_rng(0).normal(3, 2, SEEDS)
    (found,) = jackknife(mean_of(values), SEEDS)
    expected = stats.t.interval(0.95, SEEDS - 1, values.mean(), stats.sem(values))
    assert (found.value, *found.ends) == pytest.approx((values.mean(), *expected))


def test_a_mean_over_pairs_has_the_interval_of_its_nets_not_of_its_pairs():
    # Each pair is the sum of its nets: the mean over the 20 pairs is twice that over the five nets.
    nets = np.random.default_rng(1).normal(0, 1, SEEDS)

    def over_pairs(seeds):
        return np.array([np.mean([nets[i] + nets[j] for i in seeds for j in seeds if i != j])])

    (found,) = jackknife(over_pairs, SEEDS)
    assert (found.value, found.error) == pytest.approx((2 * nets.mean(), 2 * stats.sem(nets)))


@pytest.mark.parametrize(
    ("value", "error", "expected"),
    [(1.0, 0.1, "shows"), (-1.0, 0.1, "does not show"), (0.1, 0.1, "cannot be said")],
)
def test_a_finding_is_decided_by_its_interval_and_says_its_power(value, error, expected):
    finding = Finding("4.2", "more", "layer1", Estimate(value, error, SEEDS))
    assert finding.verdict == expected
    assert ("seeds" in finding.power()) == (expected == "cannot be said")


def test_the_seeds_that_a_difference_would_take_show_it():
    # Of many runs with that many seeds, four of five have an interval above 0.
    difference = Estimate(0.4, 1 / np.sqrt(SEEDS), SEEDS)  # of seeds with deviation 1
    needed = cifar_findings.seeds_needed(difference)
    runs = np.random.default_rng(2).normal(0.4, 1, (4000, needed))
    low = runs.mean(1) - stats.sem(runs, 1) * stats.t.ppf(0.975, needed - 1)
    assert np.mean(low > 0) == pytest.approx(cifar_findings.POWER, abs=0.03)
    assert cifar_findings.seeds_needed(Estimate(1e-6, 1.0, SEEDS)) is None


def test_pairs_of_halves_differ_in_what_they_say():
    def facts(name):
        return name.split("_sd")[1].split("_50par_")

    for other_data in (False, True):
        for other_seed in (False, True):
            pairs = both_halves(range(3), other_data=other_data, other_seed=other_seed)
            assert len(pairs) == (12 if other_seed else 6)
            for one, other in pairs:
                (seed, half), (seed_2, half_2) = facts(one), facts(other)
                assert ((half != half_2), (seed != seed_2)) == (other_data, other_seed)


def atlas_file(folder, names, consistency, accuracy=lambda name: 90.0):
    """Write compare.json with planted consistencies: a function of two names."""
    table = [[None if a == b else consistency(a, b) for b in names] for a in names]
    result = {
        "atlas": {"layers": LAYERS, "names": names, "forth": [table] * 3},
        "nets": [
            {"name": name, "top1_percent": (value := accuracy(name)) and {"value": value}}
            for name in names
        ],
    }
    folder.mkdir(parents=True)
    (folder / "compare.json").write_text(json.dumps(result))


def test_an_atlas_is_read_from_source_to_target(tmp_path):
    values = {("a", "b"): 0.7, ("b", "a"): 0.4}
    atlas_file(tmp_path / "x", ["a", "b"], lambda a, b: values[a, b])
    atlas = Atlas(tmp_path / "x" / "compare.json")
    assert atlas.of("a", "b").tolist() == [0.7] * 3
    assert atlas.mean([("a", "b")], shared=True).tolist() == [0.4] * 3


def noise(*words):
    """A number of its own for every text, in ± 0.01."""
    return np.random.default_rng([ord(letter) for letter in "".join(words)]).uniform(-0.01, 0.01)


@pytest.fixture
def planted(tmp_path):
    """A run whose weak nets lack much, whose generations are alike, and whose tails gain 3 points."""
    net = cifar_findings.net
    weak = [net(seed, kind) for seed in range(SEEDS) for kind in ("", "short")]

    def known(a, b):
        return (0.3 if "short" in a else 0.8) + noise(a, b)

    atlas_file(tmp_path / "compare" / "weak", weak, known)
    series = [net(seed, kind) for seed in range(SEEDS) for kind in ("", "gen1", "gen2")]
    atlas_file(
        tmp_path / "compare" / "generations", series, lambda a, b: 0.7 + noise(a, b), lambda a: 90.0
    )
    tasks = [net(seed, data=data) for seed in range(SEEDS) for data in ("CIFAR10", "CIFAR10_two")]

    def holds_more(a, b):
        return (0.5 if "two" in a else 0.8) + noise(a, b)

    # Images of ten classes do not judge a net of two.
    atlas_file(
        tmp_path / "compare" / "tasks", tasks, holds_more, lambda a: None if "two" in a else 90.0
    )
    gains = {"raw": 0, "residual_added": 3, "noise_added": 1, "raw_B": 5, "reliable": -2}
    for kind, gain in gains.items():
        for seed in range(SEEDS):
            path = tmp_path / "results/diagnosis" / kind / f"resnet20/sd{seed}.pth.tar"
            path.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.save(path, {"acc1": 70.0 + gain + noise(kind, str(seed))})
    return tmp_path


def test_planted_findings_are_found(planted, capsys, tmp_path):
    cifar_findings.main([str(planted), "--markdown", str(tmp_path / "x.md")])
    printed = capsys.readouterr().out
    assert (tmp_path / "x.md").read_text() in printed
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| 4.")]
    verdicts = {(row[1], row[2]): row[4] for row in rows if len(row) == 6}
    assert verdicts["a weak net has more blind spots than a strong one", "layer2"] == "shows"
    assert verdicts["blind spots outweigh unreliable features", "layer1"] == "shows"
    assert verdicts["better with the blind spots", "accuracy, points"] == "shows"
    assert verdicts["better without unreliable features", "accuracy, points"] == "does not show"
    falls = "blind spots fall from generation to generation"
    assert verdicts[falls, "layer3"] == "cannot be said"
    holds = "the fine task holds more of the coarse one's than the other way round"
    assert verdicts[holds, "layer1"] == "shows"
    # What the run does not have is left out.
    assert not any(row[0] == "| 4.2" for row in rows)


def test_the_figure_has_a_panel_for_each_section(planted, tmp_path):
    results = cifar_findings.Results(planted, SEEDS, [], [])
    for section in cifar_findings.SECTIONS:
        section(results)
    titles = [axis.get_title("left") for axis in cifar_findings.draw(results).axes]
    assert [title[:3] for title in titles if title] == ["4.1", "4.5", "4.6", "4.1"]
    cifar_findings.main([str(planted), "--figure", str(tmp_path / "x.png")])
    assert (tmp_path / "x.png").stat().st_size > 10_000


def test_a_folder_without_a_run_is_refused(tmp_path):
    with refused(tmp_path):
        cifar_findings.main([str(tmp_path)])


def test_a_seed_that_is_not_there_is_refused(planted):
    with refused("compare.json", "CIFAR10_resnet20_sd5_short", "--seeds"):
        cifar_findings.main([str(planted), "--seeds", "6"])


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """Ten classes of empty PNG files, 4 and 2 a class."""
    monkeypatch.setattr(cifar_sets, "SPLITS", {"train": 40, "test": 20})
    monkeypatch.setattr(cifar_sets, "SOME", {"train": 3, "test": 1})
    for split, count in (("train", 4), ("test", 2)):
        for name in [*cifar_sets.VEHICLES, "bird", "cat", "deer", "dog", "frog", "horse"]:
            folder = tmp_path / "CIFAR10" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").touch()
    return tmp_path


def test_the_sets_are_links_to_all_images(cifar):
    for _ in range(2):  # what is there already is made anew
        cifar_sets.main([str(cifar)])

    drawn = _by_class(cifar / "CIFAR10_random" / "train")
    assert {len(files) for files in drawn.values()} == {4} and len(drawn) == 10
    every = [path for files in drawn.values() for path in files]
    assert sorted(every) == sorted(cifar.glob("CIFAR10/train/*/*.png"))
    assert any(path.parent.name != name for name, files in drawn.items() for path in files)
    assert _by_class(cifar / "CIFAR10_random" / "test") == _by_class(cifar / "CIFAR10" / "test")
    assert sorted(_by_class(cifar / "CIFAR10_first5" / "train")) == sorted(
        ["airplane", "automobile", "bird", "cat", "deer"]
    )
    two = _by_class(cifar / "CIFAR10_two" / "train")
    assert {name: len(files) for name, files in two.items()} == {"animal": 24, "vehicle": 16}
    assert {path.parent.name for path in two["vehicle"]} == set(cifar_sets.VEHICLES)
    some = _by_class(cifar / "CIFAR10_some" / "train")
    assert {tuple(path.name for path in files) for files in some.values()} == {
        ("0.png", "1.png", "2.png")
    }


def _by_class(folder):
    """List the images that a class folder leads to, by links of files or folders."""
    found = {}
    for place in sorted(folder.iterdir()):
        files = sorted(place.glob("*.png")) + sorted(place.glob("*/*.png"))
        found[place.name] = sorted(file.resolve() for file in files)
    return found


def test_another_number_of_images_is_refused(cifar):
    next(cifar.glob("CIFAR10/test/*/*.png")).unlink()
    with refused("test", "19", "20"):
        cifar_sets.main([str(cifar)])
    assert not (cifar / "CIFAR10_two").exists()
