"""Measure how much of net B's features each order of net A's explains (paper Sec. 4.2).

The numbers are variances and the instability.

Where the Trans-Net of the other direction lies beside it, both are measured. What the nets share is
the smaller of both: one direction alone is high where one net's features are simple.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, LayerOptions, RunOptions
from utils.parser import (
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
    "resize",
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
    options.add_other_direction_options(group, several=True)
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
    options.add_bootstrap_option(group, or_none=True)
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


@dataclass(frozen=True)
class PairOptions(Group):
    """The pair of nets, or their stored features, as --transnet's direction calls them.

    Attributes:
        net_in, net_tar: checkpoints of the nets of x and of the target.
        arch_in, arch_tar: their architectures, where options name them.
        convOut_path: stored features in place of the nets.
        reverse: of these x is B's, and the target A's.
        t_or_v: of which images, "train" or "val".
        dataset: what stored features must be of; None: anything.
    """

    net_in: str | None
    net_tar: str | None
    arch_in: str | None
    arch_tar: str | None
    convOut_path: str | None
    reverse: bool
    t_or_v: str
    dataset: str | None

    @property
    def archs(self) -> tuple[str | None, str | None]:
        """The architectures that options name."""
        return self.arch_in, self.arch_tar


@dataclass(frozen=True)
class MeasureOptions(Group):
    """Which Trans-Nets are measured, and how.

    Attributes:
        transnet: their files; the first is measured in full.
        transnet_back: those of the other direction; None: those beside them.
        one_direction: without these.
        sums: a file of Calibrate.py's, for the scale of what is shared.
        mean: "channel" or "global".
        bootstrap: resamples of the images; 0: no intervals.
        distinctions: say which classes B tells apart by x*, but not by g(x).
        seed: of the resamples.
    """

    transnet: list[str]
    transnet_back: list[str] | None
    one_direction: bool
    sums: str | None
    mean: str
    bootstrap: int
    distinctions: bool
    seed: int


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

from consistency.answers import REFUSED_MATCH, Answers, answers_by, knowledge_record, open_tails
from consistency.calibration import load_sums
from consistency.moments import ImageMoments
from consistency.reconstruction import merged
from consistency.several import calibrated, shared, without_null
from consistency.trans_nets import check_fit
from consistency.variance_report import rank_channels, variance_report
from models.cut_net import CutNet, open_net
from models.heads import freeze_heads
from models.layers import Layer
from models.own import is_own
from models.pair import Decomposition, find_reverse, read_stored
from models.tail import FrozenTail
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


def find_back(options: MeasureOptions, *, reverse: bool) -> list[str]:
    """Name the Trans-Nets of the other direction: those of the option, or beside --transnet."""
    if options.transnet_back or options.one_direction or reverse:
        return options.transnet_back or []
    back = [find_reverse(path, alike=True) for path in options.transnet]
    # The first Trans-Net decides: without its counterpart there is no other direction.
    return [str(path) for path in back if path] if back[0] else []


def open_stored(folder: str, pair: PairOptions, layers: LayerOptions) -> Source:
    """Open stored features and compare them with what the options say of them."""
    first, second = (Layer(**layers.of_net(net)) for net in "AB")
    label = runs.pair(first.label, second.label) if first.is_named or second.is_named else None
    expected = {"dataset": pair.dataset, "layer": label}
    data = opening.stored_features(folder, pair.t_or_v, expected, reverse=pair.reverse)
    return Source(data, read_stored, (data.shape_a, data.shape_b), data.provenance)


def open_nets(pair: PairOptions, layers: LayerOptions, fitted: Provenance) -> list[CutNet]:
    """Open both nets, cut where the options say, or else where the Trans-Net was `fitted`.

    Empty where features are stored.
    """
    if not (pair.net_in and pair.net_tar):
        return []
    first, second = (Layer(**layers.of_net(net)) for net in "AB")
    place_in, place_tar = first.or_source(fitted.a), second.or_source(fitted.b)
    net_in = open_net(pair.net_in, pair.arch_in, place_in)
    return [net_in, open_net(pair.net_tar, pair.arch_tar, place_tar, layers.second_hint)]


def open_live(
    nets: Sequence[CutNet],
    data: DataOptions,
    split: str,
    fitted: Provenance,
    check: Callable[[Provenance, Sequence[Shape]], None],
    runtime: Runtime,
) -> Source:
    """Open the images, for features that are computed while they are read.

    `check` holds the nets against the Trans-Nets, before the first image is decoded.
    """
    # Where the Trans-Net's record has the classes, `check` compares those, and not net A's.
    record = nets[0].data
    images = opening.images(
        data, split, record if fitted.classes is None else record | {"classes": None}
    )
    net_in, net_tar = (
        net.normalised_by(opening.normalisation(data, net.state, runtime, name, fit))
        for name, net, fit in zip("AB", nets, (fitted.a, fitted.b))
    )
    in_, tar = (
        opening.with_record(data, net.source, net.state, images) for net in (net_in, net_tar)
    )
    facts = {"dataset": data.dataset, "name": data.name, "sample_num": data.sample_num}
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
            # Replicas are joined along the images, so these come first here; moments take orders
            # first.
            moments[0].update(components.transpose(0, 1), residual, numbers, labels)
            # g(x) is x* less what is not reconstructed.
            sent = {next(names): target - residual}
            for net, name, of_net in zip(others, names, moments[1:]):
                sent[name] = output = net(x)
                # g(x) as the only component: deeper ones are asked for their instability alone.
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


def answers_of(
    direction: Direction, tails: Sequence[FrozenTail | InputError]
) -> tuple[Answers | None, list[str]]:
    """Let the nets' tails answer, as a direction calls them; see `answers_by`."""
    for state, path in zip(direction.states, direction.paths):
        if (match := state.get("settings", {}).get("match", "feature")) != "feature":
            return None, [f"{path} {REFUSED_MATCH.format(match)}"]
    tail_in, tail_tar = tails
    # A and B change places in the other direction.
    return answers_by(tail_tar, tail_in) if direction.is_back else answers_by(tail_in, tail_tar)


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


def calibrate_words(
    measuring: MeasureOptions, pair: PairOptions, source: Provenance, json_file: str | None
) -> list[Any]:
    """Give the words by which Calibrate.py says what the numbers of stored features are worth."""
    archs = [arch if arch and is_own(arch) else None for arch in (source.a.arch, source.b.arch)]
    words: list[Any] = ["--convOut_path", pair.convOut_path, *["--reverse"] * pair.reverse]
    words += ["--one_direction"] * measuring.one_direction
    words += ["--transnet", measuring.transnet[0]]
    words += ["--transnet_back", measuring.transnet_back[0]] if measuring.transnet_back else []
    words += options.arch_words(("--arch_A", "--arch_B"), *archs)
    if json_file and not is_stream(json_file):
        words += ["--json", Path(json_file).parent / "calibration.json"]
    return words


def refine_words(measuring: MeasureOptions, pair: PairOptions, source: Provenance) -> list[Any]:
    """Give the words by which transClassifier.py refines the nets' features."""
    nets = ("--net_A", pair.net_in, "--net_B", pair.net_tar, "--resume_Ys", measuring.transnet[0])
    named = options.arch_words(("--arch_A", "--arch_B"), *pair.archs)
    return [*nets, *named, "--layer", source.a.layer, "--layer2", source.b.layer]


def report_of(
    options: MeasureOptions,
    direction: Direction,
    measured: Measured,
    provenance: Provenance,
    paths: Sequence[str],
) -> dict[str, Any]:
    """Give all that is reported of one direction, as plain values.

    Args:
        options: how it was measured.
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
    report = variance_report(depths, options.mean, options.bootstrap, provenance.classes)
    state = direction.states[0]
    report |= {"source": made_of}
    report |= {key: state.get(key) for key in ("settings", "linear_reference", "fitted")}
    answers = measured.answers
    rows = {} if answers is None else answers.table(resamples=options.bootstrap, seed=options.seed)
    report["distinctions"], notes = None, list(measured.notes)
    if options.distinctions and answers is not None:
        try:
            distinctions = answers.distinctions(resamples=options.bootstrap, seed=options.seed)
            report["distinctions"] = distinctions.record(provenance.classes or (), paths)
        except InputError as error:
            notes.append(f"distinctions are left out: {error}")
    return report | {"still_known": knowledge_record(rows, notes)}


def report_shared(options: MeasureOptions, measured: Sequence[Measured]) -> dict[str, Any]:
    """Give what both directions explain, and the smaller one: what the nets share.

    Without --sums there is no null: of each direction 1 − instability stands for its consistency.
    """
    parts = [of.moments[0].target_and_residual(options.mean) for of in measured]
    if options.sums:
        forth, back = (
            calibrated(sums, load_sums(options.sums, back=is_back), options.sums)
            for sums, is_back in zip(parts, (False, True))
        )
    else:
        forth, back = map(without_null, parts)
    intervals = shared(forth, back, resamples=options.bootstrap)
    scale = "null within the class → ceiling" if options.sums else "1 − instability: no null"
    return {"scale": scale, **{name: asdict(interval) for name, interval in intervals.items()}}


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    measuring, pair = MeasureOptions.of(args), PairOptions.of(args)
    layers, runtime = LayerOptions.of(args), opening.start(RunOptions.of(args))
    # The Trans-Nets of one direction, and those of the other where there are some.
    directions = [Direction.read(args.transnet, False)]
    if back_paths := find_back(measuring, reverse=pair.reverse):
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
            if measuring.transnet_back:
                raise
            del directions[1:]
            left_out.append(f"the other direction is left out: {error}")

    # The features: stored, or computed from images while they are read.
    fitted = directions[0].fits[0]
    nets = open_nets(pair, layers, fitted)
    data = DataOptions.of(args, {"resize": fitted.resize}, *(net.data for net in nets))
    if nets:
        source = open_live(nets, data, pair.t_or_v, fitted, check, runtime)
    else:
        source = open_stored(args.convOut_path, pair, layers)
        check(source.provenance, source.shapes)
    if args.figure and args.figure_image >= len(source.data):
        parser.error(
            f"--figure_image {args.figure_image} is not among the {len(source.data)} images"
        )
    if args.sums and len(directions) == 1:
        why = left_out[0] if left_out else "there is no Trans-Net of the other direction"
        raise InputError(f"--sums is for what both directions share, but {why}")

    # Nothing is left to refuse: decode the images, and open the nets' tails.
    source = opening.with_decoded(data, source, runtime)
    loader = opening.loader(data, source.data, runtime)
    provenance = source.provenance
    sources = (provenance.a, provenance.b)
    tails = open_tails(sources, pair.archs, source.shapes, runtime.device, nets)
    answers = [answers_of(one, tails) for one in directions]
    # One pass over the images measures both directions.
    measured = measure(directions, source, loader, answers, runtime, per_image=args.bootstrap > 0)
    # The report: of --transnet's direction, with the other one and what both share inside.
    paths = source.data.paths if isinstance(source.data, ImageData) else ()
    report, *back = (
        report_of(measuring, one, of_direction, source.provenance, paths)
        for one, of_direction in zip(directions, measured)
    )
    report |= {"doubts": opening.source_doubts(data, source, runtime), "notes": left_out}
    if back:
        report |= {"back": back[0], "shared": report_shared(measuring, measured)}
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
    # The step that follows: calibrate on stored features, or refine the nets.
    if nets:
        words = refine_words(measuring, pair, source.provenance)
        same = (*options.IMAGES, *options.PIXELS, *options.MACHINE)
        runtime.say_next("transClassifier.py", *words, *parser.again(same, args, data))
    elif pair.t_or_v == "val":
        words = calibrate_words(measuring, pair, source.provenance, args.json)
        runtime.say_next("Calibrate.py", *words, *parser.again(options.MACHINE, args))
    return report


if __name__ == "__main__":
    main()
