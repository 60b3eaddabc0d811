"""Store the features of nets A and B once, for all Trans-Nets that are fitted to them."""

import contextlib
import gc
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.parser import (
    Namespace,
    Parser,
    architecture,
    checkpoint_file,
    list_of,
    real,
    some_path,
    whole,
)


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__,
        "python ConvOutput.py --resume1 A.pth.tar --resume2 B.pth.tar --conv_layer 30",
        check=check_options,
    )
    group = parser.add_argument_group("networks")
    group.add_argument(
        "-a", "--arch", type=architecture, help="architecture of both; default: the checkpoints'"
    )
    group.add_argument("--arch1", type=architecture, help="architecture of net A; overrides --arch")
    group.add_argument("--arch2", type=architecture, help="architecture of net B; overrides --arch")
    group.add_argument("--resume1", type=checkpoint_file, metavar="A", help="checkpoint of net A")
    group.add_argument("--resume2", type=checkpoint_file, metavar="B", help="checkpoint of net B")
    options.add_layer_options(parser, default="40")
    options.add_second_layer_options(parser)
    group = parser.add_argument_group("several layers, in one pass")
    group.add_argument(
        "--layers",
        type=list_of(some_path),
        metavar="A,B,C",
        help=(
            "one folder for each; or stages: the ends of both nets' stages, matched from the last;"
            " or all"
        ),
    )
    group.add_argument(
        "--layers2",
        type=list_of(some_path),
        metavar="A,B,C",
        help="those of net B, where they differ: pairs by place",
    )
    group.add_argument(
        "--below",
        type=real(above=0),
        default=500,
        metavar="MB",
        help="of all: layers that take less",
    )
    group = parser.add_argument_group("features")
    group.add_argument(
        "--t_or_v", choices=["train", "val", "both"], default="train", help="which images"
    )
    group.add_argument(
        "--topk", type=list_of(whole(1)), metavar="[1,3]", help="hits to record; default: [1,3]"
    )
    group.add_argument(
        "--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="as stored"
    )
    group.add_argument(
        "--list_layers", action="store_true", help="only print the layers of one net or both"
    )
    # Every photo is read once
    options.add_data_options(
        parser, batch_size=64, cache_images="off", two_nets=True, augment="ignored"
    )
    options.add_run_options(parser)
    options.add_output_options(parser)
    options.add_restart_option(parser.add_argument_group("going on"))
    options.add_ignored_options(parser)
    return parser


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other, or have no effect."""
    if not (args.resume1 and args.resume2) and not (
        args.list_layers and (args.resume1 or args.resume2)
    ):
        parser.error("name both --resume1 and --resume2; --list_layers takes one as well")
    if args.layers2 is None:
        return
    if args.layers is None or args.layers[0] in ("all", "stages"):
        parser.error("--layers2 names the layers of net B beside --layers A1,A2, one for each")
    if len(args.layers) != len(args.layers2):
        counts = f"{len(args.layers)} of --layers and {len(args.layers2)} of --layers2"
        parser.error(
            f"layers are paired by their place, and these are {counts}; name as many of net B as of"
            " net A"
        )
    parser.refuse_without_effect(args, ["layer2", "conv_layer2"], "beside --layers2")


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch
from torch import nn

from models.classifiers import read_classifier
from models.cut_net import CutNet, open_net
from models.layers import Layer, note_of_sources, paired_stages
from models.split import cuts_and_others
from models.stages import stages_of
from utils import opening, runs
from utils.data.images import ImageData
from utils.errors import InputError
from utils.features.cache import open_features
from utils.features.nets import accuracies, doubts
from utils.features.writer import FeatureWriter, check_images, is_stored
from utils.progress import Progress
from utils.provenance import Provenance
from utils.runtime import Runtime
from utils.training.metrics import topk_hits


class Split(NamedTuple):
    """The images of one split, and where the features of each layer are written.

    There are writers for those alone that are not stored yet.
    """

    images: ImageData
    folders: list[Path]
    writers: dict[int, FeatureWriter]


@torch.no_grad()
def store(nets: Mapping[str, nn.Module], split: Split, args: Namespace, runtime: Runtime) -> None:
    """Pass every image once through the nets, and write what they give.

    Net "a", "b" or both: pixels → (feature, …, logits).
    """
    loader = opening.image_loader(args, split.images, runtime)
    label = f"{split.images.split} features of {' and '.join(nets).upper()}"
    # Images in order, not shuffled: row i of a file is image i.
    for batch in Progress(loader, label, quiet=not runtime.is_main):
        pixels, targets, indices = runtime.to_device(batch)
        with runtime.autocast():
            answers = {name: net(pixels) for name, net in nets.items()}
        # The logits give the accuracy that later steps hold the checkpoint's against.
        for name, (*features, logits) in answers.items():
            rows, hits = indices.tolist(), topk_hits(logits, targets, args.topk)
            for i, writer in split.writers.items():
                writer.write(name, rows, features[i], targets, hits)


class Surveyed(NamedTuple):
    """A net that was read to see where it can be cut.

    Attributes:
        shapes: of one image's feature at every cut, in order, (C, H, W), (T, C) or (C,).
        stages: the cuts at which stages end, and how they are best named.
        data: what its checkpoint says of its images.
        image_size: pixels to a side.
        others: the modules that are no cuts, and why.
    """

    shapes: Mapping[str, tuple[int, ...]]
    stages: Mapping[str, str]
    data: Mapping[str, Any]
    image_size: int
    others: Mapping[str, str]


def survey(args: Namespace, number: int) -> Surveyed:
    """Read net 1 or 2, and see where it can be cut at the size of its images."""
    path, arch = getattr(args, f"resume{number}"), getattr(args, f"arch{number}") or args.arch
    model, state = read_classifier(path, arch)
    data = state.get("data", {})
    size = filled(args, data).image_size
    last = options.channels_last(args, "AB"[number - 1])
    shapes, others = cuts_and_others(model, size, channels_last=last)
    return Surveyed(shapes, stages_of(model, shapes), data, size, others)


def filled(args: Namespace, data: Mapping[str, Any]) -> Namespace:
    """Give the options with what one checkpoint says of its images."""
    one = Namespace(**vars(args))
    options.fill(one, data)
    return one


def megabytes(args: Namespace, shape: Sequence[int], images: int) -> float:
    """Say what storing a feature of one net takes."""
    return images * math.prod(shape) * getattr(torch, args.dtype).itemsize / 1e6


def count_images(args: Namespace, data: Mapping[str, Any]) -> int:
    """Count the images whose features will be stored, of one split."""
    return len(opening.images(filled(args, data), "val" if args.t_or_v == "val" else "train"))


def list_layers(args: Namespace, runtime: Runtime) -> None:
    """Print where each net can be cut, what storing it takes, and where its stages end."""
    for number, net in enumerate("AB", start=1):
        if (path := getattr(args, f"resume{number}")) is None:
            continue
        surveyed = survey(args, number)
        try:
            images = count_images(args, surveyed.data)
            stored = f"{images:,} images"
        except InputError as error:
            runtime.say(f"note: sizes are those of one image, because {error}")
            images, stored = 1, "one image"
        runtime.say(f"net {net}, {path}, images of {surveyed.image_size} pixels")
        width = max(map(len, (*surveyed.shapes, *surveyed.others))) + 2
        runtime.say(f"{'--layer':<{width}}{'feature: C, H, W':>18}{stored:>20}")
        for name, shape in surveyed.shapes.items():
            # One line for each cut: its name, the shape of an image's feature, and the space.
            size, mark = megabytes(args, shape, images), ""
            if name in surveyed.stages:
                stage = list(surveyed.stages).index(name) + 1
                mark = f"  end of stage {stage}: {surveyed.stages[name]}"
            runtime.say(f"{name:<{width}}{shape!s:>18}{size:>17,.1f} MB{mark}")
        for name, reason in surveyed.others.items():
            runtime.say(f"{name:<{width}}no cut: {reason}")


def chosen_layers(args: Namespace, runtime: Runtime) -> list[tuple[Layer, Layer]]:
    """Give the layers of net A and net B that are stored.

    Net B's are net A's, unless an option names another one.
    """
    first, second = (Layer(*layer, default=40) for layer in options.both_layers(args))
    if args.layers is None:
        return [(first, second)]
    if args.layers == ["stages"]:
        pairs = stage_pairs(args, runtime)
    elif args.layers == ["all"]:
        surveyed = survey(args, 1)
        images = count_images(args, surveyed.data)
        sizes = {name: megabytes(args, shape, images) for name, shape in surveyed.shapes.items()}
        pairs = [(name, name) for name, size in sizes.items() if size <= args.below]
        if not pairs:
            raise InputError(
                f"no layer's features take less than --below {args.below:g} MB; --list_layers"
                " prints them all"
            )
    else:
        pairs = list(zip(args.layers, args.layers2 or args.layers))
    # Stages and cuts are called by their modules' names, even where those are digits.
    numbered = args.layers not in (["stages"], ["all"])
    chosen = [
        tuple(one_of_several(name, of_net, numbered) for name, of_net in zip(pair, (first, second)))
        for pair in pairs
    ]
    of_b = args.layer2 is not None or args.conv_layer2 is not None
    return [(layer, second if of_b else other) for layer, other in chosen]


def one_of_several(name: str, of_net: Layer, numbered: bool) -> Layer:
    """Give a layer of --layers, with what other options say of its net.

    Digits are a documented number.
    """
    if numbered and name.isdigit():
        return replace(of_net, name=None, conv_layer=int(name))
    return replace(of_net, name=name)


def stage_pairs(args: Namespace, runtime: Runtime) -> list[tuple[str, str]]:
    """Match the stages of net A and net B, from the last one back."""
    ends_a, ends_b = (list(survey(args, number).stages.values()) for number in (1, 2))
    pairs = paired_stages(ends_a, ends_b)
    if len(ends_a) != len(ends_b):
        counts = f"net A has {len(ends_a)} stages and net B {len(ends_b)}"
        named = ", ".join(f"{first} and {second}" for first, second in pairs)
        runtime.say(f"note: {counts}; matched from the last one, these are compared: {named}")
    return pairs


def plan(
    args: Namespace,
    nets: Mapping[str, CutNet],
    images: ImageData,
    labels: Sequence[str],
    runtime: Runtime,
    stack: contextlib.ExitStack,
) -> Split:
    """Open writers for the layers of a split that are not stored yet.

    `labels` are the layers' names in file names; the writers close with the stack.
    """
    a, b = nets["a"], nets["b"]
    arch, name = runs.pair(a.sources[0].arch, b.sources[0].arch), options.data_name(args)
    split, contents = Split(images, [], {}), opening.bind(args, runtime, images)[images.split]
    shapes = (net.shapes(args.image_size) for net in nets.values())
    for i, (source_a, source_b, shape_a, shape_b) in enumerate(zip(a.sources, b.sources, *shapes)):
        recorded_a, recorded_b = (
            opening.with_record(args, source, net.state, images)
            for source, net in ((source_a, a), (source_b, b))
        )
        provenance = Provenance(
            recorded_a,
            recorded_b,
            dataset=args.dataset,
            name=args.name,
            split=images.split,
            sample_num=args.sample_num,
            classes=images.classes,
            transform=images.decoding_record,
            arch=arch,
            label=labels[i],
            files_sha256=contents.sha256,
            folders=options.image_folders(args),
        )
        folder = runs.features_folder(
            args.out, name, args.sample_num, arch, labels[i], args.suffix, images.split
        )
        split.folders.append(folder)
        # Features of other images under this name are refused, not overwritten.
        if not args.restart:
            check_images(folder, contents)
        facts = {"dtype": args.dtype, "count": len(images), "top_k": args.topk}
        facts |= {"shape_a": list(shape_a), "shape_b": list(shape_b)}
        if is_stored(folder, provenance, facts, images.paths, contents):
            runtime.say(f"{folder} has these features already")
            continue
        runtime.say(
            f"{arch} at {labels[i]}: features {shape_a} and {shape_b} of {len(images):,} images to"
            f" {folder}"
        )
        # The main process makes the files, the others open them.
        with runtime.main_first():
            writer = FeatureWriter(
                folder,
                provenance=provenance,
                paths=images.paths,
                shape_a=shape_a,
                shape_b=shape_b,
                top_k=args.topk,
                dtype=getattr(torch, args.dtype),
                target_shape=images.targets.shape[1:],
                create=runtime.is_main,
                hashes=contents.hashes,
            )
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


def open_nets(
    args: Namespace, layers: Sequence[tuple[Layer, Layer]], runtime: Runtime
) -> dict[str, CutNet]:
    """Open net "a" and net "b", cut at their layers, with the constants that they read pixels by."""
    of_a, of_b = zip(*layers)
    nets = {
        "a": open_net(args.resume1, args.arch1 or args.arch, of_a),
        "b": open_net(args.resume2, args.arch2 or args.arch, of_b, options.second_layer_hint(args)),
    }
    options.fill(args, *(net.state.get("data", {}) for net in nets.values()))
    nets = {
        name: net.normalised_by(opening.normalisation(args, net.state, runtime, name.upper()))
        for name, net in nets.items()
    }
    models = [net.model for net in nets.values()]
    for sources in zip(*(net.sources for net in nets.values())):
        if note := note_of_sources(sources, models, args.image_size):
            runtime.say(note)
    return nets


def open_images(
    parser: Parser, args: Namespace, nets: Mapping[str, CutNet], runtime: Runtime
) -> list[ImageData]:
    """List the images of every split that is asked for, and fill in --topk by their classes."""
    data_a, data_b = (net.state.get("data", {}) for net in nets.values())
    splits = ["train", "val"] if args.t_or_v == "both" else [args.t_or_v]
    listed = [opening.images(args, split, data_a) for split in splits]
    classes = listed[0].classes
    if data_b.get("classes", classes) != classes:  # nets of different tasks (paper Sec. 4.6)
        runtime.say(
            f"note: {args.resume2} was trained on other classes than net A, so its accuracy here"
            " means nothing"
        )
    args.topk = args.topk or [k for k in (1, 3) if k <= len(classes)]
    if max(args.topk) > len(classes):
        parser.error(f"--topk {args.topk} asks for more answers than the {len(classes)} classes")
    return listed


def store_missing(
    args: Namespace, nets: dict[str, CutNet], planned: Sequence[Split], runtime: Runtime
) -> None:
    """Compute and write what is not stored yet. Each net is dropped once it has passed."""
    missing = [
        split._replace(images=opening.decoded(args, split.images, runtime))
        for split in planned
        if split.writers
    ]
    # On the CPU one net after the other, so that memory holds one; a GPU would wait for the
    # second decoding.
    passes = ["ab"] if runtime.device.type == "cuda" else ["a", "b"]
    for names in passes if missing else ():
        frozen = {name: runtime.parallel(nets.pop(name).frozen(runtime.device)) for name in names}
        # Graphs and their modules refer to each other: the net before goes only now
        gc.collect()
        for split in missing:
            store(frozen, split, args, runtime)
            if not nets:
                finish(split, runtime)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    runtime = opening.start(args)
    words = sys.argv[1:] if argv is None else argv
    # Only print where the nets can be cut.
    if args.list_layers:
        list_layers(args, runtime)
        if args.resume1 and args.resume2:
            again = (word for word in words if word not in ("--list_layers", "--list-layers"))
            runtime.say_next("ConvOutput.py", *again, "--layers", "stages", "--t_or_v", "both")
        return
    # The layers, both nets cut there, and the images of every split.
    layers = chosen_layers(args, runtime)
    nets = open_nets(args, layers, runtime)
    listed = open_images(parser, args, nets, runtime)
    # What computes the features must equal the nets on these images
    pixels = opening.few_pixels(listed[0])
    for net in nets.values():
        net.prove_fast(pixels)
    # One pass through each net gives all layers; what is stored already is left out.
    labels = [runs.pair(of_a.label, of_b.label) for of_a, of_b in layers]
    with contextlib.ExitStack() as stack:
        planned = [plan(args, nets, images, labels, runtime, stack) for images in listed]
        store_missing(args, nets, planned, runtime)
    # The command that follows: fit Trans-Nets, or store the training images first.
    folders = planned[0].folders
    folder = folders[len(folders) // 2].parent  # of several layers one in the middle
    fit = ("--convOut_path", folder, "--standardise", "--solve", "--out", args.out)
    if (folder / "train").is_dir():
        runtime.say_next("Training_TransNet.py", *fit, *parser.again(args, options.MACHINE))
    else:
        runtime.say_next("ConvOutput.py", *words, "--t_or_v", "train")


if __name__ == "__main__":
    main()
