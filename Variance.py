"""Measure how much of net B's knowledge each order of net A's explains: variances and instability (paper Sec. 4.2)."""

import csv
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from models.classifiers import read_classifier
from models.split import as_maps, find_layer, split
from models.trans_net import TransNet, build_from_state, check_fit
from utils import checkpoint, options
from utils.data.batches import normalise
from utils.data.loaders import make_loader
from utils.features.cache import open_features
from utils.files import replacing, sha256, write_json
from utils.measures.moments import ComponentMoments
from utils.progress import Progress
from utils.report.figures import component_figure
from utils.runtime import Runtime, command, start

Pairs = Iterator[tuple[Tensor, Tensor]]  # (x, target), feature maps (N, C, H, W)


def build_parser() -> options.Parser:
    """Declare this step's options."""
    parser = options.Parser(__doc__)
    group = parser.add_argument_group("what is measured")
    group.add_argument("--transnet", required=True, metavar="FILE", help="the Trans-Net, ours or the authors'")
    group.add_argument("--net_in", metavar="A", help="checkpoint of the net whose features are x")
    group.add_argument("--net_tar", metavar="B", help="checkpoint of the net whose features are the target x*")
    group.add_argument("--arch_in", help="architecture of A; default: the checkpoint's")
    group.add_argument("--arch_tar", help="architecture of B; default: the checkpoint's")
    group.add_argument("--convOut_path", metavar="FOLDER", help="stored features in place of the nets")
    group.add_argument("--reverse", action="store_true", help="with --convOut_path: x is B's feature, the target A's")
    group.add_argument("--t_or_v", choices=["train", "val"], default="val", help="which images")
    group.add_argument(
        "--mean", choices=["channel", "global"], default="channel",
        help="deviations from each channel's mean (released code) or from one mean (paper's formula)",
    )  # fmt: skip
    options.add_layer_options(parser, conv_layer=30)
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--json", metavar="FILE", help="write everything as JSON")
    group.add_argument("--csv", metavar="FILE", help="write the variances as CSV")
    group.add_argument("--figure", metavar="FILE", help="draw the components of one image (.png, .svg, .pdf)")
    group.add_argument("--figure_image", type=int, default=0, metavar="I", help="which image that is")
    options.add_data_options(parser, batch_size=64)
    options.add_run_options(parser)
    options.add_ignored_options(parser)
    return parser


class Decomposition(nn.Module):
    """Split a target into components and residual, batch axis first, as DataParallel gathers."""

    def __init__(self, trans_net: TransNet) -> None:
        super().__init__()
        self.trans_net = trans_net

    def forward(self, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Give the components (N, K+1, C, H, W) and x_Δ (N, C, H, W) of x and target (paper Eq. 3)."""
        output, components = self.trans_net.decompose(x)
        return components.transpose(0, 1), target - output


def pairs_from_nets(net_in: nn.Module, net_tar: nn.Module, loader: options.Loader, runtime: Runtime) -> Pairs:
    """Compute both features batch by batch; the nets are heads, images → feature."""
    for batch in loader:
        with runtime.autocast():
            images = normalise(runtime.to_device(batch)[0])
            yield as_maps(net_in(images)).float(), as_maps(net_tar(images)).float()


def pairs_from_features(loader: options.Loader, runtime: Runtime) -> Pairs:
    """Read both features batch by batch from what ConvOutput.py stored."""
    for batch in loader:
        x, target, *_ = runtime.to_device(batch)
        yield as_maps(x), as_maps(target)


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


def table(report: dict[str, Any]) -> str:
    """Lay the variances out for reading, each with its share of the target's."""
    total = report["var"]["target"]
    titles = {"target": "x*", "output": "g(x)", "residual": "x_Δ = x* - g(x)"}
    lines = [f"{'component':<18}{'variance':>14}{'share of x*':>14}"]
    for name, value in report["var"].items():
        title = titles.get(name, name.replace("order", "x(") + ")")
        share = f"{100 * value / total:.2f} %" if total > 0 else "-"
        lines.append(f"{title:<18}{value:>14.6g}{share:>14}")
    instability = "undefined: x* is constant" if report["instability"] is None else f"{report['instability']:.4f}"
    return "\n".join([*lines, f"instability Var(x_Δ)/Var(x*) = {instability}"])


@torch.no_grad()
def draw(file: str, trans_net: TransNet, moments: ComponentMoments, pair: tuple[Tensor, Tensor], image: Any) -> None:
    """Draw the two most and the two least consistent channels of one image."""
    x, target = pair
    _, components = trans_net.decompose(x)
    channels, instability = moments.rank_channels(ends=2)
    notes = [f"instability {value:.2f}" for value in instability.tolist()]
    figure = component_figure(image, x[0], target[0], components[:, 0], channels.tolist(), notes)
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=150)


@command
def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the step; returns the report that --json writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if bool(args.convOut_path) == bool(args.net_in and args.net_tar):
        parser.error("name both --net_in and --net_tar, or --convOut_path")
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    state = checkpoint.load(args.transnet)
    trans_net = build_from_state(state, args.transnet)

    if args.convOut_path:
        data: Any = open_features(args.convOut_path, split=args.t_or_v, reverse=args.reverse)
        loader = make_loader(data, args.batch_size, rank=runtime.rank, world_size=runtime.world_size)
        source = dict(data.record)

        def pairs(loader: options.Loader) -> Pairs:
            return pairs_from_features(loader, runtime)
    else:
        model_in, state_in = read_classifier(args.net_in, args.arch_in)
        model_tar, state_tar = read_classifier(args.net_tar, args.arch_tar)
        options.fill_from_checkpoint(args, state_in)
        layers = [find_layer(model_in, *options.first_layer(args)), find_layer(model_tar, *options.second_layer(args))]
        data = options.open_images(args, args.t_or_v, runtime)
        loader = options.image_loader(args, data, runtime)
        head_in, head_tar = (
            runtime.parallel(split(model, layer)[0].eval().requires_grad_(False))
            for model, layer in zip((model_in, model_tar), layers)
        )
        source = {
            "dataset": args.dataset, "split": args.t_or_v, "layer_a": layers[0], "layer_b": layers[1],
            "arch_a": state_in["model"]["arch"], "arch_b": state_tar["model"]["arch"],
            "path_a": args.net_in, "path_b": args.net_tar,
            "checkpoint_a": sha256(args.net_in), "checkpoint_b": sha256(args.net_tar),
        }  # fmt: skip

        def pairs(loader: options.Loader) -> Pairs:
            return pairs_from_nets(head_in, head_tar, loader, runtime)

    fitted = state.get("source", {})
    for net in ("checkpoint_a", "checkpoint_b"):
        if net in fitted and net in source and fitted[net] != source[net]:
            runtime.say(f"note: {args.transnet} was fitted on another net {net[-1].upper()} than this one")
    moments = measure(trans_net, pairs(loader), len(loader), runtime)
    source = {key: value for key, value in source.items() if key not in ("classes", "transform")}
    source |= {"transnet_path": args.transnet, "transnet": sha256(args.transnet), "p": trans_net.p.tolist()}
    report = moments.report(args.mean) | {"source": source}
    if runtime.is_main:
        print(f"{report['images']:,} {args.t_or_v} images, mean per {args.mean}")
        print(table(report))
        if args.json:
            write_json(args.json, report)
        if args.csv:
            with replacing(args.csv) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("component", "variance"), *report["var"].items()])
        if args.figure:
            chosen = Subset(data, [args.figure_image])
            pair = next(pairs(make_loader(chosen, 1)))
            draw(args.figure, trans_net, moments, pair, None if args.convOut_path else chosen.__getitems__([0])[0][0])
            print(f"saved {args.figure}")
    return report


if __name__ == "__main__":
    main()
