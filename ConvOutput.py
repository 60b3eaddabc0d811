"""Store the features of nets A and B for every image of a data set, once, for all Trans-Nets that follow."""

import contextlib
import gc
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from models.classifiers import read_classifier
from models.cut_net import CutNet, open_net
from models.layers import Layer
from models.split import cuts
from utils import opening, options, runs
from utils.data.images import ImageData
from utils.errors import InputError
from utils.features.cache import open_features
from utils.features.nets import accuracies, doubts
from utils.features.writer import FeatureWriter, check_images, is_stored
from utils.parser import Namespace, Parser, list_of, real, some_path, whole
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
    group = parser.add_argument_group("several layers, in one pass")
    group.add_argument("--layers", type=list_of(some_path), metavar="A,B,C", help="one folder for each; or all")
    group.add_argument("--below", type=real(above=0), default=500, metavar="MB", help="of all: layers that take less")
    group = parser.add_argument_group("features")
    group.add_argument("--t_or_v", choices=["train", "val", "both"], default="train", help="which images")
    group.add_argument("--topk", type=list_of(whole(1)), metavar="[1,3]", help="hits to record; default: [1,3]")
    group.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="as stored")
    group.add_argument("--list_layers", action="store_true", help="only print net A's layers, with shape and bytes")
    options.add_data_options(parser, batch_size=64, cache_images="off", two_nets=True)  # every photo is read once
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_restart_option(parser)
    options.add_ignored_options(parser)
    return parser


class Split(NamedTuple):
    """The images of one split, the folder of each layer's features, and writers of those that are not there yet."""

    images: ImageData
    folders: list[Path]
    writers: dict[int, FeatureWriter]


@torch.no_grad()
def store(nets: Mapping[str, nn.Module], split: Split, args: Namespace, runtime: Runtime) -> None:
    """Pass every image once through net "a", "b" or both, pixels → (feature, …, logits), and write what they give."""
    loader = opening.image_loader(args, split.images, runtime)
    label = f"{split.images.split} features of {' and '.join(nets).upper()}"
    for batch in Progress(loader, label, quiet=not runtime.is_main):
        pixels, targets, indices = runtime.to_device(batch)
        with runtime.autocast():
            answers = {name: net(pixels) for name, net in nets.items()}
        for name, (*features, logits) in answers.items():
            rows, hits = indices.tolist(), topk_hits(logits, targets, args.topk)
            for i, writer in split.writers.items():
                writer.write(name, rows, features[i], targets, hits)


def layer_sizes(args: Namespace) -> dict[str, tuple[tuple[int, ...], float]]:
    """Give every layer at which net A can be cut: the shape of its feature, and the MB that storing it takes."""
    model, state = read_classifier(args.resume1, args.arch1 or args.arch)
    filled = Namespace(**vars(args))
    options.fill(filled, state.get("data", {}))
    count = len(opening.images(filled, "val" if args.t_or_v == "val" else "train"))
    each = count * getattr(torch, args.dtype).itemsize / 1e6
    return {name: (shape, math.prod(shape) * each) for name, shape in cuts(model, filled.image_size).items()}


def list_layers(args: Namespace) -> None:
    """Print every layer at which net A can be cut, and what storing its features takes."""
    print(f"{'--layer':<40}{'feature':>20}{'all images':>20}")
    for name, (shape, megabytes) in layer_sizes(args).items():
        print(f"{name:<40}{shape!s:>20}{megabytes:>17,.1f} MB")


def chosen_layers(args: Namespace) -> list[tuple[Layer, Layer]]:
    """Give the layers of net A and net B that are stored, B's as A's unless it has one of its own."""
    first, second = (Layer(*layer, default=40) for layer in options.both_layers(args))
    if args.layers is None:
        return [(first, second)]
    names = args.layers
    if names == ["all"]:
        names = [name for name, (_, megabytes) in layer_sizes(args).items() if megabytes <= args.below]
    if not names:
        raise InputError(f"no layer's features take less than --below {args.below:g} MB; --list_layers prints them all")
    layers = [Layer(conv_layer=int(name), fc=args.fc) if name.isdigit() else Layer(name) for name in names]
    own = args.layer2 is not None or args.conv_layer2 is not None
    return [(layer, second if own else layer) for layer in layers]


def plan(
    args: Namespace, nets: Mapping[str, CutNet], images: ImageData, labels: Sequence[str], runtime: Runtime,
    stack: contextlib.ExitStack,
) -> Split:  # fmt: skip
    """Find the layers of a split, of these labels in file names, that are not stored yet; open writers on a stack."""
    a, b = nets["a"], nets["b"]
    arch, name = runs.pair(a.sources[0].arch, b.sources[0].arch), options.data_name(args)
    split, contents = Split(images, [], {}), opening.bind(args, runtime, images)[images.split]
    shapes = (net.shapes(args.image_size) for net in nets.values())
    for i, (source_a, source_b, shape_a, shape_b) in enumerate(zip(a.sources, b.sources, *shapes)):
        recorded_a, recorded_b = (
            opening.with_record(args, source, net.state, images) for source, net in ((source_a, a), (source_b, b))
        )
        provenance = Provenance(
            recorded_a, recorded_b, dataset=args.dataset, name=args.name, split=images.split,
            sample_num=args.sample_num, classes=images.classes, transform=images.decoding_record,
            arch=arch, label=labels[i], files_sha256=contents.sha256,
        )  # fmt: skip
        folder = runs.features_folder(args.out, name, args.sample_num, arch, labels[i], args.suffix, images.split)
        split.folders.append(folder)
        if not args.restart:
            check_images(folder, contents)
        facts = {"dtype": args.dtype, "count": len(images), "top_k": args.topk}
        facts |= {"shape_a": list(shape_a), "shape_b": list(shape_b)}
        if is_stored(folder, provenance, facts, images.paths, contents):
            runtime.say(f"{folder} has these features already")
            continue
        runtime.say(f"{arch} at {labels[i]}: features {shape_a} and {shape_b} of {len(images):,} images to {folder}")
        with runtime.main_first():
            writer = FeatureWriter(
                folder, provenance=provenance, paths=images.paths, shape_a=shape_a, shape_b=shape_b, top_k=args.topk,
                dtype=getattr(torch, args.dtype), target_shape=images.targets.shape[1:], create=runtime.is_main,
                hashes=contents.hashes,
            )  # fmt: skip
            split.writers[i] = stack.enter_context(writer)
    return split


def finish(split: Split, runtime: Runtime) -> None:
    """Mark a split's features complete, and say what they show."""
    for writer in split.writers.values():
        writer.close()
    runtime.barrier()
    for writer in split.writers.values() if runtime.is_main else ():
        writer.finish()
        stored = open_features(writer.folder)
        sentences = doubts(stored)
        if sentences:
            writer.record(doubts=sentences)
        lines = (f"doubt: {sentence}" for sentence in sentences)
        print(*accuracies(stored, split.images.split), *lines, f"saved {writer.folder}", sep="\n")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    if args.list_layers:
        return list_layers(args)
    firsts, seconds = zip(*chosen_layers(args))
    nets = {
        "a": open_net(args.resume1, args.arch1 or args.arch, firsts),
        "b": open_net(args.resume2, args.arch2 or args.arch, seconds, options.second_layer_hint(args)),
    }
    data_a, data_b = (net.state.get("data", {}) for net in nets.values())
    options.fill(args, data_a, data_b)
    nets = {
        name: net.normalised_by(opening.normalisation(args, net.state, runtime, name.upper()))
        for name, net in nets.items()
    }
    splits = ["train", "val"] if args.t_or_v == "both" else [args.t_or_v]
    listed = [opening.images(args, split, data_a) for split in splits]
    classes = listed[0].classes
    if data_b.get("classes", classes) != classes:  # nets of different tasks (paper Sec. 4.6)
        runtime.say(f"note: {args.resume2} was trained on other classes than net A, so its accuracy here means nothing")
    args.topk = args.topk or [k for k in (1, 3) if k <= len(classes)]
    if max(args.topk) > len(classes):
        parser.error(f"--topk {args.topk} asks for more answers than the {len(classes)} classes")
    labels = [runs.pair(first.label, second.label) for first, second in zip(firsts, seconds)]
    pixels = opening.few_pixels(listed[0])
    for net in nets.values():
        net.prove_fast(pixels)
    with contextlib.ExitStack() as stack:
        planned = [plan(args, nets, images, labels, runtime, stack) for images in listed]
        missing = [split for split in planned if split.writers]
        missing = [split._replace(images=opening.decoded(args, split.images, runtime)) for split in missing]
        # On the CPU one net after the other, so that memory holds one; a GPU would wait for the second decoding.
        passes = ["ab"] if runtime.device.type == "cuda" else ["a", "b"]
        for names in passes if missing else ():
            asked = {name: runtime.parallel(nets.pop(name).frozen(runtime.device)) for name in names}
            gc.collect()  # graphs and their modules refer to each other: the net before goes only now
            for split in missing:
                store(asked, split, args, runtime)
                if not nets:
                    finish(split, runtime)
    folder = planned[0].folders[0].parent
    fit = ("--convOut_path", folder, "--standardise", "--solve", "--epochs", 10, "--out", args.out)
    again = (*(sys.argv[1:] if argv is None else argv), "--t_or_v", "train")
    runtime.say_next(*("Training_TransNet.py", *fit) if (folder / "train").is_dir() else ("ConvOutput.py", *again))


if __name__ == "__main__":
    main()
