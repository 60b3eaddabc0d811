"""Measure how much of net B's features each order of net A's explains (paper Sec. 4.2).

The numbers are variances and the instability.

Where the Trans-Net of the other direction lies beside it, both are measured. What the nets share is
the smaller of both: one direction alone is high where one net's features are simple.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.parser import (
    MOST_RESAMPLES,
    PICTURES,
    Namespace,
    Parser,
    architecture,
    checkpoint_file,
    feature_folder,
    result_file,
    some_path,
    whole,
)

OF_NETS = (
    "net_in",
    "net_tar",
    "arch_in",
    "arch_tar",
    "name",
    "train_path",
    "val_path",
    "image_size",
    "sample_num",
    "sub_sampler_split",
    "cache_images",
    "normalisation",
    "normalisation1",
    "normalisation2",
)


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python Variance.py --net_in A.pth.tar --net_tar B.pth.tar --transnet G.pth.tar",
        check=check_options,
    )
    group = parser.add_argument_group("what is measured")
    which = (
        "the Trans-Net, ours or the authors'; others of the same features, of other depths: their"
        " spectrum"
    )
    group.add_argument(
        "--transnet", required=True, nargs="+", type=checkpoint_file, metavar="FILE", help=which
    )
    group.add_argument(
        "--net_in",
        type=checkpoint_file,
        metavar="A",
        help="checkpoint of the net whose features are x",
    )
    group.add_argument(
        "--net_tar",
        type=checkpoint_file,
        metavar="B",
        help="checkpoint of the net of the target x*",
    )
    group.add_argument(
        "--arch_in", type=architecture, help="architecture of A; default: the checkpoint's"
    )
    group.add_argument(
        "--arch_tar", type=architecture, help="architecture of B; default: the checkpoint's"
    )
    group.add_argument(
        "--convOut_path",
        type=feature_folder,
        metavar="FOLDER",
        help="stored features in place of the nets",
    )
    group.add_argument(
        "--reverse",
        action="store_true",
        help="with --convOut_path: x is B's feature, the target A's",
    )
    group.add_argument(
        "--transnet_back",
        nargs="+",
        type=checkpoint_file,
        metavar="FILE",
        help=(
            "Trans-Nets of the other direction, from x* to x; default: those that lie beside"
            " --transnet, fitted by the same options"
        ),
    )
    group.add_argument("--one_direction", action="store_true", help="leave the other direction out")
    group.add_argument(
        "--sums",
        type=some_path,
        metavar="FILE",
        help=(
            "of Calibrate.py --sums for the same Trans-Nets and images: what is shared stands"
            " between its null within the class and its ceiling"
        ),
    )
    group.add_argument(
        "--distinctions",
        action="store_true",
        help="say which classes B tells apart by x*, but not by g(x): a rank without reference nets",
    )
    group.add_argument("--t_or_v", choices=["train", "val"], default="val", help="which images")
    group.add_argument(
        "--mean",
        choices=["channel", "global"],
        default="channel",
        help="per channel, or one (paper)",
    )
    group.add_argument(
        "--bootstrap",
        type=whole(0, MOST_RESAMPLES),
        default=1000,
        metavar="N",
        help="resamples for intervals, or 0",
    )
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json",
        type=result_file(),
        metavar="FILE",
        help="write everything as JSON; -: to standard output, and other lines to standard error",
    )
    group.add_argument(
        "--csv", type=result_file(), metavar="FILE", help="write the variances as CSV"
    )
    group.add_argument(
        "--figure",
        type=result_file(*PICTURES),
        metavar="FILE",
        help="draw the components of one image",
    )
    group.add_argument(
        "--spectrum", type=result_file(*PICTURES), metavar="FILE", help="draw what depths explain"
    )
    group.add_argument(
        "--figure_image", type=whole(0), default=0, metavar="I", help="which image that is"
    )
    # Every photo is read once
    options.add_data_options(
        parser, batch_size=64, cache_images="off", two_nets=True, augment="ignored"
    )
    options.add_run_options(parser)
    options.add_ignored_options(parser)
    return parser


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other or have no effect."""
    if bool(args.convOut_path) == bool(args.net_in and args.net_tar):
        parser.error("name both --net_in and --net_tar, or --convOut_path")
    if args.convOut_path:
        parser.refuse_without_effect(
            args, OF_NETS, "beside --convOut_path: those features are stored already"
        )
    else:
        parser.refuse_without_effect(
            args, ["reverse"], "beside the nets: exchange --net_in and --net_tar"
        )
    options.check_layers(parser, args)
    options.check_other_direction(parser, args)
    if args.spectrum and len(args.transnet) == 1:
        parser.error(
            "--spectrum compares Trans-Nets of several depths: name them all behind --transnet"
        )


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch

from consistency.answers import REFUSED_MATCH, Answers, knowledge_record
from consistency.calibration import load_sums
from consistency.moments import ImageMoments
from consistency.reconstruction import merged
from consistency.several import calibrated, shared, without_null
from consistency.trans_nets import check_fit
from consistency.variance_report import rank_channels, variance_report
from models.cut_net import open_net
from models.heads import freeze_heads
from models.layers import Layer
from models.own import is_own
from models.pair import Decomposition, find_reverse, read_stored
from models.tail import FrozenTail, open_tail
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, runs
from utils.data.images import ImageData
from utils.errors import InputError
from utils.features.live import live_provenance, live_source
from utils.features.source import Shape, Source
from utils.files import is_stream, sha256
from utils.progress import Progress
from utils.provenance import Provenance
from utils.report.charts import spectrum_figure
from utils.report.maps import component_figure, save_figure
from utils.report.tables import save_report, variance_rows, variance_tables
from utils.runtime import Runtime

# A Trans-Net is fitted on some images and measured on others
NOT_OF_THE_FIT = ("split", "sample_num")


class Direction(NamedTuple):
    """The Trans-Nets of one direction.

    Attributes:
        is_back: they reconstruct x from x*.
        paths: their files; the first is measured in full, the others are for the spectrum.
        states: what the files hold.
        nets: the Trans-Nets.
    """

    is_back: bool
    paths: Sequence[str]
    states: Sequence[checkpoint.State]
    nets: Sequence[TransNet]

    @classmethod
    def read(cls, paths: Sequence[str], is_back: bool) -> "Direction":
        """Read the files."""
        states = [checkpoint.load(path) for path in paths]
        nets = [build_from_state(state, path) for state, path in zip(states, paths)]
        return cls(is_back, paths, states, nets)

    @property
    def fits(self) -> list[Provenance]:
        """What each was fitted on, as its direction calls it."""
        return [Provenance.from_record(state.get("source", {})) for state in self.states]

    def check(self, provenance: Provenance, shapes: Sequence[Shape]) -> None:
        """Hold the features against the Trans-Nets.

        Raises:
            InputError: they were fitted on others.
        """
        if self.is_back:
            provenance, shapes = provenance.reversed(), shapes[::-1]
        for fitted, net, path in zip(self.fits, self.nets, self.paths):
            fitted.check(provenance, path, but=NOT_OF_THE_FIT)
            check_fit(net, *shapes)


def find_back(args: Namespace) -> list[str]:
    """Name the Trans-Nets of the other direction: those of the option, or beside --transnet."""
    if args.transnet_back or args.one_direction or args.reverse:
        return args.transnet_back or []
    back = [find_reverse(path, alike=True) for path in args.transnet]
    # The first Trans-Net decides: without its counterpart there is no other direction.
    return [str(path) for path in back if path] if back[0] else []


def open_stored(args: Namespace) -> Source:
    """Open stored features and compare them with what the options say of them."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    label = runs.pair(first.label, second.label) if first.is_named or second.is_named else None
    data = opening.stored_features(args, args.convOut_path, args.t_or_v, {"layer": label})
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_live(
    args: Namespace,
    fitted: Provenance,
    check: Callable[[Provenance, Sequence[Shape]], None],
    runtime: Runtime,
) -> Source:
    """Open both nets and the images, for features that are computed while they are read.

    The nets are cut where the options say, or else where the Trans-Net was fitted.

    `check` holds them against the Trans-Nets, before the first image is decoded.
    """
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    net_in = open_net(args.net_in, args.arch_in, first.or_source(fitted.a))
    net_tar = open_net(
        args.net_tar, args.arch_tar, second.or_source(fitted.b), options.second_layer_hint(args)
    )
    data_in = net_in.state.get("data", {})
    options.fill(args, data_in, net_tar.state.get("data", {}))
    # Where the Trans-Net's record has the classes, `check` compares those, and not net A's.
    images = opening.images(
        args, args.t_or_v, data_in if fitted.classes is None else data_in | {"classes": None}
    )
    nets = (("A", net_in, fitted.a), ("B", net_tar, fitted.b))
    net_in, net_tar = (
        net.normalised_by(opening.normalisation(args, net.state, runtime, name, fit))
        for name, net, fit in nets
    )
    in_, tar = (
        opening.with_record(args, net.source, net.state, images) for net in (net_in, net_tar)
    )
    facts = {"dataset": args.dataset, "name": args.name, "sample_num": args.sample_num}
    # From here on both nets are cut and the images listed, but nothing is decoded yet.
    check(
        live_provenance(images, (in_, tar), **facts),
        [net.shapes(images.image_size)[0] for net in (net_in, net_tar)],
    )
    heads = freeze_heads(net_in, net_tar, opening.few_pixels(images), runtime.device)
    whole = (net_in.whole(), net_tar.whole())
    return live_source(images, (in_, tar), heads.modules, heads.shapes, runtime, whole, **facts)


class Measured(NamedTuple):
    """What a pass over the images gives of one direction.

    Attributes:
        moments: of each Trans-Net.
        answers: of the target's net, if its tail is at hand.
        notes: sentences on what is left out.
    """

    moments: list[ImageMoments]
    answers: Answers | None
    notes: list[str]


@torch.no_grad()
def measure(
    directions: Sequence[Direction],
    source: Source,
    loader: opening.Loader,
    answers_of: Sequence[tuple[Answers | None, list[str]]],
    runtime: Runtime,
    *,
    per_image: bool,
) -> list[Measured]:
    """Decompose and reconstruct every pair, in one pass over the images.

    The first Trans-Net of each direction decomposes, the others reconstruct; all processes get all
    numbers.

    With answers in `answers_of`, the target's tail answers to each g(x) besides.
    """
    # The first of a direction gives its components x(k), the others just g(x).
    nets = [
        [
            runtime.parallel(net.requires_grad_(False)).eval()
            for net in (Decomposition(one.nets[0]), *one.nets[1:])
        ]
        for one in directions
    ]
    all_measured = [
        Measured([ImageMoments(net.constant, per_image=per_image) for net in one.nets], *about)
        for one, about in zip(directions, answers_of)
    ]
    for batch in Progress(loader, "variances", quiet=not runtime.is_main):
        *_, labels, numbers = on_device = runtime.to_device(batch)
        # Stored rows, or both nets' heads on a batch of images: x and x*, as maps.
        features = source.read(*on_device)
        for direction, of_nets, (moments, answers, _) in zip(directions, nets, all_measured):
            x, target = features[::-1] if direction.is_back else features
            (decomposition, *others), names = of_nets, map(sender_name, direction.nets)
            components, residual = decomposition(x, target)
            moments[0].update(components.transpose(0, 1), residual, numbers, labels)
            # g(x) is x* less what is not reconstructed.
            sent = {next(names): target - residual}
            for net, name, of_net in zip(others, names, moments[1:]):
                sent[name] = output = net(x)
                of_net.update(output[None], target - output, numbers)
            if answers is not None:
                answers.update(x, target, sent, labels, numbers)
    return [
        Measured(
            [merged(of_net, runtime) for of_net in moments],
            None if answers is None else merged(answers.cpu(), runtime),
            notes,
        )
        for moments, answers, notes in all_measured
    ]


def sender_name(net: TransNet) -> str:
    """Name a Trans-Net by its depth."""
    layers = net.order + 1
    return f"g of {layers} layer{'s' if layers > 1 else ''}"


def open_answers(
    args: Namespace, source: Source, direction: Direction, runtime: Runtime
) -> tuple[Answers | None, list[str]]:
    """Read the tails behind the features.

    Where there is none, its numbers are omitted, and a note says why.
    """
    tails: list[FrozenTail | None] = []
    notes = []
    for state, path in zip(direction.states, direction.paths):
        if (match := state.get("settings", {}).get("match", "feature")) != "feature":
            return None, [f"{path} {REFUSED_MATCH.format(match)}"]
    nets = [(source.provenance.a, args.arch_in), (source.provenance.b, args.arch_tar)]
    shapes = source.shapes
    if direction.is_back:
        nets, shapes = nets[::-1], shapes[::-1]
    losses = ("the decision recovery", "what B still knows")
    for (net, arch), shape, loss in zip(nets, shapes, losses):
        try:
            tails.append(open_tail(net, arch, shape).to(runtime.device))
        except InputError as error:
            tails.append(None)
            notes.append(f"{loss} is left out: {error}")
    tail_a, tail_b = tails
    outputs = [None if tail is None else tail.outputs for tail in tails]
    if None not in outputs and outputs[0] != outputs[1]:
        tail_a = None
        notes.append(f"{losses[0]} is left out: A tells {outputs[0]} classes apart, B {outputs[1]}")
    return (None, notes[-1:]) if tail_b is None else (Answers(tail_b, tail_a), notes)


@torch.no_grad()
def draw(
    file: str,
    net: TransNet,
    channels: Sequence[Mapping[str, Any]],
    source: Source,
    index: int,
    runtime: Runtime,
) -> None:
    """Draw the two most and the two least consistent channels of one image."""
    # A batch of one, as the loader would give it.
    batch = source.data.__getitems__([index])
    x, target = source.read(*runtime.to_device(batch))
    output, components = net.decompose(x)
    ranked = rank_channels(channels, ends=2)
    notes = [f"instability {row['instability']:.2f}" for row in ranked]
    photo = batch[0][0] if isinstance(source.data, ImageData) else None
    maps = (x[0], target[0], output[0], components[:, 0])
    save_figure(file, component_figure(photo, *maps, [row["channel"] for row in ranked], notes))


def say_next(args: Namespace, parser: Parser, source: Provenance, runtime: Runtime) -> None:
    """Print the step that follows: calibrate on stored features, or refine the nets."""
    machine = parser.again(args, options.MACHINE)
    if args.convOut_path and args.t_or_v == "val":
        archs = [arch if arch and is_own(arch) else None for arch in (source.a.arch, source.b.arch)]
        words = ["--convOut_path", args.convOut_path, *["--reverse"] * args.reverse]
        words += ["--one_direction"] * args.one_direction
        words += ["--transnet", args.transnet[0]]
        words += ["--transnet_back", *(args.transnet_back or [])[:1]] * bool(args.transnet_back)
        words += [
            *options.arch_words(("--arch_A", "--arch_B"), *archs),
        ]
        if args.json and not is_stream(args.json):
            words += ["--json", str(Path(args.json).parent / "calibration.json")]
        runtime.say_next("Calibrate.py", *words, *machine)
    elif not args.convOut_path:
        nets = ("--net_A", args.net_in, "--net_B", args.net_tar, "--resume_Ys", args.transnet[0])
        named = options.arch_words(("--arch_A", "--arch_B"), args.arch_in, args.arch_tar)
        layers = ("--layer", source.a.layer, "--layer2", source.b.layer)
        same = parser.again(args, (*options.IMAGES, *options.PIXELS))
        runtime.say_next("transClassifier.py", *nets, *named, *layers, *same, *machine)


def report_of(
    args: Namespace,
    direction: Direction,
    measured: Measured,
    provenance: Provenance,
    paths: Sequence[str],
) -> dict[str, Any]:
    """Give all that is reported of one direction, as plain values.

    Args:
        args: the options.
        direction: which.
        measured: of it.
        provenance: of the features, as --transnet's direction calls them.
        paths: of the images; none: they are named by their numbers.
    """
    provenance = provenance.reversed() if direction.is_back else provenance
    # Long, or of this machine: they identify no result.
    without = ("classes", "transform", "folders")
    made_of = {key: value for key, value in provenance.to_record().items() if key not in without}
    made_of |= {
        "transnet_path": direction.paths[0],
        "transnet": sha256(direction.paths[0]),
        "p": direction.nets[0].p.tolist(),
    }
    depths = [(net.order + 1, of_net) for net, of_net in zip(direction.nets, measured.moments)]
    report = variance_report(depths, args.mean, args.bootstrap, provenance.classes)
    state = direction.states[0]
    report |= {"source": made_of}
    report |= {key: state.get(key) for key in ("settings", "linear_reference", "fitted")}
    answers = measured.answers
    rows = {} if answers is None else answers.table(resamples=args.bootstrap, seed=args.seed)
    report["distinctions"], notes = None, list(measured.notes)
    if args.distinctions and answers is not None:
        try:
            distinctions = answers.distinctions(resamples=args.bootstrap, seed=args.seed)
            report["distinctions"] = distinctions.record(provenance.classes or (), paths)
        except InputError as error:
            notes.append(f"distinctions are left out: {error}")
    return report | {"still_known": knowledge_record(rows, notes)}


def report_shared(args: Namespace, measured: Sequence[Measured]) -> dict[str, Any]:
    """Give what both directions explain, and the smaller one: what the nets share.

    Without --sums there is no null: of each direction 1 − instability stands for its consistency.
    """
    parts = [of.moments[0].target_and_residual(args.mean) for of in measured]
    if args.sums:
        forth, back = (
            calibrated(sums, load_sums(args.sums, back=is_back), args.sums)
            for sums, is_back in zip(parts, (False, True))
        )
    else:
        forth, back = map(without_null, parts)
    intervals = shared(forth, back, resamples=args.bootstrap)
    scale = "null within the class → ceiling" if args.sums else "1 − instability: no null"
    return {"scale": scale, **{name: asdict(interval) for name, interval in intervals.items()}}


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    # The Trans-Nets of one direction, and those of the other where there are some.
    directions = [Direction.read(args.transnet, False)]
    if back_paths := find_back(args):
        directions.append(Direction.read(back_paths, True))
    left_out = list[str]()

    # Called by whoever opens the features, before anything costs time; what does not fit is
    # omitted.
    def check(provenance: Provenance, shapes: Sequence[Shape]) -> None:
        directions[0].check(provenance, shapes)
        try:
            for back in directions[1:]:
                back.check(provenance, shapes)
        except InputError as error:
            if args.transnet_back:
                raise
            del directions[1:]
            left_out.append(f"the other direction is left out: {error}")

    # The features: stored, or computed from images while they are read.
    if args.convOut_path:
        source = open_stored(args)
        check(source.provenance, source.shapes)
    else:
        source = open_live(args, directions[0].fits[0], check, runtime)
    if args.figure and args.figure_image >= len(source.data):
        parser.error(
            f"--figure_image {args.figure_image} is not among the {len(source.data)} images"
        )
    if args.sums and len(directions) == 1:
        why = left_out[0] if left_out else "there is no Trans-Net of the other direction"
        raise InputError(f"--sums is for what both directions share, but {why}")

    # Nothing is left to refuse: decode the images, and open the nets' tails.
    source = opening.with_decoded(args, source, runtime)
    loader = opening.loader(args, source.data, runtime)
    answers = [open_answers(args, source, one, runtime) for one in directions]
    # One pass over the images measures both directions.
    measured = measure(directions, source, loader, answers, runtime, per_image=args.bootstrap > 0)
    # The report: of --transnet's direction, with the other one and what both share inside.
    paths = source.data.paths if isinstance(source.data, ImageData) else ()
    report, *back = (
        report_of(args, one, of_direction, source.provenance, paths)
        for one, of_direction in zip(directions, measured)
    )
    report |= {"doubts": opening.source_doubts(args, source, runtime), "notes": left_out}
    if back:
        report |= {"back": back[0], "shared": report_shared(args, measured)}
    # Print, write, draw.
    if runtime.is_main:
        print(f"{report['images']:,} {args.t_or_v} images, mean per {args.mean}")
        print(variance_tables(report, backwards=args.reverse))
        save_report(report, args.json, args.csv, variance_rows(report))
        if args.spectrum:
            save_figure(args.spectrum, spectrum_figure(report["spectrum"]))
        if args.figure:
            net = directions[0].nets[0]
            draw(args.figure, net, report["channels"], source, args.figure_image, runtime)
    say_next(args, parser, source.provenance, runtime)
    return report


if __name__ == "__main__":
    main()
