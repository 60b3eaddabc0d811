"""Put a run on one page of HTML: tables with intervals, figures, settings, provenance.

The page says how its numbers are to be read.

The page holds all that it shows and loads nothing. --check makes it anew from the run's folder and
fails where a number of the page is another.
"""

from collections.abc import Sequence
from pathlib import Path

from utils.command import answer_early, command
from utils.parser import Parser, result_file, run_folder, some_path


def build_parser() -> Parser:
    """Declare this step's options."""
    parser = Parser(__doc__, "python Report.py demo --out demo/page.html")
    group = parser.add_argument_group("page")
    which = (
        "folder with what Variance.py --json, --figure, --spectrum and Calibrate.py --json wrote"
    )
    group.add_argument("run", type=run_folder, metavar="RUN", help=f"{which} (.png and .svg)")
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--out", type=result_file(".html"), metavar="FILE", help="write it; default: RUN/page.html"
    )
    what.add_argument(
        "--check",
        type=some_path,
        metavar="FILE",
        help="hold a page against the run, and write nothing",
    )
    return parser


# Help, a wrong option and a missing file are answered before PyTorch is loaded, which takes seconds.
if __name__ == "__main__":
    answer_early(build_parser())

from utils.errors import InputError
from utils.files import in_words, write_text
from utils.report import page


@command
def main(argv: Sequence[str] | None = None) -> str:
    """Run the step; returns the page that the run gives."""
    args = build_parser().parse_args(argv)
    # The page, made from the run's JSON and pictures alone.
    made = page.render(args.run)
    size, count = in_words(len(made.encode())), len(page.values(made))
    # Compare an older page with it, value by value, and write nothing.
    if args.check:
        if not Path(args.check).is_file():
            raise InputError(f"there is no page {args.check}; make it by --out")
        try:
            page.check(Path(args.check).read_text(encoding="utf-8"), made)
        except (InputError, UnicodeDecodeError) as error:
            raise InputError(f"{args.check} is not the page of {args.run}: {error}") from None
        print(f"{args.check}: all {count:,} values are those of {args.run}")
        return made
    # Or write it.
    out = Path(args.out or Path(args.run, "page.html"))
    write_text(out, made)
    print(f"saved {out} ({size}, {count:,} values)")
    return made


if __name__ == "__main__":
    main()
