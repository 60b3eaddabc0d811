import pytest
import torch

from consistency.floors import ClassMoments, class_shares, class_variances
from tests.mistakes import refused


def planted(per_class, classes=20, channels=16, side=3, within=1.0, seed=0):
    """Maps of classes of one size, their true class means, and labels."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(classes, channels, side, side, generator=generator, dtype=torch.float64)
    labels = torch.arange(classes).repeat_interleave(per_class)
    noise = torch.randn(len(labels), channels, side, side, generator=generator, dtype=torch.float64)
    return means[labels] + within * noise + 7, means[labels] + 7, labels


def definition(features, labels):
    """I_0 as it is written."""
    total = 0.0
    for label in labels.unique():
        members = features[labels == label]
        count = len(members)
        total += count / (count - 1) * (members - members.mean(0)).square().sum().item()
    spread = (features - features.mean((0, 2, 3), keepdim=True)).square().mean().item()
    return total / features.numel() / spread


def test_the_floor_is_its_definition_whatever_the_batches():
    features, _, labels = planted(5)
    whole = class_variances([(features, labels)])
    assert whole.floor == pytest.approx(definition(features, labels), abs=1e-12)
    order = torch.randperm(len(labels))
    moments = ClassMoments()
    for rows in order.split(7):
        moments.update(features[rows], labels[rows])
    parts = moments.variances()
    assert parts.floor == pytest.approx(whole.floor, abs=1e-12)
    assert parts.between == pytest.approx(whole.between, abs=1e-12)


@pytest.mark.parametrize("per_class", [2, 5, 24])
def test_true_class_means_explain_all_between_and_nothing_within(per_class):
    """Uncorrected, the share between is 1 − 1/n_c of what it should be,
    and worse for the residual.
    """
    found = []
    for seed in range(10):
        features, means, labels = planted(per_class, seed=seed)
        target, residual = (
            class_variances([(part, labels)]) for part in (features, features - means)
        )
        found.append(class_shares(target, residual))
    shares = torch.tensor([[one.between, one.within, one.above_class_means] for one in found])
    assert shares.mean(0).tolist() == pytest.approx([1, 0, 0], abs=0.02)


def test_variances_are_unbiased():
    found = [
        class_variances([(part[0], part[2])])
        for part in (planted(3, within=0.5, seed=s) for s in range(20))
    ]
    assert sum(one.within for one in found) / 20 == pytest.approx(0.25, rel=0.02)
    assert sum(one.between for one in found) / 20 == pytest.approx(0.95, rel=0.05)  # (1 − 1/20) · 1


def test_a_perfect_residual_is_all_shared():
    features, _, labels = planted(4)
    target, residual = (class_variances([(part, labels)]) for part in (features, 0 * features))
    shares = class_shares(target, residual)
    assert (shares.between, shares.within, shares.above_class_means) == pytest.approx((1, 1, 1))


def test_single_images_of_a_class_are_left_out_and_counted():
    features, _, labels = planted(4)
    labels[0] = 99
    found = class_variances([(features, labels)])
    assert (found.images, found.small_classes) == (len(labels) - 1, 1)
    with refused(len(labels)):
        class_variances([(features, torch.arange(len(labels)))])


def test_vectors_and_constant_features():
    features, _, labels = planted(4)
    vectors = features.mean((2, 3))
    assert class_variances([(vectors, labels)]).floor == pytest.approx(
        definition(vectors[..., None, None], labels), abs=1e-12
    )
    still = class_variances([(torch.ones(8, 3, 2, 2), torch.arange(8) % 2)])
    assert (still.within, still.about_channels) == (0, 0)


def test_bad_features_are_refused():
    features, _, labels = planted(2)
    with refused((len(labels), 3)):
        ClassMoments().update(features, torch.ones(len(labels), 3))
    features[3, 1, 1, 1] = torch.nan
    with refused("NaN"):
        ClassMoments().update(features, labels)
