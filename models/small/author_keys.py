"""The names of DCM's and HSAKD's state dicts, translated from and to those of this room.

A DCM state holds a WRN's tensors in one flat dict, with `ep1_` and `ep2_` before the heads'. An
HSAKD state has `backbone.…` and `auxiliary_classifier.…`, whose branches number their modules.
WRN, VGG, MobileNetV2 and ResNet50 also have a few other names inside. Batch counters of BatchNorm
may be absent; DCM's WRN has none.
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

# Patterns on this suite's key and their replacements, applied in this order
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
        (r"^group(\d)\.", lambda match: f"block{int(match[1]) + 1}."),
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
    "mobilenetV2": ((r"^row(\d)\.", lambda match: f"blocks.{int(match[1]) - 1}."),),
    "ResNet50": ((r"\bdownsample\.", "shortcut."),),
}
# Modules of an HSAKD branch that stand outside its numbered list, by their authors' names
_OUTSIDE = {"fc": "fc", "linear": "fc", "classifier": "fc"}
_OUTSIDE_OF = {"wrn_": {"bn": "bn"}, "mobilenetV2": {"conv2": "conv2_"}}


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
        names = authors_keys(net)
        translated = {key: tensors[name] for key, name in names.items() if name in tensors}
        # Keep unknown tensors too, so that they are refused below.
        translated |= {name: tensors[name] for name in tensors.keys() - set(names.values())}
    elif isinstance(net, SmallNet):
        translated = bare_state(net.arch, tensors)
    else:
        translated = backbone_alone(tensors)
    shapes = {key: value.shape for key, value in net.state_dict().items()}
    misfits = [key for key in shapes if key not in translated and not key.endswith(_COUNTER)]
    misfits += [
        key for key, value in translated.items() if key not in shapes or value.shape != shapes[key]
    ]
    if misfits:
        raise InputError(
            "the state does not fit the network: missing, unknown or of another shape"
            f" {misfits[:4]}"
        )
    net.load_state_dict(translated, strict=False)


def authors_state(net: NetWithHeads) -> dict[str, Tensor]:
    """Give a network's state dict by the authors' names, as their files hold it."""
    names = authors_keys(net)
    return {names[key]: value for key, value in net.state_dict().items() if key in names}


def authors_keys(net: NetWithHeads) -> dict[str, str]:
    """Give the authors' name of each tensor of a network with heads.

    DCM's WRN has no names for batch counters.
    """
    arch, heads = net.backbone.arch, list(net.heads)
    names = {}
    for key in net.state_dict():
        # "backbone.conv1.weight", or "heads.layer1.0.conv1.weight" of the head on layer1
        side, _, tensor = key.partition(".")
        if side == "heads":
            attach, _, tensor = tensor.partition(".")
            number = heads.index(attach) + 1
            head = net.heads[attach]
            assert isinstance(head, nn.Sequential)
            if net.method == "dcm":
                names[key] = _renamed(f"ep{number}_{tensor}", _dcm_renames(arch))
            else:
                names[key] = f"auxiliary_classifier.{_in_branch(arch, head, number, tensor)}"
        elif net.method == "dcm":
            names[key] = _renamed(tensor, _dcm_renames(arch))
        else:
            names[key] = f"backbone.{_renamed(tensor, _hsakd_renames(arch))}"
    return {key: name for key, name in names.items() if not _is_unnamed(key, arch, net.method)}


def bare_state(arch: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the bare network's tensors of a state dict of any origin, by this suite's names.

    Args:
        arch: the network's name. Of a network outside this room only the heads are dropped.
        state: of this suite, DCM or HSAKD. If it fits none of them, its names stay, for the caller
            to refuse.
    """
    alone = backbone_alone(state)
    if not is_small(arch):
        return alone
    # The names of the net's tensors are wanted, not weights.
    with torch.device("meta"):
        keys = list(build_net(arch, describe(arch), 1).state_dict())
    # Whose names these are shows by all of them being there.
    for renames in (_hsakd_renames(arch), _dcm_renames(arch)):
        names = {key: _renamed(key, renames) for key in keys}
        if all(name in alone or key.endswith(_COUNTER) for key, name in names.items()):
            translated = {key: alone[name] for key, name in names.items() if name in alone}
            unknown = alone.keys() - set(names.values())
            return translated | {key: value for key, value in alone.items() if key in unknown}
    return alone


def backbone_alone(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Drop the heads of a state dict; of HSAKD's online pair (`net1.…`, `net2.…`) take net 1."""
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
    """Give the authors' name of a tensor."""
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
    """Whether the authors' files lack a tensor: DCM's WRN counts no batches."""
    return method == "dcm" and arch.startswith("wrn_") and key.endswith(_COUNTER)


def _in_branch(arch: str, head: nn.Sequential, number: int, key: str) -> str:
    """Name a tensor of HSAKD's branch `number`: `block_extractor1.0.…`, or outside of it `fc1.…`.

    Args:
        arch: the network's name.
        head: the branch.
        number: of the branch, from 1.
        key: this suite's name of the tensor, inside the branch.
    """
    child, _, rest = key.partition(".")
    outside = _OUTSIDE | next(
        (names for beginning, names in _OUTSIDE_OF.items() if arch.startswith(beginning)), {}
    )
    if child in outside:
        return f"{outside[child]}{number}.{rest}"
    renames = _hsakd_renames(arch)
    # Patterns match whole keys: rename first, then take the child's name off.
    inside = _renamed(key, renames).removeprefix(_renamed(f"{child}.", renames))
    index = [name for name, _ in head.named_children()].index(child)
    # VGG's branches also number the pooling before a block and the ReLU after it.
    if arch.startswith("vgg13"):
        stages = list(head)[: index + 1]
        index = 2 * index + sum(hasattr(stage[0], "pool") for stage in stages)  # type: ignore[index]
    return f"block_extractor{number}.{index}.{inside}"
