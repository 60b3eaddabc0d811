"""The answer of a comparison in three to six sentences, made from its numbers.

Each comes with what it may not be read as.

A sentence never claims an order that its intervals do not have: numbers whose intervals overlap
are "not told apart", and a consistency whose interval reaches 0 is "not told from" what the class
alone gives.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from utils.report.results import Cell, Result

LEAST_KNOWN = 2  # classes that a sentence names
SMALL = 0.05  # of p
WAYS = ("forth", "back")  # A → B and B → A
AT_END = "at its end"  # of a fit, as its record says it


class Sentence(NamedTuple):
    """A sentence of the answer, and what it may not be read as."""

    text: Cell
    limit: str


class Ends(NamedTuple):
    """A number with the ends of its interval; without one, all three are the number."""

    value: float
    low: float
    high: float

    def overlaps(self, other: "Ends") -> bool:
        """Whether the intervals leave open which number is larger."""
        return self.low <= other.high and other.low <= self.high

    def inside(self, low: float, high: float) -> "Ends":
        """Give what of it lies between two ends of an axis."""
        return Ends(*(min(high, max(low, end)) for end in self))


def ends(result: Result, *path: str | int) -> Ends | None:
    """Read a number, which is an interval's record or a plain number; None where it is undefined."""
    record = result.get(*path)
    # An interval's record, or a plain number whose ends are itself.
    if isinstance(record, dict):
        value, low, high = (record.get(name) for name in ("value", "low", "high"))
    else:
        value, low, high = record, None, None
    if value is None:
        return None
    return Ends(value, value if low is None else low, value if high is None else high)


def estimate(
    result: Result, *path: str | int, form: str = ".2f", unit: float = 1, bare: bool = False
) -> Cell:
    """Give a number as it is read: 0.57 [0.55, 0.58].

    Its interval is behind it where it has one; a bare number has none.
    """
    if not isinstance(result.get(*path), dict):
        return result.value(*path, form=form, unit=unit)
    value = result.value(*path, "value", form=form, unit=unit)
    if bare or result.get(*path, "low") is None:
        return value
    return [value, " ", result.interval(*path, form=form, unit=unit)]


def answer(result: Result) -> list[Sentence]:
    """Give the answer of a comparison of two nets.

    Args:
        result: of Compare.py.

    Returns:
        Sentences, the most important first: whether anything changed or was trained, what each net
        has of the other at the deepest pair, by a linear layer and by Trans-Nets where they were
        fitted, where most and least is shared, what B still knows or
        which classes it is about, which distinctions are least shared, and what the nets answer.
    """
    rows = range(len(result.get("pairs")))
    sentences: list[Sentence | None] = [*_exceptions(result)]
    # The deepest pair first: it is nearest to their decisions.
    if rows:
        sentences += [_deepest(result, rows[-1]), _by_trans_nets(result, rows[-1])]
        sentences += [*_by_depth(result, rows)]
        sentences += [_bits(result, rows[-1]) or _classes(result, rows[-1])]
        sentences += [_distinctions(result)]
    sentences += [_answers(result)]
    return [sentence for sentence in sentences if sentence is not None]


def closing(result: Result) -> Cell:
    """Say what every number of the page is about, and what none of them is."""
    a, b = names(result)
    return [
        f"All of this is of these two nets, {a} and {b}, and of ",
        result.value("images", "held_out", form=","),
        " images that nothing was fitted to. Intervals say what other images would give. They do not"
        " say what the same recipe gives from another seed.",
    ]


def names(result: Result) -> tuple[str, str]:
    """Give what the first two nets are called in sentences."""
    first, second = (str(net["name"]) for net in result.get("nets")[:2])
    return first, second


def layer(result: Result, row: int, side: str) -> str:
    """Name one side's layer of a pair as a sentence does: "the end of stage 3", "layer fc1"."""
    stage, name = (result.get("pairs", row, side, key) for key in ("stage", "layer"))
    return f"layer {name}" if stage is None else f"the end of stage {stage}"


def pair_label(result: Result, row: int) -> str:
    """Name a pair of layers briefly, for axes and tables: "stage 3", "conv2 → conv4"."""
    sides = [result.get("pairs", row, side) for side in ("a", "b")]
    stages = [side.get("stage") for side in sides]
    if None not in stages and stages[0] == stages[1]:
        return f"stage {stages[0]}"
    first, second = (
        side["layer"] if stage is None else f"stage {stage}" for side, stage in zip(sides, stages)
    )
    return first if first == second else f"{first} → {second}"


def _exceptions(result: Result) -> Iterator[Sentence]:
    """Say first what changes the meaning of every other sentence."""
    a, b = names(result)
    weights = result.get("weights")
    same = {
        "equal": f"{a} and {b} have equal weights: nothing changed between them.",
        "equal but for rounding": (
            f"The weights of {a} and {b} differ by no more than rounding does: nothing changed"
            " between them."
        ),
    }
    if weights in same:
        yield Sentence(
            f"{same[weights]} What follows should find that all is shared, and tests the method"
            " more than the nets.",
            "Equal weights do not mean equal preparation of images: normalisation is no weight.",
        )
    # A net that seems untrained was remarked when its answers were counted.
    remarks = [result.get("nets", row, "remarks") or () for row in (0, 1)]
    untrained = [
        name for name, of in zip((a, b), remarks) if any("untrained" in remark for remark in of)
    ]
    if untrained:
        who, verb = " and ".join(untrained), "seem" if len(untrained) > 1 else "seems"
        yield Sentence(
            f"{who} {verb} untrained, or trained on other classes.",
            "What an untrained net shares is what random features of its form allow; it learned"
            " none of it.",
        )


def _deepest(result: Result, row: int) -> Sentence:
    """Say what each net has of the other at a pair of layers."""
    consistent = [ends(result, "pairs", row, way, "consistency") for way in WAYS]
    if None in consistent:
        return _unnormalised(result, row)
    a, b = names(result)
    explained = "the class explains" if has_classes(result) else "images in another order give"
    forth, back = (_amount(result, "pairs", row, way, "consistency") for way in WAYS)
    same = layer(result, row, "a") == layer(result, row, "b")
    text = [
        *(a, " has ", forth, " of what ", b, " computes at ", layer(result, row, "b")),
        f", beyond what {explained}; the other way, {b} has ",
        *(
            back,
            " of what ",
            a,
            " computes ",
            *(["there"] if same else ["at ", layer(result, row, "a")]),
            ". ",
        ),
        _compared(consistent, (a, b)),
    ]
    by = _family(result, row)
    limit = (
        f"It is the share that {by} from one net's features to the other's. 0 would mean nothing"
        f" beyond what {explained}, not nothing at all."
    )
    return Sentence(text, limit)


def _amount(result: Result, *path: str | int) -> Cell:
    """Give a consistency as an amount: what is below 0 is nothing, with the number in brackets."""
    number, interval = estimate(result, *path), ends(result, *path)
    return ["nothing (", number, ")"] if interval and interval.value < 0 else number


def _by_trans_nets(result: Result, row: int) -> Sentence | None:
    """Say what solved Trans-Nets carry at a pair of layers, and how far they were fitted."""
    paths: list[tuple[str | int, ...]] = [("pairs", row, way, "trans_net") for way in WAYS]
    if any(ends(result, *path, "consistency") is None for path in paths):
        return None
    a, b = names(result)
    forth, back = (_amount(result, *path, "consistency") for path in paths)
    gains = [_gain(result, row, way) for way in WAYS]
    layers = result.value(*paths[0], "fit", "layers")
    text: list[Any] = [
        *("Trans-Nets of ", layers, f" layers carry {a} → {b} ", forth, f" and {b} → {a} "),
        *(back, "; of the variance they explain "),
        *(gains[0], " and ", gains[1], " more than the linear layers do."),
    ]
    unfinished = [
        (name, str(result.get(*path, "fit", "record", "state")))
        for name, path in zip((f"{a} → {b}", f"{b} → {a}"), paths)
        if result.get(*path, "fit", "record", "state") != AT_END
    ]
    if unfinished:
        text += [" ", "; ".join(f"{name}: {state}" for name, state in unfinished)]
        text += [", so that a longer fit or a wider Trans-Net may explain more."]
    return Sentence(
        text,
        "Each is held against a fit of its own budget to pairs within the class. A fit is a lower"
        " bound of what a map of this form carries.",
    )


def _gain(result: Result, row: int, way: str) -> Cell:
    """Give what the last depth of a spectrum explains more than the depth before."""
    last = len(result.get("pairs", row, way, "spectrum")) - 1
    return estimate(result, "pairs", row, way, "spectrum", last, "intervals", "gain", form="+.3f")


def _compared(consistent: Sequence[Ends | None], who: tuple[str, str]) -> str:
    """Say which way is the larger, or that these images cannot tell."""
    forth, back = (way or Ends(0, 0, 0) for way in consistent)
    # An interval that reaches 0 claims nothing, so it is in no order either.
    zero = [name for way, name in zip((forth, back), who) if way.low <= 0]
    if zero:
        return f"What {' and what '.join(zero)} has of the other is not told from 0."
    if forth.overlaps(back):
        return "These images do not tell the two ways apart."
    more, less = who if forth.value > back.value else who[::-1]
    return f"So {more} has more of {less} than {less} has of {more}."


def _unnormalised(result: Result, row: int) -> Sentence:
    """Say what is left unexplained where there is no null or it is no use."""
    a, b = names(result)
    instability = [estimate(result, "pairs", row, way, "instability", form=".3f") for way in WAYS]
    text: list[Any] = [
        *(f"From {a}'s features, {_map(result, row)} leaves ", instability[0]),
        *(f" of the variance of {b}'s at ", layer(result, row, "b"), "; the other way "),
        *(instability[1], ". "),
    ]
    if ends(result, "pairs", row, "forth", "floor") is not None:
        floor = result.value("pairs", row, "forth", "floor", form=".3f")
        text += ["The class alone would leave ", floor, f" of {b}'s. "]
    reason = result.get("pairs", row, "forth", "consistency", "reason")
    if result.get("pairs", row, "forth", "null") is None:
        limit = (
            "Nulls were left out: what pairs that share nothing would leave is not known, so a small"
            " rest is not yet shared knowledge."
        )
    else:
        limit = f"It could not be held against its null ({reason or 'its number is undefined'})."
    return Sentence(text, limit)


def _by_depth(result: Result, rows: range) -> Iterator[Sentence]:
    """Say where most and where least is shared."""
    # One whose interval is not defined is in no order.
    shared = {
        row: interval
        for row in rows
        if (interval := ends(result, "pairs", row, "shared"))
        and result.get("pairs", row, "shared", "low") is not None
    }
    if len(shared) < 2:
        return
    # Their order is claimed only where their intervals do not overlap.
    most, least = (pick(shared, key=lambda row: shared[row].value) for pick in (max, min))
    limit = "Shared is the smaller of both ways. "
    if result.get("pairs", rows[-1], "forth", "null") is None:
        limit += "Nulls were left out: what the class means explain stands in their place."
    else:
        limit += "A fall with depth is no fault of a layer: each is held against a null of its own."
    numbers = [estimate(result, "pairs", row, "shared") for row in (most, least)]
    places = [pair_label(result, row) for row in (most, least)]
    if shared[most].value == shared[least].value:
        text: Cell = [f"All {len(shared)} pairs of layers share the same, ", numbers[0], "."]
    elif shared[most].overlaps(shared[least]):
        text = [
            *(f"{len(shared)} pairs of layers share from ", numbers[1], f" at {places[1]} to "),
            *(numbers[0], f" at {places[0]}; these images do not tell them apart."),
        ]
    else:
        text = [
            *(f"Of {len(shared)} pairs of layers, most is shared at {places[0]}, ", numbers[0]),
            *(f", and least at {places[1]}, ", numbers[1], "."),
        ]
    yield Sentence(text, limit)


def _bits(result: Result, row: int) -> Sentence | None:
    """Say what arrives of B's answers when B's own layers read what A gives."""
    path = ("pairs", row, "forth", "knowledge")
    if ends(result, *path, "kept_bits") is None:
        return None
    a, b = names(result)
    # Bits that are next to none have no share, and what is lost of them is in no order.
    if result.get(*path, "share") is not None and ends(result, *path, "share") is None:
        return Sentence(
            [
                f"{b}'s answers hardly depend on the image: they say ",
                estimate(result, *path, "bits"),
                " bits of it, and what arrives of them says nothing.",
            ],
            "A net whose answers do not depend on the image is untrained, or was trained badly.",
        )
    text: list[Any] = [
        *(f"Seen by {b}'s own layers, ", estimate(result, *path, "kept_bits"), " of "),
        *(estimate(result, *path, "bits", bare=True), f" bits arrive of what {b}'s answer says"),
        f" of an image, through what {a} has at {layer(result, row, 'a')}",
    ]
    p = result.get(*path, "p")
    # A test that does not reject: agreement in the class is all that is shown.
    if p is not None and p > SMALL:
        text += ["; nothing beyond the class is shown (p = ", result.value(*path, "p", form=".2g")]
        text += [")"]
    lost = {
        number: interval
        for number in range(len(result.get(*path, "per_class") or ()))
        if (interval := ends(result, *path, "per_class", number, "lost_bits"))
    }
    text += _least_known(result, (*path, "per_class"), lost, "lost_bits", " bits lost")
    limit = (
        f"Bits of {b}'s answers, right or wrong: they are no accuracy, and a net with other answers"
        " may know as much."
    )
    return Sentence([*text, "."], limit)


def _classes(result: Result, row: int) -> Sentence | None:
    """Say within which classes least of B is reconstructed."""
    path = ("pairs", row, "per_class")
    unexplained = {
        number: interval
        for number in range(len(result.get(*path) or ()))
        if (interval := ends(result, *path, number, "forth_unexplained"))
    }
    consistency = ends(result, "pairs", row, "forth", "consistency")
    if len(unexplained) <= LEAST_KNOWN or (consistency and consistency.low <= 0):
        return None
    most, least = (
        pick(unexplained.values(), key=lambda interval: interval.value) for pick in (max, min)
    )
    if most.overlaps(least):
        return None
    a, b = names(result)
    text = _least_known(result, path, unexplained, "forth_unexplained", " unexplained")
    limit = (
        "Classes whose intervals overlap are not told apart, and each was measured on few images."
    )
    if not isinstance(result.get(*path, 0, "forth_unexplained"), dict):
        limit = (
            "The classes' numbers have no intervals: small differences between them mean nothing."
        )
    return Sentence(
        [f"Within the images of a class, {a} explains {b}'s features unevenly", *text, "."], limit
    )


def distinction_place(result: Result, way: str) -> tuple[str | int, ...] | None:
    """Give where the distinctions of a way are, at the last pair of layers that has them."""
    for row in reversed(range(len(result.get("pairs")))):
        if result.get("pairs", row, way, "distinctions"):
            return ("pairs", row, way, "distinctions")
    return None


def _distinctions(result: Result) -> Sentence | None:
    """Say which classes a net does not tell apart as the other does, or which are least shared."""
    a, b = names(result)
    called_pairs, ranked = list[Any](), list[Any]()
    for way, sender, receiver in zip(WAYS, (a, b), (b, a)):
        place = distinction_place(result, way)
        if place is None or not result.get(*place, "pairs"):
            continue
        pairs = result.get(*place, "pairs")
        called = [number for number, pair in enumerate(pairs) if pair.get("called")]
        # Without reference nets nothing is called, and the order alone is said
        listed: list[Any] = []
        for number in (called or range(len(pairs)))[:LEAST_KNOWN]:
            loss = estimate(result, *place, "pairs", number, "loss")
            first, second = (pairs[number][key] for key in ("first", "second"))
            listed += [" and " if listed else "", f"{first} from {second} (", loss, ")"]
        if called:
            called_pairs.append(
                [f"{receiver} tells ", *listed, f" apart in a way that {sender} does not"]
            )
        elif result.get(*place, "references"):
            called_pairs.append(
                [f"{receiver} is shown to tell no pair of classes apart that {sender} does not"]
            )
        else:
            ranked.append([*listed, f" on the way from {sender} to {receiver}"])
    texts: list[Any] = []
    if called_pairs:
        texts += [*_joined(called_pairs), "."]
    if ranked:
        texts += [" "] if called_pairs else []
        texts += ["Least shared distinctions: ", *_joined(ranked)]
        texts += ["; a rank, no finding without reference nets."]
    if not texts:
        return None
    limit = "In brackets the share of the gap between the two classes that is lost."
    if called_pairs:
        limit += (
            " Calls are held against reference nets. A linear map was asked: another map may carry"
            " more."
        )
    if ranked:
        limit += " Any two nets lose most on difficult classes."
    return Sentence(texts, limit)


def _joined(texts: Sequence[Sequence[Any]]) -> list[Any]:
    """Put semicolons between clauses."""
    return [cell for number, text in enumerate(texts) for cell in [*["; "] * bool(number), *text]]


def _least_known(
    result: Result, path: tuple[str | int, ...], losses: dict[int, Ends], name: str, unit: str
) -> list[Any]:
    """Name the classes of the largest losses."""
    worst = sorted(losses, key=lambda number: -losses[number].value)[:LEAST_KNOWN]
    text: list[Any] = ["; least known: "] if worst else []
    for place, number in enumerate(worst):
        loss = estimate(result, *path, number, name)
        text += [", " if place else "", str(result.get(*path, number, "class")), " (", loss]
        text += [unit, ")"]
    return text


def _answers(result: Result) -> Sentence | None:
    """Say how often the nets answer alike, and whether one is right more often."""
    if ends(result, "answers", "agreement") is None:
        return None
    a, b = names(result)
    percent: dict[str, Any] = {"form": ".1f", "unit": 100.0}
    alike = estimate(result, "answers", "agreement", **percent)
    text: list[Any] = [f"{a} and {b} answer alike on ", alike, " % of the images"]
    flips = [ends(result, "answers", name) for name in ("negative_flips", "positive_flips")]
    p = result.get("answers", "mcnemar_p")
    if p is not None and flips[0] and flips[1]:
        negative, positive = (
            estimate(result, "answers", name, **percent)
            for name in ("negative_flips", "positive_flips")
        )
        text += [f"; {b} is wrong where {a} is right on ", negative, " %, and right where "]
        text += [f"{a} is wrong on ", positive, " %. "]
        better = b if flips[1].value > flips[0].value else a
        undecided = "Which of them is right more often is not told"
        text += [f"{better} is right more often" if p < SMALL else undecided]
        text += [" (McNemar's exact test, p = ", result.value("answers", "mcnemar_p", form=".2g")]
        text += [")"]
    return Sentence(
        [*text, "."],
        "Equal answers need no equal features, and other features no other answers.",
    )


def has_classes(result: Result) -> bool:
    """Whether the images have classes that a null can hold fixed."""
    return len(result.get("images", "classes") or ()) > 1


def _map(result: Result, row: int) -> str:
    linear = result.get("pairs", row, "forth", "fit", "family") in (None, "linear")
    return "a linear map" if linear else "a Trans-Net"


def _family(result: Result, row: int) -> str:
    linear = result.get("pairs", row, "forth", "fit", "family") in (None, "linear")
    return "a linear map carries" if linear else "Trans-Nets carry"
