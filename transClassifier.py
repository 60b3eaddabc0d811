"""Refine features: tune a tail on what a Trans-Net keeps (paper Sec. 4.1 and 4.3).

Everything but the tail is frozen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from consistency.tail_inputs import INPUTS, NOISE, RAW
from utils import options
from utils.command import answer_early, command
from utils.option_groups import (
    DataOptions,
    Group,
    LayerOptions,
    OutputOptions,
    RunOptions,
    TrainingOptions,
)
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


@dataclass(frozen=True)
class NetOptions(Group):
    """Both nets and the Trans-Net: their checkpoints, and architectures where options name them."""

    net_A: str | None
    net_B: str | None
    resume_Ys: str | None
    arch: str | None
    arch_A: str | None
    arch_B: str | None

    def named_arch(self, net: str) -> str | None:
        """Give the architecture of net "A" or "B", if an option names it."""
        return (self.arch_A if net == "A" else self.arch_B) or self.arch


@dataclass(frozen=True)
class TailOptions(Group):
    """What is tuned, and on what.

    Attributes:
        input: what the tail reads, one of `INPUTS`.
        in_mode: 0 or 1 for each component, x(0) first; None: all, or the input has none.
        tail: whose layers are tuned, "A" or "B".
    """

    input: str
    in_mode: list[int] | None
    tail: str

    @property
    def label(self) -> str:
        """The feature's part of file names: what differs from the usual."""
        return runs.join(
            "" if self.input == "components" else self.input,
            "".join(map(str, self.in_mode or [])),
            "" if self.tail == usual_tail(self.input) else f"tail{self.tail}",
        )


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
from utils.training.engine import Step, train_one_epoch
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


class Feature(NamedTuple):
    """What the tail reads.

    Attributes:
        frozen: the frozen network that computes it, pixels (N, 3, S, S) → (N, *shape).
        shape: of one image.
    """

    frozen: nn.Module
    shape: tuple[int, ...]

    def stored(
        self, images: opening.ImageData, data: DataOptions, folder: Path, runtime: opening.Runtime
    ) -> opening.ImageData:
        """Compute it once for each image, which is not augmented."""
        return opening.with_features(
            data, images, frozen=self.frozen, shape=self.shape, runtime=runtime, folder=folder
        )

    def step(self, images: opening.ImageData, epoch: int, seed: int) -> Step:
        """Give the step of training in an epoch: augmented images pass through the frozen nets."""
        if not images.augments:
            return classify_features
        # Which normalise by constants of their own, so the images are augmented alone.
        augment = partial(images.preprocessing(seed).augmented, epoch=epoch)
        return partial(classify, preprocess=augment, frozen=self.frozen)


def open_trans_net(
    parser: Parser, tail: TailOptions, path: str | None
) -> tuple[TransNet | None, Provenance, TailOptions]:
    """Read the Trans-Net, if the input needs one, and what it was fitted to; fill in --in_mode."""
    if tail.input in RAW or path is None:
        return None, Provenance(), tail
    state = checkpoint.load(path)
    trans_net = build_from_state(state, path)
    tail = replace(tail, in_mode=select(parser, tail.in_mode, trans_net))
    return trans_net, Provenance.from_record(state.get("source", {})), tail


def open_nets(options: NetOptions, layers: LayerOptions, fitted: Provenance) -> dict[str, CutNet]:
    """Read the nets that are named, "A" and "B", cut where options say.

    Where they do not, a net is cut where the Trans-Net was `fitted`.
    """
    first, second = (Layer(**layers.of_net(net)) for net in "AB")
    arch_a, arch_b = map(options.named_arch, "AB")
    nets = {}
    if options.net_A:
        nets["A"] = open_net(options.net_A, arch_a, first.or_source(fitted.a))
    if options.net_B:
        place = second.or_source(fitted.b)
        nets["B"] = open_net(options.net_B, arch_b, place, layers.second_hint)
    return nets


def normalised(
    nets: Mapping[str, CutNet],
    data: DataOptions,
    fitted: Provenance,
    path: str | None,
    runtime: opening.Runtime,
) -> tuple[dict[str, CutNet], Provenance]:
    """Give the nets the constants by which they read pixels, and say what they are.

    Args:
        nets: "A" and "B", as far as they are named.
        data: the images.
        fitted: what the Trans-Net says of the nets: its record of the constants counts first.
        path: of the Trans-Net.
        runtime: says a line once.

    Raises:
        InputError: the Trans-Net was fitted to other nets.
    """
    nets = dict(nets)
    for name, net in nets.items():
        # Features must be what the Trans-Net was fitted to: its record of the normalisation counts.
        recorded = getattr(fitted, name.lower())
        constants = opening.normalisation(data, net.state, runtime, name, recorded)
        nets[name] = net.normalised_by(constants)
    source_a, source_b = (nets[name].source if name in nets else NetSource() for name in "AB")
    source = Provenance(source_a, source_b)
    fitted.check(source, str(path))
    return nets, source


def open_feature(
    tail: TailOptions,
    nets: dict[str, CutNet],
    trans_net: TransNet | None,
    images: opening.ImageData,
    runtime: opening.Runtime,
) -> Feature:
    """Make the frozen network that gives what the tail reads, and say its shape."""
    pixels = opening.few_pixels(images)  # on which the cut of a net proves itself
    frozen, shape = freeze(tail.input, nets, trans_net, tail.in_mode or [], tail.tail, pixels)
    if tail.input == "residual_added" and all(tail.in_mode or []):
        runtime.say(
            "note: all components and x_Δ add up to x_B, so this is the feature of --input raw_B"
        )
    return Feature(runtime.parallel(frozen), shape)


def select(parser: Parser, in_mode: list[int] | None, trans_net: TransNet) -> list[int]:
    """Give one 0 or 1 for each component, x(0) first."""
    in_mode = [1] * (trans_net.order + 1) if in_mode is None else in_mode
    if len(in_mode) != trans_net.order + 1 or not set(in_mode) <= {0, 1} or not any(in_mode):
        parser.error(
            f"--in_mode takes 1 or 0 for each of x(0) … x({trans_net.order}), some 1, not {in_mode}"
        )
    return in_mode


def result_path(
    tail: TailOptions,
    data: DataOptions,
    layers: LayerOptions,
    output: OutputOptions,
    nets: Mapping[str, CutNet],
    fitted: Provenance,
) -> Path:
    """Say where the tail is saved."""
    archs = [str(net.source.arch) for net in nets.values()]
    first, second = (Layer(**layers.of_net(net)) for net in "AB")
    return runs.refined_path(
        output.out,
        data.label,
        data.sample_num,
        runs.pair(archs[0], archs[-1]),
        tail.label,
        output.suffix,
        runs.pair(first.label, second.label) if first.is_named else fitted.label or first.label,
    )


def open_run(
    path: Path,
    settings: Mapping[str, Any],
    output: OutputOptions,
    training: TrainingOptions,
    source: Provenance,
    runtime: opening.Runtime,
) -> Run:
    """Find what a tail goes on from; `source` is what the nets are."""
    log_folder = runs.log_folder(output.out, path.parent.name, runs.stem(path))
    return opening.run(
        output, training, runtime, path, settings, source=source, log_folder=log_folder
    )


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


def baseline_words(tail: str, options: NetOptions, data: DataOptions, net: CutNet) -> list[str]:
    """Give the words that tune a net's tail on its own feature; `tail` is "A" or "B"."""
    source, named = net.source, options.named_arch(tail)
    words = ["--input", f"raw_{tail}", f"--net_{tail}", str(source.path)]
    words += ["--layer", str(source.layer), *(["--arch", named] if named else [])]
    recorded = recorded_normalisation(net.data)
    if not (data.names_normalisation or recorded) and source.normalisation:
        # Only the Trans-Net says it
        words += ["--normalisation", normalisation_words(source.normalisation)]
    return words


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    tail = TailOptions.of(args)
    output, training = OutputOptions.of(args), TrainingOptions.of(args)
    runtime = opening.start(RunOptions.of(args), output)

    # The Trans-Net and both nets, cut where it was fitted; each net reads images by its own
    # constants. What the tail's net says of the images goes before what the other one says.
    trans_net, fitted, tail = open_trans_net(parser, tail, args.resume_Ys)
    nets = open_nets(NetOptions.of(args), LayerOptions.of(args), fitted)
    data = DataOptions.of(args, nets[tail.tail].data, *(net.data for net in nets.values()))
    nets, source = normalised(nets, data, fitted, args.resume_Ys, runtime)
    tuned = nets[tail.tail]

    # The images, and what makes features of them, which the tail reads.
    train_images, val_images = opening.both_splits(data, tuned.data)
    feature = open_feature(tail, nets, trans_net, train_images, runtime)

    # What the run goes on from; another run's checkpoint in its place is refused before images are
    # decoded.
    run = open_run(
        result_path(tail, data, LayerOptions.of(args), output, nets, fitted),
        options.settings(args, data, tail, transnet=sha256(args.resume_Ys) if trans_net else None),
        output,
        training,
        source,
        runtime,
    )
    check_outputs(tuned.state["model"]["num_classes"], train_images, f"the tail of net {tail.tail}")
    opening.bind(data, runtime, train_images, val_images, outputs=run.path, restart=output.restart)
    if run.resumed:
        fill_tail(tuned.tail, run, source)
    fit = opening.fit(training, tuned.tail, runtime)
    run.restore(fit)
    if not run.is_finished:
        opening.check_last_batch(data, tuned.tail, train_images, runtime, feature.shape)

    # The feature of an image that is not augmented never changes: it is computed once.
    val_loaders = opening.validation_loaders(
        data, feature.stored(val_images, data, run.path.parent, runtime), runtime
    )
    metrics = validate(fit.net, val_loaders, runtime, classify_features)
    runtime.say(
        f"{runs.stem(run.path)} after {run.start_epoch} epochs of tuning: {runs.describe(metrics)}"
    )
    if run.is_finished:
        return

    # That of an augmented image is computed in every epoch.
    loader = opening.image_loader(
        data,
        opening.decoded(data, train_images, runtime)
        if train_images.augments
        else feature.stored(train_images, data, run.path.parent, runtime),
        runtime,
        shuffle=True,
    )
    rates = opening.rates(training)
    hits = known_hits(run.state, val_images)  # uint8 (N,): which images the tail gets right
    # What every checkpoint says besides weights and epochs.
    facts = {
        "arch": tuned.state["model"]["arch"],
        "model": tuned.state["model"],
        "source": source.to_record(),
        "data": (
            opening.data_record(data, train_images) | {"normalisation": tuned.source.normalisation}
        ),
        "images": opening.images_record(train_images, val_images),
    }

    def state(epochs: int) -> checkpoint.State:
        """Give what a run goes on from after so many epochs."""
        return fit.state(epochs, **facts, **run.accuracies, hits=hits)

    with run.keeping(fit, state):
        for epoch in run.epochs():
            # Train.
            set_learning_rate(fit.optimizer, rates[epoch])
            metrics = train_one_epoch(
                fit, loader, feature.step(train_images, epoch, runtime.seed), epoch
            )
            # Evaluate.
            if run.is_due_to_validate(epoch):
                metrics |= validate(fit.net, val_loaders, runtime, classify_features, hits)
                run.measured(main_accuracy(metrics, "val_"))
            # Write and save.
            run.write(epoch, metrics | {"lr": rates[epoch]})
            run.save(epoch, state(epoch + 1))

    runtime.say(
        f"saved {run.path}, accuracy {run.acc1:.2f} %, best {run.best_acc1:.2f} %; the log is"
        f" {run.log_path}"
    )
    if trans_net:  # a fair baseline: the net's own feature, tuned as long
        # The same images, budget and optimiser: the tuning alone differs.
        runtime.say_next(
            "transClassifier.py",
            *baseline_words(tail.tail, NetOptions.of(args), data, tuned),
            *parser.again(
                (*options.IMAGES, *options.PIXELS, *AS_LONG, *options.MACHINE, "out"), args, data
            ),
        )


if __name__ == "__main__":
    main()
