"""The gate: known verdicts of planted reports and planted answers."""

import copy
import json
from xml.etree import ElementTree

import pytest
import scipy.stats
import torch

from consistency.gate import Policy, decide, exact_share, holm, mcnemar, read_policy
from tests.mistakes import refused
from tests.unit import planted_comparison as planted

IMAGES = 600
LABELS = torch.arange(IMAGES) % 10


def answers(seed=0, right=0.9):
    """Logits (N, 10) of a net that is right on some share of the images."""
    generator = torch.Generator().manual_seed(seed)
    shown = LABELS.clone()
    wrong = torch.rand(IMAGES, generator=generator) > right
    shown[wrong] = (shown[wrong] + 1) % 10
    return torch.randn(IMAGES, 10, generator=generator) + 6.0 * torch.eye(10)[shown]


def report(retained=1.0, reach=0.0001, weights="different"):
    """A comparison of an old and a new net whose features retain so much at every stage."""
    full = planted.comparison() | {"weights": weights}
    for pair in full["pairs"]:
        for way in ("forth", "back"):
            pair[way] |= {"knowledge": None, "spectrum": None}
            pair[way]["consistency"] = planted.interval(retained, reach)
            ceiling = pair[way]["ceiling"]["value"]
            pair[way]["instability"] = planted.interval(ceiling + 0.6 * (1 - retained), reach)
        pair["shared"] = planted.interval(retained, reach)
    return full


def verdict(record=None, policy=None, new=None, **options):
    old = answers()
    logits = (old, old.clone() if new is None else new)
    return decide(record or report(), policy or Policy(), logits, LABELS, resamples=200, **options)


@pytest.mark.parametrize("weights", ["equal", "equal but for rounding", "different"])
def test_what_is_the_same_passes_and_is_said_to_be_unchanged(weights):
    found = verdict(report(weights=weights))
    assert (found.verdict, found.exit_code, found.unchanged) == ("pass", 0, True)
    assert found.reasons[0].startswith("Nothing changed")
    assert found.untouched == ["stage 1", "stage 2", "stage 3"]


def test_lost_features_fail_and_untouched_layers_are_named():
    record = report()
    record["pairs"][2]["back"] |= {
        "consistency": planted.interval(0.97, 0.005),
        "instability": planted.interval(0.1, 0.001),
    }
    found = verdict(record)
    assert (found.verdict, found.exit_code, found.unchanged) == ("knowledge lost", 3, False)
    assert "stage 3" in found.reasons[0] and "0.9700 [0.9650, 0.9750]" in found.reasons[0]
    assert "Nothing changed at stage 1, stage 2." in found.reasons


def test_an_interval_that_holds_the_threshold_cannot_say():
    found = verdict(report(0.998, 0.001))
    assert (found.verdict, found.exit_code) == ("cannot say", 4)
    assert len(found.reasons) == 3


def test_a_failure_decides_over_what_cannot_be_said():
    record = report(0.998, 0.001)
    record["pairs"][0]["back"]["consistency"] = planted.interval(0.9, 0.001)
    assert verdict(record).verdict == "knowledge lost"


def test_retained_looks_from_new_to_old_and_shared_at_both_ways():
    record = report()
    for pair in record["pairs"]:
        pair["forth"]["consistency"] = pair["shared"] = planted.interval(0.5, 0.01)
    assert verdict(record).verdict == "pass"
    assert verdict(record, Policy(measure="shared")).verdict == "knowledge lost"


def test_a_policy_may_ask_of_some_layers():
    record = report()
    record["pairs"][2]["back"]["consistency"] = planted.interval(0.5, 0.01)
    assert verdict(record, Policy(layers=["stage 1", "stage 2"])).verdict == "pass"
    with refused("stage 9", "stage 1", "stage 2"):
        verdict(record, Policy(layers=["stage 9"]))


def test_one_damaged_class_is_lost_from_the_answers_alone():
    new = answers()
    new[:, 3] += 0.7 * torch.randn(IMAGES, generator=torch.Generator().manual_seed(1))
    found = verdict(new=new)
    assert found.verdict == "knowledge lost"
    assert [check.name for check in found.checks if check.verdict == "knowledge lost"] == [
        "answers kept"
    ]


def test_more_wrong_answers_fail_by_mcnemars_test_and_name_the_class():
    new = answers()
    members = (LABELS == 4).nonzero().flatten()[:20]
    new[members] = 6.0 * torch.eye(10)[(LABELS[members] + 2) % 10]
    policy = Policy(answers_at_least=None, accuracy_loss_at_most=None, negative_flips_at_most=None)
    found = verdict(policy=policy, new=new)
    assert found.verdict == "knowledge lost"
    failed = [check for check in found.checks if check.verdict == "knowledge lost"]
    assert [check.where for check in failed] == ["", "class deer"]
    better = decide(report(), policy, (new, answers()), LABELS, resamples=0)
    assert better.verdict == "pass"


@pytest.mark.parametrize(
    ("most", "expected"), [(0.2, "pass"), (0.03, "cannot say"), (0.01, "knowledge lost")]
)
def test_negative_flips_are_held_by_their_exact_interval(most, expected):
    new = answers()
    right = (new.argmax(1) == LABELS).nonzero().flatten()[:18]  # 3 % of the images
    new[right] = 6.0 * torch.eye(10)[(LABELS[right] + 1) % 10]
    policy = read_policy(negative_flips_at_most=most)
    found = verdict(policy=policy, new=new)
    (check,) = (check for check in found.checks if check.name == "negative flips")
    assert check.value.value == pytest.approx(0.03) and check.verdict == expected


def test_mcnemar_and_holm_and_the_exact_share_are_those_of_the_books():
    assert mcnemar(0, 0) == mcnemar(5, 5) == 1.0
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 2**10)
    assert mcnemar(9, 1) == mcnemar(1, 9)
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    none = exact_share(0, 100)
    assert none.low == 0 and none.high == pytest.approx(1 - 0.025**0.01)
    assert exact_share(7, 100).low == pytest.approx(scipy.stats.beta.ppf(0.025, 7, 94))


def test_without_classes_and_answers_the_rest_is_left_out_or_cannot_be_said():
    found = decide(report(), Policy())
    assert found.verdict == "pass"
    assert {check.verdict for check in found.checks} == {"pass", "left out"}
    assert any(reason.startswith("Left out: negative flips") for reason in found.reasons)
    asked = decide(report(), read_policy(negative_flips_at_most=0.01))
    assert (asked.verdict, asked.exit_code) == ("cannot say", 4)


def test_without_nulls_nothing_is_said_of_features():
    record = report()
    for pair in record["pairs"]:
        pair["back"] |= {"null": None, "consistency": None, "ceiling": None}
    found = verdict(record)
    assert found.verdict == "cannot say" and "--quick" in found.reasons[0]
    assert verdict(record | {"weights": "equal"}).verdict == "pass"


def test_equal_weights_that_answer_otherwise_do_not_pass():
    """As where the normalisation is another."""
    found = verdict(report(weights="equal"), new=answers(seed=1))
    assert found.verdict == "knowledge lost"


@pytest.mark.parametrize(
    ("content", "facts"),
    [
        ({"measure": "cka"}, ("measure", "retained", "shared", "'cka'")),
        ({"layers": []}, ("layers", "[]")),
        ({"layers": [3]}, ("layers", "[3]")),
        ({"negative_flips_at_most": 2}, ("negative_flips_at_most", "1", "2")),
        ({"answers_at_least": True}, ("answers_at_least", "True")),
        ({"threshold": 1}, ("threshold", "features_at_least")),
        ([1], ("JSON", "features_at_least")),
    ],
)
def test_a_wrong_policy_is_refused_with_its_file(tmp_path, content, facts):
    (tmp_path / "policy.json").write_text(json.dumps(content))
    with refused("policy.json", *facts):
        read_policy(tmp_path / "policy.json")


def test_a_policy_that_asks_nothing_is_refused():
    nothing = {name: None for name, of in Policy().record().items() if isinstance(of, float)}
    with refused(*nothing):
        Policy(**nothing)


def test_options_override_a_policys_file(tmp_path):
    (tmp_path / "policy.json").write_text('{"features_at_least": 0.9, "mcnemar_level": null}')
    policy = read_policy(
        tmp_path / "policy.json", features_at_least=0.5, negative_flips_at_most=None
    )
    assert policy.features_at_least == 0.5 and policy.mcnemar_level is None
    assert policy.negative_flips_at_most == Policy().negative_flips_at_most
    assert policy.named == {"features_at_least", "mcnemar_level"}


def test_more_than_two_nets_are_refused():
    record = report()
    record["nets"] = record["nets"] * 2
    with refused("4"):
        decide(record, Policy())


def test_junit_and_markdown_have_every_check():
    record = report()
    record["pairs"][2]["back"]["consistency"] = planted.interval(0.9, 0.001)
    record["pairs"][1]["back"]["consistency"] = planted.interval(0.998, 0.001)
    found = decide(record, Policy())
    suite = ElementTree.fromstring(found.junit())
    cases = suite.findall("testcase")
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == [
        *(str(len(found.checks)), "1", "1", "4")
    ]
    assert {case.get("name") for case in cases if case.find("failure") is not None} == {
        "features retained, stage 3"
    }
    assert all(case[0].get("message") for case in cases if len(case))
    text = found.markdown()
    assert (
        text.startswith("## Gate: knowledge lost") and text.count("\n| ") == len(found.checks) + 1
    )


def test_the_record_is_plain_and_its_reports_stay_as_they_were():
    record = report()
    before = copy.deepcopy(record)
    found = verdict(record)
    assert json.loads(json.dumps(found.record()))["exit_code"] == 0
    assert record == before
