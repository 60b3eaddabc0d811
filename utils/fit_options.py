"""The options of Training_TransNet.py.

They say which features are read, and which Trans-Nets are fitted in one reading.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from utils import options, runs
from utils.option_groups import DataOptions, Group, LayerOptions, OutputOptions
from utils.parser import (
    LARGEST_SEED,
    Namespace,
    Parser,
    architecture,
    checkpoint_file,
    feature_folder,
    list_of,
    real,
    whole,
)
from utils.provenance import Provenance

# Of a budget in steps; that --until converged begins with; M at most
STEPS, FIRST_STEPS, HIDDEN = 400, 200, 64
ALPHA = 0.5  # the weight of p² of every order
OF_EPOCHS = ["epochs", "logspace", "epoch_step", "decay_factor"]
OF_IMAGES = [
    "image_size",
    "resize",
    "sub_sampler_split",
    "cache_images",
    "normalisation",
    "normalisation1",
    "normalisation2",
]
DEFAULT_LAYER = 40  # of a VGG


class Kind(NamedTuple):
    """Which of the Trans-Nets that are asked for.

    Attributes:
        reverse: it reconstructs A's features from B's.
        layers: how many linear ones, K + 1.
        seed: of its initialisation.
    """

    reverse: bool
    layers: int
    seed: int


@dataclass(frozen=True)
class ReadOptions(Group):
    """What is read: stored features, or images through both nets.

    Attributes:
        convOut_path: folder of stored features; None: by the usual names.
        net_A, net_B: checkpoints of the nets, where no features are stored.
        arch, arch_A, arch_B: architectures, where options name them: of both nets and of each.
        dataset, sample_num: what stored features must be of; None and "": anything.
        validate: val features must be there.
        hold_out: where they are not, the share of the images that is held out.
    """

    convOut_path: str | None
    net_A: str | None
    net_B: str | None
    arch: str | None
    arch_A: str | None
    arch_B: str | None
    dataset: str | None
    sample_num: str
    validate: bool
    hold_out: float

    @property
    def archs(self) -> tuple[str | None, str | None]:
        """The architectures of net A and net B, if options name them."""
        return self.arch_A or self.arch, self.arch_B or self.arch

    def exchanged(self) -> "ReadOptions":
        """Exchange the architectures of nets A and B."""
        return replace(self, arch_A=self.arch_B, arch_B=self.arch_A)


@dataclass(frozen=True)
class FitOptions(Group):
    """Which Trans-Nets are fitted in one reading, what they are made of, and their loss.

    Attributes:
        layers: the depths, K + 1 of each.
        seeds: an initialisation by each; None: by `seed`.
        seed: of the order of the images.
        reverse: B → A alone.
        both_directions: both in spite of --resume.
        one_direction: one direction alone.
        resume: the checkpoint that a fit goes on from; see `OutputOptions`.
        hidden: M, spare channels; None: see `hidden_channels`.
        standardise: x and x* about their means, in units of the layer's deviation.
        solve: see `Budget`.
        match: "feature" or "penultimate", what of B's is matched.
        no_reference: without the linear reference.
        alpha: weights of p² in the loss, highest order first; None: 0.5 for each.
        L2: no penalty on p.
        fix_p: every p stays at 0.5.
        norm: Σ of each map ("instance"), or over images ("batch").
        bn: x through a norm instead of scaling alone.
        affine: with learned weights in it.
        fc: of fully-connected features.
        until: "converged": the steps are doubled until that changes nothing.
        tolerance: a smaller change of the instability is none; None: by its interval.
    """

    layers: list[int]
    seeds: list[int] | None
    seed: int
    reverse: bool
    both_directions: bool
    one_direction: bool
    resume: str
    hidden: int | None
    standardise: bool
    solve: int | None
    match: str
    no_reference: bool
    alpha: list[float] | None
    L2: bool
    fix_p: bool
    norm: str
    bn: bool
    affine: bool
    fc: bool
    until: str | None
    tolerance: float | None

    @property
    def has_both(self) -> bool:
        """Whether both directions are fitted.

        They are, unless an option asks for one, or --resume names the one checkpoint that goes on.
        """
        is_one = self.reverse or self.one_direction or self.resume not in ("", "auto")
        return self.both_directions or not is_one

    @property
    def directions(self) -> list[bool]:
        """The directions that are fitted, B → A as True."""
        return [False, True] if self.has_both else [self.reverse]

    @property
    def kinds(self) -> list[Kind]:
        """Every Trans-Net that the options ask for, those of one direction together."""
        # One pass over the features serves all of a direction, so these stay together.
        asked = (self.directions, self.layers, self.seeds or [self.seed])
        return [Kind(*kind) for kind in itertools.product(*asked)]

    @property
    def is_solved(self) -> bool:
        """Whether W(0) is solved in closed form, of standardised features."""
        return self.standardise and self.solve is not None

    def hidden_channels(self, layers: int, channels: int) -> int:
        """Give M, the spare channels of a depth whose x has so many channels."""
        if layers == 1:
            return 0
        if self.hidden is not None:
            return self.hidden
        return spare_channels(channels) if self.is_solved else 0

    def weights(self, layers: int) -> list[float]:
        """Give the weights of p² of a depth, highest order first."""
        weights = self.alpha or [ALPHA]
        return weights * (layers - 1) if len(weights) == 1 else weights

    def settings(self, recorded: Mapping[str, Any], kind: Kind, channels: int) -> dict[str, Any]:
        """Give what is recorded of how a Trans-Net is fitted: the same alone and among others.

        Args:
            recorded: `options.settings` of the whole step.
            kind: which.
            channels: of its x.
        """
        of_kind = {
            **recorded,
            "layers": kind.layers,
            "alpha": self.weights(kind.layers),
            "reverse": kind.reverse,
            "initial_seed": kind.seed,
            "hidden": self.hidden_channels(kind.layers, channels),
        }
        # A budget in epochs is recorded as before there was one in steps.
        # So checkpoints of that time still agree, and go on.
        of_steps = ("steps", "until", "tolerance")
        return {
            key: value for key, value in of_kind.items() if key not in of_steps or value is not None
        }

    def title(self, kind: Kind) -> str:
        """Name a Trans-Net on a line of the terminal: "3 layers, B → A, seed 1"."""
        words = [
            "1 layer" if kind.layers == 1 else f"{kind.layers} layers",
            "B → A" if kind.reverse else "A → B",
        ]
        return ", ".join([*words, *[f"seed {kind.seed}"] * (len(self.seeds or []) > 1)])

    def place(self, output: OutputOptions, kind: Kind, provenance: Provenance) -> Path:
        """Say where a Trans-Net is saved.

        Args:
            output: the root, and the end of all names.
            kind: which.
            provenance: of the features, with what the options say where these say nothing.
        """
        # A name says only what differs within this run, so that a single fit has a short one.
        suffix = runs.join(
            output.suffix,
            f"layers{kind.layers}" if len(self.layers) > 1 else "",
            "reverse" if self.has_both and kind.reverse else "",
            f"seed{kind.seed}" if len(self.seeds or []) > 1 else "",
        )
        return runs.trans_net_path(
            output.out,
            provenance.name or provenance.dataset,
            provenance.arch,
            provenance.label,
            provenance.sample_num,
            suffix,
        )


@dataclass(frozen=True)
class KeptOptions(Group):
    """What is kept of a fit, and how often.

    Attributes:
        save_epoch: epochs between checkpoints.
        val_epoch: epochs between measurements on held-out images.
        save_per_epoch: every saved epoch in a file of its own.
        draw: an image's components, in TensorBoard.
    """

    save_epoch: int
    val_epoch: int
    save_per_epoch: bool
    draw: bool


def add_source_options(parser: Parser) -> None:
    """What is read: stored features, or images through both nets."""
    group = parser.add_argument_group("features")
    group.add_argument(
        "--convOut_path",
        neutral=True,
        type=feature_folder,
        metavar="FOLDER",
        help="what ConvOutput.py wrote; default: by these names",
    )
    group.add_argument(
        "-a",
        "--arch",
        neutral=True,
        type=architecture,
        help="architecture of the nets; default: the features'",
    )
    group.add_argument(
        "--validate",
        neutral=True,
        action="store_true",
        help="insist on val features; where they lie there, they are measured anyway",
    )
    group.add_argument(
        "--hold_out",
        type=real(below=1),
        default=0,
        metavar="SHARE",
        help="where no val features are: measure on this share of the images, which is not fitted",
    )
    group = parser.add_argument_group(
        "nets, where no features are stored: they are computed whenever they are read"
    )
    group.add_argument(
        "--net_A",
        neutral=True,
        type=checkpoint_file,
        metavar="A",
        help="checkpoint of the net whose features are x",
    )
    group.add_argument(
        "--net_B",
        neutral=True,
        type=checkpoint_file,
        metavar="B",
        help="checkpoint of the net of the target x*",
    )
    group.add_argument(
        "--arch_A", neutral=True, type=architecture, help="architecture of A; overrides --arch"
    )
    group.add_argument(
        "--arch_B", neutral=True, type=architecture, help="architecture of B; overrides --arch"
    )
    options.add_layer_options(parser, default="the features'")
    options.add_second_layer_options(parser)
    options.add_data_options(parser, batch_size=64, two_nets=True, augment="refused")
    # The record of the features says these.
    of_images = ("dataset", "name", "sample_num", "image_size", "resize", "normalisation")
    parser.set_neutral(*of_images, "augment")


def add_family_options(parser: Parser) -> None:
    """How many Trans-Nets are fitted in one reading, beside the depths of `--layers`."""
    group = parser.add_argument_group("several fits in one reading, each as it would be alone")
    direction = group.add_mutually_exclusive_group()
    direction.add_argument(
        "--both_directions",
        neutral=True,
        action="store_true",
        help=(
            "B's features from A's, and A's from B's, in a file that ends in _reverse: the default,"
            " but with --resume PATH"
        ),
    )
    direction.add_argument(
        "--reverse", action="store_true", help="reconstruct A's features from B's alone"
    )
    group.add_argument(
        "--one_direction",
        neutral=True,
        action="store_true",
        help="B's features from A's alone: half of the time",
    )
    group.add_argument(
        "--seeds",
        neutral=True,
        type=list_of(whole(0, LARGEST_SEED)),
        metavar="0,1,2",
        help=(
            "initialise a Trans-Net by each of these; the order of the images is --seed's; default:"
            " --seed"
        ),
    )


def add_budget_options(parser: Parser) -> None:
    """A budget in steps of the optimiser, in place of epochs, and where it ends."""
    group = parser.add_argument_group("budget in steps, in place of epochs")
    group.add_argument(
        "--steps",
        type=whole(1),
        metavar="N",
        help=(
            "of the optimiser: the rate rises over the first 5 %% and falls by half a cosine; with "
            f"--standardise --solve {STEPS} unless --epochs, --optim or --lr is given"
        ),
    )
    group.add_argument(
        "--until",
        choices=["converged"],
        help=(
            "double the steps until that changes nothing on fitted images held out, and then the"
            " spare channels once"
        ),
    )
    group.add_argument(
        "--tolerance",
        type=real(above=0),
        metavar="E",
        help=(
            "a change of the instability below E is none; default: a tenth of its own 95 %%"
            " interval, at least 0.001"
        ),
    )


def fill_budget(args: Namespace) -> None:
    """Fill in what no option says of the budget.

    It is in steps where W(0) is solved, else as the released code has it.
    """
    solved = args.standardise and args.solve is not None and args.match == "feature"
    free = args.epochs is None and args.lr is None and args.optim is None
    if args.steps is None and (args.until or (solved and free)):
        args.steps = FIRST_STEPS if args.until else STEPS
    in_steps = args.steps is not None
    args.optim = args.optim or ("Muon" if in_steps else "Adam")
    if args.lr is None:
        # Rates for a warm-up and a cosine over steps; 1e-4 is the released code's for Adam.
        args.lr = (
            {"Muon": 0.04, "Adam": 3e-3, "SGD": 0.01}[args.optim]
            if in_steps or args.optim == "Muon"
            else 1e-4
        )
    if args.momentum is None:
        args.momentum = 0.95 if args.optim == "Muon" else 0.9
    if args.weight_decay is None:
        args.weight_decay = 0.0 if args.optim == "Muon" else 1e-4
    if args.epochs is None and not in_steps:
        args.epochs = 800


def spare_channels(channels: int) -> int:
    """Give M of a solved deep fit where nothing says another: twice x's channels, at most 64.

    Narrow maps need the room: of planted maps of 8 channels M = C finds 0.03 to 0.07 less than 2 C.
    Steps grow with M, so that wide ones get a share of their channels.
    """
    return min(2 * channels, HIDDEN)


def add_kept_options(parser: Parser) -> None:
    """What is kept beside a checkpoint and a log of each Trans-Net."""
    group = parser.add_argument_group("what else is kept")
    group.add_argument(
        "--save_per_epoch",
        neutral=True,
        action="store_true",
        help="every saved epoch in a file of its own",
    )
    group.add_argument(
        "--draw",
        "--images",
        neutral=True,
        action="store_true",
        help="an image's components, in TensorBoard",
    )


def check(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other, and fill in the budget."""
    depths, orders, weights = len(args.layers), args.layers[0] - 1, len(args.alpha or [])
    if depths == 1 and args.alpha is not None and weights != orders:
        parser.error(
            f"--alpha has {weights} entries, --layers {orders + 1} needs {orders}, highest order"
            " first"
        )
    if depths > 1 and args.alpha is not None and weights != 1:
        parser.error("with several --layers, --alpha has one entry, for every order of every depth")
    if args.steps is not None or args.until:
        parser.refuse_without_effect(args, OF_EPOCHS, "beside --steps, which have their own rates")
    if args.both_directions and args.one_direction:
        parser.error("--both_directions and --one_direction contradict each other; leave one out")
    if args.until and not (args.standardise and args.solve is not None and args.match == "feature"):
        parser.error("--until converged needs --standardise and --solve, and --match feature")
    if args.until and args.no_reference:
        parser.error(
            "--until converged compares with the linear reference; leave --no_reference out"
        )
    if not args.until:
        parser.refuse_without_effect(args, ["tolerance"], "without --until converged")
    if args.epochs == 0 and args.solve is None:
        parser.error(
            "--epochs 0 leaves the Trans-Net as it is initialised, unless --solve solves its last"
            " layer"
        )
    if bool(args.net_A) != bool(args.net_B):
        parser.error("name both --net_A and --net_B, or --convOut_path")
    if args.net_A:
        parser.refuse_without_effect(
            args, ["convOut_path"], "beside --net_A: features are computed, and not read"
        )
        options.check_layers(parser, args)
    else:
        parser.refuse_without_effect(
            args, OF_IMAGES, "on features that are stored already; name --net_A and --net_B"
        )
    parser.refuse_without_effect(
        args, ["augment"], "here: features are those of the images as they are"
    )
    # All contradictions are refused: fill in what follows from the options.
    fill_budget(args)
    wanted = FitOptions.of(args).kinds
    if len(set(wanted)) < len(wanted):
        parser.error(
            "--layers and --seeds name no number twice: that would be one Trans-Net in one file"
        )
    if len(wanted) > 1 and args.resume not in ("", "auto"):
        parser.error(
            f"--resume PATH goes on with one Trans-Net, and these are {len(wanted)}: use --resume"
            " auto"
        )


def again(
    parser: Parser,
    reading: ReadOptions,
    layers: LayerOptions,
    data: DataOptions,
    source: Provenance,
    folder: Path | None,
    *,
    reverse: bool,
    has_val: bool,
) -> list[object]:
    """Give the words by which Variance.py finds the features of a fit again.

    Args:
        parser: of the options.
        reading: what was read.
        layers: of the nets.
        data: the images of nets that compute features.
        source: the features, as the direction of the fit calls them.
        folder: where they are stored; None: both nets compute them.
        reverse: of the fit: it calls B's features x.
        has_val: there are features of val images.
    """
    images = [] if has_val else ["--t_or_v", "train"]
    if folder is not None:
        stored = folder.parent if has_val else folder
        return ["--convOut_path", stored, *images, *["--reverse"] * reverse]
    # Features that are computed: name both nets, their layers, and the images.
    if reverse:
        reading, layers, data = reading.exchanged(), layers.exchanged(), data.exchanged()
    nets = ["--net_in", source.a.path, "--net_tar", source.b.path]
    nets += options.arch_words(("--arch_in", "--arch_tar"), *reading.archs, common=None)
    places = ["--layer", source.a.layer, "--layer2", source.b.layer]
    halves = () if has_val else ("sample_num", "sub_sampler_split")
    same = parser.again((*options.IMAGES, *options.PIXELS, *halves), layers, data)
    return [*nets, *places, *same, *images]
