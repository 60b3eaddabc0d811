"""Damaged files of every kind: refused in a sentence, or read as before; never anything else."""

import pytest

from tests.chaos.kinds import KINDS
from tests.chaos.mutations import BAD, count_outcomes

# 44 of each of 23 kinds are 1,012 in all
SEEDS, MANY = range(44), range(1000, 1435)


def check(kind, seeds):
    told = []
    outcomes = count_outcomes(kind, seeds, told.append)
    assert not any(outcomes[name] for name in BAD), "\n".join(told)
    assert outcomes.total() == len(seeds)
    # A reader that refuses nothing, or everything, tests nothing.
    assert outcomes["refused"] or kind.heals


@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_damage_is_refused_or_changes_nothing(kind):
    check(kind, SEEDS)


@pytest.mark.chaos
@pytest.mark.parametrize("kind", KINDS, ids=[kind.name for kind in KINDS])
def test_much_damage_is_refused_or_changes_nothing(kind):
    check(kind, MANY)
