"""The networks of HSAKD's commands: the one that is trained, and its teacher if it has one."""

from pathlib import Path

from torch import nn

from models.classifiers import fix_batch_norm, read_classifier
from models.probe import linear_probe
from models.small.auxiliary import NetWithHeads, build_bare, build_with_heads
from models.small.couple import Couple
from models.small.hsakd_files import fill_from_file
from models.small.names import bare_name, describe, online_pair
from models.small.stages import SmallNet

Networks = tuple[nn.Module, NetWithHeads | None]  # the trained network, its teacher


def baseline(classes: int, arch: str) -> Networks:
    """Build a bare network."""
    return build_bare(bare_name(arch), classes), None


def teacher(classes: int, arch: str, pretrained_backbone: str | Path | None) -> Networks:
    """Build a network with branches; a backbone from a file is frozen, its BatchNorms too."""
    net = build_with_heads(arch, classes, "hsakd")
    if pretrained_backbone is not None:
        fill_from_file(net.backbone, pretrained_backbone)
        net.backbone.requires_grad_(False)
        fix_batch_norm(net.backbone)
    return net, None


def student(classes: int, arch: str, tarch: str, tcheckpoint: str | Path) -> Networks:
    """Build a network with branches, and read its frozen teacher."""
    net, teaching_net = (build_with_heads(name, classes, "hsakd") for name in (arch, tarch))
    fill_from_file(teaching_net, tcheckpoint)
    return net, teaching_net.requires_grad_(False).eval()


def online(classes: int, arch: str) -> Networks:
    """Build the two networks of a pair's name."""
    # Teacher None: each of the two is the other's.
    return Couple(*(build_with_heads(name, classes, "hsakd") for name in online_pair(arch))), None


def probe(classes: int, arch: str, s_path: str | Path) -> Networks:
    """Read a student without its branches, freeze it and give it a new last layer."""
    describe(bare_name(arch))  # raises for a network that HSAKD does not have
    model, _ = read_classifier(s_path, bare_name(arch))
    linear_probe(model, classes)
    return model, None


def bare_arch(model: nn.Module) -> str:
    """Name the bare network of a trained one; of a pair, the first one's."""
    net = model.net1 if isinstance(model, Couple) else model
    backbone = net.backbone if isinstance(net, NetWithHeads) else net
    assert isinstance(backbone, SmallNet)
    return backbone.arch
