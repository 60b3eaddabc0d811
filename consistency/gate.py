"""Decide whether a changed net lost what the old one knew: pass, knowledge lost, or cannot say.

Accuracy on a few thousand images does not see harm of half a point, and a net may lose what it
knew of images that it still answers. So a gate looks at three things, each with an interval over
the same images for both nets:

    features   at each compared layer, what NEW's features still give of OLD's: the consistency of
               NEW → OLD ("retained"), or the smaller of both ways ("shared")
    answers    of the bits that OLD's answers say of an image, the share K / I_B that NEW's
               answers keep; 1 − K / I_B is mean KL(old ‖ new) over the images, relative
    decisions  accuracy, image by image; negative flips, which OLD had right and NEW has wrong,
               and McNemar's exact test of them against positive flips, in all and by class

A check passes where the whole interval keeps its threshold, fails where none of it does, and else
cannot say. One that fails decides; else one that cannot say does. A permutation of channels, a
folded BatchNorm and rounding to half precision change none of the three.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import torch
from torch import Tensor

from consistency.bootstrap import Interval, accuracy
from consistency.knowledge import measure_knowledge
from utils.errors import InputError
from utils.files import read_json
from utils.later import scipy
from utils.report.tables import interval_text, markdown_table

Outcome = Literal["pass", "knowledge lost", "cannot say", "left out"]
EXIT_CODES = {"pass": 0, "knowledge lost": 3, "cannot say": 4}
# Shares of variance, and of bits, that arithmetic in single precision and weights in half
# precision change.
SAME_FEATURES, SAME_ANSWERS = 1e-4, 1e-5
CONFIDENCE = 0.95
MEASURES = {"retained": "NEW → OLD", "shared": "the smaller way"}


@dataclass(frozen=True)
class Policy:
    """What a gate asks, as a JSON object has it; what is null is not asked.

    Attributes:
        measure: of the features: "retained" or "shared".
        layers: that are asked, by name or "stage 3"; "all": every compared pair.
        features_at_least: the measure at each of them, at most 1.
        answers_at_least: the share of OLD's bits that NEW's answers keep, at most 1.
        accuracy_loss_at_most: percentage points.
        negative_flips_at_most: the share of all images, in [0, 1].
        mcnemar_level: NEW must not be wrong more often than OLD at this level of McNemar's exact
            test, two-sided; by class too, where Holm's correction keeps the level.
        named: the fields that a user set: what cannot be measured of them cannot be said; of the
            others it is left out.
    """

    measure: str = "retained"
    layers: str | Sequence[str] = "all"
    features_at_least: float | None = 0.998
    answers_at_least: float | None = 0.9999
    accuracy_loss_at_most: float | None = 1.0
    negative_flips_at_most: float | None = 0.02
    mcnemar_level: float | None = 0.01
    named: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise InputError(f"measure must be one of {', '.join(MEASURES)}, not {self.measure!r}")
        # A string is one name: as a sequence it would be its letters.
        named = [self.layers] if isinstance(self.layers, str) else self.layers
        is_list = isinstance(named, list | tuple) and named
        if not is_list or not all(isinstance(name, str) for name in named):
            raise InputError(f'layers must be "all" or a list of names, not {self.layers!r}')
        # Shares and levels lie in [0, 1], points of accuracy in [0, 100].
        least = {"features_at_least": -math.inf}
        most = {"accuracy_loss_at_most": 100.0}
        for name in THRESHOLDS:
            value = getattr(self, name)
            # A consistency may be below 0, so any number serves as its threshold.
            low, high = least.get(name, 0.0), most.get(name, 1.0)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is not None and not (is_number and low <= value <= high):
                raise InputError(f"{name} must be a number up to {high:g} or null, not {value!r}")
        if all(getattr(self, name) is None for name in THRESHOLDS):
            raise InputError(f"a policy must ask something; set one of {', '.join(THRESHOLDS)}")

    def record(self) -> dict[str, Any]:
        """Give what was asked, as a policy's file has it."""
        return {name: getattr(self, name) for name in ("measure", "layers", *THRESHOLDS)}


THRESHOLDS = tuple(
    one.name for one in fields(Policy) if one.name.endswith(("least", "most", "level"))
)


def read_policy(file: str | Path | None = None, **overrides: float | None) -> Policy:
    """Read a policy.

    Args:
        file: a JSON object of `Policy`'s fields; None: the default policy.
        overrides: fields of the command line; None: not given.

    Raises:
        InputError: it is no such object, or a value is out of its range; the message names the file.
    """
    content: Any = {} if file is None else read_json(file)
    allowed = ("measure", "layers", *THRESHOLDS)
    unknown = set(content) - set(allowed) if isinstance(content, dict) else {"another value"}
    if unknown:
        raise InputError(
            f"{file} must be a JSON object with some of {', '.join(allowed)}, but it has"
            f" {', '.join(sorted(unknown))}"
        )
    # The command line goes before the file; what neither names is the default's.
    content = {**content, **{name: of for name, of in overrides.items() if of is not None}}
    try:
        return Policy(**content, named=frozenset(content))
    except InputError as error:
        raise InputError(f"{file or 'the policy'}: {error}") from None


@dataclass(frozen=True)
class Check:
    """One question of a gate and its answer.

    Attributes:
        name: of what is asked: "features retained", "answers kept", …
        where: the pair of layers, or "".
        value: with its interval; None where there is none.
        threshold: the policy's.
        sense: "at least" or "at most".
        verdict: "pass", "knowledge lost", "cannot say", or "left out".
        why: a sentence.
    """

    name: str
    where: str
    value: Interval | None
    threshold: float
    sense: str
    verdict: Outcome
    why: str

    def record(self) -> dict[str, Any]:
        """Give it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Verdict:
    """What a gate decided.

    Attributes:
        verdict: "pass", "knowledge lost" or "cannot say".
        unchanged: nothing changed: weights, or all that was looked at, are the same but for
            rounding.
        untouched: the pairs of layers whose features give each other as well as themselves.
        reasons: sentences, the decisive ones first.
        checks: all of them.
        policy: that was asked.
    """

    verdict: Outcome
    unchanged: bool
    untouched: Sequence[str]
    reasons: Sequence[str]
    checks: Sequence[Check]
    policy: Policy = field(default_factory=Policy)

    @property
    def exit_code(self) -> int:
        """0 passes, 3 is knowledge lost, 4 cannot say."""
        return EXIT_CODES[self.verdict]

    def record(self) -> dict[str, Any]:
        """Give it as plain values, for `compare.json`."""
        return {
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "unchanged": self.unchanged,
            "untouched": list(self.untouched),
            "reasons": list(self.reasons),
            "checks": [check.record() for check in self.checks],
            "policy": self.policy.record(),
        }

    def markdown(self) -> str:
        """Lay it out for a comment of a pull request."""
        rows = [
            [
                check.name,
                check.where,
                _number(check.value),
                f"{check.sense} {check.threshold:g}",
                check.verdict,
            ]
            for check in self.checks
        ]
        table = markdown_table(("check", "where", "value", "threshold", "verdict"), rows, texts=2)
        reasons = "\n".join(f"- {reason}" for reason in self.reasons)
        return f"## Gate: {self.verdict}\n\n{reasons}\n\n{table}\n"

    def junit(self) -> str:
        """Give it as JUnit's XML: a test case a check; what is lost fails, what cannot be said errs."""
        # JUnit tells a test that failed from one that could not run: lost knowledge is the first.
        tags = {"knowledge lost": "failure", "cannot say": "error", "left out": "skipped"}
        suite = ElementTree.Element("testsuite", name="gate", tests=str(len(self.checks)))
        for verdict, counted in zip(tags, ("failures", "errors", "skipped")):
            suite.set(counted, str(sum(check.verdict == verdict for check in self.checks)))
        for check in self.checks:
            name = f"{check.name}, {check.where}" if check.where else check.name
            case = ElementTree.SubElement(suite, "testcase", classname="gate", name=name)
            if check.verdict in tags:
                ElementTree.SubElement(case, tags[check.verdict], message=check.why)
        ElementTree.indent(suite)
        return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def decide(
    report: Mapping[str, Any],
    policy: Policy,
    logits: tuple[Tensor, Tensor] | None = None,
    labels: Tensor | None = None,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> Verdict:
    """Decide of two nets, A the old one and B the new one.

    Args:
        report: what a comparison says, as `compare.json` has it.
        policy: what is asked.
        logits: of OLD and of NEW, floating (N, C) each, of the held-out images; None: their answers
            are not compared.
        labels: the classes of these images, integers (N,); None: they have none that the nets tell
            apart.
        resamples: of the images, for the intervals of what is computed here.
        seed: of the resamples.

    Raises:
        InputError: the report is not of two nets, or the policy names a layer that was not compared.
    """
    if len(report["nets"]) != 2:
        raise InputError(f"a gate takes an old net and a new one, not {len(report['nets'])} nets")
    # One check for each question; what cannot be measured says so in its place.
    checks = [*_feature_checks(report, policy)]
    lost_answers = None
    if policy.answers_at_least is not None:
        check, lost_answers = _answer_check(policy, logits, labels, resamples, seed)
        checks.append(check)
    classes = report["images"].get("classes") or ()
    checks += _decision_checks(policy, logits, labels, classes, resamples, seed)
    # Layers that give each other as well as themselves: nothing changed up to them.
    untouched = [name for name, pair in _named(report).items() if _is_untouched(pair)]
    same = lost_answers is not None and lost_answers < SAME_ANSWERS
    alike = bool(untouched) and len(untouched) == len(report["pairs"]) and same
    # Equal weights compute the same. So do nets whose features and answers agree throughout.
    unchanged = report["weights"] != "different" or alike
    return _conclude(report, policy, checks, untouched, unchanged)


def mcnemar(negative: int, positive: int) -> float:
    """Give the two-sided p of McNemar's exact test.

    Without a difference, each flip is as likely to be negative as positive.
    """
    changed = negative + positive
    return float(scipy.stats.binomtest(negative, changed).pvalue) if changed else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Correct p-values of several tests (Holm 1979), in their order."""
    corrected, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(sorted(range(len(p)), key=lambda number: p[number])):
        # The smallest p counts n times, the next n − 1 times; no corrected p is below an earlier
        # one.
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        corrected[place] = largest
    return corrected


def exact_share(count: int, images: int) -> Interval:
    """Give a share of the images with Clopper and Pearson's interval, which a count of 0 has too."""
    # No bootstrap: of no flip at all every resample has none, and its interval would be 0 to 0.
    limits = scipy.stats.binomtest(count, images).proportion_ci(CONFIDENCE, method="exact")
    low, high = float(limits.low), float(limits.high)
    return Interval(count / images, low, high, CONFIDENCE, "exact", 0, ("images",), True)


def _feature_checks(report: Mapping[str, Any], policy: Policy) -> list[Check]:
    if policy.features_at_least is None:
        return []
    pairs = _named(report)
    chosen = list(pairs)
    if policy.layers != "all":
        chosen = [policy.layers] if isinstance(policy.layers, str) else list(policy.layers)
        if lost := [name for name in chosen if name not in pairs]:
            raise InputError(
                f"the policy asks of {', '.join(lost)}, and compared were {', '.join(pairs)}; name"
                " layers as these are"
            )
    name = f"features {policy.measure}"
    checks = []
    for where in chosen:
        pair = pairs[where]
        # OLD is A and NEW is B: what NEW gives of OLD's features is B → A.
        measured = pair["back"]["consistency"] if policy.measure == "retained" else pair["shared"]
        missing = pair["back"]["null"] is None
        reason = "nulls were left out; run without --quick" if missing else ""
        interval = None if missing or not measured else _interval(measured)
        sense = ("at least", policy.features_at_least)
        subject = f"at {where}, of OLD's features, {MEASURES[policy.measure]},"
        checks.append(_check(name, where, interval, *sense, subject, reason))
    if not checks:
        why = "no pair of layers was compared"
        checks.append(
            Check(name, "", None, policy.features_at_least, "at least", "cannot say", why)
        )
    return checks


def _answer_check(
    policy: Policy,
    logits: tuple[Tensor, Tensor] | None,
    labels: Tensor | None,
    resamples: int,
    seed: int,
) -> tuple[Check, float | None]:
    """Ask what NEW's answers keep of OLD's; give the lost share of bits besides."""
    assert policy.answers_at_least is not None
    sense = ("at least", policy.answers_at_least)
    if logits is None or logits[0].shape != logits[1].shape:
        reason = "the nets tell other classes apart, or their answers are not at hand"
        return _missing("answers kept", sense, "answers_at_least", policy, reason), None
    try:
        kept = measure_knowledge(
            *logits, labels=labels, permutations=0, resamples=resamples, seed=seed
        )
    except InputError as error:
        return _missing("answers kept", sense, "answers_at_least", policy, str(error)), None
    share = kept.numbers["share"]
    subject = "of the bits that OLD's answers say of an image"
    check = _check("answers kept", "", share, *sense, subject, share.reason)
    return check, None if share.value is None else 1 - share.value


def _decision_checks(
    policy: Policy,
    logits: tuple[Tensor, Tensor] | None,
    labels: Tensor | None,
    classes: Sequence[str],
    resamples: int,
    seed: int,
) -> list[Check]:
    """Ask about answers that are right or wrong: accuracy, negative flips, and whom they are about."""
    asked = {
        "accuracy_loss_at_most": "accuracy lost, points",
        "negative_flips_at_most": "negative flips",
        "mcnemar_level": "wrong more often, p of McNemar's test",
    }
    asked = {name: title for name, title in asked.items() if getattr(policy, name) is not None}
    if logits is None or labels is None:
        reason = "the images have no classes that both nets tell apart"
        return [
            _missing(*(title, ("at most", getattr(policy, name)), name, policy, reason))
            for name, title in asked.items()
        ]
    right = [answers.argmax(1).cpu() == labels.cpu() for answers in logits]
    # What only OLD has right, and what only NEW has
    flips = {"negative": right[0] & ~right[1], "positive": ~right[0] & right[1]}
    checks = []
    if policy.accuracy_loss_at_most is not None:
        hits = [is_right.double().numpy() for is_right in right]
        loss = accuracy(*hits, resamples=resamples, seed=seed)
        title, most = (
            asked["accuracy_loss_at_most"],
            policy.accuracy_loss_at_most,
        )
        checks.append(_check(title, "", loss, "at most", most, "accuracy lost in points"))
    counts = {name: int(is_flip.sum()) for name, is_flip in flips.items()}
    if policy.negative_flips_at_most is not None:
        share = exact_share(counts["negative"], len(labels))
        title, most = (
            asked["negative_flips_at_most"],
            policy.negative_flips_at_most,
        )
        checks.append(_check(title, "", share, "at most", most, "images that NEW alone has wrong"))
    if policy.mcnemar_level is not None:
        checks += _mcnemar_checks(policy, asked["mcnemar_level"], flips, labels, classes)
    return checks


def _mcnemar_checks(
    policy: Policy,
    title: str,
    flips: Mapping[str, Tensor],
    labels: Tensor,
    classes: Sequence[str],
) -> list[Check]:
    """Test whether NEW is wrong more often, in all and in any class."""
    level = float(policy.mcnemar_level or 0)
    present = labels.unique().tolist()
    groups = {"": torch.ones_like(labels, dtype=torch.bool)}
    groups |= {
        str(classes[label] if label < len(classes) else label): labels == label for label in present
    }
    counts = {
        name: [int((is_flip & members).sum()) for is_flip in flips.values()]
        for name, members in groups.items()
    }
    tests = {name: mcnemar(*pair) for name, pair in counts.items()}
    names = list(groups)[1:]
    # Many classes are many tests: without correction one of them fails by chance.
    tests |= dict(zip(names, holm([tests[name] for name in names])))

    def check(where: str, name: str) -> Check:
        negative, positive = counts[name]
        worse = negative > positive and tests[name] <= level
        why = (
            f"{where or 'in all'}: NEW alone is wrong on {negative} images, OLD alone on {positive},"
            f" p = {tests[name]:.2g}"
        )
        value = Interval(tests[name], None, None, CONFIDENCE, "exact", 0, ("images",), True)
        outcome: Outcome = "knowledge lost" if worse else "pass"
        return Check(title, where, value, level, "above", outcome, why)

    # Of the classes, the one that is told best from chance stands for all.
    # Of equal p, the class with the most negative flips beyond the positive ones
    worst = min(
        names, key=lambda name: (tests[name], counts[name][1] - counts[name][0]), default=None
    )
    of_classes = [] if worst is None or len(names) < 2 else [check(f"class {worst}", worst)]
    return [check("", ""), *of_classes]


def _check(
    name: str,
    where: str,
    interval: Interval | None,
    sense: str,
    threshold: float,
    subject: str,
    reason: str = "",
) -> Check:
    """Hold an interval against a threshold."""
    if interval is None or interval.value is None or interval.low is None or interval.high is None:
        why = reason or (interval.reason if interval else "") or "there is no such number"
        return Check(name, where, interval, threshold, sense, "cannot say", f"{subject}: {why}")
    # (passes, fails); neither: the threshold lies inside the interval.
    keeps = {
        "at least": (interval.low >= threshold, interval.high < threshold),
        "at most": (interval.high <= threshold, interval.low > threshold),
    }
    passes, fails = keeps[sense]
    outcome: Outcome = "pass" if passes else "knowledge lost" if fails else "cannot say"
    relation = {
        "pass": "keeps",
        "knowledge lost": "does not keep",
        "cannot say": "may or may not keep",
    }[outcome]
    why = f"{subject} {_number(interval)}, which {relation} {sense} {threshold:g}"
    return Check(name, where, interval, threshold, sense, outcome, why)


def _missing(name: str, sense: tuple[str, float], key: str, policy: Policy, reason: str) -> Check:
    """Say that something was not measured: of what the user asked it cannot be said."""
    outcome: Outcome = "cannot say" if key in policy.named else "left out"
    return Check(name, "", None, sense[1], sense[0], outcome, f"{name}: {reason}")


def _conclude(
    report: Mapping[str, Any],
    policy: Policy,
    checks: Sequence[Check],
    untouched: Sequence[str],
    unchanged: bool,
) -> Verdict:
    """Make the verdict and its reasons from the checks."""
    outcomes = [check.verdict for check in checks]
    verdict: Outcome = "pass"
    if "knowledge lost" in outcomes:
        verdict = "knowledge lost"
    # All left out is no pass: nothing was looked at.
    elif "cannot say" in outcomes or "pass" not in outcomes:
        verdict = "cannot say"
    weights = report["weights"]
    reasons = []
    if weights == "equal":
        reasons.append("Nothing changed: the weights of both nets are equal.")
    elif weights == "equal but for rounding":
        reasons.append("Nothing changed: the weights differ by no more than rounding does.")
    elif unchanged:
        reasons.append(
            "Nothing changed but the weights: features and answers are the same but for rounding."
        )
    if weights == "equal" and verdict == "cannot say":
        # Equal weights compute the same, whatever was not measured.
        verdict = "pass"
    decisive = [check for check in checks if check.verdict == verdict != "pass"]
    reasons += [f"{check.why[0].upper()}{check.why[1:]}." for check in decisive]
    if untouched and not unchanged:
        reasons.append(f"Nothing changed at {', '.join(untouched)}.")
    if not decisive:
        asked = sum(check.verdict == "pass" for check in checks)
        reasons.append(f"All {asked} checks keep their thresholds.")
    lost = [check.why for check in checks if check.verdict == "left out"]
    reasons += [f"Left out: {why}." for why in lost]
    return Verdict(verdict, unchanged, untouched, reasons, checks, policy)


def _named(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Give the pairs of layers by what a policy calls them: "stage 3", or the old net's layer."""
    names = dict[str, Mapping[str, Any]]()
    for pair in report["pairs"]:
        # A stage's number means both nets' only where it is one.
        stages = {pair[side]["stage"] for side in "ab"}
        same = len(stages) == 1 and None not in stages
        names[f"stage {stages.pop()}" if same else str(pair["a"]["layer"])] = pair
    return names


def _is_untouched(pair: Mapping[str, Any]) -> bool:
    """Whether each net's features give the other's as well as their own, both ways."""
    for way in ("forth", "back"):
        # A direction without a null has no ceiling: it cannot be called untouched.
        numbers = [
            pair[way][name] and pair[way][name]["value"] for name in ("instability", "ceiling")
        ]
        if None in numbers or abs(numbers[0] - numbers[1]) > SAME_FEATURES:
            return False
    return True


def _interval(record: Mapping[str, Any]) -> Interval:
    """Read an interval's record."""
    values: dict[str, Any] = {one.name: record[one.name] for one in fields(Interval)}
    return Interval(**values)


def _number(interval: Interval | None) -> str:
    """Write a number with its interval."""
    if interval is None or interval.value is None:
        return "undefined"
    ends = interval_text(asdict(interval), ".4f")
    return f"{interval.value:.4f} {ends}" if ends else f"{interval.value:.4g}"
