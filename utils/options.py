"""Command-line options that several steps share: names, ranges, defaults.

Each is declared once. Importing this module costs nothing.
"""

import argparse
import os
from collections.abc import Sequence
from typing import Any, Literal

from utils.files import KEEP, MOST_KEPT
from utils.normalisation import NORMALISATIONS, normalisation_words, read_normalisation
from utils.option_groups import DATASET, IMAGE_SIZE, RESIZE, Group
from utils.parser import (
    LARGEST_IMAGE,
    LARGEST_SEED,
    MOST_PROCESSES,
    MOST_RESAMPLES,
    Ignored,
    Namespace,
    Parser,
    checkpoint_file,
    checkpoint_or_auto,
    list_of,
    output_folder,
    plain_name,
    real,
    some_path,
    whole,
)

ARCH = "vgg16_bn"  # where neither an option nor a checkpoint says another
ARCHS = (
    "a torchvision classifier, a *_ft name, timm:NAME, or your own package.module:factory or"
    " file.py:factory"
)
SMALLEST_IMAGE = 8  # pixels to a side
# What a next step takes from this one: which images, how nets see them, and where it computes.
IMAGES = ("dataset", "name", "data_root", "train_path", "val_path")
PIXELS = (
    "image_size",
    "resize",
    "normalisation",
    "normalisation1",
    "normalisation2",
    "channels_last",
)
MACHINE = ("device_ids", "gpu", "workers")


def add_ignored_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Accept old switches that do nothing."""
    # The released scripts have these; an old command line goes on working.
    for switch in ("--world_size", "--dist_url", "--dist_backend", "--model", *names):
        parser.add_argument(switch, action=Ignored)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Devices, precision and seed."""
    group = parser.add_argument_group("run")
    group.add_argument(
        "--device_ids",
        neutral=True,
        type=list_of(whole(0), empty=True),
        default=[],
        metavar="[0,1]",
        help="GPUs, the main one first",
    )
    group.add_argument("--gpu", neutral=True, type=whole(0), help="one GPU; overrides --device_ids")
    group.add_argument(
        "--seed",
        type=whole(0, LARGEST_SEED),
        default=0,
        help="for Python, NumPy and torch; any whole number",
    )
    group.add_argument(
        "--amp", choices=["off", "bf16", "fp16"], default="off", help="mixed precision"
    )
    group.add_argument(
        "--tf32",
        action="store_true",
        help="let GPUs round float32 products to 10 bits, which is faster",
    )
    group.add_argument(
        "--compile", neutral=True, action="store_true", help="run models through torch.compile"
    )
    group.add_argument(
        "-j",
        "--workers",
        neutral=True,
        type=whole(0, MOST_PROCESSES),
        default=min(4, os.cpu_count() or 1),
        help="processes that decode images",
    )
    group.add_argument(
        "--no_verify",
        neutral=True,
        action="store_true",
        help="do not check the content hashes of stored features and photos",
    )


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Where results go."""
    group = parser.add_argument_group("output")
    group.add_argument(
        "--suffix",
        neutral=True,
        type=plain_name,
        default="",
        help="end of the names of what is written",
    )
    group.add_argument(
        "--out", neutral=True, type=output_folder, default=".", help="root of what is written"
    )


def add_data_root(group: argparse._ActionsContainer, more: str = "") -> None:
    """Where the data sets are; `more` follows in the help."""
    default, says = (
        os.environ.get("KC_DATA") or "data",
        f"folder of the data sets; default from KC_DATA{more}",
    )
    group.add_argument("--data_root", neutral=True, type=some_path, default=default, help=says)


def add_image_folders(group: argparse._ActionsContainer) -> None:
    """Where the images of a data set are."""
    add_data_root(group)
    group.add_argument(
        "--train_path",
        neutral=True,
        type=some_path,
        help="training images, a folder a class; overrides --data_root",
    )
    group.add_argument(
        "--val_path", neutral=True, type=some_path, help="validation images; overrides --data_root"
    )


def normalisation_text(text: str) -> str:
    """Read a normalisation, for argparse: a name, or six numbers, which are written in one way."""
    try:
        constants = read_normalisation(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text if text in NORMALISATIONS else normalisation_words(constants)


def add_data_options(
    parser: argparse.ArgumentParser,
    *,
    batch_size: int,
    cache_images: str = "auto",
    two_nets: bool = False,
    augment: Literal["shown", "ignored", "refused"] = "shown",
) -> None:
    """Declare data set, image size, caching and batch size.

    What no option says comes from the checkpoint (`fill`).

    Args:
        parser: of the step.
        batch_size: the step's default.
        cache_images: the step's default.
        two_nets: the step hands images to nets A and B, which may be normalised by constants of
            their own.
        augment: what becomes of --augment. A step that computes features sees images as they are,
            so --help does not show it there: an old command line may have it, "ignored", or the
            step refuses another value than none, "refused".
    """
    group = parser.add_argument_group("data")
    group.add_argument(
        "--dataset", type=plain_name, help=f"its name; default: the checkpoint's, or {DATASET}"
    )
    group.add_argument(
        "--name", type=plain_name, help="what --dataset folder is called; default: as its folder is"
    )
    add_image_folders(group)
    group.add_argument(
        "--image_size",
        type=whole(SMALLEST_IMAGE, LARGEST_IMAGE),
        help=f"pixels to a side; default: the checkpoint's, or {IMAGE_SIZE}",
    )
    group.add_argument(
        "--resize",
        choices=["torch", "pillow"],
        help=(
            "what resizes images: tensors in PyTorch, or Pillow, to the bit as in torchvision's"
            f" transforms of its images; default: the checkpoint's, or {RESIZE}"
        ),
    )
    group.add_argument(
        "--sample_num",
        type=plain_name,
        default="",
        metavar="NAME",
        help="train on a sub-sampler's images: 50par_A",
    )
    group.add_argument(
        "--split",
        dest="sub_sampler_split",
        choices=["first", "random"],
        help=(
            "how a missing NNpar_A/B is made: the first images of each class (default), or random"
            " ones by --seed"
        ),
    )
    if augment == "ignored":
        group.add_argument("--augment", action=Ignored)
    else:
        says = (
            "of training images, anew in every epoch: padded by 4 pixels, cropped and flipped at"
            " random"
        )
        group.add_argument(
            "--augment",
            choices=["none", "reflect4", "zero4"],
            default="none",
            help=says if augment == "shown" else argparse.SUPPRESS,
        )
    add_normalisation_options(group, two_nets=two_nets)
    group.add_argument(
        "--cache_images",
        neutral=True,
        choices=["auto", "ram", "disk", "off"],
        default=cache_images,
        help="decode every image once",
    )
    add_batch_option(group, batch_size)


def add_normalisation_options(group: argparse._ActionsContainer, *, two_nets: bool) -> None:
    """By which constants nets read pixels; with `two_nets` each may have its own."""
    names = ", ".join(NORMALISATIONS)
    group.add_argument(
        "--normalisation",
        type=normalisation_text,
        metavar="NAME",
        help=(
            f"mean and deviation of the channels: {names}, or six numbers R,G,B,R,G,B; "
            "default: the checkpoint's, or its factory's, or the data set's"
        ),
    )
    if two_nets:
        # Neutral, because the record of each net has the constants that were taken.
        for number, net in enumerate("AB", start=1):
            words = f"the same for net {net} alone; overrides --normalisation"
            group.add_argument(
                f"--normalisation{number}",
                f"--normalisation_{net}",
                neutral=True,
                type=normalisation_text,
                metavar="NAME",
                help=words,
            )


def add_bootstrap_option(group: argparse._ActionsContainer, *, or_none: bool = False) -> None:
    """How often images are resampled for intervals; with `or_none` 0 leaves these out."""
    group.add_argument(
        "--bootstrap",
        type=whole(0 if or_none else 100, MOST_RESAMPLES),
        default=1000,
        metavar="N",
        help=f"resamples of the images, for intervals{'; 0: none' if or_none else ''}",
    )


def add_batch_option(group: argparse._ActionsContainer, batch_size: int) -> None:
    """The batch size alone."""
    group.add_argument(
        "-b",
        "--batch_size",
        type=whole(1),
        default=batch_size,
        help="images of a step, over all GPUs",
    )


def add_training_options(
    parser: argparse.ArgumentParser,
    *,
    optim: str | None,
    lr: float | None,
    epochs: int | None,
    optims: Sequence[str] = ("SGD", "Adam"),
    momentum: float | None = 0.9,
    weight_decay: float | None = 1e-4,
    fewest_epochs: int = 1,
    logspace: float = 0,
    decay_factor: float = 0.3,
    save_epoch: int = 1,
    val_epoch: int = 5,
    short: bool = False,
) -> None:
    """Declare optimiser, learning rates, epochs and saving.

    The defaults are the step's, which fills in those that are None. `short`: the step has the
    options of a short training too, one cycle of the rate and smoothed labels.
    """
    group = parser.add_argument_group("training")
    group.add_argument(
        "--optim",
        choices=list(optims),
        default=optim,
        help="optimiser; default: Adam, with --steps Muon",
    )
    group.add_argument(
        "--lr",
        "--learning_rate",
        type=real(),
        default=lr,
        help=(
            "first learning rate; default: 0.0001, with --steps 0.04 of Muon, 0.003 of Adam, 0.01"
            " of SGD"
        ),
    )
    group.add_argument(
        "--momentum", type=real(), default=momentum, help="of SGD; default: 0.9, of Muon 0.95"
    )
    group.add_argument(
        "--wd",
        "--weight_decay",
        dest="weight_decay",
        type=real(),
        default=weight_decay,
        help="weight decay; default: 0.0001, of Muon 0",
    )
    group.add_argument(
        "--epochs", type=whole(fewest_epochs), default=epochs, help="epochs in all; default: 800"
    )
    group.add_argument(
        "--logspace",
        type=real(),
        nargs="?",
        const=2.0,
        default=logspace,
        metavar="DECADES",
        help=(
            "decades that the learning rate falls over all epochs (2 if no number follows); 0:"
            " steps"
        ),
    )
    group.add_argument(
        "--epoch_step", type=whole(1), default=60, help="epochs between steps of the learning rate"
    )
    group.add_argument(
        "--decay_factor", type=real(above=0), default=decay_factor, help="of such a step"
    )
    if short:
        group.add_argument(
            "--one_cycle",
            type=real(above=0, below=1),
            nargs="?",
            const=0.2,
            default=0.0,
            metavar="SHARE",
            help=(
                "the learning rate rises to --lr over this share of all steps (0.2 if no number"
                " follows), and falls to 0 as half a cosine; default: by epochs"
            ),
        )
        group.add_argument(
            "--label_smoothing",
            type=real(below=1),
            default=0.0,
            metavar="E",
            help="share of each label that is spread evenly over all classes, in training",
        )
    group.add_argument(
        "--save_epoch",
        neutral=True,
        type=whole(1),
        default=save_epoch,
        help="epochs between checkpoints; one ten minutes old is renewed after any epoch",
    )
    group.add_argument(
        "--val_epoch",
        neutral=True,
        type=whole(1),
        default=val_epoch,
        help="epochs between validations",
    )
    group.add_argument(
        "-p",
        "--print_freq",
        neutral=True,
        type=whole(1),
        default=10,
        help="batches between readings of the loss",
    )
    group.add_argument(
        "--skip_nonfinite",
        neutral=True,
        type=whole(0),
        default=0,
        metavar="N",
        help="leave out up to N steps of an epoch whose loss or gradients are infinite or NaN",
    )


def check_schedule(parser: argparse.ArgumentParser, args: Namespace) -> None:
    """Refuse two schedules of the learning rate at once."""
    if args.one_cycle and args.logspace:
        parser.error("--one_cycle sets the rate of every step; leave out --logspace")


def add_restart_option(group: argparse._ActionsContainer) -> None:
    """Replacing what is there."""
    group.add_argument(
        "--restart",
        neutral=True,
        action="store_true",
        help="replace what another run saved under this name",
    )


def add_keeping_options(group: argparse._ActionsContainer) -> None:
    """What becomes of a run's earlier checkpoints, and of another run's."""
    add_restart_option(group)
    group.add_argument(
        "--keep",
        neutral=True,
        type=whole(1, MOST_KEPT),
        default=KEEP,
        metavar="N",
        help=(
            "checkpoints that are kept, the last one and those before it (NAME.1, NAME.2, …): a"
            " damaged one gives way to the one before it; 1 saves room"
        ),
    )


def add_resume_options(parser: argparse.ArgumentParser) -> None:
    """Going on with a run."""
    group = parser.add_argument_group("going on")
    group.add_argument(
        "--resume",
        neutral=True,
        type=checkpoint_or_auto,
        default="",
        metavar="PATH",
        help="go on from a checkpoint; auto: this run's own",
    )
    add_keeping_options(group)
    group.add_argument(
        "--start_epoch",
        neutral=True,
        type=whole(0),
        help="count from here instead of the checkpoint's epoch",
    )


def add_layer_options(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Where features are taken; `default` says in words what happens where no option does."""
    group = parser.add_argument_group("layer")
    # Neutral, though another layer gives other features: their record names it, and is compared.
    group.add_argument(
        "--conv_layer",
        neutral=True,
        type=whole(0),
        help=f"index in features (VGG, AlexNet) or stage (ResNet); default: {default}",
    )
    group.add_argument(
        "--layer",
        neutral=True,
        type=some_path,
        help=(
            "any module or node by name, such as features.30, layer3 or layer3.5.add, or stage:2,"
            " the end of the second stage (stage:-1: of the last); overrides --conv_layer"
        ),
    )
    group.add_argument(
        "--fc",
        action="store_true",
        help="--conv_layer counts in the classifier: fully-connected features",
    )
    group.add_argument(
        "--channels_last",
        choices=["A", "B", "both", "none"],
        help="whose maps at the layer are (N, H, W, C); default: found out",
    )


def add_trans_net_options(parser: argparse.ArgumentParser) -> None:
    """What a Trans-Net is made of, and its loss."""
    group = parser.add_argument_group("Trans-Net")
    group.add_argument(
        "--layers",
        type=list_of(whole(1)),
        default=[3],
        metavar="3",
        help="linear layers, highest order + 1; 1,2,3: a Trans-Net of each depth, from one reading",
    )
    group.add_argument(
        "--hidden",
        type=whole(0),
        metavar="M",
        help=(
            "spare channels behind x's own, in which W(k) have room; default: 0, and with"
            " --standardise --solve and two layers or more twice as many as x has, at most 64"
        ),
    )
    # Both change what x is read as: in units of the layer, or of a norm.
    normalised = group.add_mutually_exclusive_group()
    normalised.add_argument(
        "--standardise",
        action="store_true",
        help=(
            "x and x* about the mean of each channel, in units of the layer's deviation (paper,"
            " footnote 2)"
        ),
    )
    group.add_argument(
        "--solve",
        type=whole(1),
        nargs="?",
        const=0,
        metavar="EVERY",
        help=(
            "solve W(0) in closed form before the first epoch and after the last, and after every"
            " EVERY epochs"
        ),
    )
    group.add_argument(
        "--match",
        choices=["feature", "penultimate"],
        default="feature",
        help=(
            "what of B's is matched: its feature, or what its frozen layers up to the last make of"
            " it (--solve then works before the first epoch alone)"
        ),
    )
    group.add_argument(
        "--no_reference",
        neutral=True,
        action="store_true",
        help="save the time of the linear reference, which grows as channels³",
    )
    group.add_argument(
        "--alpha",
        "--alphas",
        type=list_of(real(), empty=True),
        metavar="[0.5,0.5]",
        help="weight of p² in the loss, from the highest order down (default: 0.5 for each)",
    )
    group.add_argument("--L2", action="store_true", help="no penalty on p at all")
    group.add_argument("--fix_p", action="store_true", help="keep every p at 0.5")
    group.add_argument(
        "--norm",
        choices=["instance", "batch"],
        default="instance",
        help="Σ: of each map, or over images",
    )
    group.add_argument(
        "--modified_norm",
        dest="norm",
        action="store_const",
        const="batch",
        help="old name of --norm batch",
    )
    normalised.add_argument(
        "--bn", action="store_true", help="x through Instance/BatchNorm instead of scaling alone"
    )
    group.add_argument("--affine", action="store_true", help="with learned weights in that norm")


def add_second_layer_options(parser: argparse.ArgumentParser) -> None:
    """Where net B's features are taken, if not at net A's layer."""
    group = parser.add_argument_group("layer of net B, where it differs")
    group.add_argument("--conv_layer2", neutral=True, type=whole(0), help="as --conv_layer")
    group.add_argument("--layer2", neutral=True, type=some_path, help="as --layer")


def add_other_direction_options(group: argparse._ActionsContainer, *, several: bool) -> None:
    """The Trans-Net of the other direction, or of `several` depths those."""
    name, found = ("Trans-Nets", "those") if several else ("the Trans-Net", "the one")
    group.add_argument(
        "--transnet_back",
        nargs="+" if several else None,
        type=checkpoint_file,
        metavar="FILE",
        help=(
            f"{name} of the other direction, from x* to x; default: {found} beside --transnet,"
            " fitted by the same options"
        ),
    )
    group.add_argument("--one_direction", action="store_true", help="leave the other direction out")


def arch_words(
    options_: tuple[str, str],
    first: str | None,
    second: str | None,
    *,
    common: str | None = "--arch",
) -> list[str]:
    """Give the words that name the architectures of nets A and B to a next step.

    Args:
        options_: the options that name each, ("--arch1", "--arch2").
        first: net A's architecture; None where its checkpoint is enough.
        second: net B's.
        common: the option that names both, if there is one.
    """
    if first is not None and first == second and common:
        return [common, first]
    # A checkpoint of ours says its architecture: an option is repeated only where it was given.
    named = zip(options_, (first, second))
    return [word for option, arch in named if arch is not None for word in (option, arch)]


def check_layers(parser: Parser, args: Namespace) -> None:
    """Refuse --fc where no number is given that it could count in the classifier."""
    if args.conv_layer is None and args.conv_layer2 is None:
        parser.refuse_without_effect(
            args, ["fc"], "without --conv_layer, whose number it counts in the classifier"
        )


def check_other_direction(parser: Parser, args: Namespace) -> None:
    """Refuse to leave out the other direction and to name its Trans-Net."""
    if args.transnet_back and args.one_direction:
        parser.error("--one_direction leaves out what --transnet_back names; leave one out")


def settings(args: Namespace, *groups: Group, **replaced: Any) -> dict[str, Any]:
    """Give every option that changes the result, as plain values.

    A checkpoint records them, and a resumed run compares them.

    Args:
        args: the options, parsed; `args.neutral` are left out.
        groups: made from them, whose values go before those of `args`: a checkpoint may have
            filled them in.
        replaced: values that say more than an option's own, such as a file's SHA-256 in place of
            its path.
    """
    # Neutral options may differ when a run goes on: they change nothing of what comes out.
    recorded = {name: value for name, value in vars(args).items() if name not in args.neutral}
    for group in groups:
        recorded |= {name: value for name, value in vars(group).items() if name in recorded}
    if recorded.get("sub_sampler_split") == "first":
        recorded["sub_sampler_split"] = None  # what is done where no option says it
    return recorded | replaced
