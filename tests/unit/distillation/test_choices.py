"""The words of the options against the networks that they name."""

from distillation import choices
from models.small import names


def test_the_pairs_are_those_of_the_networks():
    assert tuple(names.ONLINE_PAIRS) == choices.PAIRS


def test_the_words_for_networks_are_those_of_the_networks():
    assert choices.NETS == names.TAKEN
