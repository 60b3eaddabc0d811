"""Measure how much of net B's knowledge each order of net A's explains: variances and instability (paper Sec. 4.2)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from models.pair import Decomposition, open_net
from models.split import Layer, as_maps
from models.trans_net import TransNet, build_from_state, check_fit
from utils import checkpoint, opening, options, runs
from utils.data.batches import normalise
from utils.data.images import ImageData
from utils.data.loaders import make_loader
from utils.features.cache import FeatureCache, OldFeatureFolder, open_features
from utils.files import replacing, sha256, write_csv, write_json
from utils.measures.moments import ComponentMoments
from utils.parser import Namespace, Parser, some_path, whole
from utils.progress import Progress
from utils.provenance import Provenance
from utils.report.figures import component_figure
from utils.report.tables import variance_table
from utils.runtime import Runtime, command

Pairs = Iterator[tuple[Tensor, Tensor]]  # (x, target), feature maps (N, C, H, W)
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
        pairs: a loader of `data` → pairs of features.
        loader: of all of it.
        provenance: what the features are.
    """

    data: ImageData | FeatureCache | OldFeatureFolder
    has_photos: bool
    pairs: Callable[[opening.Loader], Pairs]
    loader: opening.Loader
    provenance: Provenance


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Variance.py --net_in A.pth.tar --net_tar B.pth.tar --transnet G.pth.tar")
    group = parser.add_argument_group("what is measured")
    group.add_argument(
        "--transnet", required=True, type=some_path, metavar="FILE", help="the Trans-Net, ours or the authors'"
    )
    group.add_argument("--net_in", type=some_path, metavar="A", help="checkpoint of the net whose features are x")
    group.add_argument("--net_tar", type=some_path, metavar="B", help="checkpoint of the net of the target x*")
    group.add_argument("--arch_in", help="architecture of A; default: the checkpoint's")
    group.add_argument("--arch_tar", help="architecture of B; default: the checkpoint's")
    group.add_argument("--convOut_path", type=some_path, metavar="FOLDER", help="stored features in place of the nets")
    group.add_argument("--reverse", action="store_true", help="with --convOut_path: x is B's feature, the target A's")
    group.add_argument("--t_or_v", choices=["train", "val"], default="val", help="which images")
    group.add_argument(
        "--mean", choices=["channel", "global"], default="channel",
        help="deviations from each channel's mean (released code) or from one mean (paper's formula)",
    )  # fmt: skip
    options.add_layer_options(parser, default="the Trans-Net's")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--json", type=some_path, metavar="FILE", help="write everything as JSON")
    group.add_argument("--csv", type=some_path, metavar="FILE", help="write the variances as CSV")
    group.add_argument(
        "--figure", type=some_path, metavar="FILE", help="draw the components of one image (.png, .svg, .pdf)"
    )
    group.add_argument("--figure_image", type=whole(0), default=0, metavar="I", help="which image that is")
    options.add_data_options(parser, batch_size=64)
    options.add_run_options(parser)
    options.add_ignored_options(parser)
    return parser


def pairs_from_nets(net_in: nn.Module, net_tar: nn.Module, runtime: Runtime, loader: opening.Loader) -> Pairs:
    """Compute both features batch by batch; the nets are heads, images → feature."""
    for batch in loader:
        with runtime.autocast():
            images = normalise(runtime.to_device(batch)[0])
            x, target = as_maps(net_in(images)).float(), as_maps(net_tar(images)).float()
        yield x, target  # outside: the decomposition is float32 whatever the nets are


def pairs_from_features(runtime: Runtime, loader: opening.Loader) -> Pairs:
    """Read both features batch by batch from what ConvOutput.py stored."""
    for batch in loader:
        x, target, *_ = runtime.to_device(batch)
        yield as_maps(x), as_maps(target)


def open_stored(args: Namespace, runtime: Runtime) -> Source:
    """Open stored features and compare them with what the options say of them."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    label = runs.pair(first.label, second.label) if first.is_named or second.is_named else None
    said = {"dataset": args.dataset, "layer": label}
    expected = {key: value for key, value in said.items() if value is not None}
    data = open_features(args.convOut_path, split=args.t_or_v, reverse=args.reverse, expected=expected)
    loader = opening.feature_loader(args, data, runtime)
    return Source(data, False, partial(pairs_from_features, runtime), loader, data.provenance)


def open_live(args: Namespace, fitted: Provenance, runtime: Runtime) -> Source:
    """Open both nets, cut where the options say or else where the Trans-Net was fitted, and the images."""
    first, second = (Layer(*layer) for layer in options.both_layers(args))
    net_in = open_net(args.net_in, args.arch_in, first.or_node(fitted.a.layer))
    net_tar = open_net(args.net_tar, args.arch_tar, second.or_node(fitted.b.layer))
    data_in = net_in.state.get("data", {})
    options.fill(args, data_in, net_tar.state.get("data", {}))
    images = opening.images(args, args.t_or_v, data_in.get("classes"))
    provenance = Provenance(
        net_in.source, net_tar.source, dataset=args.dataset, name=args.name, split=args.t_or_v,
        sample_num=args.sample_num, classes=images.classes, transform=images.transform_record,
    )  # fmt: skip
    fitted.check(provenance, args.transnet, but=NOT_OF_THE_FIT)  # before an image is decoded
    images = opening.decoded(args, images, runtime)
    head_in, head_tar = (runtime.parallel(net.head.eval().requires_grad_(False)) for net in (net_in, net_tar))
    pairs = partial(pairs_from_nets, head_in, head_tar, runtime)
    return Source(images, True, pairs, opening.image_loader(args, images, runtime), provenance)


@torch.no_grad()
def measure(trans_net: TransNet, pairs: Pairs, batches: int, runtime: Runtime) -> ComponentMoments:
    """Decompose every pair and accumulate the moments, in one pass; all processes get the sum."""
    decomposition = runtime.parallel(Decomposition(trans_net).requires_grad_(False)).eval()
    moments = ComponentMoments()
    for x, target in Progress(pairs, "variances", total=batches, quiet=not runtime.is_main):
        check_fit(trans_net, x, target)
        components, residual = decomposition(x, target)
        moments.update(components.transpose(0, 1), residual)
    first, *others = runtime.gather(moments.cpu())
    for other in others:
        first.merge(other)
    return first


@torch.no_grad()
def draw(file: str, trans_net: TransNet, moments: ComponentMoments, source: Source, index: int) -> None:
    """Draw the two most and the two least consistent channels of one image."""
    chosen = Subset(source.data, [index])
    x, target = next(source.pairs(make_loader(chosen, 1)))
    photo = chosen.__getitems__([0])[0][0] if source.has_photos else None
    _, components = trans_net.decompose(x)
    channels, instability = moments.rank_channels(ends=2)
    notes = [f"instability {value:.2f}" for value in instability.tolist()]
    figure = component_figure(photo, x[0], target[0], components[:, 0], channels.tolist(), notes)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)
    print(f"saved {file}")


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
    state = checkpoint.load(args.transnet)
    trans_net = build_from_state(state, args.transnet)
    fitted = Provenance.from_record(state.get("source", {}))
    source = open_stored(args, runtime) if args.convOut_path else open_live(args, fitted, runtime)
    fitted.check(source.provenance, args.transnet, but=NOT_OF_THE_FIT)
    if args.figure and args.figure_image >= len(source.data):
        parser.error(f"--figure_image {args.figure_image} is not among the {len(source.data)} images")

    moments = measure(trans_net, source.pairs(source.loader), len(source.loader), runtime)
    made_of = {
        key: value for key, value in source.provenance.to_record().items() if key not in ("classes", "transform")
    }
    made_of |= {"transnet_path": args.transnet, "transnet": sha256(args.transnet), "p": trans_net.p.tolist()}
    report = moments.report(args.mean) | {"source": made_of}
    if runtime.is_main:
        print(f"{report['images']:,} {args.t_or_v} images, mean per {args.mean}", variance_table(report), sep="\n")
        if args.json:
            write_json(args.json, report)
        if args.csv:
            write_csv(args.csv, [("component", "variance"), *report["var"].items()])
        if args.figure:
            draw(args.figure, trans_net, moments, source, args.figure_image)
    return report


if __name__ == "__main__":
    main()
