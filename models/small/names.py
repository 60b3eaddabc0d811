"""The networks of this room by the names of their authors.

    wrn_D_K                         depth 6n + 4, any width factor: wrn_16_2, wrn_28_10, wrn_16_0.5
    mobilenet, mobilenetK           DCM's; K: all channels divided by it (mobilenet8)
    resnet8 … resnet110             HSAKD's ResNets of 16, 16, 32, 64 channels
    resnet8x4, resnet32x4           the same of 32, 64, 128, 256 channels
    ResNet50                        for 32×32 images (torchvision's is resnet50)
    vgg13_bn_32                     for 32×32 images (torchvision's is vgg13_bn)
    mobilenetV2, ShuffleV1, ShuffleV2
    resnet18_imagenet, 34, 50       torchvision's resnet18, resnet34, resnet50

With heads, HSAKD's `_aux` may follow a name, and `vgg13_bn` is its authors' name of vgg13_bn_32.
"""

import difflib
import functools
import re
from collections.abc import Callable

from models.small.mobilenet import describe_mobilenet, describe_mobilenet_v2
from models.small.resnet import (
    basic,
    bottleneck,
    describe_imagenet_resnet,
    describe_resnet,
    describe_resnet50,
)
from models.small.shufflenet import describe_shufflenet_v1, describe_shufflenet_v2
from models.small.stages import Description
from models.small.vgg import describe_vgg13
from models.small.wrn import describe_wrn
from utils.errors import InputError

_THIN, _FOURFOLD = (16, 16, 32, 64), (32, 64, 128, 256)
_BASIC_WIDTHS, _BOTTLENECK_WIDTHS = (64, 128, 256, 512), (256, 512, 1024, 2048)
_NAMED: dict[str, Callable[[], Description]] = {
    **{
        f"resnet{d}": functools.partial(describe_resnet, d, _THIN)
        for d in (8, 14, 20, 32, 44, 56, 110)
    },
    **{f"resnet{d}x4": functools.partial(describe_resnet, d, _FOURFOLD) for d in (8, 32)},
    "ResNet50": describe_resnet50,
    "vgg13_bn_32": describe_vgg13,
    "mobilenet": describe_mobilenet,
    "mobilenetV2": describe_mobilenet_v2,
    "ShuffleV1": describe_shufflenet_v1,
    "ShuffleV2": describe_shufflenet_v2,
    "resnet18_imagenet": functools.partial(
        describe_imagenet_resnet, basic, _BASIC_WIDTHS, (2, 2, 2, 2)
    ),
    "resnet34_imagenet": functools.partial(
        describe_imagenet_resnet, basic, _BASIC_WIDTHS, (3, 4, 6, 3)
    ),
    "resnet50_imagenet": functools.partial(
        describe_imagenet_resnet, bottleneck, _BOTTLENECK_WIDTHS, (3, 4, 6, 3)
    ),
}
_WRN = re.compile(r"wrn_(\d+)_(\d+(?:\.\d+)?)")
_DIVIDED_MOBILENET = re.compile(r"mobilenet(\d+)")
# Names that a message may propose
NAMES = ("wrn_16_1", "wrn_16_2", "wrn_28_10", "wrn_40_1", "wrn_40_2", *_NAMED)
TAKEN = (  # the networks that DCM and HSAKD take, for messages
    "wrn_DEPTH_WIDTH, resnet8 to resnet110, resnet8x4, resnet32x4, ResNet50, vgg13_bn_32,"
    " mobilenet, mobilenetV2, ShuffleV1, ShuffleV2, resnet18_imagenet, resnet34_imagenet,"
    " resnet50_imagenet"
)
# HSAKD's pairs of equal networks are called X_X, where X is not always the name above.
_ONLINE = {
    "WRN_40_2": "wrn_40_2",
    "WRN_40_1": "wrn_40_1",
    "resnet56": "resnet56",
    "resnet32x4": "resnet32x4",
    "vgg13": "vgg13_bn_32",
    "mbv2": "mobilenetV2",
    "shufflev1": "ShuffleV1",
    "shufflev2": "ShuffleV2",
    "resnet18": "resnet18_imagenet",
}
ONLINE_PAIRS = {f"{name}_{name}": (bare, bare) for name, bare in _ONLINE.items()}


def bare_name(arch: str) -> str:
    """Give the name of the bare network: without `_aux`; vgg13_bn, HSAKD's, as vgg13_bn_32."""
    bare = arch.removesuffix("_aux")
    return "vgg13_bn_32" if bare == "vgg13_bn" else bare


def torchvision_name(arch: str) -> str:
    """Give torchvision's name of an HSAKD network that torchvision has; other names stay."""
    return arch.removesuffix("_imagenet") if arch in _NAMED else arch


def is_small(arch: str) -> bool:
    """Whether a name has the form of a bare network's; its numbers may still be impossible."""
    return arch in _NAMED or bool(_WRN.fullmatch(arch) or _DIVIDED_MOBILENET.fullmatch(arch))


def describe(arch: str) -> Description:
    """Describe the network of a bare name.

    Raises:
        InputError: an unknown name, or one with impossible numbers.
    """
    if arch in _NAMED:
        return _NAMED[arch]()
    if wrn := _WRN.fullmatch(arch):
        return describe_wrn(int(wrn[1]), float(wrn[2]))
    if divided := _DIVIDED_MOBILENET.fullmatch(arch):
        return describe_mobilenet(int(divided[1]))
    near = difflib.get_close_matches(arch, NAMES, n=1, cutoff=0)[0]
    raise InputError(
        f"there is no architecture {arch!r} with heads; the nearest name is {near}, and there are"
        f" {TAKEN}"
    )


def online_pair(arch: str) -> tuple[str, str]:
    """Give the two networks of HSAKD's online pair, such as WRN_40_2_WRN_40_2.

    Raises:
        InputError: an unknown pair.
    """
    if arch not in ONLINE_PAIRS:
        raise InputError(f"there is no pair {arch!r}; the pairs are {', '.join(ONLINE_PAIRS)}")
    return ONLINE_PAIRS[arch]
