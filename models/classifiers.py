"""Classifiers by name: torchvision's, the small ones,
foreign ones; fine-tuning forms; and the files that hold them.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.author_keys import is_authors_trans_net
from models.inputs import preprocessing_of
from models.logits import give_logits, initialise_lazy, last_linear, logits_layer, replace_linear
from models.own import build_foreign, is_foreign, is_own, is_timm, named_arch
from models.small import names
from models.small.auxiliary import build_bare
from models.state_dicts import (
    candidates,
    fill,
    nearest,
    of_other_classes,
    official_names,
    state_dicts,
)
from utils import checkpoint
from utils.errors import InputError
from utils.later import torchvision
from utils.provenance import same_arch
from utils.remarks import remark

# torchvision's ImageNet weights of these two expect inputs scaled to [-1, 1]. With
# `transform_input` always on, a checkpoint need not say whether its network began with those
# weights.
_INCEPTION_OPTIONS = {"aux_logits": False, "transform_input": True}
_OPTIONS = {"googlenet": _INCEPTION_OPTIONS, "inception_v3": _INCEPTION_OPTIONS}
_USUAL_CLASSES = 10  # of a foreign net, until its file says how many it has


def build(
    arch: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    train_layer: int = 34,
    image_size: int | None = None,
) -> nn.Module:
    """Build a classifier, images (N, 3, S, S) → logits (N, num_classes), on the CPU.

    A name that ends in `_ft` (VGG, AlexNet and ResNets) is a fine-tuning form: its layers below
    `train_layer` hold ImageNet weights and are frozen, the rest is initialised anew. As in the
    authors' release, frozen parameters have no gradient, while frozen BatchNorms follow the
    network's mode (`fix_batch_norm` holds them).

    Args:
        arch: a torchvision classification model, or one with `_ft` appended, a network of
            `models.small.names`, or a foreign one (`models.own`). If a foreign one has another
            number of logits, its last layer is initialised anew for `num_classes`, if it is a plain
            linear layer, and this is said.
        num_classes: the length of the logits.
        pretrained: begin with torchvision's IMAGENET1K_V1 weights (`_ft` always does), or with
            timm's.
        weights: begin with this file instead: a state dict or a checkpoint, ours or anybody's. If
            it is for another number of classes, the last layer is initialised anew, and this is
            said; all else must fit.
        train_layer: for `_ft`, the first layer of `features` (VGG, AlexNet) that is trained. A VGG
            that has no such layer, as vgg16 with the default, trains its last seven, the last
            block; the ResNets always train from layer3 on.
        image_size: S, pixels; a foreign net is tried on such images, else on a size that it takes.

    Raises:
        InputError: an unknown name, a foreign net of other logits, weights that do not fit or
            cannot be had.
    """
    model = _structure(arch, num_classes, train_layer, pretrained=pretrained and weights is None)
    if is_foreign(arch):
        count = _with_classes(model, arch, num_classes, image_size, said=True)
        if count not in (None, num_classes):
            raise InputError(
                f"{arch} gives {count} logits, {num_classes} are expected, and its last layer is no"
                " plain linear layer that a new one could replace; write a factory that takes"
                " num_classes"
            )
    base = _base(arch)
    if weights is not None:
        source, known = str(weights), None if is_foreign(arch) else base
        _, state, reading = _choose(model, checkpoint.load(weights), source, known)
        readings = candidates(state, known)
    elif (pretrained and not is_timm(arch)) or arch != base:
        source, reading = f"torchvision's {base}", _imagenet_weights(base)
        readings = iter([reading])
    else:
        return model

    if arch != base:
        frozen = tuple(f"{name}." for name in _frozen_layers(model, train_layer))
        fill(
            model,
            readings,
            source,
            keep=[key for key in model.state_dict() if not key.startswith(frozen)],
        )
        return model
    anew = of_other_classes(model, reading, num_classes)
    fill(model, readings, source, keep=anew)
    if anew:
        layers = ", ".join(dict.fromkeys(key.rpartition(".")[0] for key in anew))
        remark(
            f"{source} is of {max(anew.values())} classes, these are {num_classes}: {layers} is new"
        )
    return model


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm that always normalises with its running statistics and never updates them."""

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Stay in evaluation mode, whatever mode the network around it enters."""
        return super().train(False)


def fix_batch_norm(model: nn.Module) -> None:
    """Fix the running statistics of all BatchNorm layers of a model,
    in place; scale and shift are trained on.

    The layers become `FixedBatchNorm2d` and so stay in evaluation mode after `model.train()`, in
    copies and under DataParallel. Names in the state dict do not change.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Not a new module in its place: whoever already holds this one, as a head or tail does,
            # sees it fixed.
            module.__class__ = FixedBatchNorm2d
            module.eval()


def classifier_record(arch: str, num_classes: int, train_layer: int = 34) -> dict[str, Any]:
    """Give what a checkpoint stores under "model" so that `load_classifier` needs no flags;
    arguments as `build`'s.
    """
    return {"arch": arch, "num_classes": num_classes, "train_layer": train_layer}


def load_classifier(
    path: str | Path, arch: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """Load a classifier; the model of `read_classifier`."""
    return read_classifier(path, arch, num_classes)[0]


def read_classifier(
    path: str | Path, arch: str | None = None, num_classes: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint and rebuild its classifier on the CPU, in evaluation mode and float32.

    The file is a checkpoint of ours or of the authors (`epoch`, `arch`, `state_dict`, …; masks of a
    compressed net are folded into the weights), a file of DCM (`params`) or HSAKD (`net`, `model`),
    whose heads are dropped, one of another training script, or a bare state dict
    (`models.state_dicts`). Of HSAKD's online pair net 1 is taken.

    Of a network that this project or torchvision builds, only what is used of the file is read,
    when it is used: its tensors stay mapped, the optimiser's too. Changes go to memory, never to
    the file; the file may be replaced meanwhile, as `checkpoint.save` does, but not be overwritten
    in place. PyTorch 1.0's format is read whole.

    Args:
        path: the file.
        arch: the architecture that is expected. Needed where the file does not say its own, and for
            a user's own code (`models.own.named_arch`). With and without `_ft` is the same
            architecture; what is frozen is as the file says.
        num_classes: the number of classes that is expected, if it matters.

    Returns:
        The model and the rest of the checkpoint (without `state_dict`), with "model" as
        `classifier_record` gives it, and with "inputs" where the model carries what its images are
        (`models.inputs.Inputs`).

    Raises:
        InputError: the file is missing, damaged, holds something else, or not what is expected.
    """
    stored = checkpoint.load(path, mmap=True)
    record = _record(stored, arch)
    if "trans_net" in stored or any(map(is_authors_trans_net, state_dicts(stored).values())):
        raise InputError(f"{path} holds a Trans-Net, a classifier is expected")
    if record["arch"] is None:
        raise InputError(f"{path} does not say its architecture; give it with --arch")
    if arch is not None and not same_arch(_base(arch), _base(record["arch"])):
        raise InputError(f"checkpoint {path} holds a {record['arch']}, --arch says {arch}")
    held, train_layer = named_arch(record["arch"], arch, path), record.get("train_layer", 34)
    foreign = is_foreign(held)
    known = None if foreign else _base(held)
    image_size = _image_size(stored)

    with torch.random.fork_rng(devices=[]):  # what is drawn is replaced
        guess = (record.get("num_classes") or num_classes or _USUAL_CLASSES) if foreign else 1
        model, count = _uninitialised(held, guess, train_layer, image_size)
        key, state, reading = _choose(model, stored, path, known)
        classes = set(of_other_classes(model, reading, count).values())
        if len(classes) == 1:
            model, count = _uninitialised(held, classes.pop(), train_layer, image_size)
        fill(model, candidates(state, known), str(path))
    if num_classes is not None and count != num_classes:
        raise InputError(
            f"{path} holds a classifier of {count} classes, {num_classes} are expected"
        )
    if name := checkpoint.first_not_finite(model.state_dict()):
        raise InputError(
            f"{path} holds a net that diverged: {name} is not finite; use an earlier checkpoint"
        )
    rest = {name: value for name, value in stored.items() if name != key[0]} if key else {}
    rest["model"] = classifier_record(held, count, train_layer)
    if (carried := preprocessing_of(model)) is not None:
        rest["inputs"] = carried
    return model.eval(), rest


def check_reloads(model: nn.Module, record: Mapping[str, Any], image_size: int) -> None:
    """Refuse to train a foreign network whose checkpoint could not be read afterwards.

    Args:
        model: the network.
        record: of `classifier_record`.
        image_size: S, pixels.

    Raises:
        InputError: its state dict holds more than tensors, or another network of its factory does
            not take it.
    """
    arch = record["arch"]
    if not is_foreign(arch):
        return
    state = model.state_dict()
    if odd := [key for key, value in state.items() if not isinstance(value, Tensor)]:
        raise InputError(
            f"a checkpoint of {arch} could not be read again: {odd[0]} of its state_dict is a "
            f"{type(state[odd[0]]).__name__}, tensors are expected"
        )
    with torch.random.fork_rng(devices=[]):
        again, _ = _uninitialised(arch, record["num_classes"], record["train_layer"], image_size)
        try:
            fill(again, candidates(state), "its checkpoint")
        except InputError as error:
            raise InputError(
                f"{arch} makes another network each time it is called: {error}"
            ) from None


def _record(stored: Mapping[str, Any], arch: str | None) -> dict[str, Any]:
    """Give what a file says of its classifier,
    as `classifier_record` does; what it does not say is as `arch`.

    A training script of others may call its architecture by any name, so an option that names a
    foreign one is right against it.
    """
    record = stored.get("model")
    if isinstance(record, Mapping) and isinstance(record.get("arch"), str):
        return dict(record)
    held = stored.get("arch")
    if not isinstance(held, str) or (arch is not None and is_foreign(arch) and not is_own(held)):
        held = arch
    return {"arch": held}


def _image_size(stored: Mapping[str, Any]) -> int | None:
    """Give the size of the images that a checkpoint of ours says it was trained on."""
    data = stored.get("data")
    return data.get("image_size") if isinstance(data, Mapping) else None


def _choose(
    model: nn.Module, stored: Mapping[str, Any], path: str | Path, known: str | None
) -> tuple[tuple[str, ...], Mapping[str, Tensor], dict[str, Tensor]]:
    """Choose the state dict of a file for a model, and say so where it holds several.

    Args:
        model: the network.
        stored: what the file holds.
        path: the file.
        known: see `candidates`.

    Returns:
        The keys that lead to it, the state dict, and the reading of it that comes nearest.

    Raises:
        InputError: it holds none.
    """
    states = state_dicts(stored)
    if not states:
        raise InputError(
            f"{path} holds neither a state_dict nor weights alone, but"
            f" {', '.join(map(str, list(stored)[:4]))}"
        )
    key, reading = nearest(model, states, known)
    if len(states) > 1:
        remark(
            f"{path} holds {', '.join('.'.join(other) for other in states)}; {'.'.join(key)} is"
            " taken"
        )
    return key, states[key], reading


def _structure(
    arch: str, num_classes: int, train_layer: int, *, pretrained: bool = False
) -> nn.Module:
    """Build a classifier with random weights; for `_ft`, freeze what is not trained."""
    base = names.torchvision_name(_base(arch))
    if is_foreign(arch):
        return build_foreign(arch, num_classes, pretrained=pretrained)
    known = torchvision.models.list_models(module=torchvision.models)
    if names.is_small(base):
        model: nn.Module = build_bare(base, num_classes)
    elif base in known:
        options = {**_OPTIONS[base], "init_weights": True} if base in _OPTIONS else {}
        model = torchvision.models.get_model(base, num_classes=num_classes, **options)
    else:
        near = difflib.get_close_matches(base, [*known, *names.NAMES], n=1, cutoff=0)[0]
        raise InputError(f"there is no architecture {arch!r}; the nearest name is {near}")
    if arch != base:
        for name in _frozen_layers(model, train_layer):
            model.get_submodule(name).requires_grad_(False)
    return model


def _with_classes(
    model: nn.Module, arch: str, num_classes: int, image_size: int | None, *, said: bool = False
) -> int | None:
    """Let a foreign net give its logits alone,
    `num_classes` of them if its last layer can be exchanged; in place.

    Args:
        model: the network.
        arch: how it is called.
        num_classes: the wanted length of the logits.
        image_size: see `give_logits`.
        said: say that a layer is new, as nothing from a file will take its place.

    Returns:
        Their length; None where it cannot be seen.
    """
    initialise_lazy(model, image_size)
    count = give_logits(model, arch, num_classes, image_size)
    if (
        count in (None, num_classes)
        or (name := last_linear(model, num_classes, image_size)) is None
    ):
        return count
    replace_linear(model, name, num_classes)
    if said:
        remark(
            f"{arch} gives {count} logits, {num_classes} are expected: {name}, {count} →"
            f" {num_classes}, is new"
        )
    return num_classes


def _base(arch: str) -> str:
    """Give the architecture's name without what says how it is fine-tuned."""
    return arch if is_foreign(arch) else arch.removesuffix("_ft")


def _uninitialised(
    arch: str, num_classes: int, train_layer: int, image_size: int | None
) -> tuple[nn.Module, int]:
    """Give the structure without spending seconds on weights that a file will replace,
    and its number of classes.

    A foreign net is built with values all the same: code of others may ask for them, and buffers
    that no file has must be right.
    """
    if is_foreign(arch):
        model = _structure(arch, num_classes, train_layer)
        count = _with_classes(model, arch, num_classes, image_size)
        return model, num_classes if count is None else count
    try:
        with torch.device("meta"):
            return _structure(arch, num_classes, train_layer), num_classes
    except NotImplementedError:
        # RegNet computes its widths with tensors, which "meta" has no values for
        return _structure(arch, num_classes, train_layer), num_classes


def _frozen_layers(model: nn.Module, train_layer: int) -> list[str]:
    """Name the modules that a fine-tuning form freezes."""
    if isinstance(model, torchvision.models.VGG | torchvision.models.AlexNet):
        count = len(model.features)
        # The last seven modules hold the last block of every VGG that is so short
        is_short = isinstance(model, torchvision.models.VGG) and train_layer >= count
        first = count - 7 if is_short else min(train_layer, count)
        return [f"features.{index}" for index in range(first)]
    if isinstance(model, torchvision.models.ResNet):
        return ["conv1", "bn1", "layer1", "layer2"]
    raise InputError(
        f"only VGG, AlexNet and ResNets have a fine-tuning form (_ft), a {type(model).__name__} has"
        " none"
    )


def last_layer(model: nn.Module) -> str:
    """Name the layer that gives the logits: the last with weights;
    of a foreign net the one whose output they are.
    """
    known = type(model).__module__.partition(".")[0] in ("torchvision", "models")
    found = None if known else logits_layer(model)
    return (
        found
        or [
            name
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d)
        ][-1]
    )


def _imagenet_weights(arch: str) -> dict[str, Tensor]:
    """Give torchvision's IMAGENET1K_V1 weights, from its cache or the network."""
    base = names.torchvision_name(arch)
    if names.is_small(base) or is_foreign(base):
        raise InputError(
            f"there are no ImageNet weights of {base}; give a local file with --weights FILE"
        )
    choices = torchvision.models.get_model_weights(base).__members__
    if "IMAGENET1K_V1" not in choices:
        raise InputError(
            f"torchvision has no IMAGENET1K_V1 weights of {base}; give a local file with --weights"
            " FILE"
        )
    chosen = choices["IMAGENET1K_V1"]
    try:
        # Not the bare file: torchvision renames keys of its older ones.
        state = torchvision.models.get_model(base, weights=chosen).state_dict()
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
        raise InputError(
            f"the weights of {base} cannot be downloaded ({error}); "
            f"save {chosen.url} as {cached}, or give a local file with --weights FILE"
        ) from None
    return official_names(state)
