import dataclasses

import torch
from torch import nn

from utils.data.images import load_images
from utils.features.live import live_source, read_live
from utils.normalisation import NORMALISATIONS
from utils.pixels import FromPixels, normalise
from utils.provenance import NetSource, Provenance


def test_both_features_are_computed_of_the_same_photos_each_by_its_own_constants(cpu):
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    heads = {name: nn.Conv2d(3, channels, 3) for name, channels in (("head_a", 4), ("head_b", 5))}
    constants = NORMALISATIONS["imagenet"], NORMALISATIONS["cifar10"]
    wrapped = {
        name: FromPixels(head, of_net) for (name, head), of_net in zip(heads.items(), constants)
    }
    x, target = read_live(pixels, torch.zeros(2), torch.arange(2), **wrapped, runtime=cpu)
    for feature, head, of_net in zip((x, target), heads.values(), constants):
        assert torch.equal(feature, head(normalise(pixels, *of_net)))
    assert not x.requires_grad


def test_features_leave_autocast_as_float32(cpu):
    runtime = dataclasses.replace(cpu, amp_dtype=torch.bfloat16)
    head = nn.Conv2d(3, 4, 3)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    head = FromPixels(head, NORMALISATIONS["half"])
    x, _ = read_live(pixels, head_a=head, head_b=head, runtime=runtime)
    assert x.dtype == torch.float32 and torch.equal(x, x.bfloat16().float())  # computed in bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_images_and_two_heads_are_a_source_that_says_what_it_is(cpu, photos):
    images = load_images("folder", "val", data_root="nowhere", image_size=16, path=photos / "val")
    heads = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 5, 3)
    nets = NetSource("alexnet", "features.0"), NetSource("resnet18", "conv1")
    readers = [FromPixels(head, images.normalisation) for head in heads]
    source = live_source(
        images, nets, readers, ((4, 14, 14), (5, 14, 14)), cpu, dataset="folder", label="0"
    )
    x, target = source.read(*images.__getitems__([3, 1]))
    normalised = images.preprocessing()(images.decode([3, 1]))
    assert torch.equal(x, heads[0](normalised)) and torch.equal(target, heads[1](normalised))
    assert source.provenance == Provenance(
        *nets,
        dataset="folder",
        split="val",
        classes=images.classes,
        transform=images.decoding_record,
    )
    assert source.provenance.label == "0" and source.folder is None and source.data is images
    assert torch.equal(source.reversed().read(*images.__getitems__([3, 1]))[0], target)
