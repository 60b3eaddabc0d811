"""Refine features: tune a tail on what a Trans-Net keeps (paper Sec. 4.1 and 4.3).

Everything but the tail is frozen.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from consistency.tail_inputs import INPUTS, NOISE, RAW
from utils import options
from utils.command import answer_early, command
from utils.parser import Namespace, Parser, architecture, checkpoint_file, list_of, whole


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python transClassifier.py --net_A A.pth.tar --net_B B.pth.tar --resume_Ys G.pth.tar",
        check=check_options,
    )
    group = parser.add_argument_group("networks")
    group.add_argument(
        "-a",
        "--arch",
        neutral=True,
        type=architecture,
        help="architecture of both nets; default: the checkpoints'",
    )
    group.add_argument(
        "--arch_A", neutral=True, type=architecture, help="architecture of net A; overrides --arch"
    )
    group.add_argument(
        "--arch_B", neutral=True, type=architecture, help="architecture of net B; overrides --arch"
    )
    group.add_argument(
        "--net_A",
        neutral=True,
        type=checkpoint_file,
        metavar="A",
        help="checkpoint of the net that the Trans-Net reads",
    )
    group.add_argument(
        "--net_B",
        neutral=True,
        type=checkpoint_file,
        metavar="B",
        help="checkpoint of the net that it reconstructs",
    )
    group.add_argument(
        "--resume_Ys",
        neutral=True,
        type=checkpoint_file,
        metavar="FILE",
        help="the Trans-Net, ours or the authors'",
    )
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    parser.set_neutral("fc")  # the Trans-Net's record has the layers
    group = parser.add_argument_group("refinement")
    group.add_argument(
        "--input",
        choices=INPUTS,
        default="components",
        help=(
            "what the tail reads: components x(k), a net's raw feature, those + x_Δ, or x_B + noise"
            " as large as x_Δ"
        ),
    )
    group.add_argument(
        "--in_mode",
        type=list_of(whole(0)),
        metavar="[1,1,1]",
        help="which components are summed, from x(0) up: [1,0,0] is x(0) alone; default: all",
    )
    group.add_argument(
        "--tail",
        choices=["A", "B"],
        help="whose layers are tuned on it; default: B's, for raw_A A's",
    )
    # Unless augmented, all images are read once.
    options.add_data_options(parser, batch_size=64, cache_images="off", two_nets=True)
    options.add_training_options(
        parser,
        optim="Adam",
        lr=1e-5,
        epochs=1000,
        fewest_epochs=0,
        logspace=2,
        save_epoch=100,
        val_epoch=10,
    )
    options.add_resume_options(parser)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser, "--fine_tune", "--modified_norm", "--topk", "--channels")
    return parser


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that omit a needed file, or that contradict each other.

    The input or the tail may need files of their own.
    """
    options.check_layers(parser, args)
    raw = RAW.get(args.input)
    args.tail = args.tail or usual_tail(args.input)
    # A raw input needs its net, any other both nets and the Trans-Net; the tail needs its net.
    needed = [f"net_{raw}", f"net_{args.tail}"] if raw else ["net_A", "net_B", "resume_Ys"]
    if missing := [f"--{name}" for name in dict.fromkeys(needed) if getattr(args, name) is None]:
        parser.error(
            f"--input {args.input} with the tail of net {args.tail} needs {' and '.join(missing)}"
        )
    if args.in_mode is not None and (raw or args.input == NOISE):
        parser.error(
            f"--in_mode chooses components of a Trans-Net, and --input {args.input} has none"
        )


def usual_tail(name: str) -> str:
    """Say whose tail reads an input where no option does."""
    return RAW.get(name, "B")


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from torch import nn

from consistency.frozen_feature import freeze
from models.cut_net import CutNet, open_net
from models.layers import Layer
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, runs
from utils.data.images import check_outputs
from utils.errors import InputError
from utils.files import sha256
from utils.normalisation import normalisation_words, recorded_normalisation
from utils.provenance import NetSource, Provenance
from utils.training.classification import classify, classify_features, known_hits, validate
from utils.training.engine import train_one_epoch
from utils.training.metrics import main_accuracy
from utils.training.run import Run
from utils.training.schedules import set_learning_rate

# Options of training that a fair baseline has too.
AS_LONG = (
    "sample_num",
    "sub_sampler_split",
    "augment",
    "batch_size",
    "epochs",
    "optim",
    "lr",
    "momentum",
    "weight_decay",
    "logspace",
    "epoch_step",
    "decay_factor",
    "val_epoch",
    "save_epoch",
    "seed",
    "amp",
)


def open_trans_net(parser: Parser, args: Namespace) -> tuple[TransNet | None, Provenance]:
    """Read the Trans-Net, if the input needs one, and what it was fitted to; fill in --in_mode."""
    if args.input in RAW:
        return None, Provenance()
    state = checkpoint.load(args.resume_Ys)
    trans_net = build_from_state(state, args.resume_Ys)
    args.in_mode = select(parser, args.in_mode, trans_net)
    return trans_net, Provenance.from_record(state.get("source", {}))


def open_nets(
    args: Namespace, fitted: Provenance, runtime: opening.Runtime
) -> tuple[dict[str, CutNet], Provenance]:
    """Read the nets that are named, and fill in the data options that none of the user's says.

    Args:
        args: the options; a net is cut where they say.
        fitted: what the Trans-Net says of the nets: the cut, if no option says it, and the
            normalisation.
        runtime: says a line once.

    Returns:
        "A" and "B", as far as they are named, each with the constants by which it reads pixels; and
        what they are.

    Raises:
        InputError: the Trans-Net was fitted to other nets.
    """
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    nets, hint = {}, options.second_layer_hint(args)
    if args.net_A:
        nets["A"] = open_net(args.net_A, args.arch_A or args.arch, first.or_source(fitted.a))
    if args.net_B:
        nets["B"] = open_net(args.net_B, args.arch_B or args.arch, second.or_source(fitted.b), hint)
    # What the tail's net says of the images goes before what the other one says.
    options.fill(args, *(net.state.get("data", {}) for net in (nets[args.tail], *nets.values())))
    for name, net in nets.items():
        # Features must be what the Trans-Net was fitted to: its record of the normalisation counts.
        recorded = getattr(fitted, name.lower())
        constants = opening.normalisation(args, net.state, runtime, name, recorded)
        nets[name] = net.normalised_by(constants)
    source_a, source_b = (nets[name].source if name in nets else NetSource() for name in "AB")
    source = Provenance(source_a, source_b)
    fitted.check(source, args.resume_Ys)
    return nets, source


def open_feature(
    args: Namespace,
    nets: dict[str, CutNet],
    trans_net: TransNet | None,
    images: opening.ImageData,
    runtime: opening.Runtime,
) -> tuple[nn.Module, tuple[int, ...]]:
    """Make the frozen network that gives what the tail reads, and say its shape.

    The network turns pixels (N, 3, S, S) into (N, *shape).
    """
    pixels = opening.few_pixels(images)  # on which the cut of a net proves itself
    frozen, shape = freeze(args.input, nets, trans_net, args.in_mode or [], args.tail, pixels)
    if args.input == "residual_added" and all(args.in_mode or []):
        runtime.say(
            "note: all components and x_Δ add up to x_B, so this is the feature of --input raw_B"
        )
    return runtime.parallel(frozen), shape


def select(parser: Parser, in_mode: list[int] | None, trans_net: TransNet) -> list[int]:
    """Give one 0 or 1 for each component, x(0) first."""
    in_mode = [1] * (trans_net.order + 1) if in_mode is None else in_mode
    if len(in_mode) != trans_net.order + 1 or not set(in_mode) <= {0, 1} or not any(in_mode):
        parser.error(
            f"--in_mode takes 1 or 0 for each of x(0) … x({trans_net.order}), some 1, not {in_mode}"
        )
    return in_mode


def result_path(args: Namespace, nets: dict[str, CutNet], fitted: Provenance) -> Path:
    """Say where the tail is saved."""
    archs = [str(net.source.arch) for net in nets.values()]
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    label = runs.pair(first.label, second.label) if first.is_named else fitted.label or first.label
    feature = runs.join(
        "" if args.input == "components" else args.input,
        "".join(map(str, args.in_mode or [])),
        "" if args.tail == usual_tail(args.input) else f"tail{args.tail}",
    )
    arch = runs.pair(archs[0], archs[-1])
    return runs.refined_path(
        args.out, options.data_name(args), args.sample_num, arch, feature, args.suffix, label
    )


def open_run(
    args: Namespace,
    runtime: opening.Runtime,
    nets: dict[str, CutNet],
    fitted: Provenance,
    source: Provenance,
) -> Run:
    """Find what a tail goes on from."""
    path = result_path(args, nets, fitted)
    hashed = None if args.input in RAW else sha256(args.resume_Ys)
    settings = options.settings(args, transnet=hashed)
    log_folder = runs.log_folder(args.out, path.parent.name, runs.stem(path))
    return opening.run(args, runtime, path, settings, source=source, log_folder=log_folder)


def fill_tail(tail: nn.Module, run: Run, source: Provenance) -> None:
    """Load the tail that a run goes on from, which must have been tuned on the same feature."""
    recorded, names = run.state.get("settings", {}), ("input", "in_mode", "tail", "transnet")
    # The hash of the Trans-Net is among these: another fit gives another feature.
    same = all(recorded.get(name) == run.settings[name] for name in names)
    if not same or Provenance.from_record(run.state.get("source", {})).differs(source):
        raise InputError(
            f"{run.resumed} holds no tail that was tuned on this feature of these nets; use its own"
            " options"
        )
    tail.load_state_dict(run.state["state_dict"])


def baseline_words(args: Namespace, parser: Parser, net: CutNet) -> list[str]:
    """Give the words that tune a net's tail as long on its own feature."""
    source, named = net.source, getattr(args, f"arch_{args.tail}") or args.arch
    words = [
        "--input",
        f"raw_{args.tail}",
        f"--net_{args.tail}",
        str(source.path),
        "--layer",
        str(source.layer),
    ]
    words += ["--arch", named] if named else []
    given = parser.again(args, ("normalisation", "normalisation1", "normalisation2"))
    if not given and source.normalisation and not recorded_normalisation(net.state.get("data", {})):
        # Only the Trans-Net says it
        words += ["--normalisation", normalisation_words(source.normalisation)]
    # The same images, budget and optimiser: the tuning alone differs.
    same = (*options.IMAGES, *options.PIXELS, *AS_LONG, *options.MACHINE, "out")
    return [*words, *parser.again(args, same)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)

    # The Trans-Net and both nets, cut where it was fitted; each net reads images by its own
    # constants.
    trans_net, fitted = open_trans_net(parser, args)
    nets, source = open_nets(args, fitted, runtime)
    tuned = nets[args.tail]

    # The images, and what makes features of them: image (3, S, S) → feature of `shape`, which the
    # tail reads.
    train_images, val_images = opening.both_splits(args, tuned.state.get("data"))
    frozen, shape = open_feature(args, nets, trans_net, train_images, runtime)

    # What the run goes on from; another run's checkpoint in its place is refused before images are
    # decoded.
    run = open_run(args, runtime, nets, fitted, source)
    record = tuned.state["model"]
    check_outputs(record["num_classes"], train_images, f"the tail of net {args.tail}")
    opening.bind(args, runtime, train_images, val_images, outputs=run.path)
    if run.resumed:
        fill_tail(tuned.tail, run, source)
    fit = opening.fit(args, tuned.tail, runtime)
    run.restore(fit)
    if not run.is_finished:
        opening.check_last_batch(args, tuned.tail, train_images, runtime, shape)

    # The feature of an image that is not augmented never changes: it is computed once.
    stored = partial(
        opening.with_features,
        args,
        frozen=frozen,
        shape=shape,
        runtime=runtime,
        folder=run.path.parent,
    )
    val_loaders = opening.validation_loaders(args, stored(val_images), runtime)
    metrics = validate(fit.net, val_loaders, runtime, classify_features)
    runtime.say(
        f"{runs.stem(run.path)} after {run.start_epoch} epochs of tuning: {runs.describe(metrics)}"
    )
    if run.is_finished:
        return

    # That of an augmented image is computed in every epoch.
    loader = opening.image_loader(
        args,
        opening.decoded(args, train_images, runtime)
        if train_images.augments
        else stored(train_images),
        runtime,
        shuffle=True,
    )
    augment, rates = train_images.preprocessing(args.seed).augmented, opening.rates(args)
    hits = known_hits(run.state, val_images)  # uint8 (N,): which images the tail gets right
    # What every checkpoint says besides weights and epochs.
    facts = {
        "arch": record["arch"],
        "model": record,
        "source": source.to_record(),
        "data": (
            opening.data_record(args, train_images) | {"normalisation": tuned.source.normalisation}
        ),
        "images": opening.images_record(train_images, val_images),
    }

    with run:
        for epoch in run.epochs():
            # Train: the frozen nets, through which augmented images pass, normalise by constants of
            # their own.
            set_learning_rate(fit.optimizer, rates[epoch])
            step = classify_features
            if train_images.augments:
                step = partial(classify, preprocess=partial(augment, epoch=epoch), frozen=frozen)
            metrics = train_one_epoch(fit, loader, step, epoch)
            # Evaluate.
            if run.is_due_to_validate(epoch):
                metrics |= validate(fit.net, val_loaders, runtime, classify_features, hits)
                run.measured(main_accuracy(metrics, "val_"))
            # Write and save.
            run.write(epoch, metrics | {"lr": rates[epoch]})
            run.save(epoch, fit.state(epoch + 1, **facts, **run.accuracies, hits=hits))

    runtime.say(
        f"saved {run.path}, accuracy {run.acc1:.2f} %, best {run.best_acc1:.2f} %; the log is"
        f" {run.log_path}"
    )
    if args.input not in RAW:  # a fair baseline: the net's own feature, tuned as long
        runtime.say_next("transClassifier.py", *baseline_words(args, parser, tuned))


if __name__ == "__main__":
    main()
