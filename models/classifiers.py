"""Classifiers by name, and the files that hold them.

A name means a network of torchvision, one of `models.small`, a fine-tuning form (`_ft`) of some of
torchvision's, or a foreign network (`models.own`).
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
from models.meta import ShapesAlone
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

# torchvision's ImageNet weights of these two expect inputs in [-1, 1]. `transform_input` is always
# on, so that a checkpoint need not record whether its network began with those weights.
_INCEPTION_OPTIONS = {"aux_logits": False, "transform_input": True}
_OPTIONS = {"googlenet": _INCEPTION_OPTIONS, "inception_v3": _INCEPTION_OPTIONS}
_USUAL_CLASSES = 10  # a foreign net is built with so many until its file says their number


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

    A name that ends in `_ft` (VGG, AlexNet and ResNets) is a fine-tuning form. Its layers below
    `train_layer` hold ImageNet weights and are frozen; the rest is initialised anew. As in the
    authors' release, frozen parameters have no gradient, but BatchNorms among them follow the
    network's mode (`fix_batch_norm` freezes their statistics too).

    Args:
        arch: a classification model of torchvision, or one with `_ft` appended; a network of
            `models.small.names`; or a foreign one (`models.own`). A foreign net with another number
            of logits gets a new last layer, if the old one is a plain linear layer. A remark says
            so.
        num_classes: the length of the logits.
        pretrained: begin with torchvision's IMAGENET1K_V1 weights (`_ft` always does), or with
            timm's.
        weights: begin with this file instead: a state dict or a checkpoint of any origin. If its
            number of classes differs, the last layer is initialised anew, and a remark says so.
            All other tensors must fit.
        train_layer: for `_ft`, the first layer of `features` (VGG, AlexNet) that is trained. A VGG
            without such a layer, as vgg16 with the default, trains its last block, seven layers.
            The ResNets always train from layer3 on.
        image_size: S, pixels. A foreign net is tried on such images. None: on a size that it takes.

    Raises:
        InputError: an unknown name, a foreign net of other logits, weights that do not fit or
            cannot be downloaded.
    """
    model = _structure(arch, num_classes, train_layer, pretrained=pretrained and weights is None)
    if is_foreign(arch):
        count = _with_classes(model, arch, num_classes, image_size, with_remark=True)
        # None: its logits could not be seen; `check_logits` looks again, with the images' size.
        if count not in (None, num_classes):
            raise InputError(
                f"{arch} gives {count} logits, {num_classes} are expected, and its last layer is no"
                " plain linear layer that a new one could replace; write a factory that takes"
                " num_classes"
            )
    base = _base(arch)
    if weights is not None:
        source, house_arch = str(weights), None if is_foreign(arch) else base
        _, state, reading = _choose(model, checkpoint.load(weights), source, house_arch)
        readings = candidates(state, house_arch)
    elif (pretrained and not is_timm(arch)) or arch != base:
        source, reading = f"torchvision's {base}", _imagenet_weights(base)
        readings = iter([reading])
    else:  # random weights, or timm's, which `_structure` has loaded
        return model

    if arch != base:  # `_ft`: only the frozen layers take their weights from the file
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
    """A frozen BatchNorm: it always uses its running statistics and never updates them."""

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Stay in evaluation mode, whatever mode the network around it enters."""
        return super().train(False)


def fix_batch_norm(model: nn.Module) -> None:
    """Freeze the running statistics of all BatchNorm layers, in place; scale and shift train on.

    The layers become `FixedBatchNorm2d`. So they stay in evaluation mode after `model.train()`, in
    copies and under DataParallel. Names in the state dict do not change.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Change the class, not the module: a head or tail that shares the module sees it.
            module.__class__ = FixedBatchNorm2d
            module.eval()


def classifier_record(arch: str, num_classes: int, train_layer: int = 34) -> dict[str, Any]:
    """Give a checkpoint's entry "model", by which `load_classifier` needs no flags; see `build`."""
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

    The file is one of these:

    - a checkpoint of this suite or of the authors (`epoch`, `arch`, `state_dict`, …); masks of a
      compressed net are folded into the weights;
    - a file of DCM (`params`) or HSAKD (`net`, `model`), whose heads are dropped; of HSAKD's online
      pair, net 1 is taken;
    - a checkpoint of another training script, or a bare state dict (`models.state_dicts`).

    The tensors stay mapped, the optimiser's too: of a network of this project or of torchvision,
    only tensors that are used are read, when they are used. Changes go to memory, never to the
    file. Meanwhile the file may be replaced, as `checkpoint.save` does, but not overwritten in
    place. PyTorch 1.0's format is read whole.

    Args:
        path: the file.
        arch: the expected architecture. It is needed where the file names none, and for a user's
            own code (`models.own.named_arch`). Names with and without `_ft` are the same
            architecture; the file says which layers are frozen.
        num_classes: the expected number of classes; None: any.

    Returns:
        The model, and the rest of the checkpoint without `state_dict`. Its "model" is as
        `classifier_record` gives it. It has "inputs" (`models.inputs.Inputs`) where the model
        carries what its images are.

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
    name, train_layer = named_arch(record["arch"], arch, path), record.get("train_layer", 34)
    foreign = is_foreign(name)
    # Older and the authors' names of tensors exist of these nets alone.
    house_arch = None if foreign else _base(name)
    image_size = _image_size(stored)

    # The random numbers of an initialisation are all replaced: the caller's stay as they are.
    with torch.random.fork_rng(devices=[]):
        # Build with a guess, read the classes off the tensors that do not fit, and build again.
        # A net of this project is built with one class, so that the file's number shows as a
        # misfit.
        guess = (record.get("num_classes") or num_classes or _USUAL_CLASSES) if foreign else 1
        model, count = _uninitialised(name, guess, train_layer, image_size)
        key, state, reading = _choose(model, stored, path, house_arch)
        classes = set(of_other_classes(model, reading, count).values())
        # Misfits of several lengths are not about the number of classes: `fill` refuses them.
        if len(classes) == 1:
            model, count = _uninitialised(name, classes.pop(), train_layer, image_size)
        fill(model, candidates(state, house_arch), str(path))
    if num_classes is not None and count != num_classes:
        raise InputError(
            f"{path} holds a classifier of {count} classes, {num_classes} are expected"
        )
    if diverged := checkpoint.first_not_finite(model.state_dict()):
        raise InputError(
            f"{path} holds a net that diverged: {diverged} is not finite; use an earlier checkpoint"
        )
    rest = {entry: value for entry, value in stored.items() if entry != key[0]} if key else {}
    # As files of this suite have it, whatever the file called these.
    rest["model"] = classifier_record(name, count, train_layer)
    if (carried := preprocessing_of(model)) is not None:
        rest["inputs"] = carried
    return model.eval(), rest


def check_reloads(model: nn.Module, record: Mapping[str, Any], image_size: int) -> None:
    """Refuse to train a foreign network whose checkpoint could not be read back.

    Args:
        model: the network.
        record: of `classifier_record`.
        image_size: S, pixels.

    Raises:
        InputError: its state dict holds more than tensors, or a second network of its factory does
            not take that state dict.
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
    # Do now what reading the checkpoint will do: build the factory's net again, and fill it.
    with torch.random.fork_rng(devices=[]):
        again, _ = _uninitialised(arch, record["num_classes"], record["train_layer"], image_size)
        try:
            fill(again, candidates(state), "its checkpoint")
        except InputError as error:
            raise InputError(
                f"{arch} makes another network each time it is called: {error}"
            ) from None


def _record(stored: Mapping[str, Any], arch: str | None) -> dict[str, Any]:
    """Give a file's record of its classifier, as `classifier_record` does.

    Where the file names no architecture, `arch` counts. Another project's training script may call
    its architecture by any name; so an option that names a foreign one counts before it.
    """
    record = stored.get("model")
    if isinstance(record, Mapping) and isinstance(record.get("arch"), str):
        return dict(record)
    stored_arch = stored.get("arch")
    is_foreign_named = arch is not None and is_foreign(arch)
    if not isinstance(stored_arch, str) or (is_foreign_named and not is_own(stored_arch)):
        stored_arch = arch
    return {"arch": stored_arch}


def _image_size(stored: Mapping[str, Any]) -> int | None:
    """Give the image size, in pixels, that a checkpoint of this suite was trained at."""
    data = stored.get("data")
    return data.get("image_size") if isinstance(data, Mapping) else None


def _choose(
    model: nn.Module, stored: Mapping[str, Any], path: str | Path, house_arch: str | None
) -> tuple[tuple[str, ...], Mapping[str, Tensor], dict[str, Tensor]]:
    """Choose the state dict of a file for a model; of several, a remark names the chosen one.

    Args:
        model: the network.
        stored: the file's content.
        path: the file.
        house_arch: the architecture, if it is one of this project or torchvision; see
            `candidates`.

    Returns:
        The keys that lead to the state dict, the state dict, and its reading nearest to the model.

    Raises:
        InputError: the file holds no state dict.
    """
    states = state_dicts(stored)
    if not states:
        raise InputError(
            f"{path} holds neither a state_dict nor weights alone, but"
            f" {', '.join(map(str, list(stored)[:4]))}"
        )
    key, reading = nearest(model, states, house_arch)
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
    # Classifiers alone, not torchvision's detectors and segmenters.
    of_torchvision = torchvision.models.list_models(module=torchvision.models)
    if names.is_small(base):
        model: nn.Module = build_bare(base, num_classes)
    elif base in of_torchvision:
        # Without `init_weights` torchvision warns that its default will change.
        options = {**_OPTIONS[base], "init_weights": True} if base in _OPTIONS else {}
        model = torchvision.models.get_model(base, num_classes=num_classes, **options)
    else:
        near = difflib.get_close_matches(base, [*of_torchvision, *names.NAMES], n=1, cutoff=0)[0]
        raise InputError(f"there is no architecture {arch!r}; the nearest name is {near}")
    if arch != base:
        for name in _frozen_layers(model, train_layer):
            model.get_submodule(name).requires_grad_(False)
    return model


def _with_classes(
    model: nn.Module,
    arch: str,
    num_classes: int,
    image_size: int | None,
    *,
    with_remark: bool = False,
) -> int | None:
    """Let a foreign net give its logits alone, `num_classes` of them if possible; in place.

    A last layer that is plain and linear is replaced where its number of outputs is another.

    Args:
        model: the network.
        arch: its name, for messages.
        num_classes: the wanted length of the logits.
        image_size: see `give_logits`.
        with_remark: say that the layer is new; no file will fill it.

    Returns:
        The length of the logits; None where `give_logits` cannot see it.
    """
    initialise_lazy(model, image_size)  # before anybody counts or replaces weights
    count = give_logits(model, arch, num_classes, image_size)
    if (
        count in (None, num_classes)
        or (name := last_linear(model, num_classes, image_size)) is None
    ):
        return count
    replace_linear(model, name, num_classes)
    if with_remark:
        remark(
            f"{arch} gives {count} logits, {num_classes} are expected: {name}, {count} →"
            f" {num_classes}, is new"
        )
    return num_classes


def _base(arch: str) -> str:
    """Give the architecture's name without the ending of its fine-tuning form."""
    return arch if is_foreign(arch) else arch.removesuffix("_ft")


def _uninitialised(
    arch: str, num_classes: int, train_layer: int, image_size: int | None
) -> tuple[nn.Module, int]:
    """Build a network without initialising the weights, which a file will replace.

    That saves seconds. A foreign net is initialised all the same: its code may ask for values, and
    buffers that no file has must be right.

    Returns:
        The network, and its number of classes.
    """
    if is_foreign(arch):
        model = _structure(arch, num_classes, train_layer)
        count = _with_classes(model, arch, num_classes, image_size)
        return model, num_classes if count is None else count
    try:
        with torch.device("meta"), ShapesAlone():
            return _structure(arch, num_classes, train_layer), num_classes
    except NotImplementedError:
        # RegNet computes its widths with tensors; those of "meta" have no values.
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
    """Name the layer that gives the logits.

    In a network of torchvision or of this project it is the last linear layer or convolution. In a
    foreign one it is the layer whose output is the logits, wherever it stands.
    """
    is_of_house = type(model).__module__.partition(".")[0] in ("torchvision", "models")
    if not is_of_house and (layer := logits_layer(model)):
        return layer
    # The last one in the order of `named_modules` ends these nets: all are written in order.
    kinds = (nn.Linear, nn.Conv2d)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)][-1]


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
        # Let torchvision read its file: it renames keys of older ones.
        state = torchvision.models.get_model(base, weights=chosen).state_dict()
    except (OSError, RuntimeError) as error:
        cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(chosen.url).name
        raise InputError(
            f"the weights of {base} cannot be downloaded ({error}); "
            f"save {chosen.url} as {cached}, or give a local file with --weights FILE"
        ) from None
    return official_names(state)
