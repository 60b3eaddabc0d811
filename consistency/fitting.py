"""One fit from its first pass to its last.

It goes from standards, linear reference and closed form through the epochs to what stays
unexplained.

Training_TransNet.py, Calibrate.py and Python fit by it alike.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from consistency import reconstruction
from consistency.bootstrap import Interval, bootstrap
from consistency.budget import Budget
from consistency.calibration import instability_of
from consistency.closed_form import Reference, linear_reference, solve
from consistency.convergence import UNTRIED, Convergence, search
from consistency.family import Family
from consistency.reconstruction import Loader, Read, image_errors, instabilities, set_standards
from models.trans_net import TransNet
from utils.checkpoint import State
from utils.kept import Remains
from utils.progress import Progress
from utils.runtime import Runtime
from utils.training.engine import Fit, saved_midway, train_one_epoch
from utils.training.schedules import due, each_step, set_learning_rate

FIRST_IMAGES = 500  # enough for the W(0) that a budget in steps begins with
# With a budget in steps, on every tenth fitted image W(0) alone is fitted: it judges what the
# others made
JUDGES = 10
HELD_OUT = 5  # while the end of a fit is looked for, every fifth fitted image is held out from it


class Pairs(NamedTuple):
    """Pairs of features: which images are fitted, which are not, and how they are read.

    Attributes:
        load: `load(images, shuffle=…)`, a loader of these images, int64 (n,); its batches end
            with their indices.
        read: a batch on the device → x (N, C, H, W) and the target (N, C', H', W') as maps.
        fitted: the images that are fitted, int64 (N,).
        unseen: an unshuffled loader of images that are not; None: there are none.
    """

    load: Callable[..., Loader]
    read: Read
    fitted: Tensor
    unseen: Loader | None = None

    def in_direction(self, reverse: bool) -> Read:
        """Give how a direction reads a batch; `reverse`: x is B's feature and the target A's."""
        return partial(_read_reversed, read=self.read) if reverse else self.read

    def inside(self) -> "Pairs":
        """Give the same with every fifth of the fitted images held out, and nothing else."""
        kept, aside = every_so_many(self.fitted, HELD_OUT)
        return self._replace(fitted=kept, unseen=self.load(aside, shuffle=False))


def every_so_many(images: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Set every `number`-th image aside; give those that stay, and those."""
    aside = torch.arange(len(images)) % number == number - 1
    return images[~aside], images[aside]


def _read_reversed(*batch: Tensor, read: Read) -> tuple[Tensor, Tensor]:
    x, target = read(*batch)
    return target, x


class Beside(NamedTuple):
    """The linear layer beside the fits of one direction.

    Attributes:
        linear: of one layer, whose standards are those of the features.
        reference: its solution and what it leaves; None: it was not asked for.
        judged: what such a layer that was fitted to the other images leaves of the judges; None:
            there are none.
    """

    linear: TransNet
    reference: Reference | None
    judged: float | None = None

    def record(self) -> dict[str, Any] | None:
        """Give what checkpoints say of the linear reference."""
        return self.reference.record() if self.reference else None


class Fitting:
    """Trans-Nets that are fitted together, each as it would be alone.

        fitting = Fitting([trans_net], pairs, budget, runtime)
        fitting.run()
        fitting.instabilities()      # on the images that are not fitted

    Args:
        trans_nets: moved to the device.
        pairs: what they are fitted to.
        budget: how far and by what.
        runtime: device, processes, precision.
        backwards: for each whether it reconstructs x from the target; None: none does.
        alphas: for each the weights of p(1) … p(K), (K,); None: no penalty.
        throughs: see `reconstruct`; with them W(0) is solved first alone.
        beside: what other fits to the same images have beside them, by direction; it is filled
            here.
        reference: fit the linear reference, and let it take the place of what leaves more than it.
            With a budget in steps that is decided on judges, a tenth of the fitted images, to which
            W(0) alone is fitted, at the very end; else by the cross-validated errors of W(0), given
            branches that have seen all folds.
        fallback: let it take that place.
    """

    def __init__(
        self,
        trans_nets: Sequence[TransNet],
        pairs: Pairs,
        budget: Budget,
        runtime: Runtime,
        *,
        backwards: Sequence[bool] | None = None,
        alphas: Sequence[Tensor] | None = None,
        throughs: Mapping[bool, nn.Module] | None = None,
        beside: dict[bool, Beside] | None = None,
        reference: bool = True,
        fallback: bool = True,
    ) -> None:
        self.trans_nets, self.pairs, self.budget, self.runtime = (
            list(trans_nets),
            pairs,
            budget,
            runtime,
        )
        self.backwards = list(backwards or [False] * len(self.trans_nets))
        self.beside: dict[bool, Beside] = {} if beside is None else beside
        self.throughs, self._with_reference, self._fallback = throughs, reference, fallback
        # One module, so that one optimiser and one backward pass serve all.
        family = Family(self.trans_nets, self.backwards)
        net = runtime.parallel(family)
        self.fit = Fit(
            net,
            family,
            budget.optimizer(family),
            runtime.grad_scaler(),
            runtime,
            budget.print_freq,
            skip_nonfinite=budget.skip_nonfinite,
        )
        # Eq. 2 without its penalty
        weights = alphas or [torch.zeros(one.order) for one in self.trans_nets]
        self.step = partial(
            reconstruction.reconstruct,
            family=family,
            alphas=[one.to(runtime.device) for one in weights],
            read=pairs.read,
            throughs=throughs,
        )
        # Judges need a closed form that is compared, and images enough to spare.
        judged = (
            budget.steps
            and budget.solve is not None
            and not throughs
            and len(pairs.fitted) >= 2 * JUDGES
        )
        self.trained, judges = (
            every_so_many(pairs.fitted, JUDGES) if judged else (pairs.fitted, None)
        )
        self.judges = None if judges is None else pairs.load(judges, shuffle=False)
        self.rates = budget.rates(budget.batches(len(self.trained), runtime.world_size))
        # Of each Trans-Net the errors of itself and of the linear layer on images aside, and which
        # was taken.
        self.compared: list[dict[str, Any] | None] = [None] * len(self.trans_nets)
        # Of each Trans-Net the ridge weight of its last closed form.
        self.ridges: list[float | None] = [None] * len(self.trans_nets)

    @property
    def directions(self) -> dict[bool, list[int]]:
        """Say which Trans-Nets read A's features (False), and which B's (True)."""
        numbers = range(len(self.backwards))
        return {
            back: [i for i in numbers if self.backwards[i] == back]
            for back in dict.fromkeys(self.backwards)
        }

    def begin(self, *, start_epoch: int = 0) -> None:
        """Set the standards, fit the linear reference, and solve W(0).

        A fit that goes on keeps what it has.
        """
        is_new = start_epoch == 0 and not self.fit.midway.taken(0)
        for back, numbers in self.directions.items():
            of_direction = [self.trans_nets[i] for i in numbers]
            if back not in self.beside:
                self.beside[back] = self._make_beside(of_direction[0].linear_reference(), back)
            # One linear layer a direction, fitted once and kept for other fits of the same
            # features.
            linear = self.beside[back].linear
            # All Trans-Nets of a direction read the same features, and share the linear layer's
            # standards.
            for one in of_direction if is_new else ():
                if one.standardise:
                    one.set_standards(
                        linear.x_mean,
                        float(linear.x_std),
                        linear.target_mean,
                        float(linear.target_std),
                    )
        # A fit without epochs is solved once, for the first and the last time.
        if self.budget.solve is not None and is_new:
            self.solve(last=not self.rates, first=True)

    def _make_beside(self, linear: TransNet, back: bool) -> Beside:
        in_order, read = (
            self.pairs.load(self.pairs.fitted, shuffle=False),
            self.pairs.in_direction(back),
        )
        set_standards([linear], in_order, read, self.runtime)
        if not self._with_reference:
            return Beside(linear, None)
        return Beside(
            linear, linear_reference(linear, in_order, self.pairs.unseen, read, self.runtime)
        )

    def epochs(
        self, start_epoch: int = 0, leave: Callable[[dict[str, Any]], None] | None = None
    ) -> Iterator[tuple[int, dict[str, float]]]:
        """Train epoch by epoch, with the closed form where it is due.

        It yields the epoch, from 0, and its metrics.

        Args:
            start_epoch: the first.
            leave: is given `Midway.record` before the last closed form, which takes long.
        """
        loader, count = self.pairs.load(self.trained, shuffle=True), len(self.rates)
        # Behind frozen layers the loss is no longer quadratic in W(0): no closed form between
        # epochs.
        every = None if self.throughs else self.budget.solve
        for epoch in range(start_epoch, count):
            rates = self.rates[epoch]
            set_learning_rate(self.fit.optimizer, rates[0])
            # A budget in steps has a rate for every step, one in epochs a rate for all of them.
            of_steps = rates if self.budget.steps is not None else []
            with each_step(self.fit.optimizer, of_steps, self.fit.midway.taken(epoch)):
                metrics = train_one_epoch(
                    self.fit, loader, self.step, epoch, steps=len(of_steps) or None
                )
            # `solve` 0 means after the last epoch alone.
            if every is not None and due(epoch, every or count, count):
                # The closed form changes the weights: an interruption goes on from what was saved
                record, self.fit.midway.record = self.fit.midway.record, None
                if leave and record and epoch + 1 == count:
                    leave(record)
                self.solve(last=epoch + 1 == count)
            yield epoch, metrics

    def run(self, label: str = "fit", remains: Remains | None = None) -> "Fitting":
        """Begin and train to the end.

        Args:
            label: of the progress bar.
            remains: where an interruption leaves the fit under this label, and where it goes on
                from; None: it begins anew.
        """
        state = remains.unfinished(label) if remains else {}
        start_epoch = self._restore(state, label) if state else 0
        self.begin(start_epoch=start_epoch)

        def leave(record: dict[str, Any] | None, epoch: int | None = None) -> None:
            if remains:
                epoch = record["epoch"] if record else epoch
                remains.leave(label, self.fit.state(epoch or 0, ridges=self.ridges, midway=record))

        epochs = self.epochs(start_epoch, leave)
        total = len(self.rates) - start_epoch
        with saved_midway(self.fit, leave):
            for epoch, _ in Progress(epochs, label, total=total, quiet=not self.runtime.is_main):
                if remains and remains.overdue:
                    leave(None, epoch + 1)
        return self

    def _restore(self, state: State, label: str) -> int:
        """Put all Trans-Nets and the optimiser where a fit was left; give its finished epochs."""
        self.fit.model.load_state_dict(state["state_dict"])
        self.fit.restore(state, label)
        self.ridges, self.fit.midway.record = state["ridges"], state["midway"]
        self.runtime.say(f"{label}: goes on in epoch {state['epoch'] + 1} of {len(self.rates)}")
        return int(state["epoch"])

    def solve(self, *, last: bool, first: bool = False) -> None:
        """Solve W(0) of every Trans-Net.

        The last time, the linear layer alone is taken where it is the better one.

        Args:
            last: no epoch follows.
            first: none came before; where more follow in a budget of steps, some images are enough.
        """
        few = (
            first
            and not last
            and self.budget.steps is not None
            and len(self.trained) > FIRST_IMAGES
        )
        # Every n-th image, 500 to 999 of them, from all of the data set
        images = self.trained[:: len(self.trained) // FIRST_IMAGES] if few else self.trained
        loader, judges = self.pairs.load(images, shuffle=False), self.judges if last else None
        for back, numbers in self.directions.items():
            reference, read = self.beside[back].reference, self.pairs.in_direction(back)
            # One standardised layer is the linear reference itself, and its system is solved
            # already.
            same = [i for i in numbers if reference and not few and self._is_linear(i)]
            for i in same:
                assert reference is not None
                self.trans_nets[i].set_last_weight(
                    reference.solution.weight, reference.solution.constant
                )
                self.ridges[i] = reference.solution.ridge
            others = [i for i in numbers if i not in same]
            of_others = [self.trans_nets[i] for i in others]
            solutions = solve(of_others, loader, read, self.runtime, judges) if others else []
            for i, solution in zip(others, solutions):
                self.ridges[i] = solution.ridge
                if (
                    last
                    and reference
                    and self.trans_nets[i].standardise
                    and self.trans_nets[i].order
                ):
                    self._choose(i, solution.error, back)

    def _is_linear(self, i: int) -> bool:
        one = self.trans_nets[i]
        return one.standardise and not one.order and not one.hidden

    def _choose(self, i: int, error: float, back: bool) -> None:
        """Take the linear layer alone where it explains more than a Trans-Net does.

        Both errors are kept.
        """
        reference_layer = self.beside[back]
        assert reference_layer.reference is not None
        linear = reference_layer.reference.solution.error
        # A fair comparison: the linear layer, too, is fitted without the judges.
        if self.judges:
            if reference_layer.judged is None:
                layer, loader = (
                    reference_layer.linear.linear_reference(),
                    self.pairs.load(self.trained, shuffle=False),
                )
                (solution,) = solve(
                    [layer], loader, self.pairs.in_direction(back), self.runtime, self.judges
                )
                reference_layer = self.beside[back] = reference_layer._replace(
                    judged=solution.error
                )
            assert reference_layer.judged is not None
            linear = reference_layer.judged
        taken = self._fallback and linear < error
        self.compared[i] = {
            "taken": taken,
            "linear": linear,
            "deep": error,
            "unseen": self.judges is not None,
        }
        if taken:
            reference = reference_layer.reference
            assert reference is not None
            self.trans_nets[i].set_linear(reference.solution.weight, reference.solution.constant)

    def instabilities(self) -> list[float]:
        """Measure Var(x_Δ)/Var(x*) of every Trans-Net on the images that are not fitted.

        The list is empty where there are none.
        """
        errors = [float("nan")] * len(self.trans_nets)
        if self.pairs.unseen is None:
            return []
        for back, numbers in self.directions.items():
            of_direction = [self.trans_nets[i] for i in numbers]
            read = self.pairs.in_direction(back)
            for i, error in zip(
                numbers, instabilities(of_direction, self.pairs.unseen, read, self.runtime)
            ):
                errors[i] = error
        return errors

    def words(self, i: int, metrics: Mapping[str, float]) -> str:
        """Say what an epoch measured of a Trans-Net, all errors in one unit: shares of Var(x*)."""
        one, linear = self.trans_nets[i], self.beside[self.backwards[i]].linear
        # A member that does not standardise has its loss in the features' units.
        unit = 1.0 if one.standardise or self.throughs else float(linear.target_std) ** 2
        shares = {"fitted images": (metrics["Loss"] - metrics["L2_loss"]) / unit}
        shares |= {"held-out": metrics["val_instability"]} if "val_instability" in metrics else {}
        shares |= {"linear": metrics["linear_reference"]} if "linear_reference" in metrics else {}
        errors = ", ".join(f"{name} {value:.4f}" for name, value in shares.items())
        others = [
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if name.startswith("p") or name == "lr"
        ]
        return " · ".join([f"unexplained of Var(x*): {errors}", *others])

    def record(self, i: int, tried: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Give what checkpoints say of how far a Trans-Net was fitted.

        They say besides whether it is its linear layer.

        Args:
            i: which.
            tried: what doublings changed; None: nobody tried.
        """
        steps = self.budget.steps_of(len(self.trained), self.runtime.world_size)
        now: dict[str, Any] = {
            "steps": steps,
            "hidden": self.trans_nets[i].hidden,
            "ridge": self.ridges[i],
        }
        now |= {"linear": self.compared[i]}
        return {"state": UNTRIED, **(tried or {}), **now}


def converge(
    make: Callable[[int], TransNet],
    pairs: Pairs,
    budget: Budget,
    runtime: Runtime,
    *,
    hidden: int,
    backwards: bool = False,
    alpha: Tensor | None = None,
    tolerance: float | None = None,
    remember: Callable[[int, int, Callable[[], Interval]], Interval] | None = None,
    remains: Remains | None = None,
) -> Convergence:
    """Find the steps and the M of which a doubling changes nothing.

    It fits four fifths of the fitted images, and judges by the others.

    Args:
        make: M → an untrained Trans-Net, the same every time.
        pairs: see `Fitting`.
        budget: its `steps` are the first that are tried.
        runtime: device, processes, precision.
        hidden: the first M that is tried.
        backwards: see `Fitting`.
        alpha: see `Fitting`.
        tolerance: see `search`.
        remember: is asked for what steps and M leave, and given what measures it, so that a search
            that was interrupted goes on; None: everything is measured.
        remains: where an interruption leaves the fit in hand; see `Fitting.run`.
    """
    inside, references = pairs.inside(), dict[bool, Beside]()
    unseen = inside.unseen
    assert unseen is not None

    def measure(steps: int, hidden: int) -> Interval:
        label = f"{steps} steps, {hidden} spare channels, four fifths of the images"
        # `fallback` is off: a linear layer in its place would change by no doubling.
        fitting = Fitting(
            [make(hidden)],
            inside,
            replace(budget, steps=steps, epochs=None),
            runtime,
            backwards=[backwards],
            alphas=None if alpha is None else [alpha],
            beside=references,
            fallback=False,
        )
        (one,) = fitting.run(label, remains).trans_nets
        errors = image_errors(one, unseen, inside.in_direction(backwards), runtime)
        interval = bootstrap(instability_of, [errors])["instability"]
        runtime.say(f"{label}: {interval.value:.4f} of the variance of the others is left")
        return interval

    def recalled(steps: int, hidden: int) -> Interval:
        if remember is None:
            return measure(steps, hidden)
        return remember(steps, hidden, partial(measure, steps, hidden))

    return search(recalled, budget.steps or 0, hidden, tolerance=tolerance)
