"""A GPU that is not there: the accelerator "simulated", which computes on the CPU.

PyTorch's device type for others' hardware gets kernels in Python. A tensor on `simulated:0` or
`simulated:1` holds one of the CPU, on which every operator runs, so numbers equal those of the CPU.
What a GPU would refuse is refused: tensors of two devices in one operator, NumPy's view of a
tensor on the device, and, on request, float64 (as Apple's MPS does). What would let the
program wait for the GPU is counted by the line of the project that causes it.

    with simulated.accelerator() as waits:
        Training.main([...])
    waits.by_line  # {"utils/training/engine.py:60 read": 3}
"""

import collections
import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils.data.dataloader import _BaseDataLoaderIter

from utils import devices

ROOT = Path(__file__).parents[2]
TRAINING = " train_one_epoch"  # the function in which training waits
NAME, DEVICES, FREE_BYTES = "simulated", 2, 1 << 30
# Their result's shape or their check of errors is read by the host.
WAITING = {
    "aten::_local_scalar_dense",  # item(), tolist() of a scalar, bool(), int(), float()
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::unique_dim",
    "aten::_unique",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::repeat_interleave",
    "aten::_linalg_check_errors",
    "aten::_linalg_eigh",
    "aten::linalg_eig",
    "aten::_linalg_svd",
    "aten::linalg_lstsq",
    "aten::_linalg_solve_ex",
}
COPIES = {"aten::copy_", "aten::_to_copy"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Besides those that compute value by value, these take a scalar from the CPU.
TAKE_A_SCALAR = {"aten::fill_", "aten::masked_fill", "aten::masked_fill_", "aten::index_fill_"}
# PyTorch would make an empty tensor of these and change its form, or, within `torch.tensor`, look
# for a kernel of this name alone.
EXPLICIT = (
    "arange",
    "arange.start",
    "arange.start_step",
    "linspace",
    "eye",
    "eye.m",
    "randperm",
    "copy_",
)
# Autocast's lists of the CPU, so that a run under --amp equals the CPU's.
IN_LOW_PRECISION = (
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d.input"),
    *("linear", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm", "linalg_vecdot"),
    "scaled_dot_product_attention",
)
IN_FLOAT32 = (
    *("mse_loss", "nll_loss", "nll_loss2d", "l1_loss", "smooth_l1_loss", "kl_div"),
    *("cross_entropy_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits"),
    *("prod", "prod.dim_int", "cdist", "trace"),
)
# Those of CUDA's list that the CPU's has not, for float16, which the CPU does not take.
IN_FLOAT32_FOR_FLOAT16 = (
    *("softmax.int", "log_softmax.int", "exp", "log", "pow.Tensor_Scalar"),
    *("sum", "sum.dim_IntList", "linalg_vector_norm", "layer_norm", "group_norm"),
)


class Waits:
    """Counts how often the program would have waited for the device.

    Attributes:
        by_line: "file:line function" of the project → times.
        in_training: of those, the ones within `train_one_epoch` (backward passes included).
        in_batches: of the others, the ones while a loader's batch is in hand.
        batches: that loaders gave, those of training included.
        steps: of optimisers.
        on_device: names of the operators that ran on the device.
    """

    def __init__(self) -> None:
        self.by_line: collections.Counter[str] = collections.Counter()
        self.in_training: collections.Counter[str] = collections.Counter()
        self.in_batches: collections.Counter[str] = collections.Counter()
        self.batches, self.steps = 0, 0
        self.on_device: set[str] = set()
        self._loading: weakref.WeakSet[Any] = weakref.WeakSet()

    def count(self) -> None:
        """Count a wait for the innermost line of the project that is running."""
        lines = list(_lines())
        # A thread of the backward pass has no caller.
        place = lines[0] if lines else "backward"
        training = not lines or any(line.endswith(TRAINING) for line in lines)
        self.by_line[place] += 1
        if training:
            self.in_training[place] += 1
        elif self._loading:
            self.in_batches[place] += 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Count batches and steps."""

        def give(iterator: Any) -> Any:
            self._loading.discard(iterator)  # in case that it has no more
            batch = original(iterator)
            if not any(line.endswith(TRAINING) for line in _lines()):
                self._loading.add(iterator)
            self.batches += 1
            return batch

        def count_step(*_: Any) -> None:
            self.steps += 1

        original = _BaseDataLoaderIter.__next__
        hook = register_optimizer_step_pre_hook(count_step)
        with mock.patch.object(_BaseDataLoaderIter, "__next__", give):
            yield
        hook.remove()


def _lines() -> Iterator[str]:
    """Name the lines of the project that are running, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(f"{ROOT}/") and path != __file__ and "/.venv/" not in path:
            yield f"{path[len(str(ROOT)) + 1 :]}:{frame.f_lineno} {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]


class _State:
    """What the kernels consult: they are registered once a process, and stay."""

    is_available = False
    has_float64 = True
    waits = Waits()
    under_way: ClassVar[list[tuple[Tensor, Tensor]]] = []  # copies to the CPU, and their values


def _synchronize(device: object = None) -> None:
    """Wait for the device: all copies arrive."""
    _State.waits.count()
    while _State.under_way:
        copy, values = _State.under_way.pop()
        copy.copy_(values)


class SimulatedTensor(Tensor):
    """A tensor on the simulated device; `inner` holds its values on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device) -> "SimulatedTensor":
        if inner.dtype == torch.float64 and not _State.has_float64:
            raise TypeError(f"{NAME} has no float64")
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=device,
        )

    def __init__(self, inner: Tensor, device: torch.device) -> None:
        self.inner = inner

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"SimulatedTensor({self.inner}, device={self.device})"

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(f"can't convert {self.device} device type tensor to numpy")
        return self.detach().cpu().numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file that is read on a machine without this device holds the values.
        return self.detach().cpu().__reduce_ex__(protocol)

    # These two let Module.to() exchange a parameter in place, as it does on a real device.
    def __tensor_flatten__(self) -> tuple[list[str], torch.device]:
        return ["inner"], self.device

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], device: torch.device, *_: object) -> Tensor:
        return SimulatedTensor(inner["inner"], device)

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {})


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Map what an operator takes or gives: values, or lists of them."""
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, one) for one in value])
    return function(value)


def _listed(*values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _listed(*value)
        else:
            yield value


def _lowered(value: Any) -> Any:
    """Give what the CPU computes with."""
    if isinstance(value, SimulatedTensor):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) else value


def _run(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operator of the device on the CPU."""
    name, values = op._schema.name, list(_listed(*args, *kwargs.values()))
    tensors = [value for value in values if isinstance(value, SimulatedTensor)]
    wanted = next((value for value in values if isinstance(value, torch.device)), None)
    device = _with_index(wanted or tensors[0].device)
    if name not in COPIES:
        _refuse_two_devices(op, values, device)
    _State.waits.on_device.add(name)
    if _waits(op, args, kwargs, wanted):
        _State.waits.count()
    lowered_args = [_mapped(_lowered, value) for value in args]
    lowered_kwargs = {key: _mapped(_lowered, value) for key, value in kwargs.items()}
    if name == "aten::_to_copy" and device.type == "cpu" and kwargs.get("non_blocking"):
        return _on_its_way(op(*lowered_args, **lowered_kwargs))
    if name == "aten::copy_" and not isinstance(args[0], SimulatedTensor):
        op(*lowered_args, **lowered_kwargs)
        return args[0]
    if torch.Tag.inplace_view in op.tags:  # the outer tensor changes its form as the inner does
        with no_dispatch():
            op(*args, **kwargs)
    # What an operator changes in place is the tensor that it was given.
    given = {id(tensor.inner): tensor for tensor in tensors}

    def raised(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in given:
            return value if device.type == "cpu" else SimulatedTensor(value, device)
        tensor = given[id(value)]
        if (tensor.shape, tensor.stride()) != (value.shape, value.stride()):
            raise NotImplementedError(f"{name} changes a tensor's form in place")
        return tensor

    # As on a GPU, a seed of the CPU's generator gives the device's random numbers.
    return _mapped(raised, op(*lowered_args, **lowered_kwargs))


def _on_its_way(values: Tensor) -> Tensor:
    """Give a copy that does not hold its values before the device is waited for."""
    copy = torch.full_like(values, float("nan") if values.is_floating_point() else 1)
    _State.under_way.append((copy, values))
    return copy


def _with_index(device: torch.device) -> torch.device:
    if device.type == NAME and device.index is None:
        return torch.device(NAME, 0)
    return device


def _refuse_two_devices(op: Any, values: list[Any], device: torch.device) -> None:
    """Refuse tensors of two devices in one operator, with CUDA's exceptions.

    Raises:
        RuntimeError: there are two devices.
    """
    name = op._schema.name
    for value in values:
        if isinstance(value, torch.Generator) and value.device != device:
            raise RuntimeError(f"{name}: a generator on {value.device}, expected {device}")
        if not isinstance(value, Tensor) or value.device == device:
            continue
        is_cpu = value.device.type == "cpu"
        takes_a_scalar = torch.Tag.pointwise in op.tags or name in TAKE_A_SCALAR | INDEXING
        # Indices may be on the CPU, the values that they choose may not.
        if is_cpu and ((value.ndim == 0 and takes_a_scalar) or _is_index(value, name)):
            continue
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, but found at least two,"
            f" {device} and {value.device}"
        )


def _is_index(value: Tensor, name: str) -> bool:
    return name in INDEXING and value.dtype in (torch.int64, torch.bool, torch.uint8)


def _waits(op: Any, args: Any, kwargs: dict[str, Any], wanted: torch.device | None) -> bool:
    """Whether the program would wait for the device."""
    name = op._schema.name
    if name == "aten::copy_":
        moves = args[0].device != args[1].device
        return moves and not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    if name == "aten::_to_copy":
        moves = wanted is not None and _with_index(wanted) != args[0].device
        return moves and not kwargs.get("non_blocking")
    if name == "aten::repeat_interleave":
        return kwargs.get("output_size") is None
    if name in INDEXING:
        # A mask's length is counted; an index on the CPU is copied first.
        indices = [index for index in args[1] if index is not None]
        return any(index.dtype in (torch.bool, torch.uint8) for index in indices) or any(
            index.device.type == "cpu" for index in indices
        )
    return name in WAITING


class _Hooks(torch._C._acc.PrivateUse1Hooks):
    def is_available(self) -> bool:
        return _State.is_available

    def has_primary_context(self, device_index: int) -> bool:
        return True

    def is_built(self) -> bool:
        return True


class _Module:
    """`torch.simulated`, what PyTorch asks of a device type."""

    @staticmethod
    def is_available() -> bool:
        return _State.is_available

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def device_count() -> int:
        return DEVICES if _State.is_available else 0

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def get_device_name(device: object = None) -> str:
        return "computed on the CPU"

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    @staticmethod
    def mem_get_info(device: object = None) -> tuple[int, int]:
        return FREE_BYTES, FREE_BYTES

    # The device's random numbers are those of the CPU's generator, which has its own state.
    @staticmethod
    def manual_seed_all(seed: int) -> None: ...

    @staticmethod
    def get_rng_state(device: object = NAME) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    @staticmethod
    def set_rng_state(state: Tensor, device: object = NAME) -> None: ...


_libraries: list[torch.library.Library] = []  # kernels last as long as these


def register() -> None:
    """Register the device type and its kernels, once a process.

    Before the first backward pass of the process: it starts a thread for each device that there is.
    """
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(
        NAME, backend_module=_Module(), hook=_Hooks()
    )
    every = torch.library.Library("_", "IMPL")
    every.fallback(lambda op, *args, **kwargs: _run(op, args, kwargs), "PrivateUse1")
    # Operators that autocast does not name pass through.
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    named = torch.library.Library("aten", "IMPL")
    for name in EXPLICIT:
        named.impl(name, _kernel(name), "PrivateUse1")
    # Page-locked memory is any other.
    named.impl("_pin_memory", lambda tensor, device=None: tensor.clone(), "CPU")
    for names, dtype in (
        (IN_LOW_PRECISION, _autocast_type),
        (IN_FLOAT32, lambda: torch.float32),
        (IN_FLOAT32_FOR_FLOAT16, _float32_for_float16),
    ):
        for name in names:
            named.impl(name, _autocast(name, dtype), "AutocastPrivateUse1")
    _libraries.extend((every, named))


def _operator(name: str) -> Any:
    packet, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.aten, packet), overload or "default")


def _kernel(name: str) -> Callable[..., Any]:
    op = _operator(name)
    return lambda *args, **kwargs: _run(op, args, kwargs)


def _autocast_type() -> torch.dtype:
    return torch.get_autocast_dtype(NAME)


def _float32_for_float16() -> torch.dtype | None:
    return torch.float32 if _autocast_type() is torch.float16 else None


def _autocast(name: str, dtype: Callable[[], torch.dtype | None]) -> Callable[..., Any]:
    op = _operator(name)
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastPrivateUse1)

    def kernel(*args: Any, **kwargs: Any) -> Any:
        def cast(value: Any) -> Any:
            is_cast = isinstance(value, SimulatedTensor) and value.is_floating_point()
            is_cast = is_cast and value.dtype != torch.float64
            return value.to(wanted) if is_cast and wanted else value

        wanted = dtype()

        with torch._C._ExcludeDispatchKeyGuard(key):
            cast_args = [_mapped(cast, value) for value in args]
            return op(*cast_args, **{key: _mapped(cast, value) for key, value in kwargs.items()})

    return kernel


@contextlib.contextmanager
def accelerator(*, has_float64: bool = True) -> Iterator[Waits]:
    """Let this machine have the simulated accelerator for a block.

    Args:
        has_float64: MPS has none.

    Yields:
        The waits, counted from here on.
    """
    register()
    _State.is_available, _State.has_float64 = True, has_float64
    _State.waits = Waits()
    devices.has_float64.cache_clear()
    with (
        mock.patch.object(torch.accelerator, "synchronize", _synchronize),
        _State.waits.watching(),
    ):
        try:
            yield _State.waits
        finally:
            _State.is_available, _State.has_float64 = False, True
