"""Fit Trans-Nets to pairs of features: the loss, the epochs, and what is left unexplained.

Several Trans-Nets that read the same features share each pass over them. A pass is a loader and a
function `read` that makes of its batch, on the device, x (N, C, H, W) and the target (N, C', H',
W') as maps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from consistency.calibration import errors_of_untrue_pairs
from consistency.family import Family
from consistency.moments import FeatureMoments, ImageMoments
from consistency.pair_sums import PairSums
from models.trans_net import TransNet
from utils.progress import Progress
from utils.runtime import Runtime
from utils.training.losses import order_penalty

Read = Callable[..., tuple[Tensor, Tensor]]
Loader = DataLoader[Any]


class Mergeable(Protocol):
    """What keeps sums or rows of the images that it saw."""

    def merge(self, other: Any) -> None:
        """Add what another process saw."""


Seen = TypeVar("Seen", bound=Mergeable)


def reconstruct(
    net: nn.Module,
    *batch: Tensor,
    family: Family,
    alphas: Sequence[Tensor],
    read: Read,
    throughs: Mapping[bool, nn.Module] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Sum over the members of MSE(g(x), x*) + Σ alpha_k p(k)² (paper Eq. 2): a step of the engine.

    Args:
        net: from `runtime.parallel(family)`.
        batch: of the loader.
        family: the Trans-Nets; the error of one that standardises counts in units of its target's
            variance.
        alphas: for each member the weights of p(1) … p(K), (K,).
        read: see above.
        throughs: what of x* and g(x) is compared: B's frozen layers from there on, and under True
            of the members that reconstruct x: A's; the error counts in units of the batch's
            variance. None: they themselves.

    Returns:
        The loss, and of member i the metrics `{i}.Loss`, `{i}.MSE` (in the units of what is
        compared), `{i}.L2_loss`, `{i}.p1`, ….
    """
    x, target = read(*batch)
    total, metrics = torch.zeros((), device=target.device), dict[str, Tensor]()
    members = family.trans_nets
    # True: of members that reconstruct x
    throughs, goals = throughs or {}, {False: target, True: x}
    goals |= {back: through(goals[back]).float() for back, through in throughs.items()}
    for i, (member, alpha, back, output) in enumerate(
        zip(members, alphas, family.backwards, net(x, target))
    ):
        through, wanted = throughs.get(back), goals[back]
        compared = output if through is None else through(output)
        mse, penalty = F.mse_loss(compared.float(), wanted), order_penalty(member.p, alpha)
        # A standardising member's loss is a share of Var(x*), whatever the units of the layer.
        loss = mse / (member.target_std.square() if through is None else wanted.var()) + penalty
        # Members share no parameter: the gradient of the sum is each one's own.
        total = total + loss
        metrics |= {f"{i}.Loss": loss, f"{i}.MSE": mse, f"{i}.L2_loss": penalty}
        metrics |= {f"{i}.p{k}": p for k, p in enumerate(member.p, start=1)}
    return total, metrics


@torch.no_grad()
def set_standards(
    members: Sequence[TransNet], loader: Loader, read: Read, runtime: Runtime
) -> None:
    """Give the members that standardise the means and deviations of the features, over one pass.

    Args:
        members: of one pair of shapes.
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
        # x is measured as the member reads it: resized to the target's H' × W'.
        x_moments.update(standardising[0].resize(x))
        target_moments.update(target)
    # Sums from all processes, so that all standardise alike.
    x_moments, target_moments = (
        merged(moments.cpu(), runtime) for moments in (x_moments, target_moments)
    )
    for member in standardising:
        member.set_standards(x_moments.mean, x_moments.std, target_moments.mean, target_moments.std)


@torch.no_grad()
def instabilities(
    members: Sequence[TransNet], loader: Loader | None, read: Read, runtime: Runtime
) -> list[float]:
    """Measure Var(x_Δ)/Var(x*) of every member, each channel about its own mean, over one pass.

    Args:
        members: put into evaluation mode.
        loader: an unshuffled one of images that were not fitted; None: there are none.
        read: see above.
        runtime: device and processes.

    Returns:
        One number a member, NaN where the target is constant; nothing without a loader.
    """
    if loader is None:
        return []
    # Moments of x_Δ of each member, and of x*
    residuals, whole = [FeatureMoments() for _ in members], FeatureMoments()
    for batch in Progress(loader, "held-out error", quiet=not runtime.is_main):
        x, target = read(*runtime.to_device(batch))
        whole.update(target)
        for member, moments in zip(members, residuals):
            moments.update(target - member.eval()(x))
    # All members share the target, whose variance is measured once.
    variance = merged(whole.cpu(), runtime).std ** 2
    return [
        merged(moments.cpu(), runtime).std ** 2 / variance if variance else float("nan")
        for moments in residuals
    ]


@torch.no_grad()
def image_errors(
    member: TransNet, loader: Loader, read: Read, runtime: Runtime, classes: Tensor | None = None
) -> NDArray[np.float64]:
    """Give every image's part of Var(x*) and Var(x_Δ); all processes get those of all images.

    Args:
        member: put into evaluation mode.
        loader: an unshuffled one; its batches end with the images' indices.
        read: see above.
        runtime: device and processes.
        classes: int64 (N,): Var(x_Δ) is then that of all pairs of two images of a class, see
            `errors_of_untrue_pairs`; two passes more. None: of the pairs as they come.

    Returns:
        (N, 2); its sums over images are the variances, each channel's about its own mean.
    """
    member.eval()
    moments = ImageMoments()
    for indices, target, output in _outputs(member, loader, read, runtime):
        # x* = g(x) + x_Δ: with g(x) as the only component, both variances follow.
        moments.update(output[None], target - output, indices)
        channels = target.shape[1]
    errors = merged(moments, runtime).target_and_residual()
    if classes is not None:

        def predictions() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            for indices, *maps in _outputs(member, loader, read, runtime):
                # (N, D, H, W) → (N, D, U) → (N, U, D) → (N, U, 1, D): one regression
                target, output = (feature.float().flatten(2).mT.unsqueeze(2) for feature in maps)
                yield indices, target, output

        shape, like = (moments.positions, 1, channels), torch.zeros((), device=runtime.device)
        untrue = errors_of_untrue_pairs(predictions, classes, shape, like, runtime.sum)
        # A variance is a mean over N·U·D values.
        errors[:, 1] = untrue[:, 0].cpu() / (len(classes) * moments.positions * channels)
    return errors


def _outputs(
    member: TransNet, loader: Loader, read: Read, runtime: Runtime
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield the images' indices, the target and its reconstruction, over one pass."""
    for batch in Progress(loader, "held-out images", quiet=not runtime.is_main):
        on_device = runtime.to_device(batch)
        x, target = read(*on_device)
        yield on_device[-1], target, member(x)


def pair_sums(loader: Loader, read: Read, runtime: Runtime) -> PairSums:
    """Keep the sums that similarities of x and the target follow from.

    They take one pass; see `image_errors`.
    """
    sums = PairSums()
    for batch in Progress(loader, "similarities", quiet=not runtime.is_main):
        sums.update(*read(*runtime.to_device(batch)))
    return merged(sums.cpu(), runtime)


def merged(seen: Seen, runtime: Runtime) -> Seen:
    """Add up what all processes saw; it is on the CPU."""
    first, *others = runtime.gather(seen)
    for other in others:
        first.merge(other)
    return first
