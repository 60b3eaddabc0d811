"""Record one forward pass of a network as a graph,
by running its own code on images without values.

The network's Python code runs on tensors that have a shape and no values, those of PyTorch's device
"meta", and each call of a layer or of a function of PyTorch becomes a node. So whatever the code
does with shapes, loops, lists, assertions or `isinstance` works as it always does, layers stay the
modules that they are, and only what asks for a *value* of the images or weights is refused.

Three things are kept that a list of calls would lose:

* Lengths remember where they come from (`models.lengths`): `images.shape[0] * 4` is a node, not the number 8.
* A call that works in place is an input of whatever reads its tensor, or another view of it, from then on. So no
  statement whose result is thrown away (`self.act(x)`, `x[mask] = 0`) is lost, and none comes too
  early or too late.
* Every module says which value is its output, as a forward hook would see it.
"""

import contextlib
import functools
import inspect
import linecache
import operator
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _wrapped_fns_to_patch
from torch.overrides import TorchFunctionMode, is_tensor_method_or_property
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

from models.lengths import Length
from utils.errors import InputError
from utils.later import torchvision
from utils.remarks import remark

# Functions that hand values of a tensor to Python, and so let the code depend on them.
_READ_VALUES = {
    "__array__",
    "__bool__",
    "__complex__",
    "__contains__",
    "__float__",
    "__index__",
    "__int__",
    "allclose",
    "equal",
    "is_nonzero",
    "item",
    "numpy",
    "tolist",
}
# How a node is named where PyTorch's name of its function is not the word that people say.
_SPOKEN = {
    "__floordiv__": "floordiv",
    "__get__": "getattr",
    "__getitem__": "getitem",
    "__rdiv__": "truediv",
    "__rsub__": "sub",
    "__setitem__": "setitem",
    "add_": "add",
    "div": "truediv",
    "div_": "truediv",
    "mul_": "mul",
    "sub_": "sub",
}
# What of its tensor takes only shape, type and device: it is made of these, so that no value flows
# to it.
_LIKE = {"empty_like", "full_like", "ones_like", "rand_like", "randn_like", "zeros_like"}
_NEW = {"new_empty", "new_full", "new_ones", "new_zeros"}
_AS = {"expand_as": "expand", "reshape_as": "reshape", "view_as": "view"}
_DROPOUTS = {
    "alpha_dropout",
    "alpha_dropout_",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_",
    "feature_alpha_dropout",
    "feature_alpha_dropout_",
    "feature_dropout",
    "feature_dropout_",
}
_ATTENTION = "scaled_dot_product_attention"
# Of torch.nn, and yet frames for layers rather than layers.
_FRAMES = (
    nn.Sequential,
    nn.DataParallel,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
_FLAGS = ("of_images", "of_weights")
_TORCH = str(Path(torch.__file__).parent)
_HERE = {
    str(Path(__file__).with_name(f"{name}.py"))
    for name in ("graph", "lengths", "recorder", "split")
}


class NeedsValuesError(Exception):
    """The code reads a number that neither images nor weights decide;
    a recording with values answers it.
    """


def changed(value: Any, statement: Any) -> Any:
    """Give `value`, which `statement` has changed in place:
    the edge of a graph that keeps their order.
    """
    return value


class Recording:
    """What was recorded.

    Attributes:
        graph: its nodes. `node.meta` has "shape" (where the value is a tensor), "length" (where it
            is one), "layer" (its readable name), "at" (file and line of the code), "of_images" and
            "of_weights" where values depend on them, "writes_images" where a call changes the
            images in place, and "device" (the node that is theirs).
        modules: by path what each call of a module gave, in order; None for what is not one tensor.
        constants: by the name of their node the tensors that belong to no module.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, list[fx.Node | None]] = {}
        self.constants: dict[str, Tensor] = {}


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    """Keep whoever counts or records tensors' operations from counting the recording's."""
    with contextlib.ExitStack() as stack:
        while _get_current_dispatch_mode() is not None:
            stack.enter_context(_pop_mode_temporarily())
        yield


def record(
    model: nn.Module,
    shape: tuple[int, int, int, int],
    with_values: bool = False,
    *,
    up_to_error: bool = False,
) -> Recording:
    """Record what a network does with images of a shape.

    Args:
        model: in evaluation mode; its attributes are as before when this returns.
        shape: (N, 3, S, S).
        with_values: run it on real numbers, which takes as long as inference does.
        up_to_error: give what was recorded where the network does not take such images.

    Raises:
        InputError: the code depends on values.
        NeedsValuesError: it does so only if it is run without values.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_modes())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_attributes_kept(model))
        paths, floats = (
            _tensors_of(model),
            [tensor for tensor in model.state_dict().values() if tensor.is_floating_point()],
        )
        device, dtype = (
            (floats[0].device, floats[0].dtype) if floats else (torch.device("cpu"), torch.float32)
        )
        if not with_values:
            paths, device = _without_values(model, paths), torch.device("meta")
            stack.enter_context(device)
        # Who draws numbers next draws the same
        stack.enter_context(torch.random.fork_rng(enabled=with_values))
        images = torch.empty(shape, device=device, dtype=dtype)
        if with_values:
            images.uniform_()
        recorder = _Recorder(model, images, paths)
        stack.enter_context(recorder.listening())
        stack.enter_context(recorder)
        try:
            recorder.finish(model(images))
        except Exception:  # whatever the network's code raises
            if not up_to_error:
                raise
    return recorder.recording


class _Recorder(TorchFunctionMode):
    """Writes a recording while it is entered; `record` is what to use."""

    def __init__(self, model: nn.Module, images: Tensor, attributes: dict[int, str]) -> None:
        super().__init__()
        self.recording, self.model = Recording(), model
        self.graph, self.device = self.recording.graph, images.device
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.taken = set(self.paths.values())
        self.attributes = attributes
        self.layers = _layer_types()
        self.names: dict[str, int] = {}  # how often each was given
        self.scope = [""]  # the paths of the modules whose code runs
        self.idle = 0  # above 0 while what runs is one node
        self.shared: dict[Any, fx.Node] = {}  # nodes of attributes, of lengths, of the device
        # The tensor behind an id, the node that it is the value of, and since when.
        self.values: dict[int, tuple[Tensor, fx.Node, int]] = {}
        # By the id of a tensor with values the one that stands for it
        self.carriers: dict[int, Tensor] = {}
        # By storage, the last call that changed it in place, and when.
        self.writes: dict[int, tuple[fx.Node, int]] = {}
        self.time = 0
        name = next(iter(inspect.signature(model.forward).parameters), "images")
        node = self.graph.placeholder(name)
        node.meta |= {"layer": self._count(name), "of_images": True}
        with self._unheard():
            self._bind(images, node, set())
            self.of_images = _storage(images)

    def finish(self, result: Any) -> None:
        """End with what the forward pass gives."""
        with self._unheard():
            self.graph.output(self._encode(result))
        for node in reversed(list(self.graph.nodes)):
            if not node.users and ("length" in node.meta or "device" in node.meta):
                self.graph.erase_node(node)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Hear of calls of modules,
        and of functions that their authors keep whole by `torch.fx.wrap`.
        """
        of_module = nn.Module.__call__
        wrapped = {
            (id(scope), name): (scope, name, scope[name])
            for (_, name), scope in _wrapped_fns_to_patch.items()
            if name in scope
        }

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return self._call(of_module, module, args, kwargs)

        nn.Module.__call__ = call  # type: ignore[method-assign]
        for scope, name, function in wrapped.values():
            scope[name] = self._keep_whole(function)
        try:
            yield
        finally:
            nn.Module.__call__ = of_module  # type: ignore[method-assign]
            for scope, name, function in wrapped.values():
                scope[name] = function

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Record a call of a function of PyTorch, unless it only asks for a shape or the like."""
        kwargs = kwargs or {}
        if self.idle:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", str(func))
        tensor = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__":
            return self._get(func, args)
        if name == "size" and tensor is not None:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return self._shape(tensor) if axis is None else self._shape(tensor)[axis]
        if name in _READ_VALUES:
            self._refuse_values(args)
        if tensor is not None and (name in _LIKE or name in _NEW):
            func, args, kwargs = self._as_new(name, args, kwargs)
        elif name in _AS and isinstance(args[1], Tensor):
            func, args = getattr(Tensor, _AS[name]), (args[0], self._shape(args[1]))
        elif name in _DROPOUTS or name == _ATTENTION:
            args, kwargs = _without_dropout(name, args, kwargs)
        op, target = "call_function", func
        if name == "__setitem__":
            target = operator.setitem
        elif is_tensor_method_or_property(func) or (tensor is not None and _is_method(func)):
            op, target = "call_method", func.__name__
        return self._record(
            op, target, args, kwargs, func, _SPOKEN.get(name) or name.partition(".")[0]
        )

    def _call(
        self, of_module: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Record a module's call: a layer's as a node, any other's by what its code calls."""
        path = self.paths.get(id(module))
        if self.idle or not path:
            return of_module(module, *args, **kwargs)
        if self._is_layer(module):
            with self._unheard():
                run = functools.partial(of_module, module)
                given = self._record("call_module", path, args, kwargs, run, None)
        else:
            self.scope.append(path)
            try:
                given = of_module(module, *args, **kwargs)
            finally:
                self.scope.pop()
        with self._unheard():
            value = self._read(given) if isinstance(given, Tensor) else None
        self.recording.modules.setdefault(path, []).append(value)
        return given

    def _is_layer(self, module: nn.Module) -> bool:
        if isinstance(module, _FRAMES):
            return False
        return isinstance(module, self.layers) or type(module).__module__.startswith(
            ("torch.nn.", "timm.layers.drop")
        )

    def _keep_whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            if self.idle:
                return function(*args, **kwargs)
            with self._unheard():
                return self._record(
                    "call_function", function, args, kwargs, function, function.__name__
                )

        return called

    @contextlib.contextmanager
    def _unheard(self) -> Iterator[None]:
        """Record nothing of what runs here."""
        self.idle += 1
        try:
            with torch._C.DisableTorchFunction():
                yield
        finally:
            self.idle -= 1

    def _record(
        self,
        op: str,
        target: Any,
        args: Any,
        kwargs: Any,
        run: Callable[..., Any],
        spoken: str | None,
    ) -> Any:
        """Make a call, add its node,
        and note which value each tensor that it gives or changes now is.

        Args:
            op: as torch.fx calls it.
            target: likewise.
            args: what the call is given.
            kwargs: likewise.
            run: what makes it.
            spoken: the last word of the node's name; None: the target is its name.
        """
        tensors = list(_tensors((args, kwargs)))
        refusal, encoded = None, None
        try:
            encoded = self._encode(tuple(args)), self._encode(dict(kwargs))
        except InputError as error:
            # Of no matter if the call turns out to be no operation on tensors
            refusal = error
        carriers = [self._carrier(tensor) for tensor in tensors]
        before = [carrier._version for carrier in carriers]
        with self._unheard():
            given = run(*self._handed(tuple(args)), **self._handed(dict(kwargs)))
        changes = [carrier._version != version for carrier, version in zip(carriers, before)]
        if not any(changes) and next(_tensors(given), None) is None:
            return given  # a number, a flag or nothing: a matter of the code
        if encoded is None:
            raise refusal or AssertionError
        self.time += 1
        node = self.graph.create_node(op, target, *encoded)
        node.meta |= {
            "layer": self._count(target) if spoken is None else self._name(spoken),
            "at": _place(),
        }
        node.meta |= {
            flag: True for flag in _FLAGS for source in node.all_input_nodes if flag in source.meta
        }
        if op == "call_module":
            node.meta["of_weights"] = True
        for carrier, is_changed in zip(carriers, changes):
            if is_changed:
                self.writes[_storage(carrier)] = (node, self.time)
                if _storage(carrier) == self.of_images:
                    node.meta["writes_images"] = True
        same = {id(tensor) for tensor, is_changed in zip(tensors, changes) if not is_changed}
        return self._bind(given, node, same)

    def _bind(self, given: Any, node: fx.Node, same: set[int]) -> Any:
        """Make a node the value of what a call gives,
        and nodes for its pieces where it gives several tensors.

        Args:
            given: by the call.
            node: the call's.
            same: the ids of the tensors that it was given and left as they were.

        Returns:
            What the code is to get. Where a call gives its unchanged input back, as Dropout does
            here, that is another tensor of the same storage: Dropout's value must not stand for its
            input elsewhere.
        """
        if isinstance(given, Tensor):
            if id(given) in same or id(given) in self.attributes:
                given = self._alias(given)
            node.meta["shape"] = tuple(given.shape)
            self.values[id(given)] = (given, node, self.time)
            return given
        if next(_tensors(given), None) is None:
            return given
        keys = list(given) if isinstance(given, dict) else range(len(given))
        pieces = {}
        for key in keys:
            pieces[key] = given[key]
            if next(_tensors(given[key]), None) is not None:
                piece = self.graph.call_function(operator.getitem, (node, key))
                piece.meta |= {"layer": self._name("getitem"), "at": node.meta["at"]}
                piece.meta |= {flag: True for flag in _FLAGS if flag in node.meta}
                pieces[key] = self._bind(given[key], piece, same)
        if all(pieces[key] is given[key] for key in keys):
            return given
        if isinstance(given, dict):
            return type(given)(pieces)
        return (
            type(given)(*pieces.values())
            if hasattr(given, "_fields")
            else type(given)(pieces.values())
        )

    def _alias(self, tensor: Tensor) -> Tensor:
        with self._unheard():
            return self._carrier(tensor).view(tensor.shape)

    def _read(self, value: Tensor) -> fx.Node:
        """Give the node whose value a tensor is now, after all that was done to it in place."""
        if id(value) not in self.values:
            self.values[id(value)] = (value, self._attribute(value), 0)
        _, node, since = self.values[id(value)]
        write, at = self.writes.get(_storage(self._carrier(value)), (node, 0))
        if at <= since:
            return node
        later = self.graph.call_function(changed, (node, write))
        later.meta |= {"shape": tuple(value.shape), "at": write.meta["at"]}
        later.meta |= {flag: True for flag in _FLAGS if flag in node.meta or flag in write.meta}
        # The first value behind a statement that gives nothing, like `x[mask] = 0`, has the
        # statement's name.
        gives_nothing = "shape" not in write.meta and "value" not in write.meta
        later.meta["layer"] = (
            write.meta["layer"] if gives_nothing else self._count(write.meta["layer"])
        )
        write.meta["value"] = later
        self.values[id(value)] = (value, later, at)
        return later

    def _encode(self, value: Any) -> Any:
        """Turn what a call is given into what its node is given: nodes for tensors and lengths."""
        if isinstance(value, Tensor):
            encoded: Any = self._read(value)
        elif isinstance(value, Length):
            encoded = value.node
        elif isinstance(value, torch.device) and value.type == self.device.type:
            encoded = self._device_node()
        elif isinstance(value, tuple) and hasattr(value, "_fields"):
            encoded = type(value)(*map(self._encode, value))
        elif isinstance(value, tuple | list):
            encoded = (list if isinstance(value, list) else tuple)(map(self._encode, value))
        elif isinstance(value, dict):
            encoded = {key: self._encode(item) for key, item in value.items()}
        elif isinstance(value, slice):
            encoded = slice(*map(self._encode, (value.start, value.stop, value.step)))
        elif isinstance(value, fx.node.base_types) or value is None or value is Ellipsis:
            encoded = value
        elif type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            encoded = value.item()
        else:
            raise self._odd(value)
        return encoded

    def _odd(self, value: Any) -> InputError:
        return InputError(
            f"{self._refusal()} an operation takes a {type(value).__name__}: {spell(_place())}"
        )

    def _refusal(self) -> str:
        return f"this {type(self.model).__name__} cannot be cut, because"

    def _attribute(self, value: Tensor) -> fx.Node:
        """Give the node of a tensor that no call gave:
        a parameter, a buffer, another attribute, or a constant.
        """
        path = self.attributes.get(id(value))
        if path is None:
            if value.is_meta:
                raise InputError(
                    f"{self._refusal()} a tensor is made out of PyTorch's sight: {spell(_place())}"
                )
            path = f"_constant_{len(self.recording.constants)}"
            self.recording.constants[path] = value.detach()
        if path not in self.shared:
            node = self.shared[path] = self.graph.create_node("get_attr", path)
            node.meta["shape"] = tuple(value.shape)
            if isinstance(value, nn.Parameter):
                node.meta["of_weights"] = True
        return self.shared[path]

    def _device_node(self) -> fx.Node:
        images = next(iter(self.graph.nodes))
        if torch.device not in self.shared:
            with self.graph.inserting_after(images):
                node = self.shared[torch.device] = self.graph.call_function(
                    getattr, (images, "device")
                )
            node.meta["device"] = True
        return self.shared[torch.device]

    def _get(self, func: Any, args: Any) -> Any:
        """Give an attribute of a tensor; one that is a tensor, like `x.T`, is a node."""
        name = func.__self__.__name__
        if name == "shape":
            return self._shape(args[0])
        if name == "data":
            func, args, name = Tensor.detach, args[:1], "detach"
            return self._record("call_method", name, args, {}, func, name)
        return self._record("call_function", getattr, (args[0], name), {}, getattr, "getattr")

    def _shape(self, tensor: Tensor) -> torch.Size:
        """Give a tensor's shape, whose lengths remember it."""
        with self._unheard():
            shape = tensor.shape
        node = self._read(tensor)
        if node.op == "get_attr":
            return shape
        lengths = []
        for axis, value in enumerate(shape):
            if (node, axis) not in self.shared:
                with self.graph.inserting_after(node):
                    size = self.shared[node, axis] = self.graph.call_method("size", (node, axis))
                size.meta["length"] = value
            lengths.append(Length(value, self.shared[node, axis]))
        return torch.Size(lengths)

    def _as_new(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any, Any]:
        """Say `zeros_like(x)` and `x.new_zeros(shape)` by shape, type and device alone."""
        tensor, *rest = args
        with self._unheard():
            given = {"dtype": tensor.dtype, "device": tensor.device}
        given |= {
            key: item for key, item in kwargs.items() if item is not None and key != "memory_format"
        }
        if name in _LIKE:
            rest = [self._shape(tensor), *rest]
            function = getattr(torch, name.removesuffix("_like"))
        else:
            function = getattr(torch, name.removeprefix("new_"))
            if "size" in given:
                rest = [given.pop("size"), *rest]
        return function, tuple(rest), given

    def _refuse_values(self, args: Any) -> None:
        sources = [self._read(tensor) for tensor in _tensors(args)]
        for flag, what in zip(_FLAGS, ("the images", "its weights")):
            if any(flag in node.meta for node in sources):
                raise InputError(
                    f"{self._refusal()} its code depends on values of {what}: {spell(_place())}"
                )
        if self.device.type == "meta" and sources:
            raise NeedsValuesError

    def _carrier(self, tensor: Tensor) -> Tensor:
        """Give the tensor without values that stands for one with values in a recording without."""
        if self.device.type != "meta" or tensor.is_meta:
            return tensor
        if id(tensor) not in self.carriers:
            self.carriers[id(tensor)] = torch.empty_like(tensor, device="meta")
        return self.carriers[id(tensor)]

    def _handed(self, value: Any) -> Any:
        """Replace what only the recording knows,
        lengths and tensors that others stand for, by what code expects.
        """
        if isinstance(value, Tensor):
            return self._carrier(value)
        if isinstance(value, Length):
            return int(value)
        if type(value) in (tuple, list):
            return type(value)(map(self._handed, value))
        if type(value) is dict:
            return {key: self._handed(item) for key, item in value.items()}
        return value

    def _name(self, spoken: str) -> str:
        return self._count(f"{self.scope[-1]}.{spoken}".removeprefix("."))

    def _count(self, name: str) -> str:
        """Give a name, with the ending _1 if it is given for the second time, and so on."""
        count = self.names.get(name, 0)
        numbered = f"{name}_{count}" if count else name
        while count and numbered in self.taken:
            count += 1
            numbered = f"{name}_{count}"
        self.names[name] = count + 1
        return numbered


def _layer_types() -> tuple[type[nn.Module], ...]:
    """List the modules that are one node each, beside those of torch.nn.

    They are torchvision's own layers (StochasticDepth, …) but not its sequences of layers
    (Conv2dNormActivation, …), and whatever is a BatchNorm.
    """
    own = [
        item
        for item in vars(torchvision.ops).values()
        if isinstance(item, type) and issubclass(item, nn.Module)
    ]
    return (*(item for item in own if not issubclass(item, nn.Sequential)), nn.BatchNorm2d)


def _without_dropout(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Switch a function off that would drop values in evaluation mode too."""
    if name == _ATTENTION:
        place, key, off = 4, "dropout_p", 0.0
    else:
        place, key, off = 2, "train" if "train" in kwargs else "training", False
    if len(args) > place and args[place]:
        args = (*args[:place], off, *args[place + 1 :])
    elif kwargs.get(key):
        kwargs = {**kwargs, key: off}
    else:
        return args, kwargs
    remark(
        f"{name} is random in evaluation mode too, by {spell(_place())}; it is off where the"
        " network is cut"
    )
    return args, kwargs


class DropoutOff(TorchFunctionMode):
    """Switches functions off that would drop values in evaluation mode too, as a recording does."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function, without its dropout."""
        name = getattr(func, "__name__", "")
        if name in _DROPOUTS or name == _ATTENTION:
            args, kwargs = _without_dropout(name, args, kwargs or {})
        return func(*args, **(kwargs or {}))


def _is_method(func: Any) -> bool:
    return getattr(Tensor, getattr(func, "__name__", ""), None) is func


def _tensors_of(model: nn.Module) -> dict[int, str]:
    """Give the path of each tensor that a module holds,
    by id; of one that several hold the first.
    """
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        held = {**vars(module), **module._buffers, **module._parameters}
        for name, value in held.items():
            if isinstance(value, Tensor):
                paths.setdefault(id(value), f"{path}.{name}".removeprefix("."))
    return paths


def _without_values(model: nn.Module, paths: dict[int, str]) -> dict[int, str]:
    """Put tensors without values in the place of a model's; give their paths by id."""
    twins: dict[int, Tensor] = {}
    of_twins: dict[int, str] = {}
    for module in model.modules():
        holders: tuple[dict[str, Any], ...] = (vars(module), module._buffers, module._parameters)
        for held in holders:
            for name, value in held.items():
                if not isinstance(value, Tensor):
                    continue
                if id(value) not in twins:
                    twin = torch.empty_like(value.detach(), device="meta")
                    is_parameter = isinstance(value, nn.Parameter)
                    twins[id(value)] = (
                        nn.Parameter(twin, requires_grad=False) if is_parameter else twin
                    )
                    of_twins[id(twins[id(value)])] = paths[id(value)]
                held[name] = twins[id(value)]
    return of_twins


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Take back what a forward pass leaves in the modules' attributes,
    as masks that are kept for the next pass.
    """
    containers = (dict, list)
    before = []
    for module in model.modules():
        held: dict[str, Any] = dict(vars(module))
        before.append(
            (
                module,
                held,
                {key: item.copy() for key, item in held.items() if isinstance(item, containers)},
            )
        )
    try:
        yield
    finally:
        for module, held, contents in before:
            vars(module).clear()
            vars(module).update(held)
            for key, content in contents.items():
                if isinstance(content, list):
                    held[key][:] = content
                elif [*map(id, held[key].values())] != [*map(id, content.values())]:
                    held[key].clear()
                    held[key].update(content)


def _tensors(value: Any) -> Iterator[Tensor]:
    """Give the tensors in nested tuples, lists, dicts and slices."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, slice):
        yield from _tensors((value.start, value.stop, value.step))


def _storage(tensor: Tensor) -> int:
    """Name the memory of a tensor, which its views share."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse and the like
        return id(tensor)


def _place() -> tuple[str, int] | None:
    """Give the file and line of the network's code that runs:
    the innermost that is neither PyTorch's nor ours.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_foreign(frame):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of(traceback: TracebackType | None) -> tuple[str, int] | None:
    """Give the file and line of a network's code at which an exception passed, the innermost."""
    place = None
    while traceback is not None:
        if not _is_foreign(traceback.tb_frame):
            place = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


def _is_foreign(frame: FrameType) -> bool:
    name = frame.f_code.co_filename
    return name.startswith((_TORCH, "<")) or name in _HERE


def spell(place: tuple[str, int] | None) -> str:
    """Write a file, a line and what stands there."""
    if place is None:
        return "in a place that has no source"
    code = linecache.getline(*place).strip()
    return f"{place[0]}:{place[1]}" + (f" ({code})" if code else "")
