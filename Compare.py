"""Compare nets: from their checkpoints and a folder of images to what they share.

Each net sees every image once. At the end of each stage the features of one net are reconstructed
from the other's, in both directions, by the best linear layer. Pairs of images that share their
class alone stand beside it (the null), and the net itself (the ceiling). The folder of --out gets
compare.json, compare.csv, answers.npz and page.html, which begins with the answer.

What is computed is kept in --out/cache, by the contents of nets and images. The second run takes it
from there, and an interrupted one goes on. Under torchrun processes share the pairs of an atlas.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from utils import options
from utils.command import answer_early, command
from utils.option_groups import DataOptions, Group, OutputOptions, RunOptions
from utils.parser import (
    LARGEST_IMAGE,
    MOST_RESAMPLES,
    Checked,
    Namespace,
    Parser,
    architecture,
    checkpoint_file,
    command_line,
    image_folder,
    list_of,
    output_folder,
    real,
    result_file,
    some_path,
    whole,
)
from utils.presence import check_file

DEFAULT = "default"  # names the gate's own policy
policy_file = Checked(check_file, but=(DEFAULT,))

ALL = "all"  # of --at
LABELS = ("A", "B")
LEAST_REFERENCES = 2  # of `consistency.class_gaps`
SIDE, ATLAS_SIDE = 8, 4  # positions to a side of the maps of a pair, of an atlas and of a matrix


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(
        __doc__, "python Compare.py A.pth.tar B.pth.tar --images photos", check=check_options
    )
    group = parser.add_argument_group("what is compared")
    group.add_argument(
        "nets",
        nargs="*",  # none is refused by `check_options`, which says where they went
        type=checkpoint_file,
        metavar="NET",
        help="checkpoints of A and B, or of more: an atlas of all ordered pairs",
    )
    group.add_argument(
        "--images",
        required=True,
        type=image_folder,
        metavar="FOLDER",
        help="with train and test, or with class folders, half of whose images are held out",
    )
    group.add_argument("-a", "--arch", type=architecture, help=f"of all nets: {options.ARCHS}")
    group.add_argument("--arch_A", type=architecture, help="of A; overrides --arch")
    group.add_argument("--arch_B", type=architecture, help="of B; overrides --arch")
    group.add_argument(
        "--at",
        type=list_of(some_path),
        metavar="A,B,C",
        help=(
            "layers of both nets, by name or as stage:2; default: the ends of the stages. all: these"
            " and a matrix of all layers"
        ),
    )
    group.add_argument(
        "--at2", type=list_of(some_path), metavar="A,B,C", help="those of B, where they differ"
    )
    group = parser.add_argument_group("which distinctions B makes and A does not")
    group.add_argument(
        "--references",
        nargs="+",
        type=checkpoint_file,
        metavar="NET",
        help=(
            "nets of B's recipe from other seeds, two or more: a pair of classes is called where A"
            " loses more of it than they do"
        ),
    )
    group.add_argument(
        "--arch_references",
        nargs="+",
        type=architecture,
        metavar="ARCH",
        help="one of all these, or one of each; default: B's",
    )
    group = parser.add_argument_group("how much is computed")
    group.add_argument(
        "--quick", action="store_true", help="leave the nulls out; class means take their place"
    )
    group.add_argument(
        "--thorough",
        action="store_true",
        help=(
            "beside each linear layer fit a solved Trans-Net and its null, until more steps change"
            " nothing: hours"
        ),
    )
    group.add_argument(
        "--depth",
        type=whole(2),
        default=3,
        metavar="LAYERS",
        help="linear layers of these Trans-Nets",
    )
    group.add_argument(
        "--side",
        type=whole(0),
        metavar="S",
        help="average maps to S × S positions if they have more; 0: never; default: 8, of an atlas 4",
    )
    group.add_argument(
        "--shuffles",
        type=whole(1),
        help="pairings within the class, for the null; default: 3, of an atlas 1",
    )
    group.add_argument(
        "--permutations",
        type=whole(0, MOST_RESAMPLES),
        default=0,
        metavar="N",
        help="for p-values; 0: none",
    )
    options.add_bootstrap_option(group)
    group = parser.add_argument_group("images")
    group.add_argument(
        "--image_size",
        type=whole(options.SMALLEST_IMAGE, LARGEST_IMAGE),
        help="pixels to a side; default: the nets', or the files', if all are one square",
    )
    options.add_normalisation_options(group, two_nets=True)
    options.add_batch_option(group, 64)
    options.add_run_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=output_folder, default="comparison", metavar="FOLDER", help="what is written"
    )
    group = parser.add_argument_group("gate")
    group.add_argument(
        "--gate",
        type=policy_file,
        metavar="POLICY",
        help=(
            "decide whether B lost what A knew, by a JSON file, or by the policy that is named"
            f" {DEFAULT}: the exit code is 0 (pass), 3 (knowledge lost) or 4 (cannot say)"
        ),
    )
    group.add_argument(
        "--fail_below",
        type=real(),
        metavar="SHARED",
        help="decide, and fail where the features retain less",
    )
    group.add_argument(
        "--fail_above_flips",
        type=real(),
        metavar="P",
        help="decide, and fail where B alone is wrong on a larger share of the images",
    )
    group.add_argument(
        "--junit", type=result_file(".xml"), metavar="FILE", help="write the gate's checks for CI"
    )
    group.add_argument(
        "--markdown", type=result_file(".md"), metavar="FILE", help="write them to be read"
    )
    return parser


@dataclass(frozen=True)
class AskedOptions(Group):
    """Which nets are compared, at which layers and on which images.

    Attributes:
        nets: checkpoints of A and B, or of more.
        references: of nets of B's recipe; None: none.
        arch: the architecture of all, where an option names it.
        arch_A, arch_B, arch_references: of A, of B, and of all references or of each.
        images: folder of the images.
        at: layers by name, [ALL], or None: the ends of the stages.
        at2: those of B, where they differ.
        side: maps are averaged to side × side positions; 0: never; None: as many as is usual.
        image_size: S, pixels, if an option names it.
    """

    nets: list[str]
    references: list[str] | None
    arch: str | None
    arch_A: str | None
    arch_B: str | None
    arch_references: list[str] | None
    images: str
    at: list[str] | None
    at2: list[str] | None
    side: int | None
    image_size: int | None

    @property
    def is_atlas(self) -> bool:
        """Whether more than two nets are compared, all pairs of them."""
        return len(self.nets) > 2

    @property
    def has_matrix(self) -> bool:
        """Whether all layers of two nets are compared with each other."""
        return self.at == [ALL]

    @property
    def positions(self) -> int:
        """Positions to a side of the maps; 0: they are not averaged."""
        usual = ATLAS_SIDE if self.is_atlas else SIDE
        return usual if self.side is None else self.side

    @property
    def files(self) -> list[str]:
        """The checkpoints of the nets, and of B's references behind them."""
        return [*self.nets, *(self.references or [])]

    @property
    def archs(self) -> list[str | None]:
        """The architectures that options name, of each of `files`."""
        named = [self.arch_A, self.arch_B, *[None] * len(self.nets)][: len(self.nets)]
        # One of all references, or one of each
        of_references: list[str | None] = [*(self.arch_references or ())] or [self.arch_B]
        count = len(self.references or [])
        named += of_references if len(of_references) == count else of_references[:1] * count
        return [of_net or self.arch for of_net in named]

    @property
    def labels(self) -> list[str]:
        """What each of `files` is called: A and B, or N1, N2, …; references B1, B2, …"""
        if self.is_atlas:
            return [f"N{number + 1}" for number in range(len(self.nets))]
        return [*LABELS, *(f"B{number + 1}" for number in range(len(self.references or [])))]


@dataclass(frozen=True)
class AmountOptions(Group):
    """How much is computed.

    Attributes:
        quick: no null: class means take its place.
        shuffles: pairings within the class, for the null; None: as many as is usual.
        permutations: for p-values; 0: none.
        bootstrap: resamples of the images.
        seed: of all that is drawn.
        thorough: Trans-Nets are fitted beside the linear layers.
        depth: their linear layers, K + 1.
    """

    quick: bool
    shuffles: int | None
    permutations: int
    bootstrap: int
    seed: int
    thorough: bool
    depth: int


@dataclass(frozen=True)
class GateOptions(Group):
    """What decides whether B lost what A knew, and where that is written.

    Attributes:
        gate: a policy's file, or DEFAULT; None: no option names one.
        fail_below: the least that features retain.
        fail_above_flips: the largest share of images that B alone gets wrong.
        junit, markdown: files for the checks.
    """

    gate: str | None
    fail_below: float | None
    fail_above_flips: float | None
    junit: str | None
    markdown: str | None

    @property
    def is_asked(self) -> bool:
        """Whether the command decides."""
        asked = (self.gate, self.fail_below, self.fail_above_flips)
        return any(value is not None for value in asked)


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse options that contradict each other or have no effect."""
    if len(args.nets) < 2:
        takers = [name for name in ("references", "arch_references") if getattr(args, name)]
        swallowed = "".join(
            f"; --{name} takes all words that follow: name the nets before it, or -- between"
            for name in takers[:1]
        )
        parser.error(
            f"name at least 2 checkpoints, got {' '.join(map(str, args.nets))!r}{swallowed}"
        )
    if args.at2 and not args.at:
        parser.error("--at2 names the layers of net B beside --at, one for each")
    if not GateOptions.of(args).is_asked:
        parser.refuse_without_effect(args, ["junit", "markdown"], "without --gate")
    if args.at and ALL in args.at and (len(args.at) > 1 or args.at2 or len(args.nets) > 2):
        parser.error("--at all compares all layers of two nets, and stands alone")
    if len(args.nets) > 2:
        of_two = ["at2", "arch_A", "arch_B", "normalisation1", "normalisation2", "permutations"]
        gate = ["gate", "fail_below", "fail_above_flips"]
        references = ["references", "arch_references"]
        deep = ["thorough", "depth"]
        parser.refuse_without_effect(
            args, [*of_two, *references, *gate, *deep], "beside more than two nets"
        )
    if not args.references:
        parser.refuse_without_effect(args, ["arch_references"], "without --references")
    elif len(args.references) < LEAST_REFERENCES:
        parser.error(
            f"--references {args.references[0]} does not say what differs between seeds; name"
            f" {LEAST_REFERENCES} nets or more"
        )
    elif args.arch_references and len(args.arch_references) not in (1, len(args.references)):
        parser.error(
            f"--arch_references names {len(args.arch_references)} architectures of"
            f" {len(args.references)} nets; name one, or one of each"
        )
    if args.quick:
        of_nulls = ["shuffles", "permutations", "thorough", "depth"]
        parser.refuse_without_effect(args, of_nulls, "beside --quick")
    if not args.thorough:
        parser.refuse_without_effect(args, ["depth"], "without --thorough")
    if args.device_ids and len(args.device_ids) > 1:
        parser.error("--device_ids names one GPU here")


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

import torch

from consistency.compared import ComparedImages, ComparedNet
from consistency.compared_nets import (
    NetFeatures,
    Place,
    Survey,
    matched_places,
    same_places,
    survey,
)
from consistency.comparison import Comparing, Effort, Work
from consistency.comparison_report import Comparison, make_record, weights_of
from consistency.comparison_tables import measure_atlas, measure_matrix
from consistency.gate import Policy, Verdict, decide, read_policy
from consistency.solved import Thorough
from models.classifiers import read_classifier
from utils import opening, runs
from utils.data.images import ImageData, files_side, load_folder
from utils.errors import InputError
from utils.files import claim, in_words, write_text
from utils.kept import Kept
from utils.normalisation import normalisation_words
from utils.progress import Meter
from utils.report.distinction_figures import image_captions, photo_rows, place_rows
from utils.runtime import Runtime

# Convolutions of few channels take so much longer, for their FLOPs, than products of matrices
OF_CONVOLUTIONS = 4.0
IN_MEMORY_BYTES = 3e8  # of decoded images; more are decoded for each net anew


def effort_of(amount: AmountOptions, *, is_atlas: bool) -> Effort:
    """Say how much is computed of each pair of nets."""
    # An atlas has many pairs, so that one shuffle of each is enough for a map.
    usual = 1 if is_atlas else Effort.shuffles
    shuffles = usual if amount.shuffles is None else amount.shuffles
    return Effort(
        shuffles=0 if amount.quick else shuffles,
        permutations=amount.permutations,
        resamples=amount.bootstrap,
        seed=amount.seed,
        similar_permutations=0 if amount.quick else Effort.similar_permutations,
    )


def thorough_of(amount: AmountOptions, runtime: Runtime) -> Thorough | None:
    """Say how Trans-Nets are fitted beside the linear layers; None: they are not."""
    return Thorough(amount.depth, seed=amount.seed, runtime=runtime) if amount.thorough else None


def choose_size(
    asked: int | None,
    states: Sequence[Mapping[str, Any]],
    images: ImageData,
    data_of: Callable[..., DataOptions],
) -> DataOptions:
    """Choose the pixels to a side: an option's, the nets', their factories', or the files'.

    Args:
        asked: the option's.
        states: the nets' checkpoints without the weights.
        images: of the folder.
        data_of: what checkpoints say of their images → the options with that.
    """
    records = [state.get("data", {}) for state in states]
    if asked is not None or any("image_size" in record for record in records):
        return data_of(*records)
    # No checkpoint says it: the factories' size if they agree, or else that of the files.
    carried = {state["inputs"].image_size for state in states if "inputs" in state}
    side = carried.pop() if len(carried) == 1 else files_side(images)
    usable = side is not None and side >= options.SMALLEST_IMAGE
    return data_of(*records, {"image_size": side, "resize": options.RESIZE} if usable else {})


def names_of(asked: AskedOptions, surveys: Sequence[Survey]) -> list[str]:
    """Name nets for sentences: by their architecture, or their file, or their label.

    References have their labels.
    """
    count = len(asked.nets)
    # The first kind of names that tells all nets apart.
    for names in (
        [of.arch.rpartition(":")[2] for of in surveys[:count]],
        [runs.net_name(Path(of.path)) for of in surveys[:count]],
    ):
        if len(set(names)) == len(names):
            return [*names, *asked.labels[count:]]
    return asked.labels


def knows_classes(of: Survey, classes: Sequence[str]) -> str:
    """Say why a net's answers are not these images' classes; "" where they are."""
    named = of.state.get("data", {}).get("classes")
    if of.outputs != len(classes):
        return f"it tells {of.outputs} classes apart, and these images have {len(classes)}"
    return "it was trained on other classes" if named and list(named) != list(classes) else ""


def keep_features(
    labels: Sequence[str],
    nets: Sequence[NetFeatures],
    splits: Sequence[ImageData],
    pixels: torch.Tensor,
    data: DataOptions,
    runtime: Runtime,
    work: Work,
) -> None:
    """Let every net see every image once, unless its features are there.

    Of several processes each lets some nets see all images.
    """
    share, alone = slice(runtime.rank, None, runtime.world_size), runtime.alone()
    labels, nets = labels[share], nets[share]
    total = sum(map(len, splits))
    # The meter counts FLOPs; one of an unknown count stands for 1 an image.
    costs = [OF_CONVOLUTIONS * of.survey.flops or 1.0 for of in nets]
    for cost in costs:
        work.meter.expect(total * cost)
    missing = [
        not all(of.is_complete(identity_of(split), len(split)) for split in splits) for of in nets
    ]
    if any(missing):
        # Decoded once for all nets where that takes little memory
        bytes_each = 3 * data.image_size**2
        data = replace(data, cache_images="ram" if total * bytes_each < IN_MEMORY_BYTES else "off")
        with work.part("decoding images"):
            splits = [opening.decoded(data, split, runtime) for split in splits]
    for label, of, cost, is_missing in zip(labels, nets, costs, missing):
        if not is_missing:
            work.meter.skip(total * cost)
            with work.part(f"features of {label}", cached=True):
                continue
        loaders = {identity_of(split): (loader(data, split, alone), len(split)) for split in splits}
        with work.part(f"features of {label}"):
            of.compute(pixels, loaders, alone, lambda count: work.meter.add(count * cost))  # noqa: B023
    runtime.barrier()


def loader(data: DataOptions, images: ImageData, runtime: Runtime) -> Any:
    """Give what makes the loader of some images, by their numbers."""
    return lambda numbers: opening.image_loader(
        data, images, runtime, numbers=torch.tensor(numbers)
    )


def identity_of(data: ImageData) -> str:
    """Say what images are, by their contents and how they are decoded."""
    assert data.contents is not None
    return f"{data.contents.sha256} {sorted(data.decoding_record.items())}"


def notes_of(images: ComparedImages, nets: Sequence[ComparedNet], side: int) -> list[str]:
    """Say what is left out, and why."""
    notes = list[str]()
    if len(images.classes) == 1:
        notes.append("there is one class, so that what lies within and between classes is left out")
    elif not images.has_classes:
        notes.append("no class has two held-out images: pairs are mixed over all images")
    for net in nets:
        averaged = [layer.name for layer in net.layers if layer.is_averaged]
        if averaged:
            notes.append(
                f"maps of net {net.label} were averaged to {side} × {side} positions at"
                f" {', '.join(averaged)}"
            )
        for layer in net.layers:
            channels, *size = layer.held_out.shape[1:]
            # A 3 × 3 convolution between maps, a matrix elsewhere.
            columns = channels * (9 if len(layer.shape) == 3 else 1)
            rows = len(images.fitted) * size[0] * size[1]
            if rows < columns:
                notes.append(
                    f"{layer.name} of net {net.label} has {columns} unknowns a channel and {rows}"
                    " rows to fit: the null decides what is shared"
                )
    return notes


def open_policy(options: GateOptions) -> Policy | None:
    """Read what the gate asks; None where there is none."""
    if not options.is_asked:
        return None
    return read_policy(
        None if options.gate in (None, DEFAULT) else options.gate,
        features_at_least=options.fail_below,
        negative_flips_at_most=options.fail_above_flips,
    )


def decide_by(
    options: GateOptions, report: Comparison, *, resamples: int, seed: int
) -> Verdict | None:
    """Ask the gate, and put what it decided into the report."""
    if (policy := open_policy(options)) is None:
        return None
    nets = report.record["nets"]
    logits = report.logits["A"], report.logits["B"]
    labels = None if any(net["top1_percent"] is None for net in nets) else report.labels
    verdict = decide(report.record, policy, logits, labels, resamples=resamples, seed=seed)
    report.record["gate"] = verdict.record()
    return verdict


def write_verdict(options: GateOptions, verdict: Verdict) -> None:
    """Print what the gate decided, and write it for CI."""
    print(f"gate: {verdict.verdict}")
    for reason in verdict.reasons:
        print(f"    {reason}")
    for file, text in ((options.junit, verdict.junit), (options.markdown, verdict.markdown)):
        if file:
            write_text(file, text())
            print(f"saved {file}")


def open_nets(
    asked: AskedOptions, data_of: Callable[..., DataOptions], work: Work
) -> tuple[list[Survey], DataOptions]:
    """Read what the checkpoints are, and choose the size of the images that all nets see.

    Returns:
        Of the nets, then of B's references; and the options of the images.

    Raises:
        InputError: a reference is A, B or another reference.
    """
    with work.part("reading nets"):
        models_and_states = [read_classifier(*named) for named in zip(asked.files, asked.archs)]
        states = [state for _, state in models_and_states]
        # Only file names and sizes are read here, so any size serves to list the folder.
        listed = load_folder(asked.images, options.IMAGE_SIZE)[1]
        data = choose_size(asked.image_size, states, listed, data_of)
        surveys = [
            survey(path, arch, model_and_state, data.image_size, work.kept)
            for path, arch, model_and_state in zip(asked.files, asked.archs, models_and_states)
        ]
    count = len(asked.nets)
    for place, reference in enumerate(surveys[count:], count):
        for other in surveys[:place]:
            if reference.sha256 == other.sha256:
                raise InputError(
                    f"--references {reference.path} holds the net of {other.path}; name nets of"
                    " other seeds"
                )
    return surveys, data


def open_images(
    folder: str, data: DataOptions, runtime: Runtime, work: Work
) -> tuple[Sequence[ImageData], ComparedImages]:
    """List and hash the images, which are not decoded yet.

    Returns:
        Those that regressions are fitted to and the held-out ones; and what is compared of both.
    """
    with work.part("reading images"):
        fitted, held_out = load_folder(folder, data.image_size, data.resize)
        opening.bind(data, runtime, fitted, held_out)
    images = ComparedImages(
        fitted.targets,
        held_out.targets,
        held_out.classes,
        str(folder),
        held_out.paths,
        notes=[*dict.fromkeys([*fitted.notes, *held_out.notes])],
    )
    runtime.say(
        f"{len(fitted):,} images to fit to, {len(held_out):,} held out,"
        f" {len(images.classes)} classes, {data.image_size} pixels"
    )
    return (fitted, held_out), images


def choose_places(
    asked: AskedOptions, surveys: Sequence[Survey], images: ComparedImages, runtime: Runtime
) -> list[list[Place]]:
    """Choose the layers of each net that are compared; a note says where stages were matched.

    References are cut where B is.
    """
    named = None if asked.has_matrix else asked.at
    count = len(asked.nets)
    places, note = matched_places(surveys[:count], named, asked.at2)
    places += [same_places(of, places[-1]) for of in surveys[count:]]
    if note:
        images.notes.append(note)
    for label, of_net in zip(asked.labels, places):
        runtime.say(f"net {label} at {', '.join(place.name for place in of_net)}")
    return places


def open_features(
    asked: AskedOptions,
    surveys: Sequence[Survey],
    places: Sequence[Sequence[Place]],
    data: DataOptions,
    cache: Path,
    precision: str,
    runtime: Runtime,
) -> list[NetFeatures]:
    """Say which features of each net are needed, and where they are kept.

    Args:
        asked: the nets, and their layers.
        surveys: of the nets.
        places: the layers that are compared, of each net.
        data: the images.
        cache: folder of what is kept.
        precision: of the nets' computations, "off" where that is not mixed.
        runtime: says a line once.
    """
    normalisations = [
        opening.normalisation(data, of.state, runtime, label)
        for label, of in zip(asked.labels, surveys)
    ]
    return [
        NetFeatures(
            of,
            constants,
            [
                *((place, asked.positions) for place in of_net),
                # Of the matrix, all layers, with fewer positions of each
                *((place, ATLAS_SIDE) for place in of.all_places() if asked.has_matrix),
            ],
            data.image_size,
            cache,
            f"{precision} {runtime.device.type}",
        )
        for of, constants, of_net in zip(surveys, normalisations, places)
    ]


def compared_net(
    asked: AskedOptions,
    label: str,
    name: str,
    features: NetFeatures,
    places: Sequence[Place],
    splits: Sequence[ImageData],
    pixels: torch.Tensor,
) -> ComparedNet:
    """Open the features of one net, which are there, as what is compared.

    Args:
        asked: what is compared.
        label: of the net, "A".
        name: for sentences.
        features: of the net.
        places: the layers that are compared.
        splits: the fitted and the held-out images.
        pixels: of a few images, by which tails prove themselves.
    """
    of, (fitted, held_out) = features.survey, map(identity_of, splits)
    reason = knows_classes(of, splits[1].classes)
    facts = {
        "checkpoint": of.path,
        "sha256": of.sha256,
        "arch": of.arch,
        "parameters": of.parameters,
        "normalisation": normalisation_words(features.normalisation),
        "remarks": [],
    } | ({"why_no_accuracy": reason} if reason else {})
    # The matrix needs no tails: nobody answers to its features.
    of_matrix = of.all_places() if asked.has_matrix else ()
    return ComparedNet(
        label,
        name,
        facts,
        features.logits(held_out),
        features.layers(places, asked.positions, fitted, held_out, pixels),
        features.layers(of_matrix, ATLAS_SIDE, fitted, held_out, None),
        knows_classes=not reason,
        state=features.weights,
    )


def compare(
    asked: AskedOptions,
    effort: Effort,
    thorough: Thorough | None,
    nets: Sequence[ComparedNet],
    references: Sequence[ComparedNet],
    images: ComparedImages,
    held_out: ImageData,
    work: Work,
    runtime: Runtime,
    typed: str,
) -> Comparison:
    """Compare both directions at each pair of layers, or all pairs of more than two nets.

    Args:
        asked: what is compared.
        effort: how much is computed.
        thorough: how Trans-Nets are fitted besides; None: they are not.
        nets: with their features.
        references: of B's recipe, with their features.
        images: that all of them saw.
        held_out: the photos of those that are held out.
        work: keeps results, and says how far all is.
        runtime: the processes that share an atlas.
        typed: the command line, for the report.
    """
    pairs, matrix, atlas, weights = list[dict[str, Any]](), None, None, "different"
    maps = dict[str, Mapping[str, torch.Tensor]]()
    figures, pictures = dict[str, Any](), list[dict[str, str]]()
    if asked.is_atlas:
        atlas = measure_atlas(nets, images, effort, work, runtime)
    else:
        with work.part("comparing weights"):
            weights = weights_of(nets[0], nets[1])
        comparing = Comparing(nets[0], nets[1], images, effort, work, references, thorough)
        pairs, maps = comparing.pairs(), comparing.maps
        figures, pictures = comparing.picture(lambda number: held_out.decode([number])[0])
    if asked.has_matrix:
        matrix = measure_matrix(nets[0], nets[1], images, effort, work)
    record = make_record(
        nets,
        images,
        pairs=pairs,
        weights=weights,
        parts=work.parts,
        command=typed,
        resamples=effort.resamples,
        seed=effort.seed,
        matrix=matrix,
        atlas=atlas,
        references=references,
        pictures=pictures,
    )
    logits = {net.label: net.logits for net in nets}
    return Comparison(record, logits, images.held_out, images.paths, maps, figures)


def draw_distinctions(report: Comparison, held_out: ImageData) -> None:
    """Draw the images most and least lost, and where in them; the report names the pictures."""
    names = [net["name"] for net in report.record["nets"]]
    for way, (sender, receiver) in {"forth": names[:2], "back": names[1::-1]}.items():
        entries = [pair[way]["distinctions"] for pair in report.record["pairs"]]
        if not (measured := [entry for entry in entries if entry]):
            continue
        ends = {"most lost": measured[-1]["most_lost"], "least lost": measured[-1]["least_lost"]}
        rows = {
            title: (held_out.decode([of["image"] for of in images]), image_captions(images))
            for title, images in ends.items()
        }
        caption = f"Images most and least lost on the way from {sender} to {receiver}"
        pictures = {
            f"images_{way}.png": (f"{caption}: its answer and the margin.", photo_rows(rows))
        }
        if not measured[-1]["places"]["withdrawn"]:
            maps = report.maps[way]
            titles = {
                "size": "size of $x_\\Delta$",
                "carried": "margin lost",
                "untrue": "untrue pair",
            }
            of_places = {title: maps[name] for name, title in titles.items()}
            photos = held_out.decode(maps["numbers"].tolist())
            caption = (
                f"Where what {sender} misses matters to {receiver}, in the images most lost; each"
                " cell has a scale of its own."
            )
            pictures[f"places_{way}.png"] = caption, place_rows(photos, of_places)
        for file, (caption, figure) in pictures.items():
            report.pictures[file] = figure
            entry = {"file": file, "caption": caption, "alternative": caption}
            report.record["pictures"].append(entry)


def write(
    report: Comparison,
    images: ComparedImages,
    gate: GateOptions,
    effort: Effort,
    out: str,
    runtime: Runtime,
) -> Verdict | None:
    """Print and save the report, and what the gate decided, if there is one.

    Of several processes the main one does.
    """
    for net in report.record["nets"]:
        for remark in net["remarks"]:
            runtime.say(f"doubt: {remark}")
    for note in images.notes:
        runtime.say(f"note: {note}")
    runtime.say(str(report))
    # Before saving: the report says it, too
    verdict = decide_by(gate, report, resamples=effort.resamples, seed=effort.seed)
    for file in report.save(Path(out)) if runtime.is_main else ():
        runtime.say(f"saved {file} ({in_words(file.stat().st_size)})")
    if verdict is not None:
        write_verdict(gate, verdict)
    return verdict


@command
def main(argv: Sequence[str] | None = None) -> Comparison:
    """Run the step; returns the report."""
    parser = build_parser()
    args = parser.parse_args(argv)
    parser.check_files(args)
    asked, gate, output = AskedOptions.of(args), GateOptions.of(args), OutputOptions.of(args)
    amount = AmountOptions.of(args)
    effort = effort_of(amount, is_atlas=asked.is_atlas)
    open_policy(gate)  # a wrong one is refused before anything is computed
    runtime = opening.start(RunOptions.of(args), output)
    if runtime.world_size > 1 and not asked.is_atlas:
        raise InputError(
            "torchrun shares the pairs of more than two nets among its processes; two nets are"
            " compared in one process: start Compare.py without torchrun"
        )

    # The main process claims the folder for all of them.
    with claim(Path(output.out), elsewhere="--out") if runtime.is_main else nullcontext():
        cache = Path(output.out, "cache")
        work = Work(Kept(cache), Meter("compare", quiet=not runtime.is_main))

        # What the checkpoints are, and the images at the size that they were made for; hashes of
        # images are kept in the cache, too.
        data_of = partial(DataOptions.of, args, dataset="folder", data_root=str(cache))
        with runtime.main_first():  # it keeps surveys, which the others read
            surveys, data = open_nets(asked, data_of, work)
        splits, images = open_images(asked.images, data, runtime, work)

        # The layers, and every net's features there, from one pass each.
        places = choose_places(asked, surveys, images, runtime)
        features = open_features(asked, surveys, places, data, cache, args.amp, runtime)
        pixels = opening.few_pixels(splits[1])
        keep_features(asked.labels, features, splits, pixels, data, runtime, work)
        opened = [
            compared_net(asked, *of_net, splits, pixels)
            for of_net in zip(asked.labels, names_of(asked, surveys), features, places)
        ]
        nets, references = opened[: len(asked.nets)], opened[len(asked.nets) :]
        images.notes += notes_of(images, nets, asked.positions)

        # Both directions at each pair of layers, then the report and the gate.
        typed = command_line("Compare.py", *(sys.argv[1:] if argv is None else argv))
        report = compare(
            asked,
            effort,
            thorough_of(amount, runtime),
            nets,
            references,
            images,
            splits[1],
            work,
            runtime,
            typed,
        )
        draw_distinctions(report, splits[1])
        verdict = write(report, images, gate, effort, output.out, runtime)
    if verdict is not None and verdict.exit_code:
        raise SystemExit(verdict.exit_code)
    return report


if __name__ == "__main__":
    main()
