"""Every step that writes, under faults: it ends in one sentence, and goes on as if nothing had been."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch

from tests.chaos.matrix import FAULTS, Matrix
from tests.chaos.steps import STEPS

pytestmark = pytest.mark.e2e
# Of each step these, and one of the others in turn; all of them by `-m chaos`
ALWAYS = ("SIGTERM", "SIGKILL before fsync or replace", "full disk", "torn newest file")
IN_TURN = [name for name in FAULTS if name not in ALWAYS]
ROUNDS = 7  # as many as sizes of a disk


_matrices: list[Matrix] = []  # of the process that forks


@pytest.fixture(scope="module")
def forking():
    """A process that forks: this one may have gone backward, and PyTorch refuses its forks."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


def rounds_of(place, name, faults, numbers):
    """Give what is counted of each round, and what is wrong with it."""
    if not _matrices:
        torch.set_num_threads(1)
        _matrices.append(Matrix(place))
    return [_matrices[0].round(name, fault, one, one) for fault in faults for one in numbers]


def check(forking, tmp_path_factory, name, faults, numbers):
    place = tmp_path_factory.mktemp("matrix")
    rounds = forking.submit(rounds_of, place, name, faults, numbers).result()
    wrong = [sentence for _, sentence in rounds if sentence]
    assert not wrong, "\n".join(wrong)
    assert all(counts["equal"] + counts["refused"] == 1 for counts, _ in rounds)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_on_to_the_bit_after_a_fault(forking, tmp_path_factory, name):
    number = list(STEPS).index(name)
    faults = [*ALWAYS, IN_TURN[number % len(IN_TURN)]]
    check(forking, tmp_path_factory, name, faults, [number % ROUNDS])


@pytest.mark.chaos
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", STEPS)
def test_a_step_goes_on_to_the_bit_after_many_faults(forking, tmp_path_factory, name, fault):
    check(forking, tmp_path_factory, name, [fault], range(ROUNDS))
