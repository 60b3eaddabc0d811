import dataclasses

import torch
from torch import nn

from utils.data.batches import Preprocessing, normalise
from utils.features.live import read_live


def test_both_features_are_computed_of_the_same_normalised_photos(cpu):
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    heads = {name: nn.Conv2d(3, channels, 3) for name, channels in (("head_a", 4), ("head_b", 5))}
    x, target = read_live(pixels, torch.zeros(2), torch.arange(2), **heads, preprocess=Preprocessing(), runtime=cpu)
    images = normalise(pixels)
    assert torch.equal(x, heads["head_a"](images)) and torch.equal(target, heads["head_b"](images))
    assert not x.requires_grad


def test_features_leave_autocast_as_float32(cpu):
    runtime = dataclasses.replace(cpu, amp_dtype=torch.bfloat16)
    head = nn.Conv2d(3, 4, 3)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    x, _ = read_live(pixels, head_a=head, head_b=head, preprocess=Preprocessing(), runtime=runtime)
    assert x.dtype == torch.float32 and torch.equal(x, x.bfloat16().float())  # computed in bfloat16
    assert not torch.is_autocast_enabled("cpu")
