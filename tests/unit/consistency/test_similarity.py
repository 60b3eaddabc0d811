import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from calibrated_similarity import calibrate
from cka import cka_from_features
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from consistency import similarity
from consistency.pair_sums import PairSums
from consistency.position_similarity import linear_cka
from consistency.position_similarity import procrustes as procrustes_distance
from consistency.position_similarity import svcca as svcca_of_sums
from consistency.similarity import ImageRows, image_rows, image_similarities
from tests.mistakes import refused

SHAPES = [{}, {"rows": 30, "p": 70, "q": 50}, {"p": 12, "q": 60}]


def pair(rows=120, p=12, q=9, shared=4, seed=0):
    """Rows (n, p) and (n, q),
    of which some columns are mixtures of each other; float64, with means.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.linspace(2, 0.2, p, dtype=torch.float64)
    x = torch.randn(rows, p, generator=generator, dtype=torch.float64) * sizes
    y = torch.randn(rows, q, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shared, q, generator=generator, dtype=torch.float64)
    return x + 3, y + x[:, :shared] @ mixing - 1


def prepared(**shape):
    return [ImageRows(part) for part in pair(**shape)]


def by_name(scores):
    return {score.name: score for score in scores}


@pytest.mark.parametrize("shape", SHAPES)
def test_cka_equals_the_oracle(shape):
    x, y = pair(**shape)
    expected = cka_from_features(x, y).item()
    assert similarity.cka(ImageRows(x), ImageRows(y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the oracle cca-zoo needs Python 3.11")
def test_svcca_equals_the_oracle():
    from cca_zoo.linear import CCA
    from cca_zoo.metrics import pairwise_correlations

    x, y = pair(p=20)
    parts = [PCA(0.99, svd_solver="full").fit_transform(part.numpy()) for part in (x, y)]
    count = min(part.shape[1] for part in parts)
    assert parts[0].shape[1] < 20
    expected = pairwise_correlations(CCA(count).fit_transform(parts))[0, 1].mean()
    assert similarity.svcca(ImageRows(x), ImageRows(y)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_procrustes_equals_the_best_rotation(shape):
    x, y = (part - part.mean(0) for part in pair(**shape))
    wide = max(x.shape[1], y.shape[1])
    padded = [torch.nn.functional.pad(part, (0, wide - part.shape[1])) for part in (x, y)]
    unit = [(part / part.norm()).numpy() for part in padded]
    best, _ = scipy.linalg.orthogonal_procrustes(*unit)
    distance = 0.5 * np.square(unit[0] @ best - unit[1]).sum()
    found = similarity.procrustes(ImageRows(x), ImageRows(y))
    assert 1 - found == pytest.approx(distance, abs=1e-9)
    identity = torch.arange(len(x))  # the quicker form, for permutations
    assert similarity.procrustes(ImageRows(x), ImageRows(y), identity) == pytest.approx(
        found, abs=1e-6
    )


def test_neighbours_equal_the_oracle():
    x, y = pair()
    near = []
    for part in (x, y):
        search = NearestNeighbors(n_neighbors=10, metric="cosine").fit(part.numpy())
        near.append([set(row) for row in search.kneighbors(return_distance=False)])
    expected = np.mean([len(one & other) / 10 for one, other in zip(*near)])
    found = similarity.mutual_neighbours(ImageRows(x), ImageRows(y))
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_ridge_equals_the_oracle_on_held_out_images(shape):
    x, y = pair(**shape)
    half = len(x) // 2
    spread = (x[:half] - x[:half].mean(0)).square().sum().item()
    ridge = Ridge(alpha=0.1 * spread / x.shape[1], solver="svd").fit(x[:half], y[:half])
    rest = y[half:].numpy()
    error = np.square(rest - ridge.predict(x[half:])).sum()
    expected = 1 - error / np.square(rest - rest.mean(0)).sum()
    rows = [ImageRows(part[half:], part[:half]) for part in (x, y)]
    assert similarity.ridge_r2(*rows) == pytest.approx(expected, abs=1e-9)


def test_rows_of_one_image_each_give_the_scores_of_sums():
    x, y = pair()
    sums = PairSums()
    sums.update(x, y)
    rows = ImageRows(x), ImageRows(y)
    assert similarity.cka(*rows) == pytest.approx(linear_cka(sums).value, abs=1e-9)
    assert similarity.svcca(*rows) == pytest.approx(svcca_of_sums(sums).value, abs=1e-9)
    assert similarity.procrustes(*rows) == pytest.approx(
        1 - procrustes_distance(sums).value, abs=1e-9
    )


@pytest.mark.parametrize("name", similarity.SCORES)
def test_a_permutation_is_a_permutation_of_the_rows(name):
    x, y = pair()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(5))
    score = similarity.SCORES[name]
    expected = score(ImageRows(x), ImageRows(y[order]))
    assert score(ImageRows(x), ImageRows(y), order) == pytest.approx(expected, abs=1e-6)


def test_a_permutation_of_a_regression_is_one_of_its_targets():
    x, y = pair()
    held, fit = (
        torch.randperm(60, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    )
    x_rows, y_rows = (ImageRows(part[:60], part[60:]) for part in (x, y))
    permuted = ImageRows(y[:60][held], y[60:][fit])
    expected = similarity.ridge_r2(x_rows, permuted)
    assert similarity.ridge_r2(x_rows, y_rows, held, fit) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", similarity.SCORES)
def test_calibration_equals_the_oracle(name):
    x, y = pair(rows=60)
    labels = torch.zeros(60, dtype=torch.int64)
    found = by_name(
        image_similarities(
            ImageRows(x), ImageRows(y), (labels, labels), torch.Generator().manual_seed(3), draws=39
        )
    )[name]
    orders = iter(similarity.permutations(labels, 39, torch.Generator().manual_seed(3)))
    score, p, level = calibrate(
        x,
        y,
        lambda a, b: similarity.SCORES[name](ImageRows(a), ImageRows(b)),
        K=39,
        perm_fn=lambda *_: next(orders),
    )
    assert found.level == pytest.approx(level.item(), abs=1e-5)  # theirs are float32
    assert found.calibrated == pytest.approx(score.item(), abs=1e-5)
    assert found.p == pytest.approx(p.item(), abs=1e-6)


def test_a_rotated_scaled_copy_is_the_same_and_its_calibrated_score_is_one():
    x, _ = pair()
    turn = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    rows = [ImageRows(part[60:], part[:60]) for part in (x - 3, 2 * (x - 3) @ turn)]
    labels = torch.arange(60) % 3
    found = by_name(image_similarities(*rows, (labels, labels), torch.Generator().manual_seed(0)))
    for name in ("CKA", "SVCCA", "Procrustes", "mutual 10-NN"):
        assert found[name].value == pytest.approx(1, abs=1e-9)
        assert (found[name].calibrated, found[name].p) == (pytest.approx(1), 1 / 40)
    ways = [found[name].value for name in similarity.WAYS]
    assert ways[2] == min(ways[:2]) and ways[0] == pytest.approx(ways[1]) and ways[0] > 0.9


def test_nets_that_share_the_class_alone_show_nothing():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(200) % 4
    means = 5 * torch.randn(4, 8, generator=generator)
    rows = [
        ImageRows(*(means[labels] + torch.randn(200, 8, generator=generator) for _ in range(2)))
        for _ in range(2)
    ]
    for score in image_similarities(*rows, (labels, labels), generator):
        assert score.value > 0.05 and score.calibrated < 0.1


def test_maps_are_pooled_to_four_by_four_and_flattened():
    maps = torch.randn(5, 3, 8, 12)
    rows = image_rows(maps)
    assert rows.shape == (5, 48) and rows.dtype == torch.float64
    assert rows[2, 16] == pytest.approx(maps[2, 1, :2, :3].mean().item(), abs=1e-6)
    assert image_rows(torch.randn(5, 3, 2, 2)).shape == (5, 12)
    assert image_rows(torch.randn(5, 65, 3)).shape == (5, 48)
    assert image_rows(torch.randn(5, 7)).shape == (5, 7)


def test_what_cannot_be_compared_says_so():
    x, y = prepared()
    labels = torch.zeros(120)
    still = ImageRows(torch.ones(120, 3))
    constant = image_similarities(still, y, (labels, labels), torch.Generator())
    assert {(score.value, score.reason) for score in constant} == {(None, "x is constant")}
    few = by_name(
        image_similarities(*prepared(rows=15), (labels, labels[:15]), torch.Generator(), draws=0)
    )
    assert few["SVCCA"].value is None and "take more" in few["SVCCA"].reason
    assert few["CKA"].value is not None and few["CKA"].level is None
    with refused("120", "119"):
        image_similarities(x, ImageRows(y.rows[1:]), (labels, labels), torch.Generator())
    with refused((3, 2)):
        ImageRows(torch.zeros(3, 2))
    with refused((5, 2)):
        ImageRows(torch.full((5, 2), torch.nan))
