"""Say what an instability is worth: compare it with those of nulls and of ceilings.

Nulls are pairs that share nothing, and ceilings are pairs that share all.

With the budget and the spare channels of a Trans-Net others are fitted: to pairs shuffled within
the class or over all images (and judged on every two held-out images of a class or of all), to an
untrained A and an untrained B (their BatchNorms with the statistics of the fitting images), to A →
A, and to the same pairs from another seed. The normalised consistency is 0 for pairs that share
nothing beyond the class and 1 for what A → A reaches:

    (null − instability) / (null − ceiling)

What two nets share is the smaller of A → B and B → A, each between its own null and ceiling: one
direction alone is high where one net's features are simple. The other direction is taken from the
Trans-Net beside --transnet that was fitted by the same options.

The linear reference is tested besides: under permutations within the class, at one ridge weight for
all of them. Intervals are 95 % over the held-out images, and hold every Trans-Net as it was fitted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, RunOptions
from utils.parser import (
    FEWEST_PERMUTATIONS,
    MOST_RESAMPLES,
    Parser,
    architecture,
    checkpoint_file,
    feature_folder,
    result_file,
    whole,
)


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python Calibrate.py --convOut_path convOuts/… --transnet G.pth.tar",
        check=options.check_other_direction,
    )
    group = parser.add_argument_group("what is calibrated")
    group.add_argument(
        "--convOut_path",
        required=True,
        type=feature_folder,
        metavar="FOLDER",
        help="train and val features",
    )
    group.add_argument(
        "--transnet",
        required=True,
        type=checkpoint_file,
        metavar="FILE",
        help="the Trans-Net, one of ours",
    )
    group.add_argument(
        "--reverse", action="store_true", help="it reconstructs A's features from B's"
    )
    options.add_other_direction_options(group, several=False)
    group.add_argument("--epochs", type=whole(0), help="of the Trans-Net's fit; others are refused")
    group.add_argument(
        "--brief",
        action="store_true",
        help="fit only what the consistency needs: a null, a ceiling",
    )
    options.add_bootstrap_option(group)
    group.add_argument(
        "--permutations",
        type=whole(FEWEST_PERMUTATIONS, MOST_RESAMPLES, or_zero=True),
        default=200,
        metavar="N",
        help=f"of the test, {FEWEST_PERMUTATIONS} or more; 0: no test",
    )
    group = parser.add_argument_group("images, for untrained nets")
    options.add_image_folders(group)
    group.add_argument(
        "-a",
        "--arch",
        type=architecture,
        help="architecture of both, needed where that is your own code",
    )
    group.add_argument("--arch_A", type=architecture, help="architecture of A; overrides --arch")
    group.add_argument("--arch_B", type=architecture, help="architecture of B; overrides --arch")
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json",
        type=result_file(),
        metavar="FILE",
        help="write everything as JSON; -: to standard output, and other lines to standard error",
    )
    group.add_argument("--csv", type=result_file(), metavar="FILE", help="write the table as CSV")
    group.add_argument(
        "--sums",
        type=result_file(".npz"),
        metavar="FILE",
        help="write each image's part of variances",
    )
    options.add_run_options(parser)
    return parser


@dataclass(frozen=True)
class FitOptions(Group):
    """What is calibrated, and how much is fitted for it.

    Attributes:
        convOut_path: folder of the train and val features.
        transnet: the Trans-Net's file.
        transnet_back: that of the other direction; None: the one beside it.
        reverse: the Trans-Net is B → A: A's place is taken by B.
        one_direction: leave the other direction out.
        epochs: of the Trans-Net's fit; others are refused.
        brief: fit only a null and a ceiling.
        arch, arch_A, arch_B: architectures, where options name them: of both nets and of each.
        names_folders: options say where the images are; else the features' record does.
    """

    convOut_path: str
    transnet: str
    transnet_back: str | None
    reverse: bool
    one_direction: bool
    epochs: int | None
    brief: bool
    arch: str | None
    arch_A: str | None
    arch_B: str | None
    names_folders: bool

    @property
    def archs(self) -> tuple[str | None, str | None]:
        """The architectures of net A and net B, if options name them."""
        return self.arch_A or self.arch, self.arch_B or self.arch

    def exchanged(self) -> "FitOptions":
        """Call the nets by the other direction."""
        return replace(self, arch_A=self.arch_B, arch_B=self.arch_A, reverse=not self.reverse)


@dataclass(frozen=True)
class ResamplingOptions(Group):
    """How sure the numbers are.

    Attributes:
        bootstrap: resamples of the images.
        permutations: of the tests; 0: none.
        seed: of resamples and permutations.
    """

    bootstrap: int
    permutations: int
    seed: int


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Subset

from consistency import calibration, reconstruction, several
from consistency.answers import answers_by, knowledge_record, open_tails
from consistency.bootstrap import bootstrap
from consistency.budget import Budget
from consistency.calibration import instability_of
from consistency.fitting import Fitting, Pairs
from consistency.knowledge import learned_share
from consistency.permutation import LinearCalibration, calibrate_linear_ways
from consistency.position_similarity import linear_cka, procrustes, ridge_r2, svcca
from consistency.reconstruction import merged
from consistency.similarity import ImageRows, image_rows, image_similarities
from consistency.trans_nets import check_fit
from models.cut_net import untrained_net
from models.pair import find_reverse, read_stored
from models.split import as_maps
from models.trans_net import TransNet, build_from_state
from models.untrained import set_statistics
from utils import checkpoint, opening
from utils.errors import InputError
from utils.features.nets import doubts
from utils.features.pairing import Pairing, Parts, Side, classes_of
from utils.files import is_stream, sha256
from utils.kept import Remains
from utils.provenance import Provenance
from utils.report.results import holds_results
from utils.report.tables import calibration_table, save_report
from utils.runtime import Runtime, seed_everything

THIS, NULL, UNFITTED = "this Trans-Net", "null: shuffled within the class", "null: g untrained"
A_UNTRAINED, SEED = "null: A untrained", "the same pairs, another seed"
# Whose features stand in for B's, in the table of what B still knows
SENT, LINEAR, WITHIN = "g", "the linear reference", "g fitted within the class"
NULL_OF_ALL, CEILING = "null: shuffled over all images", "ceiling: A → A"
SCALE = "null within the class → ceiling"  # of what both directions share
FITS = 3  # the version of what an interruption leaves of them
PERMUTED_SIMILARITIES = 39  # at most: each takes decompositions; enough for a p of 0.025


class Fitted(NamedTuple):
    """What a fit left.

    Attributes:
        errors: every held-out image's part of Var(x*) and Var(x_Δ), (N, 2).
        linear: what the linear reference leaves of the variance; None: nobody asked.
        steps: of the optimiser; None: the Trans-Net's file does not say.
        is_linear: the linear layer took the Trans-Net's place.
        net: the Trans-Net, and `linear_net` the linear reference; None: nobody asks what B still
            knows through it.
    """

    errors: NDArray[np.float64]
    linear: float | None
    steps: int | None
    is_linear: bool
    net: TransNet | None = None
    linear_net: TransNet | None = None


class Direction(NamedTuple):
    """One direction, and what it is calibrated on.

    Attributes:
        is_back: the other one than --transnet's.
        path: the Trans-Net's file.
        state: what that holds.
        net: the Trans-Net.
        options: nets A and B as this direction calls them.
        data: the images, for untrained nets, and the batch size of its fit.
        budget: of its fit.
        train: stored features of the fitted images.
        val: of the held-out ones.
    """

    is_back: bool
    path: str
    state: checkpoint.State
    net: TransNet
    options: FitOptions
    data: DataOptions
    budget: Budget
    train: opening.Features
    val: opening.Features

    @property
    def alpha(self) -> torch.Tensor:
        """The weights of p² in the loss, p(1) … p(K): the lowest order first, as p is."""
        if self.state["settings"]["L2"]:
            return torch.zeros(self.net.order)
        # Options have the highest order first.
        return torch.tensor(self.state["settings"]["alpha"]).flip(0)


def open_direction(
    options: FitOptions, data: DataOptions, path: str, is_back: bool, runtime: Runtime
) -> Direction:
    """Read a Trans-Net and the features that it is calibrated on.

    Raises:
        InputError: there is no such Trans-Net, its fit cannot be repeated, or it is of others.
    """
    state = checkpoint.load(path)
    options = options.exchanged() if is_back else options
    # --reverse reads the stored features the other way round: A's place is then taken by B.
    train, val = (
        opening.stored_features(options.convOut_path, split, {}, reverse=options.reverse)
        for split in ("train", "val")
    )
    net = build_from_state(state, path).to(runtime.device)
    budget = budget_of(state, path, options.epochs)
    folders: dict[str, Any] = {} if options.names_folders else dict(val.provenance.folders or {})
    data = replace(data, batch_size=budget.batch_size, **folders)
    # The same nets and layers; the held-out images are others than the fitted ones.
    fitted = Provenance.from_record(state.get("source", {}))
    fitted.check(val.provenance, path, but=("split", "sample_num"))
    check_fit(net, val.shape_a, val.shape_b)
    return Direction(is_back, path, state, net, options, data, budget, train, val)


def open_directions(
    options: FitOptions, data: DataOptions, runtime: Runtime
) -> tuple[list[Direction], list[str]]:
    """Read the Trans-Net, and that of the other direction where there is one; with notes."""
    first = open_direction(options, data, options.transnet, False, runtime)
    if options.one_direction or (options.reverse and not options.transnet_back):
        return [first], []
    other = options.transnet_back or find_reverse(options.transnet, alike=True)
    if other is None:
        return [first], []
    # A Trans-Net that was found, not named, may be of another fit: the calibration goes on without.
    try:
        return [first, open_direction(options, data, str(other), True, runtime)], []
    except InputError as error:
        if options.transnet_back:
            raise
        return [first], [f"the other direction is left out: {error}"]


def budget_of(state: checkpoint.State, path: str, epochs: int | None) -> Budget:
    """Give the budget of the Trans-Net's own fit.

    Raises:
        InputError: the fit cannot be repeated, or --epochs asks for another budget than the
            Trans-Net's.
    """
    settings = state.get("settings")
    if not settings:
        raise InputError(
            f"{path} does not say how it was fitted; fit it anew with Training_TransNet.py"
        )
    if settings.get("match", "feature") != "feature":
        raise InputError(
            f"{path} was fitted with --match {settings['match']}, which is not repeated here"
        )
    budget = Budget.of(settings)
    if budget.steps is not None:  # --until converged went on from the option's
        budget = replace(budget, steps=state["fitted"]["steps"])
    if epochs is not None and epochs != budget.epochs:
        fitted_for = f"{budget.epochs} epochs" if budget.steps is None else f"{budget.steps} steps"
        raise InputError(
            f"--epochs {epochs} is another budget than that of {path} ({fitted_for}), and a"
            " null says something only of a fit with its own budget; fit that Trans-Net anew, or"
            " leave --epochs out"
        )
    return budget


def fit(
    direction: Direction,
    parts: Parts,
    *,
    seed: int,
    runtime: Runtime,
    trained: bool = True,
    label: str = "fit",
    remains: Remains | None = None,
) -> Fitted:
    """Fit a Trans-Net to some pairs as a direction's was, and measure it on held-out ones.

    With `trained` false it is measured as its seed initialises it. `remains` takes up what an
    interruption leaves.
    """
    seed_everything(seed)
    train, val, classes = parts
    config, data = direction.net.config, direction.data
    # A → A: as many channels come out as go in, and nothing is resized.
    net = TransNet(
        **config
        | ({"out_channels": config["in_channels"], "out_size": None} if train.itself else {})
    )

    def load(images: torch.Tensor, shuffle: bool) -> opening.Loader:
        return opening.feature_loader(
            data, Subset(train, images.tolist()), runtime, shuffle=shuffle
        )

    pairs = Pairs(load, read_stored, torch.arange(len(train)))
    fitting = Fitting([net], pairs, direction.budget, runtime, alphas=[direction.alpha])
    unseen = opening.feature_loader(data, val, runtime)
    errors = partial(
        reconstruction.image_errors,
        loader=unseen,
        read=read_stored,
        runtime=runtime,
        classes=classes,
    )
    # Only standards are set, so what it leaves is what its random weights leave.
    if not trained:
        reconstruction.set_standards([net], load(pairs.fitted, False), read_stored, runtime)
        return Fitted(errors(net), None, 0, False)
    fitting.run(label, remains)
    record, linear = fitting.record(0), errors(fitting.beside[False].linear)
    of_linear = float(instability_of(linear.sum(0))["instability"])
    return Fitted(
        errors(net),
        of_linear,
        record["steps"],
        bool(record["linear"] and record["linear"]["taken"]),
        net,
        fitting.beside[False].linear,
    )


def keep_fit(fitted: Fitted) -> list[Any]:
    """Give a fit as tensors and plain values."""
    nets = [net and {"config": net.config, "state_dict": net.state_dict()} for net in fitted[4:]]
    return [torch.from_numpy(fitted.errors), *fitted[1:4], *nets]


def kept_fit(record: Sequence[Any], runtime: Runtime) -> Fitted:
    """Give a fit back of what `keep_fit` made of it."""

    def restored(state: checkpoint.State | None) -> TransNet | None:
        if state is None:
            return None
        net = TransNet(**state["config"])
        net.load_state_dict(state["state_dict"])
        return net.to(runtime.device)

    errors, linear, steps, is_linear, *nets = record
    return Fitted(errors.numpy(), linear, steps, is_linear, *map(restored, nets))


def fit_once(
    name: str,
    remains: Remains,
    direction: Direction,
    parts: Parts,
    *,
    runtime: Runtime,
    **how: Any,
) -> Fitted:
    """Take up a fit from before an interruption, or make it; see `fit`."""
    if remains.holds(name):
        runtime.say(f"{name}: fitted before the interruption")

    def made() -> list[Any]:
        return keep_fit(fit(direction, parts, runtime=runtime, remains=remains, **how))

    return kept_fit(remains.get(name, made), runtime)


def beside_untrained(which: str, direction: Direction, seed: int, runtime: Runtime) -> Parts:
    """Pair one net's stored features with those of the other net before any training.

    `which`, "A" or "B", is the net whose features are computed anew.

    Its BatchNorms have the statistics of one pass over the fitting images (`set_statistics`).
    """
    train, data = direction.train, direction.data
    of_a, source = which == "A", train.provenance
    seed_everything(seed + 1)  # the seed itself may be the one that the net began with
    arch_a, arch_b = direction.options.archs
    of_net, named = (source.a, arch_a) if of_a else (source.b, arch_b)
    net = untrained_net(of_net, len(source.classes or ()), named)
    net.prove(opening.few_pixels(opening.images_of_features(data, train, runtime)[1]))
    head = net.from_pixels(net.head).to(runtime.device)
    set_statistics(head, opening.mixed_pixels(data, train, runtime))
    shape = train.shape_a if of_a else train.shape_b

    def paired(features: opening.Features) -> Pairing:
        # Its features are not stored: the images pass through it once more.
        rows = opening.features_anew(data, features, head, runtime, shape)
        return Pairing(features, x=rows) if of_a else Pairing(features, target=rows)

    return Parts(paired(train), paired(direction.val))


def pairings(
    train: opening.Features, val: opening.Features, untrained: dict[str, Parts], seed: int
) -> dict[str, Parts]:
    """Name the kinds of pairs that other Trans-Nets are fitted to and measured on."""
    generator, kinds = torch.Generator().manual_seed(seed % 2**64), dict[str, Parts]()
    labels = [classes_of(features) for features in (train, val)]
    calibration.check_pairs(labels[1])
    # Without classes (all zeros) the second null is over all images.
    for name, (fitted, unseen) in ((NULL, labels), (NULL_OF_ALL, map(torch.zeros_like, labels))):
        order = calibration.shuffled_within_class(fitted, generator)
        kinds[name] = Parts(Pairing(train, order), Pairing(val), unseen)
    kinds |= untrained
    # The true pairs twice: a Trans-Net that is not trained, and one from another seed.
    kinds[UNFITTED] = kinds[SEED] = Parts(Pairing(train), Pairing(val))
    kinds[CEILING] = Parts(Pairing(train, itself=True), Pairing(val, itself=True))
    return kinds


def linear_tests(
    resampling: ResamplingOptions, directions: Sequence[Direction], runtime: Runtime
) -> list[dict[str, Any] | None]:
    """Test the linear reference by permutations within the class, in every direction.

    All permutations are fitted at one ridge weight.

    Where both nets' maps have one size, both directions are tested with the same products.
    """
    if not resampling.permutations:
        return [None] * len(directions)
    sides = [linear_sides(direction) for direction in directions]
    first, *others = directions
    # Products of a pairing serve B → A transposed, where neither map is resized and kernels agree.
    same = first.train.shape_a[1:] == first.train.shape_b[1:]
    kernels = {direction.net.config["kernel_size"] for direction in directions}
    both = bool(others) and same and len(kernels) == 1
    tests = list[LinearCalibration]()
    for x, target in sides[:1] if both else sides:
        tests += calibrate_linear_ways(
            x,
            target,
            [classes_of(features) for features in (first.train, first.val)],
            torch.Generator().manual_seed(resampling.seed % 2**64),
            both=both,
            draws=resampling.permutations,
            resamples=resampling.bootstrap,
            kernel_size=directions[len(tests)].net.config["kernel_size"],
            device=runtime.device,
            quiet=not runtime.is_main,
        )
    return [one.report() for one in tests]


def linear_sides(direction: Direction) -> tuple[list[Side], list[Side]]:
    """Give x and the target of the fitted and of the held-out images as maps of one size."""
    # x is resized as the Trans-Net reads it; the target stays.
    views = (lambda feature: direction.net.resize(as_maps(feature)), as_maps)
    x, target = (
        [Side(features, which, view) for features in (direction.train, direction.val)]
        for which, view in enumerate(views)
    )
    return x, target


def baselines(
    parts: Sequence[opening.Features], data: DataOptions, runtime: Runtime
) -> list[dict[str, Any]]:
    """Measure other people's similarities on the same held-out features."""
    loaders = [opening.feature_loader(data, features, runtime) for features in parts]
    fitted, held_out = (
        reconstruction.pair_sums(loader, read_stored, runtime) for loader in loaders
    )
    scores = (
        linear_cka(held_out),
        svcca(held_out),
        procrustes(held_out),
        ridge_r2(fitted, held_out),
    )
    return [asdict(score) for score in scores]


def similarities(
    resampling: ResamplingOptions, parts: Sequence[opening.Features]
) -> list[dict[str, Any]]:
    """Measure similarities with an image as a row.

    Each stands beside what permutations within the class give.
    """
    rows = [[pooled(Side(features, which, image_rows)) for features in parts] for which in (0, 1)]
    labels, generator = (
        [classes_of(features) for features in parts],
        torch.Generator().manual_seed(resampling.seed),
    )
    # Held-out rows are compared; the fitted ones serve the regression alone.
    x, y = (ImageRows(held_out, fitted) for fitted, held_out in rows)
    draws = min(resampling.permutations, PERMUTED_SIMILARITIES)
    return [asdict(score) for score in image_similarities(x, y, labels, generator, draws=draws)]


def pooled(side: Side) -> torch.Tensor:
    """Read one net's rows of all images, (N, p)."""
    return torch.cat([side[start : start + 256] for start in range(0, len(side), 256)])


class Calibrated(NamedTuple):
    """What is known of one direction.

    Attributes:
        report: as plain values.
        sums: every held-out image's part of Var(x*) and Var(x_Δ), (N, 2), of the true pairs, the
            null within the class and the ceiling.
    """

    report: dict[str, Any]
    sums: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


def calibrate(
    direction: Direction, resampling: ResamplingOptions, remains: Remains, runtime: Runtime
) -> Calibrated:
    """Fit and measure all that one direction is held against."""
    _, path, state, net, options, data, budget, train, val = direction
    notes, untrained = list[str](), dict[str, Parts]()
    for which in () if options.brief else ("A", "B"):
        name = f"null: {which} untrained"
        try:
            untrained[name] = beside_untrained(which, direction, resampling.seed, runtime)
        except InputError as error:
            notes.append(f"the null of an untrained {which} is left out: {error}")
    # The Trans-Net itself, as it is on disk: nothing of it is fitted again.
    errors = reconstruction.image_errors(
        net, opening.feature_loader(data, val, runtime), read_stored, runtime
    )
    fitted = state.get("fitted") or {}
    replaced, linear = (
        (fitted.get("linear") or {}).get("taken", False),
        (state.get("linear_reference") or {}),
    )
    fits = {THIS: Fitted(errors, linear.get("instability"), fitted.get("steps"), replaced)}
    # The other fits: nulls, another seed and the ceiling, all by the same budget.
    kinds = pairings(train, val, untrained, resampling.seed)
    kinds = {
        name: parts for name, parts in kinds.items() if not options.brief or name in (NULL, CEILING)
    }
    for number, (name, parts) in enumerate(kinds.items(), start=1):
        label = f"{name} ({number} of {len(kinds)}), {direction_name(options.reverse)}"
        runtime.say(label)
        fits[name] = fit_once(
            name,
            remains,
            direction,
            parts,
            seed=resampling.seed + 1,
            runtime=runtime,
            trained=name != UNFITTED,
            label=label,
        )
    # A line of the table for each fit, with its interval over the held-out images.
    rows = []
    for name, one in fits.items():
        interval = bootstrap(instability_of, [one.errors], resamples=resampling.bootstrap)[
            "instability"
        ]
        how = {"steps": one.steps, "hidden": net.hidden, "is_linear": one.is_linear}
        rows.append({"pairs": name, "linear_reference": one.linear, **asdict(interval), **how})
    # One resample draws the same images for all three.
    three = (fits[THIS].errors, fits[NULL].errors, fits[CEILING].errors)
    consistency = calibration.consistency_interval(
        instability_of, *([one] for one in three), resamples=resampling.bootstrap
    )
    report = {
        "still_known": still_known(direction, resampling, fits, kinds, runtime),
        "rows": rows,
        "consistency": asdict(consistency["consistency"]),
        "linear": None,
        "notes": notes,
        "epochs": budget.epochs,
        "fitted": state.get("fitted"),
        "images": len(val),
        "transnet": sha256(path),
        "settings": state["settings"],
        "source": val.provenance.to_record(),
    }
    return Calibrated(report, three)


def still_known(
    direction: Direction,
    resampling: ResamplingOptions,
    fits: Mapping[str, Fitted],
    kinds: Mapping[str, Parts],
    runtime: Runtime,
) -> dict[str, Any]:
    """Say what B still knows through each of several senders.

    They are the Trans-Net, the linear reference, a Trans-Net that was fitted within the class, and
    one of an untrained A.

    Args:
        direction: which.
        resampling: how sure the numbers are.
        fits: by the names of their pairs.
        kinds: the pairs.
        runtime: device and processes.
    """
    data, val = direction.data, direction.val
    sources = (val.provenance.a, val.provenance.b)
    archs, shapes = direction.options.archs, (val.shape_a, val.shape_b)
    answers, notes = answers_by(*open_tails(sources, archs, shapes, runtime.device))
    if answers is None:
        return knowledge_record({}, notes)
    senders = {SENT: direction.net, WITHIN: fits[NULL].net}
    # The true pairs were fitted once more from another seed: their linear layer is the reference.
    senders |= {LINEAR: fits[SEED].linear_net} if SEED in fits else {}
    # One pass answers for all senders that read A's stored features.
    with torch.no_grad():
        for batch in opening.feature_loader(data, val, runtime):
            *_, labels, numbers = on_device = runtime.to_device(batch)
            x, target = read_stored(*on_device)
            sent = {name: net.eval()(x) for name, net in senders.items() if net is not None}
            answers.update(x, target, sent, labels, numbers)
        # An untrained A has features of its own, so its sender needs another pass.
        untrained = fits[A_UNTRAINED].net if A_UNTRAINED in fits else None
        if untrained is not None:
            for batch in opening.feature_loader(data, kinds[A_UNTRAINED].val, runtime):
                x, _ = read_stored(*runtime.to_device(batch))
                answers.send(A_UNTRAINED, untrained.eval()(x))
    rows = merged(answers.cpu(), runtime).table(
        resamples=resampling.bootstrap, seed=resampling.seed
    )
    record = knowledge_record(rows, notes)
    if A_UNTRAINED in rows:
        record["learned_share"] = learned_share(rows[SENT], rows[A_UNTRAINED])
    else:
        record["notes"].append("the learned share is left out: there is no fit of an untrained A")
    return record


def shared_record(
    forth: several.Direction, back: several.Direction, resamples: int
) -> dict[str, Any]:
    """Give what both directions explain, and the smaller one: what the nets share."""
    intervals = several.shared(forth, back, resamples=resamples)
    return {"scale": SCALE, **{name: asdict(interval) for name, interval in intervals.items()}}


def direction_name(is_reverse: bool) -> str:
    """Name a direction."""
    return "B → A" if is_reverse else "A → B"


def exchanged_names(report: dict[str, Any]) -> dict[str, Any]:
    """Call the nets of the other direction's rows and notes by --transnet's direction."""
    # The other direction calls its x A's feature: "A untrained" there is B here.
    letters = str.maketrans("AB", "BA")
    knowledge = report["still_known"]

    def exchanged(rows: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
        return [row | {name: row[name].translate(letters)} for row in rows]

    return report | {
        "rows": exchanged(report["rows"], "pairs"),
        "still_known": knowledge | {"rows": exchanged(knowledge["rows"], "sender")},
    }


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    resampling, runtime = ResamplingOptions.of(args), opening.start(RunOptions.of(args))
    # The Trans-Net of one direction or of both, and the stored features that they read.
    asked = FitOptions.of(
        args, names_folders=bool(parser.again(("data_root", "train_path", "val_path"), args))
    )
    directions, left_out = open_directions(asked, DataOptions.of(args), runtime)
    parts = (directions[0].train, directions[0].val)
    # Fit the others, direction by direction; an interrupted run goes on with those that are kept.
    results_file = None if args.json is None or is_stream(args.json) else args.json
    calibrated, unfinished = list[Calibrated](), list[Remains]()
    for direction in directions:
        identity = {
            "transnet": sha256(direction.path),
            "seed": args.seed,
            "features": direction.train.provenance.to_record(),
            "version": FITS,
        }
        file = Path(f"{results_file}{'.back' * direction.is_back}.fits") if results_file else None
        unfinished.append(Remains(file, identity, active=runtime.is_main))
        calibrated.append(calibrate(direction, resampling, unfinished[-1], runtime))
    # The permutation tests of the linear reference, of both directions at one time.
    for one, linear in zip(calibrated, linear_tests(resampling, directions, runtime)):
        one.report["linear"] = linear
    (report, sums), *others = calibrated
    # Numbers that are of the pair, and not of a direction.
    report |= {
        "similarities": similarities(resampling, parts),
        "baselines": baselines(parts, directions[0].data, runtime),
        "doubts": doubts(parts[1]),
        "notes": report["notes"] + left_out,
    }
    # What both share: the smaller consistency, image by image in the same resamples.
    back = others[0].sums if others else None
    if back:
        report["back"] = exchanged_names(others[0].report)
        report["shared"] = shared_record(sums, back, resampling.bootstrap)
    # Print, write, and drop the kept fits: all is in the files now.
    runtime.say(calibration_table(report, backwards=args.reverse))
    if runtime.is_main:
        rows = report["rows"]
        save_report(
            report, args.json, args.csv, [list(rows[0]), *(list(row.values()) for row in rows)]
        )
    if args.sums and runtime.is_main:
        calibration.save_sums(args.sums, *sums, back=back)
    for remains in unfinished:
        remains.remove()
    if results_file and holds_results(Path(results_file).parent):
        runtime.say_next("Report.py", Path(results_file).parent)
    return report


if __name__ == "__main__":
    main()
