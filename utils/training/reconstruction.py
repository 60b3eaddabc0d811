"""Fit Trans-Nets to pairs of features: the loss, the last layer in closed form, and what is left unexplained.

Several Trans-Nets that read the same features share each pass over them. A pass is a loader and a function `read` that
makes of its batch, on the device, x (N, C, H, W) and the target (N, C', H', W') as maps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from utils.data.storage import free_bytes
from utils.files import in_words
from utils.measures.conjugate_gradients import PassesOverData
from utils.measures.moments import FeatureMoments
from utils.measures.ridge import NormalEquations, RidgeSolution, bytes_needed
from utils.progress import Progress
from utils.runtime import Runtime
from utils.training.family import Family
from utils.training.losses import order_penalty

Read = Callable[..., tuple[Tensor, Tensor]]
Loader = DataLoader[Any]
MEMORY_SHARE = 0.5  # of what is free, for the sums of a closed form
NOTEWORTHY_BYTES = 1e8
FLAT = 0.01  # relative differences below this are none: of an error over the last tenth of the epochs, of two fits


def reconstruct(
    net: nn.Module, *batch: Tensor, family: Family, alphas: Sequence[Tensor], read: Read
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the members of MSE(g(x), x*) + Σ alpha_k p(k)² (paper Eq. 2): a step of the engine.

    Args:
        net: from `runtime.parallel(family)`.
        batch: of the loader.
        family: the Trans-Nets; the error of one that standardises counts in units of its target's variance.
        alphas: for each member the weights of p(1) … p(K), (K,).
        read: see above.

    Returns:
        The loss, and of member i the metrics `{i}.Loss`, `{i}.MSE` (in the features' units), `{i}.L2_loss`,
        `{i}.p1`, ….
    """
    x, target = read(*batch)
    total, metrics = torch.zeros((), device=target.device), dict[str, Tensor]()
    members: Sequence[Any] = list(family.members)
    for i, (member, alpha, output) in enumerate(zip(members, alphas, net(x))):
        mse, penalty = F.mse_loss(output.float(), target), order_penalty(member.p, alpha)
        loss = mse / member.target_std.square() + penalty
        total = total + loss
        metrics |= {f"{i}.Loss": loss, f"{i}.MSE": mse, f"{i}.L2_loss": penalty}
        metrics |= {f"{i}.p{k}": p for k, p in enumerate(member.p, start=1)}
    return total, metrics


@torch.no_grad()
def set_standards(members: Sequence[Any], loader: Loader, read: Read, runtime: Runtime) -> None:
    """Give the members that standardise the means and deviations of the features, over one pass.

    Args:
        members: `TransNet`s of one pair of shapes.
        loader: an unshuffled one of the images that are fitted.
        read: see above.
        runtime: device and processes.
    """
    standardising = [member for member in members if member.standardise]
    if not standardising:
        return
    x_moments, target_moments = FeatureMoments(), FeatureMoments()
    for batch in Progress(loader, "means", quiet=not runtime.is_main):
        x, target = read(*runtime.to_device(batch))
        x_moments.update(standardising[0].resize(x))
        target_moments.update(target)
    x_moments, target_moments = (merged(moments, runtime) for moments in (x_moments, target_moments))
    for member in standardising:
        member.set_standards(x_moments.mean, x_moments.std, target_moments.mean, target_moments.std)


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


@torch.no_grad()
def instabilities(members: Sequence[Any], loader: Loader | None, read: Read, runtime: Runtime) -> list[float]:
    """Measure Var(x_Δ)/Var(x*) of every member, each channel about its own mean, over one pass.

    Args:
        members: `TransNet`s; put into evaluation mode.
        loader: an unshuffled one of images that were not fitted; None: there are none.
        read: see above.
        runtime: device and processes.

    Returns:
        One number a member, NaN where the target is constant; nothing without a loader.
    """
    if loader is None:
        return []
    left, whole = [FeatureMoments() for _ in members], FeatureMoments()
    for batch in Progress(loader, "held-out error", quiet=not runtime.is_main):
        x, target = read(*runtime.to_device(batch))
        whole.update(target)
        for member, moments in zip(members, left):
            moments.update(target - member.eval()(x))
    variance = merged(whole, runtime).std ** 2
    return [merged(moments, runtime).std ** 2 / variance if variance else float("nan") for moments in left]


def merged(moments: FeatureMoments, runtime: Runtime) -> FeatureMoments:
    """Add up what all processes saw, on the CPU."""
    first, *others = runtime.gather(moments.cpu())
    for other in others:
        first.merge(other)
    return first


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


def closed_form(
    members: Sequence[Any], reference: Reference, loader: Loader, read: Read, runtime: Runtime, *, last: bool
) -> None:
    """Solve W(0) of every member; the last time, take the linear layer alone where its error is smaller.

    A fit that cannot beat it has put nothing into its branches but noise, which W(0) cannot take out again.

    Args:
        members: `TransNet`s.
        reference: on the same images.
        loader: see `solve`.
        read: see above.
        runtime: device and processes.
        last: no epoch follows.
    """
    for member, solution in zip(members, solve(members, loader, read, runtime)):
        if last and member.standardise and member.order and reference.solution.error < solution.error:
            member.set_linear(reference.solution.weight, reference.solution.constant)


def closing_words(errors: Sequence[float], instability: float | None, reference: Mapping[str, Any]) -> str:
    """Say how far a fit got: whether its error still falls, and how it compares with the linear reference.

    Args:
        errors: the mean squared error of every epoch.
        instability: on held-out images, if there are any.
        reference: what is recorded of the linear reference.
    """
    words, linear = [], reference["instability"]
    if len(errors) > 1:
        before = errors[-1 - max(1, len(errors) // 10)]
        change = 1 - errors[-1] / before if before else 0.0
        state = "flat" if abs(change) < FLAT else "not flat yet"
        words.append(f"error {100 * change:.2g} % lower over the last tenth of the epochs: {state}")
    if instability is None:
        words.append(f"linear reference {linear:.4f} by cross-validation; no held-out images to compare it on")
        return "; ".join(words)
    words.append(f"instability {instability:.4f} on held-out images, of the linear reference {linear:.4f}")
    if instability > (1 + FLAT) * linear:
        words.append("WORSE than one linear layer, so it measures this fit and not the nets: try --solve, more epochs")
    return "; ".join(words)
