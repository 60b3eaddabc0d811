"""Classifiers by name: torchvision's and the small networks, fine-tuning forms, and the checkpoints that hold them."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.author_keys import fold_masks, is_authors_trans_net, strip_module
from models.inputs import preprocessing_of
from models.own import build_own, is_own, refuse_unnamed
from models.small import names
from models.small.author_keys import bare_state
from models.small.auxiliary import build_bare
from utils import checkpoint
from utils.errors import InputError
from utils.later import torchvision

# torchvision's ImageNet weights of these two expect inputs scaled to [-1, 1]. With `transform_input` always on, a
# checkpoint need not say whether its network began with those weights.
_INCEPTION_OPTIONS = {"aux_logits": False, "transform_input": True}
_OPTIONS = {"googlenet": _INCEPTION_OPTIONS, "inception_v3": _INCEPTION_OPTIONS}
# Under which key a file has its state dict: ours and the Trans-Net's authors', DCM's, HSAKD's.
_STATE_DICTS = ("state_dict", "params", "net", "model")
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")  # their auxiliary classifiers, in ImageNet weights only


def build(
    arch: str,
    num_classes: int,
    *,
    pretrained: bool = False,
    weights: str | Path | None = None,
    train_layer: int = 34,
) -> nn.Module:
    """Build a classifier, images (N, 3, S, S) → logits (N, num_classes), on the CPU.

    A name that ends in `_ft` (VGG, AlexNet and ResNets) is a fine-tuning form: its layers below `train_layer` hold
    ImageNet weights and are frozen, the rest is initialised anew. As in the authors' release, frozen parameters have
    no gradient, while frozen BatchNorms follow the network's mode (`fix_batch_norm` holds them).

    Args:
        arch: a torchvision classification model, or one with `_ft` appended, a network of `models.small.names`, or the
            user's own, "package.module:factory" (`models.own`).
        num_classes: the length of the logits.
        pretrained: begin with torchvision's IMAGENET1K_V1 weights (`_ft` always does).
        weights: begin with this file instead: a state dict or a checkpoint, ours or the authors'. If it is for
            another number of classes, the last layer is initialised anew; all else must fit.
        train_layer: for `_ft`, the first layer of `features` (VGG, AlexNet) that is trained. A VGG that has no such
            layer, as vgg16 with the default, trains its last seven, the last block; the ResNets always train from
            layer3 on.

    Raises:
        InputError: an unknown name, weights that do not fit or cannot be had.
    """
    model = _structure(arch, num_classes, train_layer)
    base = _base(arch)
    if weights is not None:
        state, source = bare_state(base, _state_dict(checkpoint.load(weights), weights)[0]), str(weights)
    elif pretrained or arch != base:
        state, source = _imagenet_weights(base), f"torchvision's {base}"
    else:
        return model

    initial = model.state_dict()
    last = f"{last_layer(model)}."
    if arch != base:
        frozen = tuple(f"{name}." for name in _frozen_layers(model, train_layer))
        anew = [key for key in initial if not key.startswith(frozen)]
    elif f"{last}weight" in state and len(state[f"{last}weight"]) != num_classes:
        anew = [key for key in initial if key.startswith(last)]
    else:
        anew = []
    _fill(model, state | {key: initial[key] for key in anew}, source)
    return model


class FixedBatchNorm2d(nn.BatchNorm2d):
    """A BatchNorm that always normalises with its running statistics and never updates them."""

    def train(self, mode: bool = True) -> "FixedBatchNorm2d":
        """Stay in evaluation mode, whatever mode the network around it enters."""
        return super().train(False)


def fix_batch_norm(model: nn.Module) -> None:
    """Fix the running statistics of all BatchNorm layers of a model, in place; scale and shift are trained on.

    The layers become `FixedBatchNorm2d` and so stay in evaluation mode after `model.train()`, in copies and under
    DataParallel. Names in the state dict do not change.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            # Not a new module in its place: whoever already holds this one, as a head or tail does, sees it fixed.
            module.__class__ = FixedBatchNorm2d
            module.eval()


def classifier_record(arch: str, num_classes: int, train_layer: int = 34) -> dict[str, Any]:
    """Give what a checkpoint stores under "model" so that `load_classifier` needs no flags; arguments as `build`'s."""
    return {"arch": arch, "num_classes": num_classes, "train_layer": train_layer}


def load_classifier(path: str | Path, arch: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Load a classifier; the model of `read_classifier`."""
    return read_classifier(path, arch, num_classes)[0]


def read_classifier(
    path: str | Path, arch: str | None = None, num_classes: int | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Read a checkpoint and rebuild its classifier on the CPU, in evaluation mode and float32.

    The file is a checkpoint of ours or of the authors (`epoch`, `arch`, `state_dict`, …; keys with `module` pieces,
    masks of a compressed net, which are folded into the weights), a file of DCM (`params`) or HSAKD (`net`, `model`),
    whose heads are dropped, or a bare state dict. Of HSAKD's online pair net 1 is taken.

    Only what is used of the file is read, when it is used: its tensors stay mapped, the optimiser's too. Changes go to
    memory, never to the file; the file may be replaced meanwhile, as `checkpoint.save` does, but not be overwritten in
    place. PyTorch 1.0's format is read whole.

    Args:
        path: the file.
        arch: the architecture that is expected. Needed only where the file does not say its own. With and
            without `_ft` is the same architecture; what is frozen is as the file says.
        num_classes: the number of classes that is expected, if it matters.

    Returns:
        The model and the rest of the checkpoint (without `state_dict`), with "model" as `classifier_record` gives it,
        and with "inputs" where the model carries what its images are (`models.inputs.Inputs`).

    Raises:
        InputError: the file is missing, damaged, holds something else, or not what is expected.
    """
    stored = checkpoint.load(path, mmap=True)
    state, rest = _state_dict(stored, path)
    if is_authors_trans_net(state) or "trans_net" in stored:
        raise InputError(f"{path} holds a Trans-Net, a classifier is expected")
    record = {"arch": rest.get("arch"), **rest.get("model", {})}
    held = record["arch"] or arch
    if held is None:
        raise InputError(f"{path} does not say its architecture; give it with --arch")
    if arch is not None and _base(arch) != _base(held):
        raise InputError(f"checkpoint {path} holds a {held}, --arch says {arch}")
    refuse_unnamed(held, arch, path)

    state = bare_state(held, state)
    train_layer = record.get("train_layer", 34)
    found = record.get("num_classes") if is_own(held) else None  # whose last layer may stand anywhere
    if found is None:
        last = f"{last_layer(_uninitialised(held, 1, train_layer))}.weight"
        if last not in state:
            raise InputError(f"{path} does not fit {held}: it has no {last}")
        found = len(state[last])
    if num_classes is not None and found != num_classes:
        raise InputError(f"{path} holds a classifier of {found} classes, {num_classes} are expected")
    model = _uninitialised(held, found, train_layer)
    _fill(model, state, str(path))
    rest["model"] = classifier_record(held, found, train_layer)
    if (carried := preprocessing_of(model)) is not None:
        rest["inputs"] = carried
    return model.eval(), rest


def _structure(arch: str, num_classes: int, train_layer: int) -> nn.Module:
    """Build a classifier with random weights; for `_ft`, freeze what is not trained."""
    base = names.torchvision_name(_base(arch))
    if is_own(arch):
        return build_own(arch, num_classes)
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


def _base(arch: str) -> str:
    """Give the architecture's name without what says how it is fine-tuned."""
    return arch if is_own(arch) else arch.removesuffix("_ft")


def _uninitialised(arch: str, num_classes: int, train_layer: int) -> nn.Module:
    """Give the structure without spending seconds (and random numbers) on weights that a file will replace."""
    if is_own(arch):
        return _structure(arch, num_classes, train_layer)
    try:
        with torch.device("meta"):
            return _structure(arch, num_classes, train_layer)
    except NotImplementedError:  # RegNet computes its widths with tensors, which "meta" has no values for
        return _structure(arch, num_classes, train_layer)


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
    raise InputError(f"only VGG, AlexNet and ResNets have a fine-tuning form (_ft), a {type(model).__name__} has none")


def last_layer(model: nn.Module) -> str:
    """Name the layer that gives the logits: in every classifier the last one with weights."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]


def _state_dict(stored: Mapping[str, Any], path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Take the state dict out of what a file holds, masks folded, no `module` pieces; give the rest too."""
    held = next((key for key in _STATE_DICTS if isinstance(stored.get(key), Mapping)), None)
    state = stored if held is None else stored[held]
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{path} holds neither a state_dict nor weights alone, but {', '.join(list(stored)[:4])}")
    rest = {} if held is None else {key: value for key, value in stored.items() if key != held}
    return fold_masks(strip_module(state)), rest


def _imagenet_weights(arch: str) -> dict[str, Tensor]:
    """Give torchvision's IMAGENET1K_V1 weights, from its cache or the network."""
    base = names.torchvision_name(arch)
    if names.is_small(base) or is_own(base):
        raise InputError(f"there are no ImageNet weights of {base}; give a local file with --weights FILE")
    choices = torchvision.models.get_model_weights(base).__members__
    if "IMAGENET1K_V1" not in choices:
        raise InputError(f"torchvision has no IMAGENET1K_V1 weights of {base}; give a local file with --weights FILE")
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
    return {key: value for key, value in state.items() if not key.startswith(_AUXILIARY)}


def _fill(model: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Give a model, which may be uninitialised, the tensors of a state dict that fits it exactly, in float32."""
    own = model.state_dict()
    misfits = [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if not misfits:
        state = {key: value.float() if value.is_floating_point() else value for key, value in state.items()}
        # PyTorch supplies the batch counters of BatchNorm where an old file lacks them.
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
        misfits = [f"{key} is missing" for key in missing] + [f"{key} is unexpected" for key in unexpected]
    if misfits:
        shown = ", ".join(misfits[:4]) + (f" and {len(misfits) - 4} more" if len(misfits) > 4 else "")
        raise InputError(f"{source} does not fit {type(model).__name__}: {shown}")
