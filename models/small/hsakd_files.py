"""HSAKD's files, by the authors' names: of a bare network, one with branches, or an online pair."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from models.small.author_keys import authors_state, load_authors_state
from models.small.auxiliary import NetWithHeads
from models.small.couple import Couple
from models.small.stages import SmallNet
from utils import checkpoint
from utils.errors import InputError

# Keys of the state in a file; a file without them is the state itself.
_STATE_DICTS = ("net", "state_dict", "model")


def to_authors_state(model: nn.Module) -> dict[str, Tensor]:
    """Give a network's state by the authors' names, as their files hold it under "net".

    Args:
        model: a `SmallNet` (names without prefix), `NetWithHeads` (`backbone.`,
            `auxiliary_classifier.`) or `Couple` (`net1.`, `net2.` before these).

    Raises:
        TypeError: any other network.
    """
    if isinstance(model, Couple):
        nets = {"net1.": model.net1, "net2.": model.net2}
        return {
            f"{begin}{key}": value
            for begin, net in nets.items()
            for key, value in authors_state(net).items()
        }
    if isinstance(model, NetWithHeads):
        return authors_state(model)
    if not isinstance(model, SmallNet):
        raise TypeError(f"HSAKD has no names for a {type(model).__name__}")
    named = authors_state(NetWithHeads(model, {}, "hsakd"))
    return {key.removeprefix("backbone."): value for key, value in named.items()}


def fill_from_file(model: nn.Module, path: str | Path) -> checkpoint.State:
    """Fill a network from a file of HSAKD: of this suite, of the authors, or a bare state dict.

    Args:
        model: one of those of `to_authors_state`. A bare network takes the backbone of a file with
            branches.
        path: the file.

    Returns:
        The rest of the file.

    Raises:
        InputError: there is no such file, or it holds another network or other classes.
    """
    stored = checkpoint.load(path)
    state_key = next((key for key in _STATE_DICTS if isinstance(stored.get(key), Mapping)), None)
    state: Mapping[str, Any] = stored if state_key is None else stored[state_key]
    # By what the names of its tensors begin with
    nets = {"net1.": model.net1, "net2.": model.net2} if isinstance(model, Couple) else {"": model}
    for begin, net in nets.items():
        tensors = {
            key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)
        }
        if not all(isinstance(value, Tensor) for value in tensors.values()):
            raise InputError(f"{path} holds no network but {', '.join(map(str, list(state)[:4]))}")
        try:
            load_authors_state(net, tensors)
        except InputError as error:
            raise InputError(
                f"{path} does not hold this network with as many classes: {error}"
            ) from None
    return {key: value for key, value in stored.items() if key != state_key} if state_key else {}


def check_own(path: Path) -> None:
    """Refuse to resume or replace a file of the authors.

    Their optimiser counts parameters in another order.

    Raises:
        InputError: the path is a file without recorded settings.
    """
    if path.exists() and "settings" not in checkpoint.load(path, mmap=True):
        raise InputError(
            f"{path} was not written by HSAKD.py, whose runs alone can go on; measure it by"
            " --evaluate, or choose another --suffix, or --restart to replace it"
        )
