"""Measure how much of net B's knowledge each order of net A's explains:
variances and instability (paper Sec. 4.2).
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils import options
from utils.command import answer_early, command
from utils.parser import (
    PICTURES,
    Namespace,
    Parser,
    architecture,
    checkpoint_file,
    feature_folder,
    result_file,
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
    group.add_argument("--t_or_v", choices=["train", "val"], default="val", help="which images")
    group.add_argument(
        "--mean",
        choices=["channel", "global"],
        default="channel",
        help="per channel, or one (paper)",
    )
    group.add_argument(
        "--bootstrap",
        type=whole(0),
        default=1000,
        metavar="N",
        help="resamples for intervals, or 0",
    )
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--json", type=result_file(), metavar="FILE", help="write everything as JSON"
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
    options.add_data_options(parser, batch_size=64, cache_images="off", two_nets=True)
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
    if args.spectrum and len(args.transnet) == 1:
        parser.error(
            "--spectrum compares Trans-Nets of several depths: name them all behind --transnet"
        )


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch

from consistency.answers import REFUSED_MATCH, Answers, knowledge_record
from consistency.moments import ImageMoments
from consistency.reconstruction import merged
from consistency.trans_nets import check_fit
from consistency.variance_report import rank_channels, variance_report
from models.cut_net import open_net
from models.heads import freeze_heads
from models.layers import Layer
from models.own import is_own
from models.pair import Decomposition, read_stored
from models.tail import FrozenTail, open_tail
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, runs
from utils.data.images import ImageData
from utils.errors import InputError
from utils.features.live import live_provenance, live_source
from utils.features.source import Shape, Source
from utils.files import sha256
from utils.progress import Progress
from utils.provenance import Provenance
from utils.report.charts import spectrum_figure
from utils.report.maps import component_figure, save_figure
from utils.report.tables import knowledge_table, save_report, variance_rows, variance_table
from utils.runtime import Runtime

# A Trans-Net is fitted on some images and measured on others
NOT_OF_THE_FIT = ("split", "sample_num")


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
    """Open both nets, cut where the options say or else
    where the Trans-Net was fitted, and the images.

    `check` holds them against the Trans-Nets, before the first image is decoded.
    """
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    net_in = open_net(args.net_in, args.arch_in, first.or_source(fitted.a))
    net_tar = open_net(
        args.net_tar, args.arch_tar, second.or_source(fitted.b), options.second_layer_hint(args)
    )
    data_in = net_in.state.get("data", {})
    options.fill(args, data_in, net_tar.state.get("data", {}))
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
    known = {"dataset": args.dataset, "name": args.name, "sample_num": args.sample_num}
    check(
        live_provenance(images, (in_, tar), **known),
        [net.shapes(images.image_size)[0] for net in (net_in, net_tar)],
    )
    heads = freeze_heads(net_in, net_tar, opening.few_pixels(images), runtime.device)
    whole = (net_in.whole(), net_tar.whole())
    return live_source(images, (in_, tar), heads.modules, heads.shapes, runtime, whole, **known)


@torch.no_grad()
def measure(
    nets: Sequence[TransNet],
    source: Source,
    loader: opening.Loader,
    answers: Answers | None,
    runtime: Runtime,
    *,
    per_image: bool,
) -> tuple[list[ImageMoments], Answers | None]:
    """Decompose every pair by the first Trans-Net,
    reconstruct it by the others, in one pass; all processes get all.

    With `answers`, B's tail answers to each g(x) besides.
    """
    decomposition = runtime.parallel(Decomposition(nets[0]).requires_grad_(False)).eval()
    others = [runtime.parallel(net.requires_grad_(False)).eval() for net in nets[1:]]
    found = [ImageMoments(net.constant, per_image=per_image) for net in nets]
    for batch in Progress(loader, "variances", quiet=not runtime.is_main):
        *_, labels, numbers = on_device = runtime.to_device(batch)
        x, target = source.read(*on_device)
        components, residual = decomposition(x, target)
        found[0].update(components.transpose(0, 1), residual, numbers, labels)
        sent = {sender_name(nets[0]): target - residual}
        for net, other, moments in zip(nets[1:], others, found[1:]):
            sent[sender_name(net)] = output = other(x)
            moments.update(output[None], target - output, numbers)
        if answers is not None:
            answers.update(x, target, sent, labels, numbers)
    merged_answers = None if answers is None else merged(answers.cpu(), runtime)
    return [merged(moments, runtime) for moments in found], merged_answers


def sender_name(net: TransNet) -> str:
    """Name a Trans-Net by its depth."""
    layers = net.order + 1
    return f"g of {layers} layer{'s' if layers > 1 else ''}"


def open_answers(
    args: Namespace, source: Source, states: Sequence[checkpoint.State], runtime: Runtime
) -> tuple[Answers | None, list[str]]:
    """Read the tails behind the features;
    where there is none, say why and leave its numbers out.
    """
    tails: list[FrozenTail | None] = []
    notes = []
    for state, path in zip(states, args.transnet):
        if (match := state.get("settings", {}).get("match", "feature")) != "feature":
            return None, [f"{path} {REFUSED_MATCH.format(match)}"]
    nets = ((source.provenance.a, args.arch_in), (source.provenance.b, args.arch_tar))
    losses = ("the decision recovery", "what B still knows")
    for (net, arch), shape, loss in zip(nets, source.shapes, losses):
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
        words += [
            "--transnet",
            args.transnet[0],
            *options.arch_words(("--arch_A", "--arch_B"), *archs),
        ]
        words += ["--json", str(Path(args.json).parent / "calibration.json")] if args.json else []
        runtime.say_next("Calibrate.py", *words, *machine)
    elif not args.convOut_path:
        nets = ("--net_A", args.net_in, "--net_B", args.net_tar, "--resume_Ys", args.transnet[0])
        named = options.arch_words(("--arch_A", "--arch_B"), args.arch_in, args.arch_tar)
        layers = ("--layer", source.a.layer, "--layer2", source.b.layer)
        same = parser.again(args, (*options.IMAGES, *options.PIXELS))
        runtime.say_next("transClassifier.py", *nets, *named, *layers, *same, *machine)


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    states = [checkpoint.load(path) for path in args.transnet]
    trans_nets = [build_from_state(state, path) for state, path in zip(states, args.transnet)]
    fits = [Provenance.from_record(state.get("source", {})) for state in states]

    def check(provenance: Provenance, shapes: Sequence[Shape]) -> None:
        for fitted, net, path in zip(fits, trans_nets, args.transnet):
            fitted.check(provenance, path, but=NOT_OF_THE_FIT)
            check_fit(net, *shapes)

    if args.convOut_path:
        source = open_stored(args)
        check(source.provenance, source.shapes)
    else:
        source = open_live(args, fits[0], check, runtime)
    if args.figure and args.figure_image >= len(source.data):
        parser.error(
            f"--figure_image {args.figure_image} is not among the {len(source.data)} images"
        )

    source = opening.with_decoded(args, source, runtime)
    loader = opening.loader(args, source.data, runtime)
    answers, notes = open_answers(args, source, states, runtime)
    moments, answers = measure(
        trans_nets, source, loader, answers, runtime, per_image=args.bootstrap > 0
    )
    record = source.provenance.to_record()
    made_of = {
        key: value
        for key, value in record.items()
        if key not in ("classes", "transform", "folders")
    }
    made_of |= {
        "transnet_path": args.transnet[0],
        "transnet": sha256(args.transnet[0]),
        "p": trans_nets[0].p.tolist(),
    }
    depths = [(net.order + 1, of_net) for net, of_net in zip(trans_nets, moments)]
    report = variance_report(depths, args.mean, args.bootstrap, source.provenance.classes)
    report |= {"doubts": opening.source_doubts(args, source, runtime)}
    report |= {
        "source": made_of,
        **{key: states[0].get(key) for key in ("settings", "linear_reference", "fitted")},
    }
    rows = {} if answers is None else answers.table(resamples=args.bootstrap, seed=args.seed)
    report["still_known"] = knowledge_record(rows, notes)
    if runtime.is_main:
        print(
            f"{report['images']:,} {args.t_or_v} images, mean per {args.mean}",
            variance_table(report),
            sep="\n",
        )
        print(knowledge_table(report["still_known"]))
        save_report(report, args.json, args.csv, variance_rows(report))
        if args.spectrum:
            save_figure(args.spectrum, spectrum_figure(report["spectrum"]))
        if args.figure:
            draw(args.figure, trans_nets[0], report["channels"], source, args.figure_image, runtime)
    say_next(args, parser, source.provenance, runtime)
    return report


if __name__ == "__main__":
    main()
