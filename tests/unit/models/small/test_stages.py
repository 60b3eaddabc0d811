import pytest
import torch
from torch import nn

from models.small.stages import (
    Description,
    SmallNet,
    Stage,
    build_head,
    build_net,
    pooled_classifier,
)


class Note(nn.Conv2d):
    """A convolution that knows how it was made."""

    def __init__(self, channels, width, stride):
        super().__init__(channels, width, 3, stride, padding=1)
        self.made = (channels, width, stride)


class First(Note):
    pass


def made(modules):
    return [(type(module).__name__, *module.made) for module in modules]


STAGES = (
    Stage("a", Note, (4, 6)),
    Stage("b", Note, (8, 8, 8), 2, First),
    Stage("c", Note, (10,), 2),
    Stage("d", Note, (12,)),
)
DESCRIPTION = Description(
    stem=lambda: {"conv": nn.Conv2d(3, 5, 1)},
    stem_channels=5,
    stages=STAGES,
    end=pooled_classifier,
    attach=("a", "b", "d"),
)


def test_a_stage_strides_in_its_first_block_and_each_block_takes_the_one_before():
    assert made(STAGES[0].build(5)) == [("Note", 5, 4, 1), ("Note", 4, 6, 1)]
    assert made(STAGES[1].build(6)) == [("First", 6, 8, 2), ("Note", 8, 8, 1), ("Note", 8, 8, 1)]


def test_a_net_is_stem_stages_and_end_by_name():
    net = build_net("net", DESCRIPTION, 7)
    assert isinstance(net, SmallNet) and net.arch == "net"
    assert [name for name, _ in net.named_children()] == [
        "conv",
        "a",
        "b",
        "c",
        "d",
        "pool",
        "flatten",
        "fc",
    ]
    assert net(torch.randn(2, 3, 16, 16)).shape == net(torch.randn(2, 3, 20, 20)).shape == (2, 7)


@pytest.mark.parametrize(
    ("attach", "stages"),
    [
        (
            "a",
            {
                "b": [("First", 6, 8, 2), ("Note", 8, 8, 1), ("Note", 8, 8, 1)],
                "c": [("Note", 8, 10, 2)],
            },
        ),
        ("b", {"c": [("Note", 8, 10, 2)]}),
        # At the end: what follows the attach point before, at stride 1
        ("d", {"c": [("Note", 12, 10, 1)]}),
    ],
)
def test_a_head_repeats_the_rest_of_the_net(attach, stages):
    head = build_head(DESCRIPTION, attach, DESCRIPTION.rest_after(attach), 9)
    children = dict(head.named_children())
    assert list(children) == [*stages, "d", "pool", "flatten", "fc"]
    assert {name: made(children[name]) for name in stages} == stages
    assert made(children["d"]) == [("Note", 10, 12, 1)]
    channels = DESCRIPTION.channels_after(attach)
    assert head(torch.randn(2, channels, 8, 8)).shape == (2, 9)
