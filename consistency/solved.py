"""Solved Trans-Nets of one direction of a comparison: fitted to their end, and their null.

A Trans-Net of K + 1 linear layers is fitted as `Training_TransNet.py --until converged` does: the
steps are doubled until that changes nothing, then the spare channels once (`fitting.converge`).
The null is a fit of the same budget to pairs shuffled within the class. Every trial and every fit
is kept as soon as it is there, so that an interrupted comparison goes on behind the last one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from consistency.bootstrap import Interval
from consistency.budget import Budget
from consistency.calibration import shuffled_within_class
from consistency.compared import ComparedLayer, LinearSource, of_size
from consistency.convergence import Convergence
from consistency.factorised_ridge import Maps, take
from consistency.fitting import Fitting, Pairs, converge
from consistency.permutation import Watch
from consistency.reconstruction import Loader, image_errors
from models.pair import read_stored
from models.trans_net import TransNet
from utils.data.loaders import Part, make_loader
from utils.fit_options import ALPHA, FIRST_STEPS, spare_channels
from utils.kept import Kept, Remains, digest
from utils.progress import Meter
from utils.runtime import Runtime, seed_everything, seeded

VERSION = 1  # of what is kept; a change of what is fitted raises it
TRUE, NULL = "true pairs", "null within the class"
USUAL_TRIALS = (1, 2, 4, 2)  # of the first steps: what a search takes that doubles them twice
USUAL_END = 2  # of the first steps: what it then finds


@dataclass(frozen=True)
class Thorough:
    """How Trans-Nets are fitted beside the linear reference.

    Attributes:
        layers: K + 1, of a Trans-Net.
        steps: of the optimiser, with which the search for the end begins.
        batch_size: images of a step.
        seed: of the initialisation, the order of images and the null's pairs.
        runtime: device and precision.
    """

    layers: int = 3
    steps: int = FIRST_STEPS
    batch_size: int = 64
    seed: int = 0
    runtime: Runtime = field(
        default_factory=lambda: Runtime(torch.device("cpu"), (), 0, 1, None, False, 0)
    )

    def budget(self, steps: int | None = None) -> Budget:
        """Give the budget of a fit of so many steps; None: of the first trial."""
        return Budget(steps=steps or self.steps, batch_size=self.batch_size)

    def identity(self) -> dict[str, Any]:
        """Give what a fit depends on."""
        precision = f"{self.runtime.amp_dtype} {self.runtime.device.type}"
        how = {"layers": self.layers, "seed": self.seed, "precision": precision}
        return {"version": VERSION, **how, "budget": asdict(self.budget())}


class FeaturePairs(Dataset[Any]):
    """Pairs of maps of two layers, which are read as they are asked for.

    Args:
        x: (N, C, H, W).
        target: (N, C', H, W).
        order: the target of image order[i] stands beside x of image i, int64 (N,); None: its own.
    """

    def __init__(self, x: Maps, target: Maps, order: Tensor | None = None) -> None:
        self.x, self.target, self.order = x, target, order

    def __len__(self) -> int:
        return len(self.x)

    def __getitems__(self, images: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Give x, the target, and the numbers of the targets' images."""
        rows = np.array(images)
        targets = rows if self.order is None else self.order.numpy()[rows]
        return take(self.x, rows), take(self.target, targets), torch.from_numpy(targets)


class Fitted(NamedTuple):
    """What a fit left.

    Attributes:
        trans_net: in evaluation mode, on the CPU.
        errors: every held-out image's part of Var(x*) and Var(x_Δ), float64 (N', 2).
        record: how far it was fitted: steps, hidden, ridge, whether it is its linear layer.
    """

    trans_net: TransNet
    errors: NDArray[np.float64]
    record: Mapping[str, Any]


class SolvedFits:
    """The Trans-Nets of one direction.

    Args:
        source: x.
        target: of net B.
        labels: the classes of the fitted and of the held-out images; all equal: none.
        thorough: how they are fitted.
        identity: all that the features and their pairing depend on.
        kept: where trials and fits stay.
        meter: of the whole command, in FLOPs; what `usual_flops` says is expected of it already.
    """

    def __init__(
        self,
        source: LinearSource,
        target: ComparedLayer,
        labels: Sequence[Tensor],
        thorough: Thorough,
        identity: Mapping[str, Any],
        kept: Kept,
        meter: Meter,
    ) -> None:
        self.x = source.fitted, source.held_out
        self.target = [of_size(maps, source.size) for maps in (target.fitted, target.held_out)]
        self.kernel_size, self.labels, self.thorough = source.kernel_size, labels, thorough
        self.kept, self.meter = kept, meter
        self.identity = {**identity, **thorough.identity()}

    @property
    def hidden(self) -> int:
        """M of the first trial."""
        return spare_channels(self.x[0].shape[1])

    @property
    def alpha(self) -> Tensor:
        """The weights of p(1) … p(K), (K,)."""
        return torch.full((self.thorough.layers - 1,), ALPHA)

    def make(self, hidden: int) -> TransNet:
        """Make an untrained Trans-Net with M spare channels, the same every time."""
        seed_everything(self.thorough.seed)
        channels = self.x[0].shape[1], self.target[0].shape[1]
        layers, size = self.thorough.layers, self.kernel_size
        return TransNet(*channels, layers, size, standardise=True, hidden=hidden)

    def loader(self, pairs: FeaturePairs, images: Tensor, shuffle: bool = False) -> Loader:
        """Make the loader of some images' pairs."""
        part, thorough = Part(pairs, images.tolist()), self.thorough
        return make_loader(part, thorough.batch_size, shuffle=shuffle, seed=thorough.seed)

    def pairs(self, order: Tensor | None = None) -> Pairs:
        """Give the pairs of the fitted images; see `FeaturePairs` for `order`."""
        pairs = FeaturePairs(self.x[0], self.target[0], order)
        return Pairs(partial(self.loader, pairs), read_stored, torch.arange(len(pairs)))

    def held_out(self) -> Loader:
        """Make the loader of the held-out images' true pairs, in order."""
        pairs = FeaturePairs(self.x[1], self.target[1])
        return self.loader(pairs, torch.arange(len(pairs)))

    @torch.no_grad()
    def show(self, trans_net: TransNet, watch: Watch) -> None:
        """Show what a Trans-Net makes of the held-out images, batch by batch, to `watch`.

        It is shown the images, the target and the prediction, (n, U, D) each, as they are.
        """
        with self._seeded():  # a loader draws a number in every pass
            for x, target, numbers in self.held_out():
                rows = [maps.flatten(2).mT for maps in (target, trans_net(x.float()))]
                watch(slice(int(numbers[0]), int(numbers[-1]) + 1), *rows)

    def find_end(self) -> Convergence:
        """Search the steps and spare channels of which a doubling changes nothing."""
        spent = []

        def remember(steps: int, hidden: int, measure: Callable[[], Interval]) -> Interval:
            spent.append(self._flops(steps, hidden))
            identity = {**self.identity, "trial": [steps, hidden]}
            return Interval(**self._keep("trial", identity, lambda: asdict(measure()), spent[-1]))

        remains = self._remains()
        with self._seeded():
            end = converge(
                self.make,
                self.pairs(),
                self.thorough.budget(),
                self.thorough.runtime,
                hidden=self.hidden,
                alpha=self.alpha,
                remember=remember,
                remains=remains,
            )
        remains.remove()
        # What was expected gives way to what the search took, and to what the two fits will take.
        self.meter.expect(sum(spent) + 2 * self._flops(end.steps, end.hidden) - self.usual_flops())
        return end

    def fit(self, kind: str, end: Convergence) -> Fitted:
        """Fit a Trans-Net with the budget at the end, and measure it on the held-out images.

        Args:
            kind: `TRUE`; or `NULL`: to shuffled pairs, judged on every two images of a class.
            end: steps and spare channels.
        """
        identity = {**self.identity, "fit": [kind, end.steps, end.hidden]}
        flops, remains = self._flops(end.steps, end.hidden), self._remains()
        with self._seeded():
            state = self._keep("fit", identity, partial(self._fit, kind, end, remains), flops)
            trans_net = TransNet(**state["trans_net"])
        remains.remove()
        trans_net.load_state_dict(state["state_dict"])
        return Fitted(trans_net.eval(), state["errors"].numpy(), state["fitted"])

    def _remains(self) -> Remains:
        """Give where an interruption leaves the fit in hand."""
        return Remains(self.kept.path("unfinished", self.identity), digest(self.identity))

    def _fit(self, kind: str, end: Convergence, remains: Remains) -> dict[str, Any]:
        seed, runtime = self.thorough.seed, self.thorough.runtime
        order = classes = None
        if kind == NULL:
            generator = torch.Generator().manual_seed(seed % 2**64)
            order, classes = shuffled_within_class(self.labels[0], generator), self.labels[1]
        fitting = Fitting(
            [self.make(end.hidden)],
            self.pairs(order),
            self.thorough.budget(end.steps),
            runtime,
            alphas=[self.alpha],
        )
        (trans_net,) = fitting.run(f"{kind}, {end.steps} steps", remains).trans_nets
        errors = image_errors(trans_net, self.held_out(), read_stored, runtime, classes)
        trans_net.cpu()
        return {
            "trans_net": trans_net.config,
            "state_dict": trans_net.state_dict(),
            "errors": torch.from_numpy(errors),
            "fitted": fitting.record(0, end.record()),
        }

    def _seeded(self) -> Any:
        return seeded(self.thorough.seed, self.thorough.runtime.device)

    def _keep(
        self,
        name: str,
        identity: Mapping[str, Any],
        compute: Callable[[], Mapping[str, Any]],
        flops: float,
    ) -> Mapping[str, Any]:
        """Give what is kept, or else computed, and tell the meter."""
        cached = self.kept.holds(name, identity)
        with torch.enable_grad():
            result = self.kept.get(name, identity, compute)
        (self.meter.skip if cached else self.meter.add)(flops)
        return result

    def usual_flops(self) -> float:
        """Estimate what the search and both fits take, before the search says it."""
        first = self.thorough.steps
        trials = sum(self._flops(number * first, self.hidden) for number in USUAL_TRIALS)
        return trials + 2 * self._flops(USUAL_END * first, self.hidden)

    def _flops(self, steps: int, hidden: int) -> float:
        """Estimate what a fit takes: a step is three forward passes; W(0) is solved twice."""
        channels, *size = self.target[0].shape[1:]
        width, kernel = self.x[0].shape[1] + hidden, self.kernel_size**2
        weights = kernel * width * ((self.thorough.layers - 1) * width + channels)
        positions = size[0] * size[1]
        solved = 2 * len(self.x[0]) * positions * (kernel * width) ** 2
        return 6.0 * steps * self.thorough.batch_size * positions * weights + 2.0 * solved
