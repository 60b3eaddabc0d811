"""The state dict of a net in a file of any origin, taken only where it fits the net exactly.

Files of training scripts hold several dictionaries. Wrappers put pieces before the names
(`module.`, `_orig_mod.`, `model.`) or between them (`features.module.0`). Old releases named layers
differently. So a file has several readings, the file as it is first. The net decides: the first
reading that fits exactly is loaded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.author_keys import fold_masks, strip_module
from models.small.author_keys import bare_state
from utils.errors import InputError

State = Mapping[str, Tensor]
# The keys of weights in files, most wanted first. Averages (EMA) come last: they are taken only
# where a file has nothing else.
_NAMES = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "params",
    "net",
    "net_state_dict",
    "model",
    "network",
    "weights",
    "student",
    "module",
    "state_dict_ema",
    "model_ema",
    "ema",
    "ema_state_dict",
    "params_ema",
)
_NO_NETS = ("optimizer", "optim", "scheduler", "lr_scheduler", "scaler", "amp", "criterion", "loss")
# First pieces of names that wrap one net among others of the file, most wanted first.
_WRAPPERS = (
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "net1",
    "student",
    "backbone",
    "encoder",
    "classifier",
)
# Auxiliary classifiers of GoogLeNet and Inception, in torchvision's files
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# DenseNet's layers in files of torchvision before 0.3: `norm.1` is `norm1` today.
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_COUNTER = "num_batches_tracked"


def state_dicts(stored: Mapping[str, Any], depth: int = 2) -> dict[tuple[str, ...], State]:
    """Find the state dicts in a file's content.

    Args:
        stored: of `checkpoint.load`.
        depth: the number of nested dictionaries that are searched.

    Returns:
        By the keys that lead to them, most wanted first; by () if the file itself is a state dict.
        Empty if the file holds none.
    """
    # Tensors and nothing else: the file itself is the state dict.
    if stored and all(isinstance(value, Tensor) for value in stored.values()):
        return {(): stored}
    inside: dict[tuple[str, ...], State] = {}
    rank = {name: place for place, name in enumerate(_NAMES)}
    # The sort is stable: unknown keys come last, in the file's order.
    for key in sorted(stored, key=lambda key: rank.get(key, len(rank))):
        value = stored[key]
        if (
            depth
            and isinstance(value, Mapping)
            and key not in _NO_NETS
            and all(isinstance(name, str) for name in value)
        ):
            inside |= {(key, *path): state for path, state in state_dicts(value, depth - 1).items()}
    if inside:
        return inside
    # Weights among a few numbers, such as an epoch: the weights' names have dots.
    tensors = {
        key: value for key, value in stored.items() if isinstance(value, Tensor) and "." in str(key)
    }
    return {(): tensors} if tensors else {}


def candidates(state: State, arch: str | None = None) -> Iterator[dict[str, Tensor]]:
    """Give every reading of a state dict, the unchanged one first; some may be equal.

    Args:
        state: of a file.
        arch: the architecture, if it is one of this project or torchvision; older names and the
            authors' names of its tensors are then read, too.
    """
    for unwrapped in _unwrapped(state):
        for plain in _different(unwrapped, strip_module(unwrapped)):
            readings = [plain]
            if arch is not None:
                # Each translation repeats `plain` as its first, which is among the readings
                # already.
                readings += _different(plain, official_names(plain), bare_state(arch, plain))[1:]
            for reading in readings:
                yield from _different(reading, fold_masks(reading))


def nearest(
    model: nn.Module, states: Mapping[tuple[str, ...], State], arch: str | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Choose the reading, of all state dicts of a file, whose names are nearest to a model's.

    Args:
        model: the network.
        states: of `state_dicts`.
        arch: see `candidates`.

    Returns:
        The keys that lead to the state dict, and the reading; the most wanted of equal ones.
    """
    wanted = _without_counters(model.state_dict())
    readings = [
        (key, reading) for key, state in states.items() for reading in candidates(state, arch)
    ]
    # The fewest names that only one of both has; `min` takes the first of equals.
    return min(readings, key=lambda entry: len(wanted ^ _without_counters(entry[1])))


def fill(
    model: nn.Module,
    readings: Iterable[Mapping[str, Tensor]],
    source: str,
    *,
    keep: Iterable[str] = (),
) -> None:
    """Give a model the first reading of a file that fits it exactly, in float32.

    Tied weights stay tied. Buffers outside the state dict keep their values. The batch counters of
    BatchNorm may be missing, as in old files; so may all but one name of a tied weight.

    Args:
        model: changed in place. A model on "meta" takes the tensors themselves, which may stay
            mapped to their file.
        readings: of `candidates`.
        source: the file, for messages.
        keep: names of tensors that the model keeps, whatever the file has.

    Raises:
        InputError: none fits. The message names tensors of the nearest reading that do not.
    """
    fewest: list[str] = []
    current = model.state_dict()
    kept = {name: current[name] for name in keep}
    # Tensors on "meta" have no memory to copy into: assign those of the file.
    assign = any(value.is_meta for value in current.values() if not nn.parameter.is_lazy(value))
    for reading in readings:
        misfits = _load(model, {**reading, **kept}, assign=assign)
        if not misfits:
            return
        if not fewest or len(misfits) < len(fewest):
            fewest = misfits
    shown = ", ".join(fewest[:4]) + (f" and {len(fewest) - 4} more" if len(fewest) > 4 else "")
    raise InputError(f"{source} does not fit {type(model).__name__}: {shown}")


def of_other_classes(
    model: nn.Module, reading: Mapping[str, Tensor], num_classes: int
) -> dict[str, int]:
    """Name the tensors whose first axis alone does not fit, because of another number of classes.

    Args:
        model: of `num_classes` classes.
        reading: of a file.
        num_classes: C.

    Returns:
        By name, the reading's number of classes: the length of the tensor's first axis.
    """
    return {
        name: len(reading[name])
        for name, value in model.state_dict().items()
        if name in reading
        and not nn.parameter.is_lazy(value)
        and value.ndim == reading[name].ndim > 0
        and len(value) == num_classes != len(reading[name])
        and value.shape[1:] == reading[name].shape[1:]
    }


def _load(model: nn.Module, reading: Mapping[str, Tensor], *, assign: bool) -> list[str]:
    """Load a reading into a model.

    Returns:
        What does not fit, in words; the model may then be filled in part. Empty where all fits.
    """
    current, tied = model.state_dict(), _tied(model)
    misfits = [
        f"{key} is {tuple(reading[key].shape)} instead of {tuple(current[key].shape)}"
        for key in current
        if key in reading
        and not nn.parameter.is_lazy(current[key])
        and reading[key].shape != current[key].shape
    ]
    # Shapes and ties are compared before anything is loaded: a misfit leaves the model as it was.
    misfits += _untied(tied, reading)
    if misfits:
        return misfits
    floats = {
        key: value.float() if value.is_floating_point() else value for key, value in reading.items()
    }
    try:
        missing, unexpected = model.load_state_dict(floats, strict=False, assign=assign)
    except ValueError:
        # MNASNet asks for the file's version of its format: a file without one is today's.
        versioned = type(current)(floats)
        versioned._metadata = getattr(current, "_metadata", {})  # type: ignore[attr-defined]
        missing, unexpected = model.load_state_dict(versioned, strict=False, assign=assign)
    except RuntimeError as error:  # a net may have its own way to load
        return [" ".join(str(error).split())]
    # Counters that the file lacks are still on "meta" after an assignment: begin them at 0.
    for module in model.modules():
        if isinstance(counter := getattr(module, _COUNTER, None), Tensor) and counter.is_meta:
            setattr(module, _COUNTER, torch.tensor(0))
    # One name of a tied weight fills all of them.
    filled = {name for names in tied if any(name in reading for name in names) for name in names}
    absent = [key for key in missing if not key.endswith(_COUNTER) and key not in filled]
    return [f"{key} is missing" for key in absent] + [f"{key} is unexpected" for key in unexpected]


def _untied(tied: Iterable[Sequence[str]], reading: Mapping[str, Tensor]) -> list[str]:
    """Say which tensors are one in the net, by several names, and differ in a reading."""
    misfits = []
    for names in tied:
        present = [name for name in names if name in reading]
        misfits += [
            f"{present[0]} and {name} are one tensor of the net and two in the file"
            for name in present[1:]
            if not torch.equal(reading[present[0]], reading[name])
        ]
    return misfits


def _without_counters(state: Iterable[str]) -> set[str]:
    """Give a state dict's names without BatchNorm's batch counters, which old files lack."""
    return {name for name in state if not name.endswith(_COUNTER)}


def _tied(model: nn.Module) -> list[list[str]]:
    """List the names of each tensor that has several."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    by_tensor: dict[int, list[str]] = {}
    # Duplicates were asked for: else a tied weight would be listed once.
    for name, value in named:
        by_tensor.setdefault(id(value), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _unwrapped(state: State) -> Iterator[dict[str, Tensor]]:
    """Give a state dict as it is, and without each leading piece that may wrap a net.

    Wrappers may be nested: `module._orig_mod.conv1.weight` is unwrapped twice.
    """
    yield dict(state)
    # Where all names begin with one piece, that may be any word; among others, a usual wrapper.
    firsts = dict.fromkeys(key.partition(".")[0] for key in state if "." in key)
    wrappers = list(firsts) if len(firsts) == 1 else [name for name in _WRAPPERS if name in firsts]
    for wrapper in wrappers:
        inside = {
            key.removeprefix(f"{wrapper}."): state[key]
            for key in state
            if key.startswith(f"{wrapper}.")
        }
        yield from _unwrapped(inside)


def official_names(state: State) -> dict[str, Tensor]:
    """Translate torchvision's files: drop auxiliary classifiers, rename DenseNet's old layers."""
    return {
        _OLD_DENSENET.sub(r"\1\2", key): value
        for key, value in state.items()
        if not key.startswith(_AUXILIARY)
    }


def _different(
    first: Mapping[str, Tensor], *others: Mapping[str, Tensor]
) -> list[dict[str, Tensor]]:
    """Give the first dictionary and those others that differ from it in names or in tensors."""
    return [
        dict(first),
        *(
            dict(other)
            for other in others
            if other.keys() != first.keys() or any(other[key] is not first[key] for key in other)
        ),
    ]
