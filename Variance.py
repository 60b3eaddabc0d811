"""Measure how much of net B's knowledge each order of net A's explains: variances and instability (paper Sec. 4.2)."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models.fitting import check_fit
from models.frozen import freeze_for_inference
from models.layers import Layer
from models.pair import Decomposition, MapHead, open_net, read_stored
from models.trans_net import TransNet, build_from_state
from utils import checkpoint, opening, options, runs
from utils.data.images import ImageData
from utils.features.live import read_live
from utils.files import sha256, write_csv, write_json
from utils.measures.moments import ImageMoments
from utils.measures.variances import rank_channels, variance_report
from utils.parser import PICTURES, Namespace, Parser, result_file, some_path, whole
from utils.progress import Progress
from utils.provenance import Provenance
from utils.report.charts import spectrum_figure
from utils.report.maps import component_figure, save_figure
from utils.report.tables import variance_rows, variance_table
from utils.runtime import Runtime, command
from utils.training.reconstruction import merged

OF_NETS = (
    "net_in", "net_tar", "arch_in", "arch_tar", "name", "train_path", "val_path", "image_size", "sample_num",
    "sub_sampler_split", "cache_images",
)  # fmt: skip
NOT_OF_THE_FIT = ("split", "sample_num")  # a Trans-Net is fitted on some images and measured on others


class Source(NamedTuple):
    """The pairs of features that are measured, and what they are.

    Attributes:
        data: what a batch is made of: images, or stored features.
        has_photos: whether it is images.
        read: a batch on the device → x and the target as maps.
        loader: of all of it.
        provenance: what the features are.
    """

    data: ImageData | opening.Features
    has_photos: bool
    read: Callable[..., tuple[Tensor, Tensor]]
    loader: opening.Loader
    provenance: Provenance


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Variance.py --net_in A.pth.tar --net_tar B.pth.tar --transnet G.pth.tar")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--transnet", required=True, nargs="+", type=some_path, metavar="FILE",
        help="the Trans-Net, ours or the authors'; others of the same features, of other depths: their spectrum",
    )  # fmt: skip
    group.add_argument("--net_in", type=some_path, metavar="A", help="checkpoint of the net whose features are x")
    group.add_argument("--net_tar", type=some_path, metavar="B", help="checkpoint of the net of the target x*")
    group.add_argument("--arch_in", help="architecture of A; default: the checkpoint's")
    group.add_argument("--arch_tar", help="architecture of B; default: the checkpoint's")
    group.add_argument("--convOut_path", type=some_path, metavar="FOLDER", help="stored features in place of the nets")
    group.add_argument("--reverse", action="store_true", help="with --convOut_path: x is B's feature, the target A's")
    group.add_argument("--t_or_v", choices=["train", "val"], default="val", help="which images")
    means = ["channel", "global"]
    group.add_argument("--mean", choices=means, default="channel", help="of each channel (release) or of all (paper)")
    group.add_argument("--bootstrap", type=whole(0), default=1000, metavar="N", help="resamples for intervals, or 0")
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=result_file(), metavar="FILE", help="write everything as JSON")
    group.add_argument("--csv", type=result_file(), metavar="FILE", help="write the variances as CSV")
    group.add_argument("--figure", type=result_file(*PICTURES), metavar="FILE", help="draw the components of one image")
    group.add_argument("--spectrum", type=result_file(*PICTURES), metavar="FILE", help="draw what depths explain")
    group.add_argument("--figure_image", type=whole(0), default=0, metavar="I", help="which image that is")
    options.add_data_options(parser, batch_size=64, cache_images="off")  # every photo is read once
    options.add_run_options(parser)
    options.add_ignored_options(parser)
    return parser


def open_stored(args: Namespace, runtime: Runtime) -> Source:
    """Open stored features and compare them with what the options say of them."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    label = runs.pair(first.label, second.label) if first.is_named or second.is_named else None
    data = opening.stored_features(args, args.convOut_path, args.t_or_v, {"layer": label})
    return Source(data, False, read_stored, opening.feature_loader(args, data, runtime), data.provenance)


def open_live(args: Namespace, fitted: Provenance, runtime: Runtime) -> Source:
    """Open both nets, cut where the options say or else where the Trans-Net was fitted, and the images."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    net_in = open_net(args.net_in, args.arch_in, first.or_node(fitted.a.layer))
    net_tar = open_net(args.net_tar, args.arch_tar, second.or_node(fitted.b.layer), options.second_layer_hint(args))
    data_in = net_in.state.get("data", {})
    options.fill(args, data_in, net_tar.state.get("data", {}))
    images = opening.images(args, args.t_or_v, data_in if fitted.classes is None else data_in | {"classes": None})
    provenance = Provenance(
        net_in.source, net_tar.source, dataset=args.dataset, name=args.name, split=args.t_or_v,
        sample_num=args.sample_num, classes=images.classes, transform=images.transform_record,
    )  # fmt: skip
    fitted.check(provenance, args.transnet[0], but=NOT_OF_THE_FIT)  # its classes too, before an image is decoded
    images = opening.decoded(args, images, runtime)
    frozen = (freeze_for_inference(net.head, runtime.device) for net in (net_in, net_tar))
    head_a, head_b = (runtime.parallel(MapHead(head)) for head in frozen)
    read = partial(read_live, head_a=head_a, head_b=head_b, preprocess=images.preprocessing(), runtime=runtime)
    return Source(images, True, read, opening.image_loader(args, images, runtime), provenance)


@torch.no_grad()
def measure(nets: Sequence[TransNet], source: Source, runtime: Runtime, *, per_image: bool) -> list[ImageMoments]:
    """Decompose every pair by the first Trans-Net, reconstruct it by the others, in one pass; all processes get all."""
    decomposition = runtime.parallel(Decomposition(nets[0]).requires_grad_(False)).eval()
    others = [runtime.parallel(net.requires_grad_(False)).eval() for net in nets[1:]]
    found = [ImageMoments(net.constant, per_image=per_image) for net in nets]
    for batch in Progress(source.loader, "variances", quiet=not runtime.is_main):
        *_, labels, numbers = on_device = runtime.to_device(batch)
        x, target = source.read(*on_device)
        for net in nets:
            check_fit(net, x, target)
        components, residual = decomposition(x, target)
        found[0].update(components.transpose(0, 1), residual, numbers, labels)
        for other, moments in zip(others, found[1:]):
            output = other(x)
            moments.update(output[None], target - output, numbers)
    return [merged(moments, runtime) for moments in found]


@torch.no_grad()
def draw(
    file: str, trans_net: TransNet, channels: Sequence[Mapping[str, Any]], source: Source, index: int, runtime: Runtime
) -> None:
    """Draw the two most and the two least consistent channels of one image."""
    batch = source.data.__getitems__([index])
    x, target = source.read(*runtime.to_device(batch))
    output, components = trans_net.decompose(x)
    ranked = rank_channels(channels, ends=2)
    notes = [f"instability {row['instability']:.2f}" for row in ranked]
    photo = batch[0][0] if source.has_photos else None
    numbers = [row["channel"] for row in ranked]
    save_figure(file, component_figure(photo, x[0], target[0], output[0], components[:, 0], numbers, notes))


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if bool(args.convOut_path) == bool(args.net_in and args.net_tar):
        parser.error("name both --net_in and --net_tar, or --convOut_path")
    if args.convOut_path:
        parser.refuse_without_effect(args, OF_NETS, "beside --convOut_path: those features are stored already")
    else:
        parser.refuse_without_effect(args, ["reverse"], "beside the nets: exchange --net_in and --net_tar")
    runtime = opening.start(args)
    states = [checkpoint.load(path) for path in args.transnet]
    trans_net, *others = (build_from_state(state, path) for state, path in zip(states, args.transnet))
    fits = [Provenance.from_record(state.get("source", {})) for state in states]
    source = open_stored(args, runtime) if args.convOut_path else open_live(args, fits[0], runtime)
    for fitted, path in zip(fits, args.transnet):
        fitted.check(source.provenance, path, but=NOT_OF_THE_FIT)
    if args.spectrum and not others:
        parser.error("--spectrum compares Trans-Nets of several depths: name them all behind --transnet")
    if args.figure and args.figure_image >= len(source.data):
        parser.error(f"--figure_image {args.figure_image} is not among the {len(source.data)} images")

    moments = measure([trans_net, *others], source, runtime, per_image=args.bootstrap > 0)
    record = source.provenance.to_record()
    made_of = {key: value for key, value in record.items() if key not in ("classes", "transform")}
    made_of |= {"transnet_path": args.transnet[0], "transnet": sha256(args.transnet[0]), "p": trans_net.p.tolist()}
    depths = [(net.order + 1, of_net) for net, of_net in zip((trans_net, *others), moments)]
    report = variance_report(depths, args.mean, args.bootstrap, source.provenance.classes)
    report |= {"source": made_of, "linear_reference": states[0].get("linear_reference")}
    if runtime.is_main:
        print(f"{report['images']:,} {args.t_or_v} images, mean per {args.mean}", variance_table(report), sep="\n")
        if args.json:
            write_json(args.json, report)
        if args.csv:
            write_csv(args.csv, variance_rows(report))
        if args.spectrum:
            save_figure(args.spectrum, spectrum_figure(report["spectrum"]))
        if args.figure:
            draw(args.figure, trans_net, report["channels"], source, args.figure_image, runtime)
        for file in filter(None, (args.json, args.csv, args.spectrum, args.figure)):
            print(f"saved {file}")
    return report


if __name__ == "__main__":
    main()
