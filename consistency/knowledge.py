"""What B still knows of an image when its feature x* is replaced by g(x): in bits of its answer.

B's frozen tail T gives logits z_i = T(x*_i) and ẑ_i = T(g(x_i)) of held-out images i = 1 … N; its
answers are q_i = softmax z_i and r_i = softmax ẑ_i, and q̄ is the mean of q_i. In bits,

    I_B = mean KL(q_i ‖ q̄)      that B's answer says of the image
    D   = mean KL(q_i ‖ r_i)     that are lost on the way through g
    K   = I_B − D                that arrive: a lower bound of I(x_A; B's answer) (Barber, Agakov 2003)

K_c is K after a temperature and a prior, r'_i = softmax(a ẑ_i + c log q̄), a ≥ 0, have been fitted
on the other half of the images: what is lost by a wrong scale of g alone is no loss of knowledge.

*Beyond the class*: ρ = 1 − D / D_class. D_class pairs q_i with r_j of the other images j that B
answers alike (argmax q), so a sender of B's answer alone has ρ = 0. Whether anything beyond the
class is shared is decided by the permutation p, never by an interval of ρ, whose lower end is above
0 for some 8 % of the senders that know the class alone.

Multi-label nets have one yes-or-no answer for each label: each is a distribution over two outcomes,
so the same sums over 2 C outcomes give the sums of binary entropies and divergences.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from consistency.bootstrap import Interval, bootstrap
from utils.errors import InputError
from utils.later import scipy

LEAST_BITS = 0.1  # of I_B, below which B's answers hardly depend on the image
BLOCK_BYTES = 1 << 22  # of divergences between images of a class that are in memory at one time
FEWEST = 3  # images of a class with numbers of its own: of two, half of the resamples are one image
ROUNDING = 1e-12  # relative: what is smaller is the arithmetic's

Array = NDArray[Any]


@dataclass(frozen=True)
class Knowledge:
    """What arrives of B's answers, with 95 % intervals over the images.

    Attributes:
        images: N.
        numbers: bits "I_B", "D", "K", "K_c" and "D_class"; "share" = K / I_B; "rho" beyond the
            class; "penultimate_r2"; the fractions "agreement" (r and q have one argmax),
            "agreement_A_B" and their difference "decision_recovery". What is not defined has no
            value, but a reason.
        p: of ρ, by permutations of r within the classes of B's answers; None where ρ is not
            defined.
        lost: KL(q_i ‖ r_i) of each image in bits, float64 (N,), in the order of the images.
        lost_by_class: D_c, the mean of these over the images of each class, by the class's number.
        notes: sentences about what cannot be said.
    """

    images: int
    numbers: Mapping[str, Interval]
    p: float | None
    lost: Array
    lost_by_class: Mapping[int, Interval] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __getitem__(self, name: str) -> float:
        """Give a number without its interval; NaN where it is not defined."""
        value = self.numbers[name].value if name in self.numbers else None
        return math.nan if value is None else value

    def report(self) -> dict[str, Any]:
        """Give everything as plain values, for JSON."""
        return {
            "images": self.images,
            "p": self.p,
            **{name: asdict(interval) for name, interval in self.numbers.items()},
            "lost_by_class": {
                str(label): asdict(interval) for label, interval in self.lost_by_class.items()
            },
            "lost_bits": self.lost.tolist(),
            "notes": list(self.notes),
        }


def measure_knowledge(
    logits: Tensor,
    sent_logits: Tensor,
    *,
    labels: Tensor | None = None,
    penultimate: tuple[Tensor, Tensor] | None = None,
    logits_a: Tensor | None = None,
    multi_label: bool = False,
    permutations: int = 1000,
    resamples: int = 1000,
    seed: int = 0,
) -> Knowledge:
    """Measure what B still knows when g(x) stands in for x*.

    Everything is computed in float64 on the CPU. Memory: some copies of the logits, `BLOCK_BYTES`
    for divergences within a class, and what `bootstrap` takes.

    Args:
        logits: z, B's tail on x*, floating (N, C).
        sent_logits: ẑ, B's tail on g(x), (N, C).
        labels: the images' classes, integers (N,), for D_c; of multi-label images none.
        penultimate: what B's last layer reads of x* and of g(x): v and v̂, (N, d) each.
        logits_a: A's answers, (N, C), for the decision recovery.
        multi_label: logits are of C yes-or-no questions; there is no ρ.
        permutations: for p.
        resamples: of the images, for the intervals; 0: none.
        seed: of halves, permutations and resamples.

    Raises:
        InputError: fewer than four images, other shapes, or values that are not finite.
    """
    _check(logits, sent_logits, logits_a, penultimate)
    generator = torch.Generator().manual_seed(seed)
    z, sent = (tensor.detach().double().cpu() for tensor in (logits, sent_logits))
    # Logarithms throughout: they are finite where a softmax is rounded to 0.
    log_q, log_r = (log_answers(tensor, multi_label) for tensor in (z, sent))
    q = log_q.exp()
    answers = _decisions(z, multi_label)
    # KL(q_i ‖ r_i), and below the same after scale and prior of r were fitted on the other half.
    lost = _divergences(q, log_q - log_r)
    # Halves of every class that B answers; multi-label images have no class to keep.
    halves = _halves(answers if not multi_label else torch.zeros(len(z)), generator)
    lost_calibrated = _divergences(q, log_q - calibrate(sent, log_q, halves, multi_label))
    agree = _matches(_decisions(sent, multi_label), answers)

    # Sums over images, each image one row: what the bootstrap resamples.
    # Entropies are in nats: `_numbers` divides by log 2. "D" and its kin are in bits already.
    columns = {"count": torch.ones_like(lost), "entropy": -(q * log_q).sum(1), "D": lost}
    columns |= {"D_calibrated": lost_calibrated, "agreement": agree}
    p = None
    if not multi_label:
        alone, within = class_divergences(log_q, log_r, answers)
        # Images alone in their class have nobody to be compared with: they count in neither sum.
        columns |= {"D_beside": torch.where(alone, 0, lost), "D_class": within}
        columns |= {"together": (~alone).double()}
        if within.sum() > ROUNDING * len(z):
            p = permutation_p(log_q, log_r, answers, permutations, generator)
    if penultimate is not None:
        v, sent_v = (tensor.detach().flatten(1).double().cpu() for tensor in penultimate)
        columns |= {"error": (v - sent_v).square().sum(1)}
        columns |= {"spread": (v - v.mean(0)).square().sum(1)}
    if logits_a is not None:
        of_a = _decisions(logits_a.detach().double().cpu(), multi_label)
        columns |= {"agreement_A_B": _matches(of_a, answers)}
    # (N, columns): q̄ needs the sums of q besides, (N, C).
    rows = torch.stack(list(columns.values()), dim=1)
    names = list(columns)

    def statistic(total: Array, answered: Array) -> dict[str, Array]:
        sums = {name: total[..., place] for place, name in enumerate(names)}
        return _numbers(sums, answered)

    numbers = bootstrap(statistic, [rows.numpy(), q.numpy()], resamples=resamples, seed=seed)
    numbers, notes = _undefined(numbers)
    by_class = {} if labels is None else bits_by_class(lost.numpy(), labels.cpu(), resamples, seed)
    small = 0 if labels is None else len(labels.unique()) - len(by_class)
    if small:
        notes.append(f"{small} classes of fewer than {FEWEST} images have no bits of their own")
    return Knowledge(len(z), numbers, p, lost.numpy(), by_class, notes)


def learned_share(knowledge: Knowledge, untrained: Knowledge) -> float | None:
    """Compute the share of B's bits that A's training brought.

    (K − K₀) / (I_B − K₀), with K₀ = max(0, K_A0) of the untrained A.

    Args:
        knowledge: of the trained A.
        untrained: of A's architecture as it was initialised, with statistics of one pass.

    Returns:
        None where B's answers hardly depend on the image, or an untrained A gives all of them.
    """
    floor = max(0.0, untrained["K"])
    scale = knowledge["I_B"] - floor
    if knowledge["I_B"] < LEAST_BITS or scale <= ROUNDING:
        return None
    return (knowledge["K"] - floor) / scale


def log_answers(logits: Tensor, multi_label: bool = False) -> Tensor:
    """Give the logarithms of B's answers, to base e and not yet to base 2.

    They are float64 (N, C), or (N, 2 C) where every class is a question of its own.
    """
    logits = logits.double()
    if multi_label:
        return torch.cat([F.logsigmoid(logits), F.logsigmoid(-logits)], dim=1)
    return logits.log_softmax(1)


def lost_bits(logits: Tensor, sent_logits: Tensor) -> Tensor:
    """Give KL(softmax z ‖ softmax ẑ) of each image in bits, float64 (N,), of logits (N, C)."""
    log_q, log_r = log_answers(logits), log_answers(sent_logits)
    return _divergences(log_q.exp(), log_q - log_r)


def calibrate(
    sent_logits: Tensor, log_q: Tensor, halves: Tensor, multi_label: bool = False
) -> Tensor:
    """Give log softmax(a ẑ_i + c log q̄), a ≥ 0, (a, c) of each half being fitted on the other.

    The divergence is convex in (a, c), and a = 1, c = 0 leaves ẑ as it is. Of a yes-or-no question
    the prior is the log odds of q̄.

    Args:
        sent_logits: ẑ, (N, C).
        log_q: from `log_answers`, (N, C) or (N, 2 C).
        halves: 0 or 1 of each image, (N,).
        multi_label: see `log_answers`.

    Returns:
        As `log_answers`.
    """
    # log q̄ from logarithms, so that small answers are not rounded to 0
    log_mean = log_q.logsumexp(0) - math.log(len(log_q))
    # The prior of a softmax is log q̄, that of a sigmoid log q̄(yes) − log q̄(no).
    yes, no = log_mean.chunk(2) if multi_label else (log_mean, torch.zeros(()))
    # Both directions have the size of 1, so that one step length serves both.
    scale = float((sent_logits - sent_logits.mean(1, keepdim=True)).square().mean().sqrt()) or 1.0
    prior = (yes - no).expand_as(sent_logits)
    q, result = log_q.exp(), torch.empty_like(log_q)
    for half in (0, 1):
        rows = halves != half
        x, offset, answer = sent_logits[rows] / scale, prior[rows], q[rows]

        # Cross-entropy, which is KL(q ‖ r) but for a constant; L-BFGS needs its gradient, too.
        def loss(values: Array) -> tuple[float, Array]:
            weights = torch.from_numpy(values.copy()).requires_grad_()
            mixed = weights[0] * x + weights[1] * offset  # noqa: B023 — used before the loop goes on
            error = -(answer * log_answers(mixed, multi_label)).sum(1).mean()  # noqa: B023
            error.backward()
            assert weights.grad is not None
            return error.item(), weights.grad.numpy()

        # From a = 1, c = 0: the first one counts in the scaled logits' units.
        fit = scipy.optimize.minimize(
            loss,
            np.array([scale, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None), (None, None)],
            options={"ftol": 1e-15, "gtol": 1e-9},
        )
        a, c = fit.x.tolist()
        mixed = a / scale * sent_logits[~rows] + c * prior[~rows]
        result[~rows] = log_answers(mixed, multi_label)
    return result


def class_divergences(log_q: Tensor, log_r: Tensor, answers: Tensor) -> tuple[Tensor, Tensor]:
    """Give the mean over the other images j of i's class of KL(q_i ‖ r_j), in bits.

    It is linear in log r_j, so the sum of log r over a class stands for all pairs.

    Args:
        log_q: of B's answers, (N, C).
        log_r: of those through g, (N, C).
        answers: argmax of q, integers (N,): the class.

    Returns:
        Which images are alone in their class, bool (N,); the divergences, float64 (N,), 0 for
        these.
    """
    _, kinds, counts = answers.unique(return_inverse=True, return_counts=True)
    totals = torch.zeros(len(counts), log_r.shape[1], dtype=log_r.dtype).index_add_(0, kinds, log_r)
    others = counts[kinds] - 1
    alone = others == 0
    # The mean of log r_j over the other images of the class: each image leaves itself out.
    mean = (totals[kinds] - log_r) / others.clamp(min=1)[:, None]
    return alone, torch.where(alone, 0, _divergences(log_q.exp(), log_q - mean))


def permutation_p(
    log_q: Tensor, log_r: Tensor, answers: Tensor, permutations: int, generator: torch.Generator
) -> float:
    """Test whether r tells images of one class apart: (1 + #{D_perm ≤ D}) / (1 + permutations).

    KL(q_i ‖ r_j) of all images of a class is one product of matrices, from which every permutation
    picks its entries. Memory: `BLOCK_BYTES`, or one row of a class for every permutation.

    Args:
        log_q: of B's answers, (N, C).
        log_r: of those through g, (N, C).
        answers: the classes, integers (N,), within which r is permuted.
        permutations: how many.
        generator: of the CPU.
    """
    q, observed, size = log_q.exp(), 0.0, 0.0
    drawn = torch.zeros(permutations, dtype=torch.float64)  # −Σ q_i · log r_π(i)
    for answer in answers.unique():
        members = (answers == answer).nonzero().flatten()
        block = max(1, BLOCK_BYTES // (8 * len(members)))
        # Blocks of permutations, and of rows below: both bound what is in memory.
        for some in torch.arange(permutations).split(block):
            # To sort random keys is to draw each permutation with one probability.
            keys = torch.rand(len(some), len(members), generator=generator, dtype=torch.float64)
            orders = keys.argsort(1)
            for rows in torch.arange(len(members)).split(block):
                # Cross-entropies of row i and column j; a permutation takes one of each row.
                products = -(q[members[rows]] @ log_r[members].mT)
                drawn[some] += products[torch.arange(len(rows)), orders[:, rows]].sum(1)
        paired = -(q[members] * log_r[members]).sum()
        # `size` is the scale of these sums: what differs by its rounding alone is a tie, and a tie
        # speaks for the null.
        observed, size = observed + paired.item(), size + paired.abs().item()
    # The true pairing counts as one of the permutations, so that p is never 0.
    return (1 + int((drawn <= observed + ROUNDING * size).sum())) / (1 + permutations)


def _check(
    logits: Tensor,
    sent_logits: Tensor,
    logits_a: Tensor | None,
    penultimate: tuple[Tensor, Tensor] | None,
) -> None:
    shape = tuple(logits.shape)
    if len(shape) != 2 or shape[0] < 4 or shape[1] < 1:
        raise InputError(
            f"what B still knows needs its answers (N, C) to at least four images, not {shape}."
        )
    for other, name in ((sent_logits, "through g"), (logits_a, "of net A")):
        if other is not None and tuple(other.shape) != shape:
            raise InputError(
                f"the answers {name} have shape {tuple(other.shape)}, but B's {shape}: "
                "both must be answers of the same classes to the same images."
            )
    if penultimate is not None and (
        penultimate[0].shape != penultimate[1].shape or len(penultimate[0]) != shape[0]
    ):
        raise InputError(
            f"penultimate features of shapes {[tuple(tensor.shape) for tensor in penultimate]} are not "
            f"two of the same layer and of the {shape[0]} images."
        )
    if not all(bool(tensor.isfinite().all()) for tensor in (logits, sent_logits)):
        raise InputError(
            "B's answers hold NaN or infinity, so no bits can be counted; look at B and the"
            " features."
        )


def _divergences(q: Tensor, log_ratio: Tensor) -> Tensor:
    """Give KL of each row in bits; rounding alone makes it negative."""
    return ((q * log_ratio).sum(1) / math.log(2)).clamp(min=0)


def _decisions(logits: Tensor, multi_label: bool) -> Tensor:
    """Give what is answered: the class, int64 (N,), or bool (N, C).

    The second is yes or no to every question.
    """
    return logits > 0 if multi_label else logits.argmax(1)


def _matches(first: Tensor, second: Tensor) -> Tensor:
    """Give the share of an image's answers that are alike, float64 (N,)."""
    same = (first == second).double()
    return same if same.ndim == 1 else same.mean(1)


def _halves(classes: Tensor, generator: torch.Generator) -> Tensor:
    """Give 0 or 1 for each image, int64 (N,), half of every class each, drawn at random."""
    order = torch.randperm(len(classes), generator=generator)
    # Images of a class lie together, in random order: every second one is of the other half.
    order = order[classes[order].argsort(stable=True)]
    halves = torch.empty(len(classes), dtype=torch.int64)
    halves[order] = torch.arange(len(classes)) % 2
    return halves


def _numbers(sums: Mapping[str, Array], answered: Array) -> dict[str, Array]:
    """Compute every number from sums over images (…,) and the sum of B's answers q, (…, C)."""
    count = sums["count"]
    # Where all q of a class underflow: 0 · log(tiny) is 0, and 0 · log 0 would be NaN.
    log_mean = np.log(np.maximum(answered, np.finfo(float).tiny) / count[..., None])
    # I_B = H(mean q) − mean H(q): the mutual information of B's answer and the image, in bits.
    i_b = (-(answered * log_mean).sum(-1) / count - sums["entropy"] / count) / math.log(2)
    lost, calibrated = sums["D"] / count, sums["D_calibrated"] / count
    kept = i_b - lost
    numbers = {"I_B": i_b, "D": lost, "K": kept, "K_c": i_b - calibrated, "share": kept / i_b}
    if "D_class" in sums:
        numbers["D_class"] = sums["D_class"] / sums["together"]
        defined = sums["D_class"] > ROUNDING * count
        # Both are sums over the images that are not alone in their class.
        rho = 1 - sums["D_beside"] / np.where(defined, sums["D_class"], 1)
        numbers["rho"] = np.where(defined, rho, np.nan)
    if "error" in sums:
        numbers["penultimate_r2"] = 1 - sums["error"] / sums["spread"]
    numbers["agreement"] = sums["agreement"] / count
    if "agreement_A_B" in sums:
        numbers["agreement_A_B"] = sums["agreement_A_B"] / count
        numbers["decision_recovery"] = numbers["agreement"] - numbers["agreement_A_B"]
    return numbers


def _undefined(numbers: Mapping[str, Interval]) -> tuple[dict[str, Interval], list[str]]:
    """Say why there is no share, or no ρ."""
    defined, notes = dict(numbers), list[str]()

    def leave_out(name: str, reason: str) -> None:
        fields = asdict(defined[name]) | {
            "value": None,
            "low": None,
            "high": None,
            "reason": reason,
        }
        defined[name] = Interval(**fields)
        notes.append(reason)

    bits = defined["I_B"].value or 0.0
    if bits < LEAST_BITS:
        leave_out("share", f"B's answers hardly depend on the image ({bits:.3f} bit): no share")
    if "rho" in defined and defined["rho"].value is None:
        alone = defined["D_class"].value is None
        why = "no two images" if alone else "all images of a class"
        leave_out("rho", f"{why} have one answer of B: nothing beyond the class can be measured")
    return defined, notes


def bits_by_class(lost: Array, labels: Tensor, resamples: int, seed: int) -> dict[int, Interval]:
    """Give the mean loss of every class, its images resampled; one of too few images is left out."""
    by_class = {}
    for label in labels.unique().tolist():
        members = lost[(labels == label).numpy()]
        if len(members) >= FEWEST:
            mean = bootstrap(_bits, [members / len(members)], resamples=resamples, seed=seed)
            by_class[int(label)] = mean["bits"]
    return by_class


def _bits(total: Array) -> dict[str, Array]:
    return {"bits": total}
