"""Between an accelerator and the CPU: copies that are seldom waited for, and a place for float64."""

import functools
from typing import Any

import torch
from torch import Tensor

IN_FLIGHT = 64  # copies of a column that may be under way; they hold page-locked memory


def to_cpu(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors to the CPU. A device is waited for once, whatever their number."""
    copies = [tensor.detach().to("cpu", non_blocking=True) for tensor in tensors]
    _wait_for(tensors)
    return copies


class Column:
    """Rows that are kept on the CPU, wherever they are computed.

    From a device each copy begins at once, and a pass goes on meanwhile. All are waited for
    together: where they are read, and after `IN_FLIGHT` of them.

    Args:
        rows: the first ones, (n, …); none: there are none yet.
    """

    def __init__(self, *rows: Tensor) -> None:
        self._arrived = list(rows)
        self._under_way: list[tuple[Tensor, Tensor]] = []  # on the device, on the CPU

    def append(self, rows: Tensor) -> None:
        """Keep rows (n, …) behind those that came before."""
        copy = rows.detach().to("cpu", non_blocking=True)
        self._under_way.append((rows, copy))
        if rows.device.type == "cpu" or len(self._under_way) == IN_FLIGHT:
            self._arrive()

    def add_up(self, rows: Tensor) -> None:
        """Keep the sum (1, …) of all rows alone; it stays on their device until it is read."""
        self._arrived = [torch.cat([rows, *self._arrived]).sum(0, keepdim=True)]

    @property
    def parts(self) -> list[Tensor]:
        """The rows on the CPU in order, in a few tensors."""
        self._arrive()
        self._arrived = to_cpu(*self._arrived)
        return self._arrived

    def joined(self) -> Tensor:
        """Give all rows as one tensor; of one part that is the part itself."""
        parts = self.parts
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def __bool__(self) -> bool:
        return bool(self._arrived or self._under_way)

    def __getstate__(self) -> dict[str, Any]:
        return {"_arrived": self.parts, "_under_way": []}

    def _arrive(self) -> None:
        """Wait for the copies, and join parts as a binary counter carries: few remain."""
        _wait_for([rows for rows, _ in self._under_way])
        for rows, copy in self._under_way:
            # Page-locked memory is given back.
            self._arrived.append(copy if rows.device.type == "cpu" else copy.clone())
            # Many small ones, between the large ones that a forward pass frees, make the heap grow.
            while len(self._arrived) > 1 and len(self._arrived[-1]) >= len(self._arrived[-2]):
                self._arrived[-2:] = [torch.cat(self._arrived[-2:])]
        self._under_way = []


def float64_home(device: torch.device | str) -> torch.device:
    """Say where a device's numbers are added up in float64: there, or on the CPU for want of it."""
    device = torch.device(device)
    return device if device.type == "cpu" or has_float64(device) else torch.device("cpu")


@functools.cache
def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: MPS does not, nor do some of XPU."""
    try:
        torch.ones((), dtype=torch.float64, device=device).neg()
    except (TypeError, RuntimeError):
        return False
    return True


def in_float64(values: Tensor) -> Tensor:
    """Give values in float64, on their device or, where it has none, on the CPU."""
    return values.to(float64_home(values.device), torch.float64)


def _wait_for(tensors: Any) -> None:
    for device in {tensor.device for tensor in tensors if tensor.device.type != "cpu"}:
        torch.accelerator.synchronize(device)
