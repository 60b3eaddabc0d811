"""Whether a fit is at its end: would more steps, or a wider Trans-Net, explain more?

The question is asked of images that the fit has not seen.

The images are held out from the fitted ones, so that those on which an instability is reported
choose nothing. Nets A and B were trained on them, which makes them easier than others: they serve
for changes, and not for levels.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from consistency.bootstrap import Interval

DOUBLINGS = 5  # of the steps, at most
SHARE = 0.1  # of the error's own interval: a change below it is none
LEAST = 0.001  # of Var(x*), the last digit that tables show: nor is one below this
AT_END, WIDTH, NOT_AT_END, UNTRIED = (
    "at its end",
    "width not at its end",
    "not at its end",
    "not tried",
)


@dataclass(frozen=True)
class Trial:
    """A fit to the other images, and what it leaves of those held out.

    Attributes:
        steps: of the optimiser.
        hidden: M, spare channels.
        error: Var(x_Δ)/Var(x*).
        low, high: ends of its 95 % interval over the images.
    """

    steps: int
    hidden: int
    error: float
    low: float
    high: float


@dataclass(frozen=True)
class Convergence:
    """What doublings changed.

    Attributes:
        steps, hidden: what is to be fitted.
        state: `AT_END`; `WIDTH`: more spare channels leave less, and these are the most that were
            tried; `NOT_AT_END`: the last doubling of the steps still left less.
        tolerance: changes below it are none.
        of_steps: what the last doubling of the steps changed, error after − error before; None:
            none was tried.
        of_width: the same of the doubling of M.
        trials: in the order in which they were made.
    """

    steps: int
    hidden: int
    state: str
    tolerance: float
    of_steps: float | None
    of_width: float | None
    trials: tuple[Trial, ...]

    @property
    def error(self) -> float:
        """What a fit with the chosen steps and M leaves of the images held out."""
        return next(
            one.error for one in self.trials if (one.steps, one.hidden) == (self.steps, self.hidden)
        )

    def record(self) -> dict[str, Any]:
        """Give what checkpoints and reports say of it, as plain values."""
        return asdict(self) | {"trials": [asdict(trial) for trial in self.trials]}


def search(
    measure: Callable[[int, int], Interval],
    steps: int,
    hidden: int,
    *,
    tolerance: float | None = None,
    doublings: int = DOUBLINGS,
) -> Convergence:
    """Double the steps until that leaves nothing less, then M once.

    Args:
        measure: steps, M → what such a fit leaves of images that it has not seen.
        steps: to begin with.
        hidden: M; 0 is not doubled.
        tolerance: changes of the error below it are none; None: a tenth of the width of the error's
            interval, but at least 0.001. On few channels or many images the interval alone would
            ask for hours that no table shows.
        doublings: of the steps, at most.

    Returns:
        The fewest steps of which a doubling leaves nothing less, and M, doubled where that leaves
        less.
    """
    trials = list[Trial]()

    def tried(steps: int, hidden: int) -> Trial:
        interval = measure(steps, hidden)
        ends = (interval.value, interval.low, interval.high)
        trials.append(Trial(steps, hidden, *(float("nan") if end is None else end for end in ends)))
        return trials[-1]

    def allowed(trial: Trial) -> float:
        if tolerance is not None:
            return tolerance
        return max(LEAST, SHARE * (trial.high - trial.low))

    # The steps first, at the given width.
    kept, state, change = tried(steps, hidden), NOT_AT_END, None
    for _ in range(doublings):
        doubled = tried(2 * kept.steps, hidden)
        change = doubled.error - kept.error
        # Where more steps leave more, the fit learns its images by heart: its end is passed.
        if change >= -allowed(doubled):
            state = AT_END
            break
        kept = doubled
    # Then the width, once: it counts only if it explains more, not if it changes at all.
    limit, of_width = allowed(kept), None
    if hidden:
        wide = tried(kept.steps, 2 * hidden)
        of_width = wide.error - kept.error
        if of_width < -limit:
            kept, state = wide, WIDTH if state == AT_END else state
    return Convergence(kept.steps, kept.hidden, state, limit, change, of_width, tuple(trials))
