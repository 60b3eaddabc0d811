"""The last layer of Trans-Nets in closed form, given everything below it, and the linear layer beside them."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from utils.data.storage import free_bytes
from utils.files import in_words
from utils.measures.conjugate_gradients import PassesOverData
from utils.measures.ridge import NormalEquations, RidgeSolution, bytes_needed
from utils.progress import Progress
from utils.runtime import Runtime
from utils.training.family import Member
from utils.training.reconstruction import Loader, Read, instabilities, set_standards

MEMORY_SHARE = 0.5  # of what is free, for the sums of a closed form
NOTEWORTHY_BYTES = 1e8


@torch.no_grad()
def solve(members: Sequence[Any], loader: Loader, read: Read, runtime: Runtime) -> list[RidgeSolution]:
    """Set W(0) of every member to its ridge solution, given everything below it.

    The sums of all members come from one pass; where memory is short for them, conjugate gradients make many passes.

    Args:
        members: `TransNet`s; put into evaluation mode.
        loader: an unshuffled one of the images that are fitted; its batches end with their indices.
        read: see above.
        runtime: device and processes.

    Returns:
        The solutions, one a member; their errors are cross-validated over images.
    """
    shapes = [tuple(member.eval().linear[0].weight.shape) for member in members]
    needed_bytes = sum(bytes_needed(shape[1], shape[0], shape[2]) for shape in shapes)
    if needed_bytes > NOTEWORTHY_BYTES:
        runtime.say(f"the closed form takes {in_words(needed_bytes)} of memory")
    if needed_bytes > MEMORY_SHARE * free_bytes(runtime.device):
        runtime.say("which is not there: conjugate gradients read the features again and again instead")
        solutions = [_solve_by_passes(member, loader, read, runtime) for member in members]
    else:
        solutions = _solve_by_sums(members, loader, read, runtime)
    for member, solution in zip(members, solutions):
        member.set_last_weight(solution.weight, solution.constant)
    return solutions


def _solve_by_sums(members: Sequence[Any], loader: Loader, read: Read, runtime: Runtime) -> list[RidgeSolution]:
    """Solve every member from the sums of one pass."""
    systems = []
    for member in members:
        out_channels, in_channels, size, _ = member.linear[0].weight.shape
        systems.append(NormalEquations(in_channels, out_channels, size, device=runtime.device))
    for batch in Progress(loader, "normal equations", quiet=not runtime.is_main):
        on_device = runtime.to_device(batch)
        x, target = read(*on_device)
        for member, system in zip(members, systems):
            system.add(member.last_input(x), member.standard_target(target), on_device[-1])
    for system in systems:
        for total in system.sums():
            runtime.sum(total)
    return [system.solve(constant=member.standardise) for member, system in zip(members, systems)]


def _solve_by_passes(member: Any, loader: Loader, read: Read, runtime: Runtime) -> RidgeSolution:
    """Solve one member from many passes."""

    def batches() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for batch in loader:
            on_device = runtime.to_device(batch)
            x, target = read(*on_device)
            yield member.last_input(x), member.standard_target(target), on_device[-1]

    shape = tuple(member.linear[0].weight.shape)
    passes = PassesOverData(batches, shape, device=runtime.device, all_reduce=runtime.sum)
    return passes.solve(constant=member.standardise)


class Reference(NamedTuple):
    """The best single linear layer on standardised features: what a Trans-Net is held against.

    Attributes:
        solution: its weights, in the standardised features' units, and its cross-validated error.
        instability: what it leaves unexplained of images that were not fitted; cross-validated where there are none.
        measured_on: "held-out images" or "cross-validation".
    """

    solution: RidgeSolution
    instability: float
    measured_on: str

    def record(self) -> dict[str, Any]:
        """Give what checkpoints and reports say of it."""
        return {
            "instability": self.instability, "ridge": self.solution.ridge, "measured_on": self.measured_on,
        }  # fmt: skip


def linear_reference(linear: Any, fitted: Loader, unseen: Loader | None, read: Read, runtime: Runtime) -> Reference:
    """Fit the linear reference in closed form and measure it.

    Args:
        linear: a `TransNet` of one layer that standardises; its standards are set.
        fitted: an unshuffled loader of the images that are fitted.
        unseen: one of other images; None: there are none.
        read: see above.
        runtime: device and processes.
    """
    (solution,) = solve([linear], fitted, read, runtime)
    if held_out := instabilities([linear], unseen, read, runtime):
        return Reference(solution, held_out[0], "held-out images")
    return Reference(solution, solution.error, "cross-validation")


def solve_or_linear(
    members: Sequence[Any], reference: Reference | None, loader: Loader, read: Read, runtime: Runtime, *, last: bool
) -> None:
    """Solve W(0) of every member; the last time, take the linear layer alone where its error is smaller.

    A fit that cannot beat it has put nothing into its branches but noise, which W(0) cannot take out again.

    Args:
        members: `TransNet`s.
        reference: on the same images; None: it is not known.
        loader: see `solve`.
        read: see above.
        runtime: device and processes.
        last: no epoch follows.
    """
    for member, solution in zip(members, solve(members, loader, read, runtime)):
        if not (last and reference and member.standardise and member.order):
            continue
        if reference.solution.error < solution.error:
            member.set_linear(reference.solution.weight, reference.solution.constant)


class Direction:
    """The Trans-Nets that reconstruct one net's features from the other's, and the linear reference beside them.

    Args:
        members: `TransNet`s of one pair of shapes, on the device.
        fitted: an unshuffled loader of the images that are fitted.
        unseen: one of other images; None: there are none.
        read: makes x and the target, as this direction calls them, of a batch.
        runtime: device and processes.
    """

    def __init__(
        self, members: Sequence[Any], fitted: Loader, unseen: Loader | None, read: Read, runtime: Runtime
    ) -> None:
        self.members, self.linear = members, members[0].linear_reference()
        self.fitted, self.unseen, self.read, self.runtime = fitted, unseen, read, runtime
        self.reference: Reference | None = None

    def begin(self, *, new: bool, reference: bool) -> None:
        """Set the standards, of the members too where they are `new`; fit the linear reference if it is asked for."""
        members = [self.linear, *self.members] if new else [self.linear]
        set_standards(members, self.fitted, self.read, self.runtime)
        if reference:
            self.reference = linear_reference(self.linear, self.fitted, self.unseen, self.read, self.runtime)

    @property
    def record(self) -> dict[str, Any] | None:
        """Give what checkpoints say of the linear reference."""
        return self.reference.record() if self.reference else None


def directions_of(
    members: Sequence[Member],
    reads: Mapping[bool, Read],
    fitted: Loader,
    unseen: Loader | None,
    runtime: Runtime,
) -> dict[bool, Direction]:
    """Part Trans-Nets by their direction; `reads` says of each, forwards and reverse, how it reads a batch."""
    return {
        reverse: Direction(
            [member.trans_net for member in members if member.reverse == reverse], fitted, unseen, read, runtime
        )
        for reverse, read in reads.items()
    }


def instabilities_of(directions: Iterable[Direction]) -> list[float]:
    """Measure the members of all directions on the images that are not fitted; nothing where there are none."""
    found = (instabilities(one.members, one.unseen, one.read, one.runtime) for one in directions)
    return list(itertools.chain.from_iterable(found))


def solve_all(directions: Iterable[Direction], *, last: bool) -> None:
    """Solve W(0) of every member of every direction; see `solve_or_linear`."""
    for one in directions:
        solve_or_linear(one.members, one.reference, one.fitted, one.read, one.runtime, last=last)
