"""Which classes, pairs of classes and images B tells apart, but not when g(x) stands in for x*.

B's frozen tail T gives logits z = T(x*) and ẑ = T(g(x)) of held-out images. With the means over the
images of class c of logit k, M_ck of z and M̂_ck of ẑ,

    gap_cd = M_cc − M_cd − M_dc + M_dd    how far apart B's logits hold the classes c and d
    L_cd   = 1 − ĝap_cd / gap_cd          the share of that gap which does not arrive through g
    ℓ_cd   = L_cd − median of L           what a pair loses beyond the usual pair

Every pair of nets loses most on difficult classes, whatever one of them lacks. So ℓ alone is a rank.
A finding needs m ≥ 2 *reference nets* B'_j, of B's recipe from other seeds, which send to B as A does:

    e = ℓ(A → B) − mean_j ℓ(B'_j → B)
    s² = mean over pairs of the variance of ℓ(B'_j → B) over j
    r  = 1.4826 · median over pairs of |e|
    t  = e / max(s √(1 + 1/m), r)

s is what seeds differ by. r is what this A differs by in its usual pair: a net that sends worse than
the references does so in most pairs, and a lack in few (Efron 2004, the empirical null). A pair is
*called* where t exceeds the quantile 1 − 0.05 / P of Student's distribution with (C − 1) (m − 1)
degrees of freedom, P the number of pairs and C that of classes: pairs that share a class vary
together. Without references nothing is called: shuffled labels, exchanged images and intervals over
images all call pairs of nets without any difference.

By class, L_cd ≈ μ + a_c + a_d in least squares, Σ a = 0, gives each class's *effect* a_c. By image,
the *margin* max_{k≠b} ẑ_k − ẑ_b at B's answer b says how clearly g(x) leads B to another answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consistency.bootstrap import Interval, bootstrap
from consistency.knowledge import bits_by_class, lost_bits
from utils.errors import InputError
from utils.later import scipy

LEAST_IMAGES = 5  # of a class
LEAST_REFERENCES = 2  # whose differences say what is usual
LEAST_PAIRS = 3  # whose median is none of them alone
DEVIATIONS = 1.4826  # of a normal distribution, in medians of |deviation|
LEVEL = 0.05  # of calling any pair of nets that lack nothing
STANDARD_ERRORS = 3.0  # by which a gap of B must exceed 0
ROUNDING = 1e-9  # relative to the logits: smaller gaps are the arithmetic's
MOST_PAIRS = 5000  # that are described: all of 100 classes
MOST_INTERVALS = 50  # pairs, the most lost, that get intervals
MOST_RECORDED = 200  # pairs that a report lists
MOST_DRAWN = 30  # classes of whose pairs a report has a matrix
SHOWN_IMAGES = 10  # the most and the least lost

Array = NDArray[Any]


@dataclass(frozen=True)
class PairLoss:
    """How much of the gap between two classes does not arrive.

    Attributes:
        first, second: the classes, numbers of logits, first < second.
        gap: gap_cd, in units of the logits.
        sent_gap: ĝap_cd.
        loss: L_cd; 0: all arrives, 1: nothing, above 1: the classes are exchanged. Its interval is
            over the images.
        relative: ℓ_cd.
        beyond_references: e; None without references, as t, p and called.
        t: e in standard deviations, of seeds or of A's own pairs, the larger.
        p: of t, one-sided, for this pair alone.
        called: p is at most 0.05 / number of pairs.
    """

    first: int
    second: int
    gap: float
    sent_gap: float
    loss: Interval
    relative: float
    beyond_references: float | None = None
    t: float | None = None
    p: float | None = None
    called: bool | None = None


@dataclass(frozen=True)
class ClassLoss:
    """What does not arrive of one class.

    Attributes:
        label: the class, a number of a logit.
        images: of the class.
        lost_bits: D_c, the mean of KL(softmax z ‖ softmax ẑ) over its images.
        lost_beyond_references: D_c less the mean of the references' D_c.
        effect: a_c; None where fewer than two pairs of the class are defined.
        effect_beyond_references: a_c less the mean of the references' a_c.
    """

    label: int
    images: int
    lost_bits: Interval
    lost_beyond_references: float | None
    effect: float | None
    effect_beyond_references: float | None


@dataclass(frozen=True)
class Distinctions:
    """What B tells apart that does not arrive through g.

    Attributes:
        images: N.
        references: m.
        pairs: most lost first: by e with references, by ℓ without; no more than `MOST_PAIRS`.
        compared_pairs: how many pairs are defined, P.
        classes: by the class's number.
        margin: of each image, float64 (N,), in units of the logits; above 0: g(x) leads B to another
            answer than x* does.
        confidence: max softmax z of each image, float64 (N,).
        answers: b, B's answer to each image, int64 (N,).
        notes: sentences about what is left out or may not be concluded.
    """

    images: int
    references: int
    pairs: Sequence[PairLoss]
    compared_pairs: int
    classes: Sequence[ClassLoss]
    margin: Array
    confidence: Array
    answers: Array
    notes: Sequence[str] = ()

    @property
    def called(self) -> list[PairLoss]:
        """The pairs that A tells apart less well than reference nets do."""
        return [pair for pair in self.pairs if pair.called]

    def most_lost(self, count: int = SHOWN_IMAGES) -> list[int]:
        """Give the images of the largest margins, the largest first."""
        return np.argsort(-self.margin, kind="stable")[:count].tolist()

    def least_lost(self, count: int = SHOWN_IMAGES) -> list[int]:
        """Give the images of the smallest margins, the smallest first."""
        return np.argsort(self.margin, kind="stable")[:count].tolist()

    def record(self, names: Sequence[str] = (), paths: Sequence[str] = ()) -> dict[str, Any]:
        """Give everything as plain values, for JSON: of the pairs the first `MOST_RECORDED`.

        "matrix" holds L of every pair of up to `MOST_DRAWN` classes, and None where it is not
        defined.

        Args:
            names: of the classes, by the logit's number; a number stands for one without a name.
            paths: of the images, in their order; none: their numbers alone.
        """

        def name(label: int) -> str:
            return names[label] if label < len(names) else str(label)

        def image(number: int) -> dict[str, Any]:
            return {
                "image": number,
                "path": str(paths[number]) if len(paths) else None,
                "answer": name(int(self.answers[number])),
                "margin": float(self.margin[number]),
                "confidence": float(self.confidence[number]),
            }

        pairs = []
        for pair in self.pairs[:MOST_RECORDED]:
            numbers = asdict(pair)
            labels = {place: name(numbers.pop(place)) for place in ("first", "second")}
            pairs.append(labels | numbers)
        matrix: list[list[float | None]] | None = None
        if len(self.classes) <= MOST_DRAWN:
            place = {of.label: number for number, of in enumerate(self.classes)}
            matrix = [[None] * len(place) for _ in place]
            for pair in self.pairs:
                row, column = place[pair.first], place[pair.second]
                matrix[row][column] = matrix[column][row] = pair.loss.value
        return {
            "images": self.images,
            "references": self.references,
            "compared_pairs": self.compared_pairs,
            "called": len(self.called) if self.pairs and self.pairs[0].called is not None else None,
            "pairs": pairs,
            "matrix": matrix,
            "classes": [
                {"class": name(of.label)}
                | {key: value for key, value in asdict(of).items() if key != "label"}
                for of in self.classes
            ],
            "most_lost": [image(number) for number in self.most_lost()],
            "least_lost": [image(number) for number in self.least_lost()],
            "margins": self.margin.tolist(),
            "confidences": self.confidence.tolist(),
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        rows = []
        for pair in self.pairs[:10]:
            t = "" if pair.t is None else f"  t {pair.t:.1f}{' called' if pair.called else ''}"
            rows.append(f"{pair.first} and {pair.second}: {pair.loss.value:.3f} of the gap lost{t}")
        return "\n".join([*rows, *self.notes])


def measure_distinctions(
    logits: Tensor,
    sent_logits: Tensor,
    labels: Tensor | None = None,
    *,
    references: Sequence[Tensor] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Distinctions:
    """Measure which distinctions between classes do not arrive.

    Everything is computed in float64 on the CPU. Time: N × classes, and for the intervals resamples
    × N × 4 × `MOST_INTERVALS`.

    Args:
        logits: z, B's tail on x*, floating (N, K).
        sent_logits: ẑ, B's tail on g(x), (N, K).
        labels: the images' classes, integers in [0, K), (N,); None: B's answers serve as classes.
        references: ẑ of each reference net, (N, K) each: none, or two or more.
        resamples: of the images, for the intervals; 0: none.
        seed: of the resamples.

    Raises:
        InputError: other shapes, values that are not finite, one reference or equal ones, labels
            that are no logits' numbers, or fewer than two classes of `LEAST_IMAGES` images.
    """
    z, sent, *others = (of.detach().double().cpu() for of in (logits, sent_logits, *references))
    _check(z, [sent, *others], labels)
    answers, notes = z.argmax(1), list[str]()
    if labels is None:
        notes.append("the images have no classes: B's answers serve as classes")
        kinds = answers
    else:
        kinds = labels.cpu().long()
    classes, counts = kinds.unique(return_counts=True)
    few = counts < LEAST_IMAGES
    if few.any():
        notes.append(
            f"{int(few.sum())} classes of fewer than {LEAST_IMAGES} images are left out:"
            f" {_listed(classes[few].tolist())}"
        )
    classes = classes[~few]
    if len(classes) < 2:
        raise InputError(
            f"distinctions need two classes of {LEAST_IMAGES} held-out images or more, but"
            f" {len(classes)} came; take more images."
        )

    gaps, errors = class_gaps(z, kinds, classes)
    # Each pair once: places of classes with first < second, (P,)
    first, second = np.triu_indices(len(classes), 1)
    # A gap within its error of 0 would make L = 1 − ĝap / gap arbitrary.
    least = np.maximum(STANDARD_ERRORS * errors, ROUNDING * float(z.abs().max()))
    is_told = (gaps > least)[first, second]
    if not is_told.all():
        notes.append(
            f"{int((~is_told).sum())} pairs of classes are not defined, because B itself does not"
            " tell them apart on these images"
        )
    if not is_told.any():
        raise InputError(
            "B itself tells no two classes apart on these images, so nothing can be lost; are the"
            " classes B's?"
        )
    first, second = first[is_told], second[is_told]
    gap = gaps[first, second]
    # Senders × pairs: A, then the references
    sent_gaps = np.stack(
        [class_gaps(of, kinds, classes)[0][first, second] for of in (sent, *others)]
    )
    # One gap of B serves all senders: differences of L are differences of what arrives.
    losses = 1 - sent_gaps / gap
    relative = losses - np.median(losses, axis=1, keepdims=True)
    # ℓ, not L: what every pair of these nets loses is no finding.
    compared = len(np.unique([first, second]))
    tests = hold_against_references(relative, compared) if len(gap) >= LEAST_PAIRS else {}
    if others and not tests:
        notes.append(
            f"nothing is called of fewer than {LEAST_PAIRS} pairs of classes, since each is held"
            " against the others"
        )
    if not others:
        notes.append(
            "without reference nets the order of the pairs is a rank and no finding: every pair of"
            " nets loses most on difficult classes"
        )
    # Most lost first; stable, so that ties keep the order of the classes.
    order = np.argsort(-(tests["beyond_references"] if tests else relative[0]), kind="stable")
    order = order[:MOST_PAIRS]
    if len(order) < len(gap):
        notes.append(f"the {MOST_PAIRS:,} most lost of {len(gap):,} pairs are described")
    # (2, P'): intervals take a resampling of every pair, so the first ones alone get them.
    described = np.stack([first, second])[:, order[:MOST_INTERVALS]]
    intervals = _intervals(z, sent, kinds, classes, described, resamples, seed)
    numbers = classes.numpy()
    pairs = []
    for place, row in enumerate(order):
        loss = (
            intervals[place]
            if place < len(intervals)
            else _without_interval(
                losses[0, row], f"one of the {MOST_INTERVALS} first alone has one"
            )
        )
        pair = PairLoss(
            first=int(numbers[first[row]]),
            second=int(numbers[second[row]]),
            gap=float(gap[row]),
            sent_gap=float(sent_gaps[0, row]),
            loss=loss,
            relative=float(relative[0, row]),
            **{name: values[row].item() for name, values in tests.items()},
        )
        pairs.append(pair)
    by_class = _by_class(z, sent, others, kinds, classes, losses, (first, second), resamples, seed)
    return Distinctions(
        images=len(z),
        references=len(others),
        pairs=pairs,
        compared_pairs=len(gap),
        classes=by_class,
        margin=margins_of(z, sent).numpy(),
        confidence=z.softmax(1).amax(1).numpy(),
        answers=answers.numpy(),
        notes=notes,
    )


def class_gaps(logits: Tensor, kinds: Tensor, classes: Tensor) -> tuple[Array, Array]:
    """Give gap_cd of every two classes, and its standard error over the images.

    The gap is the mean over class c of z_c − z_d and over class d of z_d − z_c, added up.

    Args:
        logits: float64 (N, K).
        kinds: the images' classes, int64 (N,).
        classes: those that are compared, int64 (n,).

    Returns:
        Two symmetric arrays, float64 (n, n); the diagonals mean nothing.
    """
    means, variances = [], []
    for label in classes:
        members = logits[kinds == label]
        # (n_c, n)
        lead = members[:, [label]] - members[:, classes]  # z_c − z_d of each image of class c
        means.append(lead.mean(0))
        variances.append(lead.var(0) / len(members))
    # Class c's images give z_c − z_d, class d's give z_d − z_c: independent, so variances add.
    mean, variance = (torch.stack(of).numpy() for of in (means, variances))
    return mean + mean.T, np.sqrt(variance + variance.T)


def class_effects(losses: Array, first: Array, second: Array, classes: int) -> Array:
    """Give the effects a of classes in L_cd ≈ μ + a_c + a_d, by least squares with Σ a = 0.

    Args:
        losses: L of P pairs, (P,).
        first: the pairs' classes, int64 (P,), in [0, classes).
        second: the other classes of the pairs.
        classes: n.

    Returns:
        float64 (n,); NaN of a class with fewer than two pairs.
    """
    # The normal equations: each class's pairs are counted by its row of `together`
    together = np.zeros((classes, classes))
    together[first, second] = together[second, first] = 1
    pairs, total = together.sum(1), np.zeros(classes)
    np.add.at(total, first, losses)
    np.add.at(total, second, losses)
    equations = np.block(
        [[np.array([[len(losses)]]), pairs[None]], [pairs[:, None], together + np.diag(pairs)]]
    )
    # Singular: t more for every a and 2 t less for μ change no L. Least squares takes one solution.
    solution = np.linalg.lstsq(equations, np.concatenate([[losses.sum()], total]), rcond=None)[0]
    effects = np.where(pairs >= 2, solution[1:], np.nan)
    return effects - np.nanmean(effects) if (pairs >= 2).any() else effects


def margins_of(z: Tensor, sent: Tensor) -> Tensor:
    """Give max_{k≠b} ẑ_k − ẑ_b at B's answer b, (N,); above 0: g(x) leads B to another answer.

    Args:
        z: B's logits of x*, (N, K).
        sent: B's logits of g(x), (N, K).
    """
    answers = z.argmax(1, keepdim=True)
    return sent.scatter(1, answers, -torch.inf).amax(1) - sent.gather(1, answers)[:, 0]


def _check(logits: Tensor, sent: Sequence[Tensor], labels: Tensor | None) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[1] < 2:
        raise InputError(f"distinctions need logits (N, K) of two classes or more, not {shape}.")
    for other in sent:
        if tuple(other.shape) != shape:
            raise InputError(
                f"the answers through g have shape {tuple(other.shape)}, but B's {shape}: both must"
                " be answers of the same classes to the same images."
            )
    if not all(bool(of.isfinite().all()) for of in (logits, *sent)):
        raise InputError(
            "B's answers hold NaN or infinity, so no gap can be measured; look at B and the features."
        )
    if 1 <= len(sent) - 1 < LEAST_REFERENCES:  # A is sent, too
        raise InputError(
            f"{len(sent) - 1} reference net does not say what is usual; give {LEAST_REFERENCES} or"
            " more, or none."
        )
    if labels is None:
        return
    if labels.shape != shape[:1] or labels.is_floating_point():
        raise InputError(
            f"classes must be an integer for each of {shape[0]} images, not {tuple(labels.shape)}."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= shape[1]:
        raise InputError(
            f"classes must be numbers of B's {shape[1]} logits, from 0, but {int(labels.min())} to"
            f" {int(labels.max())} came; without classes B's answers serve as classes."
        )


def hold_against_references(relative: Array, classes: int) -> Mapping[str, Array]:
    """Hold A's ℓ against that of reference nets, pair by pair.

    Args:
        relative: ℓ, float64 (1 + m, P): A's, then of each reference.
        classes: C, of which the pairs are.

    Returns:
        "beyond_references", "t", "p" and "called" of each pair, (P,); nothing without references.

    Raises:
        InputError: the references send the same.
    """
    senders, pairs = relative.shape
    count = senders - 1
    if not count:
        return {}
    beyond = relative[0] - relative[1:].mean(0)
    # A's ℓ and the mean of m others differ by s √(1 + 1/m) by chance.
    scale = np.sqrt(relative[1:].var(0, ddof=1).mean() * (1 + 1 / count))
    if scale <= ROUNDING:
        raise InputError(
            "the reference nets send the same, so they do not say what differs between seeds; give"
            " nets of other seeds."
        )
    usual = DEVIATIONS * np.median(np.abs(beyond))
    t = beyond / max(scale, usual)
    # Student's survival function: one-sided, P(T ≥ t)
    p = scipy.stats.t.sf(t, (classes - 1) * (count - 1))
    return {"beyond_references": beyond, "t": t, "p": p, "called": p <= LEVEL / pairs}


def _intervals(
    z: Tensor,
    sent: Tensor,
    kinds: Tensor,
    classes: Tensor,
    pairs: Array,
    resamples: int,
    seed: int,
) -> list[Interval]:
    """Give L of some pairs, (2, P) of places in `classes`, with intervals over the images."""
    # Sums of these count a class's images in each resample.
    member = (kinds[:, None] == classes).double().numpy()  # (N, n)
    values, columns = [], classes.numpy()[pairs]
    for of in (z, sent):
        lead = of[:, columns[0]] - of[:, columns[1]]  # z_c − z_d, (N, P)
        # Σ over images of (z_c − z_d) of class c, and of (z_d − z_c) of class d
        values += [member[:, pairs[0]] * lead.numpy(), -member[:, pairs[1]] * lead.numpy()]

    def statistic(counts: Array, leads: Array) -> dict[str, Array]:
        means = [
            leads[..., row, :] / counts[..., pairs[row % 2]] for row in range(4)
        ]  # of z in c and d, then of ẑ
        loss = 1 - (means[2] + means[3]) / (means[0] + means[1])
        return {str(place): loss[..., place] for place in range(pairs.shape[1])}

    intervals = bootstrap(
        statistic, [member, np.stack(values, axis=1)], resamples=resamples, seed=seed
    )
    return list(intervals.values())


def _without_interval(value: float, reason: str) -> Interval:
    return Interval(float(value), None, None, 0.95, "percentile", 0, ("images",), True, reason)


def _by_class(
    z: Tensor,
    sent: Tensor,
    others: Sequence[Tensor],
    kinds: Tensor,
    classes: Tensor,
    losses: Array,
    pairs: tuple[Array, Array],
    resamples: int,
    seed: int,
) -> list[ClassLoss]:
    is_compared = torch.isin(kinds, classes)
    kept = kinds[is_compared]
    lost = [lost_bits(z, of)[is_compared].numpy() for of in (sent, *others)]
    bits = bits_by_class(lost[0], kept, resamples, seed)
    effects = [class_effects(of, *pairs, len(classes)) for of in losses]
    usual = np.mean(effects[1:], axis=0) if others else None
    rows = []
    for place, label in enumerate(classes.tolist()):
        members = (kept == label).numpy()
        mean_of_others = np.mean([of[members].mean() for of in lost[1:]]) if others else None
        mean, effect = bits[label], effects[0][place]
        rows.append(
            ClassLoss(
                label,
                int(members.sum()),
                mean,
                None if mean_of_others is None else float(lost[0][members].mean() - mean_of_others),
                _finite(effect),
                None if usual is None else _finite(effect - usual[place]),
            )
        )
    return rows


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None


def _listed(labels: Sequence[int], most: int = 10) -> str:
    """Name some numbers of classes."""
    text = ", ".join(map(str, labels[:most]))
    return text if len(labels) <= most else f"{text} and {len(labels) - most} more"
