"""Store the features of nets A and B once, for all Trans-Nets that are fitted to them."""

import contextlib
import gc
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, LayerOptions, OutputOptions, RunOptions
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


@dataclass(frozen=True)
class NetOptions(Group):
    """Both nets: their checkpoints, and their architectures where options name them."""

    resume1: str | None
    resume2: str | None
    arch: str | None
    arch1: str | None
    arch2: str | None

    @property
    def numbers(self) -> list[int]:
        """The nets whose checkpoints are named, 1 and 2; --list_layers takes one as well."""
        return [number for number, path in enumerate((self.resume1, self.resume2), 1) if path]

    def of_net(self, number: int) -> tuple[str, str | None]:
        """Give the checkpoint and the architecture of a named net, 1 or 2."""
        path, arch = ((self.resume1, self.arch1), (self.resume2, self.arch2))[number - 1]
        assert path is not None
        return path, arch or self.arch


@dataclass(frozen=True)
class FeatureOptions(Group):
    """Which features are stored.

    Attributes:
        layers: several of net A by name; ["stages"] or ["all"]; None: one, as `LayerOptions` say.
        layers2: those of net B, where they differ.
        below: of ["all"], layers whose features take less, in MB.
        t_or_v: of which images, "train", "val" or "both".
        topk: the k of the hits that are recorded; None: (1, 3), as far as there are classes.
        dtype: as stored, "float32".
    """

    layers: list[str] | None
    layers2: list[str] | None
    below: float
    t_or_v: str
    topk: list[int] | None
    dtype: str


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
from utils.devices import to_cpu
from utils.errors import InputError
from utils.features.cache import FeatureCache
from utils.features.nets import accuracies, doubts
from utils.features.writer import FeatureWriter, check_images, is_stored
from utils.files import settle
from utils.progress import Progress
from utils.provenance import Provenance
from utils.runtime import Runtime
from utils.training.metrics import topk_hits

# Of two nets that pass together; a ResNet-50 has 102 MB, a VGG-16 528
SMALL_NET_BYTES = 128e6


class Split(NamedTuple):
    """The images of one split, and where the features of each layer are written.

    There are writers for those alone that are not stored yet.
    """

    images: ImageData
    folders: list[Path]
    writers: dict[int, FeatureWriter]


@torch.no_grad()
def store(
    nets: Mapping[str, nn.Module],
    split: Split,
    data: DataOptions,
    topk: Sequence[int],
    runtime: Runtime,
) -> None:
    """Pass every image once through the nets, and write what they give.

    Net "a", "b" or both: pixels → (feature, …, logits).
    """
    loader = opening.image_loader(data, split.images, runtime)
    label = f"{split.images.split} features of {' and '.join(nets).upper()}"
    # Images in order, not shuffled: row i of a file is image i.
    for batch in Progress(loader, label, quiet=not runtime.is_main):
        pixels, targets, indices = runtime.to_device(batch)
        with runtime.autocast():
            answers = {name: net(pixels) for name, net in nets.items()}
        computed = [indices, targets]
        for *features, logits in answers.values():
            # The logits give the accuracy that later steps hold the checkpoint's against.
            computed.append(topk_hits(logits, targets, topk))
            computed += [features[i].to(writer.dtype) for i, writer in split.writers.items()]
        # All together: a GPU is waited for once a batch.
        columns = iter(to_cpu(*computed))
        rows, targets = next(columns).tolist(), next(columns)
        for name in answers:
            hits = next(columns)
            for writer in split.writers.values():
                writer.write(name, rows, next(columns), targets, hits)


class Surveyed(NamedTuple):
    """A net that was read to see where it can be cut.

    Attributes:
        path: its checkpoint.
        shapes: of one image's feature at every cut, in order, (C, H, W), (T, C) or (C,).
        stages: the cuts at which stages end, and how they are best named.
        data: its images, as options and its checkpoint say.
        others: the modules that are no cuts, and why.
    """

    path: str
    shapes: Mapping[str, tuple[int, ...]]
    stages: Mapping[str, str]
    data: DataOptions
    others: Mapping[str, str]


SurveyNet = Callable[[int], Surveyed]  # of net 1 or 2


def survey(
    number: int, nets: NetOptions, layers: LayerOptions, data_of: Callable[..., DataOptions]
) -> Surveyed:
    """Read net 1 or 2, and see where it can be cut at the size of its images.

    Args:
        number: of the net.
        nets: their checkpoints.
        layers: say whose maps are (N, H, W, C).
        data_of: a checkpoint's record of its images → the options with it.
    """
    path, arch = nets.of_net(number)
    model, state = read_classifier(path, arch)
    data = data_of(state.get("data", {}))
    last = layers.channels_last_of("AB"[number - 1])
    shapes, others = cuts_and_others(model, data.image_size, channels_last=last)
    return Surveyed(path, shapes, stages_of(model, shapes), data, others)


def megabytes(dtype: str, shape: Sequence[int], images: int) -> float:
    """Say what storing a feature of one net takes."""
    return images * math.prod(shape) * getattr(torch, dtype).itemsize / 1e6


def count_images(data: DataOptions, t_or_v: str) -> int:
    """Count the images whose features will be stored, of one split."""
    return len(opening.images(data, "val" if t_or_v == "val" else "train"))


def list_layers(
    numbers: Sequence[int], survey_net: SurveyNet, features: FeatureOptions, runtime: Runtime
) -> None:
    """Print where each net can be cut, what storing it takes, and where its stages end."""
    for number in numbers:
        surveyed = survey_net(number)
        try:
            images = count_images(surveyed.data, features.t_or_v)
            stored = f"{images:,} images"
        except InputError as error:
            runtime.say(f"note: sizes are those of one image, because {error}")
            images, stored = 1, "one image"
        runtime.say(
            f"net {'AB'[number - 1]}, {surveyed.path}, images of {surveyed.data.image_size} pixels"
        )
        width = max(map(len, (*surveyed.shapes, *surveyed.others))) + 2
        runtime.say(f"{'--layer':<{width}}{'feature: C, H, W':>18}{stored:>20}")
        for name, shape in surveyed.shapes.items():
            # One line for each cut: its name, the shape of an image's feature, and the space.
            size, mark = megabytes(features.dtype, shape, images), ""
            if name in surveyed.stages:
                stage = list(surveyed.stages).index(name) + 1
                mark = f"  end of stage {stage}: {surveyed.stages[name]}"
            runtime.say(f"{name:<{width}}{shape!s:>18}{size:>17,.1f} MB{mark}")
        for name, reason in surveyed.others.items():
            runtime.say(f"{name:<{width}}no cut: {reason}")


def chosen_layers(
    features: FeatureOptions, layers: LayerOptions, survey_net: SurveyNet, runtime: Runtime
) -> list[tuple[Layer, Layer]]:
    """Give the layers of net A and net B that are stored.

    Net B's are net A's, unless an option names another one.
    """
    first, second = (Layer(**layers.of_net(net), default=40) for net in "AB")
    if features.layers is None:
        return [(first, second)]
    if features.layers == ["stages"]:
        pairs = stage_pairs(survey_net, runtime)
    elif features.layers == ["all"]:
        pairs = [(name, name) for name in layers_below(features, survey_net)]
    else:
        pairs = list(zip(features.layers, features.layers2 or features.layers))
    # Stages and cuts are called by their modules' names, even where those are digits.
    numbered = features.layers not in (["stages"], ["all"])
    chosen = [
        tuple(one_of_several(name, of_net, numbered) for name, of_net in zip(pair, (first, second)))
        for pair in pairs
    ]
    return [(layer, second if layers.names_second else other) for layer, other in chosen]


def layers_below(features: FeatureOptions, survey_net: SurveyNet) -> list[str]:
    """Name the layers of net A whose features take less space than --below says."""
    surveyed = survey_net(1)
    images = count_images(surveyed.data, features.t_or_v)
    names = [
        name
        for name, shape in surveyed.shapes.items()
        if megabytes(features.dtype, shape, images) <= features.below
    ]
    if not names:
        raise InputError(
            f"no layer's features take less than --below {features.below:g} MB; --list_layers"
            " prints them all"
        )
    return names


def one_of_several(name: str, of_net: Layer, numbered: bool) -> Layer:
    """Give a layer of --layers, with what other options say of its net.

    Digits are a documented number.
    """
    if numbered and name.isdigit():
        return replace(of_net, name=None, conv_layer=int(name))
    return replace(of_net, name=name)


def stage_pairs(survey_net: SurveyNet, runtime: Runtime) -> list[tuple[str, str]]:
    """Match the stages of net A and net B, from the last one back."""
    ends_a, ends_b = (list(survey_net(number).stages.values()) for number in (1, 2))
    pairs = paired_stages(ends_a, ends_b)
    if len(ends_a) != len(ends_b):
        counts = f"net A has {len(ends_a)} stages and net B {len(ends_b)}"
        named = ", ".join(f"{first} and {second}" for first, second in pairs)
        runtime.say(f"note: {counts}; matched from the last one, these are compared: {named}")
    return pairs


def plan(
    images: ImageData,
    nets: Mapping[str, CutNet],
    labels: Sequence[str],
    data: DataOptions,
    features: FeatureOptions,
    output: OutputOptions,
    runtime: Runtime,
    stack: contextlib.ExitStack,
) -> Split:
    """Open writers for the layers of a split that are not stored yet.

    Args:
        images: of the split.
        nets: "a" and "b", cut at the layers.
        labels: the layers' names in file names.
        data: the images, for the features' records and names.
        features: their type, and the hits beside them.
        output: where they are written.
        runtime: the main process makes the files.
        stack: with it the writers close.
    """
    a, b = nets["a"], nets["b"]
    arch = runs.pair(a.sources[0].arch, b.sources[0].arch)
    split, contents = Split(images, [], {}), opening.bind(data, runtime, images)[images.split]
    shapes = (net.shapes(data.image_size) for net in nets.values())
    for i, (source_a, source_b, shape_a, shape_b) in enumerate(zip(a.sources, b.sources, *shapes)):
        recorded_a, recorded_b = (
            opening.with_record(data, source, net.state, images)
            for source, net in ((source_a, a), (source_b, b))
        )
        provenance = Provenance(
            recorded_a,
            recorded_b,
            dataset=data.dataset,
            name=data.name,
            split=images.split,
            sample_num=data.sample_num,
            classes=images.classes,
            transform=images.decoding_record,
            arch=arch,
            label=labels[i],
            files_sha256=contents.sha256,
            folders=data.folders,
        )
        folder = runs.features_folder(
            output.out,
            data.label,
            data.sample_num,
            arch,
            labels[i],
            output.suffix,
            images.split,
        )
        split.folders.append(folder)
        if runtime.is_main:
            settle(folder)
        # Features of other images under this name are refused, not overwritten.
        if not output.restart:
            check_images(folder, contents)
        facts = {"dtype": features.dtype, "count": len(images), "top_k": features.topk}
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
                top_k=features.topk or [],
                dtype=getattr(torch, features.dtype),
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
        stored = writer.finish(recorded_doubts)
        lines = (f"doubt: {sentence}" for sentence in doubts(stored))
        print(*accuracies(stored, split.images.split), *lines, f"saved {writer.folder}", sep="\n")


def recorded_doubts(stored: FeatureCache) -> dict[str, list[str]]:
    """Give what the features' index says of doubts about them."""
    sentences = doubts(stored)
    return {"doubts": sentences} if sentences else {}


def open_nets(
    options: NetOptions, layers: Sequence[tuple[Layer, Layer]], hint: str
) -> dict[str, CutNet]:
    """Open net "a" and net "b", cut at their layers; `hint` ends a message on net B's."""
    (path_a, arch_a), (path_b, arch_b) = (options.of_net(number) for number in (1, 2))
    of_a, of_b = zip(*layers)
    return {"a": open_net(path_a, arch_a, of_a), "b": open_net(path_b, arch_b, of_b, hint)}


def normalised(
    nets: Mapping[str, CutNet], data: DataOptions, runtime: Runtime
) -> dict[str, CutNet]:
    """Give the nets the constants by which they read pixels, and say what is odd about the pair."""
    nets = {
        name: net.normalised_by(opening.normalisation(data, net.state, runtime, name.upper()))
        for name, net in nets.items()
    }
    models = [net.model for net in nets.values()]
    for sources in zip(*(net.sources for net in nets.values())):
        if note := note_of_sources(sources, models, data.image_size):
            runtime.say(note)
    return nets


def open_images(
    nets: Mapping[str, CutNet], data: DataOptions, t_or_v: str, runtime: Runtime
) -> list[ImageData]:
    """List the images of every split that is asked for."""
    data_a, data_b = (net.data for net in nets.values())
    splits = ["train", "val"] if t_or_v == "both" else [t_or_v]
    listed = [opening.images(data, split, data_a) for split in splits]
    classes = listed[0].classes
    if data_b.get("classes", classes) != classes:  # nets of different tasks (paper Sec. 4.6)
        runtime.say(
            f"note: {nets['b'].source.path} was trained on other classes than net A, so its accuracy"
            " here means nothing"
        )
    return listed


def fill_topk(parser: Parser, features: FeatureOptions, classes: int) -> FeatureOptions:
    """Choose k by the number of classes, where no option names it."""
    topk = features.topk or [k for k in (1, 3) if k <= classes]
    if max(topk) > classes:
        parser.error(f"--topk {topk} asks for more answers than the {classes} classes")
    return replace(features, topk=topk)


def is_small(net: CutNet) -> bool:
    """Whether the weights of a net take less than `SMALL_NET_BYTES`."""
    return sum(weights.nbytes for weights in net.model.parameters()) < SMALL_NET_BYTES


def store_missing(
    nets: dict[str, CutNet],
    planned: Sequence[Split],
    data: DataOptions,
    topk: Sequence[int],
    runtime: Runtime,
) -> None:
    """Compute and write what is not stored yet. Each net is dropped once it has passed."""
    missing = [
        split._replace(images=opening.decoded(data, split.images, runtime))
        for split in planned
        if split.writers
    ]
    # On the CPU large nets pass one after the other, so that memory holds one. Small ones pass
    # together, and a GPU would wait for the second decoding.
    together = runtime.has_accelerator or all(map(is_small, nets.values()))
    passes = ["ab"] if together else ["a", "b"]
    for names in passes if missing else ():
        frozen = {name: runtime.parallel(nets.pop(name).frozen(runtime.device)) for name in names}
        # Graphs and their modules refer to each other: the net before goes only now
        gc.collect()
        for split in missing:
            store(frozen, split, data, topk, runtime)
            if not nets:
                finish(split, runtime)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Run the step."""
    parser = build_parser()
    args = parser.parse_args(argv)
    layers, features = LayerOptions.of(args), FeatureOptions.of(args)
    output = OutputOptions.of(args)
    runtime = opening.start(RunOptions.of(args), output)
    words = sys.argv[1:] if argv is None else argv
    named = NetOptions.of(args)
    survey_net = partial(survey, nets=named, layers=layers, data_of=partial(DataOptions.of, args))
    # Only print where the nets can be cut.
    if args.list_layers:
        list_layers(named.numbers, survey_net, features, runtime)
        if len(named.numbers) > 1:
            words = [word for word in words if word not in ("--list_layers", "--list-layers")]
            runtime.say_next("ConvOutput.py", *words, "--layers", "stages", "--t_or_v", "both")
        return
    # The layers, both nets cut there, and the images of every split.
    pairs = chosen_layers(features, layers, survey_net, runtime)
    nets = open_nets(named, pairs, layers.second_hint)
    data = DataOptions.of(args, *(net.data for net in nets.values()))
    nets = normalised(nets, data, runtime)
    listed = open_images(nets, data, features.t_or_v, runtime)
    features = fill_topk(parser, features, len(listed[0].classes))
    # What computes the features must equal the nets on these images
    pixels = opening.few_pixels(listed[0])
    for net in nets.values():
        net.prove_fast(pixels)
    # One pass through each net gives all layers; what is stored already is left out.
    labels = [runs.pair(of_a.label, of_b.label) for of_a, of_b in pairs]
    with contextlib.ExitStack() as stack:
        planned = [
            plan(images, nets, labels, data, features, output, runtime, stack) for images in listed
        ]
        store_missing(nets, planned, data, features.topk or [], runtime)
    # The command that follows: fit Trans-Nets, or store the training images first.
    folders = planned[0].folders
    folder = folders[len(folders) // 2].parent  # of several layers one in the middle
    fit = ("--convOut_path", folder, "--standardise", "--solve", "--out", output.out)
    if (folder / "train").is_dir():
        runtime.say_next("Training_TransNet.py", *fit, *parser.again(options.MACHINE, args))
    else:
        runtime.say_next("ConvOutput.py", *words, "--t_or_v", "train")


if __name__ == "__main__":
    main()
