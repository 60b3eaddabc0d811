import json

import numpy as np
import pytest
import torch

from consistency.bootstrap import bootstrap
from consistency.moments import ImageMoments
from consistency.variance_report import channel_report, rank_channels, spectrum, variance_report
from tests.unit.consistency.test_moments import NAMES, accumulated, pieces


def labelled(images=40, **options):
    components, residual = pieces(images)
    found = ImageMoments(**options)
    # Image 0 is alone in its class
    labels = torch.arange(images) % 3 + (torch.arange(images) == 0) * 7
    found.update(components, residual, torch.arange(images), labels)
    return found


def test_a_report_is_plain_numbers_that_agree():
    found = labelled()
    report = variance_report([(3, found)], resamples=100)
    assert (report["images"], report["mean"]) == (40, "channel")
    assert (
        list(report["var"]) == report["covariance"]["names"] == list(report["per_image"]) == NAMES
    )
    assert np.diagonal(report["covariance"]["matrix"]).tolist() == list(report["var"].values())
    assert report["instability"] == report["var"]["residual"] / report["var"]["target"]
    for name, parts in report["per_image"].items():
        assert len(parts) == 40 and np.mean(parts) == pytest.approx(report["var"][name], rel=1e-6)
        interval = report["intervals"][f"var_{name}"]
        assert interval["low"] < interval["value"] < interval["high"]
        assert interval["value"] == pytest.approx(report["var"][name])
    assert report["intervals"]["instability"]["value"] == pytest.approx(report["instability"])
    assert report["intervals"]["instability"]["fits_fixed"]
    assert [(row["class"], row["images"]) for row in report["classes"]] == [
        ("0", 13),
        ("1", 13),
        ("2", 13),
        ("7", 1),
    ]
    *several, alone = report["classes"]
    assert all(row["low"] < row["instability"] < row["high"] for row in several)
    components, residual = pieces(40)
    target, left = (components.sum(0) + residual)[1::3], residual[1::3]  # class 1
    variances = [
        (part - part.mean((0, 2, 3), keepdim=True)).square().mean().item()
        for part in (target, left)
    ]
    assert several[1]["variance"] == pytest.approx(variances[0], rel=1e-5)
    assert several[1]["instability"] == pytest.approx(variances[1] / variances[0], rel=1e-5)
    assert alone["low"] is None and alone["instability"] > 0
    assert "spectrum" not in report and json.loads(json.dumps(report))["var"] == report["var"]
    named = variance_report([(3, found)], "channel", 100, [f"bird {label}" for label in range(8)])
    assert [row["class"] for row in named["classes"]] == ["bird 0", "bird 1", "bird 2", "bird 7"]


def test_without_resamples_there_are_the_same_values_alone():
    found, total = labelled(), labelled(per_image=False)
    with_intervals, without = (
        variance_report([(3, found)], resamples=100),
        variance_report([(3, total)]),
    )
    assert without.keys() == with_intervals.keys() - {"intervals", "classes", "per_image"}
    assert without["var"] == pytest.approx(with_intervals["var"], rel=1e-6)
    for row, same in zip(without["channels"], with_intervals["channels"]):
        assert row["low"] is None and row["instability"] == pytest.approx(
            same["instability"], rel=1e-5
        )


def test_every_channel_has_its_own_instability():
    components, residual = pieces(40)
    target = components.sum(0) + residual
    rows = channel_report(accumulated(components, residual, 40), resamples=200)
    assert [row["channel"] for row in rows] == list(range(5))
    for row in rows:
        left, whole = (
            part[:, row["channel"]].double().var(unbiased=False).item()
            for part in (residual, target)
        )
        assert row["variance"] == pytest.approx(whole, rel=1e-5)
        assert row["instability"] == pytest.approx(left / whole, rel=1e-5)
        assert row["low"] < row["instability"] < row["high"]


def test_a_spectrum_is_in_order_of_depth_and_its_gains_are_paired_by_image():
    components, residual = pieces(60)
    target = components.sum(0) + residual
    deep = accumulated(components, residual, 60)
    left = 1.01 * residual  # a shallower net leaves a little more of every image
    shallow = accumulated((target - left)[None], left, 60)
    first, second = spectrum([(3, deep), (1, shallow)], resamples=300)
    assert (first["layers"], second["layers"]) == (1, 3)
    assert first["gain"] == first["r2"] and second["gain"] == pytest.approx(
        second["r2"] - first["r2"], abs=1e-9
    )
    of_deep = bootstrap(deep.statistic(), deep.arrays(), resamples=300)["instability"]
    assert second["r2"] == pytest.approx(1 - of_deep.value)
    r2, gain = (second["intervals"][name] for name in ("r2", "gain"))
    assert (r2["low"], r2["high"]) == pytest.approx((1 - of_deep.high, 1 - of_deep.low))
    assert gain["low"] > 0 and gain["high"] - gain["low"] < 0.1 * (r2["high"] - r2["low"])
    assert "intervals" not in spectrum([(3, deep)])[0]


def test_a_constant_target_has_no_instability():
    zeros = torch.zeros(2, 3, 4, 2, 2)
    report = variance_report([(2, accumulated(zeros, zeros[0], 3))], resamples=100)
    assert report["instability"] is report["channels"][0]["instability"] is None
    assert set(report["var"].values()) == {0}
    json.dumps(report, allow_nan=False)


def test_channels_are_ranked_and_dead_ones_left_out():
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([0.9, 0.1, 0.5, 0.001, 0])[:, None, None]
    residual = torch.randn(16, 5, 3, 3, generator=generator) * sizes
    components = (
        torch.randn(1, 16, 5, 3, 3, generator=generator)
        * torch.tensor([1.0, 1, 1, 1e-3, 0])[:, None, None]
    )
    rows = channel_report(accumulated(components, residual, 16))
    ranked = rank_channels(rows)
    assert [row["channel"] for row in ranked] == [1, 2, 0]
    for ends, kept in ((1, [1, 0]), (2, [1, 2, 0]), (9, [1, 2, 0])):
        assert [row["channel"] for row in rank_channels(rows, ends)] == kept
