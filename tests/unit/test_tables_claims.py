"""The intervals of the tables' numbers, and the claims that they decide."""

import csv

import numpy as np
import pytest
import torch

from consistency.bootstrap import bootstrap
from experiments import tables
from tests.unit.planted_results import DATA, by_title, fill, save, variance
from utils import checkpoint
from utils.files import read_json, write_json


def measured(path, instability, seed=0, images=400, name="CUB200", same=0):
    """A JSON of Variance.py whose images differ, but alike for one `same`."""
    random, common = np.random.default_rng(seed), np.random.default_rng(same)
    target = 1 + common.random(images)
    left = (
        target
        * instability
        * (1 + 0.3 * common.standard_normal(images) + 0.05 * random.standard_normal(images))
    )
    left *= instability * target.mean() / left.mean()
    variances = {"target": target.mean(), "residual": left.mean()}
    per_image = {"target": target.tolist(), "residual": left.tolist()}
    facts = {
        "images": images,
        "instability": instability,
        "var": variances,
        "source": {"dataset": name},
    }
    write_json(path, facts | {"per_image": per_image})


def tail(path, share, seed=0, images=400, **data):
    """A tail that is right on so many images, the first ones mostly."""
    order = np.argsort(
        np.arange(images) + images / 10 * np.random.default_rng(seed).standard_normal(images)
    )
    hits = torch.zeros(images, dtype=torch.uint8)
    hits[order[: round(share * images)]] = 1
    accuracy = 100 * hits.double().mean().item()
    save(path, 100, acc1=accuracy, hits=hits, settings={"input": "components"}, data=DATA | data)


def test_a_number_stands_beside_its_interval(tmp_path, capsys):
    case = tmp_path / "results/table1/case1"
    measured(case / "alexnet_L8/a.json", 0.3)
    measured(case / "alexnet_L10/a.json", 0.3, 1)
    measured(case / "alexnet_L10/b.json", 0.4, 2)
    table = fill(tmp_path, "table1")
    one, two = table.intervals["case1", "alexnet_L8"], table.intervals["case1", "alexnet_L10"]
    assert one.low < 0.3 < one.high and one.high - one.low < 0.04
    assert two.low < 0.35 < two.high and two.high - two.low > 0.05  # the pairs differ by 0.1
    assert one.kind == two.kind == "interval"
    expected = f"0.300 [{one.low:.3f}, {one.high:.3f}]"
    head, rows = by_title(table)
    assert rows["case 1: two initialisations"][head.index("conv4 @ AlexNet")] == expected
    tables.main([str(tmp_path), "table1", "--csv", str(tmp_path / "t.csv")])
    printed = capsys.readouterr().out
    assert (
        f"| {expected} | 0.086 |" in printed
        and "[low, high]: 95 % interval over the test images" in printed
    )
    with (tmp_path / "t.csv").open(encoding="utf-8") as file:
        rows = {tuple(row[:3]): row[5:] for row in csv.reader(file)}
    assert rows["table1", "case1", "alexnet_L8"] == [str(one.low), str(one.high), "interval"]


def test_the_interval_of_a_variance_is_variance_pys(tmp_path):
    measured(tmp_path / "results/table1/case1/alexnet_L8/a.json", 0.3)
    between = fill(tmp_path, "table2").intervals["residual", "alexnet_L8"]
    parts = np.array(
        read_json(tmp_path / "results/table1/case1/alexnet_L8/a.json")["per_image"]["residual"]
    )
    expected = bootstrap(lambda total: {"mean": total}, [parts / len(parts)])["mean"]
    assert (between.low, between.high) == pytest.approx((expected.low, expected.high))


@pytest.mark.parametrize(
    ("deeper", "told"), [(0.36, "shows"), (0.24, "does not show"), (0.3005, "cannot be said")]
)
def test_a_claim_is_decided_by_the_paired_interval_of_its_difference(
    tmp_path, capsys, deeper, told
):
    case = tmp_path / "results/table1/case1"
    measured(case / "alexnet_L8/a.json", 0.3, 1)
    measured(case / "alexnet_L10/a.json", deeper, 2)
    table = fill(tmp_path, "table1")
    (claim,) = table.claims
    assert (claim.verdict, claim.difference) == (told, pytest.approx(deeper - 0.3))
    single = table.intervals["case1", "alexnet_L8"]
    # What images share cancels
    assert claim.interval.high - claim.interval.low < 0.5 * (single.high - single.low)
    tables.main([str(tmp_path), "table1"])
    line = (
        "- case 1: two initialisations: conv5 is less stable than conv4 @ AlexNet:"
        f" {deeper - 0.3:+.3f} ["
    )
    (found,) = [text for text in capsys.readouterr().out.splitlines() if text.startswith(line)]
    assert found.endswith(f"]: {told}")


def test_pairs_of_nets_are_compared_pair_by_pair(tmp_path):
    case = tmp_path / "results/table1/case1"
    for seed in range(6):
        measured(case / f"alexnet_L8/{seed}.json", 0.2 + 0.05 * seed, 10 + seed)
        measured(case / f"alexnet_L10/{seed}.json", 0.21 + 0.05 * seed, 20 + seed)
    (claim,) = fill(tmp_path, "table1").claims
    assert (claim.verdict, claim.interval.resampled) == ("shows", ("images", "pairs"))
    (case / "alexnet_L10/5.json").unlink()  # now their means differ by which pairs there are
    (claim,) = fill(tmp_path, "table1").claims
    assert claim.interval.resampled == ("images",)


def test_other_images_are_not_compared(tmp_path):
    case = tmp_path / "results/table1/case1"
    measured(case / "alexnet_L8/a.json", 0.1)
    for other in ({"images": 399}, {"name": "DOG120"}):
        measured(case / "alexnet_L10/a.json", 0.9, **other)
        (claim,) = fill(tmp_path, "table1").claims
        assert (claim.interval, claim.verdict) == (None, "cannot be said")
    assert "+0.800 (not known image by image): cannot be said" in claim.line(".3f")


def test_accuracies_are_compared_image_by_image(tmp_path):
    results = tmp_path / "results/table3"
    for row, share in (("A", 0.5), ("B", 0.5), ("100", 0.6), ("111", 0.505)):
        tail(results / row / "resnet18_L3/tail.pth.tar", share)
    table = fill(tmp_path, "table3")
    between = table.intervals["A", "resnet18_L3"]
    assert between.high - between.low == pytest.approx(392 * (0.5 * 0.5 / 400) ** 0.5, rel=0.15)
    told = {(claim.says, claim.where): claim.verdict for claim in table.claims}
    assert told["x(0) better than net A's raw feature", "ResNet-18"] == "shows"
    assert (
        told["x(0) + x(1) + x(2) better than net A's raw feature", "ResNet-18"] == "cannot be said"
    )
    assert len(table.claims) == 4


def test_hits_that_do_not_agree_with_the_accuracy_are_not_believed(tmp_path):
    path = tmp_path / "results/table3/A/resnet18_L3/tail.pth.tar"
    tail(path, 0.5)
    assert fill(tmp_path, "table3").intervals
    checkpoint.save(path, checkpoint.load(path) | {"acc1": 51.0})
    assert not fill(tmp_path, "table3").intervals


def test_a_gain_has_the_interval_of_the_difference(tmp_path):
    results, column = tmp_path / "results/diagnosis", "alexnet_L10-resnet34_L3"
    tail(results / f"raw/{column}/t.pth.tar", 0.5)
    tail(results / f"blind_spots_added/{column}/t.pth.tar", 0.6)
    table = fill(tmp_path, "diagnosis")
    (claim,) = table.claims
    gain = table.intervals["gain", column]
    assert (gain.low, gain.high) == (
        claim.interval.low,
        claim.interval.high,
    ) and claim.verdict == "shows"
    assert (
        gain.high - gain.low
        < table.intervals["raw", column].high - table.intervals["raw", column].low
    )


def test_a_claim_is_of_the_columns_that_it_names(tmp_path):
    for generation, residual in ((0, 0.4), (1, 0.3)):
        name = f"shufflenet_v2_x1_0_Lstage3_gen{generation}"
        variance(
            tmp_path / f"results/distillation/{name}/variance/a.json", residual, residual=residual
        )
    (claim,) = fill(tmp_path, "distillation").claims
    assert (claim.where, claim.difference) == ("Var(x_Δ)/Var(x*)", pytest.approx(0.1))
