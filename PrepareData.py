"""Turn a data set's official archives into images, one folder a class (paper Sec. 4).

DCM and HSAKD read the same folders.

Writes {out}/{dataset}/{train,test}/{class}/*: RGB; photos with boxes as JPEG of quality 95, each
object cut out by its box, which ends at the photo's border; arrays of pixels as PNG, named by their
place in the archive; small JPEGs as they are. Class folders sort by official id. What is there
already is left alone, so a run that was stopped goes on. What cannot be used is named; the exit
code is then 1, with --skip_bad 0.
"""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from utils.command import answer_early, command
from utils.files import check_writable
from utils.parser import (
    MOST_PROCESSES,
    Checked,
    Namespace,
    Parser,
    command_line,
    some_path,
    source_path,
    whole,
)

DATASETS = (
    "CUB200",
    "DOG120",
    "mix320",
    "VOC2012_crop",
    "VOC2012_animal",
    "CIFAR100",
    "CIFAR10",
    "STL10",
    "TinyImageNet",
    "digits",
)
VERIFY = "verify"


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(
        __doc__,
        "python PrepareData.py CUB200 --src CUB_200_2011.tgz --out data",
        check=check_options,
    )
    group = parser.add_argument_group("images")
    group.add_argument(
        "dataset",
        choices=(*DATASETS, VERIFY),
        help="digits needs no --src; verify: read all files of --src anew, and name every bad one",
    )
    group.add_argument(
        "--src",
        nargs="+",
        action="extend",
        type=source_path,
        default=[],
        metavar="PATH",
        help=(
            "official archives (.tar, .tgz, .zip) or folders with their content; mix320: those of"
            " CUB200 and DOG120"
        ),
    )
    group.add_argument(
        "--out",
        type=Checked(check_writable, _path),
        default=Path(os.environ.get("KC_DATA", "data")),
        help="folder of the data sets; default from KC_DATA",
    )
    group.add_argument(
        "--classes", type=whole(1), metavar="N", help="only the first N classes that there are"
    )
    group.add_argument(
        "--skip_bad", action="store_true", help="end well although some photos cannot be cropped"
    )
    group.add_argument(
        "-j",
        "--workers",
        type=whole(1, MOST_PROCESSES),
        default=os.cpu_count() or 1,
        help="processes that crop or threads that write",
    )
    voc = parser.add_argument_group("VOC2012_crop, VOC2012_animal")
    voc.add_argument(
        "--list",
        nargs="+",
        action="extend",
        type=_path,
        default=[],
        metavar="FILE",
        help=(
            "crop exactly the objects of the authors' pickled list for train; a second one is for"
            " test"
        ),
    )
    voc.add_argument("--val_list", type=_path, metavar="FILE", help="the list for test")
    return parser


def _path(text: str) -> Path:
    return Path(some_path(text))


def lists_of(named: list[Path], val_list: Path | None) -> list[Path]:
    """Give the authors' lists of objects that options name, that of train first."""
    return [*named, *([val_list] if val_list else [])]


def check_options(parser: Parser, args: Namespace) -> None:
    """Refuse lists that the data set does not have, and to verify nothing."""
    if args.dataset == VERIFY and not args.src:
        parser.error("verify needs --src: the folders whose files are read")
    lists = lists_of(args.list, args.val_list)
    if (args.val_list and not args.list) or len(lists) > 2:
        parser.error("VOC lists are one --list for train and at most one for test")
    if lists and not args.dataset.startswith("VOC"):
        parser.error(f"--list is for VOC2012_crop and VOC2012_animal, not for {args.dataset}")


# Help, a wrong option and a missing file are answered before the readers of images are loaded.
if __name__ == "__main__":
    answer_early(build_parser())

from utils.data.datasets import VOC_CLASSES
from utils.errors import InputError
from utils.prepare import arrays
from utils.prepare.archives import CUB_PARTS, DOG_PARTS, read_cub, read_dogs
from utils.prepare.cropping import Listing, Problem, clear_target, crop_all
from utils.prepare.tiny_imagenet import TINY_IMAGENET_PARTS, read_tiny_imagenet
from utils.prepare.unpacking import unpacked
from utils.prepare.voc import VOC_ANIMALS, VOC_PARTS, read_voc, read_voc_lists
from utils.prepare.writing import write_all

PARTS = {
    "CUB200": CUB_PARTS,
    "DOG120": DOG_PARTS,
    "mix320": CUB_PARTS | DOG_PARTS,
    "VOC2012_crop": VOC_PARTS,
    "VOC2012_animal": VOC_PARTS,
    "CIFAR100": arrays.CIFAR100_PARTS,
    "CIFAR10": arrays.CIFAR10_PARTS,
    "STL10": arrays.STL10_PARTS,
    "TinyImageNet": TINY_IMAGENET_PARTS,
    "digits": {},
}
READERS = {
    "CUB200": read_cub,
    "DOG120": read_dogs,
    "CIFAR100": arrays.read_cifar100,
    "CIFAR10": arrays.read_cifar10,
    "STL10": arrays.read_stl10,
    "TinyImageNet": read_tiny_imagenet,
}


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prepare one data set, or the two of mix320, and print what there is."""
    args = build_parser().parse_args(argv)
    if args.dataset == VERIFY:
        verify(args.src)
        return
    # What is to be made; mix320 is both CUB200 and DOG120.
    lists = lists_of(args.list, args.val_list)
    check_writable(args.out)
    datasets = ["CUB200", "DOG120"] if args.dataset == "mix320" else [args.dataset]
    # Without --src mix320 only checks that both halves are there, and the digits come with
    # scikit-learn.
    there = args.dataset == "mix320" and all((args.out / name).is_dir() for name in datasets)
    if not args.src and not there and args.dataset != "digits":
        official = ", ".join(PARTS[args.dataset].values())
        raise InputError(
            f"{args.dataset} needs --src: the official {official}, or folders with their content"
        )
    # Unpack the archives beside the images, make the images, and drop what was unpacked.
    problems: dict[str, list[Problem]] = {name: [] for name in datasets}
    with unpacked(args.src, PARTS[args.dataset], args.out / f".{args.dataset}.unpacked") as folders:
        for name in [] if there and not args.src else datasets:
            problems[name] = prepare(
                read(name, folders, lists, args.classes), args.out / name, args.workers
            )
    # Name what could not be used; a data set with holes is an error unless --skip_bad allows it.
    print_problems([problem for of_source in problems.values() for problem in of_source])
    print_table(problems, args.out)
    skipped = sum(map(len, problems.values()))
    if skipped and not args.skip_bad:
        raise InputError(
            f"{skipped:,} entries, named above, could not be used; mend them or accept that by"
            " --skip_bad"
        )
    print(
        f"next: {command_line('Training.py', '--dataset', args.dataset, '--data_root', args.out)}"
    )


def verify(folders: list[Path]) -> None:
    """Read every file of the suite below some folders, and name all that are damaged.

    Raises:
        InputError: some are.
    """
    # It reads checkpoints by PyTorch, which preparing images does without.
    from utils.features.verifying import find_damaged  # noqa: PLC0415

    read = [one for folder in folders for one in find_damaged(folder)]
    damaged = [sentence for _, sentence in read if sentence]
    print(*damaged, f"{len(read):,} files read, {len(damaged):,} damaged", sep="\n")
    if damaged:
        raise InputError(f"{len(damaged):,} of {len(read):,} files, named above, are damaged")


def read(dataset: str, folders: list[Path], lists: list[Path], limit: int | None) -> Listing:
    """List the images of a data set whose official files are in `folders`."""
    if dataset == "digits":
        return arrays.read_digits(limit)
    if dataset in READERS:
        return READERS[dataset](folders, limit)
    # VOC has no crops of its own: boxes of its annotations, or the objects of the authors' lists.
    names = VOC_ANIMALS if dataset == "VOC2012_animal" else VOC_CLASSES
    return (
        read_voc_lists(folders, lists, names, limit) if lists else read_voc(folders, names, limit)
    )


def prepare(listing: Listing, target: Path, workers: int) -> list[Problem]:
    """Make the images of `listing` below `target`, and say what was done.

    It returns what could not be used.
    """
    for note in listing.notes:
        print(note)
    if not listing.crops and not listing.files:
        raise InputError(f"there are no images for {target}; is --src the right folder?")
    # Images of another preparation in these folders would count as this data set's.
    clear_target(target, {crop.output for crop in listing.crops} | set(listing.files))
    if listing.files:
        made = write_all(listing.files, target, workers)
        print(f"{target}: {made:,} images made, {len(listing.files) - made:,} were there")
        return listing.problems
    return listing.problems + crop_photos(listing, target, workers)


def crop_photos(listing: Listing, target: Path, workers: int) -> list[Problem]:
    """Cut the crops of `listing` out of their photos, and say what had to be done to them."""
    outcomes = crop_all(listing.crops, target, workers)
    made = [outcome for outcome in outcomes if outcome.made]
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    modes = Counter(outcome.mode for outcome in made if outcome.mode != "RGB")
    print(
        f"{target}: {len(made):,} crops made, {len(outcomes) - len(made) - len(problems):,} were"
        f" there; {sum(outcome.clamped for outcome in made):,} boxes clamped to the photo,"
        f" {sum(modes.values()):,} photos made RGB"
        + "".join(f" ({n} {mode})" for mode, n in modes.items())
    )
    return problems


def print_problems(problems: list[Problem]) -> None:
    """Name every problem, kind by kind."""
    for kind, count in sorted(Counter(problem.kind for problem in problems).items()):
        # A photo without a file fails once for each of its objects, and is named once.
        places = dict.fromkeys(problem.where for problem in problems if problem.kind == kind)
        print(f"{kind}: {count:,}", *places, sep="\n  ")


def print_table(problems: dict[str, list[Problem]], out: Path) -> None:
    """Print what lies in each data set's folder, and how many source entries were skipped."""
    print(f"{'data set':<16}{'classes':>8}{'train':>8}{'test':>8}{'skipped':>8}")
    for name, skipped in problems.items():
        # Count what lies there now, also from runs before; hidden files are no images.
        images = {split: list((out / name / split).glob("*/[!.]*")) for split in ("train", "test")}
        classes = {path.parent.name for paths in images.values() for path in paths}
        counts = (len(classes), len(images["train"]), len(images["test"]), len(skipped))
        print(f"{name:<16}" + "".join(f"{count:>8,}" for count in counts))


if __name__ == "__main__":
    main()
