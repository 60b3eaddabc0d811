"""The logits of a classifier: where its forward pass gives them, how many, and by which layer.

A network of this project or of torchvision gives logits (N, C). Other people's nets may give them
as (N, C, 1, 1), or as one of several outputs, or differently in training and in evaluation.
`give_logits` runs such a net once on images without values, and makes it return its logits alone.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from models.inputs import preprocessing_of
from utils.errors import InputError
from utils.remarks import remark

_USUAL_SIZES = (224, 32, 64, 28, 128, 256, 299, 384, 96, 512)  # pixels, tried where nobody says one
_USUAL_KEYS = ("logits", "out", "output", "pred", "prediction", "scores")
Step = str | int


class Output(NamedTuple):
    """The logits among the outputs of a forward pass.

    Attributes:
        path: keys, indices or attributes that lead to the logits; () if they are the only output.
        shape: of the logits, without the batch axis: (C,) or (C, 1, 1).
        layer: the module whose output they are; None where they are no module's output.
        around: in words, the container that has them as an entry.
    """

    path: tuple[Step, ...]
    shape: tuple[int, ...]
    layer: str | None
    around: str = ""


def give_logits(
    model: nn.Module, arch: str, num_classes: int, image_size: int | None = None
) -> int | None:
    """Make a foreign network return its logits (N, C) alone, in both modes; in place.

    A remark names what is left out or flattened. Names of modules and tensors do not change.

    Args:
        model: images (N, 3, S, S) → logits, or a container that holds them.
        arch: its name, for messages.
        num_classes: of several outputs that could be the logits, the one of so many classes counts.
        image_size: S, pixels. None: as its factory says, or a usual size that it takes.

    Returns:
        C; None where the network takes none of those sizes, or no output has the logits' shape.
    """
    size = _fitting_size(model, image_size)
    if size is None:
        return None
    # Some nets return more in training: auxiliary logits beside their own.
    plain, trained = (
        look_for_logits(model, size, num_classes, training=mode) for mode in (False, True)
    )
    if plain is None or trained is None or plain.shape[0] != trained.shape[0]:
        return None
    outputs = {False: plain, True: trained}
    for mode, output in outputs.items():
        # Path and shape decide whether training mode deserves a remark of its own.
        when = " in training" if mode and output[:2] != plain[:2] else ""
        if output.path and (not mode or when):
            keys = ", ".join(repr(step) for step in output.path)
            rest = "; the loss is of them alone" if when else ""
            remark(f"{arch} gives {output.around}{when}, its logits are entry {keys}{rest}")
    if len(plain.shape) > 1:
        remark(f"{arch} gives logits (N, {', '.join(map(str, plain.shape))}), they are flattened")
    if any(output.path or len(output.shape) > 1 for output in outputs.values()):
        _return_logits_alone(model, outputs)
    return plain.shape[0]


def check_logits(model: nn.Module, arch: str, num_classes: int, image_size: int) -> None:
    """Refuse a network that does not map the images to logits, before any image is decoded.

    Args:
        model: images (N, 3, S, S) → logits (N, C); a foreign one is changed as by `give_logits`.
        arch: its name, for messages.
        num_classes: C.
        image_size: S, pixels.

    Raises:
        InputError: it does not take such images, or gives no logits (N, C).
    """
    with _explained(model, image_size):
        shown = _describe(run_blank(model, image_size, training=False))
    # Only a foreign net may give its logits in another form than (N, C).
    if ":" in arch:
        count = give_logits(model, arch, num_classes, image_size)
    else:
        output = look_for_logits(model, image_size, num_classes, training=False)
        count = None if output is None else output.shape[0]
    if count is None:
        with _explained(model, image_size):
            trained = _describe(run_blank(model, image_size, training=True))
        given = shown if shown == trained else f"{shown}, in training {trained}"
        raise InputError(
            f"{arch} gives {given} for 2 images, logits (2, {num_classes}) are expected"
        )
    if count != num_classes:
        raise InputError(f"{arch} gives {count} logits, the images have {num_classes} classes")


def look_for_logits(
    model: nn.Module, image_size: int, num_classes: int, *, training: bool
) -> Output | None:
    """Find the logits among a network's outputs for two blank images.

    Args:
        model: its mode, its values and the random state stay as they are.
        image_size: S, pixels.
        num_classes: of several outputs, the one of so many classes is taken for the logits.
        training: run it in training mode.

    Returns:
        None if the network does not take such images, or no output has the logits' shape.
    """
    of_layers: list[tuple[str, Any]] = []  # outputs of layers with weights, in order
    with contextlib.ExitStack() as hooks:
        for name, module in model.named_modules():
            # A Dropout or Flatten behind the last layer gives the logits too, but has nothing to
            # replace.
            has_weight = isinstance(getattr(module, "weight", None), Tensor)
            # A ScriptModule takes no hooks.
            if has_weight and not isinstance(module, torch.jit.ScriptModule):
                # `name=name` keeps the name of this turn of the loop; the hook runs long after it.
                hook = module.register_forward_hook(
                    lambda _m, _i, output, name=name: of_layers.append((name, output))
                )
                hooks.callback(hook.remove)
        try:
            returned = run_blank(model, image_size, training=training)
        except Exception:
            return None
    outputs = [(path, tensor) for path, tensor in _tensors(returned) if _may_be_logits(tensor)]
    # The right number of classes first, (N, C) before (N, C, 1, 1); the sort is stable.
    outputs.sort(key=lambda entry: (entry[1].shape[1] != num_classes, entry[1].ndim))
    if not outputs:
        return None
    path, logits = outputs[0]
    # A layer gives (N, C), or (N, C, 1, 1) of which the logits are a view.
    same = (logits, logits._base)
    layer = next(
        (name for name, output in reversed(of_layers) if any(output is one for one in same)), None
    )
    around = returned
    for step in path[:-1]:
        around = _entry(around, step)
    return Output(path, tuple(logits.shape[1:]), layer, _describe(around) if path else "")


def last_linear(model: nn.Module, num_classes: int, image_size: int | None = None) -> str | None:
    """Name the linear layer whose output is the logits, if a new one can replace it.

    Returns:
        None if the logits come from no linear layer, or from one with hooks or a shared weight.
    """
    size = _fitting_size(model, image_size)
    output = None if size is None else look_for_logits(model, size, num_classes, training=False)
    if output is None or output.layer is None:
        return None
    layer = model.get_submodule(output.layer)
    # Another layer with the same weight would lose it with a new one in this place.
    shared = [
        name
        for name, weight in model.named_parameters(remove_duplicate=False)
        if weight is layer.weight
    ]
    plain = type(layer) is nn.Linear and not layer._forward_pre_hooks and not layer._forward_hooks
    return output.layer if plain and len(shared) == 1 else None


def logits_layer(model: nn.Module) -> str | None:
    """Name the layer whose output is the logits; None where they are no module's output."""
    size = _fitting_size(model, None)
    output = None if size is None else look_for_logits(model, size, 0, training=False)
    return None if output is None else output.layer


def replace_linear(model: nn.Module, name: str, num_classes: int) -> None:
    """Replace a linear layer by a new one of `num_classes` outputs."""
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    new = nn.Linear(
        old.in_features, num_classes, bias=old.bias is not None, device=old.weight.device
    )
    model.set_submodule(name, new)


def has_unused_parameters(model: nn.Module, image_size: int) -> bool:
    """Whether the logits may not depend on some trained parameters; a remark names these.

    Args:
        model: images (N, 3, S, S) → logits (N, C).
        image_size: S, pixels.

    Returns:
        True also where the network cannot be run without values, and so nobody knows.
    """
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    try:
        with torch.enable_grad():
            # Blank leaves in the place of the trained parameters: where the gradient is None, the
            # logits do not depend on one.
            blank = {
                name: value.detach().to("meta").requires_grad_() for name, value in trained.items()
            }
            logits = run_blank(model, image_size, training=True, parameters=blank)
            gradients = torch.autograd.grad(logits.sum(), list(blank.values()), allow_unused=True)
    except Exception:  # the network needs values
        return True
    unused = [name for name, gradient in zip(trained, gradients) if gradient is None]
    if unused:
        shown = ", ".join(unused[:4]) + (f" and {len(unused) - 4} more" if len(unused) > 4 else "")
        remark(f"the logits do not depend on {shown}: not trained")
    return bool(unused)


def run_blank(
    model: nn.Module,
    image_size: int,
    *,
    training: bool,
    parameters: Mapping[str, Tensor] | None = None,
    on_meta: bool = True,
) -> Any:
    """Run a network on two blank images, on "meta" where it can be run without values.

    Its mode, its values (BatchNorm's statistics too) and the random state stay as they are.

    Args:
        model: images (N, 3, S, S) → anything.
        image_size: S, pixels.
        training: run it in training mode.
        parameters: on "meta", in place of the network's; it is then run there or not at all.
        on_meta: try "meta" at all. Memory there has another order than on a device.
    """
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    image = torch.zeros(2, 3, image_size, image_size)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(parameters is not None):
            try:
                if on_meta:
                    blank = {name: value.detach().to("meta") for name, value in tensors.items()}
                    return functional_call(model, {**blank, **(parameters or {})}, image.to("meta"))
            except Exception:  # the net holds tensors as plain attributes, or asks for values
                if parameters is not None:
                    raise
            device = next((value.device for value in tensors.values()), image.device)
            # Training mode updates BatchNorm's statistics: let it update copies.
            buffers = {name: value.clone() for name, value in model.named_buffers()}
            if not isinstance(model, torch.jit.ScriptModule):
                return functional_call(model, buffers, image.to(device))
            try:
                return model(image.to(device))
            finally:
                for name, value in model.named_buffers():
                    value.copy_(buffers[name])
    finally:
        for module, mode in modes.items():
            module.training = mode


def initialise_lazy(model: nn.Module, image_size: int | None) -> None:
    """Run lazy layers once, so that they learn their widths and make their weights; in place.

    Args:
        model: in training mode.
        image_size: S, pixels; see `give_logits`.
    """
    if any(nn.parameter.is_lazy(value) for value in (*model.parameters(), *model.buffers())):
        for size in _sizes(model, image_size):
            with contextlib.suppress(Exception), torch.no_grad():
                model.eval()(torch.zeros(2, 3, size, size))
                break
        model.train()


@contextlib.contextmanager
def _explained(model: nn.Module, image_size: int) -> Iterator[None]:
    """Turn any error into one sentence: the network does not take images of this size."""
    try:
        yield
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if "channel" in reason and "got 3" in reason:
            instead = "it must take images of 3 channels, grey photos are given as such too"
        else:
            only = getattr(model, "image_size", None) or getattr(
                preprocessing_of(model), "image_size", None
            )
            instead = f"it takes --image_size {only}" if only else "choose another --image_size"
        raise InputError(
            f"the network does not take {image_size}×{image_size} images ({reason}); {instead}"
        ) from None


def _fitting_size(model: nn.Module, image_size: int | None) -> int | None:
    """Choose an image size, in pixels, that a network takes; None: it takes none."""
    for size in _sizes(model, image_size):
        with contextlib.suppress(Exception):
            run_blank(model, size, training=False)
            return size
    return None


def _sizes(model: nn.Module, image_size: int | None) -> list[int]:
    """List the image sizes, in pixels, to try a network on."""
    if image_size is not None:
        return [image_size]
    carried = preprocessing_of(model)
    return [carried.image_size] if carried and carried.image_size else list(_USUAL_SIZES)


def _may_be_logits(tensor: Tensor) -> bool:
    """Whether a tensor has the shape of logits: (N, C) or (N, C, 1, 1)."""
    return tensor.is_floating_point() and (
        tensor.ndim == 2 or (tensor.ndim == 4 and tensor.shape[2:] == (1, 1))
    )


def _tensors(value: Any, path: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Tensor]]:
    """List the tensors among a forward pass's outputs; those with a usual name come first."""
    if isinstance(value, Tensor):
        yield path, value
        return
    steps: list[Any] = []
    if isinstance(value, Mapping):
        steps = list(value)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        steps = list(getattr(value, "_fields", range(len(value))))
    elif hasattr(value, "logits"):
        steps = ["logits"]
    usual = [key for key in _USUAL_KEYS if key in steps]
    for step in (*usual, *(step for step in steps if step not in usual)):
        yield from _tensors(_entry(value, step), (*path, step))


def _entry(value: Any, step: Step) -> Any:
    """Take one entry of a container of outputs, by index, key or attribute."""
    by_key = isinstance(step, int) or isinstance(value, Mapping)
    return value[step] if by_key else getattr(value, str(step))


def _return_logits_alone(model: nn.Module, outputs: Mapping[bool, Output]) -> None:
    """Make a network's forward pass return its logits (N, C) alone.

    The network's class changes, instead of a module around it. So names of modules stay, and a
    trace of the forward pass ends at the logits.

    Args:
        model: the network, changed in place.
        outputs: where the logits are, in evaluation (False) and in training (True).
    """
    # The author's class, of which a subclass of the same name is made.
    kind = type(model)

    def forward(self: nn.Module, images: Tensor) -> Tensor:
        # `self.forward` is this very function: the author's is reached through its class.
        returned = kind.forward(self, images)
        output = outputs[self.training]
        for step in output.path:
            returned = _entry(returned, step)
        return returned.flatten(1) if len(output.shape) > 1 else returned

    model.__class__ = type(
        kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__}
    )


def _describe(returned: Any) -> str:
    """Describe the outputs of a forward pass in a few words."""
    if isinstance(returned, Tensor):
        return str(tuple(returned.shape))
    kind = type(returned).__name__
    if isinstance(returned, Mapping):
        return f"a {kind} of {', '.join(map(str, list(returned)[:6]))}"
    if isinstance(returned, Sequence) and not isinstance(returned, str):
        return f"a {kind} of {len(returned)}"
    return f"a {kind}"
