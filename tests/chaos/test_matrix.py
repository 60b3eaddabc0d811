"""Every step that writes, under faults: it ends in one sentence, and goes on as if nothing had been."""

from pathlib import Path

import pytest
import torch

from tests.chaos.matrix import FAULTS, Matrix
from tests.chaos.steps import STEPS

pytestmark = pytest.mark.e2e
# Of each step these, and one of the others in turn; all of them by `-m chaos`
ALWAYS = ("SIGTERM", "SIGKILL before fsync or replace", "full disk", "torn newest file")
IN_TURN = [name for name in FAULTS if name not in ALWAYS]
ROUNDS = 7  # as many as sizes of a disk


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    torch.set_num_threads(1)
    return Matrix(Path(tmp_path_factory.mktemp("matrix")))


def check(matrix, name, faults, rounds):
    wrong = []
    for fault in faults:
        for number in rounds:
            counts, sentence = matrix.round(name, fault, number, number)
            wrong += [sentence] * bool(sentence)
            assert sentence or counts["equal"] + counts["refused"] == 1
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_on_to_the_bit_after_a_fault(matrix, name):
    number = list(STEPS).index(name)
    check(matrix, name, [*ALWAYS, IN_TURN[number % len(IN_TURN)]], [number % ROUNDS])


@pytest.mark.chaos
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_on_to_the_bit_after_many_faults(matrix, name, fault):
    check(matrix, name, [fault], range(ROUNDS))
