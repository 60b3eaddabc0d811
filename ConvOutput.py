"""Store the features of nets A and B for every image of a data set, once, for all Trans-Nets that follow."""

from collections.abc import Sequence

import torch
from torch import nn

from models.classifiers import read_classifier
from models.split import HeadTail, feature_shape, find_layer, split
from utils import options, runs
from utils.data.batches import normalise
from utils.data.images import check_classes
from utils.errors import InputError
from utils.features.cache import open_features
from utils.features.writer import FeatureWriter
from utils.files import sha256
from utils.progress import Progress
from utils.runtime import Runtime, command, start
from utils.training.metrics import topk_hits


def build_parser() -> options.Parser:
    """Declare this step's options."""
    parser = options.Parser(__doc__)
    group = parser.add_argument_group("networks")
    group.add_argument("-a", "--arch", help="architecture of both; default: the checkpoints'")
    group.add_argument("--arch1", help="architecture of net A; overrides --arch")
    group.add_argument("--arch2", help="architecture of net B; overrides --arch")
    group.add_argument("--resume1", required=True, metavar="A", help="checkpoint of net A")
    group.add_argument("--resume2", required=True, metavar="B", help="checkpoint of net B")
    options.add_layer_options(parser, conv_layer=40)
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("features")
    group.add_argument("--t_or_v", choices=["train", "val"], default="train", help="which images")
    group.add_argument("--topk", type=options.list_of(int), default=[1, 3], metavar="[1,3]", help="hits to record")
    group.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="how features are stored"
    )
    options.add_data_options(parser, batch_size=64)
    options.add_run_options(parser)
    options.add_ignored_options(parser)
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    args = build_parser().parse_args(argv)
    runtime = start(args.device_ids, args.gpu, args.seed, args.amp, args.compile)
    model_a, state_a = read_classifier(args.resume1, args.arch1 or args.arch)
    model_b, state_b = read_classifier(args.resume2, args.arch2 or args.arch)
    options.fill_from_checkpoint(args, state_a)
    images = options.open_images(args, args.t_or_v, runtime)
    classes_a, classes_b = (state.get("data", {}).get("classes", images.classes) for state in (state_a, state_b))
    check_classes(classes_a, images.classes, f"the images, for {args.resume1},")
    if classes_b != classes_a:  # nets of different tasks (paper Sec. 4.6): no images have the classes of both
        runtime.say(f"note: {args.resume2} was trained on other classes than net A, so its accuracy here means nothing")

    first, second = options.first_layer(args), options.second_layer(args)
    layer_a, layer_b = find_layer(model_a, *first), find_layer(model_b, *second)
    label = runs.pair(runs.layer_label(*first), runs.layer_label(*second))
    arch_a, arch_b = state_a["model"]["arch"], state_b["model"]["arch"]
    arch = runs.pair(arch_a, arch_b)
    net_a, net_b = HeadTail(*split(model_a, layer_a)), HeadTail(*split(model_b, layer_b))
    shapes = [tuple(feature_shape(net.head, args.image_size)) for net in (net_a, net_b)]
    record = {
        "dataset": args.dataset, "split": args.t_or_v, "sample_num": args.sample_num, "arch": arch, "layer": label,
        "arch_a": arch_a, "arch_b": arch_b, "layer_a": layer_a, "layer_b": layer_b,
        "checkpoint_a": sha256(args.resume1), "checkpoint_b": sha256(args.resume2),
        "path_a": str(args.resume1), "path_b": str(args.resume2),
        "transform": images.transform_record, "classes": images.classes,
    }  # fmt: skip
    folder = runs.features_folder(args.out, args.dataset, args.sample_num, arch, label, args.suffix, args.t_or_v)
    expected = record | {"dtype": args.dtype, "count": len(images), "top_k": args.topk}
    if is_stored(folder, expected, images.paths):
        runtime.say(f"{folder} has these features already")
        return
    runtime.say(f"{arch} at {label}: features {shapes[0]} and {shapes[1]} of {len(images):,} images to {folder}")

    def writer(create: bool) -> FeatureWriter:
        return FeatureWriter(
            folder, record=record, paths=images.paths, shape_a=shapes[0], shape_b=shapes[1],
            dtype=getattr(torch, args.dtype), top_k=args.topk, target_shape=images.targets.shape[1:], create=create,
        )  # fmt: skip

    if runtime.is_main:
        features = writer(create=True)
    runtime.barrier()
    if not runtime.is_main:
        features = writer(create=False)
    loader = options.image_loader(args, images, runtime)
    store(runtime.parallel(net_a), runtime.parallel(net_b), loader, features, args.topk, runtime)
    features.close()
    runtime.barrier()
    if runtime.is_main:
        features.finish()
        stored = open_features(folder)
        for name, hits in (("A", stored.hits_a), ("B", stored.hits_b)):
            tops = [f"top-{k} {100 * share:.2f} %" for k, share in zip(args.topk, hits.double().mean(0).tolist())]
            print(f"net {name}: {', '.join(tops)} of {len(stored):,} {args.t_or_v} images")
        print(f"saved {folder}")


@torch.no_grad()
def store(
    net_a: nn.Module,
    net_b: nn.Module,
    loader: options.Loader,
    features: FeatureWriter,
    topk: Sequence[int],
    runtime: Runtime,
) -> None:
    """Pass every image once through both nets and write features and hits, batch by batch."""
    net_a.eval()
    net_b.eval()
    for batch in Progress(loader, "features", quiet=not runtime.is_main):
        pixels, targets, indices = runtime.to_device(batch)
        with runtime.autocast():
            images = normalise(pixels)
            feature_a, logits_a = net_a(images)
            feature_b, logits_b = net_b(images)
        features.write(
            indices.tolist(), feature_a, feature_b, targets,
            topk_hits(logits_a, targets, topk), topk_hits(logits_b, targets, topk),
        )  # fmt: skip


def is_stored(folder: runs.Path, expected: dict[str, object], paths: list[str]) -> bool:
    """Say whether a complete cache of exactly these features is there already."""
    try:
        return open_features(folder, expected=expected).paths == paths
    except InputError:
        return False


if __name__ == "__main__":
    main()
