"""The names of DCM's and HSAKD's state dicts, from and to those of the networks of this room.

A DCM state holds a WRN's tensors in one flat dict, its heads' behind `ep1_` and `ep2_`. An HSAKD
state has `backbone.…` and `auxiliary_classifier.…`, whose branches count their parts. The rest is a
few other names inside WRN, VGG, MobileNetV2 and ResNet50. Batch counters of BatchNorm may be
absent, DCM's WRN has none.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.author_keys import strip_module
from models.small.auxiliary import NetWithHeads
from models.small.names import describe, is_small
from models.small.stages import SmallNet, build_net
from utils.errors import InputError

# Patterns on our key, replaced in this order
Renames = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
_COUNTER = "num_batches_tracked"
_DCM_WRN: Renames = (
    (r"^((?:ep\d_)?group\d)\.(\d+)\.", r"\1.block\2."),
    (r"\bconv1\.weight$", "conv0"),
    (r"\bconv2\.weight$", "conv1"),
    (r"\bshortcut\.weight$", "convdim"),
    (r"\bbn1\.", "bn0."),
    (r"\bbn2\.", "bn1."),
)
_HSAKD: dict[str, Renames] = {  # by the beginning of the architecture's name
    "wrn_": (
        (r"^group(\d)\.", lambda found: f"block{int(found[1]) + 1}."),
        (r"^(block\d)\.(\d+)\.", r"\1.layer.\2."),
        (r"\bshortcut\.", "convShortcut."),
        (r"^bn\.", "bn1."),
    ),
    "vgg13": (
        (r"\.0\.conv\.", ".0."),
        (r"\.0\.bn\.", ".1."),
        (r"\.1\.conv\.", ".3."),
        (r"\.1\.bn\.", ".4."),
    ),
    "mobilenetV2": ((r"^row(\d)\.", lambda found: f"blocks.{int(found[1]) - 1}."),),
    "ResNet50": ((r"\bdownsample\.", "shortcut."),),
}
# Parts of an HSAKD branch that are not counted with its other parts but stand beside it under these
# names.
_BESIDE = {"fc": "fc", "linear": "fc", "classifier": "fc"}
_BESIDE_OF = {"wrn_": {"bn": "bn"}, "mobilenetV2": {"conv2": "conv2_"}}


def load_authors_state(net: nn.Module, state: Mapping[str, Any]) -> None:
    """Fill a network with a state dict of DCM or HSAKD.

    Args:
        net: of `build_with_heads`; or a bare network of this room, which takes the backbone alone.
        state: the tensors (or arrays) by the authors' names, of any floating dtype; batch counters
            may be absent.

    Raises:
        InputError: the state does not fit.
    """
    tensors = strip_module({key: torch.as_tensor(value) for key, value in state.items()})
    if isinstance(net, NetWithHeads):
        theirs = authors_keys(net)
        own = {mine: tensors[name] for mine, name in theirs.items() if name in tensors}
        own |= {name: tensors[name] for name in tensors.keys() - set(theirs.values())}
    else:
        own = (
            bare_state(net.arch, tensors) if isinstance(net, SmallNet) else backbone_alone(tensors)
        )
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    misfits = [key for key in shapes if key not in own and not key.endswith(_COUNTER)]
    misfits += [key for key in own if key not in shapes or own[key].shape != shapes[key]]
    if misfits:
        raise InputError(
            "the state does not fit the network: missing, unknown or of another shape"
            f" {misfits[:4]}"
        )
    net.load_state_dict(own, strict=False)


def authors_state(net: NetWithHeads) -> dict[str, Tensor]:
    """Give a network's state dict by the authors' names, as their files hold it."""
    names = authors_keys(net)
    return {names[key]: value for key, value in net.state_dict().items() if key in names}


def authors_keys(net: NetWithHeads) -> dict[str, str]:
    """Give the authors' name of each tensor of a network with heads;
    DCM's WRN has none for batch counters.
    """
    arch, heads = net.backbone.arch, list(net.heads)
    names = {}
    for key in net.state_dict():
        part, _, rest = key.partition(".")
        if part == "heads":
            attach, _, rest = rest.partition(".")
            number = heads.index(attach) + 1
            head = net.heads[attach]
            assert isinstance(head, nn.Sequential)
            if net.method == "dcm":
                names[key] = _renamed(f"ep{number}_{rest}", _dcm_renames(arch))
            else:
                names[key] = f"auxiliary_classifier.{_in_branch(arch, head, number, rest)}"
        elif net.method == "dcm":
            names[key] = _renamed(rest, _dcm_renames(arch))
        else:
            names[key] = f"backbone.{_renamed(rest, _hsakd_renames(arch))}"
    return {key: name for key, name in names.items() if not _is_unnamed(key, arch, net.method)}


def bare_state(arch: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the bare network's part of a state dict, ours, DCM's or HSAKD's, by our names.

    What fits none of them comes back as it is, for the caller to refuse. For any other network than
    this room's, `backbone_alone`.
    """
    alone = backbone_alone(state)
    if not is_small(arch):
        return alone
    with torch.device("meta"):
        own = build_net(arch, describe(arch), 1).state_dict()
    for renames in (_hsakd_renames(arch), _dcm_renames(arch)):
        theirs = {key: _renamed(key, renames) for key in own}
        if all(name in alone or key.endswith(_COUNTER) for key, name in theirs.items()):
            known = set(theirs.values())
            unknown = {key: value for key, value in alone.items() if key not in known}
            return {key: alone[name] for key, name in theirs.items() if name in alone} | unknown
    return alone


def backbone_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the heads of a state dict; of HSAKD's online pair,
    which has `net1.…` and `net2.…`, take net 1.
    """
    if any(key.startswith("net1.") for key in state):
        state = {
            key.removeprefix("net1."): value
            for key, value in state.items()
            if key.startswith("net1.")
        }
    if any(key.startswith("backbone.") for key in state):
        return {
            key.removeprefix("backbone."): value
            for key, value in state.items()
            if key.startswith("backbone.")
        }
    return {key: value for key, value in state.items() if not key.startswith(("ep1_", "ep2_"))}


def _renamed(key: str, renames: Renames) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _dcm_renames(arch: str) -> Renames:
    return _DCM_WRN if arch.startswith("wrn_") else ()


def _hsakd_renames(arch: str) -> Renames:
    return next(
        (renames for beginning, renames in _HSAKD.items() if arch.startswith(beginning)), ()
    )


def _is_unnamed(key: str, arch: str, method: str) -> bool:
    return method == "dcm" and arch.startswith("wrn_") and key.endswith(_COUNTER)


def _in_branch(arch: str, head: nn.Sequential, number: int, key: str) -> str:
    """Name a tensor of HSAKD's branch `number`: block_extractor1.0.…, or beside it fc1.…"""
    child, _, rest = key.partition(".")
    beside = _BESIDE | next(
        (names for beginning, names in _BESIDE_OF.items() if arch.startswith(beginning)), {}
    )
    if child in beside:
        return f"{beside[child]}{number}.{rest}"
    renames = _hsakd_renames(arch)
    inside = _renamed(key, renames).removeprefix(_renamed(f"{child}.", renames))
    index = [name for name, _ in head.named_children()].index(child)
    # Their branches count the pooling before a block and the ReLU after it, too
    if arch.startswith("vgg13"):
        stages = list(head)[: index + 1]
        index = 2 * index + sum(hasattr(stage[0], "pool") for stage in stages)  # type: ignore[index]
    return f"block_extractor{number}.{index}.{inside}"
