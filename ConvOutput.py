"""Store the features of nets A and B for every image of a data set, once, for all Trans-Nets that follow."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from models.classifiers import read_classifier
from models.frozen import freeze_for_inference
from models.layers import Layer
from models.pair import Net, open_net
from models.split import HeadTail, cuts, feature_shape
from utils import opening, options, runs
from utils.data.batches import Preprocessing
from utils.data.images import ImageData
from utils.errors import InputError
from utils.features.cache import FeatureCache, OldFeatureFolder, open_features
from utils.features.writer import FeatureWriter
from utils.parser import Namespace, Parser, list_of, some_path, whole
from utils.progress import Progress
from utils.provenance import Provenance
from utils.runtime import Runtime, command
from utils.training.metrics import topk_hits


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python ConvOutput.py --resume1 A.pth.tar --resume2 B.pth.tar --conv_layer 30")
    group = parser.add_argument_group("networks")
    group.add_argument("-a", "--arch", help="architecture of both; default: the checkpoints'")
    group.add_argument("--arch1", help="architecture of net A; overrides --arch")
    group.add_argument("--arch2", help="architecture of net B; overrides --arch")
    group.add_argument("--resume1", required=True, type=some_path, metavar="A", help="checkpoint of net A")
    group.add_argument("--resume2", required=True, type=some_path, metavar="B", help="checkpoint of net B")
    options.add_layer_options(parser, default="40")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("features")
    group.add_argument("--t_or_v", choices=["train", "val", "both"], default="train", help="which images")
    group.add_argument("--topk", type=list_of(whole(1)), metavar="[1,3]", help="hits to record; default: [1,3]")
    group.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="how features are stored"
    )
    group.add_argument(
        "--list_layers",
        action="store_true",
        help="only print net A's layers, with shape and bytes of their features",
    )
    options.add_data_options(parser, batch_size=64)
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_ignored_options(parser)
    return parser


@torch.no_grad()
def store(
    net_a: nn.Module,
    net_b: nn.Module,
    loader: opening.Loader,
    features: FeatureWriter,
    topk: Sequence[int],
    preprocess: Preprocessing,
    runtime: Runtime,
) -> None:
    """Pass every image once through both nets and write features and hits, batch by batch."""
    net_a.eval()
    net_b.eval()
    for batch in Progress(loader, "features", quiet=not runtime.is_main):
        pixels, targets, indices = runtime.to_device(batch)
        with runtime.autocast():
            images = preprocess(pixels)
            feature_a, logits_a = net_a(images)
            feature_b, logits_b = net_b(images)
        features.write(
            indices.tolist(), feature_a, feature_b, targets,
            topk_hits(logits_a, targets, topk), topk_hits(logits_b, targets, topk),
        )  # fmt: skip


def is_stored(folder: Path, provenance: Provenance, facts: dict[str, object], paths: list[str]) -> bool:
    """Say whether a complete cache of exactly these features is there already."""
    try:
        stored = open_features(folder, expected=facts)
    except InputError:
        return False
    return stored.provenance == provenance and stored.paths == paths


def summary(stored: FeatureCache | OldFeatureFolder, topk: Sequence[int], split: str) -> str:
    """Say how often both nets were right."""
    lines = []
    for name, hits in (("A", stored.hits_a), ("B", stored.hits_b)):
        tops = [f"top-{k} {100 * share:.2f} %" for k, share in zip(topk, hits.double().mean(0).tolist())]
        lines.append(f"net {name}: {', '.join(tops)} of {len(stored):,} {split} images")
    return "\n".join(lines)


def list_layers(args: Namespace) -> None:
    """Print every layer at which net A can be cut, and what storing its features takes."""
    model, state = read_classifier(args.resume1, args.arch1 or args.arch)
    options.fill(args, state.get("data", {}))
    count = len(opening.images(args, "val" if args.t_or_v == "val" else "train"))
    size = getattr(torch, args.dtype).itemsize
    print(f"{'--layer':<40}{'feature':>20}{f'{count:,} images':>20}")
    for name, shape in cuts(model, args.image_size).items():
        print(f"{name:<40}{shape!s:>20}{math.prod(shape) * size * count / 1e6:>17,.1f} MB")


def store_split(
    args: Namespace, nets: tuple[Net, Net], images: ImageData, topk: Sequence[int], label: str, runtime: Runtime
) -> Path:
    """Store one split, unless it is there already; give its folder.

    Args:
        args: the options.
        nets: A and B.
        images: of the split.
        topk: the k of the recorded hits.
        label: of the layers, in file names.
        runtime: device, processes, precision.
    """
    a, b = nets
    arch, split = runs.pair(a.source.arch, b.source.arch), images.split
    shape_a, shape_b = (tuple(feature_shape(net.head, args.image_size)) for net in nets)
    provenance = Provenance(
        a.source, b.source, dataset=args.dataset, name=args.name, split=split, sample_num=args.sample_num,
        classes=images.classes, transform=images.transform_record, arch=arch, label=label,
    )  # fmt: skip
    folder = runs.features_folder(args.out, options.data_name(args), args.sample_num, arch, label, args.suffix, split)
    facts = {"dtype": args.dtype, "count": len(images), "top_k": list(topk)}
    facts |= {"shape_a": list(shape_a), "shape_b": list(shape_b)}
    if is_stored(folder, provenance, facts, images.paths):
        runtime.say(f"{folder} has these features already")
        return folder
    images = opening.decoded(args, images, runtime)
    runtime.say(f"{arch} at {label}: features {shape_a} and {shape_b} of {len(images):,} images to {folder}")
    with runtime.main_first():
        features = FeatureWriter(
            folder, provenance=provenance, paths=images.paths, shape_a=shape_a, shape_b=shape_b,
            dtype=getattr(torch, args.dtype), top_k=topk, target_shape=images.targets.shape[1:], create=runtime.is_main,
        )  # fmt: skip
    with features:
        frozen = (freeze_for_inference(HeadTail(net.head, net.tail), runtime.device) for net in nets)
        net_a, net_b = map(runtime.parallel, frozen)
        store(
            net_a, net_b, opening.image_loader(args, images, runtime), features, topk, images.preprocessing(), runtime
        )
        features.close()
        runtime.barrier()
        if runtime.is_main:
            features.finish()
            print(summary(open_features(folder), topk, split), f"saved {folder}", sep="\n")
    return folder


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    if args.list_layers:
        list_layers(args)
        return
    first, second = (Layer(*layer, default=40) for layer in options.both_layers(args))
    a = open_net(args.resume1, args.arch1 or args.arch, first)
    b = open_net(args.resume2, args.arch2 or args.arch, second, hint=options.second_layer_hint(args))
    data_a, data_b = (net.state.get("data", {}) for net in (a, b))
    options.fill(args, data_a, data_b)
    splits = ["train", "val"] if args.t_or_v == "both" else [args.t_or_v]
    listed = [opening.images(args, split, data_a) for split in splits]
    classes = listed[0].classes
    if data_b.get("classes", classes) != classes:  # nets of different tasks (paper Sec. 4.6)
        runtime.say(f"note: {args.resume2} was trained on other classes than net A, so its accuracy here means nothing")
    topk = args.topk or [k for k in (1, 3) if k <= len(classes)]
    if max(topk) > len(classes):
        parser.error(f"--topk {args.topk} asks for more answers than the {len(classes)} classes")
    label = runs.pair(first.label, second.label)
    for images in listed:
        folder = store_split(args, (a, b), images, topk, label, runtime)
    fit = ("--convOut_path", folder.parent, "--standardise", "--solve", "--epochs", 10, "--out", args.out)
    runtime.say_next("Training_TransNet.py", *fit)


if __name__ == "__main__":
    main()
