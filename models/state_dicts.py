"""Which tensors of a file are a net's, and by which names:
taken only where they fit the net exactly.

Files of training scripts hold several dictionaries, wrappers put pieces before the names
(`module.`, `_orig_mod.`, `model.`) or between them (`features.module.0`), old releases called
layers otherwise. Every reading of a file is a candidate here, the file as it is first, and the net
decides.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from models.author_keys import fold_masks, strip_module
from models.small.author_keys import bare_state
from utils.errors import InputError

State = Mapping[str, Tensor]
# What files call the weights, most wanted first; averages (EMA) are taken where nothing else is
# there.
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
# A first piece of names of which one is taken where others stand beside it, most wanted first.
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
# Auxiliary classifiers of GoogLeNet and Inception, in official files
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")
_COUNTER = "num_batches_tracked"


def state_dicts(stored: Mapping[str, Any], depth: int = 2) -> dict[tuple[str, ...], State]:
    """Find the state dicts in what a file holds.

    Args:
        stored: of `checkpoint.load`.
        depth: how many dictionaries deep they are looked for.

    Returns:
        By the keys that lead to them, most wanted first; () if the file is one itself. Empty if it
        holds none.
    """
    if stored and all(isinstance(value, Tensor) for value in stored.values()):
        return {(): stored}
    inside: dict[tuple[str, ...], State] = {}
    rank = {name: place for place, name in enumerate(_NAMES)}
    for key in sorted(stored, key=lambda key: rank.get(key, len(rank))):
        value = stored[key]
        if (
            depth
            and isinstance(value, Mapping)
            and key not in _NO_NETS
            and all(isinstance(name, str) for name in value)
        ):
            inside |= {(key, *path): state for path, state in state_dicts(value, depth - 1).items()}
    tensors = {
        key: value for key, value in stored.items() if isinstance(value, Tensor) and "." in str(key)
    }
    # The latter: weights with a few numbers beside them
    return inside or ({(): tensors} if tensors else {})


def candidates(state: State, arch: str | None = None) -> Iterator[dict[str, Tensor]]:
    """Give every reading of a state dict, as it is first; some may be equal.

    Args:
        state: of a file.
        arch: the architecture, where this project or torchvision knows it; its old and its authors'
            names count then.
    """
    for unwrapped in _unwrapped(state):
        for plain in _different(unwrapped, strip_module(unwrapped)):
            readings = [plain]
            if arch is not None:
                readings += _different(plain, official_names(plain), bare_state(arch, plain))[1:]
            for reading in readings:
                yield from _different(reading, fold_masks(reading))


def nearest(
    model: nn.Module, states: Mapping[tuple[str, ...], State], arch: str | None = None
) -> tuple[tuple[str, ...], dict[str, Tensor]]:
    """Choose, of a file's state dicts and their readings,
    the one whose names are most nearly a model's.

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
    return min(readings, key=lambda entry: len(wanted ^ _without_counters(entry[1])))


def fill(
    model: nn.Module,
    readings: Iterable[Mapping[str, Tensor]],
    source: str,
    *,
    keep: Iterable[str] = (),
) -> None:
    """Give a model the first reading of a file that fits it exactly, in float32.

    Tied weights stay tied, and buffers that no state dict has keep their values. The batch counters
    of BatchNorm may be missing, as in old files; so may all but one name of a tied weight.

    Args:
        model: changed in place. Where it is on "meta", it takes the tensors themselves, which may
            stay in their file.
        readings: of `candidates`.
        source: what they are of, for messages.
        keep: names of tensors that the model keeps, whatever the file has.

    Raises:
        InputError: none fits; the message has the first name that does not, of the reading that
            comes nearest.
    """
    fewest: list[str] = []
    mine = model.state_dict()
    kept = {name: mine[name] for name in keep}
    assign = any(value.is_meta for value in mine.values() if not nn.parameter.is_lazy(value))
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
    """Name the tensors that have other than `num_classes`
    rows in a reading and would fit else, and their rows.
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
    """Load a reading into a model and say what does not fit; the model is half filled then."""
    mine = model.state_dict()
    misfits = [
        f"{key} is {tuple(reading[key].shape)} instead of {tuple(mine[key].shape)}"
        for key in mine
        if key in reading
        and not nn.parameter.is_lazy(mine[key])
        and reading[key].shape != mine[key].shape
    ]
    tied = _tied(model)
    for names in tied:
        given = [name for name in names if name in reading]
        misfits += [
            f"{given[0]} and {name} are one tensor of the net and two in the file"
            for name in given[1:]
            if not torch.equal(reading[given[0]], reading[name])
        ]
    if misfits:
        return misfits
    floats = {
        key: value.float() if value.is_floating_point() else value for key, value in reading.items()
    }
    try:
        missing, unexpected = model.load_state_dict(floats, strict=False, assign=assign)
    except ValueError:
        # MNASNet asks for the version of the file, which not every file has: it is today's then
        versioned = type(mine)(floats)
        versioned._metadata = getattr(mine, "_metadata", {})  # type: ignore[attr-defined]
        missing, unexpected = model.load_state_dict(versioned, strict=False, assign=assign)
    except RuntimeError as error:  # a net's own way to load
        return [" ".join(str(error).split())]
    for module in model.modules():
        if isinstance(counter := getattr(module, _COUNTER, None), Tensor) and counter.is_meta:
            setattr(module, _COUNTER, torch.tensor(0))
    filled = {name for names in tied if any(name in reading for name in names) for name in names}
    absent = [key for key in missing if not key.endswith(_COUNTER) and key not in filled]
    return [f"{key} is missing" for key in absent] + [f"{key} is unexpected" for key in unexpected]


def _without_counters(state: Iterable[str]) -> set[str]:
    return {name for name in state if not name.endswith(_COUNTER)}


def _tied(model: nn.Module) -> list[list[str]]:
    """List the tensors that have several names, by those names."""
    named = (
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    )
    by_tensor: dict[int, list[str]] = {}
    for name, value in named:
        by_tensor.setdefault(id(value), []).append(name)
    return [names for names in by_tensor.values() if len(names) > 1]


def _unwrapped(state: State) -> Iterator[dict[str, Tensor]]:
    """Give a state dict as it is,
    and what is behind each leading piece that wraps it, also several.
    """
    yield dict(state)
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
    """Read the names of torchvision's official files:
    no auxiliary classifiers, DenseNet's old layers renamed.
    """
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
