"""Make the official archives of a data set into cropped images, one folder a class (paper Sec. 4).

Writes {out}/{dataset}/{train,test}/{class}/*.jpg: RGB, JPEG quality 95, each object cut out by its box, which ends at
the photo's border; class folders sort by official id. What is there already is left alone, so a run that was stopped
goes on. What cannot be used is named; the exit code is then 1, with --skip_bad 0.
"""

import io
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

from utils.data.datasets import VOC_CLASSES
from utils.errors import InputError
from utils.files import replacing
from utils.parser import Parser
from utils.prepare.archives import CUB_PARTS, DOG_PARTS, read_cub, read_dogs
from utils.prepare.cropping import Listing, Problem, clear_target, crop_all
from utils.prepare.unpacking import unpacked
from utils.prepare.voc import VOC_ANIMALS, VOC_PARTS, read_voc, read_voc_lists
from utils.runtime import command

PARTS = {"CUB200": CUB_PARTS, "DOG120": DOG_PARTS, "VOC2012_crop": VOC_PARTS, "VOC2012_animal": VOC_PARTS}
PARTS["mix320"] = CUB_PARTS | DOG_PARTS


def build_parser() -> Parser:
    """The command line."""
    parser = Parser(__doc__)
    parser.add_argument("dataset", choices=[*PARTS, "digits"], help="digits needs no --src")
    parser.add_argument(
        "--src", nargs="+", action="extend", type=Path, default=[], metavar="PATH",
        help="official archives (.tar, .tgz) or folders with their content; mix320: those of CUB200 and DOG120",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("KC_DATA", "data")),
        help="folder of the data sets; default from KC_DATA",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, metavar="N", help="only the first N classes")
    parser.add_argument("--skip_bad", action="store_true", help="end well although some photos cannot be cropped")
    parser.add_argument("-j", "--workers", type=int, default=os.cpu_count() or 1, help="processes that crop")
    voc = parser.add_argument_group("VOC2012_crop, VOC2012_animal")
    voc.add_argument(
        "--list", nargs="+", action="extend", type=Path, default=[], metavar="FILE",
        help="crop exactly the objects of the authors' pickled list for train; a second one is for test",
    )  # fmt: skip
    voc.add_argument("--val_list", type=Path, metavar="FILE", help="the list for test")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Prepare one data set, or the two of mix320, and print what there is."""
    parser = build_parser()
    args = parser.parse_args(argv)
    lists = [*args.list, *([args.val_list] if args.val_list else [])]
    if (args.val_list and not args.list) or len(lists) > 2:
        parser.error("VOC lists are one --list for train and at most one for test")
    if lists and not args.dataset.startswith("VOC"):
        parser.error(f"--list is for VOC2012_crop and VOC2012_animal, not for {args.dataset}")
    if args.classes is not None and args.classes < 1:
        parser.error("--classes needs at least 1")
    if args.dataset == "digits":
        write_digits(args.out / "digits", args.classes or 10)
        print_table({"digits": []}, args.out)
        return
    datasets = ["CUB200", "DOG120"] if args.dataset == "mix320" else [args.dataset]
    # Without --src mix320 only checks that both halves are there.
    if not args.src and not (args.dataset == "mix320" and all((args.out / name).is_dir() for name in datasets)):
        official = ", ".join(PARTS[args.dataset].values())
        raise InputError(f"{args.dataset} needs --src: the official {official}, or folders with their content")
    problems: dict[str, list[Problem]] = {name: [] for name in datasets}
    with unpacked(args.src, PARTS[args.dataset], args.out / f".{args.dataset}.unpacked") as folders:
        for name in datasets if args.src else []:
            problems[name] = prepare(read(name, folders, lists, args.classes), args.out / name, args.workers)
    print_problems([problem for found in problems.values() for problem in found])
    print_table(problems, args.out)
    skipped = sum(map(len, problems.values()))
    if skipped and not args.skip_bad:
        raise InputError(f"{skipped:,} entries, named above, could not be used; mend them or accept that by --skip_bad")


def read(dataset: str, folders: list[Path], lists: list[Path], limit: int | None) -> Listing:
    """List the crops of a data set whose official files are in `folders`."""
    if dataset == "CUB200":
        return read_cub(folders, limit)
    if dataset == "DOG120":
        return read_dogs(folders, limit)
    names = VOC_ANIMALS if dataset == "VOC2012_animal" else VOC_CLASSES
    return read_voc_lists(folders, lists, names, limit) if lists else read_voc(folders, names, limit)


def prepare(listing: Listing, target: Path, workers: int) -> list[Problem]:
    """Make the crops of `listing` below `target`, say what was done, and return what could not be used."""
    for note in listing.notes:
        print(note)
    if not listing.crops:
        raise InputError(f"nothing to crop for {target}; is --src the right folder?")
    clear_target(target, {crop.output for crop in listing.crops})
    outcomes = crop_all(listing.crops, target, workers)
    made = [outcome for outcome in outcomes if outcome.made]
    problems = [outcome.problem for outcome in outcomes if outcome.problem]
    modes = Counter(outcome.mode for outcome in made if outcome.mode != "RGB")
    print(
        f"{target}: {len(made):,} crops made, {len(outcomes) - len(made) - len(problems):,} were there; "
        f"{sum(outcome.clamped for outcome in made):,} boxes clamped to the photo, "
        f"{sum(modes.values()):,} photos made RGB" + "".join(f" ({n} {mode})" for mode, n in modes.items())
    )
    return listing.problems + problems


def write_digits(target: Path, classes: int) -> None:
    """Write scikit-learn's 1,797 handwritten digits as 8x8 PNGs: of each class every fifth in test."""
    digits = load_digits()
    seen: Counter[int] = Counter()
    images: dict[str, Image.Image] = {}
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target.tolist())):
        split = "test" if seen[digit] % 5 == 4 else "train"
        seen[digit] += 1
        if digit < classes:
            # 0 to 16 levels become 0 to 255.
            grey = Image.fromarray((pixels * 255 / 16).round().astype("uint8"))
            images[f"{split}/{digit}/{number:04d}.png"] = grey.convert("RGB")
    clear_target(target, set(images))
    made = 0
    for name, image in images.items():
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        if not (target / name).is_file() or (target / name).read_bytes() != buffer.getvalue():
            with replacing(target / name) as temporary:
                temporary.write_bytes(buffer.getvalue())
            made += 1
    print(f"{target}: {made:,} images made, {len(images) - made:,} were there")


def print_problems(problems: list[Problem]) -> None:
    """Name every problem, kind by kind."""
    for kind, count in sorted(Counter(problem.kind for problem in problems).items()):
        # A photo without a file fails once for each of its objects, and is named once.
        places = dict.fromkeys(problem.where for problem in problems if problem.kind == kind)
        print(f"{kind}: {count:,}", *places, sep="\n  ")


def print_table(problems: dict[str, list[Problem]], out: Path) -> None:
    """Print what lies in each data set's folder, and how many entries of its source were skipped."""
    print(f"{'data set':<16}{'classes':>8}{'train':>8}{'test':>8}{'skipped':>8}")
    for name, skipped in problems.items():
        images = {split: list((out / name / split).glob("*/[!.]*")) for split in ("train", "test")}
        classes = {path.parent.name for paths in images.values() for path in paths}
        counts = (len(classes), len(images["train"]), len(images["test"]), len(skipped))
        print(f"{name:<16}" + "".join(f"{count:>8,}" for count in counts))


if __name__ == "__main__":
    main()
