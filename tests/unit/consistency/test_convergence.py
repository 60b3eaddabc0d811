"""Where a fit ends: when doublings change nothing."""

import math

import pytest

from consistency.bootstrap import Interval
from consistency.convergence import AT_END, NOT_AT_END, WIDTH, search


def found(error, *, width=0.1, **options):
    """Search with errors that a function of steps and M gives;
    give what was found and what was tried.
    """
    tried = []

    def measure(steps, hidden):
        tried.append((steps, hidden))
        value = error(steps, hidden)
        return Interval(
            value, value - width / 2, value + width / 2, 0.95, "percentile", 9, ("images",), True
        )

    return search(measure, 100, 8, **options), tried


def test_steps_are_doubled_until_that_changes_less_than_a_tenth_of_the_interval():
    end, tried = found(lambda steps, _: 0.3 + 4 / steps)
    assert tried == [(100, 8), (200, 8), (400, 8), (800, 8), (400, 16)]
    assert (end.steps, end.hidden, end.state) == (400, 8, AT_END)
    assert (end.of_steps, end.of_width) == (pytest.approx(-0.005), 0)
    assert end.tolerance == pytest.approx(0.01) and end.error == pytest.approx(0.31)
    assert [trial.steps for trial in end.trials] == [100, 200, 400, 800, 400]


def test_a_change_that_no_table_shows_is_none():
    end, tried = found(lambda steps, _: 0.3 + 0.1 / steps, width=1e-6)
    # 0.0005, then nothing: 0.001 is the least by default
    assert tried == [(100, 8), (200, 8), (100, 16)] and end.tolerance == 0.001
    end, _ = found(lambda steps, _: 0.3 + 0.1 / steps, width=1e-6, tolerance=2e-4)
    assert end.steps == 400


def test_steps_that_leave_more_are_past_the_end():
    errors = {100: 0.5, 200: 0.3, 400: 0.4, 800: 0.2}
    end, tried = found(lambda steps, _: errors[steps])
    assert (end.steps, end.state, end.of_steps) == (200, AT_END, pytest.approx(0.1))
    assert (800, 8) not in tried and end.error == 0.3


def test_a_tolerance_of_the_user_goes_before():
    end, tried = found(lambda steps, _: 0.3 + 4 / steps, tolerance=0.5)
    assert tried == [(100, 8), (200, 8), (100, 16)] and (end.steps, end.tolerance) == (100, 0.5)


@pytest.mark.parametrize(
    ("gain", "hidden", "state"), [(0.05, 16, WIDTH), (-0.05, 8, AT_END), (0.005, 8, AT_END)]
)
def test_a_wider_fit_is_kept_where_it_leaves_less(gain, hidden, state):
    end, _ = found(lambda _, hidden: 0.3 - gain * (hidden > 8))
    assert (end.hidden, end.state, end.of_width) == (hidden, state, pytest.approx(-gain))


def test_what_never_ends_is_stopped_and_says_so():
    end, tried = found(lambda steps, _: 1 - 0.1 * math.log2(steps), doublings=3)
    assert (end.steps, end.state) == (800, NOT_AT_END)
    assert tried[-1] == (800, 16)


def test_no_spare_channels_are_not_doubled():
    def measure(steps, hidden):
        assert hidden == 0
        return Interval(0.5, 0.4, 0.6, 0.95, "percentile", 9, ("images",), True)

    end = search(measure, 100, 0)
    assert (end.steps, end.state, end.of_width) == (100, AT_END, None)
    assert end.record()["trials"][0] == {
        "steps": 100,
        "hidden": 0,
        "error": 0.5,
        "low": 0.4,
        "high": 0.6,
    }
