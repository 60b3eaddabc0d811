"""The options of Training_TransNet.py.

They say which features are read, and which Trans-Nets are fitted in one reading.
"""

import itertools
from pathlib import Path
from typing import Any, NamedTuple

from utils import options, runs
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
OF_EPOCHS = ["epochs", "logspace", "epoch_step", "decay_factor"]
OF_IMAGES = [
    "image_size",
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
    parser.set_neutral("dataset", "name", "sample_num", "image_size", "normalisation", "augment")


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
            " interval"
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


def hidden(args: Namespace, layers: int, channels: int) -> int:
    """Give M, the spare channels of a depth whose x has so many channels."""
    if layers == 1:
        return 0
    if args.hidden is not None:
        return args.hidden
    return spare_channels(channels) if args.standardise and args.solve is not None else 0


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


def has_both(args: Namespace) -> bool:
    """Say whether both directions are fitted.

    They are, unless an option asks for one, or --resume names the one checkpoint that goes on.
    """
    is_one = args.reverse or args.one_direction or args.resume not in ("", "auto")
    return args.both_directions or not is_one


def kinds(args: Namespace) -> list[Kind]:
    """Give every Trans-Net that the options ask for, those of one direction together."""
    directions = [False, True] if has_both(args) else [args.reverse]
    # One pass over the features serves all of a direction, so these stay together.
    return [
        Kind(*kind)
        for kind in itertools.product(directions, args.layers, args.seeds or [args.seed])
    ]


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
    wanted = kinds(args)
    if len(set(wanted)) < len(wanted):
        parser.error(
            "--layers and --seeds name no number twice: that would be one Trans-Net in one file"
        )
    if len(wanted) > 1 and args.resume not in ("", "auto"):
        parser.error(
            f"--resume PATH goes on with one Trans-Net, and these are {len(wanted)}: use --resume"
            " auto"
        )


def archs(args: Namespace) -> tuple[str | None, str | None]:
    """Give the architectures of net A and net B, if options name them."""
    return args.arch_A or args.arch, args.arch_B or args.arch


def alpha(args: Namespace, layers: int) -> list[float]:
    """Give the weights of p² of a depth, highest order first."""
    weights = args.alpha or [0.5]
    return weights * (layers - 1) if len(weights) == 1 else weights


def settings(args: Namespace, kind: Kind, channels: int) -> dict[str, Any]:
    """Give what is recorded of how a Trans-Net is fitted: the same alone and among others.

    Args:
        args: the options, filled in.
        kind: which.
        channels: of its x.
    """
    recorded = options.settings(
        args,
        layers=kind.layers,
        alpha=alpha(args, kind.layers),
        reverse=kind.reverse,
        initial_seed=kind.seed,
        hidden=hidden(args, kind.layers, channels),
    )
    # A budget in epochs is recorded as before there was one in steps.
    of_steps = ("steps", "until", "tolerance")
    return {
        key: value for key, value in recorded.items() if key not in of_steps or value is not None
    }


def title(args: Namespace, kind: Kind) -> str:
    """Name a Trans-Net on a line of the terminal: "3 layers, B → A, seed 1"."""
    words = [
        "1 layer" if kind.layers == 1 else f"{kind.layers} layers",
        "B → A" if kind.reverse else "A → B",
    ]
    return ", ".join([*words, *[f"seed {kind.seed}"] * (len(args.seeds or []) > 1)])


def place(args: Namespace, kind: Kind, provenance: Provenance) -> Path:
    """Say where a Trans-Net is saved.

    Args:
        args: the options.
        kind: which.
        provenance: of the features, with what the options say where these say nothing.
    """
    # A name says only what differs within this run, so that a single fit has a short one.
    suffix = runs.join(
        args.suffix,
        f"layers{kind.layers}" if len(args.layers) > 1 else "",
        "reverse" if has_both(args) and kind.reverse else "",
        f"seed{kind.seed}" if len(args.seeds or []) > 1 else "",
    )
    return runs.trans_net_path(
        args.out,
        provenance.name or provenance.dataset,
        provenance.arch,
        provenance.label,
        provenance.sample_num,
        suffix,
    )


def again(
    parser: Parser,
    args: Namespace,
    source: Provenance,
    folder: Path | None,
    reverse: bool,
    has_val: bool,
) -> list[object]:
    """Give the words by which Variance.py finds the features of a fit again.

    Args:
        parser: of the options.
        args: the options, filled in.
        source: the features, as the direction of the fit calls them.
        folder: where they are stored; None: both nets compute them.
        reverse: of the fit.
        has_val: there are features of val images.
    """
    images = [] if has_val else ["--t_or_v", "train"]
    # Features that are computed: name both nets, their layers, and the images.
    if folder is None:
        given = exchanged(args) if reverse else args
        nets = ["--net_in", source.a.path, "--net_tar", source.b.path]
        nets += options.arch_words(("--arch_in", "--arch_tar"), *archs(given), common=None)
        layers = ["--layer", source.a.layer, "--layer2", source.b.layer]
        same = (
            *options.IMAGES,
            *options.PIXELS,
            *([] if has_val else ["sample_num", "sub_sampler_split"]),
        )
        return [*nets, *layers, *parser.again(given, (*same, *options.MACHINE)), *images]
    stored = [
        "--convOut_path",
        folder.parent if has_val else folder,
        *images,
        *["--reverse"] * reverse,
    ]
    return [*stored, *parser.again(args, options.MACHINE)]


def exchanged(args: Namespace) -> Namespace:
    """Give the options with what they say of nets A and B exchanged.

    A fit B → A calls B's features x.
    """
    given = Namespace(**vars(args))
    given.arch_A, given.arch_B = args.arch_B, args.arch_A
    given.normalisation1, given.normalisation2 = args.normalisation2, args.normalisation1
    given.channels_last = {"A": "B", "B": "A"}.get(args.channels_last, args.channels_last)
    return given
