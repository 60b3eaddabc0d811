"""The last layer of Trans-Nets in closed form, given everything below it.

The linear layer beside them is solved in the same way.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from consistency.conjugate_gradients import PassesOverData
from consistency.reconstruction import Loader, Read, instabilities
from consistency.ridge import FOLDS, NormalEquations, RidgeSolution, bytes_needed
from models.trans_net import TransNet
from utils.data.storage import free_bytes
from utils.files import in_words
from utils.progress import Progress
from utils.remarks import remark
from utils.runtime import Runtime

MEMORY_SHARE = 0.5  # of what is free, for the sums of a closed form
NOTEWORTHY_BYTES = 1e8


@torch.no_grad()
def solve(
    members: Sequence[TransNet],
    loader: Loader,
    read: Read,
    runtime: Runtime,
    judges: Loader | None = None,
) -> list[RidgeSolution]:
    """Set W(0) of every member to its ridge solution, given everything below it.

    The sums of all members come from one pass; where memory is short for them, conjugate gradients
    make many passes.

    Args:
        members: put into evaluation mode.
        loader: an unshuffled one of the images that are fitted; its batches end with their indices.
        read: see `reconstruction`.
        runtime: device and processes.
        judges: the same of further images, on which nothing below W(0) was trained: they choose the
            ridge weight, and then they are fitted too. None: it is cross-validated over the images
            of `loader`. Branches that were trained on these have fitted their noise as well, and
            the weight is then too small.

    Returns:
        The solutions, one a member; their errors are cross-validated over images, or those of the
        judges.
    """
    # (C', C, k, k) of each member's last convolution, whose inputs have C channels.
    shapes = [member.eval().last_shape for member in members]
    # All members' sums are in memory at once, since one pass serves all.
    needed_bytes = sum(bytes_needed(shape[1], shape[0], shape[2]) for shape in shapes)
    if needed_bytes > NOTEWORTHY_BYTES:
        remark(f"the closed form takes {in_words(needed_bytes)} of memory")

    def batches(label: str = "") -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give x, the target and what says an image's fold.

        That is its number, or with judges 0 of theirs and 1 of others.
        """
        # Judges come first, as fold 0 of two; without them the images' numbers make the folds.
        for fold, images in ((0, judges), (1, loader)):
            for batch in (
                Progress(images, label, quiet=not label or not runtime.is_main) if images else ()
            ):
                # The numbers stay on the CPU, which has to know the folds.
                numbers = torch.full_like(batch[-1], fold) if judges else batch[-1]
                yield *read(*runtime.to_device(batch)), numbers

    if needed_bytes > MEMORY_SHARE * free_bytes(runtime.device):
        runtime.say(
            f"the closed form has no room for {in_words(needed_bytes)}: conjugate gradients read the"
            " features again and again instead"
        )
        solutions = [
            _solve_by_passes(member, batches, runtime, judged=judges is not None)
            for member in members
        ]
    else:
        solutions = _solve_by_sums(
            members, batches("normal equations"), runtime, judged=judges is not None
        )
    for member, solution in zip(members, solutions):
        member.set_last_weight(solution.weight, solution.constant)
    return solutions


def _solve_by_sums(
    members: Sequence[TransNet],
    batches: Iterable[tuple[Tensor, Tensor, Tensor]],
    runtime: Runtime,
    *,
    judged: bool,
) -> list[RidgeSolution]:
    """Solve every member from the sums of one pass."""
    systems = []
    for member in members:
        out_channels, in_channels, size, _ = member.last_shape
        folds = 2 if judged else FOLDS
        systems.append(NormalEquations(in_channels, out_channels, size, folds, runtime.device))
    # One pass over the features serves every member: their sums differ, the batches do not.
    for x, target, numbers in batches:
        for member, system in zip(members, systems):
            system.add(member.last_input(x), member.standard_target(target), numbers)
    # Sums of several processes add up to those of all images.
    for system in systems:
        for total in system.sums():
            runtime.sum(total)
    # With judges only their fold is held out; otherwise each fold in turn.
    judges = (0,) if judged else None
    return [
        system.solve(constant=member.standardise, judges=judges)
        for member, system in zip(members, systems)
    ]


def _solve_by_passes(
    member: TransNet,
    batches: Callable[[], Iterable[tuple[Tensor, Tensor, Tensor]]],
    runtime: Runtime,
    *,
    judged: bool,
) -> RidgeSolution:
    """Solve one member from many passes."""

    def of_member() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for x, target, numbers in batches():
            yield member.last_input(x), member.standard_target(target), numbers

    # Folds of 2: number 0, the judges, is held out, and number 1 is not.
    shape, folds = member.last_shape, 2 if judged else FOLDS
    passes = PassesOverData(
        of_member, shape, folds=folds, device=runtime.device, all_reduce=runtime.sum
    )
    # One split, where the sums above hold out each fold in turn: every split costs many passes.
    return passes.solve(constant=member.standardise)


class Reference(NamedTuple):
    """The best single linear layer on standardised features: what a Trans-Net is held against.

    Attributes:
        solution: its weights, in the standardised features' units, and its cross-validated error.
        instability: what it leaves unexplained of images that were not fitted; cross-validated
            where there are none.
        measured_on: "held-out images" or "cross-validation".
    """

    solution: RidgeSolution
    instability: float
    measured_on: str

    def record(self) -> dict[str, Any]:
        """Give what checkpoints and reports say of it."""
        return {
            "instability": self.instability,
            "ridge": self.solution.ridge,
            "measured_on": self.measured_on,
        }


def linear_reference(
    linear: TransNet, fitted: Loader, unseen: Loader | None, read: Read, runtime: Runtime
) -> Reference:
    """Fit the linear reference in closed form and measure it.

    Args:
        linear: of one layer that standardises; its standards are set.
        fitted: an unshuffled loader of the images that are fitted.
        unseen: one of other images; None: there are none.
        read: see above.
        runtime: device and processes.
    """
    (solution,) = solve([linear], fitted, read, runtime)
    if held_out := instabilities([linear], unseen, read, runtime):
        return Reference(solution, held_out[0], "held-out images")
    return Reference(solution, solution.error, "cross-validation")
