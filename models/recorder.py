"""Record one forward pass of a network as a graph: run its code on images without values.

The network's Python code runs on tensors of PyTorch's device "meta", which have a shape and no
values. Each call of a layer or of a function of PyTorch becomes a node. So loops, lists, assertions,
`isinstance` and arithmetic on shapes work as always, and layers stay modules. Only code that asks
for a *value* of the images or weights is refused.

The graph keeps three things that a list of calls would lose:

* Lengths remember their origin (`models.lengths`): `images.shape[0] * 4` is a node, not 8.
* A call that works in place becomes an input of every later reader of its tensor or of a view of
  it. So a statement whose result is dropped (`self.act(x)`, `x[mask] = 0`) keeps its place.
* Every module names the value that is its output, as a forward hook would see it.
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
from models.meta import ShapesAlone
from utils.errors import InputError
from utils.later import torchvision
from utils.remarks import remark

# Functions that hand values of a tensor to Python. What follows may depend on these values, and a
# graph of one pass would not show it: they are refused (`_refuse_values`).
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
# A node's name where PyTorch names the function otherwise: `x + y` calls `add`, `x += y` `add_`.
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
# Functions that use of their tensor only shape, type and device. They are recorded as a call with
# the shape, so that no value seems to flow from the tensor (`_as_new`).
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
# These belong to torch.nn, but they hold layers and are none: their code is recorded inside.
_FRAMES = (
    nn.Sequential,
    nn.DataParallel,
    nn.TransformerEncoder,
    nn.TransformerDecoder,
    nn.Transformer,
)
# Marks in `node.meta` that pass from a call's inputs to its node.
_FLAGS = ("of_images", "of_weights")
# Files whose frames are no part of the network's code, where a message names a place.
_TORCH = str(Path(torch.__file__).parent)
_HERE = {
    str(Path(__file__).with_name(f"{name}.py"))
    for name in ("graph", "lengths", "recorder", "split")
}


class NeedsValuesError(Exception):
    """The code reads a number that depends on neither images nor weights.

    "meta" tensors cannot answer it; a recording with values can.
    """


def changed(value: Any, statement: Any) -> Any:
    """Give `value`, which `statement` has changed in place.

    It is a node only for the edge to `statement`: the edge keeps the two in order.
    """
    return value


class Recording:
    """A recorded forward pass.

    Attributes:
        graph: the calls. `node.meta` has "shape" (of a tensor) or "length" (of a length), "layer"
            (the readable name) and "at" (file and line of the code). It has "of_images" and
            "of_weights" where the value depends on them, "writes_images" where the call changes
            the images in place, and "device" for the node that is the images' device.
        modules: by path the output of each call of a module, in order; None where that is not one
            tensor.
        constants: by the name of their node the tensors that belong to no module.
    """

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, list[fx.Node | None]] = {}
        self.constants: dict[str, Tensor] = {}


@contextlib.contextmanager
def _without_modes() -> Iterator[None]:
    """Switch dispatch modes off, so that none of them counts the recording's operations."""
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
    """Record a network's forward pass on images of a shape.

    Args:
        model: in evaluation mode; its attributes are restored before this returns.
        shape: (N, 3, S, S).
        with_values: run it on real numbers, which takes as long as inference does.
        up_to_error: where the network fails on such images, give the calls before the error.

    Raises:
        InputError: the code depends on values.
        NeedsValuesError: it does so only if it is run without values.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_without_modes())
        # Tensors of inference mode have no version counter, by which in-place calls are seen.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_attributes_kept(model))
        paths = _tensors_of(model)
        state = model.state_dict().values()
        # Images have the type and the device of the weights.
        example = next((tensor for tensor in state if tensor.is_floating_point()), None)
        device = torch.device("cpu") if example is None else example.device
        dtype = torch.float32 if example is None else example.dtype
        if not with_values:
            paths, device = _without_values(model, paths), torch.device("meta")
            stack.enter_context(device)  # tensors that the code makes have no values either
        # The caller's random numbers stay as they are: `uniform_` and dropout draw some.
        stack.enter_context(torch.random.fork_rng(enabled=with_values))
        images = torch.empty(shape, device=device, dtype=dtype)
        if with_values:
            images.uniform_()
        recorder = _Recorder(model, images, paths)
        stack.enter_context(recorder.listening())
        stack.enter_context(recorder)
        try:
            recorder.finish(model(images))
        except Exception:  # the network's code may raise anything
            if not up_to_error:
                raise
    return recorder.recording


def _run_layer(of_module: Callable[..., Any], layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Call a layer that is one node: nothing in it is recorded, but its functions are heard."""
    with torch._C._EnableTorchFunction(), ShapesAlone():
        return of_module(layer, *args, **kwargs)


class _Names:
    """Readable names of nodes, each given once.

    Args:
        taken: paths of the model's modules, which no node but their own may have.
    """

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken
        self.counts: dict[str, int] = {}  # how often each name was asked for

    def unique(self, name: str) -> str:
        """Give a name: as it is, and from the second time on with _1, _2, … behind it."""
        count = self.counts.get(name, 0)
        numbered = f"{name}_{count}" if count else name
        while count and numbered in self.taken:
            count += 1
            numbered = f"{name}_{count}"
        self.counts[name] = count + 1
        return numbered


class _Recorder(TorchFunctionMode):
    """Writes a recording while it is entered; call `record`, not this.

    Attributes:
        paths: of the model's modules, by id.
        attributes: paths of the tensors that modules hold, by id.
        scope: paths of the modules whose code runs, the innermost last.
        idle: above 0 while nothing is recorded, as inside a layer that is one node.
        shared: nodes that all readers share: of attributes, of lengths, of the device.
        values: by the id of a tensor: the tensor itself, its node, and the time of that. The
            tensor is kept so that Python gives its id to no other one.
        carriers: by the id of a tensor with values the tensor without that is computed with.
        writes: by storage the last call that changed it in place, and the time of that.
        time: the number of calls so far.
    """

    def __init__(self, model: nn.Module, images: Tensor, attributes: dict[int, str]) -> None:
        super().__init__()
        self.recording, self.model = Recording(), model
        self.graph, self.device = self.recording.graph, images.device
        self.paths = {id(module): path for path, module in model.named_modules()}
        self.names = _Names(set(self.paths.values()))
        self.attributes = attributes
        self.layers = _layer_types()
        self.scope = [""]
        self.idle = 0
        self.shared: dict[Any, fx.Node] = {}
        self.values: dict[int, tuple[Tensor, fx.Node, int]] = {}
        self.carriers: dict[int, Tensor] = {}
        self.writes: dict[int, tuple[fx.Node, int]] = {}
        self.time = 0
        # The graph's input is called as `forward` calls it: `x`, `input`, `pixel_values`.
        name = next(iter(inspect.signature(model.forward).parameters), "images")
        node = self.graph.placeholder(name)
        node.meta |= {"layer": self.names.unique(name), "of_images": True}
        with self._unheard():
            self._bind(images, node, set())
            self.images_storage = _storage(images)

    def finish(self, result: Any) -> None:
        """End the graph with the result of the forward pass."""
        with self._unheard():
            self.graph.output(self._encode(result))
        # Code asks for many lengths; those that nothing is computed from are noise.
        for node in reversed(list(self.graph.nodes)):
            if not node.users and ("length" in node.meta or "device" in node.meta):
                self.graph.erase_node(node)

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record calls of modules, and of functions that `torch.fx.wrap` declares as one node."""
        # Patched for the time of the recording: every module's call in this process comes by here.
        of_module = nn.Module.__call__
        # By the scope (a module's globals) and name in which a wrapped function is looked up
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
        if name == "__get__":  # an attribute, such as `x.shape`
            return self._get(func, args)
        if name == "size" and tensor is not None:
            axis = args[1] if len(args) > 1 else kwargs.get("dim")
            return self._shape(tensor) if axis is None else self._shape(tensor)[axis]
        if name in _READ_VALUES:
            self._refuse_values(args)
        if tensor is not None and (name in _LIKE or name in _NEW):
            func, args, kwargs = self._as_new(name, args, kwargs)
        elif name in _AS and isinstance(args[1], Tensor):
            # `x.view_as(y)` → `x.view(y.shape)`: no value of y flows into the result.
            func, args = getattr(Tensor, _AS[name]), (args[0], self._shape(args[1]))
        elif name in _DROPOUTS or name == _ATTENTION:
            args, kwargs = _without_dropout(name, args, kwargs)
        # `x[mask] = y` gives nothing; as a function of the graph it is `operator.setitem`.
        op, target = "call_function", func
        if name == "__setitem__":
            target = operator.setitem
        elif is_tensor_method_or_property(func) or (tensor is not None and _is_method(func)):
            # fx calls a method by its name, on the first argument.
            op, target = "call_method", func.__name__
        return self._record(
            op, target, args, kwargs, func, _SPOKEN.get(name) or name.partition(".")[0]
        )

    def _call(
        self, of_module: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any
    ) -> Any:
        """Record a module's call: a layer's as one node, any other's by the calls inside."""
        path = self.paths.get(id(module))
        if self.idle or not path:
            return of_module(module, *args, **kwargs)
        if self._is_layer(module):
            with self._unheard():
                run = functools.partial(_run_layer, of_module, module)
                output = self._record("call_module", path, args, kwargs, run, None)
        else:
            self.scope.append(path)
            try:
                output = of_module(module, *args, **kwargs)
            finally:
                self.scope.pop()
        # A forward hook may have returned another tensor than the layer: read what came back.
        with self._unheard():
            node = self._read(output) if isinstance(output, Tensor) else None
        self.recording.modules.setdefault(path, []).append(node)
        return output

    def _is_layer(self, module: nn.Module) -> bool:
        """Whether a module is one node, and not a frame around others."""
        if isinstance(module, _FRAMES):
            return False
        # By where its class is defined: a subclass in the net's own code may do more than its base,
        # and so is recorded inside.
        return isinstance(module, self.layers) or type(module).__module__.startswith(
            ("torch.nn.", "timm.layers.drop")
        )

    def _keep_whole(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that each call of it is one node."""

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
        """Make a call, add its node, and bind the tensors that it returns or changes to nodes.

        Args:
            op: the node's kind, as torch.fx calls it.
            target: the node's target, as torch.fx calls it.
            args: the call's arguments.
            kwargs: the call's keywords.
            run: makes the call.
            spoken: the last word of the node's name; None: the target is its name.
        """
        refusal, encoded = None, None
        try:
            # Before the call, since one that works in place gives its arguments other nodes.
            encoded = self._encode(tuple(args)), self._encode(dict(kwargs))
        except InputError as error:
            refusal = error  # raised below, if the call is an operation on tensors at all

        # PyTorch counts in `_version` how often a tensor was changed in place, views included.
        tensors = list(_tensors((args, kwargs)))
        carriers = [self._carrier(tensor) for tensor in tensors]
        versions = [carrier._version for carrier in carriers]
        with self._unheard():
            output = run(*self._plain(tuple(args)), **self._plain(dict(kwargs)))
        changes = [carrier._version != version for carrier, version in zip(carriers, versions)]
        if not any(changes) and next(_tensors(output), None) is None:
            return output  # a number, a flag or nothing: of no interest to the graph
        if encoded is None:
            raise refusal or AssertionError

        # Calls are numbered, so that a write can be told to lie before or behind a reading.
        self.time += 1
        node = self.graph.create_node(op, target, *encoded)
        name = self.names.unique(target) if spoken is None else self._name(spoken)
        node.meta |= {"layer": name, "at": _place()}
        node.meta |= _flags(*node.all_input_nodes)
        if op == "call_module":
            node.meta["of_weights"] = True
        for carrier, is_changed in zip(carriers, changes):
            if is_changed:
                self.writes[_storage(carrier)] = (node, self.time)
                if _storage(carrier) == self.images_storage:
                    node.meta["writes_images"] = True
        unchanged = {id(tensor) for tensor, is_changed in zip(tensors, changes) if not is_changed}
        return self._bind(output, node, unchanged)

    def _bind(self, output: Any, node: fx.Node, unchanged: set[int]) -> Any:
        """Bind a call's output to its node; of several tensors, each to a node of its own.

        Args:
            output: of the call.
            node: the call's.
            unchanged: ids of the call's input tensors that it did not change.

        Returns:
            What the code gets. Where a call returns its unchanged input, as Dropout does in
            evaluation mode, the code gets another tensor of the same storage. Otherwise Dropout's
            node would stand for its input elsewhere, too.
        """
        if isinstance(output, Tensor):
            if id(output) in unchanged or id(output) in self.attributes:
                output = self._alias(output)
            node.meta["shape"] = tuple(output.shape)
            self.values[id(output)] = (output, node, self.time)
            return output
        if next(_tensors(output), None) is None:
            return output
        keys = list(output) if isinstance(output, dict) else range(len(output))
        pieces = {}
        for key in keys:
            pieces[key] = output[key]
            if next(_tensors(output[key]), None) is not None:
                piece = self.graph.call_function(operator.getitem, (node, key))
                piece.meta |= {"layer": self._name("getitem"), "at": node.meta["at"]}
                piece.meta |= _flags(node)
                pieces[key] = self._bind(output[key], piece, unchanged)
        if all(pieces[key] is output[key] for key in keys):
            return output
        if isinstance(output, dict):
            return type(output)(pieces)
        if hasattr(output, "_fields"):  # a NamedTuple takes its entries one by one
            return type(output)(*pieces.values())
        return type(output)(pieces.values())

    def _alias(self, tensor: Tensor) -> Tensor:
        """Make another tensor of the same storage and shape."""
        with self._unheard():
            return self._carrier(tensor).view(tensor.shape)

    def _read(self, tensor: Tensor) -> fx.Node:
        """Give the node of a tensor's value now, after all changes in place."""
        if id(tensor) not in self.values:
            # No call returned it: it was there at time 0.
            self.values[id(tensor)] = (tensor, self._attribute(tensor), 0)
        _, node, bound_at = self.values[id(tensor)]
        write, written_at = self.writes.get(_storage(self._carrier(tensor)), (node, 0))
        if written_at <= bound_at:
            return node

        # A call changed this storage since: `changed` makes that call an input of every reader.
        current = self.graph.call_function(changed, (node, write))
        current.meta |= {"shape": tuple(tensor.shape), "at": write.meta["at"]}
        current.meta |= _flags(node, write)
        # A statement such as `x[mask] = 0` returns nothing: the first value after it takes its name.
        is_nameless = "shape" not in write.meta and "value" not in write.meta
        name = write.meta["layer"]
        current.meta["layer"] = name if is_nameless else self.names.unique(name)
        write.meta["value"] = current
        self.values[id(tensor)] = (tensor, current, written_at)
        return current

    def _encode(self, value: Any) -> Any:
        """Turn a call's arguments into those of its node: nodes in place of tensors and lengths."""
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
        # A NumPy number, such as a rate from `numpy.linspace`
        elif type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            encoded = value.item()
        else:
            raise self._odd(value)
        return encoded

    def _odd(self, value: Any) -> InputError:
        """Give the error for an argument that a graph cannot hold."""
        return InputError(
            f"{self._refusal()} an operation takes a {type(value).__name__}: {spell(_place())}"
        )

    def _refusal(self) -> str:
        return f"this {type(self.model).__name__} cannot be cut, because"

    def _attribute(self, value: Tensor) -> fx.Node:
        """Give the node of a tensor that no call returned: an attribute's, or a constant's."""
        path = self.attributes.get(id(value))
        if path is None:
            if value.is_meta:  # it has no values that could be kept as a constant
                raise InputError(
                    f"{self._refusal()} a tensor is made out of PyTorch's sight: {spell(_place())}"
                )
            # No module's: a global of the code, or made of NumPy's numbers. It is kept by value.
            path = f"_constant_{len(self.recording.constants)}"
            self.recording.constants[path] = value.detach()
        if path not in self.shared:
            node = self.shared[path] = self.graph.create_node("get_attr", path)
            node.meta["shape"] = tuple(value.shape)
            if isinstance(value, nn.Parameter):
                node.meta["of_weights"] = True
        return self.shared[path]

    def _device_node(self) -> fx.Node:
        """Give the node of the images' device, so that the graph follows its images."""
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
        """Give a tensor's shape, whose lengths remember the tensor."""
        with self._unheard():
            shape = tensor.shape
        node = self._read(tensor)
        if node.op == "get_attr":  # a weight's shape is the same for all images
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
        """Write `zeros_like(x)` and `x.new_zeros(shape)` as `zeros(shape, dtype=…, device=…)`.

        Returns:
            The function, its arguments and its keywords.
        """
        tensor, *rest = args
        with self._unheard():
            keywords = {"dtype": tensor.dtype, "device": tensor.device}
        keywords |= {
            key: item for key, item in kwargs.items() if item is not None and key != "memory_format"
        }
        if name in _LIKE:
            rest = [self._shape(tensor), *rest]
            function = getattr(torch, name.removesuffix("_like"))
        else:
            function = getattr(torch, name.removeprefix("new_"))
            if "size" in keywords:
                rest = [keywords.pop("size"), *rest]
        return function, tuple(rest), keywords

    def _refuse_values(self, args: Any) -> None:
        """Refuse to hand values of tensors to the code.

        Raises:
            InputError: they depend on the images or the weights.
            NeedsValuesError: they do not, but this recording has no values.
        """
        sources = [self._read(tensor) for tensor in _tensors(args)]
        for flag, what in zip(_FLAGS, ("the images", "its weights")):
            if any(flag in node.meta for node in sources):
                raise InputError(
                    f"{self._refusal()} its code depends on values of {what}: {spell(_place())}"
                )
        if self.device.type == "meta" and sources:
            raise NeedsValuesError

    def _carrier(self, tensor: Tensor) -> Tensor:
        """Give the tensor that calls are computed with in the place of another.

        In a recording without values a constant's place is taken by a tensor without values:
        PyTorch mixes no devices.
        """
        if self.device.type != "meta" or tensor.is_meta:
            return tensor
        if id(tensor) not in self.carriers:
            self.carriers[id(tensor)] = torch.empty_like(tensor, device="meta")
        return self.carriers[id(tensor)]

    def _plain(self, value: Any) -> Any:
        """Replace a recording's own objects by those that code expects: carriers and integers."""
        if isinstance(value, Tensor):
            return self._carrier(value)
        if isinstance(value, Length):
            return int(value)
        if type(value) in (tuple, list):
            return type(value)(map(self._plain, value))
        if type(value) is dict:
            return {key: self._plain(item) for key, item in value.items()}
        return value

    def _name(self, spoken: str) -> str:
        """Name a node of the module whose code runs: `layer3.5.add`, `layer3.5.add_1`, …"""
        return self.names.unique(f"{self.scope[-1]}.{spoken}".removeprefix("."))


def _flags(*sources: fx.Node) -> dict[str, bool]:
    """Give the marks of `_FLAGS` that at least one of some nodes has."""
    return {flag: True for flag in _FLAGS if any(flag in source.meta for source in sources)}


def _layer_types() -> tuple[type[nn.Module], ...]:
    """List the classes of modules that are one node each, besides those of torch.nn.

    They are torchvision's layers (StochasticDepth, …), but not its sequences of layers
    (Conv2dNormActivation, …), and every BatchNorm.
    """
    modules = [
        item
        for item in vars(torchvision.ops).values()
        if isinstance(item, type) and issubclass(item, nn.Module)
    ]
    return (*(item for item in modules if not issubclass(item, nn.Sequential)), nn.BatchNorm2d)


def _without_dropout(name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Switch the dropout of a function off, where it is on in evaluation mode too.

    Returns:
        The function's arguments and keywords.
    """
    # The argument that switches it, by position and by name
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
    """Give the path of each tensor that a module holds, by id; a shared one has the first path."""
    paths: dict[int, str] = {}
    for path, module in model.named_modules():
        attributes = {**vars(module), **module._buffers, **module._parameters}
        for name, value in attributes.items():
            if isinstance(value, Tensor):
                paths.setdefault(id(value), f"{path}.{name}".removeprefix("."))
    return paths


def _without_values(model: nn.Module, paths: dict[int, str]) -> dict[int, str]:
    """Replace a model's tensors by tensors without values, in place.

    Args:
        model: of which `_attributes_kept` restores the tensors.
        paths: of its tensors, by id.

    Returns:
        The paths of the new tensors, by their ids.
    """
    blanks: dict[int, Tensor] = {}  # by the id of the tensor that each replaces
    for module in model.modules():
        # PyTorch keeps parameters and buffers in dictionaries of their own.
        holders: tuple[dict[str, Any], ...] = (vars(module), module._buffers, module._parameters)
        for holder in holders:
            tensors = {name: item for name, item in holder.items() if isinstance(item, Tensor)}
            for name, tensor in tensors.items():
                if id(tensor) not in blanks:  # tied weights stay tied
                    blank = torch.empty_like(tensor.detach(), device="meta")
                    if isinstance(tensor, nn.Parameter):
                        blank = nn.Parameter(blank, requires_grad=False)
                    blanks[id(tensor)] = blank
                holder[name] = blanks[id(tensor)]
    return {id(blank): paths[original] for original, blank in blanks.items()}


@contextlib.contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Restore the modules' attributes afterwards, such as masks that a forward pass keeps."""
    before = []
    for module in model.modules():
        attributes: dict[str, Any] = dict(vars(module))
        # Dictionaries and lists, the parameters' among them, are changed in place: copy them.
        contents = {
            name: item.copy() for name, item in attributes.items() if isinstance(item, dict | list)
        }
        before.append((module, attributes, contents))
    try:
        yield
    finally:
        for module, attributes, contents in before:
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                container = attributes[name]
                if isinstance(content, list):
                    container[:] = content
                # Compare by identity: `==` on tensors compares values, which "meta" has not.
                elif [*map(id, container.values())] != [*map(id, content.values())]:
                    container.clear()
                    container.update(content)


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
    """Give the file and line of the network's code that runs now.

    It is the innermost frame that is neither PyTorch's nor the recording's.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_foreign(frame):
        frame = frame.f_back
    return None if frame is None else (frame.f_code.co_filename, frame.f_lineno)


def place_of(traceback: TracebackType | None) -> tuple[str, int] | None:
    """Give the innermost file and line of a network's code that an exception passed."""
    place = None
    while traceback is not None:
        if not _is_foreign(traceback.tb_frame):
            place = (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno)
        traceback = traceback.tb_next
    return place


def _is_foreign(frame: FrameType) -> bool:
    """Whether a frame is no part of the network's code; "<…>" is generated code."""
    name = frame.f_code.co_filename
    return name.startswith((_TORCH, "<")) or name in _HERE


def spell(place: tuple[str, int] | None) -> str:
    """Write a place for a message: the file, the line number and the code there."""
    if place is None:
        return "in a place that has no source"
    code = linecache.getline(*place).strip()
    return f"{place[0]}:{place[1]}" + (f" ({code})" if code else "")
