import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from consistency import knowledge
from consistency.knowledge import learned_share, measure_knowledge
from consistency.ridge import NormalEquations
from tests.mistakes import refused

IMAGES, CLASSES = 400, 10


def answers(images=IMAGES, classes=CLASSES, seed=0, sure=4.0):
    """Logits (N, C) of a net that has learned its classes, and the images' labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    noise = torch.randn(images, classes, generator=generator, dtype=torch.float64)
    return sure * torch.eye(classes, dtype=torch.float64)[labels] + 1.5 * noise, labels


def test_b_through_itself_keeps_everything():
    z, labels = answers()
    v = torch.randn(IMAGES, 7)
    found = measure_knowledge(z, z, labels=labels, penultimate=(v, v), logits_a=z, resamples=50)
    assert found["K"] == pytest.approx(found["I_B"], abs=1e-6)
    assert found["K_c"] == pytest.approx(found["I_B"], abs=1e-6)
    for name in ("share", "rho", "penultimate_r2", "agreement", "agreement_A_B"):
        assert found[name] == pytest.approx(1, abs=1e-6)
    assert found["decision_recovery"] == 0
    assert found.p == pytest.approx(1 / 1001)
    assert all(interval.value == 0 for interval in found.lost_by_class.values())
    assert not found.notes


@pytest.mark.parametrize("kind", ["permuted", "rescaled"])
@pytest.mark.parametrize("way", ["A → copy", "copy → A"])
def test_a_copy_that_computes_the_same_shares_all(kind, way):
    """g is the best linear map of channels; factors are 1/8 … 8, undone by what reads the copy."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 12, 3, 3, generator=generator, dtype=torch.float64).relu()
    readout = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    order, factors = torch.arange(12), 8 ** torch.linspace(-1, 1, 12, dtype=torch.float64)
    if kind == "permuted":
        order, factors = torch.randperm(12, generator=generator), torch.ones(12).double()
    copy = x[:, order] * factors[:, None, None]
    nets = [(x, readout), (copy, readout[:, order] / factors)]
    (sent, _), (target, reader) = nets if way == "A → copy" else nets[::-1]
    sums = NormalEquations(12, 12, 1)
    sums.add(sent[:60], target[:60], torch.arange(60))
    solution = sums.solve(constant=True)
    g = F.conv2d(sent[60:], solution.weight, solution.constant)
    logits = [3 * maps.mean((2, 3)) @ reader.mT for maps in (target[60:], g)]
    found = measure_knowledge(*logits, resamples=0, permutations=19)
    assert found["share"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_mean_answer_tells_nothing(seed):
    z, _ = answers(seed=seed)
    mean = z.softmax(1).mean(0).log().expand_as(z)
    found = measure_knowledge(z, mean, resamples=0, permutations=100)
    assert found["K"] == pytest.approx(0, abs=1e-9)
    assert abs(found["K_c"]) <= 0.02
    assert (found["rho"], found.p) == (pytest.approx(0, abs=1e-9), 1)


def test_a_wrong_scale_and_prior_lose_bits_that_the_calibrated_number_keeps():
    z, _ = answers(images=4000)
    log_mean = z.softmax(1).mean(0).log()
    found = measure_knowledge(z, 3 * z - 2 * log_mean, resamples=0, permutations=0)
    assert found["K"] < found["I_B"] - 0.1
    assert found["K_c"] == pytest.approx(found["I_B"], abs=1e-6)


def test_a_sender_with_the_opposite_sign_is_not_turned_around():
    z, _ = answers(images=2000)
    found = measure_knowledge(z, -z, resamples=0, permutations=0)
    assert abs(found["K_c"]) <= 0.02  # a = 0


def test_senders_of_the_class_alone_share_nothing_beyond_it():
    """Another image's answer with the same argmax: agreement is 1, and says nothing."""
    rhos, p_values = [], []
    for seed in range(400):
        z, _ = answers(images=150, seed=seed)
        generator = torch.Generator().manual_seed(1000 + seed)
        order = torch.arange(len(z))
        for answer in z.argmax(1).unique():
            members = (z.argmax(1) == answer).nonzero().flatten()
            order[members] = members[torch.randperm(len(members), generator=generator)]
        found = measure_knowledge(z, z[order], permutations=99, resamples=0, seed=seed)
        assert found["agreement"] == 1
        rhos.append(found["rho"])
        p_values.append(found.p)
    assert np.mean(rhos) <= 0.05
    assert np.mean(np.array(p_values) > 0.05) >= 0.93


def definition(z, sent):
    """D, I_B, D_class by loops, as they are written."""
    q, r = z.softmax(1), sent.softmax(1)
    divergence = lambda p, s: (p * (p / s).log2()).sum().item()  # noqa: E731
    answered = q.argmax(1)
    beside, lost = [], []
    for i in range(len(q)):
        others = [j for j in range(len(q)) if j != i and answered[j] == answered[i]]
        if others:
            beside.append(np.mean([divergence(q[i], r[j]) for j in others]))
            lost.append(divergence(q[i], r[i]))
    i_b = np.mean([divergence(q[i], q.mean(0)) for i in range(len(q))])
    d = np.mean([divergence(q[i], r[i]) for i in range(len(q))])
    return i_b, d, 1 - np.mean(lost) / np.mean(beside)


def test_every_number_is_its_definition():
    z, labels = answers(images=31)
    z[0, 9] = 40.0  # perhaps alone in its class
    sent = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    found = measure_knowledge(z, sent, labels=labels, logits_a=sent, resamples=0, permutations=0)
    i_b, d, rho = definition(z, sent)
    assert found["I_B"] == pytest.approx(i_b, abs=1e-9)
    assert found["D"] == pytest.approx(d, abs=1e-9)
    assert found["share"] == pytest.approx(1 - d / i_b, abs=1e-9)
    assert found["rho"] == pytest.approx(rho, abs=1e-9)
    assert found["agreement"] == (z.argmax(1) == sent.argmax(1)).double().mean()
    assert found.lost.mean() == pytest.approx(d, abs=1e-9)
    for label, interval in found.lost_by_class.items():
        assert interval.value == pytest.approx(found.lost[labels == label].mean(), abs=1e-12)


def test_images_alone_in_their_class_are_left_out():
    z = torch.eye(6, dtype=torch.float64) * 5
    alone = measure_knowledge(z, z, resamples=0)
    assert math.isnan(alone["rho"]) and alone.p is None
    assert "no two images have one answer of B" in alone.numbers["rho"].reason
    twice = torch.cat([z, z[:1] - 1])
    twice[-1, 1] += 3
    found = measure_knowledge(twice, twice, resamples=0, permutations=0)
    assert found["rho"] == pytest.approx(1)


def test_one_answer_for_all_images_of_a_class_is_no_scale_beyond_it():
    z = torch.eye(3, dtype=torch.float64).repeat(4, 1) * 50
    found = measure_knowledge(z, z, resamples=0)
    assert found.p is None and math.isnan(found["rho"])
    assert "all images of a class have one answer of B" in found.numbers["rho"].reason
    assert found["share"] == pytest.approx(1)


def test_answers_that_hardly_depend_on_the_image_have_no_share():
    z, _ = answers()
    found = measure_knowledge(0.01 * z, 0.01 * z, resamples=20, permutations=0)
    assert found["I_B"] < 0.1 and math.isnan(found["share"])
    assert found.numbers["share"].reason.startswith("B's answers hardly depend on the image")
    assert learned_share(found, found) is None


def test_intervals_hold_the_numbers_and_report_is_plain():
    z, labels = answers()
    sent = z + torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    found = measure_knowledge(z, sent, labels=labels, resamples=200)
    for name in ("I_B", "K", "share", "K_c", "rho", "agreement"):
        interval = found.numbers[name]
        assert interval.low < interval.value < interval.high
    report = found.report()
    assert len(report["lost_bits"]) == IMAGES and report["K"]["value"] == found["K"]
    assert set(report["lost_by_class"]) == {str(label) for label in range(CLASSES)}


def test_classes_of_two_images_have_no_bits_of_their_own_and_that_is_said():
    z, _ = answers(images=10)
    found = measure_knowledge(z, z + 1, labels=torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2, 3]))
    assert set(found.lost_by_class) == {0, 1} and found.lost_by_class[1].low is not None
    assert any("2 classes" in note for note in found.notes)


def test_large_classes_are_permuted_in_blocks(monkeypatch):
    z, _ = answers(images=120, classes=2)
    sent = z + 3 * torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    whole = measure_knowledge(z, sent, resamples=0, permutations=500)
    monkeypatch.setattr(knowledge, "BLOCK_BYTES", 8 * 120 * 10)
    assert measure_knowledge(z, sent, resamples=0, permutations=500).p == pytest.approx(
        whole.p, abs=0.02
    )


def test_multi_label_answers_are_sums_of_binary_ones():
    generator = torch.Generator().manual_seed(0)
    z = 3 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    sent = z + torch.randn(300, 4, generator=generator)
    found = measure_knowledge(z, sent, multi_label=True, resamples=50)
    q, r = z.sigmoid(), sent.sigmoid()
    binary = lambda p, s: p * (p / s).log2() + (1 - p) * ((1 - p) / (1 - s)).log2()  # noqa: E731
    assert found["D"] == pytest.approx(binary(q, r).sum(1).mean().item(), abs=1e-9)
    assert found["I_B"] == pytest.approx(binary(q, q.mean(0)).sum(1).mean().item(), abs=1e-9)
    assert found["agreement"] == ((z > 0) == (sent > 0)).double().mean()
    assert "rho" not in found.numbers and found.p is None
    mean = (q.mean(0) / (1 - q.mean(0))).log().expand_as(z)
    assert abs(measure_knowledge(z, mean, multi_label=True, resamples=0)["K_c"]) <= 0.02
    same = measure_knowledge(z, 5 * z, multi_label=True, resamples=0)
    assert same["K_c"] == pytest.approx(same["I_B"], abs=1e-6)


def test_penultimate_features_are_compared_about_their_mean():
    z, _ = answers()
    v = torch.randn(IMAGES, 5, dtype=torch.float64) + 9
    half = measure_knowledge(z, z, penultimate=(v, v.mean(0).expand_as(v)), resamples=0)
    assert half["penultimate_r2"] == pytest.approx(0, abs=1e-9)


def test_an_untrained_senders_bits_are_not_learned():
    z, _ = answers()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3))
    trained, untrained = (
        measure_knowledge(z, z + size * noise, resamples=0, permutations=0) for size in (0.3, 1.5)
    )
    share = learned_share(trained, untrained)
    floor = untrained["K"]
    assert floor > 0 and share == (trained["K"] - floor) / (trained["I_B"] - floor)
    assert learned_share(untrained, untrained) == 0


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"sent_logits": torch.zeros(20, 3)}, ("g", (20, 3), (20, 10))),
        ({"logits_a": torch.zeros(19, 10)}, ("net A", (19, 10), (20, 10))),
        ({"logits": torch.zeros(3, 10), "sent_logits": torch.zeros(3, 10)}, ((3, 10),)),
        ({"sent_logits": torch.full((20, 10), math.nan)}, ("NaN", "infinity")),
        ({"penultimate": (torch.zeros(20, 3), torch.zeros(20, 4))}, ((20, 3), (20, 4))),
    ],
)
def test_answers_that_do_not_belong_together_are_refused(change, facts):
    arguments = {"logits": torch.zeros(20, 10), "sent_logits": torch.zeros(20, 10)} | change
    with refused(*facts):
        measure_knowledge(**arguments)
