import sys

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import torch
from cka import cka_from_features
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score

from consistency import position_similarity as similarity
from consistency.pair_sums import PairSums
from consistency.position_similarity import linear_cka, procrustes, ridge_r2, svcca
from tests.mistakes import refused


def pair(rows=200, p=8, q=6, shared=3, seed=0):
    """Vectors (rows, p) and (rows, q),
    whose first channels are mixtures of each other, with means; float64.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, p, generator=generator, dtype=torch.float64) * torch.linspace(2, 0.1, p)
    y = torch.randn(rows, q, generator=generator, dtype=torch.float64)
    mixing = torch.randn(shared, q, generator=generator, dtype=torch.float64)
    return x + 5, y + x[:, :shared] @ mixing - 2


def sums_of(x, y):
    sums = PairSums()
    for part in zip(x.split(37), y.split(37)):
        sums.update(*part)
    return sums


def rotation(width, seed=1):
    return torch.linalg.qr(
        torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double()
    )[0]


def hsic(k, m):
    """Song et al. 2012, Eq. 5, as it stands there."""
    n, ones = len(k), torch.ones(len(k), dtype=k.dtype)
    k, m = (gram - gram.diagonal().diag() for gram in (k, m))
    inner = (k @ m).trace() + ones @ k @ ones * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (inner - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


@pytest.mark.parametrize(
    "shape", [{}, {"rows": 40, "p": 90, "q": 70}, {"rows": 5, "p": 3, "q": 2}, {"shared": 0}]
)
def test_cka_equals_its_definition_by_gram_matrices(shape):
    x, y = pair(**shape)
    found = linear_cka(sums_of(x, y))
    k, m = x @ x.T, y @ y.T
    assert found.value == pytest.approx(
        (hsic(k, m) / (hsic(k, k) * hsic(m, m)).sqrt()).item(), abs=1e-9
    )
    assert (found.kind, found.bounds) == ("similarity", (-1, 1))


def test_cka_equals_the_oracle():
    x, y = pair()
    assert linear_cka(sums_of(x, y)).value == pytest.approx(
        cka_from_features(x, y).item(), abs=1e-6
    )


def test_cka_of_independent_features_is_zero_whatever_their_widths():
    values = [
        linear_cka(sums_of(*pair(rows=50, p=300, q=200, shared=0, seed=seed))).value
        for seed in range(40)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5


def test_cka_of_maps_is_cka_of_their_positions():
    x, y = pair(rows=240)
    maps = [feature.unflatten(0, (40, 6)).mT.unflatten(2, (3, 2)) for feature in (x, y)]
    assert linear_cka(sums_of(*maps)).value == pytest.approx(
        linear_cka(sums_of(x, y)).value, abs=1e-12
    )


@pytest.mark.parametrize(("p", "q"), [(8, 6), (5, 5), (3, 9)])
def test_cca_equals_the_angles_of_the_subspaces(p, q):
    x, y = pair(p=p, q=q)
    correlations = np.cos(
        scipy.linalg.subspace_angles((x - x.mean(0)).numpy(), (y - y.mean(0)).numpy())
    )
    found = svcca(sums_of(x, y), kept=1)
    assert found.value == pytest.approx(correlations.mean(), abs=1e-9)
    assert (found.name, found.kind, found.bounds) == ("CCA", "similarity", (0, 1))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the oracle cca-zoo needs Python 3.11")
def test_cca_equals_the_oracle():
    from cca_zoo.linear import CCA
    from cca_zoo.metrics import pairwise_correlations

    x, y = pair()
    scores = CCA(n_components=6).fit_transform([x.numpy(), y.numpy()])
    assert svcca(sums_of(x, y), kept=1).value == pytest.approx(
        pairwise_correlations(scores)[0, 1].mean(), abs=1e-6
    )


def test_svcca_is_cca_of_the_leading_principal_components():
    x, y = pair(p=12, q=9)
    leading = []
    for feature in (x, y):
        left, sizes, _ = np.linalg.svd((feature - feature.mean(0)).numpy(), full_matrices=False)
        shares = np.cumsum(sizes**2) / (sizes**2).sum()
        leading.append(left[:, : np.searchsorted(shares, 0.9) + 1])
    assert leading[0].shape[1] < 12 and leading[1].shape[1] < 9
    correlations = np.cos(scipy.linalg.subspace_angles(*leading))
    found = svcca(sums_of(x, y), kept=0.9)
    assert found.value == pytest.approx(correlations.mean(), abs=1e-9)
    assert found.name == "SVCCA"


def test_channels_that_are_copies_do_not_trouble_cca():
    x, y = pair()
    doubled = svcca(sums_of(torch.cat([x, x[:, :4]], dim=1), y), kept=1)
    assert doubled.value == pytest.approx(svcca(sums_of(x, y), kept=1).value, abs=1e-6)


@pytest.mark.parametrize(("p", "q"), [(8, 6), (5, 5), (3, 9)])
def test_procrustes_equals_the_best_rotation(p, q):
    x, y = pair(p=p, q=q)
    padded = [
        torch.nn.functional.pad(feature, (0, max(p, q) - feature.shape[1])).numpy()
        for feature in (x, y)
    ]
    unit = [(part - part.mean(0)) / np.linalg.norm(part - part.mean(0)) for part in padded]
    best, _ = scipy.linalg.orthogonal_procrustes(*unit)
    found = procrustes(sums_of(x, y))
    assert found.value == pytest.approx(0.5 * np.square(unit[0] @ best - unit[1]).sum(), abs=1e-9)
    _, _, disparity = scipy.spatial.procrustes(*padded)  # of the best rotation and scale
    assert 1 - (1 - found.value) ** 2 == pytest.approx(disparity, abs=1e-9)
    assert (found.kind, found.bounds) == ("distance", (0, 1))


@pytest.mark.parametrize("weight", [1e-3, 0.1, 10])
def test_ridge_equals_the_oracle_on_held_out_rows(monkeypatch, weight):
    monkeypatch.setattr(similarity, "WEIGHTS", (weight,))
    x, y = pair()
    alpha = weight * (x[:120] - x[:120].mean(0)).square().sum().item() / 8
    predicted = Ridge(alpha=alpha, solver="cholesky").fit(x[:120], y[:120]).predict(x[120:])
    rest = y[120:].numpy()
    expected = 1 - np.square(rest - predicted).sum() / np.square(rest - rest.mean(0)).sum()
    found = ridge_r2(sums_of(x[:120], y[:120]), sums_of(x[120:], y[120:]))
    assert found.value == pytest.approx(expected, abs=1e-9)
    assert found.value == pytest.approx(
        r2_score(rest, predicted, multioutput="variance_weighted"), abs=1e-9
    )
    assert (found.kind, found.bounds) == ("similarity", (None, 1))


@pytest.mark.parametrize("shared", [0, 3])
def test_the_ridge_weight_has_the_least_generalised_validation_error(monkeypatch, shared):
    x, y = pair(rows=40, p=30, shared=shared)
    centred = x - x.mean(0)
    errors = {}
    for weight in similarity.WEIGHTS:
        penalty = weight * centred.square().sum() / 30 * torch.eye(30, dtype=x.dtype)
        hat = centred @ torch.linalg.solve(centred.T @ centred + penalty, centred.T) + 1 / 40
        left = (torch.eye(40) - hat) @ y
        errors[weight] = (left.square().sum() / (40 - hat.trace()) ** 2).item()
    best = min(errors, key=errors.get)
    fit, held_out = sums_of(x, y), sums_of(*pair(p=30, shared=shared, seed=9))
    chosen = ridge_r2(fit, held_out).value
    monkeypatch.setattr(similarity, "WEIGHTS", (best,))
    assert chosen == ridge_r2(fit, held_out).value


def test_a_rotated_scaled_shifted_copy_is_the_same():
    x, _ = pair()
    copy = 3 * x @ rotation(8) + 1
    sums = sums_of(x, copy)
    assert linear_cka(sums).value == pytest.approx(1, abs=1e-9)
    assert svcca(sums).value == pytest.approx(1, abs=1e-9)
    assert procrustes(sums).value == pytest.approx(0, abs=1e-9)
    assert ridge_r2(sums, sums).value == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    "score", [linear_cka, svcca, procrustes, lambda sums: ridge_r2(sums, sums)]
)
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_feature_has_no_score_but_a_reason(score, constant):
    x, y = pair(rows=20)
    still = torch.full_like(y, constant).float()
    assert (score(sums_of(x, still)).value, score(sums_of(x, still)).reason) == (
        None,
        "x* is constant",
    )
    assert score(sums_of(still, x)).reason == "x is constant"


def test_too_few_rows_have_no_score_but_a_reason():
    assert "needs 4 rows, there are 3" in linear_cka(sums_of(*pair(rows=3))).reason
    assert (
        "x differs in one row alone"
        in linear_cka(sums_of(torch.eye(9)[:, :1], pair(rows=9)[1])).reason
    )
    assert "8 and 6 components of only 14 rows" in svcca(sums_of(*pair(rows=14)), kept=1).reason
    assert svcca(sums_of(*pair(rows=15)), kept=1).value < 1
    assert "8 channels of only 8 rows" in procrustes(sums_of(*pair(rows=8))).reason
    assert procrustes(sums_of(*pair(rows=9))).value > 0
    wide = ridge_r2(sums_of(*pair(rows=20, p=90)), sums_of(*pair(rows=20, p=90, seed=1)))
    assert wide.value is not None and np.isfinite(wide.value)  # a penalty needs no rows


def test_regressions_of_other_widths_are_not_mixed():
    with refused("8", "6", "5"):
        ridge_r2(sums_of(*pair()), sums_of(*pair(q=5)))
